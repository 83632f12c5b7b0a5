// The stages of the BF16 decode kernel, each the work of one role; bf16_kernel.cuh strings them together.
//
// Per query row and page, in powers of two:
//
//     x[t] = logit_factor * q . k[t]      P[t] = bf16(2^(x[t] - reference))      sum += 2^(x[t] - reference)
//     O   += P . V                        on the tensor core, in fp32
//
// The reference of a row is the largest x of the page that set it. It moves when a later x exceeds it by
// kMaxGain, which rescales O and sum by keep = 2^(old - new). bf16 has fp32's range, so a reference that is
// behind costs P no precision; the bound keeps O and the sum in range.
#pragma once

#include "cuda/decode/bf16_config.h"
#include "cuda/device/layout.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/wgmma.cuh"

namespace snapmla::cuda_ops::bf16 {

inline constexpr float kMaxGain = 8.0F;  ///< rare already; safe up to about 80, with 2^20 tokens in a sum
inline constexpr unsigned kAllLanes = ~0U;

__device__ __forceinline__ std::uint32_t barrier(std::uint32_t s_base, std::uint32_t which) {
  return s_base + Shared::kBarriers + 8 * which;
}

/// A work item: tokens [first, end) of a request.
struct Item {
  int request;
  int first;
  int end;
  int partial;

  __device__ int pages() const { return (end - first + kPageTokens - 1) / kPageTokens; }
};

__device__ __forceinline__ Item load_item(const Args& args, int index) {
  const int4 words = reinterpret_cast<const int4*>(args.work_items)[index];
  return {words.x, words.y, words.z, words.w};
}

/// Where the rows of an item belong: block `block` of `rows` rows, in the outputs or in the partials.
struct Destination {
  bool alone;          ///< the only item of its request: its result is final
  std::int64_t block;  ///< request, or partial
};

__device__ __forceinline__ Destination destination_of(const Args& args, const Item& item) {
  const bool alone = args.split_offsets[item.request + 1] - args.split_offsets[item.request] == 1;
  return {alone, alone ? item.request : item.partial};
}

// --- Loading ---

/// Four chunks of latent dims from `column`, of 64 rows from `row` of plane `plane`.
__device__ __forceinline__ void load_half(std::uint32_t s_half, const CUtensorMap& map, int column, int row,
                                          int plane, std::uint32_t full, CachePolicy policy) {
  arrive_expect(full, kHalfBytes);
  for (int i = 0; i < kHalfChunks; ++i)
    copy_tile(s_half + i * kChunkBytes, &map, column + i * kChunkDims, row, plane, full, policy);
}

/// A half into the next buffer of its ring.
__device__ __forceinline__ void load_ring_half(std::uint32_t s_base, std::uint32_t use,
                                               const CUtensorMap& map, int column, int row, int plane,
                                               CachePolicy policy) {
  const HalfRing ring(use);
  wait(barrier(s_base, kHalfEmpty + ring.slot), ring.freed);
  load_half(s_base + Shared::kHalves + ring.slot * kHalfBytes, map, column, row, plane,
            barrier(s_base, kHalfFull + ring.slot), policy);
}

/// A RoPE chunk into the next buffer of its ring.
__device__ __forceinline__ void load_ring_rope(std::uint32_t s_base, std::uint32_t use,
                                               const CUtensorMap& map, int row, int plane,
                                               CachePolicy policy) {
  const RopeRing ring(use);
  const std::uint32_t full = barrier(s_base, kRopeFull + ring.slot);
  wait(barrier(s_base, kRopeEmpty + ring.slot), ring.freed);
  arrive_expect(full, kChunkBytes);
  copy_tile(s_base + Shared::kRopes + ring.slot * kChunkBytes, &map, 0, row, plane, full, policy);
}

// --- QK and softmax ---

/// The first half and the RoPE chunk of Q, as A fragments: [step][register].
using QueryFragments = std::uint32_t[kRegisterSteps][4];

/// Offset in a tile of what this lane hands to ldmatrix and stmatrix for step k (16 columns): lanes 0-7 give
/// the warp's rows g of the first 8 columns, 8-15 rows g + 8, 16-31 the same of the next 8 columns. That is
/// the order of an A fragment, and of a pair of accumulator tiles.
__device__ __forceinline__ std::uint32_t fragment_offset(int warp, int lane, int k) {
  const std::uint32_t row = warp * 16 + lane % 16;
  return tile_offset_128b(row, k * kStepBytes + lane / 16 * 16);
}

/// Copies the part of Q that lives in registers out of the rings.
__device__ __forceinline__ void take_query(QueryFragments& query, std::uint32_t s_base, const Count& count,
                                           int warp, int lane) {
  const HalfRing half(count.query_half());
  const RopeRing rope(count.query_rope());
  wait(barrier(s_base, kHalfFull + half.slot), half.full);
#pragma unroll
  for (int k = 0; k < kHalfSteps; ++k)
    load_matrices(query[k], s_base + Shared::kHalves + half.slot * kHalfBytes +
                                k / kStepsAChunk * kChunkBytes +
                                fragment_offset(warp, lane, k % kStepsAChunk));
  wait(barrier(s_base, kRopeFull + rope.slot), rope.full);
#pragma unroll
  for (int k = 0; k < kStepsAChunk; ++k)
    load_matrices(query[kHalfSteps + k],
                  s_base + Shared::kRopes + rope.slot * kChunkBytes + fragment_offset(warp, lane, k));
}

/// Gives the buffers of that part back. To be called when products that use it have been issued: before that,
/// the loads into registers may be under way still, and a refill would overtake them.
__device__ __forceinline__ void release_query(std::uint32_t s_base, const Count& count, int lane) {
  fence_async_shared();
  arrive_warp(barrier(s_base, kHalfEmpty + HalfRing(count.query_half()).slot), lane);
  arrive_warp(barrier(s_base, kRopeEmpty + RopeRing(count.query_rope()).slot), lane);
}

/// acc = Q . K of a page, 64 rows x 64 tokens, in two groups: the second is the last kStepsAChunk products,
/// 128 of the 1,152 cycles.
__device__ __forceinline__ void issue_scores(float (&acc)[32], const QueryFragments& query,
                                             std::uint32_t s_base, const Count& count) {
  const HalfRing first(count.half(0));
  const HalfRing second(count.half(1));
  const RopeRing rope(count.rope());
  const Descriptor halves = k_major(s_base + Shared::kHalves, 1024, Swizzle::k128B);
  const Descriptor ropes = k_major(s_base + Shared::kRopes, 1024, Swizzle::k128B);
  const Descriptor rest = k_major(s_base + Shared::kQuery, 1024, Swizzle::k128B);
  const auto offset = [](int k) { return k / kStepsAChunk * kChunkBytes + k % kStepsAChunk * kStepBytes; };
  wait(barrier(s_base, kHalfFull + first.slot), first.full);
  pin(acc);
  mma_fence();
#pragma unroll
  for (int k = 0; k < kHalfSteps; ++k)
    mma_bf16(acc, query[k], halves.advance(first.slot * kHalfBytes + offset(k)), k != 0);
  wait(barrier(s_base, kRopeFull + rope.slot), rope.full);
  mma_fence();  // after every wait: else ptxas injects one, and says so (C7519)
#pragma unroll
  for (int k = 0; k < kStepsAChunk; ++k)
    mma_bf16(acc, query[kHalfSteps + k], ropes.advance(rope.slot * kChunkBytes + offset(k)), true);
  wait(barrier(s_base, kHalfFull + second.slot), second.full);
  mma_fence();
#pragma unroll
  for (int k = 0; k < kHalfSteps; ++k) {
    mma_bf16(acc, rest.advance(offset(k)), halves.advance(second.slot * kHalfBytes + offset(k)), true);
    if (k == kHalfSteps - kStepsAChunk - 1 || k == kHalfSteps - 1) mma_commit();
  }
}

/// The two query rows a lane of warpgroup 0 works on, g and g + 8 of its warp's 16.
struct RowPair {
  int sees[2];         ///< end of the tokens that each row sees, within the item
  float reference[2];  ///< -inf before the first token
  float sum[2];        ///< this lane's share
};

/// acc -> x in place, and the largest x of each row. kMasked: tokens from `visible` on count as -inf,
/// whatever their logit came to.
template <bool kMasked>
__device__ __forceinline__ void scale_scores(float (&acc)[32], float logit_factor, const int (&visible)[2],
                                             int c, float (&largest)[2]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = i / 2 % 2;
    float x = acc[i] * logit_factor;
    if (kMasked && 8 * (i / 4) + 2 * c + i % 2 >= visible[r]) x = -INFINITY;
    acc[i] = x;
    largest[r] = fmaxf(largest[r], x);
  }
}

/// Place of the pair of factors of rows g and g + 8 of a warp, in a table of 64 rows.
__device__ __forceinline__ std::uint32_t pair_place(int warp, int lane) {
  return (warp * 8 + lane / 4) * 8;
}

/// Moves the references that have been outgrown, and publishes what becomes of O: one vote a page, and
/// shuffles only where a row of the warp moves.
__device__ __forceinline__ void move_references(RowPair& row, float (&largest)[2], std::uint32_t s_keeps,
                                                int warp, int lane) {
  float keep[2] = {1, 1};
  const bool outgrown = largest[0] > row.reference[0] + kMaxGain || largest[1] > row.reference[1] + kMaxGain;
  if (__any_sync(kAllLanes, outgrown)) {
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
  }
  if (lane % 4 == 0) {
    store_shared(s_keeps + pair_place(warp, lane), keep[0]);
    store_shared(s_keeps + pair_place(warp, lane) + 4, keep[1]);
  }
}

/// P = bf16(2^(x - reference)) into its tile, the unrounded weights into the sums.
__device__ __forceinline__ void store_weights(const float (&x)[32], RowPair& row, std::uint32_t s_weights,
                                              int warp, int lane) {
  float reference[2];
#pragma unroll
  for (int r = 0; r < 2; ++r)  // a row that has seen nothing has no reference: 2^(-inf - 0) = 0
    reference[r] = row.reference[r] == -INFINITY ? 0 : row.reference[r];
#pragma unroll
  for (int k = 0; k < kPageTokens / 16; ++k) {
    std::uint32_t packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows g, g + 8 of the first 8 tokens, then of the next 8
      const int at = 8 * k + 2 * i;
      const float p0 = exp2_fast(x[at] - reference[i % 2]);
      const float p1 = exp2_fast(x[at + 1] - reference[i % 2]);
      row.sum[i % 2] += p0 + p1;
      packed[i] = pack_bf16(p0, p1);
    }
    store_matrices(s_weights + fragment_offset(warp, lane, k), packed);
  }
}

// --- PV ---

/// Zeroes the latents of a half past the last token: their weights are 0, but 0 * NaN is not. QK is done with
/// them.
__device__ __forceinline__ void clean_tail(std::uint32_t s_half, int tokens, int which, int thread) {
  for (int i = 0; i < kHalfChunks; ++i) {
    const std::uint32_t s_end = s_half + (i + 1) * kChunkBytes;
    for (std::uint32_t s_unit = s_half + i * kChunkBytes + tokens * 128 + thread * 16; s_unit < s_end;
         s_unit += 128 * 16)
      store_shared(s_unit, float4{});
  }
  fence_async_shared();
  sync_threads(1 + which, 128);
}

/// O *= keep, for the rows whose reference has moved: rare after the first page.
__device__ __forceinline__ void rescale(float (&out)[2][64], std::uint32_t s_keeps, int warp, int lane) {
  const float2 keep = load_shared<float2>(s_keeps + pair_place(warp, lane));
  if (!__any_sync(kAllLanes, keep.x != 1 || keep.y != 1)) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i / 64][i % 64] *= i / 2 % 2 == 0 ? keep.x : keep.y;
}

/// O += P . V, 64 rows x 256 dims as two products of 128 each, 64 tokens of 4 steps: the last step in a group
/// of its own. (N = 256 in one product would do with less shared memory traffic, but ptxas takes no
/// instruction that needs more registers than the kernel is launched with.)
__device__ __forceinline__ void issue_values(float (&out)[2][64], std::uint32_t s_weights,
                                             std::uint32_t s_half) {
  const Descriptor weights = k_major(s_weights, 1024, Swizzle::k128B);
  const Descriptor values = mn_major_128b(s_half, kChunkBytes);
  constexpr int kSteps = kPageTokens / 16;
  pin(out[0]);
  pin(out[1]);
  mma_fence();
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const Descriptor tokens = values.advance(k * 16 * 128);
    mma_bf16_rows(out[0], weights.advance(k * kStepBytes), tokens, true);
    mma_bf16_rows(out[1], weights.advance(k * kStepBytes), tokens.advance(2 * kChunkBytes), true);
    if (k >= kSteps - 2) mma_commit();
  }
}

/// O / sum to where the item's result belongs. A lane holds dims 8j + 2c and 8j + 2c + 1 of rows g and g + 8.
/// bf16: neighbouring lanes exchange halves of two tiles, so that a store is 8 bytes a lane and a quad fills
/// a 32-byte sector.
__device__ __forceinline__ void store_out(const float (&out)[2][64], const Args& args, const Destination& to,
                                          std::uint32_t s_base, int first_row, int first_dim, int warp,
                                          int lane) {
  const float2 inverse = load_shared<float2>(s_base + Shared::kInverses + pair_place(warp, lane));
  const int c = lane % 4;
  const int odd = c % 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float factor = r == 0 ? inverse.x : inverse.y;
    const auto value = [&](int j, int e) { return out[j / 16][j % 16 * 4 + 2 * r + e] * factor; };
    const int row = first_row + warp * 16 + lane / 4 + 8 * r;
    const bool real = row < args.rows;
    const std::int64_t at = (to.block * args.rows + row) * kLatentDim + first_dim;
    if (to.alone && !args.out_f32) {
      auto* g_out = static_cast<std::uint16_t*>(args.out) + at + 8 * odd + 2 * (c - odd);
#pragma unroll
      for (int j = 0; j < 32; j += 2) {
        const std::uint32_t low = pack_bf16(value(j, 0), value(j, 1));
        const std::uint32_t high = pack_bf16(value(j + 1, 0), value(j + 1, 1));
        const std::uint32_t other = __shfl_xor_sync(kAllLanes, odd != 0 ? low : high, 1);
        if (real)
          *reinterpret_cast<uint2*>(g_out + 8 * j) =
              odd != 0 ? make_uint2(other, high) : make_uint2(low, other);
      }
    } else {
      float* g_out = static_cast<float*>(to.alone ? args.out : args.partial_out) + at + 2 * c;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        if (real) *reinterpret_cast<float2*>(g_out + 8 * j) = make_float2(value(j, 0), value(j, 1));
      }
    }
  }
}

}  // namespace snapmla::cuda_ops::bf16
