// The bundled model on CUDA beside the reference backend.
//
// Greedy text must be the same, or part at a near-tie: there the reference prefers its own token to the other by no more than twice
// the largest difference that the two backends' logits had up to then (each of the two logits may be off by that much). Logits
// themselves are held against transformers in tests/model/goldens_test.cc; here they must stay within half a unit, a twentieth of
// the spread of the bundled model's logits.
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
constexpr double kMostDifference = 0.5;

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
  double largest = 0;
  for (std::size_t r = 0; r < want.size(); ++r) {
    ASSERT_EQ(want[r].tokens.size(), static_cast<std::size_t>(kTokens));
    ASSERT_EQ(got[r].tokens.size(), static_cast<std::size_t>(kTokens));
    for (std::size_t i = 0; i < kTokens; ++i) {
      largest = std::max(largest, largest_difference(want[r].logits[i], got[r].logits[i]));
      if (want[r].tokens[i] == got[r].tokens[i]) continue;
      const std::vector<float>& logits = want[r].logits[i];
      const double lead = static_cast<double>(logits[static_cast<std::size_t>(want[r].tokens[i])]) -
                          logits[static_cast<std::size_t>(got[r].tokens[i])];
      EXPECT_LE(lead, 2 * largest) << "'" << prompts()[r] << "' parts at token " << i;
      ++parted;
      break;  // what follows answers another text
    }
  }
  EXPECT_LE(largest, kMostDifference);
  RecordProperty("texts_that_part", parted);
  RecordProperty("largest_logit_difference", std::to_string(largest));
}

}  // namespace
}  // namespace snapmla
