// Cache formats as fake quantization: rows are quantized and restored at once, so that the same attention runs over
// all of them and nothing but the format differs.
//
//     format            latent (512)                                    rope (64)
//     token             e4m3, a scale a token, power of two (ours)       bf16
//     token-amax        the same with scale amax / 448 (the paper's)     bf16(rope / scale) * scale
//     token-rope        as token                                         e4m3, a scale a token of its own
//     token-rope-shared one scale a token over all 576, power of two
//     tensor-static     one scale, known before: calibrated amax / 448   bf16
//     tensor-dynamic    one scale: amax / 448 of the rows of one call    bf16
//     block             amax / 448 of 64 rows at a time                  bf16
//     tensor-static-rope, tensor-dynamic-rope: one scale over all 576
//     tensor-1-rope     scale 1 for all 576, what engines do uncalibrated
#pragma once

#include <array>
#include <cstddef>

namespace snapmla::apps {

enum class KeyFormat {
  kBf16,
  kToken,
  kTokenAmax,
  kTokenRope,
  kTokenRopeShared,
  kTensorStatic,
  kTensorDynamic,
  kBlock,
  kTensorStaticRope,
  kTensorDynamicRope,
  kTensor1Rope,
};
inline constexpr std::array kQuantizedFormats{
    KeyFormat::kToken,           KeyFormat::kTokenAmax,        KeyFormat::kTokenRope,
    KeyFormat::kTokenRopeShared, KeyFormat::kTensorStatic,     KeyFormat::kTensorDynamic,
    KeyFormat::kBlock,           KeyFormat::kTensorStaticRope, KeyFormat::kTensorDynamicRope,
    KeyFormat::kTensor1Rope};

/// The name in the table above; "bf16" for kBf16.
const char* to_string(KeyFormat format);

/// Largest magnitudes seen on other text, for the static formats.
struct Calibration {
  float latent = 0;
  float rope = 0;
};
/// Over `count` rows of 576.
Calibration calibrate(const float* rows, std::size_t count);

/// Quantizes and restores `count` rows of 576, in fp32. The rows are one call's: the tensor of the dynamic
/// formats, and cut into blocks from its first row on.
void fake_quantize(KeyFormat format, const Calibration& calibration, float* rows, std::size_t count);

}  // namespace snapmla::apps
