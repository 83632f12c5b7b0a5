// route: experts and weights from the router's logits, as src/reference/moe.cc; a warp a token.
//
// Its exponentials are rounded from fp64, as near to the C library's as to be the same but in one of some hundred, and
// its sums go through the experts in the reference's order, so that experts that nearly tie come in the same order.
#include <cstdint>

#include "cuda/device/launch.h"
#include "cuda/device/order.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kWarps = 4;

struct RouteArgs {
  const float* logits;
  std::int64_t logits_stride;
  const float* bias;  ///< null: none
  Scoring scoring;
  GroupScore group_score;
  int num_groups;
  int top_groups;
  bool normalize;
  float scaling_factor;
  int* expert;
  std::int64_t expert_stride;
  float* weight;
  std::int64_t weight_stride;
  int tokens;
  int experts;
  int top_k;
};

__device__ __forceinline__ float exp_rounded(float x) {
  return static_cast<float>(exp(static_cast<double>(x)));
}

/// Logits become scores.
__device__ __forceinline__ void score(const RouteArgs& args, const float* g_logits, float* s_score,
                                      int lane) {
  if (args.scoring == Scoring::kSigmoid) {
    for (int e = lane; e < args.experts; e += kWarpLanes)
      s_score[e] = __fdiv_rn(1, __fadd_rn(1, exp_rounded(-__ldg(g_logits + e))));
    return;
  }
  float largest = -INFINITY;
  for (int e = lane; e < args.experts; e += kWarpLanes) largest = fmaxf(largest, __ldg(g_logits + e));
  largest = warp_max(largest);
  for (int e = lane; e < args.experts; e += kWarpLanes)
    s_score[e] = exp_rounded(__ldg(g_logits + e) - largest);
  __syncwarp();
  float sum = 0;  // by every lane alike, from the first expert to the last
#pragma unroll 8
  for (int e = 0; e < args.experts; ++e) sum += s_score[e];
  __syncwarp();
  for (int e = lane; e < args.experts; e += kWarpLanes) s_score[e] = __fdiv_rn(s_score[e], sum);
}

/// The place of the largest key, the lowest among equals, which becomes 0. Not all may be 0.
__device__ __forceinline__ int take_best(std::uint32_t* s_key, int count, int lane) {
  std::uint32_t best = 0;
  int place = INT32_MAX;
  for (int i = lane; i < count; i += kWarpLanes) {
    if (s_key[i] > best) {
      best = s_key[i];
      place = i;
    }
  }
  const std::uint32_t largest = __reduce_max_sync(kAllLanes, best);
  place = __reduce_min_sync(kAllLanes, best == largest ? place : INT32_MAX);
  if (lane == 0) s_key[place] = 0;
  __syncwarp();
  return place;
}

/// The key of a group's score. A NaN among its choices does not count.
__device__ __forceinline__ std::uint32_t group_key(GroupScore rule, const std::uint32_t* s_choice, int size,
                                                   int lane) {
  std::uint32_t first = order_key(-INFINITY);
  std::uint32_t second = first;
  int i =
      lane %
      size;  // groups begin in the same bank where sizes are powers of two, so lanes begin at different places
  for (int count = 0; count < size; ++count) {
    const std::uint32_t choice = s_choice[i];
    second = max(second, min(first, choice));
    first = max(first, choice);
    i = i + 1 < size ? i + 1 : 0;
  }
  if (rule == GroupScore::kMax || size == 1) return first;
  return order_key(number_of(first) + number_of(second));
}

/// The experts outside the best groups get key 0.
__device__ __forceinline__ void drop_groups(const RouteArgs& args, std::uint32_t* s_choice,
                                            std::uint32_t* s_group, int lane) {
  const int size = args.experts / args.num_groups;
  for (int g = lane; g < args.num_groups; g += kWarpLanes)
    s_group[g] = group_key(args.group_score, s_choice + g * size, size, lane);
  __syncwarp();
  for (int i = 0; i < args.top_groups; ++i) (void)take_best(s_group, args.num_groups, lane);
  for (int e = lane; e < args.experts; e += kWarpLanes) {
    if (s_group[e / size] != 0) s_choice[e] = 0;  // 0: taken, so among the best
  }
  __syncwarp();
}

/// Grid: a warp a token. Shared memory: a warp, the scores and the keys of choices and groups.
__global__ void __launch_bounds__(kWarps* kWarpLanes) route_kernel(const __grid_constant__ RouteArgs args) {
  extern __shared__ __align__(16) float s_memory[];
  launch_next_grid();
  wait_for_previous_grid();
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + warp_index();
  if (token >= args.tokens) return;
  const int lane = lane_index();
  float* s_score = s_memory + warp_index() * (2 * args.experts + args.num_groups);
  auto* s_choice = reinterpret_cast<std::uint32_t*>(s_score + args.experts);
  score(args, args.logits + token * args.logits_stride, s_score, lane);
  for (int e = lane; e < args.experts; e += kWarpLanes)
    s_choice[e] = order_key(args.bias == nullptr ? s_score[e] : __fadd_rn(s_score[e], __ldg(args.bias + e)));
  __syncwarp();
  if (args.num_groups > 1) drop_groups(args, s_choice, s_choice + args.experts, lane);

  int expert = 0;  // the lane's choice: lane k has the k-th
  float weight = 0;
  float sum = 0;
  for (int k = 0; k < args.top_k; ++k) {
    const int best = take_best(s_choice, args.experts, lane);
    if (lane == k) {
      expert = best;
      weight = s_score[best];
    }
    sum = __fadd_rn(sum, s_score[best]);
  }
  if (lane >= args.top_k) return;
  if (args.normalize) weight = __fdiv_rn(weight, __fadd_rn(sum, 1e-20F));
  args.expert[token * args.expert_stride + lane] = expert;
  args.weight[token * args.weight_stride + lane] = __fmul_rn(weight, args.scaling_factor);
}

}  // namespace

void route(const RouteParams& params, cudaStream_t stream) {
  const std::int64_t tokens = params.logits.dim(0);
  const std::int64_t experts = params.logits.dim(1);
  SNAPMLA_ASSERT(is_tensor(params.logits, DType::kF32, 2) && is_tensor(params.expert, DType::kI32, 2) &&
                 is_tensor(params.weight, DType::kF32, 2));
  SNAPMLA_ASSERT(!params.bias.present() ||
                 (is_tensor(params.bias, DType::kF32, 1) && params.bias.dim(0) == experts));
  SNAPMLA_ASSERT(params.expert.dim(0) == tokens && params.weight.dim(0) == tokens &&
                 params.weight.dim(1) == params.expert.dim(1));
  SNAPMLA_ASSERT(params.num_groups >= 1 && experts % params.num_groups == 0 && params.top_groups >= 1 &&
                 params.top_groups <= params.num_groups);
  SNAPMLA_ASSERT(params.expert.dim(1) <= experts / params.num_groups * params.top_groups);
  SNAPMLA_ASSERT(params.expert.dim(1) <= kWarpLanes && tokens <= INT32_MAX);
  constexpr std::int64_t kMostBytes = 48 << 10;  // what a kernel has without asking: more than 1,500 experts
  const std::int64_t shared_bytes = kWarps * (2 * experts + params.num_groups) * std::int64_t{sizeof(float)};
  SNAPMLA_ASSERT(shared_bytes <= kMostBytes);
  if (params.expert.num_elements() == 0) return;
  const RouteArgs args{.logits = params.logits.as<float>(),
                       .logits_stride = params.logits.stride(0),
                       .bias = params.bias.as<float>(),
                       .scoring = params.scoring,
                       .group_score = params.group_score,
                       .num_groups = params.num_groups,
                       .top_groups = params.top_groups,
                       .normalize = params.normalize,
                       .scaling_factor = params.scaling_factor,
                       .expert = params.expert.as<std::int32_t>(),
                       .expert_stride = params.expert.stride(0),
                       .weight = params.weight.as<float>(),
                       .weight_stride = params.weight.stride(0),
                       .tokens = static_cast<int>(tokens),
                       .experts = static_cast<int>(experts),
                       .top_k = static_cast<int>(params.expert.dim(1))};
  const auto num_blocks = static_cast<unsigned>((tokens + kWarps - 1) / kWarps);
  launch_overlapped(route_kernel, dim3(num_blocks), kWarps * kWarpLanes,
                    static_cast<std::size_t>(shared_bytes), stream, args);
}

}  // namespace snapmla::cuda_ops
