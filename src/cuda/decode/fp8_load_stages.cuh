// What all roles of the FP8 decode kernel share, and the stages of the loading warpgroup: copies of pages and
// queries, and zeroing of what lies past a request's end.
//
// A pair of pages, n = 0, 1, 2 ... over all items of the CTA, uses slot n % 2 in phase n / 2.
#pragma once

#include "cuda/decode/fp8_config.h"
#include "cuda/device/layout.cuh"
#include "cuda/device/ptx.cuh"

namespace snapmla::cuda_ops::fp8 {

__device__ __forceinline__ std::uint32_t barrier(std::uint32_t s_base, std::uint32_t which) {
  return s_base + Shared::kBarriers + 8 * which;
}

/// A work item as every role sees it.
struct Item {
  int request;
  int first;  ///< tokens [first, end)
  int end;
  int partial;
  int seq_len;
  bool alone;  ///< the only item of its request: its result is final

  __device__ int pairs() const { return (end - first + kPairTokens - 1) / kPairTokens; }
  __device__ int pages() const { return (end - first + kPageTokens - 1) / kPageTokens; }
  /// Tokens of the last pair.
  __device__ int last_tokens() const { return end - first - (pairs() - 1) * kPairTokens; }
  __device__ bool has_tail() const { return end > first && last_tokens() < kPairTokens; }
};

__device__ __forceinline__ Item load_item(const Args& args, int index) {
  const int4 words = reinterpret_cast<const int4*>(args.work_items)[index];
  Item item{words.x, words.y, words.z, words.w, args.seq_lens[words.x], false};
  item.alone = args.split_offsets[words.x + 1] - args.split_offsets[words.x] == 1;
  return item;
}

/// Fetches the maps ahead of their first use. One thread.
__device__ __forceinline__ void prefetch_maps(const Maps& maps) {
  prefetch_map(&maps.latent);
  prefetch_map(&maps.rope);
  prefetch_map(&maps.q_latent);
  prefetch_map(&maps.q_rope);
}

/// Before the wait for the previous grid: asks for the first item's line of the block table in L2. The plan is there
/// already (device/launch.h); the table may not be, so its words are read after the wait.
__device__ __forceinline__ void prefetch_table(const Args& args, int index) {
  const Item item = load_item(args, index);
  prefetch_l2(args.block_table + item.request * args.block_table_stride + item.first / kPageTokens);
}

/// One pair into its slot, part by part in the order in which the parts come free.
__device__ __forceinline__ void load_pair(const Args& args, const Maps& maps, std::uint32_t s_base, int n,
                                          int page0, int page1) {
  const std::uint32_t slot = n % kNumSlots;
  const std::uint32_t freed = ((n / kNumSlots) & 1) ^ 1;
  const std::uint32_t s_slot = s_base + Shared::kSlots + slot * kSlotBytes;
  const bool two = page1 >= 0;
  const auto chunk = [&](const CUtensorMap& map, int index, std::uint32_t full) {
    const int column = index == kRopeChunk ? 0 : index * 128;
    const std::uint32_t s_chunk = s_slot + index * kPairChunkBytes;
    copy_tile(s_chunk, &map, column, 0, page0, full);
    if (two) copy_tile(s_chunk + kPageChunkBytes, &map, column, 0, page1, full);
  };
  const std::uint32_t pages = two ? 2 : 1;
  const auto latent_half = [&](std::uint32_t full_barrier, std::uint32_t empty_barrier, int index) {
    const std::uint32_t full = barrier(s_base, full_barrier + slot);
    wait(barrier(s_base, empty_barrier + slot), freed);
    arrive_expect(full, 2 * pages * kPageChunkBytes);
    chunk(maps.latent, index, full);
    chunk(maps.latent, index + 2, full);
  };
  const std::uint32_t full = barrier(s_base, kRopeFull + slot);
  const std::uint32_t s_scales = s_base + Shared::kScales + slot * kScalesBytes;
  wait(barrier(s_base, kRopeEmpty + slot), freed);
  arrive_expect(full, pages * (kPageChunkBytes + kPageTokens * 4));
  chunk(maps.rope, kRopeChunk, full);
  copy_bulk(s_scales, args.scale + page0 * args.scale_page_stride, kPageTokens * 4, full);
  if (two)
    copy_bulk(s_scales + kPageTokens * 4, args.scale + page1 * args.scale_page_stride, kPageTokens * 4, full);
  latent_half(kEvenFull, kEvenEmpty, 0);
  latent_half(kOddFull, kOddEmpty, 1);
}

/// The 64 query rows of this CTA; rows past the request's last arrive as zeros.
__device__ __forceinline__ void load_query(const Maps& maps, std::uint32_t s_base, int request, int first_row,
                                           int items_done) {
  const std::uint32_t full = barrier(s_base, kQueryFull);
  wait(barrier(s_base, kQueryEmpty), (items_done & 1) ^ 1);
  arrive_expect(full, kChunks * kQueryChunkBytes);
  for (int i = 0; i < kLatentChunks; ++i)
    copy_tile(s_base + Shared::kQuery + i * kQueryChunkBytes, &maps.q_latent, i * 128, first_row, request,
              full);
  copy_tile(s_base + Shared::kQuery + kRopeChunk * kQueryChunkBytes, &maps.q_rope, 0, first_row, request,
            full);
}

/// Zeroes the latents past the last token of an item: their weights are 0, but 0 * NaN is not. QK may still
/// read them: its results for these tokens are masked. Every cleaner warp does a share. `tail_parity`: of the
/// tails this slot has had before. The copies' phase alone would not do to wait for: cleaners skip pairs, and
/// the phase before last looks like the one to come.
__device__ __forceinline__ void clean_tail(std::uint32_t s_base, int n, int tokens, std::uint32_t tail_parity,
                                           int thread) {
  const std::uint32_t slot = n % kNumSlots;
  const std::uint32_t loaded = (n / kNumSlots) & 1;
  wait(barrier(s_base, kTailIssued + slot), tail_parity);
  wait(barrier(s_base, kEvenFull + slot), loaded);
  wait(barrier(s_base, kOddFull + slot), loaded);
  const std::uint32_t s_slot = s_base + Shared::kSlots + slot * kSlotBytes;
  for (int i = 0; i < kLatentChunks; ++i) {
    const std::uint32_t s_end = s_slot + (i + 1) * kPairChunkBytes;
    std::uint32_t s_row = s_slot + i * kPairChunkBytes + tokens * 128 + thread * 16;
    for (; s_row < s_end; s_row += kCleanerWarps * 32 * 16) store_shared(s_row, float4{});
  }
  fence_async_shared();
  __syncwarp();
  if (thread % 32 == 0) arrive(barrier(s_base, kTailClean + slot));
}

}  // namespace snapmla::cuda_ops::fp8
