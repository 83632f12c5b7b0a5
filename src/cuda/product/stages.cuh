// The stages of a product: how they are loaded, and how they are multiplied. What runs through them is the kernel's own
// (`At`): the experts' goes from item to item and never drains, a projection's has one item.
//
//     loading thread    weights, tokens -> stage                                                  full[stage]
//     warpgroups        4 steps of K = 16, 8 for e4m3, sums in registers                          empty[stage]
//
// At: slot and phase of the ring, stage (128 bytes of a weight's row) of the item, tile, first_row; more(), next().
#pragma once

#include <cstdint>

#include "cuda/device/layout.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/wgmma.cuh"
#include "cuda/product/config.h"

namespace snapmla::cuda_ops::product {

struct ProductMaps {
  CUtensorMap first;  ///< weights [matrices, rows, K], boxes of 64 rows
  CUtensorMap second;
  CUtensorMap tokens;  ///< [1, tokens, K], boxes of kBoxRows
};

/// Makes the ring's barriers; __syncthreads() must follow.
template <class S>
__device__ __forceinline__ void init_ring(std::uint32_t s_base) {
  for (int i = 0; i < S::kStages; ++i) {
    barrier_init(s_base + S::kFull + 8 * i, 1);
    barrier_init(s_base + S::kEmpty + 8 * i, S::kReaders);
  }
  fence_barrier_init();
}

// --- Loading ---

/// The rows of two weight tiles, `second_row` rows apart.
template <class S, class At>
__device__ __forceinline__ void load_weights(const At& at, const ProductMaps& maps, int second_row,
                                             CachePolicy policy, std::uint32_t s_base) {
  const std::uint32_t s_stage = s_base + at.slot * S::kStageBytes;
  const std::uint32_t full = s_base + S::kFull + 8 * at.slot;
  const int column = at.stage * S::Weights::kDims;
  arrive_expect(full, 2 * kWeightTileBytes + S::kPanels * S::boxes(at.tile.count) * S::kBoxBytes);
  copy_tile(s_stage + S::kFirstWeights, &maps.first, column, at.first_row, at.tile.expert, full, policy);
  copy_tile(s_stage + S::kSecondWeights, &maps.second, column, at.first_row + second_row, at.tile.expert,
            full, policy);
}

template <class S, class At>
__device__ __forceinline__ void load_tokens(const At& at, const ProductMaps& maps, std::uint32_t s_base) {
  const std::uint32_t s_tokens = s_base + at.slot * S::kStageBytes + S::kTokenRows;
  const std::uint32_t full = s_base + S::kFull + 8 * at.slot;
  const int boxes = S::boxes(at.tile.count);
#pragma unroll
  for (int panel = 0; panel < S::kPanels; ++panel) {
    for (int i = 0; i < boxes; ++i)
      copy_tile(s_tokens + panel * S::kPanelBytes + i * S::kBoxBytes, &maps.tokens,
                at.stage * S::Weights::kDims + panel * kPanelDims, at.tile.first + i * S::kBoxRows, 0, full);
  }
}

/// All stages, one after the other. With kWeightsEarly the weights of as many as the ring holds are asked for before the grid
/// ahead has ended; only the tokens wait for it.
template <class S, bool kWeightsEarly, class At>
__device__ __forceinline__ void run_loads(At at, const ProductMaps& maps, int second_row, CachePolicy policy,
                                          std::uint32_t s_base) {
  if constexpr (kWeightsEarly) {
    At tokens = at;
    int early = 0;
    for (; early < S::kStages && at.more(); ++early, at.next())
      load_weights<S>(at, maps, second_row, policy, s_base);
    wait_for_previous_grid();
    for (; early > 0; --early, tokens.next()) load_tokens<S>(tokens, maps, s_base);
  }
  for (; at.more(); at.next()) {
    wait(s_base + S::kEmpty + 8 * at.slot, at.phase ^ 1);
    load_weights<S>(at, maps, second_row, policy, s_base);
    load_tokens<S>(at, maps, s_base);
  }
}

// --- Multiplying ---

/// The warp has read a stage: tells the loading thread, which may refill it.
template <class S>
__device__ __forceinline__ void release(std::uint32_t s_base, std::uint32_t slot, int lane) {
  arrive_warp(s_base + S::kEmpty + 8 * slot, lane);
}

/// Tokens of a stage's panel from those of part `part` on, as B.
template <class S>
__device__ __forceinline__ Descriptor panel_tokens(std::uint32_t s_stage, int panel, int part) {
  return k_major(s_stage + S::kTokenRows + panel * S::kPanelBytes + part * S::kPartTokens * kRowBytes, 1024,
                 Swizzle::k128B);
}

/// The sums of one item, both weight tiles with the tokens of part `group`, from `at` up to stage `end`; moves `at` to the last of
/// these.
template <class S, class At>
__device__ __forceinline__ void multiply_bf16(float (&first)[S::kPartTokens / 2],
                                              float (&second)[S::kPartTokens / 2], At& at, int end,
                                              std::uint32_t s_base, int group, int lane) {
  std::uint32_t before = at.slot;  // slot of the stage before
  bool any = false;
#pragma unroll 1
  for (;;) {
    const std::uint32_t s_stage = s_base + at.slot * S::kStageBytes;
    const Descriptor weights = k_major(s_stage, 1024, Swizzle::k128B);
    const Descriptor tokens = panel_tokens<S>(s_stage, 0, group);
    wait(s_base + S::kFull + 8 * at.slot, at.phase);
    mma_fence();
#pragma unroll
    for (int k = 0; k < kStepsAPanel; ++k) {
      const Descriptor step = tokens.advance(k * kStepBytes);
      mma_bf16(first, weights.advance(S::kFirstWeights + k * kStepBytes), step, true);
      mma_bf16(second, weights.advance(S::kSecondWeights + k * kStepBytes), step, true);
    }
    mma_commit();
    mma_wait<1>();
    if (any) release<S>(s_base, before, lane);
    any = true;
    before = at.slot;
    if (at.stage + 1 == end) break;
    at.next();
  }
  mma_wait<0>();
  pin(first);
  pin(second);
  release<S>(s_base, before, lane);
}

/// bf16(e4m3 * scale) of the four codes of a word, in their order: two words of two.
__device__ __forceinline__ uint2 widen_codes(std::uint32_t codes, float scale) {
  const float4 x = unpack_e4m3(codes);
  return make_uint2(pack_bf16(x.x * scale, x.y * scale), pack_bf16(x.z * scale, x.w * scale));
}

/// Where a lane finds the two rows of its fragments, g and g + 8 of its warp's 16.
struct LaneRows {
  std::uint32_t tile[2];  ///< S::kFirstWeights or S::kSecondWeights
  std::uint32_t row[2];   ///< of the tile
  const float* scale[2];  ///< of the tile's rows, one a stage
};

/// A group's rows are a tile of their own: the first of group 0, the second of group 1.
template <class S>
__device__ __forceinline__ LaneRows rows_of_tile(const float* first_scale, const float* second_scale,
                                                 int group, int warp, int lane) {
  const std::uint32_t tile = group == 0 ? S::kFirstWeights : S::kSecondWeights;
  const float* scale = group == 0 ? first_scale : second_scale;
  const auto row = static_cast<std::uint32_t>(16 * warp + lane / 4);
  return {{tile, tile}, {row, row + 8}, {scale, scale}};
}

/// A group's rows are half of both tiles: row g of a fragment is of the first, row g + 8 the same row of the second, so
/// that a lane has the sums of both.
template <class S>
__device__ __forceinline__ LaneRows rows_of_both_tiles(const float* first_scale, const float* second_scale,
                                                       int group, int warp, int lane) {
  const auto row = static_cast<std::uint32_t>(32 * group + 8 * warp + lane / 4);
  return {{S::kFirstWeights, S::kSecondWeights}, {row, row}, {first_scale, second_scale}};
}

/// Four steps of fragments.
using PanelFragments = std::uint32_t[kStepsAPanel][4];

__device__ __forceinline__ void widen_panel(PanelFragments& a, std::uint32_t s_stage, int panel,
                                            const LaneRows& rows, const float (&scale)[2], int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto byte = static_cast<std::uint32_t>(codes_of_lane(lane % 4, panel));
    const int4 codes = load_shared<int4>(s_stage + rows.tile[half] + tile_offset_128b(rows.row[half], byte));
    const int words[kStepsAPanel] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int k = 0; k < kStepsAPanel; ++k) {
      const uint2 wide = widen_codes(static_cast<std::uint32_t>(words[k]), scale[half]);
      a[k][half] = wide.x;
      a[k][2 + half] = wide.y;
    }
  }
}

/// The products of a panel with all parts of the tokens.
template <class S>
__device__ __forceinline__ void multiply_panel(float (&sum)[S::kParts][S::kPartTokens / 2],
                                               const PanelFragments& a, std::uint32_t s_stage, int panel) {
  mma_fence();
#pragma unroll
  for (int k = 0; k < kStepsAPanel; ++k) {
#pragma unroll
    for (int part = 0; part < S::kParts; ++part)
      mma_bf16(sum[part], a[k], panel_tokens<S>(s_stage, panel, part).advance(k * kStepBytes), true);
  }
  mma_commit();
}

/// The sums of one item, the group's rows of e4m3 weights with all tokens, from `at` up to stage `end`; moves `at` to the last of
/// these. The fragments of a panel are made while the products of the panel before run.
template <class S, class At>
__device__ __forceinline__ void multiply_e4m3(float (&sum)[S::kParts][S::kPartTokens / 2], At& at, int end,
                                              const LaneRows& rows, std::uint32_t s_base, int lane) {
  PanelFragments even;  // of panel 0
  PanelFragments odd;   // of panel 1
  float scale[2];
  const auto wait_for_stage = [&] {
    scale[0] = __ldg(rows.scale[0] + at.stage);
    scale[1] = __ldg(rows.scale[1] + at.stage);
    wait(s_base + S::kFull + 8 * at.slot, at.phase);
  };
  wait_for_stage();
  widen_panel(even, s_base + at.slot * S::kStageBytes, 0, rows, scale, lane);
#pragma unroll 1
  for (;;) {
    const std::uint32_t slot = at.slot;
    const std::uint32_t s_stage = s_base + slot * S::kStageBytes;
    const bool last = at.stage + 1 == end;
    multiply_panel<S>(sum, even, s_stage, 0);
    widen_panel(odd, s_stage, 1, rows, scale, lane);
    mma_wait<0>();
    multiply_panel<S>(sum, odd, s_stage, 1);
    if (!last) {
      at.next();
      wait_for_stage();
      widen_panel(even, s_base + at.slot * S::kStageBytes, 0, rows, scale, lane);
    }
    mma_wait<0>();
    release<S>(s_base, slot, lane);
    if (last) break;
  }
#pragma unroll
  for (int part = 0; part < S::kParts; ++part) pin(sum[part]);
}

}  // namespace snapmla::cuda_ops::product
