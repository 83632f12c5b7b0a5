#include "study/formats.h"

#include <algorithm>
#include <cmath>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "snapmla/format.h"

namespace snapmla::apps {
namespace {

constexpr std::size_t kLatent = kLatentDim;
constexpr std::size_t kRow = kTokenDim;

float largest(const float* values, std::size_t count) {
  float most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::fmax(most, std::fabs(values[i]));
  return most;
}

void round_e4m3(float* values, std::size_t count, float scale) {
  for (std::size_t i = 0; i < count; ++i) values[i] = to_float(to_e4m3(values[i] / scale)) * scale;
}

template <class Body>
void for_each_row(float* rows, std::size_t count, const Body& body) {
  constexpr std::int64_t kGrain = 64;
  parallel_for(static_cast<std::int64_t>(count), kGrain,
               [&](std::int64_t t) { body(rows + static_cast<std::size_t>(t) * kRow); });
}

/// One scale a token over the latent; what happens to the rope depends on the format.
void quantize_token(KeyFormat format, float* row) {
  constexpr std::size_t kRope = kRopeDim;
  float* rope = row + kLatent;
  switch (format) {
    case KeyFormat::kTokenAmax: {
      const float scale = quantization_scale(largest(row, kLatent), ScaleRule::kAmax);
      round_e4m3(row, kLatent, scale);
      for (std::size_t i = 0; i < kRope; ++i) rope[i] = round_to_bf16(rope[i] / scale) * scale;
      return;
    }
    case KeyFormat::kTokenRope:
      round_e4m3(row, kLatent, quantization_scale(largest(row, kLatent)));
      round_e4m3(rope, kRope, quantization_scale(largest(rope, kRope)));
      return;
    case KeyFormat::kTokenRopeShared:
      round_e4m3(row, kRow, quantization_scale(largest(row, kRow)));
      return;
    default:  // kToken: dividing the rope by a power of two and restoring it is exact
      round_e4m3(row, kLatent, quantization_scale(largest(row, kLatent)));
  }
}

/// One scale over the first `width` elements of `count` rows.
void quantize_together(float* rows, std::size_t count, std::size_t width, float amax) {
  const float scale = quantization_scale(amax, ScaleRule::kAmax);
  for_each_row(rows, count, [=](float* row) { round_e4m3(row, width, scale); });
}

float largest_of_rows(const float* rows, std::size_t count, std::size_t width) {
  float most = 0;
  for (std::size_t t = 0; t < count; ++t) most = std::fmax(most, largest(rows + t * kRow, width));
  return most;
}

}  // namespace

const char* to_string(KeyFormat format) {
  switch (format) {
    case KeyFormat::kBf16:
      return "bf16";
    case KeyFormat::kToken:
      return "token";
    case KeyFormat::kTokenAmax:
      return "token-amax";
    case KeyFormat::kTokenRope:
      return "token-rope";
    case KeyFormat::kTokenRopeShared:
      return "token-rope-shared";
    case KeyFormat::kTensorStatic:
      return "tensor-static";
    case KeyFormat::kTensorDynamic:
      return "tensor-dynamic";
    case KeyFormat::kBlock:
      return "block";
    case KeyFormat::kTensorStaticRope:
      return "tensor-static-rope";
    case KeyFormat::kTensorDynamicRope:
      return "tensor-dynamic-rope";
    case KeyFormat::kTensor1Rope:
      return "tensor-1-rope";
  }
  return "unknown";
}

Calibration calibrate(const float* rows, std::size_t count) {
  Calibration seen;
  for (std::size_t t = 0; t < count; ++t) {
    seen.latent = std::fmax(seen.latent, largest(rows + t * kRow, kLatent));
    seen.rope = std::fmax(seen.rope, largest(rows + t * kRow + kLatent, kRopeDim));
  }
  return seen;
}

void fake_quantize(KeyFormat format, const Calibration& calibration, float* rows, std::size_t count) {
  constexpr std::size_t kBlock = kPageTokens;
  switch (format) {
    case KeyFormat::kBf16:
      return;
    case KeyFormat::kTensorStatic:
      return quantize_together(rows, count, kLatent, calibration.latent);
    case KeyFormat::kTensorStaticRope:
      return quantize_together(rows, count, kRow, std::fmax(calibration.latent, calibration.rope));
    case KeyFormat::kTensor1Rope:
      return quantize_together(rows, count, kRow, kE4m3Max);
    case KeyFormat::kTensorDynamic:
      return quantize_together(rows, count, kLatent, largest_of_rows(rows, count, kLatent));
    case KeyFormat::kTensorDynamicRope:
      return quantize_together(rows, count, kRow, largest_of_rows(rows, count, kRow));
    case KeyFormat::kBlock:
      for (std::size_t begin = 0; begin < count; begin += kBlock) {
        const std::size_t size = std::min(kBlock, count - begin);
        float* block = rows + begin * kRow;
        quantize_together(block, size, kLatent, largest_of_rows(block, size, kLatent));
      }
      return;
    default:
      for_each_row(rows, count, [=](float* row) { quantize_token(format, row); });
  }
}

}  // namespace snapmla::apps
