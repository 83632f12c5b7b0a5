#include "model/position_tables.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace snapmla {

std::vector<float> rope_table(const ModelConfig& config, int positions) {
  constexpr int kPairs = kRopeDim / 2;
  constexpr double kTwoPi = 6.283185307179586;
  const YarnConfig& yarn = config.yarn;
  // The (fractional) pair that turns `rotations` times within the original context.
  const auto pair_of = [&](double rotations) {
    return kRopeDim * std::log(yarn.original_max_position / (rotations * kTwoPi)) /
           (2 * std::log(config.rope_theta));
  };
  double low = pair_of(yarn.beta_fast);
  double high = pair_of(yarn.beta_slow);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, kRopeDim - 1.0);
  if (low == high) high += 0.001;

  std::array<double, kPairs> frequency{};
  for (int i = 0; i < kPairs; ++i) {
    const double plain = std::pow(config.rope_theta, -2.0 * i / kRopeDim);
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    frequency[static_cast<std::size_t>(i)] = plain * (1 - ramp) + plain / yarn.factor * ramp;
  }
  std::vector<float> table(static_cast<std::size_t>(positions) * kRopeDim);
  for (int position = 0; position < positions; ++position) {
    float* row = table.data() + static_cast<std::ptrdiff_t>(position) * kRopeDim;
    for (int i = 0; i < kPairs; ++i) {
      const double angle = position * frequency[static_cast<std::size_t>(i)];
      row[i] = static_cast<float>(std::cos(angle) * yarn.cos_sin_factor);
      row[i + kPairs] = static_cast<float>(std::sin(angle) * yarn.cos_sin_factor);
    }
  }
  return table;
}

std::vector<float> query_growth_table(const ModelConfig& config, int positions) {
  if (config.query_growth == 0) return {};
  std::vector<float> table;
  for (int position = 0; position < positions; ++position) {
    const int contexts_before = position / config.query_growth_every;
    table.push_back(static_cast<float>(1 + config.query_growth * std::log(1.0 + contexts_before)));
  }
  return table;
}

}  // namespace snapmla
