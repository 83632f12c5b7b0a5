// What the tests of the CUDA backend share: they skip themselves where it cannot run, and they run an op on
// both backends through the same code, with OnDevice tensors.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/bf16.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "support/on_device.h"

namespace snapmla::test {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Support support = cuda().supported(); !support.ok) GTEST_SKIP() << support.reason;
  }
};

template <class T>
class GpuCases : public GpuTest, public ::testing::WithParamInterface<T> {};

/// The first index at which two vectors differ in their bits, or -1.
template <class T>
std::ptrdiff_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return static_cast<std::ptrdiff_t>(std::min(a.size(), b.size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

/// The same, but a NaN equals any NaN: CPU and GPU keep different payloads.
inline std::ptrdiff_t first_difference_but_nan(const std::vector<Bf16>& a, const std::vector<Bf16>& b) {
  if (a.size() != b.size()) return static_cast<std::ptrdiff_t>(std::min(a.size(), b.size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool both_nan = std::isnan(to_float(a[i])) && std::isnan(to_float(b[i]));
    if (a[i].bits != b[i].bits && !both_nan) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Normal bf16 numbers, row r of `width` times 10^(r mod 7 - 3): scales of every size. Row 4 is zero.
inline std::vector<Bf16> rows_of_all_sizes(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Bf16> values;
  for (std::int64_t row = 0; row < rows; ++row) {
    const float size = row == 4 ? 0 : std::pow(10.0F, static_cast<float>(row % 7 - 3));
    for (std::int64_t i = 0; i < width; ++i) values.push_back(to_bf16(size * normal(random)));
  }
  return values;
}

/// [num_positions, 64]: 32 cosines, then 32 sines.
inline std::vector<float> cos_sin_table(std::int64_t num_positions) {
  std::vector<float> table;
  for (std::int64_t position = 0; position < num_positions; ++position) {
    for (int part = 0; part < 2; ++part) {
      for (int i = 0; i < kRopeDim / 2; ++i) {
        const double angle = static_cast<double>(position) * std::pow(10000.0, -i / 32.0);
        table.push_back(static_cast<float>(part == 0 ? std::cos(angle) : std::sin(angle)));
      }
    }
  }
  return table;
}

enum class Rotation { kNone, kInterleaved, kHalves };

}  // namespace snapmla::test
