// How the work of the experts is cut: token tiles and items. What an item is made of: product/config.h.
//
// An item is a token tile (up to `width` tokens of an expert) times 128 rows of its weights: gate and up of the same 64
// outputs, or two neighbouring tiles of down. `width` is chosen once a call, on the host, from what an expert will likely
// get.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "core/host_device.h"
#include "cuda/product/config.h"

namespace snapmla::cuda_ops::moe {

using product::TokenTile;

/// Tokens that an expert will hardly exceed where chance alone decides (in one of 700 cases), if `tokens` tokens choose `top_k` of
/// `choices` experts each.
inline double likely_tokens(std::int64_t tokens, std::int64_t top_k, std::int64_t choices) {
  const double mean = static_cast<double>(tokens * top_k) / static_cast<double>(choices);
  return std::min(static_cast<double>(tokens), mean + 3 * std::sqrt(mean));
}

/// No routing of `pairs` pairs (a token and one expert of its choice) makes more tiles: the full ones hold `width`
/// pairs each, and an expert has one that is not full.
constexpr std::int64_t most_tiles(std::int64_t pairs, std::int64_t experts, std::int64_t width) {
  return std::min(pairs, experts) + pairs / width;
}

/// Item `item` of num_tiles * row_sets: token tiles vary fastest, so that the tiles of one expert are in work at the
/// same time.
struct ItemPlace {
  int tile;
  int first_row;
};
SNAPMLA_HOST_DEVICE constexpr ItemPlace place_of_item(int item, int num_tiles, int outputs) {
  return {item % num_tiles, item / num_tiles * outputs};
}
SNAPMLA_HOST_DEVICE constexpr int num_row_sets(int rows, int outputs) {
  return (rows + outputs - 1) / outputs;
}

}  // namespace snapmla::cuda_ops::moe
