// FP8 e4m3 ("e4m3fn") <-> fp32. Host and device; equal to CUDA's __nv_cvt_float_to_fp8(x, __NV_SATFINITE,
// __NV_E4M3) and its inverse on every input.
//
//     code = s eeee mmm, bias 7
//     e > 0: (-1)^s 2^(e-7) (1 + m/8)      e = 0: (-1)^s 2^-6 (m/8)      0x7f, 0xff: NaN
//
// There is no infinity. Encoding rounds to nearest even and saturates to +-448, infinities included; NaN
// gives 0x7f (CUDA drops the sign of a NaN).
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "snapmla/tensor.h"

namespace snapmla {

SNAPMLA_HOST_DEVICE inline E4m3 to_e4m3(float x) {
  const std::uint32_t bits = float_to_bits(x);
  const auto sign = static_cast<std::uint8_t>((bits >> 24) & 0x80U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return E4m3{0x7f};
  if (magnitude >= 0x43e00000U) return E4m3{static_cast<std::uint8_t>(sign | 0x7eU)};  // 448 and above
  if (magnitude < 0x3c800000U) {  // below 2^-6: subnormal codes, steps of 2^-9
    // Adding 2^14 puts the step at the last fp32 mantissa bit, so fp32's own rounding to nearest even does
    // the work.
    const float shifted = bits_to_float(magnitude) + 16384.0F;
    return E4m3{static_cast<std::uint8_t>(sign | (float_to_bits(shifted) - 0x46800000U))};
  }
  // Normal: keep 3 of 23 mantissa bits, rounding to nearest even; a carry moves into the exponent, as it
  // should.
  const std::uint32_t round = 0x7ffffU + ((magnitude >> 20) & 1U);
  const std::uint32_t code = ((magnitude + round) >> 20) - ((127U - 7U) << 3);
  return E4m3{static_cast<std::uint8_t>(sign | (code > 0x7eU ? 0x7eU : code))};
}

SNAPMLA_HOST_DEVICE inline float to_float(E4m3 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x80U) << 24;
  const std::uint32_t magnitude = x.bits & 0x7fU;
  if (magnitude == 0x7fU) return bits_to_float(0x7fffffffU);
  if (magnitude < 8U) {  // subnormal: m * 2^-9, exact in fp32
    const float value = static_cast<float>(magnitude) * 0.001953125F;
    return bits_to_float(float_to_bits(value) | sign);
  }
  return bits_to_float(sign | ((magnitude + ((127U - 7U) << 3)) << 20));
}

}  // namespace snapmla
