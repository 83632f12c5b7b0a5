// The plain ops of a model on CUDA (contracts: core/plain_ops.h), enqueued on a stream. They allocate nothing and
// do not wait; arguments are checked with SNAPMLA_ASSERT. What lies in device memory is not: a token or an expert
// out of range reads what is not there, so the model layer checks tokens on the host and route() writes only experts
// that exist. The weights of rms_norm and linear_f32 may be read before the kernel ahead on the stream has ended: no
// kernel may write them right before.
//
// Each row of a result is summed in an order that depends on the op's shapes alone, never on the other rows of the call, but for
// the products of cuBLASLt: see linear.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/plain_ops.h"

namespace snapmla::cuda_ops {

// norm_rope.cu
void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps, const TensorView& out,
              cudaStream_t stream);
void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out, cudaStream_t stream);

// take_tokens.cu
void take_tokens(const ConstTensorView& sampled, const TensorView& token, cudaStream_t stream);

// elementwise.cu
void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
           cudaStream_t stream);
void scale_rows(const ConstTensorView& x, const ConstTensorView& positions, const ConstTensorView& factor,
                const TensorView& out, cudaStream_t stream);
void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
              cudaStream_t stream);
void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out, cudaStream_t stream);

// linear_f32.cu
void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                cudaStream_t stream);

// route.cu
void route(const RouteParams& params, cudaStream_t stream);

// experts.cu
std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter, int experts);
void experts(const ExpertsParams& params, cudaStream_t stream);

// prefill.cu
void prefill_attention(const PrefillAttentionParams& params, cudaStream_t stream);

// fill_random.cu
void fill_random(const TensorView& out, const RandomFill& fill, cudaStream_t stream);

// sample.cu
void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
            const TensorView& logprob, cudaStream_t stream);

}  // namespace snapmla::cuda_ops
