// Sums, maxima and prefix sums over a warp or a thread block. Every lane gets the result; the order of the
// additions is fixed, so results repeat bit for bit.
#pragma once

#include <cstdint>

namespace snapmla::cuda_ops {

inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x % kWarpLanes);
}

__device__ __forceinline__ int warp_index() {
  return static_cast<int>(threadIdx.x / kWarpLanes);
}

/// The warp's largest; a NaN loses to a number.
__device__ __forceinline__ float warp_max(float x) {
  for (int step = kWarpLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

/// The warp's sum: lanes 16 apart first, neighbours last.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = kWarpLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

/// The block's sum, of whole warps: that of warp_sum over the warps' sums. All threads must call it; `s_warp` may be
/// used again at once.
template <class T>
__device__ __forceinline__ T block_sum(T x, T (&s_warp)[kWarpLanes]) {
  const T of_warp = warp_sum(x);
  if (lane_index() == 0) s_warp[warp_index()] = of_warp;
  __syncthreads();
  const int num_warps = static_cast<int>(blockDim.x) / kWarpLanes;
  const T sum = warp_sum(lane_index() < num_warps ? s_warp[lane_index()] : T{});
  __syncthreads();
  return sum;
}

/// Sum over the lanes up to and including this one.
template <class T>
__device__ __forceinline__ T warp_scan(T x) {
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const T left = __shfl_up_sync(kAllLanes, x, step);
    if (lane_index() >= step) x += left;
  }
  return x;
}

template <class T>
struct ScanResult {
  T before{};  ///< sum over the threads before this one
  T total{};   ///< sum over all threads
};

/// Prefix sums of integers over a block of whole warps. All threads must call it; `s_warp` may be used again at
/// once.
template <class T>
__device__ __forceinline__ ScanResult<T> block_scan(T x, T (&s_warp)[kWarpLanes]) {
  const T inclusive = warp_scan(x);
  if (lane_index() == kWarpLanes - 1) s_warp[warp_index()] = inclusive;
  __syncthreads();
  const int num_warps = static_cast<int>(blockDim.x) / kWarpLanes;
  const T sum = warp_scan(lane_index() < num_warps ? s_warp[lane_index()] : T{});
  const T warps_before = __shfl_sync(kAllLanes, sum, max(warp_index() - 1, 0));
  __syncthreads();
  return {.before = (warp_index() == 0 ? T{} : warps_before) + inclusive - x,
          .total = __shfl_sync(kAllLanes, sum, kWarpLanes - 1)};
}

/// The block's largest. All threads must call it; `s_warp` may be used again at once.
__device__ __forceinline__ int block_max(int x, int (&s_warp)[kWarpLanes]) {
  const int of_warp = __reduce_max_sync(kAllLanes, x);
  if (lane_index() == 0) s_warp[warp_index()] = of_warp;
  __syncthreads();
  const int num_warps = static_cast<int>(blockDim.x) / kWarpLanes;
  const int of_block = __reduce_max_sync(kAllLanes, s_warp[lane_index() < num_warps ? lane_index() : 0]);
  __syncthreads();
  return of_block;
}

}  // namespace snapmla::cuda_ops
