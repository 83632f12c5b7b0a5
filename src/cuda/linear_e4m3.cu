// linear with e4m3 weights: the bytes of the weight are what takes the time, so they must come at the rate of the memory
// from all SMs at once.
//
// A cluster of CTAs takes 128 rows of the weight and a tile of tokens, each CTA a share of K, so that even a projection of 576 or
// 1,536 outputs keeps most SMs busy. A CTA is a ring of stages (product/stages.cuh) that one thread fills, weights ahead of
// the end of the kernel before; when its sums are done they go to shared memory, and each CTA adds up all shares of its
// part of the tile, in their order. How K is shared follows from the weight's shape alone: no bit of a row depends on the
// rows beside it.
#include <algorithm>
#include <cstdint>

#include "core/check.h"
#include "cuda/device/elements.cuh"
#include "cuda/device/launch.h"
#include "cuda/device/tensor_map.h"
#include "cuda/linear_e4m3.h"
#include "cuda/product/stages.cuh"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

using namespace product;

constexpr int kOutputs = 2 * kTileRows;  // of a cluster
constexpr int kPitch =
    kOutputs + 4;  // floats from token to token of the sums: lanes of a warp store to 32 banks
constexpr int kMultiplyThreads = 256;  // two warpgroups
constexpr int kMostRanks = 8;          // what any device can place as a cluster
constexpr int kFewestStages = 4;  // of a CTA: less than this and the first bytes' latency is all there is
constexpr int kSlots = 2 * 132;   // CTAs that run at once on an H100: two an SM

struct LinearArgs {
  const float* scales;  ///< [ceil(outs / 128)][stages]
  const Bf16* bias;     ///< [outs] or null
  void* out;
  std::int64_t out_stride;
  int tokens;
  int outs;
  int stages;       ///< K / 128
  int rank_stages;  ///< of a CTA, rounded up
  bool out_is_f32;
};

/// The stages of a CTA: its share of K of its one item.
template <class S>
class Stages {
 public:
  __device__ __forceinline__ Stages(const LinearArgs& args, int rank)
      : stage(rank * args.rank_stages), end(min(stage + args.rank_stages, args.stages)) {
    const int first = static_cast<int>(blockIdx.y) * S::kWidth;
    tile = {0, first, min(S::kWidth, args.tokens - first)};
    first_row = static_cast<int>(blockIdx.z) * kOutputs;
  }

  [[nodiscard]] __device__ __forceinline__ bool more() const { return stage < end; }
  __device__ __forceinline__ void next() {
    ++stage;
    if (++slot < S::kStages) return;
    slot = 0;
    phase ^= 1;
  }

  std::uint32_t slot = 0;   ///< of the ring
  std::uint32_t phase = 0;  ///< parity of the slot's use
  int stage;
  int end;
  TokenTile tile{};
  int first_row = 0;
};

/// A warp's sums of one weight tile, to [token][output].
template <int kSums>
__device__ __forceinline__ void store_sums(const float (&sum)[kSums], std::uint32_t s_sums, int row,
                                           int lane) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int token = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const int output = row + lane / 4 + i % 4 / 2 * 8;
    store_shared(s_sums + static_cast<std::uint32_t>(token * kPitch + output) * 4, sum[i]);
  }
}

__device__ __forceinline__ void store_pair(const LinearArgs& args, int token, int output, float2 y) {
  const std::int64_t at = token * args.out_stride + output;
  if (args.out_is_f32) {
    *reinterpret_cast<float2*>(static_cast<float*>(args.out) + at) = y;
  } else {
    *reinterpret_cast<std::uint32_t*>(static_cast<Bf16*>(args.out) + at) = pack_bf16(y.x, y.y);
  }
}

/// The CTA's part of the cluster's tile: the shares of all ranks, added in their order, with the bias, to memory.
template <int kRanks>
__device__ __forceinline__ void add_shares(const LinearArgs& args, const TokenTile& tile, int first_row,
                                           std::uint32_t s_sums, int rank) {
  constexpr int kPairs = kOutputs / 2;
  const int outs = min(kOutputs, args.outs - first_row);
  for (int i = rank * kMultiplyThreads + static_cast<int>(threadIdx.x); i < tile.count * kPairs;
       i += kRanks * kMultiplyThreads) {
    const int token = i / kPairs;
    const int output = i % kPairs * 2;
    if (output >= outs) continue;
    const std::uint32_t s_at = s_sums + static_cast<std::uint32_t>(token * kPitch + output) * 4;
    float2 y = make_float2(0, 0);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const float2 share = load_pair_from_peer(s_at, r);
      y.x += share.x;
      y.y += share.y;
    }
    if (args.bias != nullptr) {
      y.x += to_float(args.bias[first_row + output]);
      y.y += to_float(args.bias[first_row + output + 1]);
    }
    store_pair(args, tile.first + token, first_row + output, y);
  }
}

template <class S, int kRanks>
__global__ void __cluster_dims__(kRanks, 1, 1) __launch_bounds__(S::kThreads)
    linear_kernel(const __grid_constant__ LinearArgs args, const __grid_constant__ ProductMaps maps) {
  extern __shared__ __align__(1024) std::uint8_t s_memory[];
  const std::uint32_t s_base = shared_address(s_memory);
  const int warp = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto rank = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0) {
    init_ring<S>(s_base);
    prefetch_map(&maps.first);
    prefetch_map(&maps.tokens);
  }
  __syncthreads();
  launch_next_grid();
  Stages<S> at(args, rank);
  const TokenTile tile = at.tile;
  const bool loads = warp == kMultiplyThreads / 32;
  if (loads) {
    constexpr bool kWeightsEarly = true;
    const CachePolicy policy = gridDim.y == 1 ? CachePolicy::kEvictFirst : CachePolicy::kEvictNormal;
    if (lane == 0) run_loads<S, kWeightsEarly>(at, maps, kTileRows, policy, s_base);
    __syncwarp();
  } else {
    wait_for_previous_grid();
    const int group = warp / 4;
    float sum[S::kParts][S::kPartTokens / 2] = {};
    const float* scales = args.scales + std::int64_t{blockIdx.z} * args.stages;
    if (at.more())
      multiply_e4m3<S>(sum, at, at.end, rows_of_tile<S>(scales, scales, group, warp % 4, lane), s_base, lane);
    constexpr int kMultiply = 1;                // hardware barrier of the warps that multiply
    sync_threads(kMultiply, kMultiplyThreads);  // nobody reads the ring any more
#pragma unroll
    for (int part = 0; part < S::kParts; ++part)
      store_sums(sum[part], s_base + part * S::kPartTokens * kPitch * 4, kTileRows * group + 16 * (warp % 4),
                 lane);
  }
  sync_cluster();
  if (!loads) add_shares<kRanks>(args, tile, at.first_row, s_base, rank);
  sync_cluster();  // no CTA's memory goes while others read it
}

template <class S, int kRanks>
void launch(const LinearArgs& args, const ProductMaps& maps, cudaStream_t stream) {
  static_assert(S::kThreads == kMultiplyThreads + 32);
  static_assert(S::kWidth * kPitch * 4 <= S::kFull, "the sums take the place of the stages");
  constexpr auto kKernel = linear_kernel<S, kRanks>;
  allow_shared_memory<kKernel, static_cast<int>(S::kBytes)>();
  const dim3 grid(kRanks, static_cast<unsigned>((args.tokens + S::kWidth - 1) / S::kWidth),
                  static_cast<unsigned>((args.outs + kOutputs - 1) / kOutputs));
  launch_overlapped(kKernel, grid, S::kThreads, S::kBytes, stream, args, maps);
}

/// CTAs that share K: as many as still run at once, with kFewestStages each.
int num_ranks(int row_sets, int stages) {
  int ranks = 1;
  while (ranks < kMostRanks && 2 * ranks * row_sets <= kSlots && stages / (2 * ranks) >= kFewestStages)
    ranks *= 2;
  return ranks;
}

template <class S>
void launch_ranks(int ranks, const LinearArgs& args, const ConstTensorView& x, const ConstTensorView& weight,
                  cudaStream_t stream) {
  const CUtensorMap weights = make_matrix_map(weight, kTileRows);
  const ProductMaps maps{.first = weights, .second = weights, .tokens = make_matrix_map(x, S::kBoxRows)};
  const auto run = ranks == 1   ? launch<S, 1>
                   : ranks == 2 ? launch<S, 2>
                   : ranks == 4 ? launch<S, 4>
                                : launch<S, 8>;
  run(args, maps, stream);
}

// Two CTAs share an SM up to 64 tokens: more items are then in flight than SMs, and one's sums go out while the other's weights
// come in.
constexpr std::uint32_t kHalfSharedBytes = kSharedBytes / 2 - 1024;

// --- The order of the codes ---

constexpr int kArrangeThreads = 256;
constexpr int kLanesAGroup = 8;  // each makes 16 bytes of a group's 128

__global__ void __launch_bounds__(kArrangeThreads) arrange_kernel(std::uint8_t* codes, std::int64_t groups) {
  launch_next_grid();
  wait_for_previous_grid();
  const std::int64_t index = std::int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  const bool mine = index / kLanesAGroup < groups;
  std::uint8_t* group = codes + index / kLanesAGroup * E4m3Weights::kDims;
  const int first = static_cast<int>(index % kLanesAGroup) * 16;
  alignas(16) std::uint8_t arranged[16];
  if (mine) {
#pragma unroll
    for (int i = 0; i < 16; ++i) arranged[i] = group[dim_at_place(first + i)];
  }
  __syncwarp();  // the group has been read
  if (mine) *reinterpret_cast<uint4*>(group + first) = *reinterpret_cast<const uint4*>(arranged);
}

}  // namespace

bool prefers_e4m3(std::int64_t out, std::int64_t in) {
  return out % 8 == 0 && in % kWeightBlock == 0;
}

void arrange_weight(const TensorView& values, cudaStream_t stream) {
  const std::int64_t in = values.dim(values.rank() - 1);
  SNAPMLA_ASSERT(values.dtype() == DType::kE4M3 && values.is_contiguous() && in % kWeightBlock == 0);
  SNAPMLA_ASSERT(is_aligned(values.data(), kVectorBytes));
  const std::int64_t groups = values.num_elements() / E4m3Weights::kDims;
  if (groups == 0) return;
  const std::int64_t blocks = (groups * kLanesAGroup + kArrangeThreads - 1) / kArrangeThreads;
  launch_overlapped(arrange_kernel, dim3(static_cast<unsigned>(blocks)), kArrangeThreads, 0, stream,
                    values.as<std::uint8_t>(), groups);
}

void linear_e4m3(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
                 const TensorView& out, cudaStream_t stream) {
  const std::int64_t tokens = x.dim(0);
  const std::int64_t in = x.dim(1);
  const std::int64_t outs = weight.values.dim(0);
  const std::int64_t row_sets = (outs + kOutputs - 1) / kOutputs;
  const std::int64_t stages = in / E4m3Weights::kDims;
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 2) && is_tensor(weight.values, DType::kE4M3, 2));
  SNAPMLA_ASSERT(is_tensor(out, DType::kBF16, 2) || is_tensor(out, DType::kF32, 2));
  SNAPMLA_ASSERT(prefers_e4m3(outs, in) && weight.values.dim(1) == in && weight.values.is_contiguous());
  SNAPMLA_ASSERT(is_tensor(weight.scales, DType::kF32, 2) && weight.scales.is_contiguous() &&
                 weight.scales.dim(0) == row_sets && weight.scales.dim(1) == stages);
  SNAPMLA_ASSERT(!bias.present() || (is_tensor(bias, DType::kBF16, 1) && bias.dim(0) == outs));
  SNAPMLA_ASSERT(out.dim(0) == tokens && out.dim(1) == outs && tokens <= INT32_MAX / 2);
  SNAPMLA_ASSERT(rows_aligned(x, kVectorBytes) && rows_aligned(out, kVectorBytes) && row_sets <= 65535);
  if (tokens == 0) return;
  const int ranks = num_ranks(static_cast<int>(row_sets), static_cast<int>(stages));
  const LinearArgs args{.scales = weight.scales.as<float>(),
                        .bias = bias.as<Bf16>(),
                        .out = out.data(),
                        .out_stride = out.stride(0),
                        .tokens = static_cast<int>(tokens),
                        .outs = static_cast<int>(outs),
                        .stages = static_cast<int>(stages),
                        .rank_stages = static_cast<int>((stages + ranks - 1) / ranks),
                        .out_is_f32 = out.dtype() == DType::kF32};
  // One matrix of a stack of one, as the maps have it.
  const ConstTensorView codes(weight.values.data(), DType::kE4M3, {1, outs, in});
  const ConstTensorView rows(x.data(), DType::kBF16, {1, tokens, in},
                             {tokens * x.stride(0), tokens == 1 ? in : x.stride(0), 1});
  const int width = tile_width(static_cast<double>(tokens), kE4m3Widths);
  const auto launch = width == 16    ? launch_ranks<Shape<E4m3Weights, 16, kHalfSharedBytes>>
                      : width == 64  ? launch_ranks<Shape<E4m3Weights, 64, kHalfSharedBytes>>
                      : width == 128 ? launch_ranks<Shape<E4m3Weights, 128>>
                                     : launch_ranks<Shape<E4m3Weights, 192>>;
  launch(ranks, args, rows, codes, stream);
}

}  // namespace snapmla::cuda_ops
