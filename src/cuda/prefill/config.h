// The prefill kernel as numbers: tile shapes, the shared-memory plan, the barriers, and which CTA does what.
//
// Head dims come in chunks of 64, padded with zeros by the copy engine: a Shape is a pair of numbers of chunks, of the
// keys' part without RoPE and of the values. Keys come in tiles of 128, or of 64 where values are wide: there O takes
// 128 registers a thread, and S must leave room for it.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "cuda/device/layout.cuh"
#include "cuda/device/ring.h"

namespace snapmla::cuda_ops::prefill {

inline constexpr int kThreads = 384;         ///< three warpgroups: two of queries, one that loads
inline constexpr int kGroupRows = 64;        ///< queries a warpgroup
inline constexpr int kQueryRows = 128;       ///< queries a CTA
inline constexpr int kQueryWarps = 8;        ///< arrivals that free a buffer
inline constexpr int kQueryRegisters = 240;  ///< 2 * 240 + 24 = 504 of 65,536 / 128 = 512
inline constexpr int kLoadRegisters = 24;

inline constexpr int kChunkDims = 64;            ///< a tile row of 128 bytes
inline constexpr int kStepsAChunk = 4;           ///< of K = 16 dims
inline constexpr std::uint32_t kStepBytes = 32;  ///< 16 dims along a tile row
inline constexpr int kStages = 2;                ///< buffers of keys, and of values
using StageRing = Ring<kStages>;

enum Barrier : std::uint32_t {
  kQueriesFull,
  kKeysFull,                         ///< a tile's keys loaded
  kKeysEmpty = kKeysFull + kStages,  ///< S is done with them
  kValuesFull = kKeysEmpty + kStages,
  kValuesEmpty = kValuesFull + kStages,
  kNumBarriers = kValuesEmpty + kStages
};

/// Hardware barriers on which the two warpgroups of queries take turns: kTurn + which.
inline constexpr int kTurn = 1;

/// Tiles of a pair of head dims. Offsets in shared memory are in bytes; tiles are chunks of rows of 128 bytes, on
/// 1,024-byte borders.
template <int kNopeChunksOf, int kValueChunksOf>
struct Shape {
  static constexpr int kNopeChunks = kNopeChunksOf;
  static constexpr int kValueChunks = kValueChunksOf;
  static constexpr int kScoreChunks = kNopeChunks + 1;  ///< RoPE is the last
  static constexpr int kKeys = kValueChunks <= 2 ? 128 : 64;

  static constexpr std::uint32_t kQueryChunkBytes = kQueryRows * kTileRowBytes;
  static constexpr std::uint32_t kKeyChunkBytes = kKeys * kTileRowBytes;
  static constexpr std::uint32_t kQueriesBytes = kScoreChunks * kQueryChunkBytes;
  static constexpr std::uint32_t kKeysBytes = kScoreChunks * kKeyChunkBytes;
  static constexpr std::uint32_t kValuesBytes = kValueChunks * kKeyChunkBytes;

  static constexpr std::uint32_t kQueries = 0;
  static constexpr std::uint32_t kKeysAt = kQueries + kQueriesBytes;
  static constexpr std::uint32_t kValuesAt = kKeysAt + kStages * kKeysBytes;
  static constexpr std::uint32_t kBarriers = kValuesAt + kStages * kValuesBytes;
  static constexpr std::uint32_t kBytes = kBarriers + kNumBarriers * 8;

  /// O as products of 128 dims, or of 64 where there are no more.
  static constexpr int kParts = (kValueChunks + 1) / 2;
  static constexpr int kPartChunks = kValueChunks / kParts;
  static constexpr int kPartRegisters = kPartChunks * kChunkDims / 2;

  static_assert(kValueChunks == 1 || kValueChunks % 2 == 0, "O comes in parts of 128 dims");
  static_assert(kQueryChunkBytes % kTileGroupBytes == 0 && kKeyChunkBytes % kTileGroupBytes == 0);
  static_assert(kBytes <= 232448, "227 KB of shared memory a CTA on Hopper");
};
static_assert(2 * kQueryRegisters + kLoadRegisters <= 65536 / 128);

/// The queries of a CTA: tile `tile` of head `head`.
struct Place {
  int tile;
  int head;
};

/// The order of CTAs. Causal tiles grow with their number, so the last come first: the longest do not start when the
/// others are done. Heads go through in groups whose keys and values fit in L2 together, since every tile of a head
/// reads them again.
struct Order {
  int tiles;  ///< query tiles a head
  int heads;
  int heads_a_group;

  SNAPMLA_HOST_DEVICE constexpr Place at(int block) const {
    const int first_head = block / (tiles * heads_a_group) * heads_a_group;
    const int left = heads - first_head;
    const int width = left < heads_a_group ? left : heads_a_group;
    const int in_group = block - first_head * tiles;
    return {tiles - 1 - in_group / width, first_head + in_group % width};
  }
};

/// Heads whose keys and values of `head_bytes` each fit in L2 together, with room for what else passes through.
constexpr int heads_that_fit(std::int64_t head_bytes, int heads) {
  constexpr std::int64_t kL2Share = 32 << 20;  // of 50 MB
  const std::int64_t fit = kL2Share / (head_bytes > 0 ? head_bytes : 1);
  return static_cast<int>(fit < 1 ? 1 : fit > heads ? heads : fit);
}

/// The key tiles that query tile `tile` sees: those up to its last query's own position. `first_position` is that of
/// query 0.
constexpr SNAPMLA_HOST_DEVICE int key_tiles(int first_position, int tokens, int tile, int keys_a_tile) {
  const int end = (tile + 1) * kQueryRows;
  return (first_position + (end < tokens ? end : tokens) - 1) / keys_a_tile + 1;
}

/// What the kernel is told, beside the tensor maps.
struct Args {
  Order order;
  int tokens;
  int first_position;  ///< seq_len - tokens
  float logit_factor;  ///< softmax_scale * log2(e)
  std::uint16_t* out;  ///< bf16
  std::int64_t out_token_stride;
  std::int64_t out_head_stride;
  int v_dim;
};

}  // namespace snapmla::cuda_ops::prefill
