// What the stages of sample share: the size of a block, its shared memory, and how a row of logits is loaded.
#pragma once

#include <cstdint>

#include "cuda/device/reduce.cuh"

namespace snapmla::cuda_ops::sampling {

using Wide = unsigned long long;  // not std::uint64_t, which shuffles do not take

inline constexpr int kThreads = 1024;
inline constexpr int kFour = 4;  // logits a thread loads at a time
inline constexpr int kBinBits = 11;
inline constexpr int kBins = 1 << kBinBits;
static_assert(kBins == 2 * kThreads);

/// 64-bit sums as two words, since shared memory adds words only. The upper one counts the lower one's overflows.
struct Bins {
  std::uint32_t low[kBins];
  std::uint32_t high[kBins];

  __device__ __forceinline__ void add(std::uint32_t bin, Wide x) {
    if (x == 0) return;
    const auto word = static_cast<std::uint32_t>(x);
    const std::uint32_t before = atomicAdd(low + bin, word);
    const std::uint32_t upper = static_cast<std::uint32_t>(x >> 32) + (before + word < before ? 1 : 0);
    if (upper != 0) atomicAdd(high + bin, upper);
  }
  [[nodiscard]] __device__ __forceinline__ Wide at(int bin) const {
    return static_cast<Wide>(high[bin]) << 32 | low[bin];
  }
};

/// Where a walk over the bins ends.
struct Crossing {
  std::uint32_t bin;
  Wide before;  ///< weight of the bins before
  Wide weight;  ///< of the bin
  Wide target;
};

struct Shared {
  Bins all;   ///< of the first round
  Bins some;  ///< of a later one
  Crossing crossing;
  Wide wide[kWarpLanes];
  double real[kWarpLanes];
  int count[kWarpLanes];
};

/// Logits first to first + 3; -inf past the end. kAligned: the row starts at a multiple of 16 bytes.
template <bool kAligned>
__device__ __forceinline__ float4 load_four(const float* g_row, int first, int vocab) {
  if (kAligned && first + kFour <= vocab) return __ldg(reinterpret_cast<const float4*>(g_row + first));
  const auto at = [&](int i) { return i < vocab ? __ldg(g_row + i) : -INFINITY; };
  return make_float4(at(first), at(first + 1), at(first + 2), at(first + 3));
}

}  // namespace snapmla::cuda_ops::sampling
