// The router on cases worked by hand and against a sort of all experts; the experts against fp64; both in
// batches and alone.
#include "reference/moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/plain_ops.h"
#include "reference/ops.h"
#include "support/random_tensors.h"

namespace snapmla {
namespace {

using ::testing::ElementsAre;
using testing::expect_code;
using testing::fp32_sum_error;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::random_floats;
using testing::real;
using testing::same_bits;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const PlainOps& ops() {
  return reference_ops::plain_ops();
}

struct Routing {
  std::vector<std::int32_t> expert;
  std::vector<float> weight;
};

// `params` gives the rule; the tensors are filled in here.
Routing route(RouteParams params, const std::vector<float>& logits, std::int64_t tokens, std::int64_t top_k,
              const std::vector<float>& bias = {}) {
  const std::int64_t experts = static_cast<std::int64_t>(logits.size()) / tokens;
  Routing result{std::vector<std::int32_t>(static_cast<std::size_t>(tokens * top_k), -1),
                 std::vector<float>(static_cast<std::size_t>(tokens * top_k))};
  params.logits = ConstTensorView(logits.data(), DType::kF32, {tokens, experts});
  if (!bias.empty()) params.bias = ConstTensorView(bias.data(), DType::kF32, {experts});
  params.expert = TensorView(result.expert.data(), DType::kI32, {tokens, top_k});
  params.weight = TensorView(result.weight.data(), DType::kF32, {tokens, top_k});
  ops().route(params, {});
  return result;
}

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

TEST(Route, SoftmaxGreedyScalesWithoutNormalizing) {
  // softmax(ln 1, ln 2, ln 4, ln 1) = 1/8, 2/8, 4/8, 1/8
  const Routing r = route({.scoring = Scoring::kSoftmax, .scaling_factor = 16},
                          {0, std::log(2.0F), std::log(4.0F), 0}, 1, 3);
  EXPECT_THAT(r.expert, ElementsAre(2, 1, 0));
  EXPECT_NEAR(r.weight[0], 8, 1e-5);
  EXPECT_NEAR(r.weight[1], 4, 1e-5);
  EXPECT_NEAR(r.weight[2], 2, 1e-5);
}

TEST(Route, GroupLimitedGreedyTakesGroupsByTheirBest) {
  // Groups {0, 1}, {2, 3}, {4, 5}: bests 5, 3, 4. Two groups stay: experts 2 and 3 are out though 3 > 1.
  const std::vector<float> logits = {5, 1, 3, 2.5F, 4, 0};
  const Routing r =
      route({.scoring = Scoring::kSoftmax, .group_score = GroupScore::kMax, .num_groups = 3, .top_groups = 2},
            logits, 1, 3);
  EXPECT_THAT(r.expert, ElementsAre(0, 4, 1));
}

TEST(Route, NoauxTcTakesGroupsByTheirBestTwo) {
  // Sums of the best two sigmoids: group 0 has the best expert, group 1 the best pair.
  const std::vector<float> logits = {3, -5, -6, 1, 0.9F, -9};
  RouteParams rule{.num_groups = 2, .top_groups = 1, .normalize = true, .scaling_factor = 2.5F};
  Routing r = route(rule, logits, 1, 2);
  EXPECT_THAT(r.expert, ElementsAre(3, 4));
  const double sum = sigmoid(1) + sigmoid(real(0.9F));
  EXPECT_NEAR(r.weight[0], 2.5 * sigmoid(1) / sum, 1e-6);
  EXPECT_NEAR(r.weight[1], 2.5 * sigmoid(real(0.9F)) / sum, 1e-6);
  rule.group_score = GroupScore::kMax;
  r = route(rule, logits, 1, 2);
  EXPECT_THAT(r.expert, ElementsAre(0, 1));
}

TEST(Route, BiasMovesTheChoiceNotTheWeights) {
  const std::vector<float> logits = {0, 1, 2, 3};
  const std::vector<float> bias = {0.9F, -0.5F, 0, -0.9F};  // choice values: 1.4, 0.23, 0.88, 0.05
  const Routing r = route({}, logits, 1, 3, bias);
  EXPECT_THAT(r.expert, ElementsAre(0, 2, 1));
  EXPECT_NEAR(r.weight[0], 0.5, 1e-6);
  EXPECT_NEAR(r.weight[1], sigmoid(2), 1e-6);
  EXPECT_NEAR(r.weight[2], sigmoid(1), 1e-6);
}

TEST(Route, ExpertsOfOtherGroupsAreOutEvenWhereAllChoiceValuesAreNegative) {
  // With a bias of -2, group 0's values are negative; an excluded expert counted as 0 would win.
  const std::vector<float> logits = {2, 1, 0, -1};
  const std::vector<float> bias = {-2, -2, -2, -2};
  const Routing r = route({.num_groups = 2, .top_groups = 1}, logits, 1, 2, bias);
  EXPECT_THAT(r.expert, ElementsAre(0, 1));
}

TEST(Route, TiesGoToTheLowerIndex) {
  EXPECT_THAT(route({}, {1, 2, 2, 1, 2}, 1, 4).expert, ElementsAre(1, 2, 4, 0));
  EXPECT_THAT(route({.num_groups = 3, .top_groups = 2}, {1, 2, 2, 1, 1, 2}, 1, 4).expert,
              ElementsAre(1, 2, 0, 3));
}

TEST(Route, ChoosesDistinctExpertsWhateverTheLogits) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(route({}, {nan, nan, nan, nan}, 1, 2).expert, ElementsAre(0, 1));
  EXPECT_THAT(route({}, {nan, 1, nan, 2}, 1, 3).expert, ElementsAre(3, 1, 0));
  EXPECT_THAT(route({.scoring = Scoring::kSoftmax}, {-kInfinity, 1, 2, -kInfinity}, 1, 3).expert,
              ElementsAre(2, 1, 0));
  EXPECT_THAT(route({.num_groups = 2, .top_groups = 1}, {nan, nan, nan, nan}, 1, 2).expert,
              ElementsAre(0, 1));
  EXPECT_THAT(route({.normalize = true}, {-kInfinity, -kInfinity}, 1, 2).weight, ElementsAre(0, 0));
}

// All experts of the best groups by falling choice value, in fp64.
std::vector<std::int32_t> brute_force(const RouteParams& rule, const std::vector<double>& choice,
                                      std::size_t top_k) {
  const std::size_t size = choice.size() / static_cast<std::size_t>(rule.num_groups);
  std::vector<std::pair<double, std::size_t>> groups;
  for (std::size_t g = 0; g < static_cast<std::size_t>(rule.num_groups); ++g) {
    std::vector<double> members(choice.begin() + static_cast<std::ptrdiff_t>(g * size),
                                choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(members.begin(), members.end(), std::greater<>());
    groups.emplace_back(
        rule.group_score == GroupScore::kMax || size == 1 ? -members[0] : -members[0] - members[1], g);
  }
  std::sort(groups.begin(), groups.end());
  std::vector<std::int32_t> order;
  for (std::size_t i = 0; i < static_cast<std::size_t>(rule.top_groups); ++i) {
    for (std::size_t e = 0; e < size; ++e)
      order.push_back(static_cast<std::int32_t>(groups[i].second * size + e));
  }
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return choice[static_cast<std::size_t>(a)] > choice[static_cast<std::size_t>(b)];
  });
  order.resize(top_k);
  return order;
}

TEST(Route, MatchesASortOfAllExperts) {
  constexpr std::size_t kTokens = 200, kTopK = 4;
  for (const std::size_t experts : {16U, 48U}) {
    for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid}) {
      for (const GroupScore group_score : {GroupScore::kMax, GroupScore::kTopTwoSum}) {
        for (const int groups : {1, 4, 8}) {
          const RouteParams rule{.scoring = scoring,
                                 .group_score = group_score,
                                 .num_groups = groups,
                                 .top_groups = std::min(groups, 3),
                                 .normalize = true,
                                 .scaling_factor = 2};
          const std::vector<float> logits = random_floats(kTokens * experts, 7, 2);
          const std::vector<float> bias = random_floats(experts, 8, 0.1F);
          const Routing r = route(rule, logits, kTokens, kTopK, bias);
          for (std::size_t t = 0; t < kTokens; ++t) {
            std::vector<double> score(experts);
            double sum = 0;
            for (std::size_t e = 0; e < experts; ++e) sum += std::exp(real(logits[t * experts + e]));
            for (std::size_t e = 0; e < experts; ++e) {
              const double logit = logits[t * experts + e];
              score[e] = scoring == Scoring::kSigmoid ? sigmoid(logit) : std::exp(logit) / sum;
            }
            std::vector<double> choice = score;
            for (std::size_t e = 0; e < experts; ++e) choice[e] += bias[e];
            const std::vector<std::int32_t> expected = brute_force(rule, choice, kTopK);
            double chosen = 0;
            for (const std::int32_t e : expected) chosen += score[static_cast<std::size_t>(e)];
            for (std::size_t k = 0; k < kTopK; ++k) {
              ASSERT_EQ(r.expert[t * kTopK + k], expected[k]) << "token " << t;
              ASSERT_NEAR(r.weight[t * kTopK + k], 2 * score[static_cast<std::size_t>(expected[k])] / chosen,
                          1e-5);
            }
          }
        }
      }
    }
  }
}

// A small mixture with random routing. Expert kEmpty gets no token.
class ExpertsTest : public ::testing::Test {
 protected:
  static constexpr int kTokens = 70, kTopK = 3, kHidden = 80, kInter = 72, kExperts = 5, kEmpty = 2;

  ExpertsTest() {
    std::mt19937 random(5);
    for (int t = 0; t < kTokens; ++t) {
      std::vector<std::int32_t> order = {0, 1, 3, 4};
      std::shuffle(order.begin(), order.end(), random);
      expert_.insert(expert_.end(), order.begin(), order.begin() + kTopK);
    }
  }

  std::vector<Bf16> run(int first, int tokens) {
    std::vector<Bf16> out(static_cast<std::size_t>(tokens * kHidden));
    const std::int64_t bytes = ops().experts_workspace_bytes(tokens, kTopK, kHidden, kInter, kExperts);
    std::vector<std::byte> workspace(static_cast<std::size_t>(bytes), std::byte{0xff});
    const auto at = static_cast<std::ptrdiff_t>(first) * kTopK;
    ops().experts(
        {.x = ConstTensorView(x_.data() + first * kStride, DType::kBF16, {tokens, kHidden}, {kStride, 1}),
         .expert = ConstTensorView(expert_.data() + at, DType::kI32, {tokens, kTopK}),
         .weight = ConstTensorView(weight_.data() + at, DType::kF32, {tokens, kTopK}),
         .identities = identities_,
         .gate = ConstTensorView(gate_.data(), DType::kBF16, {kExperts, kInter, kHidden}),
         .up = ConstTensorView(up_.data(), DType::kBF16, {kExperts, kInter, kHidden}),
         .down = ConstTensorView(down_.data(), DType::kBF16, {kExperts, kHidden, kInter}),
         .out = TensorView(out.data(), DType::kBF16, {tokens, kHidden}),
         .workspace = TensorView(workspace.data(), DType::kU8, {bytes})},
        {});
    return out;
  }

  static constexpr int kStride = kHidden + 7;
  std::vector<Bf16> x_ = random_bf16(kTokens * kStride, 1);
  std::vector<Bf16> gate_ = random_bf16(kExperts * kInter * kHidden, 2, 0.2F);
  std::vector<Bf16> up_ = random_bf16(kExperts * kInter * kHidden, 3, 0.2F);
  std::vector<Bf16> down_ = random_bf16(kExperts * kHidden * kInter, 4, 0.2F);
  std::vector<float> weight_ = random_floats(kTokens * kTopK, 6, 0.3F, 1);
  std::vector<std::int32_t> expert_;
  int identities_ = 0;
};

TEST_F(ExpertsTest, MatchesFp64) {
  const std::vector<Bf16> out = run(0, kTokens);
  int rounded_once = 0;
  for (int t = 0; t < kTokens; ++t) {
    std::vector<double> sum(kHidden), slack(kHidden), sum_of_rounded(kHidden), fp32_slack(kHidden);
    for (int k = 0; k < kTopK; ++k) {
      const int e = expert_[static_cast<std::size_t>(t * kTopK + k)];
      const double weight = weight_[static_cast<std::size_t>(t * kTopK + k)];
      std::vector<double> h(kInter), h_error(kInter);
      for (int i = 0; i < kInter; ++i) {
        double gate = 0, up = 0, gate_size = 0, up_size = 0;
        for (int d = 0; d < kHidden; ++d) {
          const double x = real(x_[static_cast<std::size_t>(t * kStride + d)]);
          const auto at = static_cast<std::size_t>((e * kInter + i) * kHidden + d);
          gate += x * real(gate_[at]);
          up += x * real(up_[at]);
          gate_size += std::fabs(x * real(gate_[at]));
          up_size += std::fabs(x * real(up_[at]));
        }
        const auto at = static_cast<std::size_t>(i);
        h[at] = gate * sigmoid(gate) * up;
        // bf16 rounding of h, and fp32 errors of gate and up: silu's slope is at most 1.1.
        h_error[at] = std::fabs(h[at]) * kBf16Rounding +
                      1.1 * fp32_sum_error(kHidden, gate_size) * std::fabs(up) +
                      fp32_sum_error(kHidden, up_size) * std::fabs(gate);
      }
      for (int d = 0; d < kHidden; ++d) {
        double y = 0, y_of_rounded = 0, error = 0, size = 0;
        for (int i = 0; i < kInter; ++i) {
          const double w = real(down_[static_cast<std::size_t>((e * kHidden + d) * kInter + i)]);
          y += w * h[static_cast<std::size_t>(i)];
          y_of_rounded += w * real(to_bf16(static_cast<float>(h[static_cast<std::size_t>(i)])));
          size += std::fabs(w * h[static_cast<std::size_t>(i)]);
          // The roundings of h are independent: their errors add like a random walk; 4 standard deviations.
          error += std::pow(w * h_error[static_cast<std::size_t>(i)], 2);
        }
        sum[static_cast<std::size_t>(d)] += weight * y;
        sum_of_rounded[static_cast<std::size_t>(d)] += weight * y_of_rounded;
        fp32_slack[static_cast<std::size_t>(d)] += fp32_sum_error(kInter, std::fabs(weight) * size);
        slack[static_cast<std::size_t>(d)] +=
            std::fabs(weight) * (4 * std::sqrt(error) + fp32_sum_error(kInter, size));
      }
    }
    for (std::size_t d = 0; d < kHidden; ++d) {
      const double got = real(out[static_cast<std::size_t>(t) * kHidden + d]);
      ASSERT_NEAR(got, sum[d], std::fabs(sum[d]) * kBf16Rounding + slack[d]) << t << ' ' << d;
      const double once = std::fabs(sum_of_rounded[d]) * kBf16Rounding + fp32_slack[d];
      if (std::fabs(got - sum_of_rounded[d]) <= once) ++rounded_once;
    }
  }
  // h and the output are each rounded once, and nothing else is: all but the few tokens with an h so near a
  // tie that fp32 and fp64 part there.
  EXPECT_GT(rounded_once, kTokens * kHidden * 9 / 10);
}

TEST_F(ExpertsTest, ATokenDoesNotDependOnItsBatch) {
  const std::vector<Bf16> together = run(0, kTokens);
  for (int t = 0; t < kTokens; ++t) {
    const std::vector<Bf16> alone = run(t, 1);
    ASSERT_TRUE(same_bits(alone.data(), together.data() + t * kHidden, kHidden)) << t;
  }
}

TEST_F(ExpertsTest, NeverReadsExpertsWithoutTokens) {
  const std::vector<Bf16> before = run(0, kTokens);
  for (std::vector<Bf16>* w : {&gate_, &up_, &down_}) {
    std::fill_n(w->begin() + kEmpty * kInter * kHidden, kInter * kHidden, Bf16{0x7fff});
  }
  EXPECT_TRUE(same_bits(run(0, kTokens).data(), before.data(), before.size()));
}

TEST_F(ExpertsTest, IdentityExpertsGiveTheirInput) {
  identities_ = 2;
  std::vector<float> identity_weight(kTokens);
  for (int t = 0; t < kTokens; ++t) {
    const auto pair = static_cast<std::size_t>(t * kTopK + t % kTopK);
    expert_[pair] = kExperts + t % 2;
    identity_weight[static_cast<std::size_t>(t)] = weight_[pair];
  }
  const std::vector<Bf16> out = run(0, kTokens);
  for (int t = 0; t < kTokens; ++t) weight_[static_cast<std::size_t>(t * kTopK + t % kTopK)] = 0;
  const std::vector<Bf16> others = run(0, kTokens);
  for (int t = 0; t < kTokens; ++t) {
    for (int d = 0; d < kHidden; ++d) {
      const auto at = static_cast<std::size_t>(t * kHidden + d);
      const double x =
          identity_weight[static_cast<std::size_t>(t)] * real(x_[static_cast<std::size_t>(t * kStride + d)]);
      const double slack = (std::fabs(real(others[at])) + std::fabs(real(out[at]))) * kBf16Rounding;
      ASSERT_NEAR(real(out[at]), real(others[at]) + x, slack + 1e-6) << t << ' ' << d;
    }
  }
}

TEST_F(ExpertsTest, ExpertsOutsideTheRangeAreOurBug) {
  for (const int identities : {0, 2}) {
    identities_ = identities;
    for (const std::int32_t bad : {-1, kExperts + identities}) {
      expert_[4] = bad;
      expect_code(ErrorCode::kInternal, [&] { run(0, kTokens); });
    }
  }
}

}  // namespace
}  // namespace snapmla
