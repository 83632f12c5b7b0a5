// The pairs (a token and one expert of its choice) in the order of their experts: where each lies, the rows of x in
// that order, and the list of token tiles.
//
// Grid: (experts, slices) blocks; one more expert stands for all identities, whose pairs have no place. Every block
// counts the pairs of all experts for itself, which spares a second kernel; then it walks through the pairs again in
// windows, finds its expert's in order (a prefix sum, so nothing depends on the order of threads) and copies their
// rows. The slices of an expert share the copying.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/experts/config.h"
#include "snapmla/tensor.h"

namespace snapmla::cuda_ops::moe {

inline constexpr int kGroupThreads = 512;
inline constexpr int kPairsAThread = 4;
inline constexpr int kWindow = kGroupThreads * kPairsAThread;
inline constexpr int kNoPlace = -1;  ///< of a pair whose expert is an identity

struct GroupArgs {
  const std::int32_t* expert;  ///< [tokens, top_k]
  std::int64_t expert_stride;
  const Bf16* x;
  std::int64_t x_stride;
  int top_k;
  int pairs;
  int experts;
  int width;
  int row_vectors;  ///< 16-byte units of a row of x
  int* num_tiles;
  int4* tiles;      ///< TokenTile, 0
  int* place;       ///< [pairs]
  uint4* gathered;  ///< [places][row_vectors]
};

__device__ __forceinline__ int expert_of(const GroupArgs& args, int pair) {
  return args.expert[pair / args.top_k * args.expert_stride + pair % args.top_k];
}

/// What comes before an expert, and how many tiles there are in all.
struct Before {
  int pairs;
  int tiles;
  int all_tiles;
};

__device__ __forceinline__ Before before_expert(const GroupArgs& args, const int* s_count, int expert) {
  Before sum{};
  for (int e = lane_index(); e < args.experts; e += kWarpLanes) {
    const int pairs = s_count[e];
    const int tiles = (pairs + args.width - 1) / args.width;
    sum.all_tiles += tiles;
    if (e >= expert) continue;
    sum.pairs += pairs;
    sum.tiles += tiles;
  }
  return {warp_sum(sum.pairs), warp_sum(sum.tiles), warp_sum(sum.all_tiles)};
}

/// One row by one warp.
__device__ __forceinline__ void copy_row(const GroupArgs& args, int token, int place) {
  constexpr int kAtOnce = 8;  // loads in flight
  const auto* from = reinterpret_cast<const uint4*>(args.x + token * args.x_stride);
  uint4* to = args.gathered + static_cast<std::int64_t>(place) * args.row_vectors;
  for (int first = lane_index(); first < args.row_vectors; first += kAtOnce * kWarpLanes) {
    uint4 moved[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kWarpLanes < args.row_vectors) moved[i] = from[first + i * kWarpLanes];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kWarpLanes < args.row_vectors) to[first + i * kWarpLanes] = moved[i];
    }
  }
}

__global__ void __launch_bounds__(kGroupThreads) group_kernel(const __grid_constant__ GroupArgs args) {
  extern __shared__ int s_count[];  // [experts]
  __shared__ int s_warp[kWarpLanes];
  __shared__ int s_token[kWindow];
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < args.experts; e += kGroupThreads) s_count[e] = 0;
  __syncthreads();
  wait_for_previous_grid();
  launch_next_grid();
  for (int pair = thread; pair < args.pairs; pair += kGroupThreads) {
    const int e = expert_of(args, pair);
    if (e < args.experts) atomicAdd(s_count + e, 1);
  }
  __syncthreads();

  const int expert = static_cast<int>(blockIdx.x);
  const int slice = static_cast<int>(blockIdx.y);
  const bool identity = expert == args.experts;
  const Before before = before_expert(args, s_count, expert);
  const int count = identity ? 0 : s_count[expert];
  if (slice == 0) {
    if (expert == 0 && thread == 0) *args.num_tiles = before.all_tiles;
    for (int first = thread * args.width; first < count; first += kGroupThreads * args.width)
      args.tiles[before.tiles + first / args.width] =
          make_int4(expert, before.pairs + first, min(args.width, count - first), 0);
  }
  if (identity ? slice > 0 : count == 0) return;

  int place = before.pairs;  // of the window's first
  for (int window = 0; window < args.pairs; window += kWindow) {
    const int first = window + thread * kPairsAThread;
    unsigned mine = 0;  // bit i: pair first + i belongs here
#pragma unroll
    for (int i = 0; i < kPairsAThread; ++i) {
      if (first + i >= args.pairs) continue;
      const int e = expert_of(args, first + i);
      if (identity ? e >= expert : e == expert) mine |= 1U << i;
    }
    const ScanResult found = block_scan(__popc(mine), s_warp);
    int rank = found.before;
#pragma unroll
    for (int i = 0; i < kPairsAThread; ++i) {
      if ((mine >> i & 1U) == 0) continue;
      if (slice == 0) args.place[first + i] = identity ? kNoPlace : place + rank;
      s_token[rank++] = (first + i) / args.top_k;
    }
    __syncthreads();
    if (!identity) {
      constexpr int kWarps = kGroupThreads / kWarpLanes;
      for (int i = slice * kWarps + warp_index(); i < found.total; i += static_cast<int>(gridDim.y) * kWarps)
        copy_row(args, s_token[i], place + i);
    }
    __syncthreads();
    place += found.total;
  }
}

}  // namespace snapmla::cuda_ops::moe
