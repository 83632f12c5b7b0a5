// fetch_kv: gather token ranges from the pages and dequantize them to bf16, real = stored * scale, rounded as
// the reference does. 644 bytes in and 1,152 out a token (FP8), so bound by memory.
//
// A warp takes kRowsPerWarp output rows. First its lanes look up one row each, all at once: the range (binary
// search in offsets), the page, the scale. Then the warp moves one latent row after the other, 512 codes in
// two 8-byte loads a lane and out in two 16-byte stores, all contiguous; and four rope rows at a time, 16
// bytes a lane. The loop over rows is unrolled, so that the loads of several are in flight.
#include <cuda_fp8.h>

#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/row.cuh"
#include "cuda/ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kWarps = 4;
constexpr int kRowsPerWarp = 8;
constexpr int kUnroll = 4;
constexpr int kRopeVectors = 2 * kRopeDim / static_cast<int>(kVectorBytes);  // 8 lanes a rope row
constexpr int kRopeRows = kWarpLanes / kRopeVectors;                         // rows at a time

struct FetchArgs {
  CacheView cache;
  const int* block_table;
  std::int64_t block_table_stride;
  const int* starts;
  const int* offsets;
  int num_ranges;
  std::int64_t num_rows;
  Bf16* latent_out;
  std::int64_t latent_stride;
  Bf16* rope_out;
  std::int64_t rope_stride;
};

/// Where one output row comes from; what lane i holds for the warp's row i.
struct Source {
  const std::byte* latent;  ///< null: no range covers the row, and nothing is written
  const std::byte* rope;
  float scale;
};

__device__ __forceinline__ Source find_source(const FetchArgs& args, std::int64_t row) {
  Source source{.latent = nullptr, .rope = nullptr, .scale = 1};
  if (row >= args.num_rows || row < __ldg(args.offsets) || row >= __ldg(args.offsets + args.num_ranges))
    return source;
  int range = 0;  // the last one whose offset is not above the row: an empty range is never the last
  for (int above = args.num_ranges; above - range > 1;) {
    const int middle = (range + above) / 2;
    if (__ldg(args.offsets + middle) <= row) {
      range = middle;
    } else {
      above = middle;
    }
  }
  const std::int64_t token = __ldg(args.starts + range) + row - __ldg(args.offsets + range);
  const std::int64_t page = __ldg(args.block_table + range * args.block_table_stride + token / kPageTokens);
  const auto at = [&](const CachePlane& plane) {
    return static_cast<const std::byte*>(plane.data) + page * plane.page_stride +
           token % kPageTokens * plane.row_stride;
  };
  source.latent = at(args.cache.latent);
  source.rope = at(args.cache.rope);
  if (args.cache.format == CacheFormat::kFp8)
    source.scale = __ldg(reinterpret_cast<const float*>(at(args.cache.scale)));
  return source;
}

template <class T>
__device__ __forceinline__ const T* from_lane(const std::byte* pointer, int lane) {
  return reinterpret_cast<const T*>(
      __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(pointer), lane));
}

/// Two e4m3 codes times scale as two bf16. e4m3 -> f16 -> f32 is exact.
__device__ __forceinline__ std::uint32_t dequantize(std::uint32_t codes, float scale) {
  const __half2_raw halves =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes & 0xffffU), __NV_E4M3);
  const float2 values = __half22float2(__half2(halves));
  return pack_bf16(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
}

__device__ __forceinline__ std::uint32_t rescale(std::uint32_t pair, float scale) {
  return pack_bf16(__fmul_rn(low_bf16(pair), scale), __fmul_rn(high_bf16(pair), scale));
}

/// Eight bf16 to a row of the output; two bytes at a time where its rows are not aligned.
template <bool kAligned>
__device__ __forceinline__ void store_eight(Bf16* out, uint4 values) {
  if constexpr (kAligned) {
    *reinterpret_cast<uint4*>(out) = values;
  } else {
    const std::uint32_t words[4] = {values.x, values.y, values.z, values.w};
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = Bf16{static_cast<std::uint16_t>(words[i])};
      out[2 * i + 1] = Bf16{static_cast<std::uint16_t>(words[i] >> 16)};
    }
  }
}

template <bool kAligned, bool kFp8>
__device__ __forceinline__ void move_latent(const FetchArgs& args, const Source& mine, std::int64_t first_row,
                                            int lane) {
  static_assert(kRowsPerWarp % kUnroll == 0);
  for (int begin = 0; begin < kRowsPerWarp; begin += kUnroll) {
    uint4 loaded[kUnroll][2];  // of FP8 only half of each is used
    float scale[kUnroll];
    const std::byte* row[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      row[i] = from_lane<std::byte>(mine.latent, begin + i);
      scale[i] = __shfl_sync(kAllLanes, mine.scale, begin + i);
      if (row[i] == nullptr) continue;
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        if constexpr (kFp8) {
          const uint2 codes = __ldg(reinterpret_cast<const uint2*>(row[i] + run * kHalfRow) + lane);
          loaded[i][run] = make_uint4(codes.x, codes.y, 0, 0);
        } else {
          loaded[i][run] = __ldg(reinterpret_cast<const uint4*>(row[i] + 2 * run * kHalfRow) + lane);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (row[i] == nullptr) continue;
      Bf16* out = args.latent_out + (first_row + begin + i) * args.latent_stride + 8 * lane;
#pragma unroll
      for (int run = 0; run < 2; ++run) {
        uint4 values = loaded[i][run];
        if constexpr (kFp8) {
          const auto [low, high] = make_uint2(values.x, values.y);
          values = make_uint4(dequantize(low, scale[i]), dequantize(low >> 16, scale[i]),
                              dequantize(high, scale[i]), dequantize(high >> 16, scale[i]));
        }
        store_eight<kAligned>(out + run * kHalfRow, values);
      }
    }
  }
}

template <bool kAligned, bool kFp8>
__device__ __forceinline__ void move_rope(const FetchArgs& args, const Source& mine, std::int64_t first_row,
                                          int lane) {
#pragma unroll
  for (int begin = 0; begin < kRowsPerWarp; begin += kRopeRows) {
    const int i = begin + lane / kRopeVectors;
    const int vector = lane % kRopeVectors;
    const auto* row = from_lane<uint4>(mine.rope, i);
    const float scale = __shfl_sync(kAllLanes, mine.scale, i);
    if (row == nullptr) continue;
    uint4 values = __ldg(row + vector);
    if constexpr (kFp8) {
      values = make_uint4(rescale(values.x, scale), rescale(values.y, scale), rescale(values.z, scale),
                          rescale(values.w, scale));
    }
    store_eight<kAligned>(args.rope_out + (first_row + i) * args.rope_stride + 8 * vector, values);
  }
}

/// Grid: a warp for each kRowsPerWarp output rows. kAligned: output rows start at multiples of 16 bytes.
template <bool kAligned, bool kFp8>
__global__ void __launch_bounds__(kWarps* kWarpLanes) fetch_kernel(const __grid_constant__ FetchArgs args) {
  const std::int64_t first_row = (std::int64_t{blockIdx.x} * kWarps + warp_index()) * kRowsPerWarp;
  const int lane = lane_index();
  Source mine{.latent = nullptr, .rope = nullptr, .scale = 1};
  if (lane < kRowsPerWarp) mine = find_source(args, first_row + lane);
  __syncwarp();
  move_latent<kAligned, kFp8>(args, mine, first_row, lane);
  move_rope<kAligned, kFp8>(args, mine, first_row, lane);
}

}  // namespace

void fetch_kv(const FetchKvParams& params, cudaStream_t stream) {
  constexpr const char* kOp = "fetch_kv";
  for (const auto& [name, view] :
       {std::pair{"block_table", params.block_table}, std::pair{"starts", params.starts},
        std::pair{"offsets", params.offsets}}) {
    require_natural(kOp, name, view);
  }
  require_natural(kOp, "latent_out", params.latent_out);
  require_natural(kOp, "rope_out", params.rope_out);
  const FetchArgs args{.cache = params.cache,
                       .block_table = params.block_table.as<std::int32_t>(),
                       .block_table_stride = params.block_table.stride(0),
                       .starts = params.starts.as<std::int32_t>(),
                       .offsets = params.offsets.as<std::int32_t>(),
                       .num_ranges = static_cast<int>(params.starts.dim(0)),
                       .num_rows = params.latent_out.dim(0),
                       .latent_out = params.latent_out.as<Bf16>(),
                       .latent_stride = params.latent_out.stride(0),
                       .rope_out = params.rope_out.as<Bf16>(),
                       .rope_stride = params.rope_out.stride(0)};
  SNAPMLA_REQUIRE(params.starts.dim(0) <= INT32_MAX && args.num_rows <= INT32_MAX, kOp,
                  "ranges and total must be below 2^31, as offsets are int32; got ", params.starts, " and ",
                  ConstTensorView(params.latent_out));
  if (args.num_ranges == 0 || args.num_rows == 0) return;
  constexpr std::int64_t kRowsPerBlock = kWarps * kRowsPerWarp;
  const auto num_blocks = static_cast<unsigned>((args.num_rows + kRowsPerBlock - 1) / kRowsPerBlock);
  const bool aligned =
      rows_aligned(params.latent_out, kVectorBytes) && rows_aligned(params.rope_out, kVectorBytes);
  const bool fp8 = params.cache.format == CacheFormat::kFp8;
  const auto kernel = aligned ? (fp8 ? fetch_kernel<true, true> : fetch_kernel<true, false>)
                              : (fp8 ? fetch_kernel<false, true> : fetch_kernel<false, false>);
  kernel<<<num_blocks, kWarps * kWarpLanes, 0, stream>>>(args);
  SNAPMLA_CUDA(cudaGetLastError());
}

}  // namespace snapmla::cuda_ops
