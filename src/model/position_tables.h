// Tables over positions: computed once in fp64, rounded to f32.
#pragma once

#include <vector>

#include "model/config.h"

namespace snapmla {

/// cos and sin of every position, [positions][64]: 32 cosines, then 32 sines, YaRN and its cos/sin factor
/// applied. (transformers: f32 angles.)
std::vector<float> rope_table(const ModelConfig& config, int positions);

/// What queries at each position are multiplied by, [positions]; empty if nothing.
std::vector<float> query_growth_table(const ModelConfig& config, int positions);

}  // namespace snapmla
