#include "reference/norm_rope.h"

#include <cmath>

#include "core/bf16.h"
#include "core/check.h"

namespace snapmla::reference_ops {

void rms_norm_row(const Bf16* x, const Bf16* weight, float eps, int n, Bf16* out) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(to_float(x[i])) * to_float(x[i]);
  const auto inverse = static_cast<float>(1.0 / std::sqrt(sum / n + eps));
  for (int i = 0; i < n; ++i) out[i] = to_bf16(to_float(x[i]) * inverse * to_float(weight[i]));
}

void rotate_row(const Bf16* x, const float* cos_sin, bool interleaved, Bf16* out) {
  constexpr int kPairs = kRopeDim / 2;
  for (int i = 0; i < kPairs; ++i) {
    const int first = interleaved ? 2 * i : i;
    const int second = interleaved ? 2 * i + 1 : i + kPairs;
    const float a = to_float(x[first]);
    const float b = to_float(x[second]);
    const float cosine = cos_sin[i];
    const float sine = cos_sin[kPairs + i];
    out[first] = to_bf16(a * cosine - b * sine);
    out[second] = to_bf16(b * cosine + a * sine);
  }
}

const float* cos_sin_row(const char* op, const RopeParams& rope, std::int64_t index) {
  const std::int64_t position = rope.positions.as<std::int32_t>()[index];
  SNAPMLA_REQUIRE(position >= 0 && position < rope.cos_sin.dim(0), op, "rope.positions must lie in [0, ",
                  rope.cos_sin.dim(0), "); got ", position, " at ", index);
  return rope.cos_sin.as<float>() + position * kRopeDim;
}

}  // namespace snapmla::reference_ops
