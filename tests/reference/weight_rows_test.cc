// Products of e4m3 weights against those of the bf16 weights that they stand for, bit for bit.
#include "reference/weight_rows.h"

#include <gtest/gtest.h>

#include <array>
#include <utility>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "reference/ops.h"
#include "support/random_tensors.h"

namespace snapmla {
namespace {

using testing::expect_code;
using testing::random_bf16;
using testing::random_floats;
using testing::same_bits;

const PlainOps& ops() {
  return reference_ops::plain_ops();
}

// An e4m3 weight [n, out, in] with every code but NaN in it, and scales of all kinds: odd ones, powers of two, negative
// and zero, such as make bf16 and fp32 subnormals, and the largest allowed.
class Fp8Weight {
 public:
  Fp8Weight(std::int64_t n, std::int64_t out, std::int64_t in, unsigned seed) : n_(n), out_(out), in_(in) {
    std::mt19937 random(seed);
    for (std::int64_t i = 0; i < n * out * in; ++i) {
      auto code = static_cast<std::uint8_t>(i < 256 ? i : static_cast<std::int64_t>(random() & 0xffU));
      if ((code & 0x7fU) == 0x7fU) code = 0x38;
      codes_.push_back({code});
    }
    const std::array<float, 9> special = {0.0F,      0x1p-9F,       -0x1.6p-3F, 0x1.fffffep7F, 0x1.23p-125F,
                                          0x1p-149F, 0x1.8acp-130F, 1.0F,       0x1.55p-12F};
    for (std::int64_t i = 0; i < n * scale_rows() * scale_columns(); ++i) {
      scales_.push_back(i < 9 ? special[static_cast<std::size_t>(i)]
                              : std::ldexp(1 + static_cast<float>(random() % 1000) / 1000, -7));
    }
    for (std::int64_t row = 0; row < n * out; ++row) {
      for (std::int64_t k = 0; k < in; ++k) {
        const std::int64_t scale_row = row / out * scale_rows() + row % out / 128;
        const float scale = scales_[static_cast<std::size_t>(scale_row * scale_columns() + k / 128)];
        values_.push_back(to_bf16(to_float(codes_[static_cast<std::size_t>(row * in + k)]) * scale));
      }
    }
  }

  // As a matrix where n is 1.
  [[nodiscard]] WeightView e4m3(bool stack) const {
    return stack ? WeightView({codes_.data(), DType::kE4M3, {n_, out_, in_}},
                              {scales_.data(), DType::kF32, {n_, scale_rows(), scale_columns()}})
                 : WeightView({codes_.data(), DType::kE4M3, {out_, in_}},
                              {scales_.data(), DType::kF32, {scale_rows(), scale_columns()}});
  }
  [[nodiscard]] WeightView bf16(bool stack) const {
    return stack ? ConstTensorView(values_.data(), DType::kBF16, {n_, out_, in_})
                 : ConstTensorView(values_.data(), DType::kBF16, {out_, in_});
  }

 private:
  [[nodiscard]] std::int64_t scale_rows() const { return (out_ + 127) / 128; }
  [[nodiscard]] std::int64_t scale_columns() const { return in_ / 128; }

  std::int64_t n_, out_, in_;
  std::vector<E4m3> codes_;
  std::vector<float> scales_;
  std::vector<Bf16> values_;
};

TEST(E4m3Weight, GivesTheBitsOfTheBf16WeightItStandsFor) {
  for (const auto& [out, in] : {std::pair{8, 128}, {128, 256}, {200, 384}, {576, 1024}}) {
    for (const int rows : {1, 33}) {
      SCOPED_TRACE(::testing::Message() << rows << " x " << out << " x " << in);
      const Fp8Weight weight(1, out, in, 7);
      const std::vector<Bf16> x = random_bf16(static_cast<std::size_t>(rows * in), 1);
      const std::vector<Bf16> bias = random_bf16(static_cast<std::size_t>(out), 2);
      const auto run = [&](const WeightView& view) {
        std::vector<float> y(static_cast<std::size_t>(rows * out));
        ops().linear(ConstTensorView(x.data(), DType::kBF16, {rows, in}), view,
                     ConstTensorView(bias.data(), DType::kBF16, {out}),
                     TensorView(y.data(), DType::kF32, {rows, out}), {});
        return y;
      };
      EXPECT_TRUE(same_bits(run(weight.e4m3(false)).data(), run(weight.bf16(false)).data(),
                            static_cast<std::size_t>(rows * out)));
    }
  }
}

TEST(E4m3Weight, OfExpertsGivesTheBitsOfTheBf16WeightItStandsFor) {
  constexpr int kTokens = 40, kTopK = 2, kExperts = 3, kHidden = 384, kInter = 256;
  const Fp8Weight gate(kExperts, kInter, kHidden, 1);
  const Fp8Weight up(kExperts, kInter, kHidden, 2);
  const Fp8Weight down(kExperts, kHidden, kInter, 3);
  const std::vector<Bf16> x = random_bf16(kTokens * kHidden, 4);
  const std::vector<float> weight = random_floats(kTokens * kTopK, 5, 0.3F, 1);
  std::vector<std::int32_t> expert;
  for (int pair = 0; pair < kTokens * kTopK; ++pair) expert.push_back((pair * 7 + pair / 3) % kExperts);
  const auto run = [&](WeightView g, WeightView u, WeightView d) {
    std::vector<Bf16> out(kTokens * kHidden);
    const std::int64_t bytes = ops().experts_workspace_bytes(kTokens, kTopK, kHidden, kInter, kExperts);
    std::vector<std::byte> workspace(static_cast<std::size_t>(bytes));
    ops().experts({.x = ConstTensorView(x.data(), DType::kBF16, {kTokens, kHidden}),
                   .expert = ConstTensorView(expert.data(), DType::kI32, {kTokens, kTopK}),
                   .weight = ConstTensorView(weight.data(), DType::kF32, {kTokens, kTopK}),
                   .gate = g,
                   .up = u,
                   .down = d,
                   .out = TensorView(out.data(), DType::kBF16, {kTokens, kHidden}),
                   .workspace = TensorView(workspace.data(), DType::kU8, {bytes})},
                  {});
    return out;
  };
  const std::vector<Bf16> fp8 = run(gate.e4m3(true), up.e4m3(true), down.e4m3(true));
  const std::vector<Bf16> bf16 = run(gate.bf16(true), up.bf16(true), down.bf16(true));
  EXPECT_TRUE(same_bits(fp8.data(), bf16.data(), bf16.size()));
  expect_code(ErrorCode::kInternal, [&] { run(gate.e4m3(true), up.e4m3(true), down.bf16(true)); });
}

// gate and up in one stack: the first dimension's stride is free.
TEST(E4m3Weight, MayBeASliceOfAStack) {
  constexpr std::int64_t kIn = 128;
  std::vector<E4m3> codes(3 * 16 * kIn);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i].bits = static_cast<std::uint8_t>(i * 5 % 127);
  const std::vector<float> scales = {0.5F, 0.25F, 3};
  const WeightView lower({codes.data() + 8 * kIn, DType::kE4M3, {3, 8, kIn}, {16 * kIn, kIn, 1}},
                         {scales.data(), DType::kF32, {3, 1, 1}});
  ASSERT_TRUE(reference_ops::is_weight(lower, 3));
  for (std::int64_t expert = 0; expert < 3; ++expert) {
    const reference_ops::WeightRows rows(lower, expert, 2, 5);
    for (std::int64_t i = 0; i < 5 * kIn; ++i) {
      const E4m3 code = codes[static_cast<std::size_t>((expert * 16 + 8 + 2) * kIn + i)];
      ASSERT_EQ(rows.data()[i].bits, to_bf16(to_float(code) * scales[static_cast<std::size_t>(expert)]).bits);
    }
  }
}

TEST(E4m3Weight, OfWrongShapesIsOurBug) {
  std::vector<std::byte> memory(1 << 16);
  const auto codes = [&](std::int64_t out, std::int64_t in) {
    return TensorView(memory.data(), DType::kE4M3, {out, in});
  };
  const auto scales = [&](std::int64_t rows, std::int64_t columns) {
    return TensorView(memory.data(), DType::kF32, {rows, columns});
  };
  EXPECT_TRUE(reference_ops::is_weight({codes(136, 256), scales(2, 2)}, 2));
  EXPECT_FALSE(reference_ops::is_weight({codes(136, 256), scales(1, 2)}, 2));
  EXPECT_FALSE(reference_ops::is_weight({codes(136, 256), scales(2, 1)}, 2));
  EXPECT_FALSE(reference_ops::is_weight({codes(136, 200), scales(2, 1)}, 2));
  EXPECT_FALSE(reference_ops::is_weight(codes(136, 256), 2)) << "codes without scales";
  expect_code(ErrorCode::kInternal, [&] { ops().arrange_weight(codes(8, 100), {}); });
  expect_code(ErrorCode::kInternal, [&] { ops().arrange_weight(scales(8, 128), {}); });
}

TEST(E4m3Weight, StaysInTheOrderOfTheCheckpoint) {
  std::vector<E4m3> codes(2 * 16 * 128);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i].bits = static_cast<std::uint8_t>(i * 5 % 127);
  const std::vector<E4m3> before = codes;
  ops().arrange_weight(TensorView(codes.data(), DType::kE4M3, {2, 16, 128}), {});
  EXPECT_TRUE(same_bits(codes.data(), before.data(), codes.size()));
  EXPECT_FALSE(ops().prefers_e4m3(16, 128));
}

}  // namespace
}  // namespace snapmla
