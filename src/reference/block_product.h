// The product of a block of fp32 rows with a block of weights: the one building block under linear,
// head_linear, experts and prefill attention.
//
//     dot_rows      y[r, o] = sum_k x[r, k] w[o, k]     weights stored [out, in], the Hugging Face layout
//     dot_columns   y[r, o] = sum_k x[r, k] w[k, o]     weights stored [in, out]
//
// Products and sums are fp32. The order of each sum is fixed by `inner` alone: dot_rows keeps 16 partial
// sums, of the k equal modulo 16, and adds them as a tree; dot_columns adds from k = 0 up. So an output never
// depends on how many rows or outputs a call has. Plain loops over small fixed-size arrays, which compilers
// turn into vector code.
#pragma once

#include <cstdint>

#include "snapmla/tensor.h"

namespace snapmla::reference_ops {

inline constexpr int kRowBlock = 32;  ///< rows an op hands to one call: 32 x 256 fp32 fill a 32 KiB L1 cache
inline constexpr int kOutBlock = 64;  ///< outputs an op hands to one call

struct BlockProduct {
  const float* x = nullptr;
  std::int64_t x_stride = 0;  ///< elements from one row to the next
  int rows = 0;
  int outs = 0;
  int inner = 0;  ///< length of the sums
  float* y = nullptr;
  std::int64_t y_stride = 0;
};

/// `w_stride`: elements from weight o to o + 1 (dot_rows), or from k to k + 1 (dot_columns).
void dot_rows(const BlockProduct& block, const Bf16* w, std::int64_t w_stride);
void dot_rows(const BlockProduct& block, const float* w, std::int64_t w_stride);
void dot_columns(const BlockProduct& block, const Bf16* w, std::int64_t w_stride);

/// out[i] = x[i] as fp32.
void widen(const Bf16* x, std::int64_t n, float* out);

/// At least `floats` floats of scratch memory, valid until this thread asks again.
float* thread_scratch(std::int64_t floats);

/// Iterations to hand out at once to parallel_for where each does `products` multiplications: waking the
/// other threads costs about as much as 2^18 of them.
std::int64_t grain_of(std::int64_t products);

}  // namespace snapmla::reference_ops
