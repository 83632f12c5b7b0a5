// What both decode kernels are told about the work, and how they are launched: once for FP8 and BF16 pages.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <cstdint>

#include "core/check.h"
#include "core/plan_rule.h"
#include "cuda/device/launch.h"
#include "cuda/device/tensor_map.h"
#include "cuda/ops.h"
#include "snapmla/attention.h"

namespace snapmla::cuda_ops {

/// The plan, the requests and where results go. A kernel's own arguments are added by inheritance.
struct Work {
  const std::int32_t* work_items;
  const std::int32_t* worker_offsets;
  const std::int32_t* split_offsets;
  const std::int32_t* seq_lens;
  const std::int32_t* block_table;
  std::int64_t block_table_stride;  ///< elements a request
  int num_pages;                    ///< of the pool; a page of the table is below it
  void* out;                        ///< [batch, rows, 512]
  float* lse;                       ///< [batch, rows]
  void* partial_out;                ///< [max_items, rows, 512]
  float* partial_lse;               ///< [max_items, rows]
  float* partial_scale;             ///< [max_items], FP8 alone
  float logit_factor;               ///< softmax_scale * log2(e)
  int s;
  int heads;
  int rows;   ///< s * heads
  int tiles;  ///< CTAs a worker: one for each tile of query rows
  bool causal;
  bool out_f32;
};

inline Work make_work(const DecodeParams& params) {
  constexpr double kLog2E = 1.4426950408889634;
  const PlanView& plan = params.plan;
  const std::int64_t s = params.q_latent.dim(1);
  const std::int64_t heads = params.q_latent.dim(2);
  const std::int64_t rows = s * heads;
  const Partials partials = partials_of(params);
  return {.work_items = plan.work_items.as<std::int32_t>(),
          .worker_offsets = plan.worker_offsets.as<std::int32_t>(),
          .split_offsets = plan.split_offsets.as<std::int32_t>(),
          .seq_lens = params.seq_lens.as<std::int32_t>(),
          .block_table = params.block_table.as<std::int32_t>(),
          .block_table_stride = params.block_table.stride(0),
          .num_pages = static_cast<int>(std::min<std::int64_t>(params.cache.num_pages, INT32_MAX)),
          .out = params.out.data(),
          .lse = params.lse.as<float>(),
          .partial_out = partials.out,
          .partial_lse = partials.lse,
          .partial_scale = partials.scale,
          .logit_factor = static_cast<float>(params.softmax_scale * kLog2E),
          .s = static_cast<int>(s),
          .heads = static_cast<int>(heads),
          .rows = static_cast<int>(rows),
          .tiles = ceil_div(static_cast<int>(rows), kTileRows),
          .causal = params.causal,
          .out_f32 = params.out.dtype() == DType::kF32};
}

/// The page in an entry of the block table. That it lies in the pool only debug builds check.
__device__ __forceinline__ int page_in([[maybe_unused]] const Work& work, const std::int32_t* entry) {
  const int page = *entry;
  assert(page >= 0 && page < work.num_pages);
  return page;
}

/// Tensor maps of the queries and the cache, in constant memory: `const __grid_constant__ Maps`.
struct Maps {
  CUtensorMap q_latent;
  CUtensorMap q_rope;
  CUtensorMap latent;
  CUtensorMap rope;
};

inline Maps make_maps(const DecodeParams& params) {
  const CacheView& cache = params.cache;
  const DType latent = cache.format == CacheFormat::kFp8 ? DType::kE4M3 : DType::kBF16;
  return {.q_latent = make_query_map(params.q_latent),
          .q_rope = make_query_map(params.q_rope),
          .latent = make_page_map(cache.latent, latent, kLatentDim, cache.num_pages),
          .rope = make_page_map(cache.rope, DType::kBF16, kRopeDim, cache.num_pages)};
}

/// Launches a decode kernel, num_workers x tiles CTAs, overlapped with the kernel ahead of it on the stream.
template <auto kKernel, int kThreads, int kSharedBytes, class Args>
void launch_decode(const Args& args, const DecodeParams& params, cudaStream_t stream) {
  allow_shared_memory<kKernel, kSharedBytes>();
  const dim3 grid(static_cast<unsigned>(params.plan.shape.num_workers * args.tiles));
  launch_overlapped(kKernel, grid, kThreads, kSharedBytes, stream, args, make_maps(params));
}

}  // namespace snapmla::cuda_ops
