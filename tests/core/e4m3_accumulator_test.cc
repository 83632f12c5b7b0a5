// The model of the tensor core's FP8 sums: against sums recorded on an H100, and what follows from it.
#include "core/e4m3_accumulator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>

#include "support/e4m3_sums.h"

namespace snapmla::test {
namespace {

using Codes = std::array<E4m3, kE4m3StepTokens>;

Codes all(float value) {
  Codes codes;
  codes.fill(to_e4m3(value));
  return codes;
}

/// Zero but for element 0.
Codes one(float value) {
  Codes codes = all(0);
  codes[5] = to_e4m3(value);
  return codes;
}

float add(float c, const Codes& a, const Codes& b) {
  return add_e4m3_products(c, a.data(), b.data());
}

TEST(E4m3Accumulator, GivesTheBitsAnH100Gave) {
  std::ifstream golden(SNAPMLA_SOURCE_DIR "/tests/data/goldens/e4m3-sums-h100.txt");
  std::string line;
  std::getline(golden, line);  // where it is from
  SumMaker maker(kSumSeed);
  for (std::size_t kind = 0; kind < kSumKinds.size(); ++kind) {
    for (const std::size_t steps : kSumSteps) {
      const SumProblem problem = maker.make(static_cast<SumKind>(kind), steps, kSumTiles);
      for (std::size_t i = 0; i < kRecordedSums; ++i) {
        std::uint32_t bits = 0;
        ASSERT_TRUE(golden >> std::hex >> bits);
        ASSERT_EQ(float_to_bits(problem.modelled(recorded_sum(i))), bits)
            << kSumKinds[kind] << ", " << steps << " steps, sum " << recorded_sum(i);
      }
    }
  }
}

TEST(E4m3Accumulator, AddsWhatFitsExactly) {
  EXPECT_EQ(add(0, all(0), all(448)), 0);
  EXPECT_EQ(add(-3, all(1), all(2)), 61);
  EXPECT_EQ(add(0, all(448), all(448)), 32 * 448.0F * 448.0F);
  EXPECT_EQ(add(0, one(0x1p-9F), one(0x1p-9F)), 0x1p-18F);
  EXPECT_EQ(add(1.5F, all(0), all(0)), 1.5F);
}

// Beside 1, 2^-13 is kept. Everything smaller is lost, thirty-two times over.
TEST(E4m3Accumulator, LosesEachTermBelow2ToTheMinus13) {
  EXPECT_EQ(add(1, one(0x1p-7F), one(0x1p-6F)), 1 + 0x1p-13F);
  EXPECT_EQ(add(1, one(0x1p-7F), one(0x1p-7F)), 1);
  EXPECT_EQ(add(1, all(0x1p-7F), all(1.5F * 0x1p-7F)), 1);  // three quarters each, 24 * 2^-13 in all
}

TEST(E4m3Accumulator, CutsTowardsZeroOnBothSides) {
  EXPECT_EQ(add(-1, one(-0x1p-7F), one(0x1p-7F)), -1);
  EXPECT_EQ(add(1, one(-0x1p-7F), one(0x1p-7F)), 1);  // a term is cut before it is added, so it cannot borrow
  EXPECT_EQ(add(1 + 0x1p-14F, all(0), all(0)), 1);    // the accumulator too
  EXPECT_EQ(add(-1 - 0x1p-14F, all(0), all(0)), -1);
}

TEST(E4m3Accumulator, DoesNotNormaliseProducts) {
  // 1.875 * 1.875 = 3.5 and has exponent 0: beside it 2^-13 is kept, beside 3.5 in the accumulator it is not.
  Codes a = one(1.875F);
  Codes b = one(1.875F);
  a[9] = to_e4m3(0x1p-7F);
  b[9] = to_e4m3(0x1p-6F);
  // The result has 14 significant bits from 2 on, so what the sum kept shows only if it makes a unit of 2^-12.
  a[10] = a[9];
  b[10] = b[9];
  EXPECT_EQ(add(0, a, b), 1.875F * 1.875F + 0x1p-12F);
  EXPECT_EQ(add(1.875F * 1.875F, all(0), all(0)), 1.875F * 1.875F);
  a[5] = to_e4m3(0);
  EXPECT_EQ(add(1.875F * 1.875F, a, b), 1.875F * 1.875F);
}

TEST(E4m3Accumulator, DoesNotDependOnTheOrderOfTheProducts) {
  SumMaker maker(7);
  const SumProblem problem = maker.make(SumKind::kCodesAndStart, 1, 1);
  for (std::size_t sum = 0; sum < problem.start.size(); ++sum) {
    Codes a;
    Codes b;
    for (std::size_t k = 0; k < a.size(); ++k) {
      a[k] = problem.a_row(sum, 0)[(k * 7 + 3) % a.size()];
      b[k] = problem.b_row(sum, 0)[(k * 7 + 3) % a.size()];
    }
    EXPECT_EQ(add(problem.start[sum], a, b), problem.modelled(sum));
  }
}

// What it means for attention: equal weights over equal values, summed on and on. The accumulator stops growing
// where a product is 2^-13 of it; sums promoted to fp32 every 128 tokens do not.
TEST(E4m3Accumulator, ALongSumStopsGrowing) {
  const Codes ones = all(1);
  float sum = 0;
  float promoted = 0;
  constexpr int kTokens = 1 << 17;
  for (int begin = 0; begin < kTokens; begin += 128) {
    float part = 0;
    for (int step = 0; step < 4; ++step) {
      sum = add(sum, ones, ones);
      part = add(part, ones, ones);
    }
    promoted += part;
  }
  EXPECT_EQ(promoted, kTokens);
  EXPECT_EQ(sum, 1 << 14);
}

}  // namespace
}  // namespace snapmla::test
