// experts on CUDA: y = sum over a token's choices of weight * down(silu(gate x) * up x), for the tokens of a call and
// experts that only the device knows.
//
//     group     pairs in the order of their experts, rows of x gathered in that order, list of token tiles
//     gate_up   h = bf16(silu(gate x) * up x)              [places, inter]
//     down      y = down h                                 [places, hidden] fp32
//     sum       out = bf16(sum of weight * y, or of weight * x for identities, in the order of choice)
//
// Reading the weights is what takes the time: at decode sizes those of every expert that has a token come from memory
// once, and no other's. Grids depend on the device and on the shapes alone, so a call can be captured in a graph. The
// kernels overlap (device/launch.h), and down reads weights while gate_up ends: see experts/product.cuh.
#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "core/check.h"
#include "cuda/device/launch.h"
#include "cuda/device/tensor_map.h"
#include "cuda/experts/config.h"
#include "cuda/experts/group.cuh"
#include "cuda/experts/product.cuh"
#include "cuda/experts/sum.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

using namespace moe;

constexpr const char* kOp = "experts";
constexpr std::int64_t kAlignment = 256;  // what allocate() gives

struct Workspace {
  int* num_tiles;
  int4* tiles;      ///< [most_tiles]
  int* place;       ///< [pairs]
  Bf16* hidden;     ///< [pairs, inter]
  float* down;      ///< [pairs, hidden]
  uint4* gathered;  ///< [pairs, hidden] bf16, in the memory of `down`: gone when that is written
  std::int64_t bytes;
};

Workspace carve_workspace(std::byte* base, std::int64_t pairs, std::int64_t hidden, std::int64_t inter,
                          std::int64_t experts) {
  std::int64_t at = 0;
  const auto take = [&](std::int64_t bytes) {
    std::byte* start = base == nullptr ? nullptr : base + at;
    at += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return static_cast<void*>(start);
  };
  Workspace space{};
  space.num_tiles = static_cast<int*>(take(sizeof(int)));
  space.tiles = static_cast<int4*>(
      take(most_tiles(pairs, experts, product::kBf16Widths.front()) * std::int64_t{sizeof(int4)}));
  space.place = static_cast<int*>(take(pairs * 4));
  space.hidden = static_cast<Bf16*>(take(pairs * inter * 2));
  space.down = static_cast<float*>(take(pairs * hidden * 4));
  space.gathered = reinterpret_cast<uint4*>(space.down);
  space.bytes = at;
  return space;
}

void check_weight(const WeightView& weight, std::int64_t experts, std::int64_t out, std::int64_t in,
                  bool e4m3) {
  const auto is_shape = [](const ConstTensorView& view, DType dtype, std::int64_t a, std::int64_t b,
                           std::int64_t c) {
    return is_tensor(view, dtype, 3) && view.dim(0) == a && view.dim(1) == b && view.dim(2) == c;
  };
  SNAPMLA_ASSERT(weight.is_e4m3() == e4m3);
  SNAPMLA_ASSERT(is_shape(weight.values, e4m3 ? DType::kE4M3 : DType::kBF16, experts, out, in));
  if (!e4m3) return;
  SNAPMLA_ASSERT(in % kWeightBlock == 0);
  SNAPMLA_ASSERT(is_shape(weight.scales, DType::kF32, experts, num_weight_blocks(out), in / kWeightBlock));
  SNAPMLA_ASSERT(weight.scales.stride(1) == weight.scales.dim(2));
}

void check(const ExpertsParams& p) {
  const std::int64_t tokens = p.x.dim(0);
  const std::int64_t hidden = p.x.dim(1);
  const std::int64_t experts = p.gate.values.dim(0);
  const std::int64_t inter = p.gate.values.dim(1);
  const bool e4m3 = p.gate.is_e4m3();
  SNAPMLA_ASSERT(p.x.dtype() == DType::kBF16 && p.out.dtype() == DType::kBF16);
  SNAPMLA_ASSERT(p.expert.dtype() == DType::kI32 && p.weight.dtype() == DType::kF32);
  SNAPMLA_ASSERT(p.out.dim(0) == tokens && p.out.dim(1) == hidden && p.expert.dim(0) == tokens);
  SNAPMLA_ASSERT(p.weight.dim(0) == tokens && p.weight.dim(1) == p.expert.dim(1));
  check_weight(p.gate, experts, inter, hidden, e4m3);
  check_weight(p.up, experts, inter, hidden, e4m3);
  check_weight(p.down, experts, hidden, inter, e4m3);
  SNAPMLA_ASSERT(tokens * p.expert.dim(1) <= INT32_MAX / 2);
  // What a config.json can bring about is the caller's to know: rows are copied in units of 16 bytes.
  SNAPMLA_REQUIRE(hidden % 8 == 0 && inter % 8 == 0, kOp,
                  "hidden and intermediate size must be multiples of 8 on the cuda backend; got ", hidden,
                  " and ", inter);
  for (const ConstTensorView* view : {&p.x, &p.gate.values, &p.up.values, &p.down.values})
    SNAPMLA_REQUIRE(rows_aligned(*view, kVectorBytes), kOp,
                    "x, gate, up and down must have 16-byte aligned rows on the cuda backend; got ", *view);
  SNAPMLA_ASSERT(rows_aligned(p.out, 8) && is_aligned(p.workspace.data(), kAlignment));
}

int num_sms() {
  int device = 0;
  int count = 0;
  SNAPMLA_CUDA(cudaGetDevice(&device));
  SNAPMLA_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

void launch_group(const ExpertsParams& p, const Workspace& space, int width, int sms, cudaStream_t stream) {
  const auto experts = static_cast<int>(p.gate.values.dim(0));
  const auto top_k = static_cast<int>(p.expert.dim(1));
  const GroupArgs args{.expert = p.expert.as<std::int32_t>(),
                       .expert_stride = p.expert.stride(0),
                       .x = p.x.as<Bf16>(),
                       .x_stride = p.x.stride(0),
                       .top_k = top_k,
                       .pairs = static_cast<int>(p.x.dim(0)) * top_k,
                       .experts = experts,
                       .width = width,
                       .row_vectors = static_cast<int>(p.x.dim(1) / 8),
                       .num_tiles = space.num_tiles,
                       .tiles = space.tiles,
                       .place = space.place,
                       .gathered = space.gathered};
  const int groups = experts + (p.identities > 0 ? 1 : 0);
  const dim3 grid(static_cast<unsigned>(groups), static_cast<unsigned>(std::max(1, 2 * sms / groups)));
  launch_overlapped(group_kernel, grid, kGroupThreads, static_cast<std::size_t>(experts) * sizeof(int),
                    stream, args);
}

template <class Op, class S>
void launch_product(const ProductArgs& args, const ProductMaps& maps, int sms, cudaStream_t stream) {
  constexpr auto kKernel = product_kernel<Op, S>;
  allow_shared_memory<kKernel, static_cast<int>(S::kBytes)>();
  launch_overlapped(kKernel, dim3(static_cast<unsigned>(sms)), S::kThreads, S::kBytes, stream, args, maps);
}

template <class S>
void launch_products(const ExpertsParams& p, const Workspace& space, CachePolicy weights_policy, int sms,
                     cudaStream_t stream) {
  const std::int64_t pairs = p.expert.dim(0) * p.expert.dim(1);
  const std::int64_t hidden = p.x.dim(1);
  const std::int64_t inter = p.gate.values.dim(1);
  constexpr int kDims = S::Weights::kDims;
  const auto tokens_map = [&](const void* data, std::int64_t columns) {
    return make_matrix_map(ConstTensorView(data, DType::kBF16, {1, pairs, columns}), S::kBoxRows);
  };
  const auto arguments = [&](const WeightView& first, const WeightView& second, int outputs, void* out) {
    const auto rows = static_cast<int>(first.values.dim(1));
    const auto scales_of = [](const WeightView& weight) {
      return BlockScales{weight.scales.as<float>(), weight.scales.stride(0)};
    };
    return ProductArgs{.num_tiles = space.num_tiles,
                       .tiles = space.tiles,
                       .rows = rows,
                       .row_sets = num_row_sets(rows, outputs),
                       .stages = static_cast<int>((first.values.dim(2) + kDims - 1) / kDims),
                       .out = out,
                       .weights_policy = weights_policy,
                       .first_scales = scales_of(first),
                       .second_scales = scales_of(second)};
  };
  launch_product<GateUp, S>(arguments(p.gate, p.up, GateUp::kOutputs, space.hidden),
                            {.first = make_matrix_map(p.gate.values, product::kTileRows),
                             .second = make_matrix_map(p.up.values, product::kTileRows),
                             .tokens = tokens_map(space.gathered, hidden)},
                            sms, stream);
  const CUtensorMap down = make_matrix_map(p.down.values, product::kTileRows);
  launch_product<Down, S>(arguments(p.down, p.down, Down::kOutputs, space.down),
                          {.first = down, .second = down, .tokens = tokens_map(space.hidden, inter)}, sms,
                          stream);
}

template <class Weights>
void launch_width(int width, const ExpertsParams& p, const Workspace& space, CachePolicy weights_policy,
                  int sms, cudaStream_t stream) {
  using product::Shape;
  if (width == 16) return launch_products<Shape<Weights, 16>>(p, space, weights_policy, sms, stream);
  if (width == 64) return launch_products<Shape<Weights, 64>>(p, space, weights_policy, sms, stream);
  if (width == 128) return launch_products<Shape<Weights, 128>>(p, space, weights_policy, sms, stream);
  if (width == 192) return launch_products<Shape<Weights, 192>>(p, space, weights_policy, sms, stream);
  if constexpr (std::is_same_v<Weights, product::Bf16Weights>)
    launch_products<Shape<Weights, 256>>(p, space, weights_policy, sms, stream);
}

void launch_sum(const ExpertsParams& p, const Workspace& space, cudaStream_t stream) {
  const SumArgs args{.place = space.place,
                     .weight = p.weight.as<float>(),
                     .weight_stride = p.weight.stride(0),
                     .down = space.down,
                     .x = p.x.as<Bf16>(),
                     .x_stride = p.x.stride(0),
                     .out = p.out.as<Bf16>(),
                     .out_stride = p.out.stride(0),
                     .top_k = static_cast<int>(p.expert.dim(1)),
                     .hidden = static_cast<int>(p.x.dim(1))};
  constexpr std::int64_t kBlockColumns = std::int64_t{kSumThreads} * kSumColumns;
  const dim3 grid(static_cast<unsigned>(p.x.dim(0)),
                  static_cast<unsigned>((p.x.dim(1) + kBlockColumns - 1) / kBlockColumns));
  launch_overlapped(sum_kernel, grid, kSumThreads, 0, stream, args);
}

}  // namespace

std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter, int experts) {
  return carve_workspace(nullptr, std::int64_t{tokens} * top_k, hidden, inter, experts).bytes;
}

void experts(const ExpertsParams& params, cudaStream_t stream) {
  check(params);
  const std::int64_t tokens = params.x.dim(0);
  const std::int64_t top_k = params.expert.dim(1);
  const std::int64_t experts = params.gate.values.dim(0);
  if (tokens == 0) return;
  const Workspace space = carve_workspace(params.workspace.as<std::byte>(), tokens * top_k, params.x.dim(1),
                                          params.gate.values.dim(1), experts);
  SNAPMLA_ASSERT(params.workspace.dim(0) >= space.bytes);
  const bool e4m3 = params.gate.is_e4m3();
  const double likely = likely_tokens(tokens, top_k, experts + params.identities);
  const int width = e4m3 ? product::tile_width(likely, product::kE4m3Widths)
                         : product::tile_width(likely, product::kBf16Widths);
  const CachePolicy policy =
      product::tiles_of(likely, width) == 1 ? CachePolicy::kEvictFirst : CachePolicy::kEvictNormal;
  const int sms = num_sms();
  launch_group(params, space, width, sms, stream);
  const auto launch = e4m3 ? launch_width<product::E4m3Weights> : launch_width<product::Bf16Weights>;
  launch(width, params, space, policy, sms, stream);
  launch_sum(params, space, stream);
}

}  // namespace snapmla::cuda_ops
