// BF16 conversion: all 65,536 values, rounding against fp64, infinities and NaN.
#include "core/bf16.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace snapmla {
namespace {

TEST(Bf16, EveryValueSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = to_float(Bf16{static_cast<std::uint16_t>(bits)});
    ASSERT_EQ(float_to_bits(x), bits << 16);
    const Bf16 back = to_bf16(x);
    if (std::isnan(x)) {
      ASSERT_EQ(back.bits, bits | 0x40) << std::hex << bits;  // quiet, sign and the rest kept
    } else {
      ASSERT_EQ(back.bits, bits) << std::hex << bits;
    }
  }
}

// The nearest bf16 by scaling to an integer and rounding that in fp64: exact, ties to even.
float nearest(float x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), -126);
  const double step = std::ldexp(1.0, exponent - 7);
  const double rounded = std::nearbyint(static_cast<double>(x) / step) * step;
  const double largest = std::ldexp(255.0, 120);
  if (std::fabs(rounded) > largest) return std::copysign(std::numeric_limits<float>::infinity(), x);
  return static_cast<float>(rounded);
}

TEST(Bf16, RoundsToNearestEven) {
  for (std::uint64_t bits = 0; bits < 1ULL << 32; bits += 1021) {  // a prime: all low halves occur
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(round_to_bf16(x))) << std::hex << bits;
    } else {
      ASSERT_EQ(float_to_bits(round_to_bf16(x)), float_to_bits(nearest(x))) << std::hex << bits;
    }
  }
}

TEST(Bf16, RoundsTiesAndTheirNeighbours) {
  for (std::uint32_t high = 0; high < 0x7f80; ++high) {
    for (const std::uint32_t low : {0x7fffU, 0x8000U, 0x8001U}) {
      const float x = bits_to_float(high << 16 | low);
      const std::uint32_t expected = high + (low > 0x8000 || (low == 0x8000 && high % 2 == 1) ? 1 : 0);
      ASSERT_EQ(to_bf16(x).bits, expected) << std::hex << high << ' ' << low;
      ASSERT_EQ(to_bf16(-x).bits, expected | 0x8000);
    }
  }
}

TEST(Bf16, OverflowsToInfinityAndKeepsNan) {
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_bf16(-std::numeric_limits<float>::infinity()).bits, 0xff80);
  EXPECT_TRUE(std::isnan(round_to_bf16(bits_to_float(0x7f800001))));  // its payload is in the half that goes
  EXPECT_TRUE(std::isnan(round_to_bf16(bits_to_float(0xffffffff))));
}

}  // namespace
}  // namespace snapmla
