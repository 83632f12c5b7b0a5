// Floats as integers of the same order, for maxima and radix descents. Host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace snapmla::cuda_ops {

/// The key of NaN, below those of all numbers; 0, below every key, is free for what does not count.
inline constexpr std::uint32_t kNanKey = 1;

/// Ordered like the numbers; -0 is 0.
SNAPMLA_HOST_DEVICE inline std::uint32_t order_key(float x) {
  constexpr std::uint32_t kSign = 0x80000000U;
  const std::uint32_t bits = float_to_bits(x + 0.0F);  // -0 + 0 is 0
  if ((bits & ~kSign) > 0x7f800000U) return kNanKey;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

/// The number of a key, which is not NaN's.
SNAPMLA_HOST_DEVICE inline float number_of(std::uint32_t key) {
  constexpr std::uint32_t kSign = 0x80000000U;
  return bits_to_float((key & kSign) != 0 ? key & ~kSign : ~key);
}

}  // namespace snapmla::cuda_ops
