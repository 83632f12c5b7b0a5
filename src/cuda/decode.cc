// decode: the main kernel of the cache's format, then the merge of the requests that the plan split.
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr std::int64_t kWorkspaceBytes = 256;  // alignment: what allocate() gives

void require_pointers(const DecodeParams& params) {
  constexpr const char* kOp = "decode";
  require_aligned(kOp, "q_latent", params.q_latent);
  require_aligned(kOp, "q_rope", params.q_rope);
  require_natural(kOp, "q_scale", params.q_scale);
  require_natural(kOp, "block_table", params.block_table);
  require_natural(kOp, "seq_lens", params.seq_lens);
  require_aligned(kOp, "plan.work_items", params.plan.work_items);
  require_natural(kOp, "plan.worker_offsets", params.plan.worker_offsets);
  require_natural(kOp, "plan.split_offsets", params.plan.split_offsets);
  require_aligned(kOp, "out", params.out);
  require_natural(kOp, "lse", params.lse);
  require_aligned(kOp, "workspace", params.workspace, kWorkspaceBytes);
}

}  // namespace

std::int64_t decode_workspace_bytes(const PlanShape& shape, int s, int heads) {
  // lse, scale, up to a border of 128 bytes, and out in the wider of the two formats
  const std::int64_t items = shape.max_items;
  const std::int64_t rows = std::int64_t{s} * heads;
  const std::int64_t floats = items * rows + items + 31 + items * rows * kLatentDim;
  return floats * static_cast<std::int64_t>(sizeof(float));
}

void decode(const DecodeParams& params, cudaStream_t stream) {
  require_pointers(params);
  if (params.cache.format == CacheFormat::kFp8) {
    decode_fp8(params, stream);
  } else {
    decode_bf16(params, stream);
  }
  // A plan with room for one item a request has split nothing.
  if (params.plan.shape.max_items > params.plan.shape.batch) combine_splits(params, stream);
}

}  // namespace snapmla::cuda_ops
