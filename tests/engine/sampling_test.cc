#include "engine/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/metered_backend.h"
#include "snapmla/error.h"
#include "support/log_probability.h"

namespace snapmla {
namespace {

using testing::log_probability;

constexpr int kVocab = 50;

std::vector<float> random_logits(int rows, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<std::size_t>(rows) * kVocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<float> row_of(const std::vector<float>& logits, int row) {
  return {logits.begin() + static_cast<std::ptrdiff_t>(row) * kVocab,
          logits.begin() + static_cast<std::ptrdiff_t>(row + 1) * kVocab};
}

std::vector<Chosen> choose(const std::vector<float>& logits, const std::vector<Choice>& choices,
                           Backend& backend = reference()) {
  const auto rows = static_cast<std::int64_t>(logits.size()) / kVocab;
  Sampler sampler(backend, static_cast<int>(rows));
  return sampler.choose(ConstTensorView(logits.data(), DType::kF32, {rows, kVocab}), choices, {});
}

std::string refusal(const SamplingParams& params) {
  try {
    check_sampling(params);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(Sampling, RefusesValuesOutOfRange) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(refusal({}), "accepted");
  EXPECT_EQ(refusal({.temperature = 100, .top_k = 1 << 30, .top_p = 1e-6F}), "accepted");
  EXPECT_EQ(refusal({.temperature = -1}), "[submit] temperature must be finite and at least 0; got -1");
  EXPECT_EQ(refusal({.temperature = kNan}), "[submit] temperature must be finite and at least 0; got nan");
  EXPECT_EQ(refusal({.temperature = kInf}), "[submit] temperature must be finite and at least 0; got inf");
  EXPECT_EQ(refusal({.top_k = -1}), "[submit] top_k must be at least 0; got -1");
  EXPECT_EQ(refusal({.top_p = 0}), "[submit] top_p must be above 0 and at most 1; got 0");
  EXPECT_EQ(refusal({.top_p = 1.5F}), "[submit] top_p must be above 0 and at most 1; got 1.5");
  EXPECT_EQ(refusal({.top_p = kNan}), "[submit] top_p must be above 0 and at most 1; got nan");
}

TEST(Sampling, GreedyTakesTheMostLikely) {
  const std::vector<float> logits = random_logits(3, 1);
  const std::vector<Chosen> chosen = choose(logits, std::vector<Choice>(3));
  for (int row = 0; row < 3; ++row) {
    const std::vector<float> values = row_of(logits, row);
    const auto best = std::max_element(values.begin(), values.end()) - values.begin();
    const Chosen& got = chosen[static_cast<std::size_t>(row)];
    EXPECT_EQ(got.token, best);
    EXPECT_NEAR(got.logprob, log_probability(values, got.token), 1e-5);
    EXPECT_TRUE(got.logits.empty());
  }
}

TEST(Sampling, ForcedTokensAreTakenAsTheyAre) {
  const std::vector<float> logits = random_logits(2, 2);
  const std::vector<Chosen> chosen =
      choose(logits, {{.sampling = {.temperature = 1}, .forced = 7, .return_logits = true}, {.forced = 0}});
  EXPECT_EQ(chosen[0].token, 7);
  EXPECT_EQ(chosen[0].logits, row_of(logits, 0));
  EXPECT_NEAR(chosen[0].logprob, log_probability(row_of(logits, 0), 7), 1e-5);
  EXPECT_EQ(chosen[1].token, 0);
  EXPECT_NEAR(chosen[1].logprob, log_probability(row_of(logits, 1), 0), 1e-5);
  EXPECT_TRUE(chosen[1].logits.empty());
}

/// Counts what comes back from the device; `refused`, if not negative, is a row that comes back as one that a
/// device refuses: token -1, and if its logits are asked for, `bad` among them.
class WatchedBackend final : public testing::MeteredBackend {
 public:
  explicit WatchedBackend(int refused = -1, float bad = 0)
      : MeteredBackend(1 << 20), refused_(refused), bad_(bad) {}
  void copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) override {
    MeteredBackend::copy(dst, src, bytes, kind, stream);
    if (kind != CopyKind::kDeviceToHost) return;
    const bool is_row = bytes == std::int64_t{kVocab} * size_of(DType::kF32);
    if (!is_row && refused_ >= 0 && num_copies_ == 0) static_cast<std::int32_t*>(dst)[refused_] = -1;
    if (is_row && refused_ >= 0) static_cast<float*>(dst)[3] = bad_;
    ++num_copies_;
    num_rows_ += is_row ? 1 : 0;
  }
  [[nodiscard]] int num_rows() const { return num_rows_; }

 private:
  int refused_;
  float bad_;
  int num_copies_ = 0;
  int num_rows_ = 0;
};

TEST(Sampling, LogitsComeToTheHostOnlyIfAskedFor) {
  WatchedBackend backend;
  std::vector<Choice> choices(6);
  choices[1].forced = 3;
  choices[2].return_logits = true;
  choices[3] = {.forced = 4, .return_logits = true};
  choices[4].sampling.temperature = 1;
  (void)choose(random_logits(6, 5), choices, backend);
  EXPECT_EQ(backend.num_rows(), 2);
}

TEST(Sampling, ARowWithoutSoftmaxIsTheSameErrorWhereverItIsFound) {
  const auto message_of = [](const std::vector<float>& logits, Backend& backend) {
    try {
      (void)choose(logits, std::vector<Choice>(4), backend);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  std::vector<float> logits = random_logits(4, 6);
  WatchedBackend backend(2, std::numeric_limits<float>::infinity());
  const std::string by_token = message_of(logits, backend);
  logits[2 * kVocab + 3] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(by_token, message_of(logits, reference()));
  EXPECT_EQ(by_token, "[sample] logits must be numbers below infinity; got inf for token 3 in row 2");
}

TEST(Sampling, ARowsTokenDoesNotDependOnTheOthers) {
  const std::vector<float> logits = random_logits(8, 3);
  std::vector<Choice> choices;
  for (int row = 0; row < 8; ++row) {
    choices.push_back({.sampling = {.temperature = 0.5F + 0.25F * static_cast<float>(row),
                                    .top_k = row % 3 == 0 ? 10 : 0,
                                    .top_p = row % 2 == 0 ? 0.9F : 1,
                                    .seed = 100U + static_cast<std::uint64_t>(row)},
                       .token_idx = row});
  }
  const std::vector<Chosen> together = choose(logits, choices);
  for (int row = 0; row < 8; ++row) {
    const auto i = static_cast<std::size_t>(row);
    const std::vector<Chosen> alone = choose(row_of(logits, row), {choices[i]});
    EXPECT_EQ(alone[0].token, together[i].token);
    EXPECT_EQ(alone[0].logprob, together[i].logprob);
  }
}

TEST(Sampling, SeedAndIndexDecide) {
  const std::vector<float> logits = random_logits(1, 4);
  const auto draw = [&](std::uint64_t seed) {
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < 30; ++i) {
      const Choice choice{.sampling = {.temperature = 2, .seed = seed}, .token_idx = i};
      tokens.push_back(choose(logits, {choice})[0].token);
    }
    return tokens;
  };
  const std::vector<std::int32_t> first = draw(1);
  EXPECT_EQ(first, draw(1));
  EXPECT_NE(first, draw(2));
  EXPECT_NE(*std::min_element(first.begin(), first.end()), *std::max_element(first.begin(), first.end()));
}

}  // namespace
}  // namespace snapmla
