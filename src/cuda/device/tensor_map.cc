// cuTensorMapEncodeTiled lives in the driver; it is looked up through the runtime, so that the library needs
// no libcuda to link or to load on machines without a GPU.
#include "cuda/device/tensor_map.h"

#include <cuda_runtime_api.h>

#include <array>

#include "core/check.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// Limits of cuTensorMapEncodeTiled (CUDA driver API, "Tensor Map Object Management").
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 32;
constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;
constexpr std::int64_t kBoxBytes = 128;

EncodeTiled find_encode_tiled() {
  constexpr const char* kName = "cuTensorMapEncodeTiled";
  void* entry = nullptr;
  auto found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  constexpr unsigned int kSince = 12000;  // the version that brought tensor maps
  SNAPMLA_CUDA(cudaGetDriverEntryPointByVersion(kName, &entry, kSince, cudaEnableDefault, &found));
#else
  SNAPMLA_CUDA(cudaGetDriverEntryPoint(kName, &entry, cudaEnableDefault, &found));
#endif
  if (found != cudaDriverEntryPointSuccess || entry == nullptr)
    fail(ErrorCode::kDevice, "cuda", "the CUDA driver has no ", kName,
         "; tensor maps need a driver for CUDA 12.0 or later");
  return reinterpret_cast<EncodeTiled>(entry);
}

/// The runtime makes a device's context current in a thread when the thread first needs it; the driver, which is
/// called here ahead of any launch, takes none that is not.
void bind_device() {
  int device = 0;
  SNAPMLA_CUDA(cudaGetDevice(&device));
  SNAPMLA_CUDA(cudaSetDevice(device));
}

/// [blocks][rows][row_elements] with strides in bytes, in boxes of 128 bytes x box_rows rows x 1 block.
struct Planes {
  const void* data;
  DType dtype;
  std::int64_t row_elements;
  std::int64_t rows;
  std::int64_t blocks;
  std::int64_t row_stride;
  std::int64_t block_stride;
  int box_rows = 64;
};

CUtensorMap make_map(const Planes& planes) {
  CUtensorMap map{};
  static const EncodeTiled encode_tiled = find_encode_tiled();
  const std::int64_t element_bytes = size_of(planes.dtype);
  const std::array<cuuint64_t, 3> extent{static_cast<cuuint64_t>(planes.row_elements),
                                         static_cast<cuuint64_t>(planes.rows),
                                         static_cast<cuuint64_t>(planes.blocks)};
  const std::array<cuuint64_t, 2> stride_bytes{static_cast<cuuint64_t>(planes.row_stride),
                                               static_cast<cuuint64_t>(planes.block_stride)};
  const std::array<cuuint32_t, 3> box{static_cast<cuuint32_t>(kBoxBytes / element_bytes),
                                      static_cast<cuuint32_t>(planes.box_rows), 1};
  const std::array<cuuint32_t, 3> step{1, 1, 1};
  const auto encode = [&] {
    return encode_tiled(
        &map, planes.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
        3,
        const_cast<void*>(planes.data),  // the map only ever reads, but the driver's interface is not const
        extent.data(), stride_bytes.data(), box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult status = encode();
  if (status == CUDA_ERROR_INVALID_CONTEXT) {
    bind_device();
    status = encode();
  }
  if (status != CUDA_SUCCESS)
    fail(ErrorCode::kDevice, "cuda", "cuTensorMapEncodeTiled failed with CUresult ", static_cast<int>(status),
         " for ", planes.blocks, " x ", planes.rows, " rows of stride ", planes.row_stride, ", block stride ",
         planes.block_stride);
  return map;
}

}  // namespace

CUtensorMap make_page_map(const CachePlane& plane, DType dtype, std::int64_t row_elements,
                          std::int64_t num_pages) {
  if (num_pages == 0) return {};
  SNAPMLA_REQUIRE(num_pages <= kMaxExtent, "decode", "cache.num_pages must be at most ", kMaxExtent, "; got ",
                  num_pages);
  SNAPMLA_REQUIRE(plane.row_stride < kMaxStride && plane.page_stride < kMaxStride, "decode",
                  "cache strides must be below 2^40 bytes; got row_stride ", plane.row_stride,
                  ", page_stride ", plane.page_stride);
  return make_map({.data = plane.data,
                   .dtype = dtype,
                   .row_elements = row_elements,
                   .rows = kPageTokens,
                   .blocks = num_pages,
                   .row_stride = plane.row_stride,
                   .block_stride = plane.page_stride});
}

CUtensorMap make_query_map(const ConstTensorView& q) {
  SNAPMLA_REQUIRE(rows_aligned(q, kVectorBytes), "decode",
                  "q_latent and q_rope must have 16-byte aligned rows on the cuda backend; got ", q);
  // The stride of a dimension of extent 1 says nothing: there a dense one stands in.
  const std::int64_t rows = q.dim(1) * q.dim(2);
  const std::int64_t row_stride = rows == 1 ? q.dim(3) : q.dim(2) > 1 ? q.stride(2) : q.stride(1);
  const std::int64_t request_stride = q.dim(0) == 1 ? rows * row_stride : q.stride(0);
  const std::int64_t element_bytes = size_of(q.dtype());
  return make_map({.data = q.data(),
                   .dtype = q.dtype(),
                   .row_elements = q.dim(3),
                   .rows = rows,
                   .blocks = q.dim(0),
                   .row_stride = row_stride * element_bytes,
                   .block_stride = request_stride * element_bytes});
}

CUtensorMap make_head_map(const ConstTensorView& x, int box_rows) {
  const std::int64_t element_bytes = size_of(x.dtype());
  const bool has_heads = x.rank() == 3;
  const std::int64_t heads = has_heads ? x.dim(1) : 1;
  const std::int64_t width = x.dim(x.rank() - 1);
  SNAPMLA_REQUIRE(rows_aligned(x, kVectorBytes), "prefill",
                  "q, k_nope, k_rope and v must have 16-byte aligned rows on the cuda backend; got ", x);
  // As above: the stride of a dimension of extent 1 says nothing. One that is not used must still be valid.
  const std::int64_t dense = (width * element_bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  return make_map({.data = x.data(),
                   .dtype = x.dtype(),
                   .row_elements = width,
                   .rows = x.dim(0),
                   .blocks = heads,
                   .row_stride = x.dim(0) == 1 ? dense : x.stride(0) * element_bytes,
                   .block_stride = heads == 1 ? dense : x.stride(1) * element_bytes,
                   .box_rows = box_rows});
}

CUtensorMap make_matrix_map(const ConstTensorView& matrices, int box_rows) {
  SNAPMLA_ASSERT(rows_aligned(matrices, kVectorBytes));
  // as above: strides of dimensions of extent 1 say nothing
  const std::int64_t rows = matrices.dim(1);
  const std::int64_t row_stride = rows == 1 ? (matrices.dim(2) + 7) / 8 * 8 : matrices.stride(1);
  const std::int64_t matrix_stride = matrices.dim(0) == 1 ? rows * row_stride : matrices.stride(0);
  const std::int64_t element_bytes = size_of(matrices.dtype());
  return make_map({.data = matrices.data(),
                   .dtype = matrices.dtype(),
                   .row_elements = matrices.dim(2),
                   .rows = rows,
                   .blocks = matrices.dim(0),
                   .row_stride = row_stride * element_bytes,
                   .block_stride = matrix_stride * element_bytes,
                   .box_rows = box_rows});
}

}  // namespace snapmla::cuda_ops
