// What one FP8 product of Hopper's tensor cores adds to its accumulator, bit for bit: a model on the CPU of
// wgmma.m64nNk32.f32.e4m3.e4m3.
//
//     top  = the largest exponent of the 32 products and of the accumulator; a product's is the sum of its
//            factors' exponents, though the product of the significands may reach 4 (it is not normalised)
//     each of the 33 terms is cut to a multiple of 2^(top - 13), towards zero; the sum of these is exact
//     the result is cut to 13 bits behind its leading one, towards zero
//
// So a term below 2^-13 of the largest one is lost, always in the same direction where terms have one sign: a
// sum that grows in the accumulator falls short. Found with random sums on an H100 (the guess came from arXiv
// 2511.10909 and 2512.07004); tests/core/e4m3_accumulator_test.cc holds the model to sums recorded there,
// tests/cuda/accumulator_test.cu to the device at hand. Not modelled: NaN, infinity, results beyond fp32.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "snapmla/tensor.h"

namespace snapmla {

inline constexpr int kE4m3StepTokens = 32;  ///< products of one instruction: its K

namespace e4m3_accumulator {

inline constexpr int kBits = 13;  ///< kept below the largest exponent, and behind a result's leading one
inline constexpr int kNowhere = -1000;  ///< exponent of a zero: never the largest
inline constexpr int kFloatBits = 23;   ///< of the fraction
inline constexpr int kE4m3Bits = 3;

/// sign * significand * 2^(exponent - bits of the fraction)
struct Parts {
  std::int32_t significand = 0;
  std::int32_t exponent = kNowhere;
};

inline Parts parts_of(E4m3 code) {
  const int fraction = code.bits & 7;
  const int field = (code.bits >> kE4m3Bits) & 15;
  const int magnitude = field > 0 ? 8 + fraction : fraction;
  if (magnitude == 0) return {};
  return {(code.bits & 0x80U) != 0 ? -magnitude : magnitude, (field > 0 ? field : 1) - 7};
}

/// The parts of all codes. NaN codes read as 480, the value the pattern would have.
inline const std::array<Parts, 256>& parts() {
  static const std::array<Parts, 256> table = [] {
    std::array<Parts, 256> all{};
    for (std::size_t code = 0; code < all.size(); ++code)
      all[code] = parts_of(E4m3{static_cast<std::uint8_t>(code)});
    return all;
  }();
  return table;
}

inline Parts parts_of(float x) {
  const std::uint32_t bits = float_to_bits(x);
  const auto field = static_cast<std::int32_t>((bits >> kFloatBits) & 255U);
  const auto magnitude = static_cast<std::int32_t>((bits & 0x7fffffU) | (field > 0 ? 0x800000U : 0U));
  if (magnitude == 0) return {};
  return {(bits >> 31) != 0 ? -magnitude : magnitude, (field > 0 ? field : 1) - 127};
}

/// significand * 2^shift, towards zero; shift down by 31 at most.
inline std::int32_t cut(std::int32_t significand, int down) {
  const std::int32_t kept = (significand < 0 ? -significand : significand) >> (down < 31 ? down : 31);
  return significand < 0 ? -kept : kept;
}

/// sum * 2^exponent with kBits bits behind its leading one, the rest cut.
inline float to_result(std::int32_t sum, int exponent) {
  std::uint32_t magnitude = static_cast<std::uint32_t>(sum < 0 ? -sum : sum);
  std::uint32_t unit = 1;
  while (magnitude / unit >= (2U << kBits)) unit *= 2;
  magnitude = magnitude / unit * unit;
  // A power of two of double's range times an integer of at most 24 bits: exact, and rounded once to fp32's
  // subnormals, if it comes there.
  const double value = static_cast<double>(magnitude) * __builtin_ldexp(1.0, exponent);
  return static_cast<float>(sum < 0 ? -value : value);
}

}  // namespace e4m3_accumulator

/// The accumulator after one instruction: c + a[0] b[0] + ... + a[31] b[31]. All values finite. Host; pure.
inline float add_e4m3_products(float c, const E4m3* a, const E4m3* b) {
  namespace model = e4m3_accumulator;
  const std::array<model::Parts, 256>& parts = model::parts();
  std::array<model::Parts, kE4m3StepTokens> product;
  const model::Parts start = model::parts_of(c);
  std::int32_t top = start.exponent;
  for (std::size_t i = 0; i < product.size(); ++i) {
    const model::Parts& x = parts[a[i].bits];
    const model::Parts& y = parts[b[i].bits];
    product[i] = {x.significand * y.significand, x.exponent + y.exponent};
    top = product[i].exponent > top ? product[i].exponent : top;
  }
  if (top <= model::kNowhere / 2) return 0;
  // In units of 2^(top - 13) a product of exponent `top` is its 6-bit fraction's significand times 2^7, the
  // accumulator's 23-bit one divided by 2^10: below 2^15 each, so the sum of 33 fits.
  constexpr int kProductUp = model::kBits - 2 * model::kE4m3Bits;
  constexpr int kFloatDown = model::kFloatBits - model::kBits;
  std::int32_t sum = model::cut(start.significand, kFloatDown + (top - start.exponent));
  for (const model::Parts& term : product)
    sum += model::cut(term.significand * (1 << kProductUp), top - term.exponent);
  return model::to_result(sum, top - model::kBits);
}

}  // namespace snapmla
