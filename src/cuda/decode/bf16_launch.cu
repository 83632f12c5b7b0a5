// Launch of the BF16 decode kernel: arguments. Contract: cuda/ops.h.
#include "cuda/decode/bf16_kernel.cuh"
#include "cuda/decode/work.h"
#include "cuda/ops.h"

namespace snapmla::cuda_ops {

void decode_bf16(const DecodeParams& params, cudaStream_t stream) {
  using namespace bf16;
  const CacheView& cache = params.cache;
  const Args args{make_work(params), cache.num_pages > 0};
  launch_decode<decode_kernel, kThreads, Shared::kBytes>(args, params, stream);
}

}  // namespace snapmla::cuda_ops
