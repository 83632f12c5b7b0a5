// What both backends hold to when they choose a token from a row of logits: the random number, and which rows
// have no softmax at all. The rule itself, cuts and order, is at the head of src/reference/sample.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/check.h"
#include "core/host_device.h"
#include "core/mix_bits.h"

namespace snapmla {

/// Uniform in [0, 1), 53 bits, a pure function of its arguments.
SNAPMLA_HOST_DEVICE inline double uniform_at(std::uint64_t seed, std::uint64_t position) {
  const std::uint64_t bits = mix_bits(mix_bits(seed + kGoldenGamma) + (position + 1) * kGoldenGamma);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// Throws Error(kInvalidArgument) where a row holds NaN or +infinity, or nothing above -infinity. `row` is for
/// the message.
inline void require_softmax(const float* logits, std::int64_t vocab, std::int64_t row) {
  bool has_finite = false;
  for (std::int64_t i = 0; i < vocab; ++i) {
    SNAPMLA_REQUIRE(logits[i] < std::numeric_limits<float>::infinity(), "sample",
                    "logits must be numbers below infinity; got ", logits[i], " for token ", i, " in row ",
                    row);
    has_finite = has_finite || std::isfinite(logits[i]);
  }
  SNAPMLA_REQUIRE(has_finite, "sample", "a row of logits must have a finite one; row ", row, " has none");
}

}  // namespace snapmla
