// Matrices of bf16 for tests of the ops whose rows may lie anywhere: dense, or with a gap behind each, poisoned.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <vector>

#include "gpu_test.h"

namespace snapmla::test {

/// How rows lie in memory.
struct Spacing {
  std::int64_t gap = 0;     ///< elements behind each row
  std::int64_t offset = 0;  ///< elements before the first
};

inline std::ostream& operator<<(std::ostream& out, const Spacing& spacing) {
  return out << "gap " << spacing.gap << " offset " << spacing.offset;
}

/// Dense; at multiples of 16 bytes; at multiples of 8 bytes only; of 2 only.
inline const std::vector<Spacing>& all_spacings() {
  static const std::vector<Spacing> all = {{}, {.gap = 8, .offset = 8}, {.gap = 4}, {.gap = 3, .offset = 1}};
  return all;
}

/// [rows, d] in a backend's memory. Without values: all poison.
class Bf16Rows {
 public:
  Bf16Rows(Backend& backend, std::int64_t rows, std::int64_t d, Spacing spacing,
           const std::vector<Bf16>& values = {})
      : rows_(rows), d_(d), spacing_(spacing), memory_(backend, spread(rows, d, spacing, values)) {}

  [[nodiscard]] TensorView view() const {
    return {memory_.data() + spacing_.offset, DType::kBF16, {rows_, d_}, {d_ + spacing_.gap, 1}};
  }
  /// All of it, what lies between the rows included.
  [[nodiscard]] std::vector<Bf16> host() const { return memory_.host(); }

 private:
  static std::vector<Bf16> spread(std::int64_t rows, std::int64_t d, Spacing spacing,
                                  const std::vector<Bf16>& values) {
    std::vector<Bf16> memory = poison<Bf16>(spacing.offset + rows * (d + spacing.gap));
    if (values.empty()) return memory;
    for (std::int64_t row = 0; row < rows; ++row) {
      std::copy_n(values.begin() + row * d, d, memory.begin() + spacing.offset + row * (d + spacing.gap));
    }
    return memory;
  }

  std::int64_t rows_;
  std::int64_t d_;
  Spacing spacing_;
  OnDevice<Bf16> memory_;
};

/// Infinities, NaN, signed zeros, subnormals, the smallest normal and the largest numbers.
inline const std::vector<Bf16>& special_numbers() {
  static const std::vector<Bf16> all = {{0x7f80}, {0xff80}, {0x7fc0}, {0xffc1}, {0x0000}, {0x8000}, {0x0001},
                                        {0x807f}, {0x0080}, {0x7f7f}, {0xff7f}, {0x3f80}, {0xbf80}, {0x42b1}};
  return all;
}

}  // namespace snapmla::test
