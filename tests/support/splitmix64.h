// SplitMix64 (Steele, Lea, Flood 2014) as tests spell it: apart from core/mix_bits.h on purpose.
#pragma once

#include <cstdint>

namespace snapmla::testing {

/// The `index`-th output of a splitmix64 generator that starts at `state`.
inline std::uint64_t splitmix64(std::uint64_t state, std::uint64_t index) {
  std::uint64_t z = state + (index + 1) * 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31U);
}

}  // namespace snapmla::testing
