// The two products of the experts, one kernel: gate and up with their activation, and down.
//
// Grid: as many CTAs as SMs, each with most of an SM's shared memory as a ring of stages (product/stages.cuh) that never
// drains: one thread loads, through the ends of items, as far ahead as the ring goes; one or two warpgroups multiply, and
// behind the last stage of an item bring its results to memory, while the ring fills. Nothing else keeps the weights
// coming at the rate of the memory: at 3 TB/s and 1 to 2 us from request to data an SM must have 24 to 48 KB under way all
// the time.
//
// Down starts before gate and up have ended everywhere (device/launch.h): as an SM comes free, its ring fills with
// weights, which depend on nothing, and only the tokens wait. The work list may be read that early, because gate and
// up let nobody start before the kernel that wrote it had ended.
//
// Weights of experts with one token tile are copied once, and not keeping them in L2 saves 4 to 8 %; where an expert has
// several tiles, keeping them saves 6 to 15 % (bench/results/experts-variants-h100.csv).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/experts/config.h"
#include "cuda/product/stages.cuh"
#include "snapmla/tensor.h"

namespace snapmla::cuda_ops::moe {

using product::ProductMaps;

/// The block scales of e4m3 weights: [experts][ceil(rows / 128)][stages].
struct BlockScales {
  const float* data;
  std::int64_t expert_stride;
};

struct ProductArgs {
  const int* num_tiles;
  const int4* tiles;  ///< TokenTile, 0
  int rows;           ///< outputs of an expert
  int row_sets;
  int stages;  ///< of an item: K in units of the weights' kDims, rounded up
  void* out;   ///< [places, rows]
  CachePolicy weights_policy;
  BlockScales first_scales;  ///< of e4m3 weights
  BlockScales second_scales;
};

/// First and second weight tile: gate and up of the same outputs. Result: bf16(silu(gate) * up).
struct GateUp {
  static constexpr int kOutputs = 64;   ///< of an item and CTA
  static constexpr int kSecondRow = 0;  ///< where the second tile starts, from the first
  static constexpr bool kStartsEarly = false;
};
/// Two neighbouring tiles of down. Result: fp32.
struct Down {
  static constexpr int kOutputs = 128;
  static constexpr int kSecondRow = 64;
  static constexpr bool kStartsEarly = true;
};

/// The stages of a CTA, one after the other: all of K for each of its items.
template <class Op, class S>
class Stages {
 public:
  __device__ __forceinline__ explicit Stages(const ProductArgs& args)
      : args_(args), num_tiles_(__ldcg(args.num_tiles)), item_(static_cast<int>(blockIdx.x)) {
    load_item();
  }

  [[nodiscard]] __device__ __forceinline__ bool more() const { return item_ < num_tiles_ * args_.row_sets; }
  __device__ __forceinline__ void next() {
    if (++slot == S::kStages) {
      slot = 0;
      phase ^= 1;
    }
    if (++stage < args_.stages) return;
    stage = 0;
    item_ += static_cast<int>(gridDim.x);
    load_item();
  }

  std::uint32_t slot = 0;   ///< of the ring
  std::uint32_t phase = 0;  ///< parity of the slot's use
  int stage = 0;            ///< of the item
  TokenTile tile{};
  int first_row = 0;

 private:
  __device__ __forceinline__ void load_item() {
    if (!more()) return;
    const ItemPlace place = place_of_item(item_, num_tiles_, Op::kOutputs);
    const int4 words = __ldcg(args_.tiles + place.tile);
    tile = {words.x, words.y, words.z};
    first_row = place.first_row;
  }

  const ProductArgs& args_;
  int num_tiles_;
  int item_;
};

// --- Results ---

/// silu(gate) * up, silu(x) = x / (1 + e^-x): off by a few units of fp32's last place.
__device__ __forceinline__ float activate(float gate, float up) {
  constexpr float kLog2E = 1.44269504F;
  return gate * reciprocal_fast(1 + exp2_fast(-kLog2E * gate)) * up;
}

// A lane 4g + c of a warp holds, of its 16 rows, rows g and g + 8 of tokens 8j + 2c and 8j + 2c + 1. Rows come in
// eights that are all there or all not, as their number is a multiple of 8.

/// Eight outputs of eight tokens of h to [place][output]. A lane has output g of tokens 2c and 2c + 1; they are turned
/// round, so that it has two outputs of token g and a token's 16 bytes lie in four neighbouring lanes.
__device__ __forceinline__ void store_hidden(float h0, float h1, const ProductArgs& args,
                                             const TokenTile& tile, int row, int first_token, int lane) {
  const std::uint32_t pair = transpose_matrix(pack_bf16(h0, h1));
  const int token = first_token + lane / 4;
  if (token >= tile.count || row >= args.rows) return;
  auto* out = static_cast<Bf16*>(args.out) + std::int64_t{tile.first + token} * args.rows;
  *reinterpret_cast<std::uint32_t*>(out + row + 2 * (lane % 4)) = pair;
}

/// The sums of gate and up in registers of their own.
template <int kSums>
__device__ __forceinline__ void store_hidden(const float (&gate)[kSums], const float (&up)[kSums],
                                             const ProductArgs& args, const TokenTile& tile, int row,
                                             int first_token, int lane) {
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    const int token = first_token + 8 * j;
    if (token >= tile.count) break;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = 4 * j + 2 * r;
      store_hidden(activate(gate[at], up[at]), activate(gate[at + 1], up[at + 1]), args, tile, row + 8 * r,
                   token, lane);
    }
  }
}

/// Gate in row g and up in row g + 8 of the same sums (product::rows_of_both_tiles).
template <int kSums>
__device__ __forceinline__ void store_hidden(const float (&sum)[kSums], const ProductArgs& args,
                                             const TokenTile& tile, int row, int first_token, int lane) {
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    const int token = first_token + 8 * j;
    if (token >= tile.count) break;
    store_hidden(activate(sum[4 * j], sum[4 * j + 2]), activate(sum[4 * j + 1], sum[4 * j + 3]), args, tile,
                 row, token, lane);
  }
}

/// The sums to [place][output]: eight lanes fill a sector.
template <int kSums>
__device__ __forceinline__ void store_sums(const float (&sum)[kSums], const ProductArgs& args,
                                           const TokenTile& tile, int row, int first_token, int lane) {
  auto* out = static_cast<float*>(args.out) + row + lane / 4;
#pragma unroll
  for (int j = 0; j < kSums / 4; ++j) {
    if (first_token + 8 * j >= tile.count) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = first_token + 8 * j + 2 * (lane % 4) + i % 2;
      if (token < tile.count && row + 8 * (i / 2) < args.rows)
        out[std::int64_t{tile.first + token} * args.rows + 8 * (i / 2)] = sum[4 * j + i];
    }
  }
}

/// The scales of the weight tile that starts at `row`, one a stage.
__device__ __forceinline__ const float* scales_of(const BlockScales& scales, const ProductArgs& args,
                                                  int expert, int row) {
  return scales.data + expert * scales.expert_stride +
         std::int64_t{row / product::E4m3Weights::kDims} * args.stages;
}

/// An item without tokens for this warpgroup: its stages pass by.
template <class Op, class S>
__device__ __forceinline__ void skip(Stages<Op, S>& at, const ProductArgs& args, std::uint32_t s_base,
                                     int lane) {
  for (;; at.next()) {
    wait(s_base + S::kFull + 8 * at.slot, at.phase);
    product::release<S>(s_base, at.slot, lane);
    if (at.stage + 1 == args.stages) return;
  }
}

/// Items with bf16 weights: a warpgroup has both weight tiles and its part of the tokens.
template <class Op, class S>
__device__ __forceinline__ void run_bf16_products(const ProductArgs& args, std::uint32_t s_base, int group,
                                                  int warp, int lane) {
  const int first_token = group * S::kPartTokens;
  for (Stages<Op, S> at(args); at.more(); at.next()) {
    if (S::kGroups > 1 && at.tile.count <= first_token) {
      skip(at, args, s_base, lane);
      continue;
    }
    float first[S::kPartTokens / 2] = {};
    float second[S::kPartTokens / 2] = {};
    product::multiply_bf16<S>(first, second, at, args.stages, s_base, group, lane);
    const int row = at.first_row + 16 * warp;
    if constexpr (Op::kSecondRow == 0) {
      store_hidden(first, second, args, at.tile, row, first_token, lane);
    } else {
      store_sums(first, args, at.tile, row, first_token, lane);
      store_sums(second, args, at.tile, row + Op::kSecondRow, first_token, lane);
    }
  }
}

/// Items with e4m3 weights: a warpgroup has half of the rows and all tokens.
template <class Op, class S>
__device__ __forceinline__ void run_e4m3_products(const ProductArgs& args, std::uint32_t s_base, int group,
                                                  int warp, int lane) {
  for (Stages<Op, S> at(args); at.more(); at.next()) {
    const float* first_scale = scales_of(args.first_scales, args, at.tile.expert, at.first_row);
    const float* second_scale =
        scales_of(args.second_scales, args, at.tile.expert, at.first_row + Op::kSecondRow);
    float sum[S::kParts][S::kPartTokens / 2] = {};
    if constexpr (Op::kSecondRow == 0) {
      product::multiply_e4m3<S>(sum, at, args.stages,
                                product::rows_of_both_tiles<S>(first_scale, second_scale, group, warp, lane),
                                s_base, lane);
    } else {
      product::multiply_e4m3<S>(sum, at, args.stages,
                                product::rows_of_tile<S>(first_scale, second_scale, group, warp, lane),
                                s_base, lane);
    }
#pragma unroll
    for (int part = 0; part < S::kParts; ++part) {
      const int first_token = part * S::kPartTokens;
      if constexpr (Op::kSecondRow == 0) {
        store_hidden(sum[part], args, at.tile, at.first_row + 32 * group + 8 * warp, first_token, lane);
      } else {
        store_sums(sum[part], args, at.tile, at.first_row + Op::kSecondRow * group + 16 * warp, first_token,
                   lane);
      }
    }
  }
}

template <class Op, class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    product_kernel(const __grid_constant__ ProductArgs args, const __grid_constant__ ProductMaps maps) {
  extern __shared__ __align__(1024) std::uint8_t s_memory[];
  const std::uint32_t s_base = shared_address(s_memory);
  const int warp = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    product::init_ring<S>(s_base);
    prefetch_map(&maps.first);
    prefetch_map(&maps.second);
    prefetch_map(&maps.tokens);
  }
  __syncthreads();
  if (!Op::kStartsEarly) wait_for_previous_grid();
  launch_next_grid();
  if (warp == S::kGroups * 4) {
    if (lane == 0)
      product::run_loads<S, Op::kStartsEarly>(Stages<Op, S>(args), maps, Op::kSecondRow, args.weights_policy,
                                              s_base);
    __syncwarp();
  } else {
    if (Op::kStartsEarly) wait_for_previous_grid();
    if constexpr (std::is_same_v<typename S::Weights, product::E4m3Weights>) {
      run_e4m3_products<Op, S>(args, s_base, warp / 4, warp % 4, lane);
    } else {
      run_bf16_products<Op, S>(args, s_base, warp / 4, warp % 4, lane);
    }
  }
}

}  // namespace snapmla::cuda_ops::moe
