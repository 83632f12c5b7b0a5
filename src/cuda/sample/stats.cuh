// The first stage of sample: the largest logit of a row, the lowest index that has it, and sum exp(logit - largest), whose
// terms are fp32 and whose sums are fp64, in one pass.
#pragma once

#include <cstdint>

#include "cuda/device/order.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/sample/config.cuh"

namespace snapmla::cuda_ops::sampling {

struct RowStats {
  int argmax;  ///< -1: the row has no softmax
  float largest;
  double sum;  ///< of exp(logit - largest)
};

/// NaN and +inf show in the sum: the one gives NaN, as does inf - inf.
template <bool kAligned>
__device__ __forceinline__ RowStats find_stats(const float* g_row, int vocab, Shared& shared) {
  constexpr float kLowest = -3.40282347e38F;  // in place of -inf, which has no difference to itself
  float largest = -INFINITY;                  // of this thread
  int argmax = -1;
  double sum = 0;
#pragma unroll 4
  for (int first = static_cast<int>(threadIdx.x) * kFour; first < vocab; first += kThreads * kFour) {
    const float4 x = load_four<kAligned>(g_row, first, vocab);
    const float top = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
    if (top > largest) {
      sum *= expf(fmaxf(largest, kLowest) - top);
      largest = top;
      argmax = first + (x.x == top ? 0 : x.y == top ? 1 : x.z == top ? 2 : 3);
    }
    const float base = fmaxf(largest, kLowest);
    sum += (expf(x.x - base) + expf(x.y - base)) + (expf(x.z - base) + expf(x.w - base));
  }
  // The largest key, then the lowest index; 0 of a thread that has no number above -inf.
  Wide best =
      argmax < 0 ? 0 : static_cast<Wide>(order_key(largest)) << 32 | ~static_cast<std::uint32_t>(argmax);
  for (int step = kWarpLanes / 2; step > 0; step /= 2)
    best = max(best, __shfl_xor_sync(kAllLanes, best, step));
  if (lane_index() == 0) shared.wide[warp_index()] = best;
  __syncthreads();
  best = shared.wide[lane_index()];
  for (int step = kWarpLanes / 2; step > 0; step /= 2)
    best = max(best, __shfl_xor_sync(kAllLanes, best, step));
  __syncthreads();
  RowStats stats{.argmax = static_cast<int>(~static_cast<std::uint32_t>(best)),
                 .largest = number_of(static_cast<std::uint32_t>(best >> 32)),
                 .sum = 0};
  if (best == 0) stats.largest = kLowest;
  stats.sum = block_sum(sum * exp(static_cast<double>(fmaxf(largest, kLowest)) - stats.largest), shared.real);
  if (best == 0 || isnan(stats.sum)) stats.argmax = -1;
  return stats;
}

}  // namespace snapmla::cuda_ops::sampling
