// The BF16 decode kernel: MLA decode over BF16 pages, FlashMLA's problem.
//
// Grid: num_workers x ceil(rows / 64) CTAs, the CTAs of a worker side by side so that their page reads meet
// in L2. A CTA does the items of its worker for its 64 rows. 512 threads, 225 KB of shared memory, one CTA an
// SM:
//
//     warpgroup 0     QK, softmax, P           168 registers     half of Q in 80 of them
//     warpgroup 1, 2  PV, 256 dims each        160               O in 128 of them
//     warpgroup 3     one thread loads          24
//
// Tensor time of a page is 1,152 cycles of QK and 2 x 512 of PV. If both went at once they would share the
// tensor core and both end late, with the softmax after them and the core idle. So P of page j is published
// only when QK of page j + 1 is nearly done, and PV of the second half of the dims follows that of the first:
//
//     tensor core     QK j+1        PV j first    PV j second   QK j+2
//     warpgroup 0     issue         softmax j+1 .............   issue
//     buffers                                   ^ loads of j+2, j+3 go into the halves as PV leaves them
//
// Where page j + 1 has not been loaded yet (few rows: the kernel is bound by bandwidth), P of page j is
// published at once, and its buffers come free earlier.
#pragma once

#include "cuda/decode/bf16_stages.cuh"

namespace snapmla::cuda_ops::bf16 {

/// Page by page: first half, RoPE, second half, the order in which QK takes them; Q around the first page
/// likewise.
__device__ __forceinline__ void run_loads(const Args& args, const Maps& maps, std::uint32_t s_base, int begin,
                                          int end, int first_row) {
  Count count;
  for (int index = begin; index < end; ++index) {
    const Item item = load_item(args, index);
    const int pages = item.pages();
    if (pages == 0) continue;
    const std::int32_t* table =
        args.block_table + item.request * args.block_table_stride + item.first / kPageTokens;
    int next_page = page_in(args, table);
    for (int i = 0; i < pages; ++i) {
      const int page = next_page;
      if (i + 1 < pages) next_page = page_in(args, table + i + 1);
      // a page is read once by each CTA of the worker, at about the same time: no need to keep it
      constexpr CachePolicy kOnce = CachePolicy::kEvictFirst;
      constexpr CachePolicy kNormal = CachePolicy::kEvictNormal;
      if (i == 0)
        load_ring_half(s_base, count.query_half(), maps.q_latent, 0, first_row, item.request, kNormal);
      load_ring_half(s_base, count.half(0), maps.latent, 0, 0, page, kOnce);
      if (i == 0) load_ring_rope(s_base, count.query_rope(), maps.q_rope, first_row, item.request, kNormal);
      load_ring_rope(s_base, count.rope(), maps.rope, 0, page, kOnce);
      // The RoPE buffer just refilled was that of the last page of the item before: QK is done with its Q.
      if (i == 0)
        load_half(s_base + Shared::kQuery, maps.q_latent, kValueDims, first_row, item.request,
                  barrier(s_base, kQueryFull), kNormal);
      load_ring_half(s_base, count.half(1), maps.latent, kValueDims, 0, page, kOnce);
      ++count.pages;
    }
    ++count.queries;
  }
}

/// QK and softmax of one page. On return its P lies in shared memory, fenced but not published.
__device__ __forceinline__ void score_page(const Args& args, const QueryFragments& query, RowPair& row,
                                           std::uint32_t s_base, const Count& count, const int (&visible)[2],
                                           bool masked, bool first, int warp, int lane) {
  const RopeRing rope(count.rope());
  const HalfRing second(count.half(1));
  const WeightsRing weights(count.pages);
  const std::uint32_t previous_full = barrier(s_base, kWeightsFull + (weights.slot ^ 1));
  const bool loaded = test_wait(barrier(s_base, kHalfFull + second.slot), second.full);
  if (lane == 0 && !first && !loaded) arrive(previous_full);
  float x[32];
  issue_scores(x, query, s_base, count);
  if (first) release_query(s_base, count, lane);
  mma_wait<1>();
  if (lane == 0 && !first && loaded) arrive(previous_full);
  wait(barrier(s_base, kWeightsEmpty + weights.slot), weights.freed);
  mma_wait<0>();
  pin(x);
  arrive_warp(barrier(s_base, kRopeEmpty + rope.slot), lane);

  float largest[2] = {-INFINITY, -INFINITY};
  if (masked) {
    scale_scores<true>(x, args.logit_factor, visible, lane % 4, largest);
  } else {
    scale_scores<false>(x, args.logit_factor, visible, lane % 4, largest);
  }
  move_references(row, largest, s_base + Shared::kKeeps + weights.slot * kTileRows * 4, warp, lane);
  store_weights(x, row, s_base + Shared::kWeights + weights.slot * kChunkBytes, warp, lane);
  fence_async_shared();
  __syncwarp();
}

/// lse of the item's rows, and 1 / sum for PV.
__device__ __forceinline__ void finish_rows(const RowPair& row, const Args& args, const Item& item,
                                            std::uint32_t s_base, int items_done, int first_row, int warp,
                                            int lane) {
  const Destination to = destination_of(args, item);
  float* g_lse = (to.alone ? args.lse : args.partial_lse) + to.block * args.rows;
  wait(barrier(s_base, kSumsEmpty), (items_done & 1) ^ 1);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = row.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (lane % 4 != 0) continue;
    store_shared(s_base + Shared::kInverses + pair_place(warp, lane) + 4 * r, sum == 0 ? 0.0F : 1 / sum);
    const int in_request = first_row + warp * 16 + lane / 4 + 8 * r;
    constexpr float kLn2 = 0.693147181F;
    if (in_request < args.rows)
      g_lse[in_request] = sum == 0 ? -INFINITY : kLn2 * (row.reference[r] + log2f(sum));
  }
  arrive_warp(barrier(s_base, kSumsFull), lane);
}

__device__ __forceinline__ void run_scores(const Args& args, std::uint32_t s_base, int begin, int end,
                                           int first_row, int warp, int lane) {
  Count count;
  QueryFragments query;
  for (int index = begin; index < end; ++index) {
    const Item item = load_item(args, index);
    const int seq_len = args.seq_lens[item.request];
    const int pages = item.pages();
    RowPair row{};
    const auto sees = [&](int in_request) {
      return min(item.end, args.causal ? seq_len - args.s + in_request / args.heads + 1 : seq_len);
    };
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row.sees[r] = sees(first_row + warp * 16 + lane / 4 + 8 * r);
      row.reference[r] = -INFINITY;
    }
    const int unmasked_end = sees(first_row);  // the tile's first row sees the least
    if (pages > 0) {
      take_query(query, s_base, count, warp, lane);
      wait(barrier(s_base, kQueryFull), count.queries & 1);
    }
    for (int i = 0; i < pages; ++i) {
      const int page_first = item.first + i * kPageTokens;
      const int visible[2] = {row.sees[0] - page_first, row.sees[1] - page_first};
      score_page(args, query, row, s_base, count, visible, page_first + kPageTokens > unmasked_end, i == 0,
                 warp, lane);
      ++count.pages;
    }
    if (pages > 0) {
      const WeightsRing last(count.pages - 1);
      if (lane == 0) arrive(barrier(s_base, kWeightsFull + last.slot));
      ++count.queries;
    }
    finish_rows(row, args, item, s_base, index - begin, first_row, warp, lane);
  }
}

/// PV of one page for half `which` of the dims; `tokens` of the page count.
__device__ __forceinline__ void add_values(float (&out)[2][64], std::uint32_t s_base, const Count& count,
                                           int tokens, int which, int warp, int lane) {
  const WeightsRing weights(count.pages);
  const HalfRing half(count.half(which));
  const std::uint32_t s_half = s_base + Shared::kHalves + half.slot * kHalfBytes;
  const std::uint32_t second_turn = barrier(s_base, kSecondTurn + weights.slot);
  wait(barrier(s_base, kWeightsFull + weights.slot), weights.full);
  rescale(out, s_base + Shared::kKeeps + weights.slot * kTileRows * 4, warp, lane);
  if (tokens < kPageTokens) clean_tail(s_half, tokens, which, warp * 32 + lane);
  if (which == 1) wait(second_turn, weights.full);
  issue_values(out, s_base + Shared::kWeights + weights.slot * kChunkBytes, s_half);
  mma_wait<1>();
  if (which == 0 && lane == 0) arrive(second_turn);
  mma_wait<0>();
  pin(out[0]);
  pin(out[1]);
  arrive_warp(barrier(s_base, kHalfEmpty + half.slot), lane);
  arrive_warp(barrier(s_base, kWeightsEmpty + weights.slot), lane);
}

__device__ __forceinline__ void run_values(const Args& args, std::uint32_t s_base, int begin, int end,
                                           int first_row, int which, int warp, int lane) {
  Count count;
  for (int index = begin; index < end; ++index) {
    const Item item = load_item(args, index);
    const int pages = item.pages();
    float out[2][64] = {};
    for (int i = 0; i < pages; ++i) {
      add_values(out, s_base, count, item.end - item.first - i * kPageTokens, which, warp, lane);
      ++count.pages;
    }
    if (pages > 0) ++count.queries;
    const Destination to = destination_of(args, item);
    wait(barrier(s_base, kSumsFull), (index - begin) & 1);
    store_out(out, args, to, s_base, first_row, which * kValueDims, warp, lane);
    arrive_warp(barrier(s_base, kSumsEmpty), lane);
  }
}

__device__ __forceinline__ void init_barriers(std::uint32_t s_base) {
  const auto init = [&](std::uint32_t first, int number, std::uint32_t count) {
    for (int i = 0; i < number; ++i) barrier_init(barrier(s_base, first + i), count);
  };
  init(kHalfFull, kNumHalves, 1);
  init(kHalfEmpty, kNumHalves, 4);  // the warps of a PV warpgroup, or of QK for a half of Q
  init(kRopeFull, kNumRopes, 1);
  init(kRopeEmpty, kNumRopes, kScoreWarps);
  init(kQueryFull, 1, 1);
  init(kWeightsFull, kNumWeights, kScoreWarps);
  init(kWeightsEmpty, kNumWeights, kValueWarps);
  init(kSecondTurn, kNumWeights, kValueWarps / 2);
  init(kSumsFull, 1, kScoreWarps);
  init(kSumsEmpty, 1, kValueWarps);
  fence_barrier_init();
}

/// The maps are kernel arguments: no need to wait for the previous grid. Those of an empty cache are not
/// valid.
__device__ __forceinline__ void prefetch_maps(const Args& args, const Maps& maps) {
  if (!args.has_pages) return;
  prefetch_map(&maps.q_latent);
  prefetch_map(&maps.q_rope);
  prefetch_map(&maps.latent);
  prefetch_map(&maps.rope);
}

__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ Args args, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) std::uint8_t s_memory[];
  const std::uint32_t s_base = shared_address(s_memory);
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (threadIdx.x == 0) init_barriers(s_base);
  if (threadIdx.x == kThreads - 1) prefetch_maps(args, maps);
  __syncthreads();
  wait_for_previous_grid();
  launch_next_grid();
  const int worker = static_cast<int>(blockIdx.x) / args.tiles;
  const int first_row = static_cast<int>(blockIdx.x) % args.tiles * kTileRows;
  const int begin = args.worker_offsets[worker];
  const int end = args.worker_offsets[worker + 1];
  if (group == 0) {
    raise_registers<kScoreRegisters>();
    run_scores(args, s_base, begin, end, first_row, warp, lane);
  } else if (group == 3) {
    lower_registers<kLoadRegisters>();
    if (warp == 0 && lane == 0) run_loads(args, maps, s_base, begin, end, first_row);
  } else {
    raise_registers<kValueRegisters>();
    run_values(args, s_base, begin, end, first_row, group - 1, warp, lane);
  }
}

}  // namespace snapmla::cuda_ops::bf16
