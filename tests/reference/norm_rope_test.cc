// RMSNorm and RoPE of a row against fp64.
#include "reference/norm_rope.h"

#include <gtest/gtest.h>

#include <array>

#include "support/random_tensors.h"

namespace snapmla {
namespace {

using testing::kBf16Rounding;
using testing::random_bf16;
using testing::real;

TEST(RmsNormRow, MatchesFp64) {
  for (const int n : {1, 64, 512, 2048}) {
    for (const float sigma : {1e-4F, 1.0F, 100.0F}) {
      const auto size = static_cast<std::size_t>(n);
      const std::vector<Bf16> x = random_bf16(size, 1, sigma, sigma);
      const std::vector<Bf16> weight = random_bf16(size, 2, 0.3F, 1);
      std::vector<Bf16> y(size);
      reference_ops::rms_norm_row(x.data(), weight.data(), 1e-6F, n, y.data());
      double squares = 0;
      for (const Bf16 value : x) squares += real(value) * real(value);
      const double inverse = 1 / std::sqrt(squares / n + real(1e-6F));
      for (std::size_t i = 0; i < size; ++i) {
        const double expected = real(x[i]) * inverse * real(weight[i]);
        ASSERT_NEAR(real(y[i]), expected, std::fabs(expected) * (kBf16Rounding + 4 * 0x1p-24));
      }
      std::vector<Bf16> in_place = x;
      reference_ops::rms_norm_row(in_place.data(), weight.data(), 1e-6F, n, in_place.data());
      EXPECT_TRUE(testing::same_bits(in_place.data(), y.data(), size));
    }
  }
}

TEST(RmsNormRow, ZerosStayZeros) {
  const std::vector<Bf16> zeros(8);
  const std::vector<Bf16> ones(8, to_bf16(1));
  std::vector<Bf16> y(8, Bf16{0x7fff});
  reference_ops::rms_norm_row(zeros.data(), ones.data(), 1e-6F, 8, y.data());
  for (const Bf16 value : y) EXPECT_EQ(value.bits, 0);
}

TEST(RotateRow, TurnsEachPairInBothLayouts) {
  const std::vector<Bf16> x = random_bf16(kRopeDim, 1, 10);
  std::array<float, kRopeDim> cos_sin{};
  for (std::size_t i = 0; i < 32; ++i) {
    cos_sin[i] = static_cast<float>(std::cos(0.3 * static_cast<double>(i + 1)));
    cos_sin[32 + i] = static_cast<float>(std::sin(0.3 * static_cast<double>(i + 1)));
  }
  for (const bool interleaved : {true, false}) {
    std::vector<Bf16> y(kRopeDim);
    reference_ops::rotate_row(x.data(), cos_sin.data(), interleaved, y.data());
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t a = interleaved ? 2 * i : i;
      const std::size_t b = interleaved ? 2 * i + 1 : i + 32;
      const double c = cos_sin[i];
      const double s = cos_sin[32 + i];
      const double turned_a = real(x[a]) * c - real(x[b]) * s;
      const double turned_b = real(x[b]) * c + real(x[a]) * s;
      const double fp32_error = 3 * 0x1p-24 * (std::fabs(real(x[a])) + std::fabs(real(x[b])));
      ASSERT_NEAR(real(y[a]), turned_a, std::fabs(turned_a) * kBf16Rounding + fp32_error)
          << interleaved << ' ' << i;
      ASSERT_NEAR(real(y[b]), turned_b, std::fabs(turned_b) * kBf16Rounding + fp32_error)
          << interleaved << ' ' << i;
    }
    std::vector<Bf16> in_place = x;
    reference_ops::rotate_row(in_place.data(), cos_sin.data(), interleaved, in_place.data());
    EXPECT_TRUE(testing::same_bits(in_place.data(), y.data(), y.size()));
  }
}

TEST(CosSinRow, RefusesPositionsOutsideTheTable) {
  const std::vector<float> table(3 * kRopeDim);
  const std::array<std::int32_t, 3> positions = {2, 3, -1};
  const RopeParams rope{.cos_sin = ConstTensorView(table.data(), DType::kF32, {3, kRopeDim}),
                        .positions = ConstTensorView(positions.data(), DType::kI32, {3})};
  EXPECT_EQ(reference_ops::cos_sin_row("rope", rope, 0), table.data() + 2 * kRopeDim);
  for (const std::int64_t index : {1, 2}) {
    testing::expect_code(ErrorCode::kInvalidArgument,
                         [&] { (void)reference_ops::cos_sin_row("rope", rope, index); });
  }
}

}  // namespace
}  // namespace snapmla
