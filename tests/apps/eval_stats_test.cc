#include "eval_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

namespace snapmla::apps {
namespace {

TEST(ClusteredMean, AveragesOverAllValues) {
  ClusteredMean mean;
  for (const double x : {1.0, 2.0, 6.0}) mean.add(0, x);
  mean.add(1, 7.0);
  const Mean result = mean.result();
  EXPECT_EQ(result.count, 4);
  EXPECT_DOUBLE_EQ(result.value, 4.0);
  // Residuals of the clusters: 9 - 3 * 4 = -3 and 7 - 4 = 3; sqrt(2 / 1 * (9 + 9)) / 4.
  EXPECT_DOUBLE_EQ(result.standard_error, 1.5);
}

TEST(ClusteredMean, CopiesWithinAClusterAddNoCertainty) {
  ClusteredMean once;
  ClusteredMean ten_times;
  for (int cluster = 0; cluster < 5; ++cluster) {
    const double x = cluster * cluster;
    once.add(cluster, x);
    for (int i = 0; i < 10; ++i) ten_times.add(cluster, x);
  }
  EXPECT_NEAR(once.result().standard_error, ten_times.result().standard_error, 1e-12);
  // Single values a cluster give the plain standard error: sample deviation over the root of the count.
  EXPECT_NEAR(once.result().standard_error, std::sqrt(174.0 / 4 / 5), 1e-12);
}

TEST(ClusteredMean, HasNoErrorFromOneClusterAndNoValueFromNone) {
  ClusteredMean mean;
  EXPECT_TRUE(std::isnan(mean.result().value));
  mean.add(3, 1.0);
  EXPECT_DOUBLE_EQ(mean.result().value, 1.0);
  EXPECT_TRUE(std::isnan(mean.result().standard_error));
}

TEST(ScoreBoth, ComparesTwoDistributions) {
  // p = (1/2, 1/4, 1/4), q = (1/8, 3/4, 1/8), with different offsets of the logits.
  const double ln2 = std::log(2.0);
  const double ln3 = std::log(3.0);
  const std::vector<float> p{std::log(2.0F) + 5, 5, 5};
  const std::vector<float> q{-3, std::log(6.0F) - 3, -3};
  const TokenScore score = score_both(p, q, 0);
  EXPECT_NEAR(*score.nll_bf16, ln2, 1e-6);
  EXPECT_NEAR(*score.nll_fp8, 3 * ln2, 1e-6);
  EXPECT_NEAR(score.kl, 1.25 * ln2 - 0.25 * ln3, 1e-6);
  EXPECT_FALSE(score.same_top1);
  EXPECT_NEAR(score_both(q, p, 0).kl, 0.75 * ln3 - 0.375 * ln2, 1e-6);
}

TEST(ScoreBoth, FindsNoDifferenceBetweenEqualRows) {
  const std::vector<float> row{1000.0F, -1000.0F, 3.5F, 999.0F};
  const TokenScore score = score_both(row, row, 3);
  EXPECT_EQ(score.kl, 0);
  EXPECT_TRUE(score.same_top1);
  EXPECT_EQ(score.nll_bf16, score.nll_fp8);
  EXPECT_NEAR(*score.nll_bf16, std::log(1 + std::exp(1.0)), 1e-6);
  EXPECT_DOUBLE_EQ(negative_log_likelihood(row, 3), *score.nll_bf16);
}

TEST(Figures, SumUpTokens) {
  Figures figures;
  figures.add({.sequence = 0, .nll_bf16 = 1.0, .nll_fp8 = 1.5, .kl = 0.2, .same_top1 = true});
  figures.add({.sequence = 1, .nll_bf16 = 3.0, .nll_fp8 = 2.75, .kl = 0.4, .same_top1 = false});
  EXPECT_EQ(figures.tokens(), 2);
  EXPECT_DOUBLE_EQ(figures.perplexity_bf16().value, std::exp(2.0));
  EXPECT_DOUBLE_EQ(figures.perplexity_fp8().value, std::exp(2.125));
  EXPECT_DOUBLE_EQ(figures.perplexity_ratio().value, std::exp(0.125));
  // The two differences, 0.5 and -0.25, have a standard error of 0.375.
  EXPECT_DOUBLE_EQ(figures.perplexity_ratio().standard_error, 0.375 * std::exp(0.125));
  EXPECT_NEAR(figures.kl().value, 0.3, 1e-12);
  EXPECT_DOUBLE_EQ(figures.top1_agreement().value, 0.5);
  EXPECT_DOUBLE_EQ(figures.max_logprob_difference(), 0.5);
}

TEST(Figures, KeepANaN) {
  Figures figures;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  figures.add({.sequence = 0, .nll_bf16 = 1.0, .nll_fp8 = nan, .kl = nan});
  EXPECT_TRUE(std::isnan(figures.max_logprob_difference()));
  EXPECT_TRUE(std::isnan(figures.perplexity_ratio().value));
}

TEST(ContextBuckets, CoverEveryLengthOnce) {
  for (const int most : {1, 127, 128, 129, 700, 4096, 5000, 65536}) {
    const std::vector<Bucket> buckets = context_buckets(most);
    int next = 0;
    for (const Bucket& bucket : buckets) {
      EXPECT_EQ(bucket.low, next);
      EXPECT_LT(bucket.low, bucket.high);
      next = bucket.high;
    }
    EXPECT_EQ(next, most);
  }
  std::vector<std::string> names;
  for (const Bucket& bucket : context_buckets(4096)) names.push_back(to_string(bucket));
  EXPECT_THAT(names, ::testing::ElementsAre("[0, 128)", "[128, 512)", "[512, 1K)", "[1K, 2K)", "[2K, 4K)"));
}

TEST(Random, IsSplitmix64) {
  Random random(1234567);  // the first outputs of the published generator
  EXPECT_EQ(random.next(), 6457827717110365317U);
  EXPECT_EQ(random.next(), 3203168211198807973U);
}

TEST(Random, StaysInRangeAndShufflesEverything) {
  Random random(0);
  std::set<int> seen;
  for (int i = 0; i < 200; ++i) seen.insert(random.below(7));
  EXPECT_THAT(seen, ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6));
  std::vector<int> items{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const std::vector<int> sorted = items;
  random.shuffle(items);
  EXPECT_NE(items, sorted);
  EXPECT_THAT(items, ::testing::UnorderedElementsAreArray(sorted));
}

}  // namespace
}  // namespace snapmla::apps
