// FP8 decode, the outline. Grid: workers x tiles of 64 query rows (the CTAs of a worker lie side by side and
// share its pages through L2), 512 threads, one CTA an SM, Shared::kBytes of shared memory:
//
//     warpgroup 0      scores    QK of a pair (m64n128), softmax, P        120 registers
//     warpgroups 1, 2  values    PV: 256 dims each, promoted a pair        184
//     warpgroup 3      loads     one thread copies pages and queries;       24
//                                three warps zero the tails of requests and
//                                prepare the next item for the score warps
//
//     pair     n                    n + 1                    n + 2
//     loads    n + 2 as parts of slot n % 2 come free
//     scores   QK | softmax -> P    QK | softmax -> P
//     values                        PV of n             PV of n + 1
//
// PV computes O^T = V^T P^T: FP8 products want both operands K-major, and V's K, the tokens, runs across its
// rows; ldmatrix.trans turns it on the way to registers, P is K-major by nature (docs/decode-kernel.md).
#pragma once

#include "cuda/decode/fp8_score_stages.cuh"
#include "cuda/decode/fp8_value_stages.cuh"

namespace snapmla::cuda_ops::fp8 {

__device__ __forceinline__ void init_barriers(std::uint32_t s_base) {
  const auto init = [&](std::uint32_t which, int slots, int arrivals) {
    for (int i = 0; i < slots; ++i) barrier_init(barrier(s_base, which + i), arrivals);
  };
  init(kQueryFull, 1, 1);
  init(kQueryEmpty, 1, kScoreWarps);
  init(kEvenFull, kNumSlots, 1);
  init(kEvenEmpty, kNumSlots, kValueWarps);
  init(kOddFull, kNumSlots, 1);
  init(kOddEmpty, kNumSlots, kValueWarps);
  init(kRopeFull, kNumSlots, 1);
  init(kRopeEmpty, kNumSlots, kScoreWarps);
  init(kWeightsFull, kNumSlots, kScoreWarps);
  init(kWeightsEmpty, kNumSlots, kValueWarps);
  init(kTailIssued, kNumSlots, 1);
  init(kTailClean, kNumSlots, kCleanerWarps);
  init(kSumsFull, 1, kScoreWarps);
  init(kSumsEmpty, 1, kValueWarps);
  init(kItemFull, kNumItems, kCleanerWarps);
  init(kItemEmpty, kNumItems, kScoreWarps);
  fence_barrier_init();
}

/// One thread: every pair of every item, then the item's queries behind its first pair.
__device__ __forceinline__ void run_loads(const Args& args, const Maps& maps, std::uint32_t s_base, int begin,
                                          int end, int first_row) {
  int n = 0;
  int queries = 0;
  for (int index = begin; index < end; ++index) {
    const Item item = load_item(args, index);
    const std::int32_t* table =
        args.block_table + item.request * args.block_table_stride + item.first / kPageTokens;
    const int pages = item.pages();
    const auto page_at = [&](int page) { return page < pages ? page_in(args, table + page) : -1; };
    int page0 = page_at(0);
    int page1 = page_at(1);
    for (int page = 0; page < pages; page += 2, ++n) {
      // The first queries find their place free, and all else waits for them: an SM takes in some 40 bytes a cycle.
      // Later ones wait for QK of the item before, and pages must not wait with them.
      if (n == 0) load_query(maps, s_base, item.request, first_row, queries++);
      // and the second pair of every CTA waits for the first of all
      if (n == 1) wait(barrier(s_base, kEvenFull), 0);
      load_pair(args, maps, s_base, n, page0, page1);
      page0 = page_at(page + 2);
      page1 = page_at(page + 3);
      if (page == 0 && n > 0) load_query(maps, s_base, item.request, first_row, queries++);
    }
    if (item.has_tail()) arrive(barrier(s_base, kTailIssued + (n - 1) % kNumSlots));
  }
}

/// An item for the score warps, by the three warps that clean: `turn` items of this CTA come before it.
__device__ __forceinline__ void fill_item(const Args& args, std::uint32_t s_base, int index, int turn,
                                          int first_row, int thread) {
  const int slot = turn % kNumItems;
  const std::uint32_t s_item = s_base + Shared::kItems + slot * ScoreItem::kBytes;
  wait(barrier(s_base, kItemEmpty + slot), ((turn / kNumItems) & 1) ^ 1);
  const Item item = load_item(args, index);
  const auto sees = [&](int row) {
    return min(item.end, args.causal ? item.seq_len - args.s + row / args.heads + 1 : item.seq_len);
  };
  if (thread < kTileRows) {
    const int row = first_row + thread;
    const float scale =
        row < args.rows ? args.q_scale[static_cast<std::int64_t>(item.request) * args.rows + row] : 0;
    store_shared(s_item + ScoreItem::kFactors + 4 * thread,
                 fmaxf(fabsf(args.logit_factor) * scale, kMinFactor));
    store_shared(s_item + ScoreItem::kSees + 4 * thread, sees(row));
  } else if (thread == kTileRows) {
    const int words[] = {item.request, item.first,         item.end,
                         item.partial, item.alone ? 1 : 0, sees(first_row)};
#pragma unroll
    for (int i = 0; i < 6; ++i) store_shared(s_item + ScoreItem::kWords + 4 * i, words[i]);
  }
  arrive_warp(barrier(s_base, kItemFull + slot), thread % 32);
}

__device__ __forceinline__ void run_cleaning(const Args& args, std::uint32_t s_base, int begin, int end,
                                             int first_row, int thread) {
  std::uint32_t tails = 0;  // bit slot: parity of the tails this slot has had
  int n = 0;
  fill_item(args, s_base, begin, 0, first_row, thread);
  for (int index = begin; index < end; ++index) {
    if (index + 1 < end) fill_item(args, s_base, index + 1, index + 1 - begin, first_row, thread);
    const Item item = load_item(args, index);
    n += item.pairs();
    if (!item.has_tail()) continue;
    const int slot = (n - 1) % kNumSlots;
    clean_tail(s_base, n - 1, item.last_tokens(), (tails >> slot) & 1, thread);
    tails ^= 1U << slot;
  }
}

/// QK and softmax of one pair; P and its gains published.
__device__ __forceinline__ void score_pair(RowPair& row, std::uint32_t s_base, int n, int tokens,
                                           const int (&visible)[2], bool negative, bool masked, bool first,
                                           bool last, int warp, int lane) {
  const std::uint32_t slot = n % kNumSlots;
  const std::uint32_t s_key_scales = s_base + Shared::kKeyScales + warp * kScalesBytes + 8 * (lane % 4);
  const std::uint32_t s_value_scales = s_base + Shared::kValueScales + warp * kScalesBytes + 8 * (lane % 4);
  float x[64];
  issue_scores(x, s_base, n);
  const PairScales scales = prepare_scales(s_base, n, tokens, negative, warp, lane);
  ScaleRing ring;
  ring.fill(s_key_scales);
  wait(barrier(s_base, kWeightsEmpty + slot), ((n / kNumSlots) & 1) ^ 1);
  mma_wait<0>();
  pin(x);
  if (lane == 0) {
    arrive(barrier(s_base, kRopeEmpty + slot));
    if (last) arrive(barrier(s_base, kQueryEmpty));
  }
  const bool one_scale = scales.one && !masked;
  float factor[2] = {row.factor[0], row.factor[1]};
  float m[2];
  if (one_scale) {
    largest_scores(x, m);
#pragma unroll
    for (int r = 0; r < 2; ++r) factor[r] *= scales.largest;
  } else if (masked) {
    scale_scores<true>(x, ring, visible, s_key_scales, s_value_scales, lane % 4, m);
  } else {
    scale_scores<false>(x, ring, visible, s_key_scales, s_value_scales, lane % 4, m);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    m[r] = fmaxf(m[r], __shfl_xor_sync(~0U, m[r], 1));
    m[r] = fmaxf(m[r], __shfl_xor_sync(~0U, m[r], 2));
    m[r] = fmaxf(m[r] * factor[r], kMinusLarge);
  }
  const Moves moves = publish_gains(row, m, scales.k, first, s_base, slot, warp, lane);
  const std::uint32_t s_weights = s_base + Shared::kWeights + slot * kWeightBytes;
  float sum[2];
  if (one_scale) {
    const float to_range = kE4m3Max * scales.largest * reciprocal_fast(scales.k);
    const float log_range = log2_fast(to_range);
    const float shift[2] = {log_range - m[0], log_range - m[1]};
    store_weights<true>(x, ring, factor, shift, s_value_scales, s_weights, warp, lane, sum);
    const float from_range = reciprocal_fast(to_range);
    sum[0] *= from_range;
    sum[1] *= from_range;
  } else {
    const float shift[2] = {-m[0], -m[1]};
    store_weights<false>(x, ring, factor, shift, s_value_scales, s_weights, warp, lane, sum);
  }
  fence_async_shared();
  __syncwarp();
  if (lane == 0) arrive(barrier(s_base, kWeightsFull + slot));
#pragma unroll
  for (int r = 0; r < 2; ++r) row.sum[r] = fmaf(moves.gain[r], sum[r], moves.keep[r] * row.sum[r]);
  row.scale = fmaxf(row.scale, scales.k);
}

/// The item's lse to memory and 1 / (448 sum) to the PV warpgroups, for a partial in units of its scale. A row that
/// saw nothing has sum 0: out 0, lse -inf.
__device__ __forceinline__ void finish_rows(const RowPair& row, const Args& args, const Item& item,
                                            std::uint32_t s_base, int items_done, int first_row, int warp,
                                            int lane) {
  wait(barrier(s_base, kSumsEmpty), (items_done & 1) ^ 1);
  float* g_lse = item.alone ? args.lse : args.partial_lse;
  const std::int64_t block = item.alone ? item.request : item.partial;
  const float to_range = item.alone ? kE4m3Max : kE4m3Max * row.scale;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = row.sum[r];
    sum += __shfl_xor_sync(~0U, sum, 1);
    sum += __shfl_xor_sync(~0U, sum, 2);
    const int in_tile = warp * 16 + lane / 4 + 8 * r;
    if (lane % 4 != 0) continue;
    store_shared(s_base + Shared::kSums + 4 * row_place(in_tile),
                 sum == 0 ? 0.0F : reciprocal_fast(to_range * sum));
    if (first_row + in_tile < args.rows) {
      constexpr float kLn2 = 0.693147181F;
      g_lse[block * args.rows + first_row + in_tile] =
          sum == 0 ? -INFINITY : kLn2 * (row.reference[r] + log2_fast(sum));
    }
  }
  if (threadIdx.x == 0 && first_row == 0 && !item.alone) args.partial_scale[item.partial] = row.scale;
  __syncwarp();
  if (lane == 0) arrive(barrier(s_base, kSumsFull));
}

__device__ __forceinline__ void run_scores(const Args& args, std::uint32_t s_base, int begin, int end,
                                           int first_row, int warp, int lane) {
  int n = 0;
  int queries = 0;
  for (int index = begin; index < end; ++index) {
    const int turn = index - begin;
    const int slot = turn % kNumItems;
    const std::uint32_t s_item = s_base + Shared::kItems + slot * ScoreItem::kBytes;
    wait(barrier(s_base, kItemFull + slot), (turn / kNumItems) & 1);
    const auto words = load_shared<int4>(s_item + ScoreItem::kWords);
    const auto more = load_shared<int2>(s_item + ScoreItem::kWords + 16);
    const Item item{
        .request = words.x, .first = words.y, .end = words.z, .partial = words.w, .alone = more.x != 0};
    const int unmasked_end = more.y;
    const int pairs = item.pairs();
    RowPair row{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t s_row = s_item + 4 * (warp * 16 + lane / 4 + 8 * r);
      row.factor[r] = load_shared<float>(s_row + ScoreItem::kFactors);
      row.sees[r] = load_shared<int>(s_row + ScoreItem::kSees);
    }
    if (pairs > 0) wait(barrier(s_base, kQueryFull), queries++ & 1);
    for (int pair = 0; pair < pairs; ++pair, ++n) {
      const int pair_first = item.first + pair * kPairTokens;
      const int visible[2] = {row.sees[0] - pair_first, row.sees[1] - pair_first};
      score_pair(row, s_base, n, item.end - pair_first, visible, (args.logit_factor < 0),
                 (pair_first + kPairTokens > unmasked_end), pair == 0, pair + 1 == pairs, warp, lane);
    }
    finish_rows(row, args, item, s_base, turn, first_row, warp, lane);
    arrive_warp(barrier(s_base, kItemEmpty + slot), lane);
  }
}

/// PV of one pair over all m-tiles; ends with the first fragments of pair n + 1 loaded if `more`. Registers
/// are what is scarce: gains take the place of fragments whose products are done.
__device__ __forceinline__ void add_values(float (&out)[kNumMTiles][32], std::uint32_t (&fragment)[4][4],
                                           const ValueLane& values, std::uint32_t s_base, int n, bool more,
                                           bool next_tail, std::uint32_t next_tail_parity, int lane) {
  const std::uint32_t slot = n % kNumSlots;
  const std::uint32_t next = slot ^ 1;
  const int c = lane % 4;
  const Descriptor weights = k_major(s_base + Shared::kWeights + slot * kWeightBytes, 1024, Swizzle::k128B);
  wait(barrier(s_base, kWeightsFull + slot), (n / kNumSlots) & 1);
#pragma unroll
  for (int mt = 0; mt < kNumMTiles; ++mt) {
    float sum[32];
    pin(sum);
#pragma unroll
    for (int step = 0; step < 4; step += 2) {
#pragma unroll
      for (int k = step; k < step + 2; ++k) part_dims(fragment[k]);
      mma_fence();
#pragma unroll
      for (int k = step; k < step + 2; ++k) mma_e4m3(sum, fragment[k], weights.advance(32 * k), k != 0);
      mma_commit();
    }
    if (mt % 2 == 1) {  // the chunk is in registers: products that use the last of it have been issued
      __syncwarp();
      if (lane == 0) arrive(barrier(s_base, (mt == 1 ? kEvenEmpty : kOddEmpty) + slot));
    }
    if (mt == 0) rescale(out, s_base, slot, c);
    mma_wait<1>();
    const Gains low = load_gains(s_base, slot, 0, c);
    const bool last = mt + 1 == kNumMTiles;
    if (last && more) {
      wait(barrier(s_base, kEvenFull + next), ((n + 1) / kNumSlots) & 1);
      if (next_tail) wait(barrier(s_base, kTailClean + next), next_tail_parity);
    }
    const std::uint32_t from = last ? next : slot;
    mma_wait<0>();
    pin(sum);
    const Gains high = load_gains(s_base, slot, 1, c);
    promote(out[mt], sum, low, 0);
#pragma unroll
    for (int k = 0; k < 2; ++k) load_values(fragment[k], values, from, (mt + 1) % kNumMTiles, k);
    promote(out[mt], sum, high, 1);
#pragma unroll
    for (int k = 2; k < 4; ++k) load_values(fragment[k], values, from, (mt + 1) % kNumMTiles, k);
  }
  __syncwarp();
  if (lane == 0) arrive(barrier(s_base, kWeightsEmpty + slot));
}

__device__ __forceinline__ void run_values(const Args& args, std::uint32_t s_base, int begin, int end,
                                           int first_row, int half, int warp, int lane) {
  ValueLane values{};
  values.s_row = s_base + Shared::kSlots + 2 * half * kPairChunkBytes + lane * 128;
  values.unit[0] = (static_cast<std::uint32_t>(warp) ^ (lane & 7U)) * 16;
  values.unit[1] = values.unit[0] ^ 64U;
  std::uint32_t tails = 0;  // bit slot: parity of the tails this slot has had
  int n = 0;
  for (int index = begin; index < end; ++index) {
    const Item ahead = load_item(args, index);
    const int pairs = ahead.pairs();
    const bool tail = ahead.has_tail();
    float out[kNumMTiles][32] = {};
    std::uint32_t fragment[4][4];
    for (int pair = 0; pair < pairs; ++pair, ++n) {
      if (pair == 0) {
        wait(barrier(s_base, kEvenFull + n % kNumSlots), (n / kNumSlots) & 1);
        if (tail && pairs == 1)
          wait(barrier(s_base, kTailClean + n % kNumSlots), (tails >> (n % kNumSlots)) & 1);
#pragma unroll
        for (int k = 0; k < 4; ++k) load_values(fragment[k], values, n % kNumSlots, 0, k);
      }
      add_values(out, fragment, values, s_base, n, pair + 1 < pairs, tail && pair + 2 == pairs,
                 (tails >> ((n + 1) % kNumSlots)) & 1, lane);
    }
    if (tail) tails ^= 1U << ((n - 1) % kNumSlots);
    wait(barrier(s_base, kSumsFull), (index - begin) & 1);
    const Item item = load_item(args, opaque(index));  // again: it would take registers from the loop
    store_out(out, args, item, s_base, first_row, half * kValueDims + warp * 16 + 2 * (lane / 4), lane % 4);
    __syncwarp();
    if (lane == 0) arrive(barrier(s_base, kSumsEmpty));
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ Args args, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) std::uint8_t s_memory[];
  const std::uint32_t s_base = shared_address(s_memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = __shfl_sync(~0U, warp / 4, 0);
  launch_next_grid();
  if (threadIdx.x == kLoadThread) init_barriers(s_base);
  const int worker = static_cast<int>(blockIdx.x) / args.tiles;
  const int first_row = static_cast<int>(blockIdx.x) % args.tiles * kTileRows;
  const int begin = args.worker_offsets[worker];
  const int end = args.worker_offsets[worker + 1];
  if (threadIdx.x == kLoadThread) prefetch_maps(maps);
  __syncthreads();
  // Nothing to do: end at once, which frees the SM for the merge. Some worker always has an item, and its CTAs wait for
  // the previous grid on behalf of this one (device/launch.h).
  if (begin == end) return;
  if (threadIdx.x == kLoadThread) prefetch_table(args, begin);
  wait_for_previous_grid();
  if (group == 0) {
    lower_registers<kScoreRegisters>();
    run_scores(args, s_base, begin, end, first_row, warp, lane);
  } else if (group == 3) {
    lower_registers<kLoadRegisters>();
    if (threadIdx.x == kLoadThread) run_loads(args, maps, s_base, begin, end, first_row);
    if (warp > 12) run_cleaning(args, s_base, begin, end, first_row, static_cast<int>(threadIdx.x) - 13 * 32);
  } else {
    raise_registers<kValueRegisters>();
    run_values(args, s_base, begin, end, first_row, group - 1, warp % 4, lane);
  }
}

}  // namespace snapmla::cuda_ops::fp8
