// The BF16 decode kernel as numbers: tile shapes, the shared-memory plan, the barriers.
//
// A CTA serves 64 query rows of a request and walks its pages one by one. A page is 72 KB, so shared memory
// holds little more than three of them, and the time from a freed buffer to the next use of it (load, QK,
// softmax, PV) is what limits the kernel. Two things buy buffer space: more than half of Q lives in registers
// of the QK warpgroup (latent dims 0-255 and RoPE, 80 registers a thread), and pages are kept as halves of
// 256 latent dims, which come and go one by one, in a ring of five: 2.5 pages.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "cuda/decode/work.h"
#include "cuda/device/ring.h"
#include "snapmla/format.h"

namespace snapmla::cuda_ops::bf16 {

inline constexpr int kThreads = 512;               ///< four warpgroups
inline constexpr int kScoreWarps = 4;              ///< warpgroup 0: QK and softmax
inline constexpr int kValueWarps = 8;              ///< warpgroups 1 and 2: PV, 256 dims each
inline constexpr int kValueDims = kLatentDim / 2;  ///< dims a PV warpgroup owns: a half
inline constexpr int kScoreRegisters = 168;        ///< 168 + 2 * 160 + 24 = 512 = 65,536 / 128
inline constexpr int kValueRegisters = 160;
inline constexpr int kLoadRegisters = 24;

// A tile is a chunk of 64 dims: 64 rows (query rows or tokens) of 128 bytes, 128B-swizzled.
inline constexpr int kChunkDims = 64;
inline constexpr int kHalfChunks = kValueDims / kChunkDims;  ///< 4
inline constexpr int kStepsAChunk = 4;                       ///< of K = 16 dims, or 16 tokens
inline constexpr int kHalfSteps = kHalfChunks * kStepsAChunk;
inline constexpr int kRegisterSteps = kHalfSteps + kStepsAChunk;  ///< of Q in registers: first half, RoPE
inline constexpr std::uint32_t kStepBytes = 32;                   ///< 16 dims along a tile row
inline constexpr std::uint32_t kChunkBytes = 64 * 128;
inline constexpr std::uint32_t kHalfBytes = kHalfChunks * kChunkBytes;

inline constexpr int kNumHalves = 5;   ///< ring of halves
inline constexpr int kNumRopes = 2;    ///< ring of RoPE chunks: free again as soon as QK is done
inline constexpr int kNumWeights = 2;  ///< P tiles

enum Barrier : std::uint32_t {
  kHalfFull,                            ///< a half loaded: of a page, or the first of Q
  kHalfEmpty = kHalfFull + kNumHalves,  ///< PV is done with it (Q: it is in registers)
  kRopeFull = kHalfEmpty + kNumHalves,  ///< a RoPE chunk loaded: of a page, or of Q
  kRopeEmpty = kRopeFull + kNumRopes,   ///< QK is done with it (Q: it is in registers)
  kQueryFull = kRopeEmpty + kNumRopes,  ///< second half of Q loaded; a kRopeEmpty says when it may be
  kWeightsFull,                         ///< P and the factors of its rows published
  kWeightsEmpty = kWeightsFull + kNumWeights,
  kSecondTurn = kWeightsEmpty + kNumWeights,  ///< the first PV warpgroup is about to leave the tensor core
  kSumsFull = kSecondTurn + kNumWeights,      ///< 1 / row sums of an item published
  kSumsEmpty,
  kNumBarriers
};

/// Byte offsets in shared memory; swizzled tiles first, on 1,024-byte borders.
struct Shared {
  static constexpr std::uint32_t kQuery = 0;  ///< second half of Q
  static constexpr std::uint32_t kHalves = kQuery + kHalfBytes;
  static constexpr std::uint32_t kRopes = kHalves + kNumHalves * kHalfBytes;
  static constexpr std::uint32_t kWeights = kRopes + kNumRopes * kChunkBytes;
  static constexpr std::uint32_t kKeeps = kWeights + kNumWeights * kChunkBytes;     ///< [P tile][64 rows]
  static constexpr std::uint32_t kInverses = kKeeps + kNumWeights * kTileRows * 4;  ///< [64 rows]
  static constexpr std::uint32_t kBarriers = kInverses + kTileRows * 4;
  static constexpr std::uint32_t kBytes = kBarriers + kNumBarriers * 8;
};
static_assert(kChunkBytes % 1024 == 0 && Shared::kHalves % 1024 == 0 && Shared::kBarriers % 8 == 0);
static_assert(Shared::kBytes <= 232448, "227 KB of shared memory a CTA on Hopper");
static_assert(kScoreRegisters + 2 * kValueRegisters + kLoadRegisters <= 65536 / 128);

// Where things are, by count. An item that has pages puts, ahead of its first page, the first half of Q into
// the ring of halves and the RoPE chunk of Q into the ring of RoPE chunks.
struct Count {
  std::uint32_t queries = 0;  ///< items with pages before this one
  std::uint32_t pages = 0;    ///< pages before this one, over all items

  SNAPMLA_HOST_DEVICE constexpr std::uint32_t query_half() const { return queries + 2 * pages; }
  SNAPMLA_HOST_DEVICE constexpr std::uint32_t query_rope() const { return queries + pages; }
  SNAPMLA_HOST_DEVICE constexpr std::uint32_t half(int which) const {
    return queries + 2 * pages + 1 + static_cast<std::uint32_t>(which);
  }
  SNAPMLA_HOST_DEVICE constexpr std::uint32_t rope() const { return queries + pages + 1; }
};

using HalfRing = Ring<kNumHalves>;
using RopeRing = Ring<kNumRopes>;
using WeightsRing = Ring<kNumWeights>;

/// What the kernel is told, beside the tensor maps.
struct Args : Work {
  bool has_pages;  ///< the cache has any
};

}  // namespace snapmla::cuda_ops::bf16
