// The e4m3 codec: every code, an independent search for the nearest value, and CUDA's own conversion.
#include "core/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/bf16.h"

#if __has_include(<cuda_fp8.h>)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <cuda_fp8.h>
#pragma GCC diagnostic pop
#define SNAPMLA_HAS_CUDA_FP8
#endif

namespace snapmla {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The value of a finite code, from the format's definition.
double value_of(int code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// Nearest-even by searching all finite magnitudes; codes rise with their values.
int nearest_code(float x) {
  if (std::isnan(x)) return 0x7f;
  const double magnitude = std::fabs(static_cast<double>(x));
  int best = 0;
  for (int code = 1; code <= 0x7e; ++code) {
    const double distance = std::fabs(value_of(code) - magnitude);
    const double best_distance = std::fabs(value_of(best) - magnitude);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) best = code;
  }
  if (std::isinf(x)) best = 0x7e;
  return best | (std::signbit(x) ? 0x80 : 0);
}

TEST(E4m3, DecodesAllCodes) {
  for (int code = 0; code < 256; ++code) {
    const float x = to_float(E4m3{static_cast<std::uint8_t>(code)});
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(x)) << code;
      continue;
    }
    EXPECT_EQ(x, value_of(code)) << code;
    EXPECT_EQ(std::signbit(x), code >= 128) << code;
    EXPECT_EQ(to_e4m3(x).bits, code);
  }
  EXPECT_EQ(to_float(E4m3{0x7e}), 448);
  EXPECT_EQ(to_float(E4m3{0x01}), 0x1p-9F);
}

TEST(E4m3, EncodesToNearestEvenAroundEveryCodeAndTie) {
  for (int code = 0; code <= 0x7e; ++code) {
    const auto value = static_cast<float>(value_of(code));
    const auto tie = static_cast<float>((value_of(code) + (code == 0x7e ? 480 : value_of(code + 1))) / 2);
    for (const float centre : {value, tie}) {
      for (const float x : {centre, std::nextafter(centre, kInfinity), std::nextafter(centre, -kInfinity)}) {
        ASSERT_EQ(to_e4m3(x).bits, nearest_code(x)) << x;
        ASSERT_EQ(to_e4m3(-x).bits, nearest_code(-x)) << -x;
      }
    }
  }
}

TEST(E4m3, EncodesEveryBf16) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = to_float(Bf16{static_cast<std::uint16_t>(bits)});
    ASSERT_EQ(to_e4m3(x).bits, nearest_code(x)) << std::hex << bits;
  }
}

TEST(E4m3, EncodesADenseSweepOfFloats) {
  for (std::uint64_t bits = 0; bits < 1ULL << 32; bits += 40961) {  // a prime: all low bits occur
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    ASSERT_EQ(to_e4m3(x).bits, nearest_code(x)) << std::hex << bits;
  }
}

TEST(E4m3, SaturatesAndKeepsTheSignOfZero) {
  for (const float x : {448.0F, 464.0F, 465.0F, 480.0F, 1e30F, kInfinity}) {
    EXPECT_EQ(to_e4m3(x).bits, 0x7e) << x;
    EXPECT_EQ(to_e4m3(-x).bits, 0xfe) << x;
  }
  EXPECT_EQ(to_e4m3(0.0F).bits, 0);
  EXPECT_EQ(to_e4m3(-0.0F).bits, 0x80);
  EXPECT_EQ(to_e4m3(-1e-40F).bits, 0x80);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(to_e4m3(nan).bits, 0x7f);
  EXPECT_EQ(to_e4m3(-nan).bits, 0x7f);
  EXPECT_EQ(to_e4m3(bits_to_float(0x7f800001)).bits, 0x7f);
}

TEST(E4m3, EqualsCudasConversion) {
#ifdef SNAPMLA_HAS_CUDA_FP8
  const auto cuda_code = [](float x) {
    return static_cast<int>(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3));
  };
  for (std::uint64_t bits = 0; bits < 1ULL << 32; bits += 2039) {  // a prime: 2.1 million floats
    const float x = bits_to_float(static_cast<std::uint32_t>(bits));
    ASSERT_EQ(to_e4m3(x).bits, cuda_code(x)) << std::hex << bits;
  }
  for (int code = 0; code < 256; ++code) {
    const float ours = to_float(E4m3{static_cast<std::uint8_t>(code)});
    const __half_raw half = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), __NV_E4M3);
    const int exponent = half.x >> 10 & 31;
    const int mantissa = half.x & 1023;
    if (exponent == 31) {
      EXPECT_TRUE(mantissa != 0 && std::isnan(ours)) << code;
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    EXPECT_EQ(ours, (half.x & 0x8000) != 0 ? -magnitude : magnitude) << code;
    EXPECT_EQ(to_e4m3(ours).bits, cuda_code(ours));
    const float next = static_cast<float>(value_of((code & 0x7f) == 0x7e ? code : code + 1));
    for (const float tie : {(ours + next) / 2, std::nextafter((ours + next) / 2, kInfinity),
                            std::nextafter((ours + next) / 2, -kInfinity)}) {
      EXPECT_EQ(to_e4m3(tie).bits, cuda_code(tie)) << tie;
    }
  }
#else
  GTEST_SKIP() << "the header cuda_fp8.h of the CUDA toolkit was not found when this test was built";
#endif
}

}  // namespace
}  // namespace snapmla
