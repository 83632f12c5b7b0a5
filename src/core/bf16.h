// BF16 <-> fp32. Host and device. Rounding is to nearest even; a NaN stays a (quiet) NaN; overflow goes to
// infinity.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "snapmla/tensor.h"

namespace snapmla {

SNAPMLA_HOST_DEVICE inline float to_float(Bf16 x) {
  return bits_to_float(static_cast<std::uint32_t>(x.bits) << 16);
}

SNAPMLA_HOST_DEVICE inline Bf16 to_bf16(float x) {
  const std::uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return Bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  const std::uint32_t round =
      0x7fffU + ((bits >> 16) & 1U);  // half an ulp, or just under it when already even
  return Bf16{static_cast<std::uint16_t>((bits + round) >> 16)};
}

/// The fp32 value after a trip through bf16.
SNAPMLA_HOST_DEVICE inline float round_to_bf16(float x) {
  return to_float(to_bf16(x));
}

}  // namespace snapmla
