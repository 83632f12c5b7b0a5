// prefill_attention: arguments, tensor maps, and the kernel of the head dims. Contract: core/plain_ops.h.
#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "cuda/device/launch.h"
#include "cuda/device/tensor_map.h"
#include "cuda/plain_ops.h"
#include "cuda/prefill/kernel.cuh"
#include "cuda/require.h"
#include "snapmla/format.h"

namespace snapmla::cuda_ops {
namespace {

using namespace prefill;

constexpr std::int64_t kMaxDim = 256;  ///< of the widest Shape

Args make_args(const PrefillAttentionParams& p) {
  constexpr double kLog2E = 1.4426950408889634;
  const std::int64_t tokens = p.q.dim(0);
  const int heads = static_cast<int>(p.q.dim(1));
  const std::int64_t seq_len = p.k_nope.dim(0);
  const std::int64_t head_bytes = seq_len * (p.k_nope.dim(2) + p.v.dim(2)) * size_of(DType::kBF16);
  return {.order = {.tiles = static_cast<int>((tokens + kQueryRows - 1) / kQueryRows),
                    .heads = heads,
                    .heads_a_group = heads_that_fit(head_bytes, heads)},
          .tokens = static_cast<int>(tokens),
          .first_position = static_cast<int>(seq_len - tokens),
          .logit_factor = static_cast<float>(p.softmax_scale * kLog2E),
          .out = p.out.as<std::uint16_t>(),
          .out_token_stride = p.out.stride(0),
          .out_head_stride = p.out.stride(1),
          .v_dim = static_cast<int>(p.v.dim(2))};
}

/// The first `nope` elements of each head of q, and the 64 behind them.
ConstTensorView slice(const ConstTensorView& q, std::int64_t first, std::int64_t count) {
  return {q.as<Bf16>() + first, DType::kBF16, {q.dim(0), q.dim(1), count}, {q.stride(0), q.stride(1), 1}};
}

template <class Shape>
void launch(const PrefillAttentionParams& p, cudaStream_t stream) {
  const Args args = make_args(p);
  const std::int64_t nope = p.k_nope.dim(2);
  const Maps maps{.q_nope = make_head_map(slice(p.q, 0, nope), kQueryRows),
                  .q_rope = make_head_map(slice(p.q, nope, kRopeDim), kQueryRows),
                  .k_nope = make_head_map(p.k_nope, Shape::kKeys),
                  .k_rope = make_head_map(p.k_rope, Shape::kKeys),
                  .v = make_head_map(p.v, Shape::kKeys)};
  allow_shared_memory<prefill_kernel<Shape>, Shape::kBytes>();
  launch_overlapped(prefill_kernel<Shape>, dim3(static_cast<unsigned>(args.order.tiles * args.order.heads)),
                    kThreads, Shape::kBytes, stream, args, maps);
}

void check(const PrefillAttentionParams& p) {
  SNAPMLA_ASSERT(p.q.rank() == 3 && p.k_nope.rank() == 3 && p.k_rope.rank() == 2 && p.v.rank() == 3 &&
                 p.out.rank() == 3);
  SNAPMLA_ASSERT(p.q.dtype() == DType::kBF16 && p.k_nope.dtype() == DType::kBF16 &&
                 p.k_rope.dtype() == DType::kBF16 && p.v.dtype() == DType::kBF16 &&
                 p.out.dtype() == DType::kBF16);
  const std::int64_t tokens = p.q.dim(0);
  const std::int64_t heads = p.q.dim(1);
  const std::int64_t seq_len = p.k_nope.dim(0);
  SNAPMLA_ASSERT(seq_len >= tokens && p.k_rope.dim(0) == seq_len && p.v.dim(0) == seq_len);
  SNAPMLA_ASSERT(p.k_nope.dim(1) == heads && p.v.dim(1) == heads && p.k_rope.dim(1) == kRopeDim);
  SNAPMLA_ASSERT(p.q.dim(2) == p.k_nope.dim(2) + kRopeDim);
  SNAPMLA_ASSERT(p.out.dim(0) == tokens && p.out.dim(1) == heads && p.out.dim(2) == p.v.dim(2));
  SNAPMLA_ASSERT(p.softmax_scale > 0 &&
                 std::isfinite(p.softmax_scale));  // the largest S is that of the largest logit
  const auto fits = [](std::int64_t dim) { return dim > 0 && dim <= kMaxDim && dim % 8 == 0; };
  SNAPMLA_REQUIRE(fits(p.k_nope.dim(2)) && fits(p.v.dim(2)), "prefill",
                  "qk_nope_head_dim and v_head_dim must be multiples of 8 up to ", kMaxDim,
                  " on the cuda backend; got ", p.k_nope.dim(2), " and ", p.v.dim(2));
  SNAPMLA_REQUIRE(rows_aligned(p.out, kVectorBytes), "prefill",
                  "out must have 16-byte aligned rows on the cuda backend; got ", ConstTensorView(p.out));
}

}  // namespace

void prefill_attention(const PrefillAttentionParams& params, cudaStream_t stream) {
  check(params);
  if (params.q.num_elements() == 0) return;
  const std::int64_t nope = params.k_nope.dim(2);
  const std::int64_t v_dim = params.v.dim(2);
  if (std::max(nope, v_dim) <= kChunkDims) {
    launch<Shape<1, 1>>(params, stream);
  } else if (std::max(nope, v_dim) <= 2 * kChunkDims) {
    launch<Shape<2, 2>>(params, stream);
  } else if (nope <= 3 * kChunkDims) {
    launch<Shape<3, 4>>(params, stream);
  } else {
    launch<Shape<4, 4>>(params, stream);
  }
}

}  // namespace snapmla::cuda_ops
