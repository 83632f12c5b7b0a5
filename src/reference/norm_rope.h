// RMSNorm and RoPE of one row, shared by the attention ops (append_kv, quantize_q) and the plain ops: one
// definition, so that a fused op equals the unfused path bit for bit. fp32 inside, one rounding to bf16.
#pragma once

#include "snapmla/attention.h"

namespace snapmla::reference_ops {

/// out = x / sqrt(mean(x^2) + eps) * weight over `n` elements; the sum of squares in fp64. out may be x.
void rms_norm_row(const Bf16* x, const Bf16* weight, float eps, int n, Bf16* out);

/// Rotates the 64 elements of x by one row of RopeParams::cos_sin (32 cosines, then 32 sines). out may be x.
void rotate_row(const Bf16* x, const float* cos_sin, bool interleaved, Bf16* out);

/// The row of cos_sin for token `index` of `rope`; throws Error(kInvalidArgument) naming `op` if its position
/// is outside the table.
const float* cos_sin_row(const char* op, const RopeParams& rope, std::int64_t index);

}  // namespace snapmla::reference_ops
