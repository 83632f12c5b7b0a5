// quantize_q: query rows to FP8, one scale a row, the rope part rotated first if asked. As the reference, bit
// for bit (NaN aside: its payload is free).
//
// Bound by memory: a row is 1,152 bytes in and 644 out. A warp does a row, so that all of its loads are in
// flight before the first use, and nothing goes through shared memory.
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/row.cuh"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kWarps = 4;  // a block: small, so that one token of 128 heads spreads over 32 SMs

struct Rows {
  const Bf16* data;
  std::int64_t stride[3];  ///< batch, s, heads; in elements
};

struct QuantizeArgs {
  Rows q_latent;
  Rows q_rope;
  RopeArgs rope;
  E4m3* latent_out;
  Bf16* rope_out;
  float* scale_out;
  std::uint32_t num_rows;
  std::uint32_t s;
  std::uint32_t heads;
};

/// Grid: a warp a row. kAligned: rows of q_latent start at multiples of 16 bytes, those of q_rope of 4.
template <bool kAligned, ScaleRule kRule>
__global__ void __launch_bounds__(kWarps* kWarpLanes) quantize_kernel(const QuantizeArgs args) {
  launch_next_grid();
  wait_for_previous_grid();
  const std::uint32_t row = blockIdx.x * kWarps + warp_index();
  if (row >= args.num_rows) return;
  const int lane = lane_index();
  const std::uint32_t token = row / args.heads;
  const std::uint32_t h = row - token * args.heads;
  const std::uint32_t b = token / args.s;
  const std::uint32_t i = token - b * args.s;
  const auto row_of = [&](const Rows& rows) {
    return rows.data + b * rows.stride[0] + i * rows.stride[1] + h * rows.stride[2];
  };
  const LatentRow latent = load_latent<kAligned>(row_of(args.q_latent), lane);
  const RopePair rope = load_rope<kAligned>(row_of(args.q_rope), lane, args.rope, token);

  const Divider<kRule> divide(latent_amax(latent));
  store_latent_e4m3(args.latent_out + std::int64_t{row} * kLatentDim, lane, latent, divide);
  store_rope(args.rope_out + std::int64_t{row} * kRopeDim, lane, args.rope.adjacent, divide(rope.first),
             divide(rope.second));
  if (lane == 0) args.scale_out[row] = divide.scale;
}

Rows make_rows(const ConstTensorView& view) {
  return {.data = view.as<Bf16>(), .stride = {view.stride(0), view.stride(1), view.stride(2)}};
}

}  // namespace

void quantize_q(const QuantizeQParams& params, cudaStream_t stream) {
  constexpr const char* kOp = "quantize_q";
  require_natural(kOp, "q_latent", params.q_latent);
  require_natural(kOp, "q_rope", params.q_rope);
  require_natural(kOp, "rope.cos_sin", params.rope.cos_sin);
  require_natural(kOp, "rope.positions", params.rope.positions);
  require_aligned(kOp, "q_latent_out", params.q_latent_out);
  require_aligned(kOp, "q_rope_out", params.q_rope_out);
  require_natural(kOp, "q_scale_out", params.q_scale_out);
  const auto s = static_cast<std::uint32_t>(params.q_latent.dim(1));
  const auto heads = static_cast<std::uint32_t>(params.q_latent.dim(2));
  const QuantizeArgs args{.q_latent = make_rows(params.q_latent),
                          .q_rope = make_rows(params.q_rope),
                          .rope = make_rope_args(params.rope),
                          .latent_out = params.q_latent_out.as<E4m3>(),
                          .rope_out = params.q_rope_out.as<Bf16>(),
                          .scale_out = params.q_scale_out.as<float>(),
                          .num_rows = static_cast<std::uint32_t>(params.q_latent.dim(0)) * s * heads,
                          .s = s,
                          .heads = heads};
  const bool aligned = rows_aligned(params.q_latent, kVectorBytes) && rows_aligned(params.q_rope, 4);
  const bool exact = params.scale_rule == ScaleRule::kPowerOfTwo;
  const auto kernel =
      aligned
          ? (exact ? quantize_kernel<true, ScaleRule::kPowerOfTwo> : quantize_kernel<true, ScaleRule::kAmax>)
          : (exact ? quantize_kernel<false, ScaleRule::kPowerOfTwo>
                   : quantize_kernel<false, ScaleRule::kAmax>);
  launch_overlapped(kernel, dim3((args.num_rows + kWarps - 1) / kWarps), kWarps * kWarpLanes, 0, stream,
                    args);
}

}  // namespace snapmla::cuda_ops
