// Projections by cuBLASLt, plain and a head at a time (contracts: core/plain_ops.h).
//
// cuBLASLt chooses an algorithm for a shape, the number of rows included, and two algorithms may sum in different orders. So a
// row's bits depend on how many rows there are, unless Algorithms::kOneAShape is asked for: then the algorithm is chosen as for
// kUsualRows rows and kept for every number of rows, and each row is summed alike (tests/cuda/linear_test.cc).
#pragma once

#include <cuda_runtime_api.h>

#include "snapmla/tensor.h"

namespace snapmla::cuda_ops {

enum class Algorithms { kByRows, kOneAShape };

void linear(const ConstTensorView& x, const ConstTensorView& weight, const ConstTensorView& bias,
            const TensorView& out, Algorithms algorithms, cudaStream_t stream);
void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                 const TensorView& out, Algorithms algorithms, cudaStream_t stream);

/// Frees what linear keeps for a stream: cuBLASLt's workspace, allocated at the stream's first product. Never throws.
void forget_stream(cudaStream_t stream) noexcept;

}  // namespace snapmla::cuda_ops
