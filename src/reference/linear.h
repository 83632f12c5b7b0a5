// Projections, plain and a head at a time: the contracts are in core/plain_ops.h. Products of bf16 inputs are
// exact in fp32; sums are fp32 in the order block_product.h fixes; bias is added in fp32 before the one
// rounding.
#pragma once

#include "core/plain_ops.h"

namespace snapmla::reference_ops {

void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
            const TensorView& out);
void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out);
void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                 const TensorView& out);

/// True if `view` has this dtype and rank and a dense last dimension; a view with no elements may have no
/// data.
bool is_tensor(const ConstTensorView& view, DType dtype, int rank);

}  // namespace snapmla::reference_ops
