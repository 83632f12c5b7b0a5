// The prefill kernel: causal attention of a chunk of one request, un-absorbed, BF16 in, fp32 sums, P rounded to BF16.
//
// Grid: a CTA for each tile of 128 queries of a head, in the order of Order. 384 threads, one CTA an SM:
//
//     warpgroup 0, 1  64 queries each: S, softmax, O    240 registers    S in 64, O in 64, P in 32 of them
//     warpgroup 2     one thread loads                   24
//
// Shared memory at head dims 128 + 64 and 128: Q 48 KB, two buffers of keys (48 KB) and two of values (32 KB), 208 KB.
//
// Tensor time of a tile of 128 keys at these dims is 768 cycles of S and 512 of O for each warpgroup. Its exponentials
// alone take 512 more, on other units. Two overlaps keep the tensor core busy. Within a warpgroup S of tile j + 1 is
// issued ahead of O of tile j, so that the softmax of j + 1 starts while O of j is being added. Between the two,
// turns: a warpgroup issues both products in one go and then lets the other issue its own, so that one's softmax
// lies behind the other's products.
//
//     tensor core     S j+1 (0)   O j (0)    S j+1 (1)   O j (1)    S j+2 (0)   O j+1 (0)
//     warpgroup 0                 softmax j+1 .......................|
//     warpgroup 1     ............|                      softmax j+1 ..............
//     buffers                                ^ keys j+3 once (1) is done, too, with keys j+1
#pragma once

#include "cuda/prefill/stages.cuh"

namespace snapmla::cuda_ops::prefill {

/// Keys one tile ahead of values, the order in which they come free.
template <class Shape>
__device__ __forceinline__ void run_loads(std::uint32_t s_base, const Maps& maps, const Place& place,
                                          int tiles) {
  load_queries<Shape>(s_base, maps, place.tile * kQueryRows, place.head);
  load_keys<Shape>(s_base, maps, 0, place.head);
#pragma unroll 1  // unrolled, it outgrows its registers
  for (int tile = 1; tile < tiles; ++tile) {
    load_keys<Shape>(s_base, maps, tile, place.head);
    load_values<Shape>(s_base, maps, tile - 1, place.head);
  }
  load_values<Shape>(s_base, maps, tiles - 1, place.head);
}

/// What warpgroup `which` does for its 64 of the queries of a place.
template <class Shape>
__device__ __forceinline__ void run_queries(const Args& args, std::uint32_t s_base, const Place& place,
                                            int tiles, int which) {
  const int warp = warp_index() % 4;
  const int lane = lane_index();
  const int first_query = place.tile * kQueryRows + which * kGroupRows;
  const int first_position = args.first_position + first_query;
  RowPair row{};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    row.position[r] = first_position + warp * 16 + lane / 4 + 8 * r;
    row.reference[r] = -INFINITY;
  }
  Scores<Shape> scores;
  Weights<Shape> weights;
  Out<Shape> out = {};
  float keep[2];
  const auto keys_full = [&](int tile) {
    const StageRing ring(tile);
    wait(barrier<Shape>(s_base, kKeysFull + ring.slot), ring.full);
  };
  const auto values_full = [&](int tile) {
    const StageRing ring(tile);
    wait(barrier<Shape>(s_base, kValuesFull + ring.slot), ring.full);
  };
  // S of a tile is there, and its keys may go
  const auto soften = [&](int tile) {
    pin(scores);
    arrive_warp(barrier<Shape>(s_base, kKeysEmpty + StageRing(tile).slot), lane);
    const int first_key = tile * Shape::kKeys;
    if (first_key + Shape::kKeys - 1 > first_position) mask_scores<Shape>(scores, row, first_key, lane % 4);
    const bool moved = move_references<Shape>(scores, row, args.logit_factor, keep);
    weigh<Shape>(scores, row, args.logit_factor);
    return moved;
  };

  if (which == 1 && tiles > 1) arrive_threads(kTurn, 2 * 128);  // the first turn is the other's
  wait(barrier<Shape>(s_base, kQueriesFull), 0);
  keys_full(0);
  issue_scores<Shape>(scores, s_base, 0, which);
  mma_wait<0>();
  soften(0);
  pack_weights<Shape>(weights, scores);
  for (int tile = 1; tile < tiles; ++tile) {
    keys_full(tile);
    sync_threads(kTurn + which, 2 * 128);
    issue_scores<Shape>(scores, s_base, tile, which);
    values_full(tile - 1);
    issue_values<Shape>(out, weights, s_base, tile - 1);
    // each turn is taken once: after the last nobody waits for another
    if (which == 0 || tile + 1 < tiles) arrive_threads(kTurn + (which ^ 1), 2 * 128);
    mma_wait<1>();
    const bool moved = soften(tile);
    mma_wait<0>();
    pin_values<Shape>(out, weights);
    arrive_warp(barrier<Shape>(s_base, kValuesEmpty + StageRing(tile - 1).slot), lane);
    if (moved) rescale<Shape>(out, keep);
    pack_weights<Shape>(weights, scores);
  }
  values_full(tiles - 1);
  issue_values<Shape>(out, weights, s_base, tiles - 1);
  mma_wait<0>();
  pin_values<Shape>(out, weights);
  store_out<Shape>(out, row, args, first_query + warp * 16, place.head);
}

template <class Shape>
__device__ __forceinline__ void init_barriers(std::uint32_t s_base) {
  barrier_init(barrier<Shape>(s_base, kQueriesFull), 1);
  for (int i = 0; i < kStages; ++i) {
    barrier_init(barrier<Shape>(s_base, kKeysFull + i), 1);
    barrier_init(barrier<Shape>(s_base, kKeysEmpty + i), kQueryWarps);
    barrier_init(barrier<Shape>(s_base, kValuesFull + i), 1);
    barrier_init(barrier<Shape>(s_base, kValuesEmpty + i), kQueryWarps);
  }
  fence_barrier_init();
}

template <class Shape>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ Args args, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) std::uint8_t s_memory[];
  const std::uint32_t s_base = shared_address(s_memory);
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) init_barriers<Shape>(s_base);
  if (threadIdx.x == kThreads - 1) {
    prefetch_map(&maps.q_nope);
    prefetch_map(&maps.q_rope);
    prefetch_map(&maps.k_nope);
    prefetch_map(&maps.k_rope);
    prefetch_map(&maps.v);
  }
  __syncthreads();
  wait_for_previous_grid();
  launch_next_grid();
  const Place place = args.order.at(static_cast<int>(blockIdx.x));
  const int tiles = key_tiles(args.first_position, args.tokens, place.tile, Shape::kKeys);
  if (group == 2) {
    lower_registers<kLoadRegisters>();
    if (threadIdx.x % 128 == 0) run_loads<Shape>(s_base, maps, place, tiles);
  } else {
    raise_registers<kQueryRegisters>();
    run_queries<Shape>(args, s_base, place, tiles, group);
  }
}

}  // namespace snapmla::cuda_ops::prefill
