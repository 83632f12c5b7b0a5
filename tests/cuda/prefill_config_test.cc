// Which CTA of the prefill kernel does what, and where its tiles lie, on the host.
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "cuda/prefill/config.h"

namespace snapmla::cuda_ops::prefill {
namespace {

TEST(PrefillOrder, TakesEveryTileOnceAndTheLongestOfAGroupFirst) {
  for (const int heads : {1, 3, 16, 20, 128}) {
    for (const int tiles : {1, 2, 7, 64}) {
      for (const int heads_a_group : {1, 2, 5, 32, 128}) {
        const Order order{tiles, heads, heads_a_group};
        std::set<std::pair<int, int>> seen;
        int group = -1;
        int tile = 0;
        for (int block = 0; block < tiles * heads; ++block) {
          const Place place = order.at(block);
          ASSERT_TRUE(place.tile >= 0 && place.tile < tiles && place.head >= 0 && place.head < heads);
          ASSERT_TRUE(seen.emplace(place.tile, place.head).second);
          if (place.head / heads_a_group != group) {  // groups come in order, one after the other
            ASSERT_EQ(place.head / heads_a_group, group + 1);
            ASSERT_EQ(place.tile, tiles - 1);
            ++group;
          } else {
            ASSERT_LE(place.tile, tile);
          }
          tile = place.tile;
        }
      }
    }
  }
}

TEST(PrefillOrder, GroupsFitInL2) {
  EXPECT_EQ(heads_that_fit(std::int64_t{16 * 1024} * (128 + 128) * 2, 128), 4);
  EXPECT_EQ(heads_that_fit(std::int64_t{2048} * (128 + 128) * 2, 16), 16);
  EXPECT_EQ(heads_that_fit(std::int64_t{1 << 20} * (256 + 256) * 2, 128), 1);
}

// A query sees the keys up to its own position; a tile of queries the tiles of keys up to that of its last.
TEST(PrefillTiles, KeyTilesEndWithTheLastQuery) {
  for (const int keys : {64, 128}) {
    for (const int first : {0, 1, 63, 64, 127, 128, 1000}) {
      for (const int tokens : {1, 64, 127, 128, 129, 300}) {
        for (int tile = 0; tile * kQueryRows < tokens; ++tile) {
          int last = first;
          for (int i = tile * kQueryRows; i < tokens && i < (tile + 1) * kQueryRows; ++i) last = first + i;
          const int tiles = key_tiles(first, tokens, tile, keys);
          EXPECT_LT((tiles - 1) * keys, last + 1);
          EXPECT_GE(tiles * keys, last + 1);
        }
      }
    }
  }
}

// Where wgmma looks for an element, from the descriptors' strides alone, is where the copy engine puts it.
template <class Shape>
void expect_tiles_in_place() {
  for (std::uint32_t row = 0; row < kQueryRows; ++row) {
    for (std::uint32_t dim = 0; dim < Shape::kScoreChunks * kChunkDims; dim += 8) {
      const std::uint32_t chunk = dim / kChunkDims;
      const std::uint32_t loaded =
          chunk * Shape::kQueryChunkBytes + tile_offset_128b(row, dim % kChunkDims * 2);
      // A of warpgroup row / 64: K-major, 1,024 bytes to the next 8 rows, advanced by chunks and by 32 bytes a step
      const std::uint32_t group = row / kGroupRows;
      const std::uint32_t in_group = row % kGroupRows;
      const std::uint32_t start = group * kGroupRows * kTileRowBytes + chunk * Shape::kQueryChunkBytes +
                                  dim % kChunkDims / 16 * kStepBytes;
      const std::uint32_t read =
          swizzle_128b(start + in_group / 8 * kTileGroupBytes + in_group % 8 * kTileRowBytes + dim % 16 * 2);
      EXPECT_EQ(read, loaded) << "row " << row << " dim " << dim;
    }
  }
  for (std::uint32_t key = 0; key < Shape::kKeys; ++key) {
    for (std::uint32_t dim = 0; dim < Shape::kValueChunks * kChunkDims; dim += 8) {
      const std::uint32_t loaded =
          dim / kChunkDims * Shape::kKeyChunkBytes + tile_offset_128b(key, dim % kChunkDims * 2);
      // B of step key / 16 and of a part of O: MN-major, a chunk to the next 64 dims, 1,024 bytes to the next 8 keys
      const std::uint32_t part_dims = Shape::kPartChunks * kChunkDims;
      const std::uint32_t start =
          key / 16 * 16 * kTileRowBytes + dim / part_dims * Shape::kPartChunks * Shape::kKeyChunkBytes;
      const std::uint32_t read =
          swizzle_128b(start + dim % part_dims / kChunkDims * Shape::kKeyChunkBytes + dim % kChunkDims * 2 +
                       key % 16 / 8 * kTileGroupBytes + key % 8 * kTileRowBytes);
      EXPECT_EQ(read, loaded) << "key " << key << " dim " << dim;
    }
  }
  static_assert(Shape::kParts * Shape::kPartRegisters * 2 == Shape::kValueChunks * kChunkDims);
}

TEST(PrefillTiles, ProductsReadWhatWasLoaded) {
  expect_tiles_in_place<Shape<1, 1>>();
  expect_tiles_in_place<Shape<2, 2>>();
  expect_tiles_in_place<Shape<3, 4>>();
  expect_tiles_in_place<Shape<4, 4>>();
}

}  // namespace
}  // namespace snapmla::cuda_ops::prefill
