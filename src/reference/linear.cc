#include "reference/linear.h"

#include <algorithm>
#include <array>

#include "core/bf16.h"
#include "core/check.h"
#include "core/parallel.h"
#include "reference/block_product.h"
#include "reference/weight_rows.h"

namespace snapmla::reference_ops {
namespace {

std::int64_t num_blocks(std::int64_t count, int block) {
  return (count + block - 1) / block;
}

// The rows and outputs one thread computes at a time.
struct Block {
  std::int64_t first_row;
  std::int64_t first_out;
  int rows;
  int outs;
};

// Calls body(block) for every block of a [rows, outs] result, in parallel.
template <class Body>
void for_each_block(std::int64_t rows, std::int64_t outs, std::int64_t inner, const Body& body) {
  const std::int64_t out_blocks = num_blocks(outs, kOutBlock);
  const std::int64_t block_products = std::min<std::int64_t>(rows, kRowBlock) * kOutBlock * inner;
  parallel_for(num_blocks(rows, kRowBlock) * out_blocks, grain_of(block_products), [&](std::int64_t i) {
    const std::int64_t row = i / out_blocks * kRowBlock;
    const std::int64_t out = i % out_blocks * kOutBlock;
    body(Block{.first_row = row,
               .first_out = out,
               .rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, rows - row)),
               .outs = static_cast<int>(std::min<std::int64_t>(kOutBlock, outs - out))});
  });
}

const float* widen_rows(const Bf16* x, std::int64_t stride, int rows, std::int64_t inner) {
  float* wide = thread_scratch(rows * inner);
  for (int r = 0; r < rows; ++r) widen(x + r * stride, inner, wide + r * inner);
  return wide;
}

using BlockResult = std::array<float, static_cast<std::size_t>(kRowBlock) * kOutBlock>;

BlockProduct product_of(const Block& block, const float* x, std::int64_t inner, BlockResult& y) {
  return {.x = x,
          .x_stride = inner,
          .rows = block.rows,
          .outs = block.outs,
          .inner = static_cast<int>(inner),
          .y = y.data(),
          .y_stride = kOutBlock};
}

void store_rows(const Block& block, const BlockResult& y, Bf16* out, std::int64_t stride) {
  for (int r = 0; r < block.rows; ++r) {
    const float* from = y.data() + static_cast<std::ptrdiff_t>(r) * kOutBlock;
    for (int o = 0; o < block.outs; ++o) out[r * stride + o] = to_bf16(from[o]);
  }
}

void store_rows(const Block& block, const BlockResult& y, float* out, std::int64_t stride) {
  for (int r = 0; r < block.rows; ++r) {
    const float* from = y.data() + static_cast<std::ptrdiff_t>(r) * kOutBlock;
    std::copy_n(from, block.outs, out + r * stride);
  }
}

void add_bias(const Block& block, const Bf16* bias, BlockResult& y) {
  for (int r = 0; r < block.rows; ++r) {
    float* row = y.data() + static_cast<std::ptrdiff_t>(r) * kOutBlock;
    for (int o = 0; o < block.outs; ++o) row[o] += to_float(bias[block.first_out + o]);
  }
}

// `product(block, rows)` multiplies a block of rows with the weights of its outputs.
template <class Product>
void linear_of(const ConstTensorView& x, const ConstTensorView& weight, const ConstTensorView& bias,
               const TensorView& out, const Product& product) {
  const std::int64_t inner = x.dim(1);
  SNAPMLA_ASSERT(weight.dim(1) == inner && out.dim(0) == x.dim(0) && out.dim(1) == weight.dim(0));
  for_each_block(x.dim(0), out.dim(1), inner, [&](const Block& block) {
    const float* wide =
        widen_rows(x.as<Bf16>() + block.first_row * x.stride(0), x.stride(0), block.rows, inner);
    BlockResult y;
    product(block, product_of(block, wide, inner, y));
    if (bias.present()) add_bias(block, bias.as<Bf16>(), y);
    const std::int64_t at = block.first_row * out.stride(0) + block.first_out;
    if (out.dtype() == DType::kBF16) {
      store_rows(block, y, out.as<Bf16>() + at, out.stride(0));
    } else {
      store_rows(block, y, out.as<float>() + at, out.stride(0));
    }
  });
}

}  // namespace

bool is_tensor(const ConstTensorView& view, DType dtype, int rank) {
  return view.dtype() == dtype && view.rank() == rank &&
         (view.stride(rank - 1) == 1 || view.dim(rank - 1) <= 1) &&
         (view.present() || view.num_elements() == 0);
}

void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
            const TensorView& out) {
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 2) && is_weight(weight, 2));
  SNAPMLA_ASSERT(is_tensor(out, DType::kBF16, 2) || is_tensor(out, DType::kF32, 2));
  SNAPMLA_ASSERT(!bias.present() ||
                 (is_tensor(bias, DType::kBF16, 1) && bias.dim(0) == weight.values.dim(0)));
  linear_of(x, weight.values, bias, out, [&](const Block& block, const BlockProduct& product) {
    const WeightRows rows(weight, block.first_out, block.outs);
    dot_rows(product, rows.data(), rows.stride());
  });
}

void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out) {
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 2) && is_tensor(weight, DType::kF32, 2) &&
                 is_tensor(out, DType::kF32, 2));
  linear_of(x, weight, {}, out, [&](const Block& block, const BlockProduct& product) {
    dot_rows(product, weight.as<float>() + block.first_out * weight.stride(0), weight.stride(0));
  });
}

void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                 const TensorView& out) {
  SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 3) && is_tensor(weight, DType::kBF16, 3) &&
                 is_tensor(out, DType::kBF16, 3));
  const std::int64_t heads = x.dim(1);
  const std::int64_t inner = x.dim(2);
  const std::int64_t outs = out.dim(2);
  SNAPMLA_ASSERT(out.dim(0) == x.dim(0) && out.dim(1) == heads && weight.dim(0) == heads);
  SNAPMLA_ASSERT(weight.dim(transposed ? 1 : 2) == inner && weight.dim(transposed ? 2 : 1) == outs);
  // Heads lie beside each other in the loop over outputs; each is padded to whole blocks, so no block spans
  // two.
  const std::int64_t head_outs = num_blocks(outs, kOutBlock) * kOutBlock;
  for_each_block(x.dim(0), heads * head_outs, inner, [&](Block block) {
    const std::int64_t head = block.first_out / head_outs;
    block.first_out %= head_outs;
    block.outs = static_cast<int>(std::min<std::int64_t>(kOutBlock, outs - block.first_out));
    const Bf16* x_at = x.as<Bf16>() + block.first_row * x.stride(0) + head * x.stride(1);
    const Bf16* w_at = weight.as<Bf16>() + head * weight.stride(0);
    const float* wide = widen_rows(x_at, x.stride(0), block.rows, inner);
    BlockResult y;
    if (transposed) {
      dot_columns(product_of(block, wide, inner, y), w_at + block.first_out, weight.stride(1));
    } else {
      dot_rows(product_of(block, wide, inner, y), w_at + block.first_out * weight.stride(1),
               weight.stride(1));
    }
    store_rows(block, y,
               out.as<Bf16>() + block.first_row * out.stride(0) + head * out.stride(1) + block.first_out,
               out.stride(0));
  });
}

}  // namespace snapmla::reference_ops
