// combine: merges the partial results of a request, row by row:
//
//     M = max lse_i     w_i = exp(lse_i - M)     W = sum w_i
//     out = sum w_i out_i / W     lse = M + ln W
//
// in fp32. The order of every sum depends on the number of partials alone: up to 16 are added up one after
// the other; more in eight groups (partials 0, 8, 16 ... are group 0), and the groups in order. So the same
// partials give the same bits in any batch and from either kernel:
//
// - narrow, for many rows: a warp a row, which walks the groups itself.
// - wide, for few rows with up to hundreds of partials each: a block of eight warps for 128 dims of a row, a
//   group a warp, merged through 4 KB of shared memory. One request of 128 rows and 66 partials is 17 MB, and
//   takes many warps to draw from L2 at its rate.
//
// Time is latency: split_offsets -> lse and partials -> out. So a warp has several partials in flight,
// whether or not they will count.
#include "core/bf16.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kGroups = 8;
constexpr int kFewPartials = 16;  // as many as one warp can have in flight
constexpr int kWarps = 8;
constexpr int kSliceDims = 4 * kWarpLanes;  // a float4 a lane
constexpr int kSlices = kLatentDim / kSliceDims;
// Below this, a warp a row leaves most of the machine idle: 132 SMs take about 16 warps each to saturate L2.
constexpr std::int64_t kWideRows = 256;

struct CombineArgs {
  const float* partial_out;  ///< [partials][rows][512]
  const float* partial_lse;  ///< [partials][rows]
  const int* split_offsets;
  int num_partials;  ///< capacity
  int rows;
  int fewest;  ///< requests with fewer partials are left alone
  void* out;
  bool out_bf16;
  float* lse;
};

/// The partials of one row of one request.
struct RowPartials {
  const float* out;  ///< of the first partial
  const float* lse;
  std::int64_t stride;  ///< rows: from one partial to the next, in lse's elements
  int count;
};

struct Softmax {
  float max;
  float sum;
};

__device__ __forceinline__ RowPartials row_partials(const CombineArgs& args, int b, int row) {
  const int begin = max(__ldcg(args.split_offsets + b), 0);
  const int end = min(__ldcg(args.split_offsets + b + 1), args.num_partials);
  const std::int64_t first = std::int64_t{begin} * args.rows + row;
  return {.out = args.partial_out + first * kLatentDim,
          .lse = args.partial_lse + first,
          .stride = args.rows,
          .count = end - begin};
}

/// Lane l takes partials l, l + 32, ..., four at a time so that their loads overlap; all warps that ask get
/// the same bits. An empty partial has lse -inf.
__device__ __forceinline__ Softmax softmax_of(const RowPartials& partials, int lane) {
  constexpr int kAtOnce = 4;
  const auto weight = [](float lse, float max) { return lse == -INFINITY ? 0.0F : __expf(lse - max); };
  float max = -INFINITY;
  float sum = 0;
  for (int begin = lane; begin < partials.count; begin += kAtOnce * kWarpLanes) {
    float lse[kAtOnce];
    float larger = max;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = begin + j * kWarpLanes;
      lse[j] = i < partials.count ? __ldcg(partials.lse + i * partials.stride) : -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) larger = fmaxf(larger, lse[j]);
    sum *= weight(max, larger);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) sum += weight(lse[j], larger);
    max = larger;
  }
  const float of_row = warp_max(max);
  return {.max = of_row, .sum = warp_sum(max == -INFINITY ? sum : sum * __expf(max - of_row))};
}

__device__ __forceinline__ int num_groups(int count) {
  return count <= kFewPartials ? 1 : kGroups;
}

/// kCount partials of a group, kSlicesAtOnce times 128 dims of each, on their way.
template <int kCount, int kSlicesAtOnce>
struct Batch {
  float lse[kCount];
  float4 out[kCount][kSlicesAtOnce];

  /// Partials i, i + step, ...; those past the end count as empty.
  __device__ __forceinline__ void load(const RowPartials& partials, int i, int step, int dim) {
#pragma unroll
    for (int j = 0; j < kCount; ++j, i += step) {
      const bool there = i < partials.count;
      lse[j] = there ? __ldcg(partials.lse + i * partials.stride) : -INFINITY;
      const auto* g_out =
          reinterpret_cast<const float4*>(partials.out + i * partials.stride * kLatentDim + dim);
#pragma unroll
      for (int slice = 0; slice < kSlicesAtOnce; ++slice)
        out[j][slice] = there ? __ldcg(g_out + slice * kWarpLanes) : make_float4(0, 0, 0, 0);
    }
  }

  /// sum += w out, in order. What an empty partial holds is not used.
  __device__ __forceinline__ void add_to(float4 (&sum)[kSlicesAtOnce], float max) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (lse[j] == -INFINITY) continue;
      const float weight = __expf(lse[j] - max);
#pragma unroll
      for (int slice = 0; slice < kSlicesAtOnce; ++slice) {
        const float4& part = out[j][slice];
        sum[slice].x = fmaf(weight, part.x, sum[slice].x);
        sum[slice].y = fmaf(weight, part.y, sum[slice].y);
        sum[slice].z = fmaf(weight, part.z, sum[slice].z);
        sum[slice].w = fmaf(weight, part.w, sum[slice].w);
      }
    }
  }
};

__device__ __forceinline__ void add(float4& sum, const float4& part) {
  sum.x += part.x;
  sum.y += part.y;
  sum.z += part.z;
  sum.w += part.w;
}

__device__ __forceinline__ void store(const CombineArgs& args, std::int64_t row, int dim, const float4& sum,
                                      float inverse) {
  const float4 value = make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
  const std::int64_t at = row * kLatentDim + dim;
  if (args.out_bf16) {
    *reinterpret_cast<uint2*>(static_cast<Bf16*>(args.out) + at) =
        make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
  } else {
    *reinterpret_cast<float4*>(static_cast<float*>(args.out) + at) = value;
  }
}

__device__ __forceinline__ float inverse_of(float sum) {
  return sum == 0 ? 0 : 1 / sum;  // a row that no partial sees is zero
}

/// Grid: (ceil(rows / 8), batch); a warp a row, 16 dims a lane.
__global__ void __launch_bounds__(kWarps* kWarpLanes)
    combine_narrow(const __grid_constant__ CombineArgs args) {
  launch_next_grid();  // which waits for this one's results, but not to start
  wait_for_previous_grid();
  const int row = static_cast<int>(blockIdx.x) * kWarps + warp_index();
  if (row >= args.rows) return;
  const RowPartials partials = row_partials(args, static_cast<int>(blockIdx.y), row);
  if (partials.count < args.fewest) return;
  const int lane = lane_index();
  const int groups = num_groups(partials.count);
  constexpr int kAtOnce = 4;
  Batch<kAtOnce, kSlices> batch;
  batch.load(partials, 0, groups, 4 * lane);
  const Softmax softmax = softmax_of(partials, lane);
  float4 sum[kSlices] = {};
  for (int group = 0; group < groups; ++group) {
    float4 part[kSlices] = {};
    for (int i = group; i < partials.count; i += kAtOnce * groups) {
      if (i > 0) batch.load(partials, i, groups, 4 * lane);
      batch.add_to(part, softmax.max);
    }
    for (int slice = 0; slice < kSlices; ++slice) add(sum[slice], part[slice]);
  }
  const std::int64_t out_row = std::int64_t{blockIdx.y} * args.rows + row;
  const float inverse = inverse_of(softmax.sum);
  for (int slice = 0; slice < kSlices; ++slice)
    store(args, out_row, 4 * lane + slice * kSliceDims, sum[slice], inverse);
  if (lane == 0) args.lse[out_row] = softmax.max + logf(softmax.sum);
}

/// Grid: (4 rows, batch); a block for 128 dims of a row, a warp a group, 4 dims a lane. Shared memory: 4 KB,
/// the groups' sums.
__global__ void __launch_bounds__(kWarps* kWarpLanes) combine_wide(const __grid_constant__ CombineArgs args) {
  static_assert(kWarps == kGroups);
  __shared__ float4 s_group[kGroups][kWarpLanes];
  launch_next_grid();  // which waits for this one's results, but not to start
  wait_for_previous_grid();
  const int row = static_cast<int>(blockIdx.x) / kSlices;
  const int slice = static_cast<int>(blockIdx.x) % kSlices;
  const RowPartials partials = row_partials(args, static_cast<int>(blockIdx.y), row);
  if (partials.count < args.fewest) return;
  const int groups = num_groups(partials.count);
  const int group = warp_index();
  if (groups == 1 && group > 0) return;  // nothing to merge: warp 0 does it alone
  const int lane = lane_index();
  const int dim = slice * kSliceDims + 4 * lane;
  constexpr int kAtOnce = 8;
  Batch<kAtOnce, 1> batch;
  batch.load(partials, group, groups, dim);
  const Softmax softmax = softmax_of(partials, lane);
  float4 sum[1] = {};
  for (int i = group; i < partials.count; i += kAtOnce * groups) {
    if (i > group) batch.load(partials, i, groups, dim);
    batch.add_to(sum, softmax.max);
  }
  if (groups > 1) {
    s_group[group][lane] = sum[0];
    __syncthreads();
    if (group > 0) return;
    for (int other = 1; other < kGroups; ++other) add(sum[0], s_group[other][lane]);
  }
  const std::int64_t out_row = std::int64_t{blockIdx.y} * args.rows + row;
  store(args, out_row, dim, sum[0], inverse_of(softmax.sum));
  if (lane == 0 && slice == 0) args.lse[out_row] = softmax.max + logf(softmax.sum);
}

/// Starts as soon as the previous kernel of the stream lets it (or ends), and waits on the device for its
/// results: launch latency and ramp-up then lie behind that kernel's last work. In a captured graph the same
/// attribute becomes a programmatic edge.
void launch(const CombineArgs& args, std::int64_t batch, cudaStream_t stream) {
  const bool wide = batch * args.rows <= kWideRows;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  const unsigned blocks_x = wide ? args.rows * kSlices : (args.rows + kWarps - 1) / kWarps;
  config.gridDim = dim3(blocks_x, static_cast<unsigned>(batch));
  config.blockDim = dim3(kWarps * kWarpLanes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  SNAPMLA_CUDA(cudaLaunchKernelEx(&config, wide ? combine_wide : combine_narrow, args));
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
  launch({.partial_out = params.partial_out.as<float>(),
          .partial_lse = params.partial_lse.as<float>(),
          .split_offsets = params.split_offsets.as<std::int32_t>(),
          .num_partials = static_cast<int>(params.partial_out.dim(0)),
          .rows = static_cast<int>(params.partial_out.dim(1)),
          .fewest = 0,
          .out = params.out.data(),
          .out_bf16 = params.out.dtype() == DType::kBF16,
          .lse = params.lse.as<float>()},
         params.out.dim(0), stream);
}

void combine_splits(const DecodeParams& params, cudaStream_t stream) {
  const PlanShape& shape = params.plan.shape;
  const std::int64_t rows = params.q_latent.dim(1) * params.q_latent.dim(2);
  const Partials partials = partials_of(params);
  launch({.partial_out = partials.out,
          .partial_lse = partials.lse,
          .split_offsets = params.plan.split_offsets.as<std::int32_t>(),
          .num_partials = shape.max_items,
          .rows = static_cast<int>(rows),
          .fewest = 2,
          .out = params.out.data(),
          .out_bf16 = params.out.dtype() == DType::kBF16,
          .lse = params.lse.as<float>()},
         shape.batch, stream);
}

}  // namespace snapmla::cuda_ops
