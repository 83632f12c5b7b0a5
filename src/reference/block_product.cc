#include "reference/block_product.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/bf16.h"
#include "reference/multiversion.h"

namespace snapmla::reference_ops {
namespace {

constexpr int kLanes = 16;

// The lanes as machine vectors of one width or another: only speed differs. GNU vector types, because loops
// over plain arrays end up in registers with some compilers and versions and in memory, ten times slower,
// with others.
struct Four {
  using Floats = float __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
};

struct Eight {
  using Floats = float __attribute__((vector_size(32)));
  static constexpr int kWidth = 8;
};

template <class Vector>
SNAPMLA_ALWAYS_INLINE void load(const float* from, typename Vector::Floats& to) {
  std::memcpy(&to, from, sizeof to);
}

template <class Vector>
SNAPMLA_ALWAYS_INLINE void load(const Bf16* from, typename Vector::Floats& to) {
  std::uint32_t bits[Vector::kWidth];
  for (int i = 0; i < Vector::kWidth; ++i) bits[i] = std::uint32_t{from[i].bits} << 16;
  std::memcpy(&to, &bits, sizeof to);
}

// Beside snapmla::to_float(Bf16), so that one template serves both kinds of weights.
SNAPMLA_ALWAYS_INLINE float to_float(float x) {
  return x;
}

// Sum of the lanes as a tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
SNAPMLA_ALWAYS_INLINE float sum_of(float* lane) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

struct Tile {
  const float* x;
  std::int64_t x_stride;
  std::int64_t w_stride;
  int inner;
  float* y;
  std::int64_t y_stride;
};

// kRows x kOuts sums side by side, to load each number once and keep the adders busy.
template <class Vector, int kRows, int kOuts, class Weight>
SNAPMLA_ALWAYS_INLINE void dot_rows_tile(const Tile& tile, const Weight* w) {
  constexpr int kParts = kLanes / Vector::kWidth;
  const int whole = tile.inner / kLanes * kLanes;
  typename Vector::Floats sum[kRows][kOuts][kParts];
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) {
      for (int part = 0; part < kParts; ++part) sum[r][o][part] = typename Vector::Floats{};
    }
  }
  for (int k = 0; k < whole; k += kLanes) {
    for (int part = 0; part < kParts; ++part) {
      const int at = k + part * Vector::kWidth;
      typename Vector::Floats x_at[kRows];
      for (int r = 0; r < kRows; ++r) load<Vector>(tile.x + r * tile.x_stride + at, x_at[r]);
      for (int o = 0; o < kOuts; ++o) {
        typename Vector::Floats w_at;
        load<Vector>(w + o * tile.w_stride + at, w_at);
        for (int r = 0; r < kRows; ++r) sum[r][o][part] += x_at[r] * w_at;
      }
    }
  }
  float lane[kRows][kOuts][kLanes];
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) {
      for (int part = 0; part < kParts; ++part) {
        std::memcpy(&lane[r][o][part * Vector::kWidth], &sum[r][o][part], sizeof sum[r][o][part]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) {
      for (int k = whole; k < tile.inner; ++k) {
        lane[r][o][k - whole] += tile.x[r * tile.x_stride + k] * to_float(w[o * tile.w_stride + k]);
      }
      tile.y[r * tile.y_stride + o] = sum_of(lane[r][o]);
    }
  }
}

template <class Vector, int kRows, class Weight>
SNAPMLA_ALWAYS_INLINE void dot_rows_strip(const BlockProduct& b, int row, const Weight* w,
                                          std::int64_t w_stride) {
  constexpr int kOuts = 2;
  Tile tile{b.x + row * b.x_stride, b.x_stride, w_stride, b.inner, b.y + row * b.y_stride, b.y_stride};
  int o = 0;
  for (; o + kOuts <= b.outs; o += kOuts, tile.y += kOuts) {
    dot_rows_tile<Vector, kRows, kOuts>(tile, w + o * w_stride);
  }
  if (o < b.outs) dot_rows_tile<Vector, kRows, 1>(tile, w + o * w_stride);
}

template <class Vector, class Weight>
SNAPMLA_ALWAYS_INLINE void dot_rows_block(const BlockProduct& b, const Weight* w, std::int64_t w_stride) {
  constexpr int kRows = 2;
  int r = 0;
  for (; r + kRows <= b.rows; r += kRows) dot_rows_strip<Vector, kRows>(b, r, w, w_stride);
  if (r < b.rows) dot_rows_strip<Vector, 1>(b, r, w, w_stride);
}

template <class Vector, int kRows>
SNAPMLA_ALWAYS_INLINE void dot_columns_tile(const Tile& tile, const Bf16* w) {
  constexpr int kParts = kLanes / Vector::kWidth;
  typename Vector::Floats sum[kRows][kParts] = {};
  for (int k = 0; k < tile.inner; ++k) {
    for (int part = 0; part < kParts; ++part) {
      typename Vector::Floats w_at;
      load<Vector>(w + k * tile.w_stride + part * Vector::kWidth, w_at);
      for (int r = 0; r < kRows; ++r) sum[r][part] += tile.x[r * tile.x_stride + k] * w_at;
    }
  }
  for (int r = 0; r < kRows; ++r) std::memcpy(tile.y + r * tile.y_stride, sum[r], sizeof sum[r]);
}

template <class Vector, int kRows>
SNAPMLA_ALWAYS_INLINE void dot_columns_strip(const BlockProduct& b, int row, const Bf16* w,
                                             std::int64_t w_stride) {
  Tile tile{b.x + row * b.x_stride, b.x_stride, w_stride, b.inner, b.y + row * b.y_stride, b.y_stride};
  int o = 0;
  for (; o + kLanes <= b.outs; o += kLanes, tile.y += kLanes) dot_columns_tile<Vector, kRows>(tile, w + o);
  for (; o < b.outs; ++o, ++tile.y) {
    for (int r = 0; r < kRows; ++r) {
      float sum = 0;
      for (int k = 0; k < b.inner; ++k) sum += tile.x[r * tile.x_stride + k] * to_float(w[k * w_stride + o]);
      tile.y[r * tile.y_stride] = sum;
    }
  }
}

template <class Vector>
SNAPMLA_ALWAYS_INLINE void dot_columns_block(const BlockProduct& b, const Bf16* w, std::int64_t w_stride) {
  constexpr int kRows = 4;
  int r = 0;
  for (; r + kRows <= b.rows; r += kRows) dot_columns_strip<Vector, kRows>(b, r, w, w_stride);
  for (; r < b.rows; ++r) dot_columns_strip<Vector, 1>(b, r, w, w_stride);
}

#ifdef SNAPMLA_TARGET_AVX2
SNAPMLA_TARGET_AVX2 void dot_rows_avx2(const BlockProduct& b, const Bf16* w, std::int64_t w_stride) {
  dot_rows_block<Eight>(b, w, w_stride);
}
SNAPMLA_TARGET_AVX2 void dot_rows_avx2(const BlockProduct& b, const float* w, std::int64_t w_stride) {
  dot_rows_block<Eight>(b, w, w_stride);
}
SNAPMLA_TARGET_AVX2 void dot_columns_avx2(const BlockProduct& b, const Bf16* w, std::int64_t w_stride) {
  dot_columns_block<Eight>(b, w, w_stride);
}
#define SNAPMLA_IF_AVX2(call) \
  if (has_avx2()) return call
#else
#define SNAPMLA_IF_AVX2(call)
#endif

}  // namespace

void dot_rows(const BlockProduct& block, const Bf16* w, std::int64_t w_stride) {
  SNAPMLA_IF_AVX2(dot_rows_avx2(block, w, w_stride));
  dot_rows_block<Four>(block, w, w_stride);
}

void dot_rows(const BlockProduct& block, const float* w, std::int64_t w_stride) {
  SNAPMLA_IF_AVX2(dot_rows_avx2(block, w, w_stride));
  dot_rows_block<Four>(block, w, w_stride);
}

void dot_columns(const BlockProduct& block, const Bf16* w, std::int64_t w_stride) {
  SNAPMLA_IF_AVX2(dot_columns_avx2(block, w, w_stride));
  dot_columns_block<Four>(block, w, w_stride);
}

void widen(const Bf16* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(x[i]);
}

float* thread_scratch(std::int64_t floats) {
  thread_local std::vector<float> scratch;
  if (scratch.size() < static_cast<std::size_t>(floats)) scratch.resize(static_cast<std::size_t>(floats));
  return scratch.data();
}

std::int64_t grain_of(std::int64_t products) {
  constexpr std::int64_t kWorthWaking = std::int64_t{1} << 18;
  return std::max<std::int64_t>(1, kWorthWaking / std::max<std::int64_t>(1, products));
}

}  // namespace snapmla::reference_ops
