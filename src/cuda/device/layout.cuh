// Where things lie in shared memory: swizzled tiles, and the order of P in the FP8 kernel. Pure index
// arithmetic on host and device; tests/cuda/layout_test.cc runs all of it on the host.
//
// Swizzles (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout" and "Tensor swizzling
// modes"): the 16-byte units of a row are permuted by XOR with the row's number, so that a column of 8 rows
// falls into 8 different bank groups. Offsets count from a tile whose base is a multiple of the pattern:
// 1,024 bytes for 128B (8 rows of 128), 512 bytes for 64B (8 rows of 64).
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace snapmla::cuda_ops {

inline constexpr std::uint32_t kTileRowBytes = 128;                  ///< a row of a 128B-swizzled tile
inline constexpr std::uint32_t kTileGroupBytes = 8 * kTileRowBytes;  ///< 8 rows: the swizzle's period

/// 128B swizzle of a byte offset: unit (bits 4-6) ^= row % 8 (bits 7-9).
SNAPMLA_HOST_DEVICE constexpr std::uint32_t swizzle_128b(std::uint32_t offset) {
  return offset ^ ((offset >> 3) & 0x70U);
}

/// 64B swizzle of a byte offset: unit (bits 4-5) ^= bits 7-8, the number of the pair of 64-byte rows.
SNAPMLA_HOST_DEVICE constexpr std::uint32_t swizzle_64b(std::uint32_t offset) {
  return offset ^ ((offset >> 3) & 0x30U);
}

/// Byte offset of (row, byte) in a tile of rows x 128 bytes with the 128B swizzle.
SNAPMLA_HOST_DEVICE constexpr std::uint32_t tile_offset_128b(std::uint32_t row, std::uint32_t byte) {
  return swizzle_128b(row * kTileRowBytes + byte);
}

/// Byte offset of (row, byte) in a tile of rows x 64 bytes with the 64B swizzle.
SNAPMLA_HOST_DEVICE constexpr std::uint32_t tile_offset_64b(std::uint32_t row, std::uint32_t byte) {
  return swizzle_64b(row * 64 + byte);
}

// The FP8 kernel reads V = [tokens][dims] as A = V^T with ldmatrix.trans, which moves 16-bit elements: pairs
// of dims. Lane 4g + c then holds, of the 8-token matrix i, bytes (token 8i + 2c, dims 2g and 2g+1), (token
// 8i + 2c + 1, the same dims). Two pick_bytes a pair of matrices part even and odd dims, and the result is an
// A fragment (m64k32) whose row g is dim 2g, whose row g + 8 is dim 2g + 1, and whose K runs through tokens
// in the order below. P is stored in the same order, which is the one an S accumulator holds them in: no data
// moves between lanes.

/// Token within a run of 16 that lies at K position `position`: bits (c1 c0 h e) -> (h c1 c0 e), lane c of
/// the quad, matrix h of the pair, e the element. Any position: runs of 16 stay in place.
SNAPMLA_HOST_DEVICE constexpr std::uint32_t token_of_position(std::uint32_t position) {
  return (position & ~15U) | ((position & 2U) << 2) | ((position >> 1) & 6U) | (position & 1U);
}

/// The inverse: K position of a token.
SNAPMLA_HOST_DEVICE constexpr std::uint32_t position_of_token(std::uint32_t token) {
  return (token & ~15U) | ((token & 6U) << 1) | ((token >> 2) & 2U) | (token & 1U);
}

/// Dim, within a warp's 16, of row `row` (0 to 15) of the A fragments made so.
SNAPMLA_HOST_DEVICE constexpr std::uint32_t dim_of_fragment_row(std::uint32_t row) {
  return 2 * (row & 7U) + (row >> 3);
}

/// prmt selectors that part the even (2g) and the odd (2g + 1) dims of two transposed matrices.
inline constexpr std::uint32_t kPickEvenBytes = 0x6420;
inline constexpr std::uint32_t kPickOddBytes = 0x7531;

}  // namespace snapmla::cuda_ops
