// Random sums of e4m3 products, to find out what a tensor core adds: chains of instructions m64n8k32 over tiles,
// of kinds that each try one question (which products are lost beside a large one, what signs do, what attention's
// own sums look like). The same numbers everywhere with libstdc++. tests/data/goldens/e4m3-sums-h100.txt holds what
// an H100 made of some of them, recorded by tests/cuda/accumulator_test.cu.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "core/e4m3.h"
#include "core/e4m3_accumulator.h"

namespace snapmla::test {

/// How many of the 32 products are not zero, and from which values.
enum class SumKind {
  kExact,           ///< small integers: nothing to round
  kOneAndStart,     ///< one product of any codes, an accumulator of any size
  kTwo,             ///< two products of any codes
  kTwoAndStart,     ///< with an accumulator
  kFour,            ///< four
  kNormal,          ///< N(0, 60) by N(0, 60)
  kNormalAndStart,  ///< with an accumulator
  kAttention,       ///< weights of a flat softmax by values with a mean
  kTiny,            ///< subnormal codes and the smallest normal ones
  kCodes,           ///< any codes
  kCodesAndStart,   ///< with an accumulator
  kCancel,          ///< large products of alternating sign
  kTwoMore,         ///< two products again: other draws
};
inline constexpr std::array<std::string_view, 13> kSumKinds{
    "exact",     "one+start", "two",   "two+start",   "four",   "normal",  "normal+start",
    "attention", "tiny",      "codes", "codes+start", "cancel", "two more"};

/// d[tile][m][n] = start + sum over steps and k of a[tile][step][m][k] b[tile][step][n][k].
struct SumProblem {
  static constexpr std::size_t kM = 64;
  static constexpr std::size_t kN = 8;
  static constexpr std::size_t kK = kE4m3StepTokens;

  std::size_t steps = 0;
  std::size_t tiles = 0;
  std::vector<E4m3> a{};       ///< [tiles][steps][64][32]
  std::vector<E4m3> b{};       ///< [tiles][steps][8][32]
  std::vector<float> start{};  ///< [tiles][64][8]

  [[nodiscard]] const E4m3* a_row(std::size_t sum, std::size_t step) const {
    return &a[((sum / (kM * kN) * steps + step) * kM + sum / kN % kM) * kK];
  }
  [[nodiscard]] const E4m3* b_row(std::size_t sum, std::size_t step) const {
    return &b[((sum / (kM * kN) * steps + step) * kN + sum % kN) * kK];
  }
  /// The model's answer to sum `sum` of tiles * 64 * 8.
  [[nodiscard]] float modelled(std::size_t sum) const {
    float c = start[sum];
    for (std::size_t step = 0; step < steps; ++step)
      c = add_e4m3_products(c, a_row(sum, step), b_row(sum, step));
    return c;
  }
};

class SumMaker {
 public:
  explicit SumMaker(std::uint64_t seed) : random_(seed) {}

  SumProblem make(SumKind kind, std::size_t steps, std::size_t tiles) {
    normal_.reset();
    SumProblem p{.steps = steps, .tiles = tiles};
    p.a.resize(tiles * steps * SumProblem::kM * SumProblem::kK);
    p.b.resize(tiles * steps * SumProblem::kN * SumProblem::kK);
    p.start.resize(tiles * SumProblem::kM * SumProblem::kN);
    for (float& mean : mean_) mean = normal_(random_);
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      for (std::size_t step = 0; step < steps; ++step) fill_step(p, kind, tile, step);
      for (std::size_t i = 0; i < SumProblem::kM * SumProblem::kN; ++i)
        p.start[tile * SumProblem::kM * SumProblem::kN + i] = start(kind, tile);
    }
    return p;
  }

 private:
  void fill_step(SumProblem& p, SumKind kind, std::size_t tile, std::size_t step) {
    constexpr std::array<std::size_t, kSumKinds.size()> kUsed{32, 1, 2, 2, 4, 32, 32, 32, 32, 32, 32, 32, 2};
    E4m3* a = &p.a[(tile * p.steps + step) * SumProblem::kM * SumProblem::kK];
    E4m3* b = &p.b[(tile * p.steps + step) * SumProblem::kN * SumProblem::kK];
    for (std::size_t k = 0; k < kUsed[static_cast<std::size_t>(kind)]; ++k) {
      const std::size_t at = (k * 11 + tile * 5 + step * 3) % SumProblem::kK;  // 11 is prime to 32: anywhere
      for (std::size_t m = 0; m < SumProblem::kM; ++m) a[m * SumProblem::kK + at] = value(kind, mean_[m], k);
      for (std::size_t n = 0; n < SumProblem::kN; ++n) b[n * SumProblem::kK + at] = weight(kind);
    }
  }

  E4m3 value(SumKind kind, float mean, std::size_t k) {
    switch (kind) {
      case SumKind::kAttention:
        return to_e4m3((normal_(random_) + mean) * 60);
      case SumKind::kCancel: {
        const auto sign = static_cast<unsigned>(k % 2 != 0 ? 0x80 : 0);
        return E4m3{static_cast<std::uint8_t>(static_cast<unsigned>(uniform(0x58, 0x7e)) | sign)};
      }
      default:
        return factor(kind);
    }
  }

  E4m3 weight(SumKind kind) {
    switch (kind) {
      case SumKind::kAttention:
        return to_e4m3(448 * std::exp(-std::fabs(normal_(random_) * 1.2F)));
      case SumKind::kCancel:
        return E4m3{static_cast<std::uint8_t>(uniform(0x58, 0x7e))};
      default:
        return factor(kind);
    }
  }

  /// Where both factors are of one kind.
  E4m3 factor(SumKind kind) {
    switch (kind) {
      case SumKind::kExact:
        return to_e4m3(static_cast<float>(uniform(-2, 2)));
      case SumKind::kNormal:
      case SumKind::kNormalAndStart:
        return to_e4m3(normal_(random_) * 60);
      case SumKind::kTiny: {
        const auto magnitude = static_cast<unsigned>(uniform(0, 23));
        return E4m3{static_cast<std::uint8_t>(magnitude | (random_() & 0x80U))};
      }
      default: {
        E4m3 code{};
        do code.bits = static_cast<std::uint8_t>(random_());
        while ((code.bits & 0x7fU) == 0x7fU);
        return code;
      }
    }
  }

  float start(SumKind kind, std::size_t tile) {
    switch (kind) {
      case SumKind::kExact:
        return static_cast<float>(uniform(-20, 20));
      case SumKind::kOneAndStart:
      case SumKind::kTwoAndStart:
      case SumKind::kCodesAndStart:
        return any_float(-20, 24);
      case SumKind::kNormalAndStart:
        return any_float(0, 24);
      case SumKind::kAttention:
        return tile % 2 != 0 ? 0 : any_float(10, 24);
      case SumKind::kTiny:
        return tile % 2 != 0 ? 0 : any_float(-24, 2);
      case SumKind::kCancel:
        return tile % 2 != 0 ? 0 : any_float(8, 20);
      default:
        return 0;
    }
  }

  float any_float(int lowest, int highest) {
    const int exponent = uniform(lowest, highest);
    const float sign = (random_() & 1U) != 0 ? 1.0F : -1.0F;
    const float significand = 1 + static_cast<float>(random_() & 0x7fffffU) * 0x1p-23F;
    return std::ldexp(sign * significand, exponent);
  }

  int uniform(int lowest, int highest) {
    return std::uniform_int_distribution<int>(lowest, highest)(random_);
  }

  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  std::array<float, SumProblem::kM> mean_{};
};

inline constexpr std::array<std::size_t, 4> kSumSteps{1, 2, 4, 16};
inline constexpr std::size_t kSumTiles = 16;
inline constexpr std::uint64_t kSumSeed = 20260101;

/// Of the sums of a problem with kSumTiles tiles these are recorded: all tiles, rows and columns occur.
inline constexpr std::size_t kRecordedSums = 64;
constexpr std::size_t recorded_sum(std::size_t i) {
  return i * 127;
}

}  // namespace snapmla::test
