// The last kernel of the experts: out[token] = sum over its choices, in their order, of weight * (what the expert gave,
// or x itself where it is an identity), in fp32, rounded once.
//
// Grid: (tokens, ceil(hidden / 1,024)) blocks; a thread has four columns.
#pragma once

#include <cstdint>

#include "cuda/device/ptx.cuh"
#include "cuda/experts/config.h"
#include "snapmla/tensor.h"

namespace snapmla::cuda_ops::moe {

inline constexpr int kSumThreads = 256;
inline constexpr int kSumColumns = 4;

struct SumArgs {
  const int* place;  ///< [tokens, top_k], negative: an identity
  const float* weight;
  std::int64_t weight_stride;
  const float* down;  ///< [places, hidden]
  const Bf16* x;
  std::int64_t x_stride;
  Bf16* out;
  std::int64_t out_stride;
  int top_k;
  int hidden;
};

__device__ __forceinline__ float4 widen_four(const Bf16* g_row) {
  const uint2 words = *reinterpret_cast<const uint2*>(g_row);
  return make_float4(bits_to_float(words.x << 16), bits_to_float(words.x & 0xffff0000U),
                     bits_to_float(words.y << 16), bits_to_float(words.y & 0xffff0000U));
}

__global__ void __launch_bounds__(kSumThreads) sum_kernel(const __grid_constant__ SumArgs args) {
  constexpr int kAtOnce = 8;  // choices whose loads are in flight together
  const std::int64_t token = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * kSumThreads + threadIdx.x) * kSumColumns;
  wait_for_previous_grid();
  launch_next_grid();
  if (column >= args.hidden) return;
  const int* place = args.place + token * args.top_k;
  const float* weight = args.weight + token * args.weight_stride;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int first = 0; first < args.top_k; first += kAtOnce) {
    int at[kAtOnce];
    float factor[kAtOnce];
    float4 value[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= args.top_k) continue;
      at[i] = place[first + i];
      factor[i] = weight[first + i];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= args.top_k) continue;
      value[i] =
          at[i] < 0
              ? widen_four(args.x + token * args.x_stride + column)
              : *reinterpret_cast<const float4*>(args.down + std::int64_t{at[i]} * args.hidden + column);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= args.top_k) continue;
      sum.x = fmaf(factor[i], value[i].x, sum.x);
      sum.y = fmaf(factor[i], value[i].y, sum.y);
      sum.z = fmaf(factor[i], value[i].z, sum.z);
      sum.w = fmaf(factor[i], value[i].w, sum.w);
    }
  }
  *reinterpret_cast<uint2*>(args.out + token * args.out_stride + column) =
      make_uint2(pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w));
}

}  // namespace snapmla::cuda_ops::moe
