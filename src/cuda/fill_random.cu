// fill_random: as the reference, bit for bit. A thread makes sixteen bytes of numbers at a time, about 30 integer
// instructions each, so that 30 GB of bf16 take the integer units of an H100 some 50 ms.
#include <algorithm>

#include "core/bf16.h"
#include "core/check.h"
#include "core/e4m3.h"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/plain_ops.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kStoreBytes = 16;
constexpr std::int64_t kMostBlocks = 4096;  // more than fill every SM; each then takes several turns

struct FillArgs {
  void* out;
  std::int64_t count;
  std::uint64_t seed;
  std::uint64_t first;
  float factor;
};

__device__ void store(float* out, float x) {
  *out = x;
}
__device__ void store(Bf16* out, float x) {
  *out = to_bf16(x);
}
__device__ void store(E4m3* out, float x) {
  *out = to_e4m3(x);
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_kernel(const FillArgs args) {
  launch_next_grid();
  wait_for_previous_grid();
  constexpr int kEach = kStoreBytes / static_cast<int>(sizeof(T));
  auto* const out = static_cast<T*>(args.out);
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads * kEach;
  for (std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kEach; i < args.count;
       i += stride) {
    alignas(kStoreBytes) T numbers[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      store(numbers + j,
            random_number(args.seed, args.first + static_cast<std::uint64_t>(i + j), args.factor));
    }
    if (i + kEach <= args.count) {
      *reinterpret_cast<uint4*>(out + i) = *reinterpret_cast<const uint4*>(numbers);
    } else {
      for (int j = 0; i + j < args.count; ++j) out[i + j] = numbers[j];
    }
  }
}

using FillKernel = void (*)(FillArgs);

FillKernel kernel_for(DType dtype) {
  if (dtype == DType::kF32) return fill_kernel<float>;
  return dtype == DType::kE4M3 ? fill_kernel<E4m3> : fill_kernel<Bf16>;
}

}  // namespace

void fill_random(const TensorView& out, const RandomFill& fill, cudaStream_t stream) {
  SNAPMLA_ASSERT(out.is_contiguous() &&
                 (out.dtype() == DType::kBF16 || out.dtype() == DType::kF32 || out.dtype() == DType::kE4M3));
  SNAPMLA_ASSERT(reinterpret_cast<std::uintptr_t>(out.data()) % kStoreBytes == 0);
  const std::int64_t count = out.num_elements();
  if (count == 0) return;
  const FillArgs args{.out = out.data(),
                      .count = count,
                      .seed = fill.seed,
                      .first = fill.first,
                      .factor = random_factor(fill.deviation)};
  const std::int64_t block_numbers = std::int64_t{kThreads} * kStoreBytes / size_of(out.dtype());
  const std::int64_t blocks = std::min((count + block_numbers - 1) / block_numbers, kMostBlocks);
  launch_overlapped(kernel_for(out.dtype()), dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, args);
}

}  // namespace snapmla::cuda_ops
