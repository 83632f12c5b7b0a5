// Sampling: greedy and its ties, the cuts, the distribution by chi-square, the log-probability, and bad
// logits.
#include "reference/sample.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "core/plain_ops.h"
#include "core/sample_rule.h"
#include "reference/ops.h"
#include "support/random_tensors.h"

namespace snapmla {
namespace {

using testing::random_floats;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Sampled {
  std::vector<std::int32_t> token;
  std::vector<float> logprob;
};

Sampled sample(const std::vector<float>& logits, const std::vector<SampleRow>& rows) {
  const auto n = static_cast<std::int64_t>(rows.size());
  Sampled result{std::vector<std::int32_t>(rows.size(), -1), std::vector<float>(rows.size())};
  reference_ops::plain_ops().sample(
      ConstTensorView(logits.data(), DType::kF32, {n, static_cast<std::int64_t>(logits.size()) / n}),
      ConstTensorView(rows.data(), DType::kU8, {n, kSampleRowBytes}),
      TensorView(result.token.data(), DType::kI32, {n}), TensorView(result.logprob.data(), DType::kF32, {n}),
      {});
  return result;
}

// How often each token comes in `draws` positions of one row.
std::map<std::int32_t, int> counts(const std::vector<float>& logits, SampleRow row, int draws) {
  std::map<std::int32_t, int> count;
  std::vector<float> repeated;
  std::vector<SampleRow> rows;
  for (int i = 0; i < draws; ++i) {
    row.position = static_cast<std::uint64_t>(i);
    rows.push_back(row);
    repeated.insert(repeated.end(), logits.begin(), logits.end());
  }
  for (const std::int32_t token : sample(repeated, rows).token) ++count[token];
  return count;
}

// With three degrees of freedom, 16.27 is passed by chance once in 1,000.
double chi_square(const std::map<std::int32_t, int>& count, const std::vector<double>& p, int draws) {
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const auto it = count.find(static_cast<std::int32_t>(i));
    const double expected = p[i] * draws;
    sum += std::pow((it == count.end() ? 0 : it->second) - expected, 2) / expected;
  }
  return sum;
}

TEST(Sample, GreedyTakesTheLowestIndexAmongEquals) {
  EXPECT_EQ(sample({1, 3, 2, 3}, {{}}).token[0], 1);
  EXPECT_EQ(sample({-0.0F, 0.0F}, {{}}).token[0], 0);
  EXPECT_EQ(sample({-kInfinity, -5, -kInfinity}, {{}}).token[0], 1);
}

TEST(Sample, LogprobIsOfTheUnscaledLogits) {
  const std::vector<float> logits = {0, std::log(2.0F), std::log(5.0F)};
  EXPECT_NEAR(sample(logits, {{}}).logprob[0], std::log(5.0 / 8), 1e-6);
  const Sampled hot = sample(logits, {{.temperature = 50, .top_k = 2, .seed = 4}});
  EXPECT_NEAR(hot.logprob[0], std::log((hot.token[0] == 2 ? 5.0 : 2.0) / 8), 1e-6);
  EXPECT_NEAR(sample({1000, -1000}, {{}}).logprob[0], 0, 1e-6);
}

TEST(Sample, FollowsTheDistribution) {
  constexpr int kDraws = 4000;
  const std::vector<float> logits = {std::log(0.1F), std::log(0.2F), std::log(0.3F), std::log(0.4F)};
  for (const std::uint64_t seed : {0U, 1U, 2U, 77U}) {
    EXPECT_LT(
        chi_square(counts(logits, {.temperature = 1, .seed = seed}, kDraws), {0.1, 0.2, 0.3, 0.4}, kDraws),
        16.27)
        << seed;
    // Temperature 0.5 squares the probabilities.
    EXPECT_LT(chi_square(counts(logits, {.temperature = 0.5F, .seed = seed}, kDraws),
                         {1.0 / 30, 4.0 / 30, 9.0 / 30, 16.0 / 30}, kDraws),
              16.27)
        << seed;
    // Over seeds at one position, too.
    std::map<std::int32_t, int> by_seed;
    for (std::uint64_t i = 0; i < kDraws; ++i) {
      ++by_seed[sample(logits, {{.temperature = 1, .seed = seed * kDraws + i, .position = 3}}).token[0]];
    }
    EXPECT_LT(chi_square(by_seed, {0.1, 0.2, 0.3, 0.4}, kDraws), 16.27) << seed;
  }
}

TEST(Sample, TopKKeepsTheMostLikely) {
  const std::vector<float> logits = {1, 2, 3, 2};
  const auto two = counts(logits, {.temperature = 1, .top_k = 2, .seed = 1}, 500);
  EXPECT_EQ(two.size(), 2U);  // of the equal tokens 1 and 3, the lower index
  EXPECT_TRUE(two.contains(1) && two.contains(2));
  const auto one = counts(logits, {.temperature = 9, .top_k = 1, .seed = 1}, 50);
  EXPECT_EQ(one.at(2), 50);
  EXPECT_EQ(counts(logits, {.temperature = 1, .top_k = 4, .seed = 1}, 500).size(), 4U);
  EXPECT_EQ(counts(logits, {.temperature = 1, .top_k = 400, .seed = 1}, 500),
            counts(logits, {.temperature = 1, .top_k = 0, .seed = 1}, 500));
}

TEST(Sample, TopPKeepsTheShortestSetThatReachesIt) {
  const std::vector<float> logits = {std::log(0.125F), std::log(0.5F), std::log(0.25F), std::log(0.125F)};
  const auto kept = [&](float top_p, int top_k = 0) {
    return counts(logits, {.temperature = 1, .top_k = top_k, .top_p = top_p, .seed = 3}, 500).size();
  };
  EXPECT_EQ(kept(1e-6F), 1U);
  EXPECT_EQ(kept(0.49F), 1U);
  EXPECT_EQ(kept(0.51F), 2U);
  EXPECT_EQ(kept(0.74F), 2U);
  EXPECT_EQ(kept(0.76F), 3U);
  EXPECT_EQ(kept(0.99F), 4U);
  EXPECT_EQ(kept(1), 4U);
  // After top_k = 2 the probabilities are 2/3 and 1/3: top-p counts within what top-k left.
  EXPECT_EQ(kept(0.6F, 2), 1U);
  EXPECT_EQ(kept(0.7F, 2), 2U);
}

TEST(Sample, ARowDoesNotDependOnItsBatch) {
  constexpr std::size_t kRows = 33, kVocab = 500;
  const std::vector<float> logits = random_floats(kRows * kVocab, 1, 3);
  std::vector<SampleRow> rows;
  for (std::size_t r = 0; r < kRows; ++r) {
    rows.push_back({.temperature = static_cast<float>(r % 3) * 0.7F,
                    .top_k = r % 2 == 0 ? 0 : 40,
                    .top_p = r % 5 == 0 ? 1.0F : 0.9F,
                    .seed = r,
                    .position = 10 * r});
  }
  const Sampled together = sample(logits, rows);
  for (std::size_t r = 0; r < kRows; ++r) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(r * kVocab);
    const Sampled alone = sample({begin, begin + kVocab}, {rows[r]});
    EXPECT_EQ(alone.token[0], together.token[r]);
    EXPECT_EQ(alone.logprob[0], together.logprob[r]);
  }
}

TEST(Sample, ExtremeTemperaturesStayDefined) {
  EXPECT_EQ(sample({1, 2, 1.5F}, {{.temperature = 1e-38F, .seed = 1}}).token[0], 1);
  const auto flat = counts({1, 2, 1.5F}, {.temperature = 1e30F, .seed = 1}, 300);
  EXPECT_EQ(flat.size(), 3U);
}

TEST(Sample, MaskedTokensNeverCome) {
  const auto count = counts({0, -kInfinity, 0, -kInfinity}, {.temperature = 2, .seed = 1}, 300);
  EXPECT_EQ(count.size(), 2U);
  EXPECT_FALSE(count.contains(1) || count.contains(3));
}

TEST(Sample, ForcedTokensAreTakenAsTheyAre) {
  const std::vector<float> logits = {0, std::log(2.0F), std::log(5.0F), -kInfinity};
  for (const float temperature : {0.0F, 1.0F}) {
    const Sampled forced = sample(logits, {{.temperature = temperature, .top_k = 1, .forced = 1}});
    EXPECT_EQ(forced.token[0], 1);
    EXPECT_NEAR(forced.logprob[0], std::log(2.0 / 8), 1e-6);
    EXPECT_EQ(sample(logits, {{.temperature = temperature, .forced = 3}}).logprob[0], -kInfinity);
  }
}

TEST(Sample, BadLogitsAreAnError) {
  for (const std::vector<float>& logits :
       {std::vector<float>{1, kNan, 2}, {kNan, 1, 2}, {1, kInfinity}, {-kInfinity, -kInfinity}}) {
    for (const SampleRow& row :
         {SampleRow{}, SampleRow{.temperature = 1}, SampleRow{.forced = 0}, SampleRow{.forced = 1}}) {
      testing::expect_code(ErrorCode::kInvalidArgument, [&] { sample(logits, {row}); });
    }
  }
}

TEST(Sample, BadRowsAreOurBug) {
  for (const SampleRow row : {SampleRow{.temperature = -1}, SampleRow{.temperature = kNan},
                              SampleRow{.top_k = -1}, SampleRow{.top_p = 0}, SampleRow{.top_p = 1.5F},
                              SampleRow{.top_p = kNan}, SampleRow{.forced = 2}, SampleRow{.forced = -2}}) {
    testing::expect_code(ErrorCode::kInternal, [&] { sample({1, 2}, {row}); });
  }
}

TEST(UniformAt, CoversTheUnitIntervalEvenly) {
  std::vector<int> tenth(10);
  for (std::uint64_t i = 0; i < 10000; ++i) {
    const double u = uniform_at(9, i);
    ASSERT_TRUE(u >= 0 && u < 1);
    ++tenth[static_cast<std::size_t>(u * 10)];
  }
  double chi = 0;
  for (const int n : tenth) chi += std::pow(n - 1000.0, 2) / 1000;
  EXPECT_LT(chi, 27.9);  // 9 degrees of freedom, once in 1,000
  EXPECT_NE(uniform_at(0, 1), uniform_at(1, 0));
}

}  // namespace
}  // namespace snapmla
