// Rows of bf16, eight elements to a thread: one 16-byte access where rows are aligned to it, else two bytes at a time.
#pragma once

#include <cstdint>

#include "core/bf16.h"
#include "cuda/device/ptx.cuh"

namespace snapmla::cuda_ops {

inline constexpr int kRun = 8;  ///< elements a thread takes at a time

inline std::int64_t runs_of(std::int64_t d) {
  return (d + kRun - 1) / kRun;
}

/// Pairs of bf16, the first in the lower half of a word.
struct Eight {
  std::uint32_t word[kRun / 2];
};

__device__ __forceinline__ float low_bf16(std::uint32_t word) {
  return bits_to_float(word << 16);
}
__device__ __forceinline__ float high_bf16(std::uint32_t word) {
  return bits_to_float(word & 0xffff0000U);
}

/// Elements first to first + 7 of a row of d; 0 for those past its end. kAligned: the row starts at a multiple of 16
/// bytes and `first` is one of 8.
template <bool kAligned>
__device__ __forceinline__ Eight load_eight(const Bf16* g_row, int first, int d) {
  if (kAligned && first + kRun <= d) {
    const uint4 loaded = *reinterpret_cast<const uint4*>(g_row + first);
    return {{loaded.x, loaded.y, loaded.z, loaded.w}};
  }
  Eight values{};
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (first + i < d)
      values.word[i / 2] |= static_cast<std::uint32_t>(g_row[first + i].bits) << (i % 2 == 0 ? 0 : 16);
  }
  return values;
}

/// Stores what load_eight loads.
template <bool kAligned>
__device__ __forceinline__ void store_eight(Bf16* g_row, int first, int d, const Eight& values) {
  if (kAligned && first + kRun <= d) {
    *reinterpret_cast<uint4*>(g_row + first) =
        make_uint4(values.word[0], values.word[1], values.word[2], values.word[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (first + i < d)
      g_row[first + i] = Bf16{static_cast<std::uint16_t>(values.word[i / 2] >> (i % 2 == 0 ? 0 : 16))};
  }
}

}  // namespace snapmla::cuda_ops
