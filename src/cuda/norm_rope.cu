// rms_norm and rope, the arithmetic of src/reference/norm_rope.cc rounding for rounding.
//
// rms_norm: a block a row, which stays in registers between the sum and the scaling. The sum of squares is in fp64 as
// the reference's, in another order: a square of a bf16 is exact there, and so is the sum of d of them unless they span
// more than 2^37 / d of each other. Beyond that the order may move the last bit of an fp64 number, which the rounding of
// 1 / sqrt to fp32 hides in all but one of 2^28 rows.
//
// rope: a thread turns eight pairs, so that its loads are 16 bytes wide whichever elements make a pair.
#include <cstdint>

#include "cuda/device/elements.cuh"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kFewRuns = 2;   // of eight elements, a thread: d up to 16,384
constexpr int kManyRuns = 8;  // d up to 32,768

/// A block's most: what kRuns runs of x and of the weight leave of the registers.
constexpr int max_threads(int runs) {
  return runs == kFewRuns ? 1024 : 512;
}

struct NormArgs {
  const Bf16* x;
  std::int64_t x_stride;
  const Bf16* weight;
  float eps;
  int d;
  Bf16* out;
  std::int64_t out_stride;
};

/// Grid: a block a row, of enough threads that kRuns runs each cover it. kAligned: rows and weight start at multiples of
/// 16 bytes.
template <bool kAligned, int kRuns>
__global__ void __launch_bounds__(max_threads(kRuns)) rms_norm_kernel(const NormArgs args) {
  __shared__ double s_warp[kWarpLanes];
  launch_next_grid();
  const auto first_of = [](int run) {
    return (run * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kRun;
  };
  Eight weight[kRuns];  // not what the kernel ahead writes (plain_ops.h)
#pragma unroll
  for (int run = 0; run < kRuns; ++run)
    weight[run] = load_eight<kAligned>(args.weight, first_of(run), args.d);
  wait_for_previous_grid();

  const Bf16* g_row = args.x + blockIdx.x * args.x_stride;
  Eight x[kRuns];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) x[run] = load_eight<kAligned>(g_row, first_of(run), args.d);
  double sum = 0;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    double low = 0;
    double high = 0;
    for (const std::uint32_t word : x[run].word) {
      low += static_cast<double>(low_bf16(word)) * low_bf16(word);
      high += static_cast<double>(high_bf16(word)) * high_bf16(word);
    }
    sum += low + high;
  }
  sum = block_sum(sum, s_warp);
  const auto inverse = static_cast<float>(1.0 / sqrt(sum / args.d + args.eps));

  Bf16* g_out = args.out + blockIdx.x * args.out_stride;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    Eight normed;
    for (int i = 0; i < kRun / 2; ++i) {
      const std::uint32_t value = x[run].word[i];
      const std::uint32_t by = weight[run].word[i];
      normed.word[i] = pack_bf16(__fmul_rn(__fmul_rn(low_bf16(value), inverse), low_bf16(by)),
                                 __fmul_rn(__fmul_rn(high_bf16(value), inverse), high_bf16(by)));
    }
    store_eight<kAligned>(g_out, first_of(run), args.d, normed);
  }
}

constexpr int kRopeThreads = 128;
constexpr int kPairs = kRopeDim / 2;
constexpr int kRowThreads = kPairs / kRun;  // that share a row of 64

struct Heads {
  std::int64_t token_stride;
  std::int64_t head_stride;
};

struct RotateArgs {
  const Bf16* x;
  Heads x_rows;
  const float* cos_sin;
  const int* positions;
  Bf16* out;
  Heads out_rows;
  std::uint32_t heads;
  std::uint32_t rows;  ///< tokens * heads
};

/// Eight cosines or sines.
template <bool kAligned>
__device__ __forceinline__ void load_factors(const float* g_from, float (&to)[kRun]) {
  if constexpr (kAligned) {
    for (int i = 0; i < kRun; i += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(g_from + i));
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
    for (int i = 0; i < kRun; ++i) to[i] = __ldg(g_from + i);
  }
}

struct Turned {
  float first;
  float second;
};

__device__ __forceinline__ Turned rotate(float a, float b, float cosine, float sine) {
  return {__fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine)),
          __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine))};
}

/// Grid: a thread for eight pairs. Two runs of elements hold them: pairs of neighbours lie one behind the other in both;
/// of halves, the first run has the first elements and the second, 32 further, the others. kAligned: all rows start at
/// multiples of 16 bytes.
template <bool kAligned, bool kInterleaved>
__global__ void __launch_bounds__(kRopeThreads) rope_kernel(const RotateArgs args) {
  launch_next_grid();
  wait_for_previous_grid();
  const std::uint32_t index = blockIdx.x * kRopeThreads + threadIdx.x;
  const std::uint32_t row = index / kRowThreads;
  if (row >= args.rows) return;
  const int first_pair = static_cast<int>(index % kRowThreads) * kRun;
  const std::uint32_t token = row / args.heads;
  const std::uint32_t h = row - token * args.heads;
  const int run = kInterleaved ? 2 * first_pair : first_pair;
  const int other_run = kInterleaved ? run + kRun : run + kPairs;

  const Bf16* g_row = args.x + token * args.x_rows.token_stride + h * args.x_rows.head_stride;
  const Eight x = load_eight<kAligned>(g_row, run, kRopeDim);
  const Eight other = load_eight<kAligned>(g_row, other_run, kRopeDim);
  const float* g_factors =
      args.cos_sin + static_cast<std::int64_t>(__ldg(args.positions + token)) * kRopeDim + first_pair;
  float cosine[kRun];
  float sine[kRun];
  load_factors<kAligned>(g_factors, cosine);
  load_factors<kAligned>(g_factors + kPairs, sine);

  Eight turned;
  Eight other_turned;
#pragma unroll
  for (int i = 0; i < kRun / 2; ++i) {
    if constexpr (kInterleaved) {
      const Turned a = rotate(low_bf16(x.word[i]), high_bf16(x.word[i]), cosine[i], sine[i]);
      const Turned b =
          rotate(low_bf16(other.word[i]), high_bf16(other.word[i]), cosine[kRun / 2 + i], sine[kRun / 2 + i]);
      turned.word[i] = pack_bf16(a.first, a.second);
      other_turned.word[i] = pack_bf16(b.first, b.second);
    } else {
      const Turned a = rotate(low_bf16(x.word[i]), low_bf16(other.word[i]), cosine[2 * i], sine[2 * i]);
      const Turned b =
          rotate(high_bf16(x.word[i]), high_bf16(other.word[i]), cosine[2 * i + 1], sine[2 * i + 1]);
      turned.word[i] = pack_bf16(a.first, b.first);
      other_turned.word[i] = pack_bf16(a.second, b.second);
    }
  }
  Bf16* g_out = args.out + token * args.out_rows.token_stride + h * args.out_rows.head_stride;
  store_eight<kAligned>(g_out, run, kRopeDim, turned);
  store_eight<kAligned>(g_out, other_run, kRopeDim, other_turned);
}

Heads heads_of(const ConstTensorView& view) {
  return {.token_stride = view.stride(0), .head_stride = view.stride(1)};
}

}  // namespace

void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps, const TensorView& out,
              cudaStream_t stream) {
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 2) && is_tensor(out, DType::kBF16, 2) &&
                 is_tensor(weight, DType::kBF16, 1));
  SNAPMLA_ASSERT(out.dim(0) == x.dim(0) && out.dim(1) == x.dim(1) && weight.dim(0) == x.dim(1));
  SNAPMLA_ASSERT(x.dim(0) <= INT32_MAX && x.dim(1) <= max_threads(kManyRuns) * kManyRuns * kRun);
  if (x.num_elements() == 0) return;
  const NormArgs args{.x = x.as<Bf16>(),
                      .x_stride = x.stride(0),
                      .weight = weight.as<Bf16>(),
                      .eps = eps,
                      .d = static_cast<int>(x.dim(1)),
                      .out = out.as<Bf16>(),
                      .out_stride = out.stride(0)};
  const bool aligned = rows_aligned(x, kVectorBytes) && rows_aligned(out, kVectorBytes) &&
                       is_aligned(weight.data(), kVectorBytes);
  const std::int64_t runs = runs_of(x.dim(1));
  const bool few = runs <= max_threads(kFewRuns) * kFewRuns;
  const auto kernel = aligned ? (few ? rms_norm_kernel<true, kFewRuns> : rms_norm_kernel<true, kManyRuns>)
                              : (few ? rms_norm_kernel<false, kFewRuns> : rms_norm_kernel<false, kManyRuns>);
  const std::int64_t runs_a_warp = std::int64_t{kWarpLanes} * (few ? kFewRuns : kManyRuns);
  const auto threads = static_cast<unsigned>((runs + runs_a_warp - 1) / runs_a_warp * kWarpLanes);
  launch_overlapped(kernel, dim3(static_cast<unsigned>(x.dim(0))), threads, 0, stream, args);
}

void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out, cudaStream_t stream) {
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 3) && is_tensor(out, DType::kBF16, 3));
  SNAPMLA_ASSERT(x.dim(2) == kRopeDim && out.dim(0) == x.dim(0) && out.dim(1) == x.dim(1) &&
                 out.dim(2) == x.dim(2));
  SNAPMLA_ASSERT(is_tensor(rope.cos_sin, DType::kF32, 2) && rope.cos_sin.dim(1) == kRopeDim &&
                 rope.cos_sin.is_contiguous());
  SNAPMLA_ASSERT(is_tensor(rope.positions, DType::kI32, 1) && rope.positions.dim(0) == x.dim(0));
  const std::int64_t rows = x.dim(0) * x.dim(1);
  const std::int64_t num_blocks = (rows * kRowThreads + kRopeThreads - 1) / kRopeThreads;
  if (num_blocks == 0) return;
  SNAPMLA_ASSERT(num_blocks * kRopeThreads <= INT32_MAX);
  const RotateArgs args{.x = x.as<Bf16>(),
                        .x_rows = heads_of(x),
                        .cos_sin = rope.cos_sin.as<float>(),
                        .positions = rope.positions.as<std::int32_t>(),
                        .out = out.as<Bf16>(),
                        .out_rows = heads_of(out),
                        .heads = static_cast<std::uint32_t>(x.dim(1)),
                        .rows = static_cast<std::uint32_t>(rows)};
  const bool aligned = rows_aligned(x, kVectorBytes) && rows_aligned(out, kVectorBytes) &&
                       is_aligned(rope.cos_sin.data(), kVectorBytes);
  const auto kernel = aligned ? (rope.interleaved ? rope_kernel<true, true> : rope_kernel<true, false>)
                              : (rope.interleaved ? rope_kernel<false, true> : rope_kernel<false, false>);
  launch_overlapped(kernel, dim3(static_cast<unsigned>(num_blocks)), kRopeThreads, 0, stream, args);
}

}  // namespace snapmla::cuda_ops
