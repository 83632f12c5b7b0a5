// The device's scale rules against quantization_scale, on the host: every magnitude that a row of bf16 can
// have, and a walk over fp32.
#include "cuda/device/scale.cuh"

#include <gtest/gtest.h>

#include <cstdint>

namespace snapmla::cuda_ops {
namespace {

void expect_same(std::uint32_t bits) {
  const float amax = bits_to_float(bits);
  const float scale = power_of_two_scale(amax);
  ASSERT_EQ(float_to_bits(scale), float_to_bits(quantization_scale(amax, ScaleRule::kPowerOfTwo))) << bits;
  ASSERT_EQ(power_of_two_inverse(scale), 1 / scale) << bits;
  ASSERT_EQ(float_to_bits(amax_scale(amax)), float_to_bits(quantization_scale(amax, ScaleRule::kAmax)))
      << bits;
}

TEST(ScaleOnHost, EveryBf16Magnitude) {
  for (std::uint32_t magnitude = 0; magnitude < 0x8000; ++magnitude) expect_same(magnitude << 16);
}

TEST(ScaleOnHost, SweepOfMagnitudes) {
  constexpr std::uint32_t kStride = 1021;  // prime: every exponent, and every pattern of low bits
  for (std::uint32_t bits = 0; bits < 0x80000000U - kStride; bits += kStride) expect_same(bits);
  for (std::uint32_t exponent = 1; exponent < 255;
       ++exponent) {  // both sides of 1.75, where the binade changes
    for (std::uint32_t mantissa = 0x5ffffeU; mantissa <= 0x600002U; ++mantissa)
      expect_same(exponent << 23 | mantissa);
  }
}

}  // namespace
}  // namespace snapmla::cuda_ops
