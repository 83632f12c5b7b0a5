// The bundled model on CUDA beside the reference backend.
//
// Greedy text must be the same, or part at a near-tie: where the reference prefers its own token to the other by less than a nat. The
// logits of a step may differ by what another order of fp32 sums makes of this model: 0.13 with a BF16 cache and 0.22 with an FP8
// cache in the median of 2,000 steps (the largest of a step's 2,048 logits; H100, 2026-11-27), where transformers in BF16 and in fp32
// differ by 0.4. A few steps in a thousand differ by more, up to 4.3: there the router of a layer, at a near-tie of its own, takes
// another expert. So the median is held, not the largest. Logits are held against transformers in tests/model/goldens_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "snapmla/backend.h"
#include "snapmla/engine.h"
#include "support/backends.h"

namespace snapmla {
namespace {

using testing::On;

constexpr int kTokens = 200;
constexpr double kMostMedian = 0.4;
constexpr double kNearTie = 1;

const std::vector<std::string>& prompts() {
  static const std::vector<std::string> all = {"In the beginning", "And it came to pass",
                                               "The king said",    "Now when they had",
                                               "Behold, I",        "There was a man",
                                               "And the people",   "For the LORD",
                                               "Then answered",    "The sons of",
                                               "And he went",      "Blessed is",
                                               "My son",           "Thus saith",
                                               "In that day",      "The word of",
                                               "And they took",    "Hear, O",
                                               "But if",           "These are the names"};
  return all;
}

struct Generated {
  std::vector<std::int32_t> tokens;
  std::vector<std::vector<float>> logits;
};

std::vector<Generated> generate(On on, CacheFormat format) {
  Engine engine({.model_dir = std::string(SNAPMLA_SOURCE_DIR) + "/models/tiny-mla",
                 .backend = &testing::backend(on),
                 .cache_format = format,
                 .max_seq_len = 256,
                 .max_batch = static_cast<int>(prompts().size())});
  for (const std::string& prompt : prompts())
    engine.submit({.prompt = prompt, .max_tokens = kTokens, .ignore_eos = true, .return_logits = true});
  std::vector<Generated> result(prompts().size());
  while (!engine.idle()) {
    for (TokenEvent& event : engine.step()) {
      Generated& request = result.at(static_cast<std::size_t>(event.request - 1));
      request.tokens.push_back(event.token);
      request.logits.push_back(std::move(event.logits));
    }
  }
  return result;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  return largest;
}

class BundledModelOnCuda : public ::testing::TestWithParam<CacheFormat> {};
INSTANTIATE_TEST_SUITE_P(Caches, BundledModelOnCuda, ::testing::Values(CacheFormat::kFp8, CacheFormat::kBf16),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST_P(BundledModelOnCuda, WritesTheReferencesTextOrPartsAtANearTie) {
  if (const std::string reason = testing::why_not(On::kCuda); !reason.empty()) GTEST_SKIP() << reason;
  const std::vector<Generated> want = generate(On::kReference, GetParam());
  const std::vector<Generated> got = generate(On::kCuda, GetParam());
  int parted = 0;
  std::vector<double> differences;
  for (std::size_t r = 0; r < want.size(); ++r) {
    ASSERT_EQ(want[r].tokens.size(), static_cast<std::size_t>(kTokens));
    ASSERT_EQ(got[r].tokens.size(), static_cast<std::size_t>(kTokens));
    for (std::size_t i = 0; i < kTokens; ++i) {
      differences.push_back(largest_difference(want[r].logits[i], got[r].logits[i]));
      if (want[r].tokens[i] == got[r].tokens[i]) continue;
      const std::vector<float>& logits = want[r].logits[i];
      const double lead = static_cast<double>(logits[static_cast<std::size_t>(want[r].tokens[i])]) -
                          logits[static_cast<std::size_t>(got[r].tokens[i])];
      EXPECT_LT(lead, kNearTie) << "'" << prompts()[r] << "' parts at token " << i;
      ++parted;
      break;  // what follows answers another text
    }
  }
  const auto middle = differences.begin() + std::ssize(differences) / 2;
  std::nth_element(differences.begin(), middle, differences.end());
  EXPECT_LE(*middle, kMostMedian);
  RecordProperty("texts_that_part", parted);
  RecordProperty("steps_compared", static_cast<int>(differences.size()));
  RecordProperty("median_difference", std::to_string(*middle));
}

}  // namespace
}  // namespace snapmla
