// The CUDA attention ops: the same functions as src/reference/ops.h, enqueued on a stream. Arguments are
// checked already (src/core/attention.cc); what only CUDA needs (alignment) each op checks before it launches
// anything.
//
// decode is a main kernel, decode_fp8 or decode_bf16, and combine_splits after it. Between the two lies the
// workspace, [max_items] partials, partial p that of work item p:
//
//     float partial_out[max_items][rows][512]      normalised by its own lse
//     float partial_lse[max_items][rows]           natural logarithm; -inf for a row that sees nothing
//
// (The namespace is not snapmla::cuda, which is a function.)
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "snapmla/attention.h"

namespace snapmla::cuda_ops {

/// Query rows a CTA of a decode kernel takes: the M of a warpgroup product.
inline constexpr int kTileRows = 64;

void quantize_q(const QuantizeQParams& params, cudaStream_t stream);
void append_kv(const AppendKvParams& params, cudaStream_t stream);
void fetch_kv(const FetchKvParams& params, cudaStream_t stream);
void plan(const PlanParams& params, cudaStream_t stream);
std::int64_t decode_workspace_bytes(const PlanShape& shape, int s, int heads);
void decode(const DecodeParams& params, cudaStream_t stream);
void combine(const CombineParams& params, cudaStream_t stream);

/// The workspace's two parts, as laid out above.
struct Partials {
  float* out;
  float* lse;
};

inline Partials partials_of(const DecodeParams& params) {
  const std::int64_t rows = params.q_latent.dim(1) * params.q_latent.dim(2);
  auto* out = params.workspace.as<float>();
  return {.out = out, .lse = out + params.plan.shape.max_items * rows * kLatentDim};
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
