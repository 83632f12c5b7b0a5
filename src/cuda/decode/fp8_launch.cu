// Launch of the FP8 decode kernel: arguments. Contract: cuda/ops.h.
#include "core/check.h"
#include "cuda/decode/fp8_kernel.cuh"
#include "cuda/decode/work.h"
#include "cuda/ops.h"

namespace snapmla::cuda_ops {

void decode_fp8(const DecodeParams& params, cudaStream_t stream) {
  using namespace fp8;
  const CacheView& cache = params.cache;
  SNAPMLA_REQUIRE(
      cache.num_pages == 0 || cache.scale.row_stride == 4, "decode",
      "cache.scale must be dense within a page (row_stride 4) on the cuda backend; got row_stride ",
      cache.scale.row_stride);
  const Args args{make_work(params), params.q_scale.as<float>(),
                  static_cast<const std::uint8_t*>(cache.scale.data), cache.scale.page_stride};
  launch_decode<decode_kernel, kThreads, Shared::kBytes>(args, params, stream);
}

}  // namespace snapmla::cuda_ops
