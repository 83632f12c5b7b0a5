// The projections against fp64, the order of their sums bit for bit, and that a row never depends on its
// batch.
#include "reference/linear.h"

#include <gtest/gtest.h>

#include "core/plain_ops.h"
#include "reference/block_product.h"
#include "reference/ops.h"
#include "support/random_tensors.h"

namespace snapmla {
namespace {

using testing::expect_code;
using testing::fp32_sum_error;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::random_floats;
using testing::real;
using testing::same_bits;

const PlainOps& ops() {
  return reference_ops::plain_ops();
}

// The order that block_product.h promises, one scalar at a time.
template <class Weight>
float sum_in_lanes(const float* x, const Weight* w, int inner) {
  float lane[16] = {};
  for (int k = 0; k < inner; ++k) {
    const float product = x[k] * static_cast<float>(real(w[k]));
    lane[k % 16] += product;
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

TEST(BlockProduct, SumsInTheOrderItPromises) {
  for (const int inner : {1, 7, 15, 16, 17, 64, 100}) {
    for (const int rows : {1, 2, 3, 6}) {
      for (const int outs : {1, 2, 5, 16, 33}) {
        SCOPED_TRACE(::testing::Message() << rows << " x " << outs << " x " << inner);
        const auto n = static_cast<std::size_t>(outs * (inner + 3));
        const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * (inner + 1)), 1);
        const std::vector<Bf16> w = random_bf16(n, 2);
        const std::vector<float> w_f32 = random_floats(n, 3);
        const std::vector<Bf16> w_t = random_bf16(static_cast<std::size_t>(inner * (outs + 2)), 4);
        std::vector<float> y(static_cast<std::size_t>(rows * outs) + 200, 7.5F);
        const reference_ops::BlockProduct block{.x = x.data(),
                                                .x_stride = inner + 1,
                                                .rows = rows,
                                                .outs = outs,
                                                .inner = inner,
                                                .y = y.data(),
                                                .y_stride = outs};
        const auto expect_all = [&](const auto& expected) {
          for (std::size_t i = static_cast<std::size_t>(rows * outs); i < y.size(); ++i)
            ASSERT_EQ(y[i], 7.5F);
          for (int r = 0; r < rows; ++r) {
            for (int o = 0; o < outs; ++o) {
              ASSERT_EQ(y[static_cast<std::size_t>(r * outs + o)], expected(x.data() + r * (inner + 1), o));
            }
          }
        };
        reference_ops::dot_rows(block, w.data(), inner + 3);
        expect_all(
            [&](const float* row, int o) { return sum_in_lanes(row, w.data() + o * (inner + 3), inner); });
        reference_ops::dot_rows(block, w_f32.data(), inner + 3);
        expect_all([&](const float* row, int o) {
          return sum_in_lanes(row, w_f32.data() + o * (inner + 3), inner);
        });
        reference_ops::dot_columns(block, w_t.data(), outs + 2);
        expect_all([&](const float* row, int o) {
          float sum = 0;
          for (int k = 0; k < inner; ++k) {
            const float product = row[k] * to_float(w_t[static_cast<std::size_t>(k * (outs + 2) + o)]);
            sum += product;
          }
          return sum;
        });
      }
    }
  }
}

TEST(Linear, MatchesFp64WithStridesAndBias) {
  constexpr int kRows = 37, kIn = 200, kOut = 131, kXStride = 230, kOutStride = 140;
  const std::vector<Bf16> x = random_bf16(kRows * kXStride, 1, 1, 0.5F);
  const std::vector<Bf16> w = random_bf16(kOut * kIn, 2, 0.1F, 0.02F);
  const std::vector<float> w_f32 = random_floats(kOut * kIn, 4, 0.1F, 0.02F);
  const std::vector<Bf16> bias = random_bf16(kOut, 3);
  std::vector<Bf16> y(kRows * kOutStride, Bf16{0x7fff});
  std::vector<float> y_f32(kRows * kOut);
  std::vector<float> routed(kRows * kOut);
  const ConstTensorView x_view(x.data(), DType::kBF16, {kRows, kIn}, {kXStride, 1});
  const ConstTensorView w_view(w.data(), DType::kBF16, {kOut, kIn});
  ops().linear(x_view, w_view, ConstTensorView(bias.data(), DType::kBF16, {kOut}),
               TensorView(y.data(), DType::kBF16, {kRows, kOut}, {kOutStride, 1}), {});
  ops().linear(x_view, w_view, {}, TensorView(y_f32.data(), DType::kF32, {kRows, kOut}), {});
  ops().linear_f32(x_view, ConstTensorView(w_f32.data(), DType::kF32, {kOut, kIn}),
                   TensorView(routed.data(), DType::kF32, {kRows, kOut}), {});
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOut; ++o) {
      double sum = 0, magnitude = 0, sum_f32 = 0, magnitude_f32 = 0;
      for (int k = 0; k < kIn; ++k) {
        const double x_k = real(x[static_cast<std::size_t>(r * kXStride + k)]);
        const auto at = static_cast<std::size_t>(o * kIn + k);
        sum += x_k * real(w[at]);
        magnitude += std::fabs(x_k * real(w[at]));
        sum_f32 += x_k * real(w_f32[at]);
        magnitude_f32 += std::fabs(x_k * real(w_f32[at]));
      }
      const auto at = static_cast<std::size_t>(r * kOut + o);
      const double biased = sum + real(bias[static_cast<std::size_t>(o)]);
      const double sum_error = fp32_sum_error(kIn / 16 + 8, magnitude + std::fabs(biased));
      ASSERT_NEAR(real(y_f32[at]), sum, sum_error);
      ASSERT_NEAR(real(routed[at]), sum_f32, fp32_sum_error(kIn / 16 + 8, magnitude_f32));
      ASSERT_NEAR(real(y[static_cast<std::size_t>(r * kOutStride + o)]), biased,
                  std::fabs(biased) * kBf16Rounding + sum_error);
    }
    for (int o = kOut; o < kOutStride; ++o)
      ASSERT_EQ(y[static_cast<std::size_t>(r * kOutStride + o)].bits, 0x7fff);
  }
}

TEST(Linear, ARowDoesNotDependOnItsBatch) {
  constexpr int kRows = 33, kIn = 250, kOut = 70;
  const std::vector<Bf16> x = random_bf16(kRows * kIn, 1);
  const std::vector<Bf16> w = random_bf16(kOut * kIn, 2);
  const std::vector<float> w_f32 = random_floats(kOut * kIn, 3);
  const ConstTensorView w_view(w.data(), DType::kBF16, {kOut, kIn});
  const ConstTensorView w_f32_view(w_f32.data(), DType::kF32, {kOut, kIn});
  const auto run = [&](int first, int rows) {
    std::vector<float> y(static_cast<std::size_t>(2 * rows * kOut));
    const ConstTensorView x_view(x.data() + first * kIn, DType::kBF16, {rows, kIn});
    ops().linear(x_view, w_view, {}, TensorView(y.data(), DType::kF32, {rows, kOut}), {});
    ops().linear_f32(x_view, w_f32_view, TensorView(y.data() + rows * kOut, DType::kF32, {rows, kOut}), {});
    return y;
  };
  const std::vector<float> together = run(0, kRows);
  for (int r = 0; r < kRows; ++r) {
    const std::vector<float> alone = run(r, 1);
    ASSERT_TRUE(same_bits(alone.data(), together.data() + r * kOut, kOut)) << r;
    ASSERT_TRUE(same_bits(alone.data() + kOut, together.data() + (kRows + r) * kOut, kOut)) << r;
  }
}

TEST(HeadLinear, MatchesFp64BothWaysAndIgnoresTheBatch) {
  constexpr int kRows = 33, kHeads = 3, kIn = 48, kOut = 90, kRowStride = kHeads * 80 + 5, kHeadStride = 80;
  const std::vector<Bf16> x = random_bf16(kRows * kRowStride, 1);
  const std::vector<Bf16> w = random_bf16(kHeads * kIn * kOut, 2);
  const ConstTensorView w_rows(w.data(), DType::kBF16, {kHeads, kOut, kIn});
  const ConstTensorView w_columns(w.data(), DType::kBF16, {kHeads, kIn, kOut});
  const auto run = [&](int first, int rows, bool transposed) {
    std::vector<Bf16> y(static_cast<std::size_t>(rows * kHeads * kOut));
    ops().head_linear(ConstTensorView(x.data() + first * kRowStride, DType::kBF16, {rows, kHeads, kIn},
                                      {kRowStride, kHeadStride, 1}),
                      transposed ? w_columns : w_rows, transposed,
                      TensorView(y.data(), DType::kBF16, {rows, kHeads, kOut}), {});
    return y;
  };
  for (const bool transposed : {false, true}) {
    const std::vector<Bf16> y = run(0, kRows, transposed);
    for (int r = 0; r < kRows; ++r) {
      const std::vector<Bf16> alone = run(r, 1, transposed);
      ASSERT_TRUE(same_bits(alone.data(), y.data() + r * kHeads * kOut, alone.size()))
          << transposed << ' ' << r;
      for (int h = 0; h < kHeads; ++h) {
        for (int o = 0; o < kOut; ++o) {
          double sum = 0, magnitude = 0;
          for (int k = 0; k < kIn; ++k) {
            const int w_at = transposed ? (h * kIn + k) * kOut + o : (h * kOut + o) * kIn + k;
            const double product = real(x[static_cast<std::size_t>(r * kRowStride + h * kHeadStride + k)]) *
                                   real(w[static_cast<std::size_t>(w_at)]);
            sum += product;
            magnitude += std::fabs(product);
          }
          ASSERT_NEAR(real(y[static_cast<std::size_t>((r * kHeads + h) * kOut + o)]), sum,
                      std::fabs(sum) * kBf16Rounding + fp32_sum_error(kIn, magnitude));
        }
      }
    }
  }
}

TEST(Linear, WrongShapesAreOurBug) {
  std::vector<Bf16> memory(64);
  const auto bf16 = [&](std::int64_t rows, std::int64_t columns) {
    return TensorView(memory.data(), DType::kBF16, {rows, columns});
  };
  const auto f32 = TensorView(memory.data(), DType::kF32, {2, 3});
  expect_code(ErrorCode::kInternal, [&] { ops().linear(bf16(2, 4), bf16(3, 5), {}, bf16(2, 3), {}); });
  expect_code(ErrorCode::kInternal, [&] { ops().linear(bf16(2, 4), bf16(3, 4), {}, bf16(2, 4), {}); });
  expect_code(ErrorCode::kInternal, [&] { ops().linear(bf16(2, 4), bf16(3, 4), {}, bf16(1, 3), {}); });
  expect_code(ErrorCode::kInternal, [&] { ops().linear(f32, bf16(3, 3), {}, bf16(2, 3), {}); });
  expect_code(ErrorCode::kInternal, [&] { ops().linear_f32(bf16(2, 4), bf16(3, 4), f32, {}); });
  expect_code(ErrorCode::kInternal, [&] {
    ops().linear(bf16(2, 4), ConstTensorView(memory.data(), DType::kBF16, {3, 4}, {1, 3}), {}, bf16(2, 3),
                 {});
  });
  ops().linear(ConstTensorView(nullptr, DType::kBF16, {0, 4}), bf16(3, 4), {},
               TensorView(nullptr, DType::kBF16, {0, 3}), {});
}

}  // namespace
}  // namespace snapmla
