// append_kv: RMSNorm, RoPE, quantize (for FP8 pages) and scatter in one launch, a warp a token. As the
// reference, bit for bit (NaN aside; device/row.cuh says how far that holds for the norm).
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/row.cuh"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kWarps = 4;

enum class Target { kFp8PowerOfTwo, kFp8Amax, kBf16 };

struct AppendArgs {
  const Bf16* kv;
  std::int64_t kv_stride;
  const Bf16* norm_weight;  ///< null: no norm
  float norm_eps;
  RopeArgs rope;
  const void* slots;
  bool wide_slots;  ///< int64, else int32
  CacheView cache;
  std::int64_t num_tokens;
};

template <class T>
__device__ __forceinline__ T* row_at(const CachePlane& plane, std::int64_t slot) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(plane.data) + slot / kPageTokens * plane.page_stride +
                              slot % kPageTokens * plane.row_stride);
}

/// Grid: a warp a token. kAligned: rows of kv, and norm_weight, start at multiples of 16 bytes.
template <bool kAligned, Target kTarget>
__global__ void __launch_bounds__(kWarps* kWarpLanes) append_kernel(const __grid_constant__ AppendArgs args) {
  launch_next_grid();
  wait_for_previous_grid();
  const std::int64_t token = std::int64_t{blockIdx.x} * kWarps + warp_index();
  if (token >= args.num_tokens) return;
  const int lane = lane_index();
  const std::int64_t slot = args.wide_slots ? __ldg(static_cast<const long long*>(args.slots) + token)
                                            : __ldg(static_cast<const int*>(args.slots) + token);
  if (slot < 0) return;
  const Bf16* kv = args.kv + token * args.kv_stride;
  LatentRow latent = load_latent<kAligned>(kv, lane);
  const RopePair rope = load_rope<kAligned>(kv + kLatentDim, lane, args.rope, token);
  if (args.norm_weight != nullptr)
    latent = rms_norm(latent, load_latent<kAligned>(args.norm_weight, lane), args.norm_eps);

  const CacheView& cache = args.cache;
  auto* rope_out = row_at<Bf16>(cache.rope, slot);
  if constexpr (kTarget == Target::kBf16) {
    store_latent(row_at<Bf16>(cache.latent, slot), lane, latent);
    store_rope(rope_out, lane, args.rope.adjacent, rope.first, rope.second);
  } else {
    const Divider<kTarget == Target::kFp8Amax ? ScaleRule::kAmax : ScaleRule::kPowerOfTwo> divide(
        latent_amax(latent));
    store_latent_e4m3(row_at<E4m3>(cache.latent, slot), lane, latent, divide);
    store_rope(rope_out, lane, args.rope.adjacent, divide(rope.first), divide(rope.second));
    if (lane == 0) *row_at<float>(cache.scale, slot) = divide.scale;
  }
}

template <bool kAligned>
auto kernel_for(const AppendKvParams& params) {
  if (params.cache.format == CacheFormat::kBf16) return append_kernel<kAligned, Target::kBf16>;
  return params.scale_rule == ScaleRule::kPowerOfTwo ? append_kernel<kAligned, Target::kFp8PowerOfTwo>
                                                     : append_kernel<kAligned, Target::kFp8Amax>;
}

}  // namespace

void append_kv(const AppendKvParams& params, cudaStream_t stream) {
  constexpr const char* kOp = "append_kv";
  require_natural(kOp, "kv", params.kv);
  require_natural(kOp, "norm_weight", params.norm_weight);
  require_natural(kOp, "rope.cos_sin", params.rope.cos_sin);
  require_natural(kOp, "rope.positions", params.rope.positions);
  require_natural(kOp, "slot_mapping", params.slot_mapping);
  const AppendArgs args{.kv = params.kv.as<Bf16>(),
                        .kv_stride = params.kv.stride(0),
                        .norm_weight = params.norm_weight.as<Bf16>(),
                        .norm_eps = params.norm_eps,
                        .rope = make_rope_args(params.rope),
                        .slots = params.slot_mapping.data(),
                        .wide_slots = params.slot_mapping.dtype() == DType::kI64,
                        .cache = params.cache,
                        .num_tokens = params.kv.dim(0)};
  if (args.num_tokens == 0) return;
  const std::int64_t num_blocks = (args.num_tokens + kWarps - 1) / kWarps;
  SNAPMLA_REQUIRE(num_blocks <= INT32_MAX, kOp, "tokens must be at most ", std::int64_t{INT32_MAX} * kWarps,
                  "; got ", args.num_tokens);
  const bool aligned = rows_aligned(params.kv, kVectorBytes) && is_aligned(args.norm_weight, kVectorBytes);
  const auto kernel = aligned ? kernel_for<true>(params) : kernel_for<false>(params);
  launch_overlapped(kernel, dim3(static_cast<unsigned>(num_blocks)), kWarps * kWarpLanes, 0, stream, args);
}

}  // namespace snapmla::cuda_ops
