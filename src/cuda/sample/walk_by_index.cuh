// A walk over the tokens by index: the row is cut into 32 parts, a part a warp; their masses say in which one the walk ends,
// and that one is cut again, until a part is one token.
#pragma once

#include "cuda/device/reduce.cuh"

namespace snapmla::cuda_ops::sampling {

/// Walks the tokens by index, adding weight(i), and returns the first at which the sum passes target_of(sum of all). If
/// rounding hides it: the last that has a weight.
template <class T, class Weight, class TargetOf>
__device__ __forceinline__ int walk_by_index(int vocab, const Weight& weight, const TargetOf& target_of,
                                             T (&s_part)[kWarpLanes]) {
  const int lane = lane_index();
  int begin = 0;
  int count = vocab;
  T target{};
  for (bool is_first = true;; is_first = false) {
    const int part = (count + kWarpLanes - 1) / kWarpLanes;
    T mine{};  // part `lane`
    if (part == 1) {
      if (lane < count) mine = weight(begin + lane);
    } else {
      T sum{};
      const int end = begin + min((warp_index() + 1) * part, count);
#pragma unroll 8
      for (int i = begin + warp_index() * part + lane; i < end; i += kWarpLanes) sum += weight(i);
      sum = warp_sum(sum);
      if (lane == 0) s_part[warp_index()] = sum;
      __syncthreads();
      mine = s_part[lane];
      __syncthreads();
    }
    const T through = warp_scan(mine);
    if (is_first) target = target_of(__shfl_sync(kAllLanes, through, kWarpLanes - 1));
    const unsigned weighty = __ballot_sync(kAllLanes, mine > 0);
    const unsigned passed = weighty & __ballot_sync(kAllLanes, through > target);
    const int chosen = passed != 0 ? __ffs(static_cast<int>(passed)) - 1
                                   : kWarpLanes - 1 - __clz(static_cast<int>(weighty | 1));
    begin += chosen * part;
    if (part == 1) return begin;
    target -= __shfl_sync(kAllLanes, through - mine, chosen);
    count = min(part, count - chosen * part);
  }
}

}  // namespace snapmla::cuda_ops::sampling
