// quantization_scale (src/core/format.cc) from the bits of an fp32 magnitude, without frexp. Host and device,
// equal on every input; tests/cuda/scale_test.cu walks all of them that a row of bf16 can give.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "snapmla/format.h"

namespace snapmla::cuda_ops {

/// The smallest power of two >= amax / 448, exponent clamped to [-40, 40]; 1 for 0, NaN and infinity. 448 is
/// 1.75 * 2^8: with amax = m * 2^e and m in [1, 2), the quotient's power of two is 2^(e-8), one more if m >
/// 1.75. A subnormal amax has the exponent field 0 and meets the clamp like its true exponent would.
SNAPMLA_HOST_DEVICE inline float power_of_two_scale(float amax) {
  const std::uint32_t bits = float_to_bits(amax);
  if (bits == 0 || bits >= 0x7f800000U) return 1;
  constexpr int kLeast = 127 - 40;
  constexpr int kMost = 127 + 40;
  const int field = static_cast<int>(bits >> 23) - 8 + ((bits & 0x7fffffU) > 0x600000U ? 1 : 0);
  const int clamped = field < kLeast ? kLeast : field > kMost ? kMost : field;
  return bits_to_float(static_cast<std::uint32_t>(clamped) << 23);
}

/// 1 / scale of a power of two within the clamp above: exact.
SNAPMLA_HOST_DEVICE inline float power_of_two_inverse(float scale) {
  return bits_to_float((254U << 23) - float_to_bits(scale));
}

/// max(amax, 1e-26) / 448 in fp32; 1 for NaN and infinity.
SNAPMLA_HOST_DEVICE inline float amax_scale(float amax) {
  if (float_to_bits(amax) >= 0x7f800000U) return 1;
  return (amax > 1e-26F ? amax : 1e-26F) / kE4m3Max;
}

}  // namespace snapmla::cuda_ops
