// One row of 512 latent and 64 rope elements to FP8, shared by quantize_q and append_kv (SnapMLA, arXiv
// 2602.10718, RoPE-aware per-token quantization):
//
//     scale = quantization_scale(max |latent|)
//     latent8 = e4m3(latent / scale)      rope' = bf16(rope / scale)
#pragma once

#include "snapmla/format.h"
#include "snapmla/tensor.h"

namespace snapmla::reference_ops {

/// Returns the scale. A NaN element does not count for the maximum and is stored as NaN.
float quantize_row(const Bf16* latent, const Bf16* rope, ScaleRule rule, E4m3* latent_out, Bf16* rope_out);

}  // namespace snapmla::reference_ops
