// The stages of warpgroups 1 and 2: O^T += V^T P^T of a pair of pages, 256 dims each, and the result's way to
// memory. Formulas: fp8_score_stages.cuh; the order of tokens and dims in registers: layout.cuh.
#pragma once

#include <cstddef>

#include "cuda/decode/fp8_load_stages.cuh"
#include "cuda/device/wgmma.cuh"

namespace snapmla::cuda_ops::fp8 {

/// The ldmatrix side of PV for one lane: where its rows of V lie.
struct ValueLane {
  std::uint32_t s_row;    ///< row `lane` of slot 0's first chunk of this warpgroup
  std::uint32_t unit[2];  ///< swizzled byte offset of the warp's 16 dims, in either half of a chunk
};

/// Fragments of V^T for m-tile `mt` (64 dims) and 32 tokens, still as two-dim columns.
__device__ __forceinline__ void load_values(std::uint32_t (&fragment)[4], const ValueLane& lane,
                                            std::uint32_t slot, int mt, int k) {
  load_matrices_transposed(fragment, lane.s_row + slot * kSlotBytes + (mt / 2) * kPairChunkBytes +
                                         k * 32 * 128 + lane.unit[mt % 2]);
}

/// Even dims to rows g, odd dims to rows g + 8, tokens in the order P has them (layout.cuh).
__device__ __forceinline__ void part_dims(std::uint32_t (&f)[4]) {
  const std::uint32_t r[4] = {f[0], f[1], f[2], f[3]};
  f[0] = pick_bytes<kPickEvenBytes>(r[0], r[1]);
  f[1] = pick_bytes<kPickOddBytes>(r[0], r[1]);
  f[2] = pick_bytes<kPickEvenBytes>(r[2], r[3]);
  f[3] = pick_bytes<kPickOddBytes>(r[2], r[3]);
  pin(f);
}

/// O *= keep, for the rows whose reference has moved: rare.
__device__ __forceinline__ void rescale(float (&out)[kNumMTiles][32], std::uint32_t s_base,
                                        std::uint32_t slot, int c) {
  const int4 moved = load_shared<int4>(s_base + Shared::kMoved + slot * 16);
  if ((moved.x | moved.y | moved.z | moved.w) == 0) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // the 16 rows of score warp i
    if ((i == 0 ? moved.x : i == 1 ? moved.y : i == 2 ? moved.z : moved.w) == 0) continue;
    const float4 keep =
        load_shared<float4>(s_base + Shared::kKeeps + slot * kRowFloatsBytes + 64 * i + 16 * c);
#pragma unroll
    for (int mt = 0; mt < kNumMTiles; ++mt) {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        out[mt][8 * i + e] *= e < 4 ? (e % 2 == 0 ? keep.x : keep.y) : (e % 2 == 0 ? keep.z : keep.w);
    }
  }
}

/// The gains of half a lane's sixteen rows: float4 i holds rows 16i + 2c, + 1, + 8, + 9.
struct Gains {
  float4 rows[2];
};

__device__ __forceinline__ Gains load_gains(std::uint32_t s_base, std::uint32_t slot, int half, int c) {
  const std::uint32_t s_gains = s_base + Shared::kGains + slot * kRowFloatsBytes + 128 * half + 16 * c;
  return {{load_shared<float4>(s_gains), load_shared<float4>(s_gains + 64)}};
}

/// O += gain * T for half the rows of an m-tile: the promotion to fp32.
__device__ __forceinline__ void promote(float (&out)[32], const float (&sum)[32], const Gains& gains,
                                        int half) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float4 gain = gains.rows[i];
      const int at = 16 * half + 8 * i + e;
      out[at] =
          fmaf(sum[at], e < 4 ? (e % 2 == 0 ? gain.x : gain.y) : (e % 2 == 0 ? gain.z : gain.w), out[at]);
    }
  }
}

/// How results leave the kernel.
enum class Stored { kBf16, kF32, kHalf };

/// O / sum to the tile's rows, the first of which begins at `to` (dims of this lane first). A lane holds, of rows
/// 8j + 2c and 8j + 2c + 1, dims 2g, 2g + 1 of each m-tile. All offsets are constants: this code runs once an item,
/// and what it waits for is its own instructions.
template <Stored kStored>
__device__ __forceinline__ void store_tile(const float (&out)[kNumMTiles][32], std::uint32_t s_sums, int rows,
                                           int c, std::byte* to) {
  constexpr int kElementBytes = kStored == Stored::kF32 ? 4 : 2;
  to += 2 * c * kLatentDim * kElementBytes;
  rows -= 2 * c;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 inverse = load_shared<float4>(s_sums + 64 * i + 16 * c);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = 16 * i + 8 * (e / 2) + e % 2;
      if (row >= rows) continue;
      const float factor = e == 0 ? inverse.x : e == 1 ? inverse.y : e == 2 ? inverse.z : inverse.w;
#pragma unroll
      for (int mt = 0; mt < kNumMTiles; ++mt) {
        const int d = 8 * i + 4 * (e / 2) + e % 2;
        const float even = out[mt][d] * factor;
        const float odd = out[mt][d + 2] * factor;
        std::byte* const at = to + (row * kLatentDim + 64 * mt) * kElementBytes;
        if constexpr (kStored == Stored::kF32) {
          *reinterpret_cast<float2*>(at) = make_float2(even, odd);
        } else {
          *reinterpret_cast<std::uint32_t*>(at) =
              kStored == Stored::kBf16 ? pack_bf16(even, odd) : pack_half(even, odd);
        }
      }
    }
  }
}

/// The item's result to where it belongs: the output, or half a partial in units of the item's scale, which is in
/// the factors already.
__device__ __forceinline__ void store_out(const float (&out)[kNumMTiles][32], const Args& args,
                                          const Item& item, std::uint32_t s_base, int first_row,
                                          int first_dim, int c) {
  c = opaque(c);
  const std::uint32_t s_sums = s_base + Shared::kSums;
  const int rows = args.rows - first_row;
  const std::int64_t block = item.alone ? item.request : item.partial;
  const std::int64_t element = (block * args.rows + first_row) * kLatentDim + opaque(first_dim);
  if (!item.alone) {
    store_tile<Stored::kHalf>(out, s_sums, rows, c, static_cast<std::byte*>(args.partial_out) + 2 * element);
  } else if (args.out_f32) {
    store_tile<Stored::kF32>(out, s_sums, rows, c, static_cast<std::byte*>(args.out) + 4 * element);
  } else {
    store_tile<Stored::kBf16>(out, s_sums, rows, c, static_cast<std::byte*>(args.out) + 2 * element);
  }
}

}  // namespace snapmla::cuda_ops::fp8
