// Seeded random tensors and what numeric tests compare with.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "snapmla/error.h"

namespace snapmla::testing {

/// Normal numbers with mean `mean` and standard deviation `sigma`, which may be zero.
inline std::vector<float> random_floats(std::size_t n, unsigned seed, float sigma = 1, float mean = 0) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = mean + sigma * normal(random);
  return values;
}

inline std::vector<Bf16> random_bf16(std::size_t n, unsigned seed, float sigma = 1, float mean = 0) {
  std::vector<Bf16> values;
  for (const float value : random_floats(n, seed, sigma, mean)) values.push_back(to_bf16(value));
  return values;
}

inline double real(float x) {
  return x;
}
inline double real(Bf16 x) {
  return to_float(x);
}

/// bf16 keeps 8 significant bits: rounding to nearest errs by at most half of 2^-7.
inline constexpr double kBf16Rounding = 0x1p-8;

/// Bound on the error of an fp32 sum of `terms` products whose magnitudes sum to `magnitude`.
inline double fp32_sum_error(std::int64_t terms, double magnitude) {
  return static_cast<double>(terms + 1) * 0x1p-24 * magnitude;
}

template <class T>
bool same_bits(const T* a, const T* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(T)) == 0;
}

template <class Call>
void expect_code(ErrorCode code, const Call& call) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
  }
}

}  // namespace snapmla::testing
