// linear with e4m3 weights against the reference with the bf16 numbers that they stand for, a row alone against the same row in any
// company, and, on the host, the order of the codes.
#include "cuda/linear_e4m3.h"

#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "core/plain_ops.h"
#include "cuda/device/layout.cuh"
#include "cuda/gpu_test.h"
#include "cuda/product/config.h"
#include "support/e4m3_weights.h"
#include "support/random_tensors.h"

namespace snapmla::test {
namespace {

using cuda_ops::product::arranged_place;
using cuda_ops::product::codes_of_lane;
using cuda_ops::product::dim_at_place;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::random_e4m3_weights;
using testing::RandomE4m3Weights;
using testing::real;

struct Case {
  const char* name;
  std::int64_t tokens;
  std::int64_t in;
  std::int64_t out;
  bool bias = false;
  bool f32 = false;
};

/// The projection on both sides. x and out have gaps between their rows, which stay as they are.
class Projection {
 public:
  explicit Projection(const Case& c)
      : c_(c),
        x_(random_bf16(size(c.tokens, x_stride()), 1)),
        weight_(random_e4m3_weights(1, c.out, c.in, 2, 1)),
        bias_(random_bf16(static_cast<std::size_t>(c.out), 3)),
        x_device_(cuda(), x_),
        codes_(cuda(), weight_.codes),
        scales_(cuda(), weight_.scales),
        bias_device_(cuda(), bias_) {
    cuda().plain_ops().arrange_weight(TensorView(codes_.data(), DType::kE4M3, {c.out, c.in}), {});
  }

  /// The first `tokens` rows from `first` on, with their gaps.
  [[nodiscard]] std::vector<std::uint8_t> run(std::int64_t first, std::int64_t tokens) const {
    const OnDevice<std::uint8_t> out(cuda(), poison<std::uint8_t>(tokens * out_stride() * size_of(dtype())));
    const WeightView weight(
        ConstTensorView(codes_.data(), DType::kE4M3, {c_.out, c_.in}),
        ConstTensorView(scales_.data(), DType::kF32, {num_weight_blocks(c_.out), c_.in / kWeightBlock}));
    cuda().plain_ops().linear(rows(x_device_.data() + first * x_stride(), tokens), weight,
                              bias(bias_device_.data()), outs(out.data(), tokens), {});
    return out.host();
  }

  [[nodiscard]] std::vector<std::uint8_t> run_reference() const {
    auto out = poison<std::uint8_t>(c_.tokens * out_stride() * size_of(dtype()));
    reference().plain_ops().linear(rows(x_.data(), c_.tokens),
                                   ConstTensorView(weight_.values.data(), DType::kBF16, {c_.out, c_.in}),
                                   bias(bias_.data()), outs(out.data(), c_.tokens), {});
    return out;
  }

  /// What two orders of one sum may differ by: all terms in fp32, truncated by the tensor core (2^-23 of the magnitudes a term,
  /// half of that for the reference; not all in one direction, so the square root of their number counts, four times).
  [[nodiscard]] double slack(std::int64_t token, std::int64_t output) const {
    double magnitude = 0;
    for (std::int64_t k = 0; k < c_.in; ++k)
      magnitude += std::fabs(real(x_[size(token, x_stride()) + static_cast<std::size_t>(k)]) *
                             real(weight_.values[size(output, c_.in) + static_cast<std::size_t>(k)]));
    return 4 * 1.5 * 0x1p-23 * std::sqrt(static_cast<double>(c_.in)) * magnitude;
  }

  [[nodiscard]] double value(const std::vector<std::uint8_t>& out, std::int64_t token,
                             std::int64_t output) const {
    const std::size_t at = size(token, out_stride()) + static_cast<std::size_t>(output);
    if (c_.f32) return reinterpret_cast<const float*>(out.data())[at];
    return real(reinterpret_cast<const Bf16*>(out.data())[at]);
  }

  [[nodiscard]] std::int64_t row_bytes() const { return out_stride() * size_of(dtype()); }
  [[nodiscard]] DType dtype() const { return c_.f32 ? DType::kF32 : DType::kBF16; }

 private:
  static std::size_t size(std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); }
  [[nodiscard]] std::int64_t x_stride() const { return c_.in + 8; }
  [[nodiscard]] std::int64_t out_stride() const { return c_.out + 8; }
  [[nodiscard]] ConstTensorView rows(const Bf16* data, std::int64_t tokens) const {
    return {data, DType::kBF16, {tokens, c_.in}, {x_stride(), 1}};
  }
  [[nodiscard]] TensorView outs(void* data, std::int64_t tokens) const {
    return {data, dtype(), {tokens, c_.out}, {out_stride(), 1}};
  }
  [[nodiscard]] ConstTensorView bias(const Bf16* data) const {
    return c_.bias ? ConstTensorView(data, DType::kBF16, {c_.out}) : ConstTensorView{};
  }

  Case c_;
  std::vector<Bf16> x_;
  RandomE4m3Weights weight_;
  std::vector<Bf16> bias_;
  OnDevice<Bf16> x_device_;
  OnDevice<E4m3> codes_;
  OnDevice<float> scales_;
  OnDevice<Bf16> bias_device_;
};

class CudaLinearE4m3 : public GpuCases<Case> {};

TEST_P(CudaLinearE4m3, MatchesTheReference) {
  const Case& c = GetParam();
  const Projection projection(c);
  const std::vector<std::uint8_t> expected = projection.run_reference();
  const std::vector<std::uint8_t> got = projection.run(0, c.tokens);
  for (std::int64_t t = 0; t < c.tokens; t += std::max<std::int64_t>(1, c.tokens / 20)) {
    for (std::int64_t o = 0; o < c.out; ++o) {
      const double want = projection.value(expected, t, o);
      const double rounding = c.f32 ? 0 : 2 * kBf16Rounding * std::fabs(want);
      ASSERT_LE(std::fabs(projection.value(got, t, o) - want), rounding + projection.slack(t, o))
          << "token " << t << ", output " << o << ": " << projection.value(got, t, o) << " for " << want;
    }
    const auto gap = got.begin() + t * projection.row_bytes() + c.out * size_of(projection.dtype());
    ASSERT_EQ(std::vector<std::uint8_t>(gap, got.begin() + (t + 1) * projection.row_bytes()),
              std::vector<std::uint8_t>(static_cast<std::size_t>(8 * size_of(projection.dtype())), 0xff))
        << "written past token " << t;
  }
}

TEST_P(CudaLinearE4m3, ARowDoesNotDependOnItsCompany) {
  const Case& c = GetParam();
  const Projection projection(c);
  const std::vector<std::uint8_t> together = projection.run(0, c.tokens);
  for (const std::int64_t size : {1, 3, 17, 70}) {
    for (std::int64_t first = 0; first + size <= c.tokens; first += std::max(size, c.tokens / 6)) {
      const auto from = together.begin() + first * projection.row_bytes();
      ASSERT_EQ(projection.run(first, size),
                std::vector<std::uint8_t>(from, from + size * projection.row_bytes()))
          << size << " tokens from " << first << " of " << c.tokens;
    }
  }
}

// Every number of CTAs that share K, every width of token tile, outputs that end within a tile and within a block of scales, one
// stage, uneven shares of K, more stages than the ring holds.
INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaLinearE4m3,
    ::testing::Values(Case{"OneStage", 1, 128, 128}, Case{"FewOutputs", 5, 256, 8},
                      Case{"EightShares", 16, 7168, 576}, Case{"EightSharesUneven", 40, 7552, 72, true},
                      Case{"FourShares", 64, 2048, 1000}, Case{"TwoShares", 100, 1024, 1416, false, true},
                      Case{"OneShare", 9, 640, 520}, Case{"ManyOutputs", 70, 1024, 24576},
                      Case{"Bias", 130, 512, 264, true}, Case{"F32", 30, 896, 320, true, true},
                      Case{"Prefill", 1000, 1536, 384}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(E4m3Order, IsAPermutationThatPutsALanesCodesSideBySide) {
  std::set<int> places;
  for (int k = 0; k < 128; ++k) {
    ASSERT_EQ(dim_at_place(arranged_place(k)), k);
    places.insert(arranged_place(k));
  }
  EXPECT_EQ(places.size(), 128U);
  for (int column = 0; column < 4; ++column) {
    for (int panel = 0; panel < 2; ++panel) {
      for (int step = 0; step < 4; ++step) {
        const int first = 64 * panel + 16 * step + 2 * column;
        const int at = codes_of_lane(column, panel) + 4 * step;
        EXPECT_EQ(
            (std::vector{dim_at_place(at), dim_at_place(at + 1), dim_at_place(at + 2), dim_at_place(at + 3)}),
            (std::vector{first, first + 1, first + 8, first + 9}));
      }
    }
  }
}

// Eight lanes that load at once, rows g and g + 1: eight groups of four banks.
TEST(E4m3Order, LoadsOfEightLanesFallOnDifferentBanks) {
  for (std::uint32_t row = 0; row < 64; row += 2) {
    for (int panel = 0; panel < 2; ++panel) {
      std::set<std::uint32_t> groups;
      for (std::uint32_t lane = 0; lane < 8; ++lane) {
        const auto byte = static_cast<std::uint32_t>(codes_of_lane(static_cast<int>(lane % 4), panel));
        groups.insert(cuda_ops::tile_offset_128b(row + lane / 4, byte) % 128 / 16);
      }
      EXPECT_EQ(groups.size(), 8U);
    }
  }
}

}  // namespace
}  // namespace snapmla::test
