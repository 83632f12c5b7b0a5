// route on the GPU against the reference: the same experts in the same order, the same weights to a few ulp. And the
// keys it orders by, which need no GPU.
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <vector>

#include "core/plain_ops.h"
#include "cuda/device/order.cuh"
#include "cuda/plain_ops.h"
#include "gpu_test.h"
#include "support/random_tensors.h"

namespace snapmla::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(OrderKey, IsOrderedAsTheNumbers) {
  const std::vector<float> rising = {-kInfinity, -3e38F, -2, -1, -1e-30F, -1e-44F,  0,
                                     1e-44F,     1e-30F, 1,  2,  3e38F,   kInfinity};
  for (std::size_t i = 0; i < rising.size(); ++i) {
    const std::uint32_t key = cuda_ops::order_key(rising[i]);
    EXPECT_EQ(cuda_ops::number_of(key), rising[i]);
    EXPECT_GT(key, i == 0 ? cuda_ops::kNanKey : cuda_ops::order_key(rising[i - 1]));
  }
  EXPECT_EQ(cuda_ops::order_key(-0.0F), cuda_ops::order_key(0.0F));
  EXPECT_EQ(cuda_ops::order_key(kNan), cuda_ops::kNanKey);
  EXPECT_EQ(cuda_ops::order_key(-kNan), cuda_ops::kNanKey);
}

struct RouteCase {
  std::int64_t tokens = 1;
  std::int64_t experts = 8;
  std::int64_t top_k = 2;
  Scoring scoring = Scoring::kSigmoid;
  GroupScore group_score = GroupScore::kTopTwoSum;
  int num_groups = 1;
  int top_groups = 1;
  bool bias = false;
  bool normalize = false;
  float scaling_factor = 1;
  std::int64_t gap = 0;  ///< elements behind each row, of all three tensors
};

std::ostream& operator<<(std::ostream& out, const RouteCase& c) {
  return out << c.tokens << " tokens, " << c.top_k << " of " << c.experts << " experts, "
             << (c.scoring == Scoring::kSigmoid ? "sigmoid" : "softmax") << ", " << c.top_groups << " of "
             << c.num_groups << " groups by " << (c.group_score == GroupScore::kMax ? "max" : "top two")
             << (c.bias ? ", bias" : "") << (c.normalize ? ", normalized" : "") << ", gap " << c.gap;
}

struct Routed {
  std::vector<std::int32_t> expert;
  std::vector<float> weight;
};

Routed run(Backend& backend, const RouteCase& c, const std::vector<float>& logits,
           const std::vector<float>& biases) {
  std::vector<float> spread = poison<float>(c.tokens * (c.experts + c.gap));
  for (std::int64_t t = 0; t < c.tokens; ++t)
    std::copy_n(logits.begin() + t * c.experts, c.experts, spread.begin() + t * (c.experts + c.gap));
  const OnDevice<float> logit(backend, spread);
  const OnDevice<float> bias(backend, biases);
  const OnDevice<std::int32_t> expert(backend, poison<std::int32_t>(c.tokens * (c.top_k + c.gap)));
  const OnDevice<float> weight(backend, poison<float>(c.tokens * (c.top_k + c.gap)));
  const RouteParams params{
      .logits = {logit.data(), DType::kF32, {c.tokens, c.experts}, {c.experts + c.gap, 1}},
      .bias = c.bias ? ConstTensorView(bias.data(), DType::kF32, {c.experts}) : ConstTensorView(),
      .scoring = c.scoring,
      .group_score = c.group_score,
      .num_groups = c.num_groups,
      .top_groups = c.top_groups,
      .normalize = c.normalize,
      .scaling_factor = c.scaling_factor,
      .expert = {expert.data(), DType::kI32, {c.tokens, c.top_k}, {c.top_k + c.gap, 1}},
      .weight = {weight.data(), DType::kF32, {c.tokens, c.top_k}, {c.top_k + c.gap, 1}}};
  if (&backend == &reference()) {
    reference().plain_ops().route(params, {});
  } else {
    cuda_ops::route(params, nullptr);
  }
  return {.expert = expert.host(), .weight = weight.host()};
}

// The exponentials are the correctly rounded ones, where the C library's may be off by one ulp in some hundred; a score
// takes two more roundings, of a softmax the sum of all is off by no more than its terms, and so on through the sum of
// the chosen and the quotient: 2^-21 relative covers eight of 2^-24.
void expect_same(const RouteCase& c, const std::vector<float>& logits, const std::vector<float>& biases) {
  SCOPED_TRACE(::testing::PrintToString(c));
  const Routed want = run(reference(), c, logits, biases);
  const Routed got = run(cuda(), c, logits, biases);
  ASSERT_EQ(first_difference(got.expert, want.expert), -1);
  for (std::size_t i = 0; i < want.weight.size(); ++i) {
    ASSERT_EQ(std::isnan(got.weight[i]), std::isnan(want.weight[i])) << "at " << i;
    if (std::isnan(want.weight[i]) || got.weight[i] == want.weight[i]) continue;
    ASSERT_LE(std::abs(got.weight[i] - want.weight[i]), std::abs(want.weight[i]) * 0x1p-21F)
        << "at " << i << ": " << got.weight[i] << ", " << want.weight[i];
  }
}

void expect_same(const RouteCase& c) {
  expect_same(c, testing::random_floats(static_cast<std::size_t>(c.tokens * c.experts), 1, 2, -0.5F),
              testing::random_floats(static_cast<std::size_t>(c.experts), 2, 0.1F, 0.3F));
}

const std::vector<RouteCase>& model_cases() {
  static const std::vector<RouteCase> all = {
      // DeepSeek-V2-Lite, V2, V3, Kimi-K2, LongCat-Flash with its 256 zero experts
      {.experts = 64, .top_k = 6, .scoring = Scoring::kSoftmax},
      {.experts = 160,
       .top_k = 6,
       .scoring = Scoring::kSoftmax,
       .group_score = GroupScore::kMax,
       .num_groups = 8,
       .top_groups = 3,
       .scaling_factor = 16},
      {.experts = 256,
       .top_k = 8,
       .num_groups = 8,
       .top_groups = 4,
       .bias = true,
       .normalize = true,
       .scaling_factor = 2.5F},
      {.experts = 384, .top_k = 8, .bias = true, .normalize = true, .scaling_factor = 2.827F},
      {.experts = 768, .top_k = 12, .scoring = Scoring::kSoftmax, .bias = true, .scaling_factor = 6},
      // Odd ones
      {.experts = 24, .top_k = 3, .num_groups = 3, .top_groups = 2, .normalize = true},
      {.experts = 8, .top_k = 4, .num_groups = 8, .top_groups = 5},
      {.experts = 80,
       .top_k = 5,
       .group_score = GroupScore::kMax,
       .num_groups = 40,
       .top_groups = 35,
       .bias = true},
      {.experts = 33, .top_k = 32, .scoring = Scoring::kSoftmax, .normalize = true},
      {.experts = 1, .top_k = 1}};
  return all;
}

class CudaRoute : public GpuTest {};

TEST_F(CudaRoute, EqualsTheReference) {
  for (RouteCase c : model_cases()) {
    for (const std::int64_t tokens : {1, 3, 64, 1001}) {
      c.tokens = tokens;
      c.gap = tokens == 3 ? 5 : 0;
      expect_same(c);
    }
  }
}

TEST_F(CudaRoute, TakesManyTokensAndNone) {
  RouteCase c = model_cases()[2];
  c.tokens = 5000;
  expect_same(c);
  c.tokens = 0;
  expect_same(c);
}

// Few different logits, so that most choices and many groups tie.
TEST_F(CudaRoute, TiesGoToTheLowerIndex) {
  for (RouteCase c : model_cases()) {
    c.tokens = 200;
    std::vector<float> logits =
        testing::random_floats(static_cast<std::size_t>(c.tokens * c.experts), 3, 1.2F);
    for (float& logit : logits) logit = std::round(logit) + 0.0F;
    for (std::size_t i = 0; i < logits.size(); i += 3) logits[i] = -logits[i];  // -0 among the 0
    std::fill_n(logits.begin(), c.experts, 1.0F);                               // a token of equals
    expect_same(c, logits, std::vector<float>(static_cast<std::size_t>(c.experts), 0.0F));
  }
}

// Saturated scores tie, too.
TEST_F(CudaRoute, TakesLogitsOfAnySize) {
  for (RouteCase c : model_cases()) {
    c.tokens = 60;
    expect_same(c, testing::random_floats(static_cast<std::size_t>(c.tokens * c.experts), 4, 60),
                testing::random_floats(static_cast<std::size_t>(c.experts), 5, 0.1F));
  }
}

TEST_F(CudaRoute, NanIsLowerThanEveryNumber) {
  for (RouteCase c : model_cases()) {
    c.tokens = 5 * 40;
    std::vector<float> logits = testing::random_floats(static_cast<std::size_t>(c.tokens * c.experts), 6);
    std::vector<float> biases = testing::random_floats(static_cast<std::size_t>(c.experts), 7, 0.1F);
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      for (std::int64_t e = 0; e < c.experts; ++e) {
        float& logit = logits[t * c.experts + e];
        if (t % 5 == 0 && (e + t) % 7 == 3) logit = kNan;
        if (t % 5 == 1 && (e * 5 + t) % 4 != 0) logit = kNan;
        if (t % 5 == 2) logit = kNan;
        if (t % 5 == 3 && (e + t) % 3 != 0) logit = -kInfinity;
        if (t % 5 == 4 && (e + t) % 11 == 0) logit = kInfinity;
      }
    }
    expect_same(c, logits, biases);
    if (!c.bias) continue;
    for (std::size_t e = 0; e < biases.size(); e += 5) biases[e] = kNan;
    for (std::size_t e = 1; e < biases.size(); e += 5) biases[e] = -kInfinity;
    expect_same(c, logits, biases);
  }
}

}  // namespace
}  // namespace snapmla::test
