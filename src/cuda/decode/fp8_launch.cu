// Launch of the FP8 decode kernel: arguments, tensor maps, grid. Contract: cuda/ops.h.
#include <cuda_runtime.h>

#include "core/check.h"
#include "cuda/decode/fp8_kernel.cuh"
#include "cuda/device/tensor_map.h"
#include "cuda/ops.h"

namespace snapmla::cuda_ops {
namespace {

using namespace fp8;

constexpr double kLog2E = 1.4426950408889634;

Args make_args(const DecodeParams& params) {
  const std::int64_t s = params.q_latent.dim(1);
  const std::int64_t heads = params.q_latent.dim(2);
  const std::int64_t rows = s * heads;
  const PlanView& plan = params.plan;
  auto* partial_out = params.workspace.present() ? params.workspace.as<float>() : nullptr;
  return {.work_items = plan.work_items.as<std::int32_t>(),
          .worker_offsets = plan.worker_offsets.as<std::int32_t>(),
          .split_offsets = plan.split_offsets.as<std::int32_t>(),
          .seq_lens = params.seq_lens.as<std::int32_t>(),
          .block_table = params.block_table.as<std::int32_t>(),
          .block_table_stride = params.block_table.stride(0),
          .q_scale = params.q_scale.as<float>(),
          .scale = static_cast<const std::uint8_t*>(params.cache.scale.data),
          .scale_page_stride = params.cache.scale.page_stride,
          .out = params.out.data(),
          .lse = params.lse.as<float>(),
          .partial_out = partial_out,
          .partial_lse = partial_out + plan.shape.max_items * rows * kLatentDim,
          .logit_factor = static_cast<float>(params.softmax_scale * kLog2E),
          .s = static_cast<int>(s),
          .heads = static_cast<int>(heads),
          .rows = static_cast<int>(rows),
          .tiles = static_cast<int>((rows + kTileRows - 1) / kTileRows),
          .causal = params.causal,
          .out_f32 = params.out.dtype() == DType::kF32};
}

}  // namespace

void decode_fp8(const DecodeParams& params, cudaStream_t stream) {
  SNAPMLA_REQUIRE(
      params.cache.num_pages == 0 || params.cache.scale.row_stride == 4, "decode",
      "cache.scale must be dense within a page (row_stride 4) on the cuda backend; got row_stride ",
      params.cache.scale.row_stride);
  const Args args = make_args(params);
  const Maps maps{
      .q_latent = make_query_map(params.q_latent),
      .q_rope = make_query_map(params.q_rope),
      .latent = make_page_map(params.cache.latent, DType::kE4M3, kLatentDim, params.cache.num_pages),
      .rope = make_page_map(params.cache.rope, DType::kBF16, kRopeDim, params.cache.num_pages)};
  SNAPMLA_CUDA(
      cudaFuncSetAttribute(decode_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::kBytes));
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(params.plan.shape.num_workers * args.tiles));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = Shared::kBytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  SNAPMLA_CUDA(cudaLaunchKernelEx(&config, decode_kernel, args, maps));
}

}  // namespace snapmla::cuda_ops
