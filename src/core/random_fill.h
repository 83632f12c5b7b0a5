// Random numbers that are the same bits on every backend: number i of a stream is a function of (seed, i) alone,
// made of integer arithmetic, one fp32 product and one rounding.
//
//     z = sum of the four 16-bit parts of the i-th output of SplitMix64 from `seed`, less 131,070
//     number = z * (deviation / 37,837.2)
//
// z is a whole number, exact in fp32, of mean 0 and variance 4 (2^32 - 1) / 12 = 37,837.2^2. Its distribution is
// close to normal, and bounded: no number is beyond 3.46 deviations.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/mix_bits.h"

namespace snapmla {

/// Numbers first, first + 1, ... of the stream `seed`, times `deviation`.
struct RandomFill {
  std::uint64_t seed = 0;
  std::uint64_t first = 0;
  float deviation = 1;
};

/// What z is multiplied by. On the host, once a fill: a division is not the same bits everywhere.
inline float random_factor(float deviation) {
  constexpr double kDeviationOfSum = 37837.22756;
  return static_cast<float>(deviation / kDeviationOfSum);
}

SNAPMLA_HOST_DEVICE inline float random_number(std::uint64_t seed, std::uint64_t index, float factor) {
  const std::uint64_t bits = mix_bits(seed + (index + 1) * kGoldenGamma);
  constexpr std::uint64_t kPart = 0xffff;
  constexpr std::int32_t kMeanOfSum = 131070;
  const auto sum = static_cast<std::int32_t>((bits & kPart) + ((bits >> 16) & kPart) +
                                             ((bits >> 32) & kPart) + (bits >> 48));
  return static_cast<float>(sum - kMeanOfSum) * factor;
}

}  // namespace snapmla
