// Products of weights that stream through shared memory with rows of tokens, as numbers: tile shapes, the shared-memory plan, who
// does which piece of work. The experts (experts.cu) and the projections with e4m3 weights (linear_e4m3.cu) are made of
// them.
//
// A product is y[token][row] = sum_k x[token][k] weight[row][k]. Weights are the M side (64 rows a tile) and tokens the N
// side, so that one token costs no more than 8 and all weights pass through shared memory once. A CTA works on two weight
// tiles at once, 128 rows in all. A stage of its ring is 128 bytes of each weight row, 64 of K for bf16 and 128 for e4m3:
// 16 KB of weights and the tokens' part. Whatever the width of a token tile, the sum of an output runs over K in the same
// order, 16 by 16, so a token's bits do not depend on it.
//
// e4m3 weights become the bf16 numbers that they stand for (core/plain_ops.h) in the registers of the warpgroup that
// multiplies, which hands them to the tensor core from there. Two warpgroups share the rows of the weights, and each
// multiplies its 64 with all tokens of the tile; with bf16 weights, where a second warpgroup is there only for more than 128
// tokens, the two share the tokens. Integer shifts in place of the conversion by way of f16 cost 3 to 18 % of a product, one
// warpgroup in place of two nothing at 16 and 64 tokens and 5 to 19 % above (bench/results/fp8-weights-h100.csv): what
// bounds wide tiles is L2, which every CTA asks for the tokens as well, at 64 tokens as many bytes as of weights
// (docs/whole-models.md).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>

#include "core/host_device.h"
#include "core/plain_ops.h"

namespace snapmla::cuda_ops::product {

inline constexpr int kTileRows = 64;  ///< M of a product
inline constexpr std::uint32_t kRowBytes =
    128;  ///< of a stage: of a weight row, and of a token's row in a panel
inline constexpr std::uint32_t kStepBytes = 32;  ///< K = 16 of bf16
inline constexpr int kPanelDims = 64;            ///< K of a panel of tokens, 128 bytes of bf16
inline constexpr int kStepsAPanel = kPanelDims / 16;
inline constexpr std::uint32_t kWeightTileBytes = kTileRows * kRowBytes;
inline constexpr std::uint32_t kSharedBytes = 232448;  ///< 227 KB, what a CTA can have on Hopper

/// The kinds of weights: how much of K a stage's 128 bytes of a row are, and how many warpgroups multiply.
struct Bf16Weights {
  static constexpr int kDims = 64;
  static constexpr int groups(int width) { return width > 128 ? 2 : 1; }
};
struct E4m3Weights {
  static constexpr int kDims = 128;
  static constexpr int groups(int /*width*/) { return 2; }
};
static_assert(E4m3Weights::kDims == kWeightBlock, "a stage of a weight tile has one scale");

/// Widths of token tiles, by the kind of weights. More tokens with e4m3 ones would not leave registers for the fragments. Clusters of
/// two CTAs that shared the tokens of experts by multicast took 36 to 44 % more time in decoding and gained 10 % in one
/// prefill of four (bench/results/experts-variants-h100.csv).
inline constexpr std::array<int, 5> kBf16Widths{16, 64, 128, 192, 256};
inline constexpr std::array<int, 4> kE4m3Widths{16, 64, 128, 192};

/// Token tiles of a matrix with `likely` tokens.
inline int tiles_of(double likely, int width) {
  return std::max(1, static_cast<int>(std::ceil(likely / width)));
}

/// The width that asks least of L2, which bounds wide tiles: a tile asks for the rows of its weights, 128 a CTA, and of its tokens.
inline int tile_width(double likely, std::span<const int> widths) {
  const auto rows = [likely](int width) { return tiles_of(likely, width) * (2 * kTileRows + width); };
  return *std::min_element(widths.begin(), widths.end(), [&](int a, int b) { return rows(a) < rows(b); });
}

/// Up to a tile's width of rows of x that lie side by side, and the matrix of the stack that they meet.
struct TokenTile {
  int expert;
  int first;
  int count;
};

/// Tiles of kTokens tokens. More than 128 are two products side by side: a product's N is at most 128 here. With bf16 weights they
/// take two warpgroups, whose sums, two tiles each, would not fit in the registers of one.
template <class WeightKind, int kTokens, std::uint32_t kMostBytes = kSharedBytes>
struct Shape {
  using Weights = WeightKind;
  static constexpr int kWidth = kTokens;
  static constexpr int kPanels = Weights::kDims / kPanelDims;
  static constexpr int kGroups = Weights::groups(kWidth);  ///< warpgroups that multiply
  static constexpr int kParts = kWidth > 128 ? 2 : 1;
  static constexpr int kPartTokens = kWidth / kParts;  ///< N of a product
  static constexpr int kBoxRows =
      kWidth >= 128 ? 32 : 8;  ///< tokens a copy; boxes without a token are not copied
  static constexpr int kThreads = kGroups * 128 + 32;  ///< the last warp loads
  static constexpr std::uint32_t kBoxBytes = kBoxRows * kRowBytes;
  static constexpr std::uint32_t kPanelBytes = kWidth * kRowBytes;
  static constexpr std::uint32_t kStageBytes = 2 * kWeightTileBytes + kPanels * kPanelBytes;
  static constexpr std::uint32_t kBarrierRoom = 256;
  static constexpr int kStages = (kMostBytes - kBarrierRoom) / kStageBytes;

  // Byte offsets: of a stage's parts in the stage, of the barriers in shared memory.
  static constexpr std::uint32_t kFirstWeights = 0;
  static constexpr std::uint32_t kSecondWeights = kWeightTileBytes;
  static constexpr std::uint32_t kTokenRows = 2 * kWeightTileBytes;
  static constexpr std::uint32_t kFull = kStages * kStageBytes;  ///< [kStages]: a stage has come
  static constexpr std::uint32_t kEmpty = kFull + kStages * 8;   ///< [kStages]: all have read it
  static constexpr std::uint32_t kBytes = kEmpty + kStages * 8;
  static constexpr std::uint32_t kReaders = kGroups * 4;  ///< warps that a stage's release waits for

  static_assert(kStageBytes % 1024 == 0, "tiles must start where the swizzle does");
  static_assert(kStages >= 3 && kBytes <= kMostBytes);
  static_assert(kBoxBytes % 1024 == 0 && kWidth % kBoxRows == 0 && kBoxRows <= kPartTokens);

  /// Copies of a panel that bring `count` tokens.
  SNAPMLA_HOST_DEVICE static constexpr int boxes(int count) { return (count + kBoxRows - 1) / kBoxRows; }
};

// --- The order of e4m3 codes within a group of 128 ---
//
// A fragment of a product (device/wgmma.cuh) wants of lane 4g + c, for each step of 16, the dims 2c, 2c + 1, 2c + 8 and
// 2c + 9 of row g. So these four lie side by side, and those of the 8 steps one behind the other: a lane has 32 bytes
// of a row's 128, and takes them in two loads. With the tile's 128-byte swizzle the loads of 8 lanes, two rows, fall on
// 8 different groups of banks.

/// Where in its row's group of 128 the code of dimension k goes.
SNAPMLA_HOST_DEVICE constexpr int arranged_place(int k) {
  return 32 * (k % 8 / 2) + 4 * (k / 16) + 2 * (k % 16 / 8) + k % 2;
}

/// And the other way round: the dimension whose code is at a place.
SNAPMLA_HOST_DEVICE constexpr int dim_at_place(int place) {
  return 16 * (place % 32 / 4) + 8 * (place % 4 / 2) + 2 * (place / 32) + place % 2;
}

/// Byte of a row's 128 at which column c's codes of panel `panel` start: 4 steps of 4 codes.
SNAPMLA_HOST_DEVICE constexpr int codes_of_lane(int column, int panel) {
  return 32 * column + 16 * panel;
}

}  // namespace snapmla::cuda_ops::product
