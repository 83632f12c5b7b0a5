// The stages of warpgroup 0: QK and softmax of a pair of pages. Per query row, K the smallest power of two
// >= the pair's largest scale, in powers of two:
//
//     x[t] = logit_factor * q_scale * scale[t] * acc[t]      m = max x             p[t] = 2^(x[t] - m) <= 1
//     P[t] = e4m3(448 / K * scale[t] * p[t])                 the pair's own range, whatever came before
//     T    = sum_t P[t] * latent[t]                          on the tensor core, 128 tokens
//     O   += 2^(m - reference) * K * T                       sum += 2^(m - reference) * sum_t p[t]        in fp32
//
// and out = O / (448 sum). m is the exact maximum, so the weight of the largest token is 448 (by a power of
// two, with power-of-two scales), which e4m3 holds exactly: with m rounded up to an integer, peaked attention
// lost 2 % instead of 0.4 %. Where the pair has one scale, it and 448 / K * scale go into the factor and the
// exponent, and the two products with them fall away. The reference only keeps gains, the factors of T, in
// fp32's range: it moves when m has outgrown it by kMaxGain, which rescales O.
#pragma once

#include "cuda/decode/fp8_load_stages.cuh"
#include "cuda/device/wgmma.cuh"

namespace snapmla::cuda_ops::fp8 {

inline constexpr float kMinusLarge = -1e37F;  ///< below every logit, and finite: a difference is no NaN
inline constexpr float kMinFactor =
    1e-30F;  ///< of a logit: keeps -inf * factor at -inf where the factor is 0
/// O stays below 2^30 * K * 448^2 * 2^20 tokens = 2^108 for K = 2^40, the largest power-of-two scale.
inline constexpr float kMaxGain = 30.0F;

/// acc = Q . K of a pair, 64 rows x 128 tokens. FP8 first: its products truncate what they add to, and RoPE
/// parts can be large.
__device__ __forceinline__ void issue_scores(float (&acc)[64], std::uint32_t s_base, int n) {
  const std::uint32_t slot = n % kNumSlots;
  const std::uint32_t loaded = (n / kNumSlots) & 1;
  const Descriptor query = k_major(s_base + Shared::kQuery, 1024, Swizzle::k128B);
  const Descriptor keys = k_major(s_base + Shared::kSlots + slot * kSlotBytes, 1024, Swizzle::k128B);
  const auto latent_chunk = [&](int i) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      mma_e4m3(acc, query.advance(i * kQueryChunkBytes + 32 * k), keys.advance(i * kPairChunkBytes + 32 * k),
               i + k != 0);
  };
  wait(barrier(s_base, kEvenFull + slot), loaded);
  pin(acc);
  mma_fence();
  latent_chunk(0);
  latent_chunk(2);
  wait(barrier(s_base, kOddFull + slot), loaded);
  mma_fence();  // after every wait: else ptxas injects one, and says so (C7519)
  latent_chunk(1);
  latent_chunk(3);
  wait(barrier(s_base, kRopeFull + slot), loaded);
  mma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    mma_bf16(acc, query.advance(kRopeChunk * kQueryChunkBytes + 32 * k),
             keys.advance(kRopeChunk * kPairChunkBytes + 32 * k), true);
  mma_commit();
}

/// K, the smallest power of two >= the largest scale of a pair.
__device__ __forceinline__ float power_of_two_above(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x007FFFFFU) & 0xFF800000U);
}

/// A pair's scales as a warp sees them.
struct PairScales {
  float k;        ///< K
  float largest;  ///< of the pair's tokens
  bool one;       ///< 128 tokens with one scale: the product with it leaves the softmax
};

/// What the softmax needs of the scales, worked out once a warp while the tensor core is busy: the scale for
/// the logit, with the sign of the softmax scale, and 448 / K * scale for P, which is 0 for tokens past the
/// end, whatever lies there.
__device__ __forceinline__ PairScales prepare_scales(std::uint32_t s_base, int n, int tokens, bool negative,
                                                     int warp, int lane) {
  const float4 scale =
      load_shared<float4>(s_base + Shared::kScales + (n % kNumSlots) * kScalesBytes + 16 * lane);
  const auto used = [&](int i, float x) { return 4 * lane + i < tokens ? x : 0.0F; };
  const float4 valid = {used(0, scale.x), used(1, scale.y), used(2, scale.z), used(3, scale.w)};
  // positive floats order as their bits do
  const auto bits = [](float x, float y) { return __float_as_uint(fmaxf(x, y)); };
  const float largest =
      __uint_as_float(__reduce_max_sync(~0U, max(bits(valid.x, valid.y), bits(valid.z, valid.w))));
  const bool same = valid.x == largest && valid.y == largest && valid.z == largest && valid.w == largest;
  const float k = power_of_two_above(largest);
  const float to_range = kE4m3Max * reciprocal_fast(k);
  const float sign = negative ? -1.0F : 1.0F;
  store_shared(s_base + Shared::kKeyScales + warp * kScalesBytes + 16 * lane,
               float4{sign * scale.x, sign * scale.y, sign * scale.z, sign * scale.w});
  store_shared(s_base + Shared::kValueScales + warp * kScalesBytes + 16 * lane,
               float4{to_range * valid.x, to_range * valid.y, to_range * valid.z, to_range * valid.w});
  __syncwarp();
  return {.k = k, .largest = largest, .one = __all_sync(~0U, same) && !negative};
}

/// The two query rows a lane of warpgroup 0 works on, g and g + 8 of its warp's 16.
struct RowPair {
  float factor[2];     ///< |logit_factor| * q_scale
  int sees[2];         ///< tokens of the request each row sees
  float reference[2];  ///< of O and sum
  float sum[2];        ///< this lane's share
  float scale;         ///< the largest K so far
};

// A warp a scheduler does the softmax alone, so what it waits for is latency: shared loads run eight tiles
// ahead (with two, they took a quarter of the kernel's time on an H200, 2026-11-25), and no chain of maxima or
// sums is longer than it must be.
inline constexpr int kTiles = kPairTokens / 8;  ///< of 8 tokens in an accumulator
inline constexpr int kAhead = 8;

/// The scales of a lane's two tokens of each of the next kAhead tiles.
struct ScaleRing {
  float2 scale[kAhead];

  __device__ __forceinline__ void fill(std::uint32_t s_scales) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) scale[j] = load_shared<float2>(s_scales + 32 * j);
  }
  /// The scales of tile j; then loads those of tile j + kAhead, from the next table at the end of this one.
  __device__ __forceinline__ float2 take(int j, std::uint32_t s_scales, std::uint32_t s_next) {
    const float2 taken = scale[j % kAhead];
    scale[j % kAhead] = load_shared<float2>(j + kAhead < kTiles ? s_scales + 32 * (j + kAhead)
                                                                : s_next + 32 * (j + kAhead - kTiles));
    return taken;
  }
};

/// acc * scale in place, and the largest of each row. kMasked: tokens from `visible` on count as -inf.
template <bool kMasked>
__device__ __forceinline__ void scale_scores(float (&acc)[64], ScaleRing& ring, const int (&visible)[2],
                                             std::uint32_t s_key_scales, std::uint32_t s_value_scales, int c,
                                             float (&largest)[2]) {
  float partial[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) partial[i / 2][i % 2] = -INFINITY;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const float2 scale = ring.take(j, s_key_scales, s_value_scales);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = e / 2;
      float x = acc[4 * j + e] * (e % 2 == 0 ? scale.x : scale.y);
      if (kMasked && 8 * j + 2 * c + e % 2 >= visible[r]) x = -INFINITY;
      acc[4 * j + e] = x;
      partial[r][e % 2] = fmaxf(partial[r][e % 2], x);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) largest[r] = fmaxf(partial[r][0], partial[r][1]);
}

/// The largest of each row.
__device__ __forceinline__ void largest_scores(const float (&acc)[64], float (&largest)[2]) {
  float most[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) most[e] = acc[e];
#pragma unroll
  for (int i = 4; i < 64; ++i) most[i % 4] = fmaxf(most[i % 4], acc[i]);
#pragma unroll
  for (int r = 0; r < 2; ++r) largest[r] = fmaxf(most[2 * r], most[2 * r + 1]);
}

/// P into its tile, and the lane's share of the sums of 2^(x * factor + shift). Those are p, and P is p times the
/// token's value scale; with kOneScale `shift` has brought them to P's range already.
template <bool kOneScale>
__device__ __forceinline__ void store_weights(const float (&x)[64], ScaleRing& ring, const float (&factor)[2],
                                              const float (&shift)[2], std::uint32_t s_value_scales,
                                              std::uint32_t s_weights, int warp, int lane, float (&sum)[2]) {
  const auto l = static_cast<std::uint32_t>(opaque(lane));
  // stmatrix: lanes 0-7 give the rows g of the first 16 positions, 8-15 of the next 16, 16-31 the rows g + 8
  const std::uint32_t row = warp * 16 + (l / 16) * 8 + l % 8;
  const std::uint32_t unit = (l / 8) % 2;
  float partial[2][2] = {};
#pragma unroll
  for (int run = 0; run < 4; ++run) {  // of 32 tokens
    std::uint32_t codes[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float f[8];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const int j = 4 * run + 2 * half + tile;
        float2 scale;
        if (!kOneScale) {
          scale = j < kTiles - kAhead ? ring.take(j, s_value_scales, s_value_scales) : ring.scale[j % kAhead];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = e / 2;
          const float p = exp2_fast(fmaf(x[4 * j + e], factor[r], shift[r]));
          partial[r][e % 2] += p;
          f[4 * tile + e] = kOneScale ? p : p * (e % 2 == 0 ? scale.x : scale.y);
        }
      }
      codes[half] = pack_e4m3(f[0], f[1], f[4], f[5]);
      codes[2 + half] = pack_e4m3(f[2], f[3], f[6], f[7]);
    }
    store_matrices(s_weights + tile_offset_128b(row, 32 * run + 16 * unit), codes);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) sum[r] = partial[r][0] + partial[r][1];
}

/// How the rows' references move with a pair: O and the sums so far are multiplied by `keep`, what the pair adds
/// by `gain`.
struct Moves {
  float keep[2];
  float gain[2];
};

/// Moves the references where they must move, which is rare, and publishes what PV multiplies T and O with.
__device__ __forceinline__ Moves publish_gains(RowPair& row, const float (&m)[2], float k, bool first,
                                               std::uint32_t s_base, std::uint32_t slot, int warp, int lane) {
  const auto l = static_cast<std::uint32_t>(opaque(lane));
  // row_place(16 warp + lane / 4) and that of 8 rows further, 2 on
  const std::uint32_t s_place = s_base + slot * kRowFloatsBytes + 64 * warp + 16 * (l / 8) + 4 * (l / 4 % 2);
  float ahead[2] = {m[0] - row.reference[0], m[1] - row.reference[1]};
  Moves moves{.keep = {1, 1}, .gain = {}};
  const bool any = __any_sync(~0U, first || fmaxf(ahead[0], ahead[1]) > kMaxGain);
  if (any) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!first && ahead[r] <= kMaxGain) continue;
      moves.keep[r] = first ? 0.0F : exp2_fast(-ahead[r]);
      row.reference[r] = m[r];
      ahead[r] = 0;
    }
    if (l % 4 == 0) {
      store_shared(s_place + Shared::kKeeps, moves.keep[0]);
      store_shared(s_place + Shared::kKeeps + 8, moves.keep[1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) moves.gain[r] = exp2_fast(ahead[r]);
  if (l % 4 == 0) {
    store_shared(s_place + Shared::kGains, moves.gain[0] * k);
    store_shared(s_place + Shared::kGains + 8, moves.gain[1] * k);
  }
  if (l == 0) store_shared(s_base + Shared::kMoved + slot * 16 + warp * 4, any && !first ? 1 : 0);
  return moves;
}

}  // namespace snapmla::cuda_ops::fp8
