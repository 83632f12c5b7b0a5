// Projections with e4m3 weights (contract: WeightView in core/plain_ops.h).
#pragma once

#include <cuda_runtime_api.h>

#include "core/plain_ops.h"

namespace snapmla::cuda_ops {

/// Whether e4m3 weights of this shape can be multiplied here. They are then the faster ones for up to some 200 rows, as they are
/// half the bytes, and the slower ones above (docs/whole-models.md).
bool prefers_e4m3(std::int64_t out, std::int64_t in);

/// The order of product/config.h, in place.
void arrange_weight(const TensorView& values, cudaStream_t stream);

/// x and out with 16-byte aligned rows. A row's bits depend on that row alone. The weight may be read before the kernel ahead on
/// the stream has ended.
void linear_e4m3(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
                 const TensorView& out, cudaStream_t stream);

}  // namespace snapmla::cuda_ops
