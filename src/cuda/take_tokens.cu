// take_tokens: sampled tokens into the places that wait for them, so that a step can be enqueued before the host knows the tokens of
// the step ahead.
#include "core/check.h"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/plain_ops.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kThreads = 256;

struct TakeArgs {
  const std::int32_t* sampled;
  std::int32_t* token;
  int count;
};

__global__ void __launch_bounds__(kThreads) take_kernel(const TakeArgs args) {
  launch_next_grid();
  wait_for_previous_grid();
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < args.count && args.token[i] < 0) args.token[i] = args.sampled[-1 - args.token[i]];
}

}  // namespace

void take_tokens(const ConstTensorView& sampled, const TensorView& token, cudaStream_t stream) {
  SNAPMLA_ASSERT(sampled.dtype() == DType::kI32 && token.dtype() == DType::kI32);
  const auto count = static_cast<int>(token.dim(0));
  if (count == 0) return;
  launch_overlapped(
      take_kernel, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0, stream,
      TakeArgs{.sampled = sampled.as<std::int32_t>(), .token = token.as<std::int32_t>(), .count = count});
}

}  // namespace snapmla::cuda_ops
