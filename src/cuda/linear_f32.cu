// linear_f32: y[t, e] = sum_k x[t, k] w[e, k], the router's logits: fp32 products of a bf16 and an fp32 matrix, for which
// there are no tensor cores.
//
// A cluster of kRanks CTAs takes 16 experts and up to 64 tokens, each CTA a slice of k, so that even one tile of tokens
// spreads over all SMs: 256 experts make 128 CTAs. A warp takes 16 of the 128 k of a step, a lane a tile of tokens x 4
// experts. The order of a sum follows from `inner` alone: a lane adds its k from the lowest up, then the 8 warps of a CTA
// are added in order, then the CTAs.
//
// Weights come through a ring of buffers that begins to fill, as does L2, before the kernel ahead has ended: they are
// not what it writes (plain_ops.h).
#include <cstdint>

#include "cuda/device/elements.cuh"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kRanks = 8;   // CTAs of a cluster, a slice of k each
constexpr int kWarps = 8;   // a CTA, a part of each step each
constexpr int kStep = 128;  // k at a time
constexpr int kPitch =
    kStep + 4;              // floats from row to row in shared memory: 8 rows of 16 bytes in different banks
constexpr int kStages = 4;  // buffers of weights
constexpr int kExperts = 16;  // a tile
constexpr int kLaneExperts = 4;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kVectorFloats = static_cast<int>(kVectorBytes / sizeof(float));
constexpr int kStageFloats = kExperts * kPitch;

struct LinearArgs {
  const Bf16* x;
  std::int64_t x_stride;
  const float* weight;
  std::int64_t weight_stride;
  float* out;
  std::int64_t out_stride;
  int tokens;
  int experts;
  int inner;
  int slice;  ///< of k, a CTA: a multiple of kStep
};

/// The lane's place in the warp's tile: tokens token + 8 i, experts expert + 4 i. Bits of both alternate in the lane's
/// number, as the hardware merges 16-byte reads of one address by neighbours and by neighbours but one.
struct LanePlace {
  int token;
  int expert;

  __device__ __forceinline__ explicit LanePlace(int lane)
      : token((lane >> 1 & 1) | (lane >> 3 << 1)), expert((lane & 1) | (lane >> 2 & 1) << 1) {}
};

/// k to k + kStep of the tile's weights into a stage; 0 past the end. The last expert stands in for those behind it.
template <bool kAligned>
__device__ __forceinline__ void copy_weights(const LinearArgs& args, float* s_stage, int first_expert,
                                             int k) {
  constexpr int kRowVectors = kStep / kVectorFloats;
  for (int i = static_cast<int>(threadIdx.x); i < kExperts * kRowVectors; i += kThreads) {
    const int row = i / kRowVectors;
    const int at = i % kRowVectors * kVectorFloats;
    const float* from =
        args.weight + min(first_expert + row, args.experts - 1) * args.weight_stride + (k + at);
    float* to = s_stage + row * kPitch + at;
    if (kAligned && k + at + kVectorFloats <= args.inner) {
      copy_async_16(shared_address(to), from);
    } else {
      for (int j = 0; j < kVectorFloats; ++j) to[j] = k + at + j < args.inner ? __ldg(from + j) : 0;
    }
  }
}

/// The step's x on its way to shared memory. The last token stands in for those behind it.
template <bool kAligned, int kTokens>
struct StepOfX {
  static constexpr int kRowRuns = kStep / kRun;
  static constexpr int kRuns = kTokens * kRowRuns;
  static constexpr int kLaneRuns = (kRuns + kThreads - 1) / kThreads;
  Eight run[kLaneRuns];

  __device__ __forceinline__ void load(const LinearArgs& args, int first_token, int k) {
#pragma unroll
    for (int i = 0; i < kLaneRuns; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      const int token = min(first_token + index / kRowRuns, args.tokens - 1);
      if (index < kRuns)
        run[i] =
            load_eight<kAligned>(args.x + token * args.x_stride, k + index % kRowRuns * kRun, args.inner);
    }
  }

  __device__ __forceinline__ void store(float* s_x) const {
#pragma unroll
    for (int i = 0; i < kLaneRuns; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      if (index >= kRuns) break;
      auto* to = reinterpret_cast<float4*>(s_x + index / kRowRuns * kPitch + index % kRowRuns * kRun);
      const std::uint32_t* word = run[i].word;
      to[0] = make_float4(low_bf16(word[0]), high_bf16(word[0]), low_bf16(word[1]), high_bf16(word[1]));
      to[1] = make_float4(low_bf16(word[2]), high_bf16(word[2]), low_bf16(word[3]), high_bf16(word[3]));
    }
  }
};

/// Adds the warp's part of a step.
template <int kLaneTokens>
__device__ __forceinline__ void add_step(const float* s_x, const float* s_weight, const LanePlace& place,
                                         float (&sum)[kLaneTokens][kLaneExperts]) {
  constexpr int kPart = kStep / kWarps;
  for (int k = warp_index() * kPart; k < (warp_index() + 1) * kPart; k += kVectorFloats) {
    float4 w[kLaneExperts];
#pragma unroll
    for (int e = 0; e < kLaneExperts; ++e)
      w[e] = *reinterpret_cast<const float4*>(s_weight + (place.expert + 4 * e) * kPitch + k);
#pragma unroll
    for (int t = 0; t < kLaneTokens; ++t) {
      const float4 x = *reinterpret_cast<const float4*>(s_x + (place.token + 8 * t) * kPitch + k);
#pragma unroll
      for (int e = 0; e < kLaneExperts; ++e) {
        sum[t][e] = __fmaf_rn(x.x, w[e].x, sum[t][e]);
        sum[t][e] = __fmaf_rn(x.y, w[e].y, sum[t][e]);
        sum[t][e] = __fmaf_rn(x.z, w[e].z, sum[t][e]);
        sum[t][e] = __fmaf_rn(x.w, w[e].w, sum[t][e]);
      }
    }
  }
}

/// Adds up the warps of the CTA, then the CTAs of the cluster, each of which stores its share of the tile. s_memory is
/// free to be written. A sum's number is (t * kLaneExperts + e) * 32 + lane.
template <int kTokens>
__device__ __forceinline__ void store_sums(const LinearArgs& args, float* s_memory, int first_token,
                                           int first_expert, const float (&sum)[kTokens / 8][kLaneExperts]) {
  constexpr int kSums = kTokens * kExperts;
  constexpr int kShare = kSums / kRanks;
  static_assert(kShare <= kThreads);
  float* s_sum = s_memory + kWarps * kSums;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int t = 0; t < kTokens / 8; ++t) {
#pragma unroll
    for (int e = 0; e < kLaneExperts; ++e)
      s_memory[warp_index() * kSums + (t * kLaneExperts + e) * kWarpLanes + lane_index()] = sum[t][e];
  }
  __syncthreads();
  for (int i = thread; i < kSums; i += kThreads) {
    float total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += s_memory[warp * kSums + i];
    s_sum[i] = total;
  }
  sync_cluster();
  if (thread < kShare) {
    const int i = static_cast<int>(blockIdx.x) * kShare + thread;
    const LanePlace place(i % kWarpLanes);
    const int token = first_token + place.token + 8 * (i / kWarpLanes / kLaneExperts);
    const int expert = first_expert + place.expert + 4 * (i / kWarpLanes % kLaneExperts);
    float part[kRanks];
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) part[rank] = load_from_peer(shared_address(s_sum + i), rank);
    float total = 0;
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) total += part[rank];
    if (token < args.tokens && expert < args.experts) args.out[token * args.out_stride + expert] = total;
  }
  sync_cluster();  // no CTA's memory goes while others read it
}

template <int kTokens>
constexpr int linear_floats() {
  constexpr int kInLoop = kStages * kStageFloats + 2 * kTokens * kPitch;
  constexpr int kAfter = (kWarps + 1) * kTokens * kExperts;
  return kInLoop > kAfter ? kInLoop : kAfter;
}

/// Grid: (kRanks, tiles of experts, tiles of kTokens tokens). kAligned: rows of x and weight start at multiples of 16
/// bytes. Shared memory: the ring of weights, 33 KB, and two buffers of x, 66 KB for 64 tokens; after the loop, sums.
template <bool kAligned, int kTokens>
__global__ void __cluster_dims__(kRanks, 1, 1) __launch_bounds__(kThreads)
    linear_f32_kernel(const __grid_constant__ LinearArgs args) {
  extern __shared__ __align__(16) float s_memory[];
  launch_next_grid();
  float* s_x = s_memory + kStages * kStageFloats;
  const int first_expert = static_cast<int>(blockIdx.y) * kExperts;
  const int first_token = static_cast<int>(blockIdx.z) * kTokens;
  const int begin = min(static_cast<int>(blockIdx.x) * args.slice, args.inner);
  const int end = min(begin + args.slice, args.inner);
  const int steps = (end - begin + kStep - 1) / kStep;
  const auto copy_stage = [&](int step) {
    if (step < steps)
      copy_weights<kAligned>(args, s_memory + step % kStages * kStageFloats, first_expert,
                             begin + step * kStep);
    commit_copies();  // a group a step, so that what is pending counts steps
  };
  for (int step = 0; step < kStages - 1; ++step) copy_stage(step);
  if (blockIdx.z == 0) {
    constexpr int kLine = 32;  // floats
    for (int row = 0; row < kExperts && first_expert + row < args.experts; ++row) {
      const float* g_row = args.weight + (first_expert + row) * args.weight_stride;
      for (int k = begin + (kStages - 1) * kStep + kLine * static_cast<int>(threadIdx.x); k < end;
           k += kLine * kThreads)
        prefetch_l2(g_row + k);
    }
  }
  wait_for_previous_grid();

  StepOfX<kAligned, kTokens> x;
  const LanePlace place(lane_index());
  float sum[kTokens / 8][kLaneExperts] = {};
  if (steps > 0) {
    x.load(args, first_token, begin);
    x.store(s_x);
  }
  for (int step = 0; step < steps; ++step) {
    wait_copies_but<kStages - 2>();
    __syncthreads();  // the step's weights and x are there, and the step before has been read
    copy_stage(step + kStages - 1);
    const bool more = step + 1 < steps;
    if (more) x.load(args, first_token, begin + (step + 1) * kStep);
    add_step(s_x + step % 2 * kTokens * kPitch, s_memory + step % kStages * kStageFloats, place, sum);
    if (more) x.store(s_x + (step + 1) % 2 * kTokens * kPitch);
  }
  __syncthreads();
  store_sums<kTokens>(args, s_memory, first_token, first_expert, sum);
}

template <bool kAligned, int kTokens>
void launch_tiles(const LinearArgs& args, cudaStream_t stream) {
  constexpr int kSharedBytes = linear_floats<kTokens>() * static_cast<int>(sizeof(float));
  constexpr auto kKernel = linear_f32_kernel<kAligned, kTokens>;
  allow_shared_memory<kKernel, kSharedBytes>();
  const dim3 grid(kRanks, static_cast<unsigned>((args.experts + kExperts - 1) / kExperts),
                  static_cast<unsigned>((args.tokens + kTokens - 1) / kTokens));
  launch_overlapped(kKernel, grid, kThreads, kSharedBytes, stream, args);
}

template <bool kAligned>
void launch_for(const LinearArgs& args, cudaStream_t stream) {
  const auto launch = args.tokens <= 8    ? launch_tiles<kAligned, 8>
                      : args.tokens <= 16 ? launch_tiles<kAligned, 16>
                      : args.tokens <= 32 ? launch_tiles<kAligned, 32>
                                          : launch_tiles<kAligned, 64>;
  launch(args, stream);
}

}  // namespace

void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                cudaStream_t stream) {
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 2) && is_tensor(weight, DType::kF32, 2) &&
                 is_tensor(out, DType::kF32, 2));
  SNAPMLA_ASSERT(weight.dim(1) == x.dim(1) && out.dim(0) == x.dim(0) && out.dim(1) == weight.dim(0));
  constexpr std::int64_t kMaxTiles = 65535;  // in the grid's y and z
  SNAPMLA_ASSERT(x.dim(0) <= kMaxTiles * 64 && weight.dim(0) <= kMaxTiles * kExperts &&
                 x.dim(1) <= INT32_MAX / 2);
  if (out.num_elements() == 0) return;
  constexpr int kClusterStep = kRanks * kStep;
  const auto inner = static_cast<int>(x.dim(1));
  const LinearArgs args{.x = x.as<Bf16>(),
                        .x_stride = x.stride(0),
                        .weight = weight.as<float>(),
                        .weight_stride = weight.stride(0),
                        .out = out.as<float>(),
                        .out_stride = out.stride(0),
                        .tokens = static_cast<int>(x.dim(0)),
                        .experts = static_cast<int>(weight.dim(0)),
                        .inner = inner,
                        .slice = (inner + kClusterStep - 1) / kClusterStep * kStep};
  const bool aligned = rows_aligned(x, kVectorBytes) && rows_aligned(weight, kVectorBytes);
  (aligned ? launch_for<true> : launch_for<false>)(args, stream);
}

}  // namespace snapmla::cuda_ops
