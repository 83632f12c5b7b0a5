// The row-wise plain ops: random fill, embedding, norm, RoPE, silu_mul and add, with strides, in batches and alone.
#include "core/plain_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "reference/norm_rope.h"
#include "reference/ops.h"
#include "support/random_tensors.h"
#include "support/splitmix64.h"

namespace snapmla {
namespace {

using testing::expect_code;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::real;
using testing::same_bits;

constexpr int kRows = 33;
constexpr int kDim = 96;
constexpr int kStride = 100;

const PlainOps& ops() {
  return reference_ops::plain_ops();
}

ConstTensorView rows_of(const std::vector<Bf16>& x, std::int64_t rows = kRows) {
  return {x.data(), DType::kBF16, {rows, kDim}, {kStride, 1}};
}
TensorView rows_of(std::vector<Bf16>& x, std::int64_t rows = kRows) {
  return {x.data(), DType::kBF16, {rows, kDim}, {kStride, 1}};
}

TEST(Embed, CopiesRowsAndRefusesTokensOutsideTheTable) {
  const std::vector<Bf16> table = random_bf16(5 * kDim, 1);
  std::array<std::int32_t, 3> tokens = {4, 0, 4};
  std::vector<Bf16> out(3 * kStride);
  const ConstTensorView token_view(tokens.data(), DType::kI32, {3});
  const ConstTensorView table_view(table.data(), DType::kBF16, {5, kDim});
  ops().embed(token_view, table_view, rows_of(out, 3), {});
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same_bits(out.data() + i * kStride, table.data() + tokens[i] * kDim, kDim)) << i;
  }
  for (const std::int32_t bad : {5, -1}) {
    tokens[1] = bad;
    expect_code(ErrorCode::kInvalidArgument,
                [&] { ops().embed(token_view, table_view, rows_of(out, 3), {}); });
  }
}

// The formula of core/random_fill.h, spelled a second time.
float number_at(std::uint64_t seed, std::uint64_t index, float deviation) {
  const std::uint64_t bits = testing::splitmix64(seed, index);
  int sum = -131070;
  for (int part = 0; part < 4; ++part) sum += static_cast<int>(bits >> (16U * part) & 0xffffU);
  return static_cast<float>(sum) * static_cast<float>(deviation / 37837.22756);
}

TEST(FillRandom, IsTheFormulaAtEveryPlace) {
  constexpr std::int64_t kCount = 10'000;  // more than one thread's run
  const RandomFill fill{.seed = 42, .first = 1'000'000'007'000, .deviation = 0.25F};
  std::vector<float> f32(kCount);
  std::vector<Bf16> bf16(kCount);
  std::vector<E4m3> e4m3(kCount);
  ops().fill_random({f32.data(), DType::kF32, {100, 100}}, fill, {});
  ops().fill_random({bf16.data(), DType::kBF16, {kCount}}, fill, {});
  ops().fill_random({e4m3.data(), DType::kE4M3, {kCount}}, fill, {});
  double sum = 0;
  double squares = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(f32[i], number_at(fill.seed, fill.first + i, fill.deviation)) << i;
    ASSERT_EQ(bf16[i].bits, to_bf16(f32[i]).bits) << i;
    ASSERT_EQ(e4m3[i].bits, to_e4m3(f32[i]).bits) << i;
    sum += f32[i];
    squares += static_cast<double>(f32[i]) * f32[i];
  }
  // Four standard errors.
  EXPECT_NEAR(sum / kCount, 0, 4 * 0.25 / 100);
  EXPECT_NEAR(std::sqrt(squares / kCount), 0.25, 4 * 0.25 / std::sqrt(2.0 * kCount));
}

TEST(FillRandom, ContinuesWhereAnotherEnds) {
  std::vector<float> whole(1000);
  std::vector<float> half(500);
  ops().fill_random({whole.data(), DType::kF32, {1000}}, {.seed = 3, .first = 0, .deviation = 1}, {});
  ops().fill_random({half.data(), DType::kF32, {500}}, {.seed = 3, .first = 500, .deviation = 1}, {});
  EXPECT_TRUE(std::equal(half.begin(), half.end(), whole.begin() + 500));
  ops().fill_random({half.data(), DType::kF32, {500}}, {.seed = 4, .first = 500, .deviation = 1}, {});
  EXPECT_FALSE(std::equal(half.begin(), half.end(), whole.begin() + 500));
}

TEST(RmsNorm, IsTheRowFunctionOnEveryRow) {
  const std::vector<Bf16> x = random_bf16(kRows * kStride, 1);
  const std::vector<Bf16> weight = random_bf16(kDim, 2);
  std::vector<Bf16> y(kRows * kStride);
  ops().rms_norm(rows_of(x), ConstTensorView(weight.data(), DType::kBF16, {kDim}), 1e-6F, rows_of(y), {});
  std::vector<Bf16> expected(kDim);
  for (int r = 0; r < kRows; ++r) {
    reference_ops::rms_norm_row(x.data() + r * kStride, weight.data(), 1e-6F, kDim, expected.data());
    ASSERT_TRUE(same_bits(y.data() + r * kStride, expected.data(), kDim)) << r;
  }
  std::vector<Bf16> over = x;
  ops().rms_norm(rows_of(over), ConstTensorView(weight.data(), DType::kBF16, {kDim}), 1e-6F, rows_of(over),
                 {});
  for (int r = 0; r < kRows; ++r) {
    ASSERT_TRUE(same_bits(over.data() + r * kStride, y.data() + r * kStride, kDim)) << r;
  }
}

TEST(Rope, RotatesEveryHeadByItsTokensPosition) {
  constexpr int kTokens = 5, kHeads = 3, kTokenStride = 600, kHeadStride = 192, kPositions = 7;
  const std::vector<Bf16> x = random_bf16(kTokens * kTokenStride, 1);
  const std::vector<float> table = testing::random_floats(kPositions * kRopeDim, 2);
  std::array<std::int32_t, kTokens> positions = {6, 0, 3, 3, 1};
  const RopeParams rope{.cos_sin = ConstTensorView(table.data(), DType::kF32, {kPositions, kRopeDim}),
                        .positions = ConstTensorView(positions.data(), DType::kI32, {kTokens}),
                        .interleaved = false};
  const ConstTensorView x_view(x.data(), DType::kBF16, {kTokens, kHeads, kRopeDim},
                               {kTokenStride, kHeadStride, 1});
  std::vector<Bf16> y(kTokens * kHeads * kRopeDim);
  const TensorView y_view(y.data(), DType::kBF16, {kTokens, kHeads, kRopeDim});
  ops().rope(x_view, rope, y_view, {});
  std::array<Bf16, kRopeDim> expected{};
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kHeads; ++h) {
      reference_ops::rotate_row(x.data() + t * kTokenStride + h * kHeadStride,
                                table.data() + positions[static_cast<std::size_t>(t)] * kRopeDim, false,
                                expected.data());
      ASSERT_TRUE(same_bits(y.data() + (t * kHeads + h) * kRopeDim, expected.data(), kRopeDim))
          << t << ' ' << h;
    }
  }
  positions[2] = kPositions;
  expect_code(ErrorCode::kInvalidArgument, [&] { ops().rope(x_view, rope, y_view, {}); });
}

TEST(ScaleRows, MultipliesEveryRowByItsPositionsFactor) {
  const std::vector<Bf16> x = random_bf16(kRows * kStride, 1);
  const std::vector<float> factor = testing::random_floats(7, 2);
  std::vector<std::int32_t> positions(kRows);
  for (std::size_t r = 0; r < kRows; ++r) positions[r] = static_cast<std::int32_t>(r * 3 % 7);
  const ConstTensorView position_view(positions.data(), DType::kI32, {kRows});
  const ConstTensorView factor_view(factor.data(), DType::kF32, {7});
  std::vector<Bf16> y = x;  // over itself
  ops().scale_rows(rows_of(y), position_view, factor_view, rows_of(y), {});
  for (int r = 0; r < kRows; ++r) {
    const float by = factor[static_cast<std::size_t>(positions[static_cast<std::size_t>(r)])];
    for (int d = 0; d < kDim; ++d) {
      const auto at = static_cast<std::size_t>(r * kStride + d);
      ASSERT_EQ(y[at].bits, to_bf16(to_float(x[at]) * by).bits) << r << ' ' << d;
    }
  }
  positions[2] = 7;
  expect_code(ErrorCode::kInvalidArgument,
              [&] { ops().scale_rows(rows_of(y), position_view, factor_view, rows_of(y), {}); });
}

TEST(SiluMul, MatchesFp64) {
  std::vector<Bf16> gate = random_bf16(kRows * kStride, 1, 4);
  const std::vector<Bf16> up = random_bf16(kRows * kStride, 2);
  gate[0] = to_bf16(-1e4F);  // exp(1e4) overflows; the result is 0
  gate[1] = to_bf16(1e4F);
  std::vector<Bf16> y(kRows * kStride);
  ops().silu_mul(rows_of(gate), rows_of(up), rows_of(y), {});
  for (int r = 0; r < kRows; ++r) {
    for (int d = 0; d < kDim; ++d) {
      const auto at = static_cast<std::size_t>(r * kStride + d);
      const double expected = real(gate[at]) / (1 + std::exp(-real(gate[at]))) * real(up[at]);
      ASSERT_NEAR(real(y[at]), expected, std::fabs(expected) * (kBf16Rounding + 8 * 0x1p-24))
          << r << ' ' << d;
    }
  }
}

TEST(Add, RoundsOnceAndMayWriteOverAnInput) {
  const std::vector<Bf16> a = random_bf16(kRows * kStride, 1);
  const std::vector<Bf16> b = random_bf16(kRows * kStride, 2, 100);
  std::vector<Bf16> y(kRows * kStride);
  ops().add(rows_of(a), rows_of(b), rows_of(y), {});
  std::vector<Bf16> over = a;
  ops().add(rows_of(over), rows_of(b), rows_of(over), {});
  for (int r = 0; r < kRows; ++r) {
    for (int d = 0; d < kDim; ++d) {
      const auto at = static_cast<std::size_t>(r * kStride + d);
      // Two bf16 numbers of near exponents add exactly in fp32; farther ones round there first, far below
      // bf16.
      const double sum = real(a[at]) + real(b[at]);
      ASSERT_NEAR(real(y[at]), sum, std::fabs(sum) * (kBf16Rounding + 0x1p-24)) << r << ' ' << d;
      ASSERT_EQ(over[at].bits, y[at].bits);
    }
  }
}

TEST(PlainOps, WrongShapesAreOurBug) {
  std::vector<Bf16> x(2 * kStride);
  expect_code(ErrorCode::kInternal, [&] { ops().add(rows_of(x, 2), rows_of(x, 1), rows_of(x, 2), {}); });
  expect_code(ErrorCode::kInternal, [&] { ops().silu_mul(rows_of(x, 2), rows_of(x, 2), rows_of(x, 1), {}); });
  const ConstTensorView weight(x.data(), DType::kBF16, {kDim + 1});
  expect_code(ErrorCode::kInternal, [&] { ops().rms_norm(rows_of(x, 2), weight, 1e-6F, rows_of(x, 2), {}); });
}

}  // namespace
}  // namespace snapmla
