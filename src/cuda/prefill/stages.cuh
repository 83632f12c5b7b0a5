// The stages of the prefill kernel, each a step of one role; kernel.cuh strings them together.
//
// Per query and tile of keys, in powers of two, f = softmax_scale * log2(e), S = q . k:
//
//     p[t] = 2^(f S[t] - reference)      sum += p[t]      O += bf16(p) . V
//
// on the tensor core in fp32; the result is bf16(O / sum). The reference of a query is the largest f S of the tile
// that set it. It moves when a later f S exceeds it by kMaxGain, which rescales O and sum by keep = 2^(old - new).
// bf16 has fp32's range, so a reference that is behind costs p no precision; the bound keeps O and sum in range.
//
// What a query's bits depend on: its own row, and the keys up to its position, in tiles that start at position 0. A
// tile that it does not see leaves its state as it is: no move, p = 0. That holds for finite values; a NaN or an
// infinity in v reaches the queries before it that share a tile with it, since 0 * NaN is not 0.
#pragma once

#include <cuda.h>

#include "cuda/device/layout.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/prefill/config.h"

namespace snapmla::cuda_ops::prefill {

inline constexpr float kMaxGain = 8.0F;  ///< rare already; safe up to about 80, with 2^20 keys in a sum

template <class Shape>
__device__ __forceinline__ std::uint32_t barrier(std::uint32_t s_base, std::uint32_t which) {
  return s_base + Shape::kBarriers + 8 * which;
}

// --- Loading ---

/// Tensor maps, in constant memory: `const __grid_constant__ Maps`.
struct Maps {
  CUtensorMap q_nope;  ///< box of kQueryRows rows
  CUtensorMap q_rope;
  CUtensorMap k_nope;  ///< boxes of Shape::kKeys rows
  CUtensorMap k_rope;
  CUtensorMap v;
};

/// Chunks 0 to kChunks - 1 of rows from `row` of head `head`.
template <int kChunks>
__device__ __forceinline__ void load_chunks(std::uint32_t s_dst, std::uint32_t chunk_bytes,
                                            const CUtensorMap& map, int row, int head, std::uint32_t full) {
#pragma unroll
  for (int i = 0; i < kChunks; ++i) copy_tile(s_dst + i * chunk_bytes, &map, i * kChunkDims, row, head, full);
}

template <class Shape>
__device__ __forceinline__ void load_queries(std::uint32_t s_base, const Maps& maps, int row, int head) {
  const std::uint32_t full = barrier<Shape>(s_base, kQueriesFull);
  const std::uint32_t s_queries = s_base + Shape::kQueries;
  arrive_expect(full, Shape::kQueriesBytes);
  load_chunks<Shape::kNopeChunks>(s_queries, Shape::kQueryChunkBytes, maps.q_nope, row, head, full);
  copy_tile(s_queries + Shape::kNopeChunks * Shape::kQueryChunkBytes, &maps.q_rope, 0, row, head, full);
}

/// The keys of tile `tile`. Its RoPE chunk is the same for all heads.
template <class Shape>
__device__ __forceinline__ void load_keys(std::uint32_t s_base, const Maps& maps, int tile, int head) {
  const StageRing ring(tile);
  const std::uint32_t full = barrier<Shape>(s_base, kKeysFull + ring.slot);
  const std::uint32_t s_keys = s_base + Shape::kKeysAt + ring.slot * Shape::kKeysBytes;
  const int row = tile * Shape::kKeys;
  wait(barrier<Shape>(s_base, kKeysEmpty + ring.slot), ring.freed);
  arrive_expect(full, Shape::kKeysBytes);
  load_chunks<Shape::kNopeChunks>(s_keys, Shape::kKeyChunkBytes, maps.k_nope, row, head, full);
  copy_tile(s_keys + Shape::kNopeChunks * Shape::kKeyChunkBytes, &maps.k_rope, 0, row, 0, full);
}

template <class Shape>
__device__ __forceinline__ void load_values(std::uint32_t s_base, const Maps& maps, int tile, int head) {
  const StageRing ring(tile);
  const std::uint32_t full = barrier<Shape>(s_base, kValuesFull + ring.slot);
  wait(barrier<Shape>(s_base, kValuesEmpty + ring.slot), ring.freed);
  arrive_expect(full, Shape::kValuesBytes);
  load_chunks<Shape::kValueChunks>(s_base + Shape::kValuesAt + ring.slot * Shape::kValuesBytes,
                                   Shape::kKeyChunkBytes, maps.v, tile * Shape::kKeys, head, full);
}

// --- S = Q . K^T ---

/// S of a warpgroup's 64 queries and a tile, and then p: element 4j + e of lane 4g + c belongs to row g + 8 (e / 2)
/// of its warp's 16, key 8j + 2c + e % 2.
template <class Shape>
using Scores = float[Shape::kKeys / 2];

/// Starts S of tile `tile`, a group of its own. Its keys have arrived.
template <class Shape>
__device__ __forceinline__ void issue_scores(Scores<Shape>& scores, std::uint32_t s_base, int tile,
                                             int which) {
  const StageRing ring(tile);
  const Descriptor queries =
      k_major(s_base + Shape::kQueries + which * kGroupRows * kTileRowBytes, kTileGroupBytes, Swizzle::k128B);
  const Descriptor keys =
      k_major(s_base + Shape::kKeysAt + ring.slot * Shape::kKeysBytes, kTileGroupBytes, Swizzle::k128B);
  pin(scores);
  mma_fence();
#pragma unroll
  for (int k = 0; k < Shape::kScoreChunks * kStepsAChunk; ++k) {
    const std::uint32_t chunk = k / kStepsAChunk;
    const std::uint32_t step = k % kStepsAChunk * kStepBytes;
    mma_bf16(scores, queries.advance(chunk * Shape::kQueryChunkBytes + step),
             keys.advance(chunk * Shape::kKeyChunkBytes + step), k != 0);
  }
  mma_commit();
}

// --- Softmax ---

/// The two queries a lane works on, rows g and g + 8 of its warp's 16.
struct RowPair {
  int position[2];
  float reference[2];  ///< -inf before the first tile
  float sum[2];        ///< this lane's share
};

/// Keys that a row does not see, its own position being the last it does, count as -inf. `first_key`: the tile's.
template <class Shape>
__device__ __forceinline__ void mask_scores(Scores<Shape>& scores, const RowPair& row, int first_key, int c) {
  const int last[2] = {row.position[0] - first_key - 2 * c, row.position[1] - first_key - 2 * c};
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 2; ++i) {
    if (i / 4 * 8 + i % 2 > last[i / 2 % 2]) scores[i] = -INFINITY;
  }
}

/// Moves the references that have been outgrown. keep: what becomes of O. Returns whether a row of the warp has moved.
template <class Shape>
__device__ __forceinline__ bool move_references(const Scores<Shape>& scores, RowPair& row, float logit_factor,
                                                float (&keep)[2]) {
  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 2; ++i) largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], scores[i]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] *= logit_factor;
    keep[r] = 1;
  }
  const bool outgrown = largest[0] > row.reference[0] + kMaxGain || largest[1] > row.reference[1] + kMaxGain;
  if (!__any_sync(kAllLanes, outgrown)) return false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], 2));
    if (largest[r] > row.reference[r] + kMaxGain) {
      keep[r] = exp2_fast(row.reference[r] - largest[r]);  // 0 for the first
      row.reference[r] = largest[r];
      row.sum[r] *= keep[r];
    }
  }
  return true;
}

/// S -> p in place, and into the sums.
template <class Shape>
__device__ __forceinline__ void weigh(Scores<Shape>& scores, RowPair& row, float logit_factor) {
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 2; i += 2) {
    const int r = i / 2 % 2;
    scores[i] = exp2_fast(fmaf(scores[i], logit_factor, -row.reference[r]));
    scores[i + 1] = exp2_fast(fmaf(scores[i + 1], logit_factor, -row.reference[r]));
    row.sum[r] += scores[i] + scores[i + 1];
  }
}

// --- O += P . V ---

/// bf16(p) as A fragments: [step of 16 keys][register].
template <class Shape>
using Weights = std::uint32_t[Shape::kKeys / 16][4];

/// O, in parts: element 4j + e of a part belongs to row g + 8 (e / 2), dim 8j + 2c + e % 2 of the part.
template <class Shape>
using Out = float[Shape::kParts][Shape::kPartRegisters];

/// A pair of accumulator tiles is laid out as an A fragment is.
template <class Shape>
__device__ __forceinline__ void pack_weights(Weights<Shape>& weights, const Scores<Shape>& scores) {
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 4; ++i)
    weights[i / 4][i % 4] = pack_bf16(scores[2 * i], scores[2 * i + 1]);
}

/// Ties O and P to this place: behind a wait for the products on them, or ahead of new ones.
template <class Shape>
__device__ __forceinline__ void pin_values(Out<Shape>& out, Weights<Shape>& weights) {
#pragma unroll
  for (auto& part : out) pin(part);
#pragma unroll
  for (auto& step : weights) pin(step);
}

/// Starts O += P . V of tile `tile`, a group of its own. Its values have arrived.
template <class Shape>
__device__ __forceinline__ void issue_values(Out<Shape>& out, Weights<Shape>& weights, std::uint32_t s_base,
                                             int tile) {
  constexpr std::uint32_t kStepRowsBytes = 16 * kTileRowBytes;
  constexpr std::uint32_t kPartBytes = Shape::kPartChunks * Shape::kKeyChunkBytes;
  const StageRing ring(tile);
  const Descriptor values =
      mn_major_128b(s_base + Shape::kValuesAt + ring.slot * Shape::kValuesBytes, Shape::kKeyChunkBytes);
  pin_values<Shape>(out, weights);
  mma_fence();
#pragma unroll
  for (int k = 0; k < Shape::kKeys / 16; ++k) {
#pragma unroll
    for (int part = 0; part < Shape::kParts; ++part)
      mma_bf16_rows(out[part], weights[k], values.advance(k * kStepRowsBytes + part * kPartBytes), true);
  }
  mma_commit();
}

template <class Shape>
__device__ __forceinline__ void rescale(Out<Shape>& out, const float (&keep)[2]) {
#pragma unroll
  for (int part = 0; part < Shape::kParts; ++part) {
#pragma unroll
    for (int i = 0; i < Shape::kPartRegisters; ++i) out[part][i] *= keep[i / 2 % 2];
  }
}

/// bf16(O / sum) of the warp's queries from `first_query` on, those that exist. Neighbouring lanes exchange halves of
/// two tiles of 8 dims, so that a store is 8 bytes a lane and a quad fills a 32-byte sector.
template <class Shape>
__device__ __forceinline__ void store_out(const Out<Shape>& out, const RowPair& row, const Args& args,
                                          int first_query, int head) {
  const int lane = lane_index();
  const int c = lane % 4;
  const int odd = c % 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = row.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const float inverse = 1 / sum;
    const int query = first_query + lane / 4 + 8 * r;
    std::uint16_t* g_out = args.out + query * args.out_token_stride + head * args.out_head_stride;
#pragma unroll
    for (int part = 0; part < Shape::kParts; ++part) {
#pragma unroll
      for (int i = 2 * r; i < Shape::kPartRegisters; i += 8) {
        const float* value = out[part] + i;
        const std::uint32_t low = pack_bf16(value[0] * inverse, value[1] * inverse);
        const std::uint32_t high = pack_bf16(value[4] * inverse, value[5] * inverse);
        const std::uint32_t other = __shfl_xor_sync(kAllLanes, odd != 0 ? low : high, 1);
        const int dim = part * Shape::kPartChunks * kChunkDims + i / 4 * 8 + 8 * odd + 2 * (c - odd);
        if (query < args.tokens && dim < args.v_dim)
          *reinterpret_cast<uint2*>(g_out + dim) =
              odd != 0 ? make_uint2(other, high) : make_uint2(low, other);
      }
    }
  }
}

}  // namespace snapmla::cuda_ops::prefill
