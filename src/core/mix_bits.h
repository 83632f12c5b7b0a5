// The finalizer of SplitMix64 (Steele, Lea, Flood 2014), from which all seeded random numbers here are made: every
// input bit moves every output bit.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace snapmla {

SNAPMLA_HOST_DEVICE inline std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// What SplitMix64's counter advances by.
inline constexpr std::uint64_t kGoldenGamma = 0x9e3779b97f4a7c15ULL;

}  // namespace snapmla
