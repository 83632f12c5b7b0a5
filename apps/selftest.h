// One-second self-test of a backend: random tokens appended to a cache and decoded over, against softmax
// attention in fp64 on the values before quantization. The pool is filled with NaN codes first.
#pragma once

#include "snapmla/backend.h"

namespace snapmla::apps {

struct SelfTest {
  double max_relative_error = 0;  ///< largest ||out - expected|| / ||expected|| over all query rows
  double tolerance = 0;
  double seconds = 0;
  [[nodiscard]] bool ok() const { return max_relative_error <= tolerance; }  // false for NaN
};

/// Throws what the backend throws.
SelfTest run_self_test(Backend& backend, CacheFormat format);

/// The tolerance of a format. e4m3 rounds each cached value by at most 2^-4 of itself, and the rounding of q
/// and P averages out below that; bf16 rounds cached value, P and output by at most 2^-9 each, within 2^-7.
constexpr double self_test_tolerance(CacheFormat format) {
  return format == CacheFormat::kFp8 ? 1.0 / 16 : 1.0 / 128;
}

}  // namespace snapmla::apps
