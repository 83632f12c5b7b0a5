// The merge of a request's partials, as one warp or the eight warps of a block do it. Formulas and the division of work:
// combine.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/bf16.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "snapmla/format.h"

namespace snapmla::cuda_ops::merging {

inline constexpr int kLogGroups = 3;
inline constexpr int kGroups = 1 << kLogGroups;
inline constexpr int kWarps = kGroups;
inline constexpr int kFewPartials = 12;  ///< 8 x 4K x 128, 8 and 9 partials: 24.0 us, and 28.6 us in groups
inline constexpr float kLn2 = 0.693147181F;
inline constexpr int kLaneDims = 8;  ///< of each slice of a unit
inline constexpr int kSliceDims = kLaneDims * kWarpLanes;
inline constexpr int kSlices = kLatentDim / kSliceDims;  ///< of a row: two halves
inline constexpr int kWarpBytes = 9 * 1024;  ///< a group's share of 66 partials, whole rows of halves

struct CombineArgs {
  const void* partial_out;     ///< [partials][rows][512], float or half
  const float* partial_lse;    ///< [partials][rows]
  const float* partial_scale;  ///< [partials], of half partials
  const int* split_offsets;
  int num_partials;  ///< capacity
  int batch;
  int rows;
  int fewest;  ///< requests with fewer partials are left alone
  void* out;
  bool out_bf16;
  float* lse;
};

/// The partials of one request.
struct Range {
  int begin;
  int count;
};

/// A partial as memory holds it, and how a lane's 8 dims of a slice are added up.
struct Floats {
  static constexpr int kBytes = 4;
  static constexpr int kMostUnitSlices = 1;

  struct Lane {
    float4 low;
    float4 high;
  };
  static __device__ __forceinline__ float scale(const CombineArgs& /*args*/, std::int64_t /*partial*/) {
    return 1;
  }
  static __device__ __forceinline__ Lane load(std::uint32_t s_lane) {
    return {load_shared<float4>(s_lane), load_shared<float4>(s_lane + 16)};
  }
  static __device__ __forceinline__ void add(float (&sum)[kLaneDims], float weight, const Lane& lane) {
    const float x[kLaneDims] = {lane.low.x,  lane.low.y,  lane.low.z,  lane.low.w,
                                lane.high.x, lane.high.y, lane.high.z, lane.high.w};
#pragma unroll
    for (int d = 0; d < kLaneDims; ++d) sum[d] = fmaf(weight, x[d], sum[d]);
  }
};

struct Halves {
  static constexpr int kBytes = 2;
  static constexpr int kMostUnitSlices = kSlices;

  using Lane = int4;
  static __device__ __forceinline__ float scale(const CombineArgs& args, std::int64_t partial) {
    return __ldcg(args.partial_scale + partial);
  }
  static __device__ __forceinline__ Lane load(std::uint32_t s_lane) { return load_shared<int4>(s_lane); }
  static __device__ __forceinline__ void add(float (&sum)[kLaneDims], float weight, const Lane& lane) {
    const int pairs[kLaneDims / 2] = {lane.x, lane.y, lane.z, lane.w};
#pragma unroll
    for (int i = 0; i < kLaneDims / 2; ++i) {
      const float2 x = unpack_half(static_cast<std::uint32_t>(pairs[i]));
      sum[2 * i] = fmaf(weight, x.x, sum[2 * i]);
      sum[2 * i + 1] = fmaf(weight, x.y, sum[2 * i + 1]);
    }
  }
};

/// A lane's dims of a unit of so many slices.
template <int kUnitSlices>
using Sum = float[kUnitSlices][kLaneDims];

/// Of some partials of a row: M and W.
struct Softmax {
  float max;
  float sum;
};

/// exp(x - max), 0 for -inf, which max may be too.
__device__ __forceinline__ float weight_of(float x, float max) {
  return x == -INFINITY ? 0.0F : exp_fast(x - max);
}

__device__ __forceinline__ float lse_of(const Softmax& softmax) {
  return softmax.max + kLn2 * log2_fast(softmax.sum);
}

__device__ __forceinline__ float inverse_of(float sum) {
  return sum == 0 ? 0 : reciprocal_fast(sum);  // a row that no partial sees is zero
}

__device__ __forceinline__ void store_lane(const CombineArgs& args, std::int64_t element,
                                           const float (&sum)[kLaneDims], float inverse) {
  float x[kLaneDims];
#pragma unroll
  for (int d = 0; d < kLaneDims; ++d) x[d] = sum[d] * inverse;
  if (args.out_bf16) {
    *reinterpret_cast<uint4*>(static_cast<Bf16*>(args.out) + element) = make_uint4(
        pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
  } else {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(args.out) + element);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
}

/// What the warps of a block found of a unit: M and W of each group, and the sum in units of exp(M).
struct Groups {
  Softmax softmax[kGroups];
  alignas(16) float sum[kGroups][kLatentDim];
};

/// The groups added up in order, kUnitSlices neighbouring dims a thread, and stored. Returns the row's softmax.
template <int kUnitSlices>
__device__ __forceinline__ Softmax store_groups(const CombineArgs& args, std::int64_t element,
                                                const Sum<kUnitSlices>& sum, const Softmax& softmax, int warp,
                                                int lane, Groups& s_groups) {
#pragma unroll
  for (int slice = 0; slice < kUnitSlices; ++slice) {
    const float(&x)[kLaneDims] = sum[slice];
    const std::uint32_t s_mine = shared_address(&s_groups.sum[warp][slice * kSliceDims + kLaneDims * lane]);
    store_shared(s_mine, make_float4(x[0], x[1], x[2], x[3]));
    store_shared(s_mine + 16, make_float4(x[4], x[5], x[6], x[7]));
  }
  if (lane == 0) s_groups.softmax[warp] = softmax;
  __syncthreads();
  Softmax row{-INFINITY, 0};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) row.max = fmaxf(row.max, s_groups.softmax[group].max);
  const int dim = kUnitSlices * (warp * kWarpLanes + lane);
  float total[kUnitSlices] = {};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const float weight = weight_of(s_groups.softmax[group].max, row.max);
    row.sum = fmaf(weight, s_groups.softmax[group].sum, row.sum);
#pragma unroll
    for (int d = 0; d < kUnitSlices; ++d) total[d] = fmaf(weight, s_groups.sum[group][dim + d], total[d]);
  }
  const float inverse = inverse_of(row.sum);
#pragma unroll
  for (int d = 0; d < kUnitSlices; ++d) {
    const float x = total[d] * inverse;
    if (args.out_bf16) {
      static_cast<Bf16*>(args.out)[element + dim + d] = Bf16{static_cast<std::uint16_t>(pack_bf16(x, 0))};
    } else {
      static_cast<float*>(args.out)[element + dim + d] = x;
    }
  }
  __syncthreads();
  return row;
}

/// A warp's copies: bulk copies of a unit of each partial, which complete on a barrier of its own.
struct WarpCopies {
  std::uint32_t s_units;  ///< kWarpBytes: as many units as fit
  std::uint32_t barrier;
  std::uint32_t parity;
};

/// sum += weights * the units in shared memory; that of unit i is lane first + i's.
template <class Stored, int kUnitSlices>
__device__ __forceinline__ void add_units(Sum<kUnitSlices>& sum, float weight, int first, int count,
                                          std::uint32_t s_units, int lane) {
  constexpr int kTogether = 2;  // loads in flight; 4 and 8 were no faster
  constexpr int kLaneBytes = kLaneDims * Stored::kBytes;
  const std::uint32_t s_lane = s_units + lane * kLaneBytes;
#pragma unroll 1
  for (int i = 0; i < count; i += kTogether) {
#pragma unroll
    for (int slice = 0; slice < kUnitSlices; ++slice) {
      typename Stored::Lane loaded[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        loaded[j] =
            Stored::load(s_lane + (min(i + j, count - 1) * kUnitSlices + slice) * kWarpLanes * kLaneBytes);
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float w = __shfl_sync(kAllLanes, weight, first + i + j);
        if (i + j < count && w != 0) Stored::add(sum[slice], w, loaded[j]);
      }
    }
  }
}

/// sum = sum of exp(lse_i - M) out_i over partials first, first + 2^log_step, ... of a unit, in order; returns their
/// softmax. An empty partial has lse -inf, and what it holds is not used.
template <class Stored, int kUnitSlices>
__device__ __forceinline__ Softmax merge(const CombineArgs& args, const Range& range, int row, int dim,
                                         int first, int log_step, int lane, WarpCopies& copies,
                                         Sum<kUnitSlices>& sum) {
  const int step = 1 << log_step;
  constexpr int kUnitBytes = kUnitSlices * kSliceDims * Stored::kBytes;
  constexpr int kAtOnce = kWarpBytes / kUnitBytes;
  static_assert(kAtOnce > 0 && kAtOnce <= kWarpLanes);
  const std::int64_t partial_stride = std::int64_t{args.rows} * kLatentDim * Stored::kBytes;
  const auto* g_out = static_cast<const std::byte*>(args.partial_out) + range.begin * partial_stride +
                      (std::int64_t{row} * kLatentDim + dim) * Stored::kBytes;
  Softmax softmax{-INFINITY, 0};  // its sum is a lane's own until the end
#pragma unroll 1
  for (int begin = first; begin < range.count; begin += kWarpLanes * step) {  // a lane a partial
    const int mine = begin + lane * step;
    float lse = -INFINITY;
    float scale = 0;
    if (mine < range.count) {
      lse = __ldcg(args.partial_lse + std::int64_t{range.begin + mine} * args.rows + row);
      scale = Stored::scale(args, range.begin + mine);
    }
    const int count = min(kWarpLanes, (range.count - begin + step - 1) >> log_step);
    float weight = 0;
#pragma unroll 1
    for (int i = 0; i < count; i += kAtOnce) {
      const int now = min(count - i, kAtOnce);
      if (lane == 0) arrive_expect(copies.barrier, now * kUnitBytes);
      __syncwarp();
      if (lane < now)
        copy_bulk(copies.s_units + lane * kUnitBytes, g_out + (begin + (i + lane) * step) * partial_stride,
                  kUnitBytes, copies.barrier);
      if (i == 0) {
        const float larger = fmaxf(softmax.max, warp_max(lse));
        const float keep = weight_of(softmax.max, larger);
        weight = weight_of(lse, larger);
        softmax = {.max = larger, .sum = fmaf(keep, softmax.sum, weight)};
        weight *= scale;
        if (begin > first) {
#pragma unroll
          for (auto& slice : sum)
            for (float& x : slice) x *= keep;
        }
      }
      wait(copies.barrier, copies.parity);
      copies.parity ^= 1;
      add_units<Stored, kUnitSlices>(sum, weight, i, now, copies.s_units, lane);
      __syncwarp();  // all have read before more arrives
    }
  }
  softmax.sum = warp_sum(softmax.sum);
  return softmax;
}

__device__ __forceinline__ bool is_few(int count) {
  return count <= kFewPartials;
}

}  // namespace snapmla::cuda_ops::merging
