// plan: the reference's items (src/reference/plan.cc, core/plan_rule.h), found in parallel by one block and
// without the host.
//
// 1. Each thread measures its run of requests; a prefix sum gives every request its place on the line, and
//    the whole line the rule.
// 2. How many items a request has follows from its place; a prefix sum of that gives split_offsets.
// 3. A thread an item: its request is found in split_offsets by binary search, its tokens in closed form, and
//    it opens the worker lists that begin with it.
#include <climits>

#include "core/plan_rule.h"
#include "cuda/device/reduce.cuh"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kMaxBatch = 4096;
constexpr int kMaxThreads = 1024;

struct PlanArgs {
  const int* seq_lens;
  PlanShape shape;
  int4* work_items;
  int* worker_offsets;
  int* split_offsets;
};

struct Item {
  int worker;
  int first;
  int end;
};

/// A request as step 2 and 3 see it.
struct Request {
  int seq_len;
  int place;  ///< on the line
};

/// A length that breaks its contract must not send the writes out of bounds.
__device__ __forceinline__ int seq_len_of(const PlanArgs& args, int b) {
  return min(max(__ldg(args.seq_lens + b), 0), kMaxSeqLen);
}

__device__ __forceinline__ int worker_at(const PlanShape& shape, const PlanRule& rule, int place) {
  return min(place / rule.share, shape.num_workers - 1);
}

__device__ __forceinline__ int count_items(const PlanShape& shape, const PlanRule& rule,
                                           const Request& request) {
  if (rule.split_tokens > 0) return split_items(request.seq_len, rule.split_tokens);
  if (rule.requests_a_worker > 0 || request.seq_len == 0) return 1;
  const int last_pair = request.place + ceil_div(request.seq_len, kPairTokens) - 1;
  return worker_at(shape, rule, last_pair) - worker_at(shape, rule, request.place) + 1;
}

/// Item k of request b.
__device__ __forceinline__ Item item_at(const PlanShape& shape, const PlanRule& rule, const Request& request,
                                        int b, int k) {
  const int seq_len = request.seq_len;
  if (const int tokens = rule.split_tokens; tokens > 0) {
    const int place = request.place + k * (ceil_div(tokens, kPairTokens) + kItemPairs);
    return {.worker = rule.items_a_request > 0 ? b * rule.items_a_request + k : worker_at(shape, rule, place),
            .first = k * tokens,
            .end = min(seq_len, k * tokens + min(tokens, seq_len))};
  }
  if (rule.requests_a_worker > 0) return {.worker = b / rule.requests_a_worker, .first = 0, .end = seq_len};
  const int worker = worker_at(shape, rule, request.place) + k;
  const auto border = [&](int share) {  // where a share begins, in tokens of this request
    const std::int64_t tokens = (std::int64_t{share} * rule.share - request.place) * kPairTokens;
    return static_cast<int>(min(max(tokens, std::int64_t{0}), std::int64_t{seq_len}));
  };
  return {.worker = worker, .first = border(worker), .end = border(worker + 1)};
}

/// Grid: one block. Shared memory: 33 KB, place and first item of each request.
__global__ void __launch_bounds__(kMaxThreads) plan_kernel(const __grid_constant__ PlanArgs args) {
  __shared__ int s_place[kMaxBatch];
  __shared__ int s_split[kMaxBatch + 1];
  __shared__ int s_warp[kWarpLanes];
  const PlanShape& shape = args.shape;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int requests = ceil_div(shape.batch, threads);  // a thread, one run
  const int begin = min(thread * requests, shape.batch);
  const int end = min(begin + requests, shape.batch);

  int length = 0;
  int longest = 0;
  for (int b = begin; b < end; ++b) {
    const int seq_len = seq_len_of(args, b);
    length += request_length(seq_len, shape.fixed_split_tokens);
    longest = max(longest, ceil_div(seq_len, kPairTokens));
  }
  const ScanResult line = block_scan(length, s_warp);
  longest = block_max(longest, s_warp);
  const PlanRule rule =
      make_plan_rule(shape.batch, shape.num_workers, shape.fixed_split_tokens, line.total, longest);

  int place = line.before;
  int items = 0;
  for (int b = begin; b < end; ++b) {
    const int seq_len = seq_len_of(args, b);
    s_place[b] = place;
    items += count_items(shape, rule, {.seq_len = seq_len, .place = place});
    place += request_length(seq_len, shape.fixed_split_tokens);
  }
  const ScanResult split = block_scan(items, s_warp);
  int first_item = split.before;
  for (int b = begin; b < end; ++b) {
    s_split[b] = min(first_item, shape.max_items);
    args.split_offsets[b] = s_split[b];
    first_item += count_items(shape, rule, {.seq_len = seq_len_of(args, b), .place = s_place[b]});
  }
  const int num_items = min(split.total, shape.max_items);
  if (thread == 0) args.split_offsets[shape.batch] = num_items;
  __syncthreads();

  const auto item_of = [&](int i, int b) {
    return item_at(shape, rule, {.seq_len = seq_len_of(args, b), .place = s_place[b]}, b, i - s_split[b]);
  };
  for (int i = thread; i < num_items; i += threads) {
    int b = 0;  // the last request whose first item is not above i
    for (int above = shape.batch; above - b > 1;) {
      const int middle = (b + above) / 2;
      (s_split[middle] <= i ? b : above) = middle;
    }
    const Item item = item_of(i, b);
    args.work_items[i] = make_int4(b, item.first, item.end, i);
    const int worker_before = i == 0 ? -1 : item_of(i - 1, i == s_split[b] ? b - 1 : b).worker;
    for (int w = worker_before + 1; w <= item.worker; ++w) args.worker_offsets[w] = i;
    if (i == num_items - 1) {
      for (int w = item.worker + 1; w <= shape.num_workers; ++w) args.worker_offsets[w] = num_items;
    }
  }
  __threadfence();  // what comes next on the stream reads the plan as soon as it starts (device/launch.h)
}

}  // namespace

void plan(const PlanParams& params, cudaStream_t stream) {
  constexpr const char* kOp = "plan";
  require_natural(kOp, "seq_lens", params.seq_lens);
  require_aligned(kOp, "plan.work_items", params.plan.work_items);
  require_natural(kOp, "plan.worker_offsets", params.plan.worker_offsets);
  require_natural(kOp, "plan.split_offsets", params.plan.split_offsets);
  const PlanShape& shape = params.plan.shape;
  SNAPMLA_REQUIRE(shape.batch <= kMaxBatch, kOp, "batch must be 1 to ", kMaxBatch, "; got ", shape.batch);
  const PlanArgs args{.seq_lens = params.seq_lens.as<std::int32_t>(),
                      .shape = shape,
                      .work_items = static_cast<int4*>(params.plan.work_items.data()),
                      .worker_offsets = params.plan.worker_offsets.as<std::int32_t>(),
                      .split_offsets = params.plan.split_offsets.as<std::int32_t>()};
  // Fewer warps meet sooner; with many items more threads share them.
  constexpr int kFewItems = 512;
  const int threads = shape.max_items <= kFewItems ? kMaxThreads / 4 : kMaxThreads;
  plan_kernel<<<1, threads, 0, stream>>>(args);
  SNAPMLA_CUDA(cudaGetLastError());
}

}  // namespace snapmla::cuda_ops
