// The CUDA attention ops: the same functions as src/reference/ops.h, enqueued on a stream. Arguments are
// checked already (src/core/attention.cc); what only CUDA needs (alignment) each op checks before it launches
// anything.
//
// decode is a main kernel, decode_fp8 or decode_bf16, and combine_splits after it. Between the two lies the
// workspace, [max_items] partials, partial p that of work item p:
//
//     float partial_lse[max_items][rows]           natural logarithm; -inf for a row that sees nothing
//     float partial_scale[max_items]               of an FP8 cache alone: a power of two >= every scale of the item
//     partial_out[max_items][rows][512]            normalised by its own lse; BF16 cache: float
//                                                  FP8: half, real = stored * partial_scale, so at most 448
//
// Half partials keep 11 bits where P keeps 4, and halve what a split costs: an SM stores 32 bytes a cycle at best (bench/results/store-rates-h100.csv).
//
// (The namespace is not snapmla::cuda, which is a function.)
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "snapmla/attention.h"

namespace snapmla {
class PlainOps;
}

namespace snapmla::cuda_ops {

/// The plain ops (plain_ops.h); they need cuBLASLt (cublas_lt.h).
const PlainOps& plain_ops();

/// Query rows a CTA of a decode kernel takes: the M of a warpgroup product.
inline constexpr int kTileRows = 64;

void quantize_q(const QuantizeQParams& params, cudaStream_t stream);
void append_kv(const AppendKvParams& params, cudaStream_t stream);
void fetch_kv(const FetchKvParams& params, cudaStream_t stream);
void plan(const PlanParams& params, cudaStream_t stream);
std::int64_t decode_workspace_bytes(const PlanShape& shape, int s, int heads);
void decode(const DecodeParams& params, cudaStream_t stream);
void combine(const CombineParams& params, cudaStream_t stream);

/// The workspace's parts, as laid out above.
struct Partials {
  float* lse;
  float* scale;  ///< null for a BF16 cache
  void* out;
};

inline Partials partials_of(const DecodeParams& params) {
  const std::int64_t items = params.plan.shape.max_items;
  const std::int64_t rows = params.q_latent.dim(1) * params.q_latent.dim(2);
  const bool fp8 = params.cache.format == CacheFormat::kFp8;
  auto* lse = params.workspace.as<float>();
  float* const scale = lse + items * rows;
  constexpr std::int64_t kFloatsAligned = 32;  // out on a border of 128 bytes
  const std::int64_t before_out = (items * (rows + 1) + kFloatsAligned - 1) / kFloatsAligned * kFloatsAligned;
  return {.lse = lse, .scale = fp8 ? scale : nullptr, .out = lse + before_out};
}

/// The main kernels (src/cuda/decode). A work item that is the only one of its request, by split_offsets,
/// writes params.out and params.lse; any other writes its partial (zeros where lse is -inf). They call
/// launch_next_grid(), so that combine_splits can start early.
void decode_fp8(const DecodeParams& params, cudaStream_t stream);
void decode_bf16(const DecodeParams& params, cudaStream_t stream);

/// Merges the partials of every request that has more than one into params.out and params.lse, and leaves the
/// others' alone. Launched as a programmatic dependent of the kernel before it on the stream.
void combine_splits(const DecodeParams& params, cudaStream_t stream);

}  // namespace snapmla::cuda_ops
