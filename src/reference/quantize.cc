#include "reference/quantize.h"

#include <array>
#include <cmath>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "reference/norm_rope.h"
#include "reference/ops.h"

namespace snapmla::reference_ops {

float quantize_row(const Bf16* latent, const Bf16* rope, ScaleRule rule, E4m3* latent_out, Bf16* rope_out) {
  float amax = 0;
  for (int d = 0; d < kLatentDim; ++d) amax = std::fmax(amax, std::fabs(to_float(latent[d])));
  const float scale = quantization_scale(amax, rule);
  for (int d = 0; d < kLatentDim; ++d) latent_out[d] = to_e4m3(to_float(latent[d]) / scale);
  for (int d = 0; d < kRopeDim; ++d) rope_out[d] = to_bf16(to_float(rope[d]) / scale);
  return scale;
}

void quantize_q(const QuantizeQParams& params) {
  const ConstTensorView& q_latent = params.q_latent;
  const ConstTensorView& q_rope = params.q_rope;
  const std::int64_t s = q_latent.dim(1);
  const std::int64_t heads = q_latent.dim(2);
  const bool rotate = params.rope.cos_sin.present();
  constexpr std::int64_t kGrain = 16;  // rows; a row is about a microsecond
  parallel_for(q_latent.dim(0) * s * heads, kGrain, [&](std::int64_t row) {
    const std::int64_t b = row / (s * heads);
    const std::int64_t i = row / heads % s;
    const std::int64_t h = row % heads;
    const Bf16* latent =
        q_latent.as<Bf16>() + b * q_latent.stride(0) + i * q_latent.stride(1) + h * q_latent.stride(2);
    const Bf16* rope = q_rope.as<Bf16>() + b * q_rope.stride(0) + i * q_rope.stride(1) + h * q_rope.stride(2);
    std::array<Bf16, kRopeDim> rotated;
    if (rotate) {
      rotate_row(rope, cos_sin_row("quantize_q", params.rope, b * s + i), params.rope.interleaved,
                 rotated.data());
      rope = rotated.data();
    }
    params.q_scale_out.as<float>()[row] =
        quantize_row(latent, rope, params.scale_rule, params.q_latent_out.as<E4m3>() + row * kLatentDim,
                     params.q_rope_out.as<Bf16>() + row * kRopeDim);
  });
}

}  // namespace snapmla::reference_ops
