// linear_f32 on the GPU: sums as near to the exact ones as their order allows, the same bits for a row whatever else is
// in the call.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <vector>

#include "bf16_rows.h"
#include "core/plain_ops.h"
#include "cuda/plain_ops.h"
#include "support/random_tensors.h"

namespace snapmla::test {
namespace {

using testing::random_bf16;
using testing::random_floats;

struct LinearCase {
  std::int64_t rows;
  std::int64_t inner;
  std::int64_t experts;
  Spacing spacing{};            ///< of x
  std::int64_t weight_gap = 0;  ///< elements behind each row of the weight
  std::int64_t out_gap = 0;
};

std::ostream& operator<<(std::ostream& out, const LinearCase& c) {
  return out << c.rows << " x " << c.inner << " x " << c.experts << ' ' << c.spacing << " weight gap "
             << c.weight_gap << " out gap " << c.out_gap;
}

/// With a mean each, so that sums grow.
std::vector<Bf16> make_x(const LinearCase& c) {
  return random_bf16(static_cast<std::size_t>(c.rows * c.inner), 1, 1, 0.25F);
}
std::vector<float> make_weight(const LinearCase& c) {
  return random_floats(static_cast<std::size_t>(c.experts * c.inner), 2, 0.05F, 0.01F);
}

/// [rows, experts + out_gap], what lies between rows poisoned.
std::vector<float> run(const LinearCase& c, const std::vector<Bf16>& values,
                       const std::vector<float>& weights) {
  const Bf16Rows x(cuda(), c.rows, c.inner, c.spacing, values);
  const std::int64_t weight_stride = c.inner + c.weight_gap;
  std::vector<float> spread = poison<float>(c.experts * weight_stride);
  for (std::int64_t e = 0; e < c.experts; ++e)
    std::copy_n(weights.begin() + e * c.inner, c.inner, spread.begin() + e * weight_stride);
  const OnDevice<float> weight(cuda(), spread);
  const OnDevice<float> out(cuda(), poison<float>(c.rows * (c.experts + c.out_gap)));
  cuda_ops::linear_f32(
      x.view(), ConstTensorView(weight.data(), DType::kF32, {c.experts, c.inner}, {weight_stride, 1}),
      TensorView(out.data(), DType::kF32, {c.rows, c.experts}, {c.experts + c.out_gap, 1}), nullptr);
  return out.host();
}

// Each of 64 partial sums takes at most inner / 64 + 16 terms, by fused multiply-adds, and 8 + 8 additions bring them
// together: so many roundings of 2^-24 of at most the sum of magnitudes.
void expect_close(const LinearCase& c) {
  SCOPED_TRACE(::testing::PrintToString(c));
  const std::vector<Bf16> x = make_x(c);
  const std::vector<float> weight = make_weight(c);
  const std::vector<float> got = run(c, x, weight);
  const std::int64_t out_stride = c.experts + c.out_gap;
  ASSERT_EQ(got.size(), static_cast<std::size_t>(c.rows * out_stride));
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t e = 0; e < out_stride; ++e) {
      const float found = got[i * out_stride + e];
      if (e >= c.experts) {
        ASSERT_TRUE(std::isnan(found)) << "between rows";
        continue;
      }
      double sum = 0;
      double magnitude = 0;
      for (std::int64_t k = 0; k < c.inner; ++k) {
        const double product = static_cast<double>(to_float(x[i * c.inner + k])) * weight[e * c.inner + k];
        sum += product;
        magnitude += std::abs(product);
      }
      ASSERT_LE(std::abs(found - sum), testing::fp32_sum_error(c.inner / 64 + 16 + 16, magnitude))
          << "row " << i << " expert " << e << ": " << found << ", " << sum;
    }
  }
}

class CudaLinearF32 : public GpuTest {};

TEST_F(CudaLinearF32, IsNearTheExactSum) {
  for (const LinearCase& c : {LinearCase{.rows = 1, .inner = 7168, .experts = 256},
                              LinearCase{.rows = 64, .inner = 2048, .experts = 64},
                              LinearCase{.rows = 8, .inner = 1024, .experts = 160},
                              LinearCase{.rows = 33, .inner = 512, .experts = 512},
                              LinearCase{.rows = 65, .inner = 1000, .experts = 17},
                              LinearCase{.rows = 16, .inner = 8192, .experts = 8},
                              LinearCase{.rows = 5, .inner = 16384, .experts = 40}}) {
    expect_close(c);
  }
}

TEST_F(CudaLinearF32, TakesOddSizesAndStrides) {
  for (const std::int64_t inner : {1, 7, 8, 12, 127, 129, 1030}) {
    for (const Spacing& spacing : all_spacings()) {
      for (const std::int64_t weight_gap : {0, 1, 4}) {
        expect_close({.rows = 9,
                      .inner = inner,
                      .experts = 19,
                      .spacing = spacing,
                      .weight_gap = weight_gap,
                      .out_gap = 3});
      }
    }
  }
  expect_close({.rows = 3, .inner = 64, .experts = 1});
}

TEST_F(CudaLinearF32, TakesManyRows) {
  expect_close({.rows = 5000, .inner = 40, .experts = 20});
  EXPECT_TRUE(run({.rows = 0, .inner = 64, .experts = 8}, {}, std::vector<float>(8 * 64)).empty());
}

TEST_F(CudaLinearF32, ARowDoesNotDependOnTheOthers) {
  const LinearCase all{.rows = 130, .inner = 2184, .experts = 40};
  const std::vector<Bf16> x = make_x(all);
  const std::vector<float> weight = make_weight(all);
  const std::vector<float> together = run(all, x, weight);
  for (const std::int64_t rows : {1, 3, 8, 9, 16, 17, 32, 33, 64, 65, 100}) {
    LinearCase some = all;
    some.rows = rows;
    const std::int64_t first = all.rows - rows;
    const std::vector<float> got = run(some, {x.begin() + first * all.inner, x.end()}, weight);
    EXPECT_EQ(first_difference(got, {together.begin() + first * all.experts, together.end()}), -1)
        << rows << " rows";
  }
}

// The order of a sum follows from its length alone: neither from alignment nor from the strides.
TEST_F(CudaLinearF32, StridesChangeNoBit) {
  const LinearCase dense{.rows = 20, .inner = 1160, .experts = 24};
  const std::vector<Bf16> x = make_x(dense);
  const std::vector<float> weight = make_weight(dense);
  const std::vector<float> want = run(dense, x, weight);
  for (const Spacing& spacing : all_spacings()) {
    LinearCase spread = dense;
    spread.spacing = spacing;
    EXPECT_EQ(first_difference(run(spread, x, weight), want), -1) << spacing;
  }
}

TEST_F(CudaLinearF32, NanStaysInItsRowAndColumn) {
  const LinearCase c{.rows = 70, .inner = 300, .experts = 20};
  std::vector<Bf16> x = make_x(c);
  std::vector<float> weight = make_weight(c);
  x[66 * c.inner + 299] = to_bf16(NAN);
  weight[13 * c.inner + 150] = NAN;
  const std::vector<float> got = run(c, x, weight);
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t e = 0; e < c.experts; ++e)
      EXPECT_EQ(std::isnan(got[i * c.experts + e]), i == 66 || e == 13) << i << ' ' << e;
  }
}

}  // namespace
}  // namespace snapmla::test
