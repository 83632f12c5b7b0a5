// quantize_q: the scale of a row, the error bound of the header, alignment of the rope part, strides,
// rotation.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

constexpr std::int64_t kBatch = 2;
constexpr std::int64_t kS = 3;
constexpr std::int64_t kHeads = 5;
constexpr std::int64_t kRows = kBatch * kS * kHeads;

struct Quantized {
  std::vector<E4m3> latent = std::vector<E4m3>(kRows * kLatentDim, E4m3{0x7f});
  std::vector<Bf16> rope = std::vector<Bf16>(kRows * kRopeDim, Bf16{0x7fff});
  std::vector<float> scale = std::vector<float>(kRows, NAN);
};

Quantized quantize(const ConstTensorView& q_latent, const ConstTensorView& q_rope, ScaleRule rule,
                   const RopeParams& rope = {}) {
  Quantized result;
  quantize_q(
      reference(),
      {.q_latent = q_latent,
       .q_rope = q_rope,
       .rope = rope,
       .scale_rule = rule,
       .q_latent_out = TensorView(result.latent.data(), DType::kE4M3, {kBatch, kS, kHeads, kLatentDim}),
       .q_rope_out = TensorView(result.rope.data(), DType::kBF16, {kBatch, kS, kHeads, kRopeDim}),
       .q_scale_out = TensorView(result.scale.data(), DType::kF32, {kBatch, kS, kHeads})},
      {});
  return result;
}

// Rows of widely different size: row r is N(0, 10^(r mod 7 - 3)); row 4 is zero.
std::vector<Bf16> random_rows(std::int64_t dim, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Bf16> values;
  for (std::int64_t row = 0; row < kRows; ++row) {
    const float size = row == 4 ? 0 : std::pow(10.0F, static_cast<float>(row % 7 - 3));
    for (std::int64_t d = 0; d < dim; ++d) values.push_back(to_bf16(size * normal(random)));
  }
  return values;
}

class QuantizeQ : public ::testing::TestWithParam<ScaleRule> {};

TEST_P(QuantizeQ, KeepsTheErrorBoundOfTheHeader) {
  const auto latent = random_rows(kLatentDim, 1);
  const auto rope = random_rows(kRopeDim, 2);
  const Quantized q =
      quantize(ConstTensorView(latent.data(), DType::kBF16, {kBatch, kS, kHeads, kLatentDim}),
               ConstTensorView(rope.data(), DType::kBF16, {kBatch, kS, kHeads, kRopeDim}), GetParam());
  for (std::int64_t row = 0; row < kRows; ++row) {
    float amax = 0;
    for (std::int64_t d = 0; d < kLatentDim; ++d)
      amax = std::max(amax, std::abs(to_float(latent[row * kLatentDim + d])));
    const float scale = q.scale[row];
    EXPECT_EQ(scale, quantization_scale(amax, GetParam())) << row;
    for (std::int64_t d = 0; d < kLatentDim; ++d) {
      const double real = to_float(latent[row * kLatentDim + d]);
      const double restored = static_cast<double>(to_float(q.latent[row * kLatentDim + d])) * scale;
      const double bound =
          std::abs(real) >= std::exp2(-6) * scale ? std::exp2(-4) * std::abs(real) : std::exp2(-10) * scale;
      EXPECT_LE(std::abs(restored - real), bound * (1 + 1e-6)) << "row " << row << " dim " << d;
    }
    for (std::int64_t d = 0; d < kRopeDim; ++d) {
      const float real = to_float(rope[row * kRopeDim + d]);
      EXPECT_EQ(q.rope[row * kRopeDim + d].bits, to_bf16(real / scale).bits) << "row " << row << " dim " << d;
      if (GetParam() == ScaleRule::kPowerOfTwo) {
        EXPECT_EQ(to_float(q.rope[row * kRopeDim + d]) * scale, real) << "a power of two restores exactly";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(BothRules, QuantizeQ, ::testing::Values(ScaleRule::kPowerOfTwo, ScaleRule::kAmax),
                         [](const auto& test) { return std::string(to_string(test.param)); });

// Query rows as slices of one [batch, s, heads, 192 + 512 + 64] projection, batch and s swapped: no copy is
// needed.
TEST(QuantizeQ, ReadsStridedViews) {
  constexpr std::int64_t kWidth = 192 + kLatentDim + kRopeDim;
  const auto latent = random_rows(kLatentDim, 3);
  const auto rope = random_rows(kRopeDim, 4);
  std::vector<Bf16> wide(kRows * kWidth, Bf16{0x7fff});
  for (std::int64_t b = 0; b < kBatch; ++b) {
    for (std::int64_t i = 0; i < kS; ++i) {
      for (std::int64_t h = 0; h < kHeads; ++h) {
        const std::int64_t row = (b * kS + i) * kHeads + h;
        Bf16* to = &wide[((i * kBatch + b) * kHeads + h) * kWidth + 192];
        std::copy_n(&latent[row * kLatentDim], kLatentDim, to);
        std::copy_n(&rope[row * kRopeDim], kRopeDim, to + kLatentDim);
      }
    }
  }
  const std::initializer_list<std::int64_t> stride = {kHeads * kWidth, kBatch * kHeads * kWidth, kWidth, 1};
  const Quantized strided = quantize(
      ConstTensorView(wide.data() + 192, DType::kBF16, {kBatch, kS, kHeads, kLatentDim}, stride),
      ConstTensorView(wide.data() + 192 + kLatentDim, DType::kBF16, {kBatch, kS, kHeads, kRopeDim}, stride),
      ScaleRule::kPowerOfTwo);
  const Quantized dense = quantize(
      ConstTensorView(latent.data(), DType::kBF16, {kBatch, kS, kHeads, kLatentDim}),
      ConstTensorView(rope.data(), DType::kBF16, {kBatch, kS, kHeads, kRopeDim}), ScaleRule::kPowerOfTwo);
  EXPECT_EQ(strided.scale, dense.scale);
  for (std::size_t i = 0; i < dense.latent.size(); ++i)
    ASSERT_EQ(strided.latent[i].bits, dense.latent[i].bits) << i;
  for (std::size_t i = 0; i < dense.rope.size(); ++i)
    ASSERT_EQ(strided.rope[i].bits, dense.rope[i].bits) << i;
}

TEST(QuantizeQ, RotatesBeforeItScales) {
  constexpr std::int64_t kPositions = 50;
  std::vector<float> table;
  for (std::int64_t position = 0; position < kPositions; ++position) {
    for (int i = 0; i < 32; ++i)
      table.push_back(
          static_cast<float>(std::cos(static_cast<double>(position) * std::pow(10000.0, -i / 32.0))));
    for (int i = 0; i < 32; ++i)
      table.push_back(
          static_cast<float>(std::sin(static_cast<double>(position) * std::pow(10000.0, -i / 32.0))));
  }
  const std::vector<std::int32_t> positions = {0, 7, 49, 1, 2, 3};  // [batch, s]
  const auto latent = random_rows(kLatentDim, 5);
  const auto rope = random_rows(kRopeDim, 6);
  for (const bool interleaved : {true, false}) {
    const Quantized q = quantize(
        ConstTensorView(latent.data(), DType::kBF16, {kBatch, kS, kHeads, kLatentDim}),
        ConstTensorView(rope.data(), DType::kBF16, {kBatch, kS, kHeads, kRopeDim}), ScaleRule::kPowerOfTwo,
        {.cos_sin = ConstTensorView(table.data(), DType::kF32, {kPositions, kRopeDim}),
         .positions = ConstTensorView(positions.data(), DType::kI32, {kBatch, kS}),
         .interleaved = interleaved});
    for (std::int64_t row = 0; row < kRows; ++row) {
      for (int i = 0; i < 32; ++i) {
        const int first = interleaved ? 2 * i : i;
        const int second = interleaved ? 2 * i + 1 : i + 32;
        const double angle = positions[row / kHeads] * std::pow(10000.0, -i / 32.0);
        const double a = to_float(rope[row * kRopeDim + first]);
        const double b = to_float(rope[row * kRopeDim + second]);
        const double size = std::hypot(a, b);
        const float scale = q.scale[row];
        EXPECT_NEAR(to_float(q.rope[row * kRopeDim + first]) * scale,
                    a * std::cos(angle) - b * std::sin(angle), 0.004 * size);
        EXPECT_NEAR(to_float(q.rope[row * kRopeDim + second]) * scale,
                    b * std::cos(angle) + a * std::sin(angle), 0.004 * size);
      }
    }
  }
  const std::vector<std::int32_t> outside = {0, 7, 50, 1, 2, 3};
  try {
    quantize(ConstTensorView(latent.data(), DType::kBF16, {kBatch, kS, kHeads, kLatentDim}),
             ConstTensorView(rope.data(), DType::kBF16, {kBatch, kS, kHeads, kRopeDim}),
             ScaleRule::kPowerOfTwo,
             {.cos_sin = ConstTensorView(table.data(), DType::kF32, {kPositions, kRopeDim}),
              .positions = ConstTensorView(outside.data(), DType::kI32, {kBatch, kS})});
    FAIL() << "a position outside the table must throw";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[quantize_q] rope.positions must lie in [0, 50); got 50 at 2");
  }
}

}  // namespace
}  // namespace snapmla
