// The products of the experts as numbers: tile shapes, the shared-memory plan, who does which piece of work.
//
// A product is y[token][row] = sum_k x[token][k] weight[row][k] for the tokens of one expert. Weights are the M side
// (64 rows a tile) and tokens the N side, so that one token costs no more than 8 and all weights stream through shared
// memory once. A CTA works on two weight tiles at once, 128 rows in all: gate and up of the same 64 outputs, or two
// neighbours of down. A stage of its ring is 64 of K (128 bytes a row): 16 KB of weights and the tokens' part.
//
// Work is cut into items: a token tile (up to `width` tokens of an expert) times 128 rows. `width` is chosen once a
// call, on the host, from what an expert will likely get. Whatever it is, the sum of an output runs over K in the same
// order, 16 by 16, so a token's bits do not depend on it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace snapmla::cuda_ops::moe {

inline constexpr int kTileRows = 64;    ///< M of a product
inline constexpr int kTileDims = 64;    ///< K of a stage
inline constexpr int kStepsAStage = 4;  ///< of K = 16
inline constexpr std::uint32_t kStepBytes = 32;
inline constexpr std::uint32_t kRowBytes = 2 * kTileDims;
inline constexpr std::uint32_t kWeightTileBytes = kTileRows * kRowBytes;
inline constexpr std::uint32_t kSharedBytes = 232448;  ///< 227 KB, what a CTA can have on Hopper

/// Widths of token tiles. More than 128 tokens take two warpgroups, whose sums would not fit in the registers of one.
/// Clusters of two CTAs that shared their tokens by multicast took 36 to 44 % more time in decoding and gained 10 % in
/// one prefill of four (bench/results/experts-variants-h100.csv).
inline constexpr std::array<int, 5> kWidths{16, 64, 128, 192, 256};

/// Tokens that an expert will hardly exceed where chance alone decides (in one of 700 cases), if `tokens` tokens choose `top_k` of
/// `choices` experts each.
inline double likely_tokens(std::int64_t tokens, std::int64_t top_k, std::int64_t choices) {
  const double mean = static_cast<double>(tokens * top_k) / static_cast<double>(choices);
  return std::min(static_cast<double>(tokens), mean + 3 * std::sqrt(mean));
}

/// Token tiles of an expert with `likely` tokens.
inline int tiles_of(double likely, int width) {
  return std::max(1, static_cast<int>(std::ceil(likely / width)));
}

/// The width that asks least of L2, which bounds wide tiles: a tile asks for the rows of its weights, 128 a CTA, and of its tokens.
inline int tile_width(double likely) {
  const auto rows = [likely](int width) { return tiles_of(likely, width) * (2 * kTileRows + width); };
  return *std::min_element(kWidths.begin(), kWidths.end(), [&](int a, int b) { return rows(a) < rows(b); });
}

/// No routing of `pairs` pairs (a token and one expert of its choice) makes more tiles: the full ones hold `width`
/// pairs each, and an expert has one that is not full.
constexpr std::int64_t most_tiles(std::int64_t pairs, std::int64_t experts, std::int64_t width) {
  return std::min(pairs, experts) + pairs / width;
}

/// Up to `width` pairs of one expert, which lie side by side in the gathered order.
struct TokenTile {
  int expert;
  int first;  ///< place of the first pair
  int count;
};

template <int kTokens>
struct Shape {
  static constexpr int kWidth = kTokens;
  static constexpr int kGroups = kWidth > 128 ? 2 : 1;   ///< warpgroups that multiply
  static constexpr int kGroupTokens = kWidth / kGroups;  ///< N of a product
  static constexpr int kBoxRows =
      kWidth >= 128 ? 32 : 8;  ///< tokens a copy; boxes without a token are not copied
  static constexpr int kThreads = kGroups * 128 + 32;  ///< the last warp loads
  static constexpr std::uint32_t kBoxBytes = kBoxRows * kRowBytes;
  static constexpr std::uint32_t kStageBytes = 2 * kWeightTileBytes + kWidth * kRowBytes;
  static constexpr std::uint32_t kBarrierRoom = 256;
  static constexpr int kStages = (kSharedBytes - kBarrierRoom) / kStageBytes;

  // Byte offsets: of a stage's parts in the stage, of the barriers in shared memory.
  static constexpr std::uint32_t kFirstWeights = 0;
  static constexpr std::uint32_t kSecondWeights = kWeightTileBytes;
  static constexpr std::uint32_t kTokenRows = 2 * kWeightTileBytes;
  static constexpr std::uint32_t kFull = kStages * kStageBytes;  ///< [kStages]: a stage has come
  static constexpr std::uint32_t kEmpty = kFull + kStages * 8;   ///< [kStages]: all have read it
  static constexpr std::uint32_t kBytes = kEmpty + kStages * 8;
  static constexpr std::uint32_t kReaders = kGroups * 4;  ///< warps that a stage's release waits for

  static_assert(kStageBytes % 1024 == 0, "tiles must start where the swizzle does");
  static_assert(kStages >= 4 && kBytes <= kSharedBytes);
  static_assert(kBoxBytes % 1024 == 0 && kWidth % kBoxRows == 0 && kBoxRows <= kGroupTokens);

  /// Copies that bring `count` tokens.
  SNAPMLA_HOST_DEVICE static constexpr int boxes(int count) { return (count + kBoxRows - 1) / kBoxRows; }
};

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
