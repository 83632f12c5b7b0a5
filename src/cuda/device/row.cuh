// One token's or query's row, 512 latent and 64 rope elements, spread over a warp; what quantize_q and
// append_kv share. The arithmetic is that of src/reference/{quantize,norm_rope}.cc, rounding for rounding.
//
// Lane l holds latent elements 8l .. 8l+7 and 256+8l .. 256+8l+7 as bf16 pairs in words (two 16-byte loads;
// as e4m3 two 8-byte stores, each contiguous over the warp), and the rope pair l: elements (2l, 2l+1), or
// (l, l+32) where a rotation pairs them so.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/bf16.h"
#include "cuda/device/elements.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/scale.cuh"
#include "snapmla/attention.h"

namespace snapmla::cuda_ops {

inline constexpr int kLaneWords = kLatentDim / kWarpLanes / 2;  // bf16 pairs a lane
inline constexpr int kHalfRow = kLatentDim / 2;                 // elements between a lane's two runs of 8

struct LatentRow {
  std::uint32_t word[kLaneWords];
};

/// kAligned: the row starts at a multiple of 16 bytes; else it is read two bytes at a time.
template <bool kAligned>
__device__ __forceinline__ LatentRow load_latent(const Bf16* g_row, int lane) {
  LatentRow row;
  for (int run = 0; run < 2; ++run) {
    const Bf16* g_run = g_row + run * kHalfRow + 8 * lane;
    std::uint32_t* word = row.word + run * kLaneWords / 2;
    if constexpr (kAligned) {
      const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(g_run));
      word[0] = loaded.x;
      word[1] = loaded.y;
      word[2] = loaded.z;
      word[3] = loaded.w;
    } else {
      const auto* bits = reinterpret_cast<const unsigned short*>(g_run);
      for (int i = 0; i < kLaneWords / 2; ++i)
        word[i] = __ldg(bits + 2 * i) | static_cast<std::uint32_t>(__ldg(bits + 2 * i + 1)) << 16;
    }
  }
  return row;
}

/// Stores a row as bf16, 16-byte aligned.
__device__ __forceinline__ void store_latent(Bf16* g_row, int lane, const LatentRow& row) {
  for (int run = 0; run < 2; ++run) {
    const std::uint32_t* word = row.word + run * kLaneWords / 2;
    *reinterpret_cast<uint4*>(g_row + run * kHalfRow + 8 * lane) =
        make_uint4(word[0], word[1], word[2], word[3]);
  }
}

/// max |latent| over the warp; NaN elements do not count. bf16 magnitudes are ordered like their bits.
__device__ __forceinline__ float latent_amax(const LatentRow& row) {
  __nv_bfloat162 largest = __floats2bfloat162_rn(0, 0);  // a number, so that no NaN ever wins
  for (const std::uint32_t word : row.word) {
    __nv_bfloat162 pair;
    memcpy(&pair, &word, sizeof pair);
    largest = __hmax2(largest, __habs2(pair));
  }
  std::uint32_t bits = 0;
  memcpy(&bits, &largest, sizeof bits);
  const std::uint32_t of_lane = max(bits & 0xffffU, bits >> 16);
  return bits_to_float(__reduce_max_sync(kAllLanes, of_lane) << 16);
}

/// x / scale, correctly rounded: a multiplication where the scale is a power of two.
template <ScaleRule kRule>
struct Divider {
  float scale;
  float inverse;
  __device__ __forceinline__ explicit Divider(float amax) {
    scale = kRule == ScaleRule::kPowerOfTwo ? power_of_two_scale(amax) : amax_scale(amax);
    inverse = kRule == ScaleRule::kPowerOfTwo ? power_of_two_inverse(scale) : 0;
  }
  __device__ __forceinline__ float operator()(float x) const {
    return kRule == ScaleRule::kPowerOfTwo ? __fmul_rn(x, inverse) : __fdiv_rn(x, scale);
  }
};

/// Stores e4m3(latent / scale), 8-byte aligned.
template <ScaleRule kRule>
__device__ __forceinline__ void store_latent_e4m3(E4m3* g_row, int lane, const LatentRow& row,
                                                  const Divider<kRule>& divide) {
  for (int run = 0; run < 2; ++run) {
    const std::uint32_t* word = row.word + run * kLaneWords / 2;
    const auto four = [&](std::uint32_t a, std::uint32_t b) {
      return pack_e4m3(divide(low_bf16(a)), divide(high_bf16(a)), divide(low_bf16(b)), divide(high_bf16(b)));
    };
    *reinterpret_cast<uint2*>(g_row + run * kHalfRow + 8 * lane) =
        make_uint2(four(word[0], word[1]), four(word[2], word[3]));
  }
}

/// RMSNorm (rms_norm_row): the sum of squares in fp64. A square of a bf16 is exact there, and so is the sum
/// unless the squares span more than 2^37 of each other; beyond that the order of additions may move the last
/// bit of an fp64 number, which the rounding of 1 / sqrt to fp32 hides in all but one of 2^28 rows.
__device__ __forceinline__ LatentRow rms_norm(const LatentRow& row, const LatentRow& weight, float eps) {
  double sum = 0;
  for (const std::uint32_t word : row.word) {
    sum += static_cast<double>(low_bf16(word)) * low_bf16(word);
    sum += static_cast<double>(high_bf16(word)) * high_bf16(word);
  }
  sum = warp_sum(sum);
  const auto inverse = static_cast<float>(1.0 / sqrt(sum / kLatentDim + eps));
  LatentRow normed;
  for (int i = 0; i < kLaneWords; ++i) {
    const float low = __fmul_rn(__fmul_rn(low_bf16(row.word[i]), inverse), low_bf16(weight.word[i]));
    const float high = __fmul_rn(__fmul_rn(high_bf16(row.word[i]), inverse), high_bf16(weight.word[i]));
    normed.word[i] = pack_bf16(low, high);
  }
  return normed;
}

/// RopeParams as a kernel takes it.
struct RopeArgs {
  const float* cos_sin = nullptr;  ///< [num_positions, 64]; null: no rotation
  const int* positions = nullptr;  ///< a token
  bool adjacent = true;            ///< lane l holds (2l, 2l+1), else (l, l+32)
};

inline RopeArgs make_rope_args(const RopeParams& rope) {
  if (!rope.cos_sin.present()) return {};
  return {.cos_sin = rope.cos_sin.as<float>(),
          .positions = rope.positions.as<std::int32_t>(),
          .adjacent = rope.interleaved};
}

struct RopePair {
  float first;
  float second;
};

/// The lane's rope pair, rotated if asked and rounded to bf16. kAligned: at a multiple of 4 bytes.
template <bool kAligned>
__device__ __forceinline__ RopePair load_rope(const Bf16* g_row, int lane, const RopeArgs& rope,
                                              std::int64_t token) {
  RopePair pair;
  if (kAligned && rope.adjacent) {
    const std::uint32_t word = __ldg(reinterpret_cast<const std::uint32_t*>(g_row) + lane);
    pair = {low_bf16(word), high_bf16(word)};
  } else {
    const auto* bits = reinterpret_cast<const unsigned short*>(g_row);
    const int first = rope.adjacent ? 2 * lane : lane;
    const int second = rope.adjacent ? 2 * lane + 1 : lane + kRopeDim / 2;
    pair = {to_float(Bf16{__ldg(bits + first)}), to_float(Bf16{__ldg(bits + second)})};
  }
  if (rope.cos_sin == nullptr) return pair;
  const float* cos_sin = rope.cos_sin + static_cast<std::int64_t>(__ldg(rope.positions + token)) * kRopeDim;
  const float cosine = __ldg(cos_sin + lane);
  const float sine = __ldg(cos_sin + kRopeDim / 2 + lane);
  const auto [a, b] = pair;
  return {round_to_bf16(__fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine))),
          round_to_bf16(__fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine)))};
}

/// Stores the pair as bf16 where it came from; the row is 4-byte aligned.
__device__ __forceinline__ void store_rope(Bf16* g_row, int lane, bool adjacent, float first, float second) {
  if (adjacent) {
    reinterpret_cast<std::uint32_t*>(g_row)[lane] = pack_bf16(first, second);
  } else {
    g_row[lane] = to_bf16(first);
    g_row[lane + kRopeDim / 2] = to_bf16(second);
  }
}

}  // namespace snapmla::cuda_ops
