// Random e4m3 weights with block scales, and the bf16 numbers that they stand for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/plain_ops.h"

namespace snapmla::testing {

struct RandomE4m3Weights {
  std::vector<E4m3> codes;    ///< [count, rows, columns], row by row
  std::vector<float> scales;  ///< [count, ceil(rows / 128), columns / 128]
  std::vector<Bf16> values;   ///< bf16(e4m3 * scale)
};

/// Values of deviation `sigma`. Every finite code comes up, subnormal ones and both zeros included; scales are no powers of
/// two, differ from block to block, and some are negative. `columns` is a multiple of 128.
inline RandomE4m3Weights random_e4m3_weights(std::int64_t count, std::int64_t rows, std::int64_t columns,
                                             unsigned seed, float sigma) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> spread(1.0F / 64, 1.0F / 8);
  const std::int64_t scale_rows = num_weight_blocks(rows);
  const std::int64_t scale_columns = columns / kWeightBlock;
  RandomE4m3Weights weights;
  for (std::int64_t i = 0; i < count * scale_rows * scale_columns; ++i)
    weights.scales.push_back((i % 5 == 4 ? -sigma : sigma) * spread(random));
  for (std::int64_t i = 0; i < count * rows * columns; ++i) {
    const std::int64_t row = i / columns;
    const std::int64_t scale_row = row / rows * scale_rows + row % rows / kWeightBlock;
    const float scale =
        weights.scales[static_cast<std::size_t>(scale_row * scale_columns + i % columns / kWeightBlock)];
    constexpr std::uint32_t kAnyCode = 50;  // one of so many
    E4m3 code = to_e4m3(sigma * normal(random) / scale);
    if (random() % kAnyCode == 0)
      code.bits = static_cast<std::uint8_t>(random() % 2 * 0x80 + random() % 0x20);
    weights.codes.push_back(code);
    weights.values.push_back(to_bf16(to_float(code) * scale));
  }
  return weights;
}

}  // namespace snapmla::testing
