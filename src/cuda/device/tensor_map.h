// Tensor maps of cache planes, query rows, matrices and the rows of a head: what a kernel hands to the copy engine so that
// it can load so many rows x 128 bytes, 64 where nothing is said, wherever the tensor lies and whatever its strides, as a
// 128B-swizzled tile. Host only.
//
// A kernel takes a map as `const __grid_constant__ CUtensorMap`, and a tile as copy_tile(map, column, row,
// page), for queries (column, row, request). Rows past the end arrive as zeros.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "snapmla/format.h"
#include "snapmla/tensor.h"

namespace snapmla::cuda_ops {

/// The map of a plane [num_pages][64][row_elements] of `dtype` (kU8, kE4M3: one byte; kBF16): box 128 bytes x
/// 64 rows x 1 page, 128B swizzle, coordinates (element, row, page). Where num_pages is 0 there is nothing to
/// map, and the result is all zeros, for kernels that will not use it. Throws Error(kInvalidArgument) where
/// the plane's strides are beyond what a tensor map can hold, Error(kDevice) where the driver has no tensor
/// maps or refuses.
CUtensorMap make_page_map(const CachePlane& plane, DType dtype, std::int64_t row_elements,
                          std::int64_t num_pages);

/// The map of query rows: [batch, s, heads, d] of e4m3 or bf16 as DecodeParams has them, rows 16-byte aligned,
/// coordinates (element, row of the request's s * heads, request), same box and swizzle. Throws as above.
CUtensorMap make_query_map(const ConstTensorView& q);

/// The map of matrices [n, rows, columns] of bf16, rows 16-byte aligned: box 64 columns x box_rows x 1, 128B swizzle,
/// coordinates (column, row, matrix). Elements past an end arrive as zeros. Throws as above.
CUtensorMap make_matrix_map(const ConstTensorView& matrices, int box_rows);

/// The map of the rows of a head: x [tokens, heads, d] or, of one head, [tokens, d] of bf16, rows 16-byte aligned.
/// Coordinates (element, token, head), box 128 bytes x box_rows tokens x 1 head, same swizzle. Elements past d
/// arrive as zeros, too, so d may be any. Throws as above.
CUtensorMap make_head_map(const ConstTensorView& x, int box_rows);

}  // namespace snapmla::cuda_ops
