// combine: merges the partial results of a request, row by row:
//
//     M = max lse_i     w_i = exp(lse_i - M)     W = sum w_i
//     out = sum w_i out_i / W     lse = M + ln W
//
// in fp32. The order of every sum depends on the number of partials alone, so the same partials give the same bits
// in any batch: up to 12 are added up one after the other; more in eight groups (partials 0, 8, 16 ... are group
// 0), each in units of exp of its own maximum, and then the groups in order.
//
// A unit of work is half a row, or a whole one, 8 dims a lane of each half. With few partials a warp does a unit alone,
// and a block eight of them; with many, one request spread over the whole machine, a block does one: a warp a group,
// merged through shared memory. That is a task, and the tasks of all split requests lie one behind the other, so that
// the blocks share them evenly however the lengths differ.
//
// Time is latency (docs/decode-kernel.md): a warp asks for the lse of its own partials, a lane each, and for all of its
// partials by bulk copies, one instruction; that is the only trip to L2 behind the kernel ahead. What follows from
// split_offsets, which the plan wrote, is worked out before that kernel has ended. Loops stay loops: this kernel runs
// between two others, and its instructions are fetched anew every time.
#include <algorithm>

#include "cuda/combine/merge.cuh"
#include "cuda/device/launch.h"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

using namespace merging;

/// Blocks of a grid: three for each of 132 SMs, which has shared memory for two at a time. Four with half of it each took
/// 1 x 32K x 128 from 21.4 to 23.4 us (bench/results/merge-variants-h100.csv).
constexpr int kBlocksOfSm = 3;
constexpr std::int64_t kMaxBlocks = kBlocksOfSm * 132;
constexpr int kChunk = 1024;  ///< requests that a grid's row of blocks can share

/// The requests of a grid's row of blocks: their partials and their tasks.
struct Requests {
  int partials[kChunk + 1];  ///< request b has partials [b] .. [b + 1]
  int task[kChunk];          ///< where its tasks begin

  __device__ Range range(int b) const {
    return {.begin = partials[b], .count = partials[b + 1] - partials[b]};
  }
};

/// How a row of blocks shares its requests' tasks.
struct Shares {
  int tasks;        ///< in all
  int unit_slices;  ///< 1: half rows; kSlices: whole ones
};

/// Fills `s_requests`. Half rows are taken where no block then has more than one task, else whole rows of halves: a bulk
/// copy takes an SM some 20 cycles, of 512 bytes or of 1,024. The sums are the same, bit for bit.
template <class Stored>
__device__ __forceinline__ Shares place_tasks(const CombineArgs& args, int first_request, int requests,
                                              Requests& s_requests) {
  __shared__ std::int64_t s_warp[kWarpLanes];
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int b = thread; b <= requests; b += threads)
    s_requests.partials[b] = min(max(__ldcg(args.split_offsets + first_request + b), 0), args.num_partials);
  __syncthreads();
  const auto tasks_of = [&](int b, int unit_slices) {
    const int count = s_requests.range(b).count;
    if (count < args.fewest) return 0;
    const int units = args.rows * (kSlices / unit_slices);
    return is_few(count) ? (units + kWarps - 1) / kWarps : units;
  };
  const int share = (requests + threads - 1) / threads;
  const int begin = min(thread * share, requests);
  const int end = min(begin + share, requests);
  std::int64_t both = 0;  // tasks of half rows, and 2^32 for each of whole rows
#pragma unroll 1
  for (int b = begin; b < end; ++b)
    both += tasks_of(b, 1) + (std::int64_t{tasks_of(b, Stored::kMostUnitSlices)} << 32);
  const ScanResult scan = block_scan(both, s_warp);
  const bool halves =
      Stored::kMostUnitSlices == 1 || static_cast<int>(scan.total) <= static_cast<int>(gridDim.x);
  const auto chosen = [&](std::int64_t tasks) { return static_cast<int>(halves ? tasks : tasks >> 32); };
  const Shares shares{.tasks = chosen(scan.total), .unit_slices = halves ? 1 : Stored::kMostUnitSlices};
  int place = chosen(scan.before);
#pragma unroll 1
  for (int b = begin; b < end; ++b) {
    s_requests.task[b] = place;
    place += tasks_of(b, shares.unit_slices);
  }
  __syncthreads();
  return shares;
}

struct Task {
  int index;  ///< among all
  int request;
  int in_request;
  Range range;
};

/// What task `index` is; only the index where there is none.
__device__ __forceinline__ Task find_task(const Requests& s_requests, int first_request, int requests,
                                          int index, int tasks) {
  if (index >= tasks) return {.index = index};
  int b = 0;  // the last request whose first task is not above this one: those without tasks come before it
#pragma unroll 1
  for (int above = requests; above - b > 1;) {
    const int middle = (b + above) / 2;
    (s_requests.task[middle] <= index ? b : above) = middle;
  }
  return {.index = index,
          .request = first_request + b,
          .in_request = index - s_requests.task[b],
          .range = s_requests.range(b)};
}

/// One task, units of kUnitSlices slices: of few partials a unit a warp, of many the groups of one unit.
template <class Stored, int kUnitSlices>
__device__ __forceinline__ void do_task(const CombineArgs& args, const Task& task, WarpCopies& copies,
                                        Groups& s_groups) {
  constexpr int kUnits = kSlices / kUnitSlices;  // of a row
  const bool few = is_few(task.range.count);
  const int warp = warp_index();
  const int lane = lane_index();
  const int unit = few ? task.in_request * kWarps + warp : task.in_request;
  if (unit >= args.rows * kUnits) return;  // of few alone, so no block is torn apart
  const int row = unit / kUnits;
  const int dim = unit % kUnits * kUnitSlices * kSliceDims;
  Sum<kUnitSlices> sum = {};
  Softmax softmax = merge<Stored, kUnitSlices>(args, task.range, row, dim, few ? 0 : warp,
                                               few ? 0 : kLogGroups, lane, copies, sum);
  const std::int64_t out_row = std::int64_t{task.request} * args.rows + row;
  const std::int64_t element = out_row * kLatentDim + dim;
  if (few) {
    const float inverse = inverse_of(softmax.sum);
#pragma unroll
    for (int slice = 0; slice < kUnitSlices; ++slice)
      store_lane(args, element + slice * kSliceDims + kLaneDims * lane, sum[slice], inverse);
  } else {
    softmax = store_groups<kUnitSlices>(args, element, sum, softmax, warp, lane, s_groups);
    if (warp > 0) return;
  }
  if (lane == 0 && dim == 0) args.lse[out_row] = lse_of(softmax);
}

/// Grid: (blocks, chunks of kChunk requests). Shared memory: the requests, 8 KB; the groups, 16 KB; the warps' units,
/// dynamic, 72 KB.
template <class Stored>
__global__ void __launch_bounds__(kWarps* kWarpLanes, kBlocksOfSm)
    combine_kernel(const __grid_constant__ CombineArgs args) {
  extern __shared__ __align__(16) std::uint8_t s_units[];
  __shared__ Requests s_requests;
  __shared__ Groups s_groups;
  __shared__ std::uint64_t s_barriers[kWarps];
  launch_next_grid();
  const int warp = warp_index();
  WarpCopies copies{.s_units = shared_address(s_units) + warp * kWarpBytes,
                    .barrier = shared_address(&s_barriers[warp]),
                    .parity = 0};
  if (lane_index() == 0) {
    barrier_init(copies.barrier, 1);
    fence_barrier_init();
  }
  const int first_request = static_cast<int>(blockIdx.y) * kChunk;
  const int requests = min(args.batch - first_request, kChunk);
  const Shares shares = place_tasks<Stored>(args, first_request, requests, s_requests);
  const auto find = [&](int index) {
    return find_task(s_requests, first_request, requests, index, shares.tasks);
  };
  Task task = find(static_cast<int>(blockIdx.x));
  // Nothing to do: end at once, so that the next kernel finds the SMs free when the one ahead ends. The first block waits
  // on behalf of all (device/launch.h).
  if (task.index >= shares.tasks && (blockIdx.x > 0 || blockIdx.y > 0)) return;
  wait_for_previous_grid();
#pragma unroll 1
  while (task.index < shares.tasks) {
    if (shares.unit_slices == 1) {
      do_task<Stored, 1>(args, task, copies, s_groups);
    } else {
      do_task<Stored, Stored::kMostUnitSlices>(args, task, copies, s_groups);
    }
    task = find(task.index + static_cast<int>(gridDim.x));
  }
}

enum class Launch { kAlone, kOverlapped };

/// kAlone where split_offsets may come from the kernel ahead: those of a plan do not (device/launch.h).
template <class Stored>
void launch(const CombineArgs& args, Launch how, cudaStream_t stream) {
  constexpr int kSharedBytes = kWarps * kWarpBytes;
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
