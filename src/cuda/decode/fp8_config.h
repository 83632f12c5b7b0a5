// The FP8 decode kernel as numbers: tile shapes, the shared-memory plan, the barriers. docs/decode-kernel.md
// has the sums behind them.
//
// A CTA serves 64 query rows of a request and walks its tokens in pairs of pages, 128 tokens a step. One
// accumulator chain of the tensor core then runs over 128 tokens at most, and a weight of P shares its range
// with 127 others.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/plan_rule.h"
#include "cuda/decode/work.h"
#include "snapmla/format.h"

namespace snapmla::cuda_ops::fp8 {

inline constexpr int kNumSlots = 2;                 ///< pairs in shared memory
inline constexpr int kThreads = 512;                ///< four warpgroups
inline constexpr int kLoadThread = 384;             ///< first of warpgroup 3
inline constexpr int kScoreWarps = 4;               ///< warpgroup 0: QK and softmax
inline constexpr int kValueWarps = 8;               ///< warpgroups 1 and 2: PV, 256 dims each
inline constexpr int kCleanerWarps = 3;             ///< warpgroup 3 but for the loading warp
inline constexpr int kValueDims = kLatentDim / 2;   ///< dims a PV warpgroup owns
inline constexpr int kNumMTiles = kValueDims / 64;  ///< of 64 dims each
inline constexpr int kScoreRegisters = 120;         ///< 120 + 2 * 184 + 24 = 512 = 65,536 / 128
inline constexpr int kValueRegisters = 184;
inline constexpr int kLoadRegisters = 24;

// A tile row is 128 bytes (128 e4m3 or 64 bf16), 128B-swizzled. A latent row is four such chunks, a RoPE row
// one. The two pages of a slot lie chunk by chunk beside each other, so that one descriptor spans the pair.
inline constexpr int kLatentChunks = 4;
inline constexpr int kChunks = kLatentChunks + 1;
inline constexpr int kRopeChunk = 4;
inline constexpr std::uint32_t kPageChunkBytes = kPageTokens * 128;
inline constexpr std::uint32_t kPairChunkBytes = kPairTokens * 128;
inline constexpr std::uint32_t kQueryChunkBytes = kTileRows * 128;
inline constexpr std::uint32_t kSlotBytes = kChunks * kPairChunkBytes;
inline constexpr std::uint32_t kWeightBytes = kTileRows * kPairTokens;  ///< P of a pair, e4m3
inline constexpr std::uint32_t kScalesBytes = kPairTokens * 4;
inline constexpr std::uint32_t kRowFloatsBytes = kTileRows * 4;

/// What the score warps need of an item: worked out by others while the item before is under way, since between two items
/// everything waits for them (docs/decode-kernel.md).
struct ScoreItem {
  static constexpr std::uint32_t kWords = 0;  ///< request, first, end, partial, alone, unmasked_end; [8] int
  static constexpr std::uint32_t kFactors = 32;  ///< of a row: |softmax_scale| log2(e) q_scale; [64] float
  static constexpr std::uint32_t kSees =
      kFactors + kRowFloatsBytes;  ///< the end of the tokens it sees; [64] int
  static constexpr std::uint32_t kBytes = kSees + kRowFloatsBytes;
};
inline constexpr int kNumItems = 2;  ///< in shared memory: the one under way and the next

enum Barrier : std::uint32_t {
  kQueryFull,                          ///< Q tile loaded
  kQueryEmpty,                         ///< last QK of an item done
  kEvenFull,                           ///< latent chunks 0 and 2 of a slot loaded
  kEvenEmpty = kEvenFull + kNumSlots,  ///< PV holds them in registers
  kOddFull = kEvenEmpty + kNumSlots,   ///< latent chunks 1 and 3
  kOddEmpty = kOddFull + kNumSlots,
  kRopeFull = kOddEmpty + kNumSlots,  ///< RoPE and scales
  kRopeEmpty = kRopeFull + kNumSlots,
  kWeightsFull = kRopeEmpty + kNumSlots,  ///< P and the factors of its rows published
  kWeightsEmpty = kWeightsFull + kNumSlots,
  kTailIssued = kWeightsEmpty + kNumSlots,  ///< an item's last, partly filled pair is on its way
  kTailClean = kTailIssued + kNumSlots,     ///< its unused tokens are zero
  kSumsFull = kTailClean + kNumSlots,       ///< 1 / (448 row sums) of an item published
  kSumsEmpty,
  kItemFull,                           ///< what the score warps need of an item is in shared memory
  kItemEmpty = kItemFull + kNumItems,  ///< they are done with the item
  kNumBarriers = kItemEmpty + kNumItems
};

/// Byte offsets in shared memory; swizzled tiles first, on 1,024-byte borders.
struct Shared {
  static constexpr std::uint32_t kQuery = 0;
  static constexpr std::uint32_t kSlots = kQuery + kChunks * kQueryChunkBytes;
  static constexpr std::uint32_t kWeights = kSlots + kNumSlots * kSlotBytes;
  static constexpr std::uint32_t kScales = kWeights + kNumSlots * kWeightBytes;    ///< [slot][128]
  static constexpr std::uint32_t kKeyScales = kScales + kNumSlots * kScalesBytes;  ///< [score warp][128]
  static constexpr std::uint32_t kValueScales =
      kKeyScales + kScoreWarps * kScalesBytes;                                        ///< [score warp][128]
  static constexpr std::uint32_t kGains = kValueScales + kScoreWarps * kScalesBytes;  ///< [slot][64 rows]
  static constexpr std::uint32_t kKeeps = kGains + kNumSlots * kRowFloatsBytes;       ///< [slot][64 rows]
  static constexpr std::uint32_t kMoved = kKeeps + kNumSlots * kRowFloatsBytes;       ///< [slot][4 warps] int
  static constexpr std::uint32_t kSums = kMoved + kNumSlots * 16;                     ///< [64 rows]
  static constexpr std::uint32_t kBarriers = kSums + kRowFloatsBytes;
  static constexpr std::uint32_t kItems = kBarriers + (kNumBarriers + 1) / 2 * 16;  ///< [2] ScoreItem
  static constexpr std::uint32_t kBytes = kItems + kNumItems * ScoreItem::kBytes;
};
static_assert(Shared::kSlots % 1024 == 0 && Shared::kWeights % 1024 == 0 && kSlotBytes % 1024 == 0);
static_assert(Shared::kGains % 16 == 0 && Shared::kMoved % 16 == 0 && Shared::kBarriers % 8 == 0);
static_assert(Shared::kBytes <= 232448, "227 KB of shared memory a CTA on Hopper");
static_assert(kScoreRegisters + 2 * kValueRegisters + kLoadRegisters <= 65536 / 128);

/// Where a row's factor lies in a table of 64: the four rows that one PV lane needs for two 8-row tiles
/// (8j + 2c + {0, 1} for j = 2i, 2i + 1) beside each other, for 16-byte loads.
SNAPMLA_HOST_DEVICE constexpr int row_place(int row) {
  return (row & ~15) + ((row & 7) >> 1) * 4 + ((row >> 3) & 1) * 2 + (row & 1);
}

/// What the kernel is told, beside the tensor maps.
struct Args : Work {
  const float* q_scale;            ///< [batch, rows]
  const std::uint8_t* scale;       ///< the cache's scale plane
  std::int64_t scale_page_stride;  ///< bytes
};

}  // namespace snapmla::cuda_ops::fp8
