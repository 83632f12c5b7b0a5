// combine: merges the partial results of a request, row by row:
//
//     M = max lse_i     w_i = exp(lse_i - M)     W = sum w_i
//     out = sum w_i out_i / W     lse = M + ln W
//
// in fp32. The order of every sum depends on the number of partials alone, so the same partials give the same bits
// in any batch: up to 12 are added up one after the other; more in eight groups (partials 0, 8, 16 ... are group
// 0), and the groups in order.
//
// A unit of work is 256 dims of a row, 8 dims a lane. With few partials a warp does a unit alone, and a block eight
// of them; with many, one request spread over the whole machine, a block does one: a warp a group, merged through
// shared memory. That is a task, and the tasks of all split requests lie one behind the other, so that the blocks
// share them evenly however the lengths differ.
//
// Time is latency: split_offsets -> lse and partials -> out. So partials are copied to shared memory, many in flight
// at once, and what follows from split_offsets, which the plan wrote, is worked out before the kernel ahead has
// ended. Loops stay loops: this kernel runs between two others, and its instructions are fetched anew every time.
#include <algorithm>
#include <cstddef>

#include "core/bf16.h"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kLogGroups = 3;
constexpr int kGroups = 1 << kLogGroups;
constexpr int kWarps = kGroups;
constexpr int kFewPartials = 12;
constexpr float kLn2 = 0.693147181F;
constexpr int kLaneDims = 8;
constexpr int kSliceDims = kLaneDims * kWarpLanes;
constexpr int kSlices = kLatentDim / kSliceDims;
/// Blocks of a grid: four on each of 132 SMs, which are there at once. More would gain nothing, and a batch that is
/// not split pays for each.
constexpr std::int64_t kMaxBlocks = 4 * 132;
constexpr int kChunk = 1024;  ///< requests that a grid's row of blocks can share

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

__device__ __forceinline__ Range partials_of_request(const CombineArgs& args, int b) {
  const int begin = max(__ldcg(args.split_offsets + b), 0);
  const int end = min(__ldcg(args.split_offsets + b + 1), args.num_partials);
  return {.begin = begin, .count = end - begin};
}

/// 8 dims of a partial as memory holds them, and how they are added up.
struct Floats {
  static constexpr int kBytes = 4;
  static constexpr int kAtOnce = 4;  ///< partials of a warp on their way to shared memory

  static __device__ __forceinline__ float scale(const CombineArgs& /*args*/, std::int64_t /*partial*/) {
    return 1;
  }
  static __device__ __forceinline__ void add(float (&sum)[kLaneDims], float weight, std::uint32_t s_lane) {
    const auto low = load_shared<float4>(s_lane);
    const auto high = load_shared<float4>(s_lane + 16);
    const float x[kLaneDims] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int d = 0; d < kLaneDims; ++d) sum[d] = fmaf(weight, x[d], sum[d]);
  }
};

struct Halves {
  static constexpr int kBytes = 2;
  static constexpr int kAtOnce = 9;  ///< a group's share of 66 partials: one request of 128 rows over 132 SMs

  static __device__ __forceinline__ float scale(const CombineArgs& args, std::int64_t partial) {
    return __ldcg(args.partial_scale + partial);
  }
  static __device__ __forceinline__ void add(float (&sum)[kLaneDims], float weight, std::uint32_t s_lane) {
    const int4 words = load_shared<int4>(s_lane);
    const int pairs[kLaneDims / 2] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < kLaneDims / 2; ++i) {
      const float2 x = unpack_half(static_cast<std::uint32_t>(pairs[i]));
      sum[2 * i] = fmaf(weight, x.x, sum[2 * i]);
      sum[2 * i + 1] = fmaf(weight, x.y, sum[2 * i + 1]);
    }
  }
};

struct Softmax {
  float max;
  float sum;
};

/// Over the partials of a row. Lane l takes partials l, l + 32, ..., four at a time so that their loads overlap; all
/// warps that ask get the same bits. An empty partial has lse -inf.
__device__ __forceinline__ Softmax softmax_of(const CombineArgs& args, const Range& range, int row,
                                              int lane) {
  constexpr int kAtOnce = 4;
  const auto weight = [](float lse, float max) { return lse == -INFINITY ? 0.0F : exp_fast(lse - max); };
  const float* lses = args.partial_lse + std::int64_t{range.begin} * args.rows + row;
  float max = -INFINITY;
  float sum = 0;
#pragma unroll 1
  for (int begin = lane; begin < range.count; begin += kAtOnce * kWarpLanes) {
    float lse[kAtOnce];
    float larger = max;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const std::int64_t i = begin + j * kWarpLanes;
      lse[j] = i < range.count ? __ldcg(lses + i * args.rows) : -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) larger = fmaxf(larger, lse[j]);
    sum *= weight(max, larger);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum += weight(lse[j], larger);
    max = larger;
  }
  const float of_row = warp_max(max);
  return {.max = of_row, .sum = warp_sum(max == -INFINITY ? sum : sum * exp_fast(max - of_row))};
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

/// The groups' sums added up in order, a dim a thread, and stored.
__device__ __forceinline__ void store_groups(const CombineArgs& args, std::int64_t element,
                                             const float (&sum)[kLaneDims], float inverse, int warp, int lane,
                                             float (&s_group)[kGroups][kSliceDims]) {
  const std::uint32_t s_mine = shared_address(&s_group[warp][kLaneDims * lane]);
  store_shared(s_mine, make_float4(sum[0], sum[1], sum[2], sum[3]));
  store_shared(s_mine + 16, make_float4(sum[4], sum[5], sum[6], sum[7]));
  __syncthreads();
  const int dim = warp * kWarpLanes + lane;
  float total = s_group[0][dim];
#pragma unroll
  for (int group = 1; group < kGroups; ++group) total += s_group[group][dim];
  total *= inverse;
  if (args.out_bf16) {
    static_cast<Bf16*>(args.out)[element + dim] = Bf16{static_cast<std::uint16_t>(pack_bf16(total, 0))};
  } else {
    static_cast<float*>(args.out)[element + dim] = total;
  }
  __syncthreads();
}

/// sum += w out over partials first, first + 2^log_step, ... of a unit, in order. Returns the row's softmax. An empty
/// partial has lse -inf, and what it holds is not used. `s_lane`: this lane's place in the warp's shared memory,
/// kAtOnce partials of 256 dims.
template <class Stored>
__device__ __forceinline__ Softmax merge(const CombineArgs& args, const Range& range, int row, int dim,
                                         int first, int log_step, int lane, std::uint32_t s_lane,
                                         float (&sum)[kLaneDims]) {
  const int step = 1 << log_step;
  constexpr int kPartialBytes = kSliceDims * Stored::kBytes;
  const std::int64_t partial_stride = std::int64_t{args.rows} * kLatentDim * Stored::kBytes;
  const auto* g_out = static_cast<const std::byte*>(args.partial_out) + range.begin * partial_stride +
                      (std::int64_t{row} * kLatentDim + dim) * Stored::kBytes;
  Softmax softmax{};
  for (int begin = first; begin < range.count; begin += kWarpLanes * step) {  // a lane a partial
    const int mine = begin + lane * step;
    const std::int64_t partial = range.begin + (mine < range.count ? mine : first);
    const float lse = __ldcg(args.partial_lse + partial * args.rows + row);
    const float scale = Stored::scale(args, partial);
    const int count = min(kWarpLanes, (range.count - begin + step - 1) >> log_step);
#pragma unroll 1
    for (int i = 0; i < count; i += Stored::kAtOnce) {
      const int now = min(count - i, Stored::kAtOnce);
#pragma unroll 1
      for (int j = 0; j < now; ++j) {
        const std::byte* from = g_out + (begin + (i + j) * step) * partial_stride;
        for (int part = 0; part < Stored::kBytes / 2; ++part)
          copy_async_16(s_lane + j * kPartialBytes + 16 * part, from + 16 * part);
      }
      if (begin == first && i == 0) softmax = softmax_of(args, range, row, lane);
      const float weight = lse == -INFINITY ? 0.0F : exp_fast(lse - softmax.max) * scale;
      wait_copies();
#pragma unroll 1
      for (int j = 0; j < now; ++j) {
        const float w = __shfl_sync(kAllLanes, weight, i + j);
        if (w != 0) Stored::add(sum, w, s_lane + j * kPartialBytes);
      }
    }
  }
  return softmax;
}

__device__ __forceinline__ bool is_few(int count) {
  return count <= kFewPartials;
}

__device__ __forceinline__ int tasks_of(const CombineArgs& args, int b) {
  const int count = partials_of_request(args, b).count;
  if (count < args.fewest) return 0;
  const int units = args.rows * kSlices;
  return is_few(count) ? (units + kWarps - 1) / kWarps : units;
}

/// Where the tasks of each request begin; returns how many there are in all.
__device__ __forceinline__ int place_tasks(const CombineArgs& args, int first_request, int requests,
                                           int (&s_task)[kChunk]) {
  __shared__ int s_warp[kWarpLanes];
  const int share = (requests + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int begin = min(static_cast<int>(threadIdx.x) * share, requests);
  const int end = min(begin + share, requests);
  int tasks = 0;
#pragma unroll 1
  for (int b = begin; b < end; ++b) tasks += tasks_of(args, first_request + b);
  const ScanResult scan = block_scan(tasks, s_warp);
  int place = scan.before;
#pragma unroll 1
  for (int b = begin; b < end; ++b) {
    s_task[b] = place;
    place += tasks_of(args, first_request + b);
  }
  __syncthreads();
  return scan.total;
}

struct Task {
  int index;  ///< among all
  int request;
  int in_request;
  Range range;
};

/// What task `index` is; only the index where there is none.
__device__ __forceinline__ Task find_task(const CombineArgs& args, const int (&s_task)[kChunk],
                                          int first_request, int requests, int index, int tasks) {
  if (index >= tasks) return {.index = index};
  int b = 0;  // the last request whose first task is not above this one: those without tasks come before it
  for (int above = requests; above - b > 1;) {
    const int middle = (b + above) / 2;
    (s_task[middle] <= index ? b : above) = middle;
  }
  return {.index = index,
          .request = first_request + b,
          .in_request = index - s_task[b],
          .range = partials_of_request(args, first_request + b)};
}

template <class Stored>
constexpr int kWarpBytes = Stored::kAtOnce* kSliceDims* Stored::kBytes;

/// One task of a request with few partials: a unit a warp. Or with many: the groups of one unit.
template <class Stored>
__device__ __forceinline__ void do_task(const CombineArgs& args, const Task& task, std::uint8_t* s_partials,
                                        float (&s_group)[kGroups][kSliceDims]) {
  const bool few = is_few(task.range.count);
  const int warp = warp_index();
  const int lane = lane_index();
  const int unit = few ? task.in_request * kWarps + warp : task.in_request;
  if (unit >= args.rows * kSlices) return;  // of few alone, so no block is torn apart
  const int row = unit / kSlices;
  const int first_dim = unit % kSlices * kSliceDims;
  const std::uint32_t s_lane =
      shared_address(s_partials) + warp * kWarpBytes<Stored> + lane * kLaneDims * Stored::kBytes;
  float sum[kLaneDims] = {};
  const Softmax softmax = merge<Stored>(args, task.range, row, first_dim + kLaneDims * lane, few ? 0 : warp,
                                        few ? 0 : kLogGroups, lane, s_lane, sum);
  const float inverse = inverse_of(softmax.sum);
  const std::int64_t out_row = std::int64_t{task.request} * args.rows + row;
  if (few) {
    store_lane(args, out_row * kLatentDim + first_dim + kLaneDims * lane, sum, inverse);
  } else {
    store_groups(args, out_row * kLatentDim + first_dim, sum, inverse, warp, lane, s_group);
    if (warp > 0) return;
  }
  if (lane == 0 && first_dim == 0) args.lse[out_row] = softmax.max + kLn2 * log2_fast(softmax.sum);
}

/// Grid: (blocks, chunks of kChunk requests). Shared memory: the tasks' places, 4 KB; the groups' sums, 8 KB; the
/// warps' partials, dynamic, 36 KB of halves and 32 KB of floats.
template <class Stored>
__global__ void __launch_bounds__(kWarps* kWarpLanes, 4)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  extern __shared__ __align__(16) std::uint8_t s_partials[];
  __shared__ int s_task[kChunk];
  __shared__ float s_group[kGroups][kSliceDims];
  launch_next_grid();
  const int first_request = static_cast<int>(blockIdx.y) * kChunk;
  const int requests = min(args.batch - first_request, kChunk);
  const int tasks = place_tasks(args, first_request, requests, s_task);
  Task task = find_task(args, s_task, first_request, requests, static_cast<int>(blockIdx.x), tasks);
  wait_for_previous_grid();
  while (task.index < tasks) {
    do_task<Stored>(args, task, s_partials, s_group);
    task = find_task(args, s_task, first_request, requests, task.index + static_cast<int>(gridDim.x), tasks);
  }
}

enum class Launch { kAlone, kOverlapped };

/// kAlone where split_offsets may come from the kernel ahead: those of a plan do not (device/launch.h).
template <class Stored>
void launch(const CombineArgs& args, Launch how, cudaStream_t stream) {
  constexpr int kSharedBytes = kWarps * kWarpBytes<Stored>;
  allow_shared_memory<combine_kernel<Stored>, kSharedBytes>();
  const std::int64_t most_tasks = std::int64_t{args.batch} * args.rows * kSlices;
  const dim3 grid(static_cast<unsigned>(std::min(most_tasks, kMaxBlocks)),
                  static_cast<unsigned>((args.batch + kChunk - 1) / kChunk));
  constexpr unsigned kThreads = kWarps * kWarpLanes;
  if (how == Launch::kOverlapped) {
    launch_overlapped(combine_kernel<Stored>, grid, kThreads, kSharedBytes, stream, args);
  } else {
    combine_kernel<Stored><<<grid, kThreads, kSharedBytes, stream>>>(args);
    SNAPMLA_CUDA(cudaGetLastError());
  }
}

}  // namespace

void combine(const CombineParams& params, cudaStream_t stream) {
  constexpr const char* kOp = "combine";
  require_aligned(kOp, "partial_out", params.partial_out);
  require_natural(kOp, "partial_lse", params.partial_lse);
  require_natural(kOp, "split_offsets", params.split_offsets);
  require_aligned(kOp, "out", params.out);
  require_natural(kOp, "lse", params.lse);
  SNAPMLA_REQUIRE(params.partial_out.dim(0) <= INT32_MAX, kOp, "partials must be below 2^31; got ",
                  params.partial_out);
  launch<Floats>({.partial_out = params.partial_out.data(),
                  .partial_lse = params.partial_lse.as<float>(),
                  .partial_scale = nullptr,
                  .split_offsets = params.split_offsets.as<std::int32_t>(),
                  .num_partials = static_cast<int>(params.partial_out.dim(0)),
                  .batch = static_cast<int>(params.out.dim(0)),
                  .rows = static_cast<int>(params.partial_out.dim(1)),
                  .fewest = 0,
                  .out = params.out.data(),
                  .out_bf16 = params.out.dtype() == DType::kBF16,
                  .lse = params.lse.as<float>()},
                 Launch::kAlone, stream);
}

void combine_splits(const DecodeParams& params, cudaStream_t stream) {
  const PlanShape& shape = params.plan.shape;
  const std::int64_t rows = params.q_latent.dim(1) * params.q_latent.dim(2);
  const Partials partials = partials_of(params);
  const auto launch_for_format = partials.scale != nullptr ? launch<Halves> : launch<Floats>;
  launch_for_format({.partial_out = partials.out,
                     .partial_lse = partials.lse,
                     .partial_scale = partials.scale,
                     .split_offsets = params.plan.split_offsets.as<std::int32_t>(),
                     .num_partials = shape.max_items,
                     .batch = shape.batch,
                     .rows = static_cast<int>(rows),
                     .fewest = 2,
                     .out = params.out.data(),
                     .out_bf16 = params.out.dtype() == DType::kBF16,
                     .lse = params.lse.as<float>()},
                    Launch::kOverlapped, stream);
}

}  // namespace snapmla::cuda_ops
