// The page format in bytes, and the scale rule: exactly the smallest power of two that is at least amax /
// 448.
#include "snapmla/format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/host_device.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Format, SizesAreTheDocumentedBytes) {
  EXPECT_EQ(token_bytes(CacheFormat::kFp8), 644);
  EXPECT_EQ(token_bytes(CacheFormat::kBf16), 1152);
  EXPECT_EQ(page_bytes(CacheFormat::kFp8), 41216);
  EXPECT_EQ(page_bytes(CacheFormat::kBf16), 73728);
  EXPECT_STREQ(to_string(CacheFormat::kFp8), "fp8");
  EXPECT_STREQ(to_string(CacheFormat::kBf16), "bf16");
  EXPECT_STREQ(to_string(ScaleRule::kPowerOfTwo), "pow2");
  EXPECT_STREQ(to_string(ScaleRule::kAmax), "amax");
}

std::ptrdiff_t offset(const CachePlane& plane, const std::vector<std::byte>& pool) {
  return static_cast<std::byte*>(plane.data) - pool.data();
}

TEST(Format, Fp8PlanesLieOneAfterTheOther) {
  std::vector<std::byte> pool(3 * 41984);
  const CacheView view = make_cache_view(CacheFormat::kFp8, pool.data(), 3, 41984);
  EXPECT_EQ(view.num_pages, 3);
  EXPECT_EQ(offset(view.latent, pool), 0);
  EXPECT_EQ(view.latent.row_stride, 512);
  EXPECT_EQ(offset(view.rope, pool), 32768);
  EXPECT_EQ(view.rope.row_stride, 128);
  EXPECT_EQ(offset(view.scale, pool), 40960);
  EXPECT_EQ(view.scale.row_stride, 4);
  for (const CachePlane& plane : {view.latent, view.rope, view.scale}) EXPECT_EQ(plane.page_stride, 41984);
  EXPECT_EQ(make_cache_view(CacheFormat::kFp8, pool.data(), 3).rope.page_stride, 41216);
}

TEST(Format, Bf16PagesAreRowsOfLatentAndRope) {
  std::vector<std::byte> pool(73728);
  const CacheView view = make_cache_view(CacheFormat::kBf16, pool.data(), 1);
  EXPECT_EQ(offset(view.latent, pool), 0);
  EXPECT_EQ(offset(view.rope, pool), 1024);
  for (const CachePlane& plane : {view.latent, view.rope}) {
    EXPECT_EQ(plane.page_stride, 73728);
    EXPECT_EQ(plane.row_stride, 1152);
  }
  EXPECT_EQ(view.scale.data, nullptr);
}

TEST(Format, RefusesImpossiblePools) {
  std::vector<std::byte> pool(41216);
  EXPECT_THROW(make_cache_view(CacheFormat::kFp8, nullptr, 1), Error);
  EXPECT_THROW(make_cache_view(CacheFormat::kFp8, pool.data(), -1), Error);
  EXPECT_THROW(make_cache_view(CacheFormat::kFp8, pool.data(), 1, 41200), Error);
  EXPECT_THROW(make_cache_view(CacheFormat::kFp8, pool.data(), 1, 41220), Error);
  EXPECT_EQ(make_cache_view(CacheFormat::kFp8, pool.data(), 0).num_pages, 0);
}

// Searches all allowed exponents, exactly: 448 * 2^k needs 3 bits, so a long double holds it.
float smallest_power(float amax) {
  for (int k = -40; k < 40; ++k) {
    if (std::ldexp(448.0L, k) >= static_cast<long double>(amax)) return std::ldexp(1.0F, k);
  }
  return std::ldexp(1.0F, 40);
}

TEST(QuantizationScale, IsTheSmallestPowerOfTwo) {
  for (std::uint64_t bits = 1; bits < 0x7f800000; bits += 12289) {
    const float amax = bits_to_float(static_cast<std::uint32_t>(bits));
    ASSERT_EQ(quantization_scale(amax), smallest_power(amax)) << amax;
  }
}

TEST(QuantizationScale, IsExactAtTheBoundaries) {
  for (int k = -60; k <= 60; ++k) {
    for (const float centre : {std::ldexp(448.0F, k), std::ldexp(1.0F, k)}) {
      for (const float amax : {centre, std::nextafter(centre, kInfinity), std::nextafter(centre, 0.0F)}) {
        ASSERT_EQ(quantization_scale(amax), smallest_power(amax)) << amax;
      }
    }
  }
  EXPECT_EQ(quantization_scale(448), 1);
  EXPECT_EQ(quantization_scale(std::nextafter(448.0F, 500.0F)), 2);
  EXPECT_EQ(quantization_scale(std::nextafter(224.0F, 0.0F)), 0.5F);
}

TEST(QuantizationScale, ClampsItsExponentAndIsOneForNothing) {
  EXPECT_EQ(quantization_scale(1e-38F), 0x1p-40F);
  EXPECT_EQ(quantization_scale(std::numeric_limits<float>::denorm_min()), 0x1p-40F);
  EXPECT_EQ(quantization_scale(3e38F), 0x1p40F);
  for (const float amax : {0.0F, kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(quantization_scale(amax), 1) << amax;
  }
}

TEST(QuantizationScale, AmaxRuleIsTheQuotient) {
  for (const float amax : {448.0F, 1.0F, 3.7F, 1e-20F, 3e38F}) {
    EXPECT_EQ(quantization_scale(amax, ScaleRule::kAmax), amax / 448.0F);
  }
  EXPECT_EQ(quantization_scale(0, ScaleRule::kAmax), 1e-26F / 448.0F);
  EXPECT_EQ(quantization_scale(1e-30F, ScaleRule::kAmax), 1e-26F / 448.0F);
  EXPECT_EQ(quantization_scale(kInfinity, ScaleRule::kAmax), 1);
  EXPECT_EQ(quantization_scale(std::numeric_limits<float>::quiet_NaN(), ScaleRule::kAmax), 1);
}

}  // namespace
}  // namespace snapmla
