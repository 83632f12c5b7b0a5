// Index arithmetic of the kernels, all of it, on the host: swizzles are permutations that spread columns over
// banks, and the FP8 kernel's way of reading V^T gives the token order that P is stored in.
#include "cuda/device/layout.cuh"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <set>

namespace snapmla::cuda_ops {
namespace {

constexpr std::uint32_t kRows = 64;

static_assert(swizzle_128b(swizzle_128b(0x1234)) == 0x1234 && swizzle_64b(swizzle_64b(0x1234)) == 0x1234);

TEST(Layout, Swizzle128bPermutesUnitsWithinTheRow) {
  for (std::uint32_t row = 0; row < kRows; ++row) {
    for (std::uint32_t byte = 0; byte < 128; ++byte) {
      const std::uint32_t unit = byte / 16;
      ASSERT_EQ(tile_offset_128b(row, byte), row * 128 + (unit ^ (row % 8)) * 16 + byte % 16);
      ASSERT_EQ(swizzle_128b(tile_offset_128b(row, byte)), row * 128 + byte);
    }
  }
}

TEST(Layout, Swizzle64bPermutesUnitsWithinTheRow) {
  for (std::uint32_t row = 0; row < kRows; ++row) {
    for (std::uint32_t byte = 0; byte < 64; ++byte) {
      const std::uint32_t unit = byte / 16;
      ASSERT_EQ(tile_offset_64b(row, byte), row * 64 + (unit ^ (row / 2 % 4)) * 16 + byte % 16);
      ASSERT_EQ(swizzle_64b(tile_offset_64b(row, byte)), row * 64 + byte);
    }
  }
}

// What ldmatrix and stmatrix touch at once: 8 rows, one 16-byte unit each, in 8 bank groups of 16 bytes.
TEST(Layout, EightRowsOfAColumnLieInEightBankGroups) {
  for (std::uint32_t row = 0; row < kRows; row += 8) {
    for (std::uint32_t unit = 0; unit < 8; ++unit) {
      std::set<std::uint32_t> wide;
      std::set<std::uint32_t> narrow;
      for (std::uint32_t r = 0; r < 8; ++r) {
        wide.insert(tile_offset_128b(row + r, unit * 16) % 128 / 16);
        narrow.insert(tile_offset_64b(row + r, unit % 4 * 16) % 128 / 16);
      }
      EXPECT_EQ(wide.size(), 8U);
      EXPECT_EQ(narrow.size(), 8U);
    }
  }
}

TEST(Layout, PositionsAndTokensAreInverse) {
  for (std::uint32_t i = 0; i < 128; ++i) {
    EXPECT_EQ(token_of_position(position_of_token(i)), i);
    EXPECT_EQ(position_of_token(token_of_position(i)), i);
    EXPECT_EQ(position_of_token(i) / 16, i / 16);
  }
}

// The accumulators of S give lane c of a quad tokens 8j + 2c + {0, 1} of n-tile j. Packed from n-tiles 2s and
// 2s + 1 in turn, they must be the four neighbouring positions 16s + 4c + {0..3}.
TEST(Layout, PNeedsNoDataFromOtherLanes) {
  for (std::uint32_t s = 0; s < 8; ++s) {
    for (std::uint32_t c = 0; c < 4; ++c) {
      for (std::uint32_t e = 0; e < 2; ++e) {
        EXPECT_EQ(position_of_token(8 * (2 * s) + 2 * c + e), 16 * s + 4 * c + e);
        EXPECT_EQ(position_of_token(8 * (2 * s + 1) + 2 * c + e), 16 * s + 4 * c + 2 + e);
      }
    }
  }
}

/// A stored element, so that the test can follow it: which token and dim it is.
struct Element {
  std::uint32_t token = ~0U;
  std::uint32_t dim = ~0U;
};

/// prmt on elements: byte i of the result is byte nibble(i) of {b, a}.
std::array<Element, 4> pick(std::uint32_t selector, const std::array<Element, 4>& a,
                            const std::array<Element, 4>& b) {
  std::array<Element, 4> picked;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const std::uint32_t from = selector >> (4 * i) & 7U;
    picked.at(i) = from < 4 ? a.at(from) : b.at(from - 4);
  }
  return picked;
}

// The whole way of V^T into A fragments: a swizzled tile of 64 tokens x 128 dims, ldmatrix.x4.trans, prmt.
// The fragment layout is the one of wgmma with 8-bit A in registers (PTX ISA): register i of lane 4g + c
// holds row g + 8 (i % 2), K 16 (i / 2) + 4c + {0..3}.
TEST(Layout, TransposedReadGivesFragmentsInPositionOrder) {
  std::array<Element, kRows * 128> tile;
  for (std::uint32_t token = 0; token < kRows; ++token) {
    for (std::uint32_t dim = 0; dim < 128; ++dim) tile.at(tile_offset_128b(token, dim)) = {token, dim};
  }
  for (std::uint32_t step = 0; step < 2; ++step) {             // 32 tokens
    for (std::uint32_t first = 0; first < 128; first += 16) {  // the dims of a warp
      // Lane 8i + r names row r of matrix i: token 8i + r, the 16-byte unit of the warp's dims. Transposed,
      // lane 4g + c receives column g (a pair of bytes) of rows 2c and 2c + 1.
      for (std::uint32_t lane = 0; lane < 32; ++lane) {
        const std::uint32_t g = lane / 4;
        const std::uint32_t c = lane % 4;
        std::array<std::array<Element, 4>, 4> r;
        for (std::uint32_t i = 0; i < 4; ++i) {
          for (std::uint32_t byte = 0; byte < 4; ++byte) {
            const std::uint32_t s_row = tile_offset_128b(32 * step + 8 * i + 2 * c + byte / 2, first);
            r.at(i).at(byte) = tile.at(s_row + 2 * g + byte % 2);
          }
        }
        const std::array<std::array<Element, 4>, 4> a = {
            pick(kPickEvenBytes, r[0], r[1]), pick(kPickOddBytes, r[0], r[1]),
            pick(kPickEvenBytes, r[2], r[3]), pick(kPickOddBytes, r[2], r[3])};
        for (std::uint32_t i = 0; i < 4; ++i) {
          for (std::uint32_t byte = 0; byte < 4; ++byte) {
            const std::uint32_t position = 32 * step + 16 * (i / 2) + 4 * c + byte;
            EXPECT_EQ(a.at(i).at(byte).token, token_of_position(position));
            EXPECT_EQ(a.at(i).at(byte).dim, first + dim_of_fragment_row(g + 8 * (i % 2)));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace snapmla::cuda_ops
