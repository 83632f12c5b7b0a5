#include "snapmla/format.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace snapmla {

const char* to_string(CacheFormat format) noexcept {
  return format == CacheFormat::kFp8 ? "fp8" : "bf16";
}

const char* to_string(ScaleRule rule) noexcept {
  return rule == ScaleRule::kPowerOfTwo ? "pow2" : "amax";
}

float quantization_scale(float amax, ScaleRule rule) noexcept {
  if (!std::isfinite(amax)) return 1.0F;
  if (rule == ScaleRule::kAmax) return std::max(amax, 1e-26F) / kE4m3Max;
  if (amax <= 0.0F) return 1.0F;
  // amax / 448 = fraction * 2^exponent with fraction in [0.5, 1). 448 = 0.875 * 2^9, so with amax = f * 2^e
  // the quotient is (f / 0.875) * 2^(e - 9): its power of two above is 2^(e - 9) if f <= 0.875, else 2^(e -
  // 8). No rounding anywhere.
  int exponent = 0;
  const float fraction = std::frexp(amax, &exponent);
  exponent -= fraction <= 0.875F ? 9 : 8;
  return std::ldexp(1.0F, std::clamp(exponent, -40, 40));
}

CacheView make_cache_view(CacheFormat format, void* base, std::int64_t num_pages, std::int64_t page_stride) {
  const std::int64_t bytes = page_bytes(format);
  if (page_stride == 0) page_stride = bytes;
  SNAPMLA_REQUIRE(base != nullptr, "cache", "base must not be null");
  SNAPMLA_REQUIRE(num_pages >= 0, "cache", "num_pages must not be negative; got ", num_pages);
  SNAPMLA_REQUIRE(page_stride >= bytes && page_stride % 16 == 0, "cache",
                  "page_stride must be a multiple of 16 and at least ", bytes, " for ", to_string(format),
                  " pages; got ", page_stride);
  auto* bytes_at = static_cast<std::byte*>(base);
  CacheView view{.format = format, .num_pages = num_pages};
  constexpr std::int64_t kBf16Bytes = 2;
  if (format == CacheFormat::kFp8) {
    constexpr std::int64_t kRopeOffset = std::int64_t{kPageTokens} * kLatentDim;
    constexpr std::int64_t kScaleOffset = kRopeOffset + kBf16Bytes * kPageTokens * kRopeDim;
    view.latent = {bytes_at, page_stride, kLatentDim};
    view.rope = {bytes_at + kRopeOffset, page_stride, kRopeDim * kBf16Bytes};
    view.scale = {bytes_at + kScaleOffset, page_stride, 4};
  } else {
    view.latent = {bytes_at, page_stride, kTokenDim * kBf16Bytes};
    view.rope = {bytes_at + kLatentDim * kBf16Bytes, page_stride, kTokenDim * kBf16Bytes};
  }
  return view;
}

}  // namespace snapmla
