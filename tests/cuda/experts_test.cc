// The experts of the CUDA backend against the reference, over every width of token tile and the shapes at which the
// work is cut differently; a token alone against the same token in any company, bit for bit; and, on the host, how
// work is shared out.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/plain_ops.h"
#include "cuda/experts/config.h"
#include "cuda/gpu_test.h"
#include "cuda/linear_e4m3.h"
#include "cuda/plain_ops.h"
#include "reference/ops.h"
#include "support/e4m3_weights.h"
#include "support/random_tensors.h"

namespace snapmla::test {
namespace {

using cuda_ops::moe::place_of_item;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::random_e4m3_weights;
using testing::random_floats;
using testing::RandomE4m3Weights;
using testing::real;

enum class Routing {
  kRandom,     // distinct experts, any
  kFirst,      // expert 0 for every token: one expert with all, the others with none
  kSkewed,     // expert 0 is every other token's first choice
  kIdentities  // identities alone
};

struct Case {
  const char* name;
  int tokens;
  int top_k;
  int hidden;
  int inter;
  int experts;
  int identities = 0;
  Routing routing = Routing::kRandom;
  bool stacked = false;  // gate and up are slices of one tensor
  bool e4m3 = false;     // weights on the device; the reference has the bf16 numbers that they stand for
};

std::vector<std::int32_t> make_routing(const Case& c) {
  std::mt19937 random(11);
  std::vector<std::int32_t> all(static_cast<std::size_t>(c.experts + c.identities));
  std::vector<std::int32_t> expert;
  for (int t = 0; t < c.tokens; ++t) {
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    if (c.routing == Routing::kSkewed && random() % 2 == 0)
      std::iter_swap(all.begin(), std::find(all.begin(), all.end(), 0));
    for (int k = 0; k < c.top_k; ++k) {
      const std::int32_t random_choice = all[static_cast<std::size_t>(k)];
      expert.push_back(c.routing == Routing::kFirst        ? 0
                       : c.routing == Routing::kIdentities ? c.experts + random_choice % c.identities
                                                           : random_choice);
    }
  }
  return expert;
}

// A mixture and its tokens on the host. Rows of x, choices, weights and results have gaps between them.
struct Mixture {
  explicit Mixture(const Case& shape)
      : c(shape),
        x(random_bf16(size(c.tokens, x_stride()), 1, 1, 0.25F)),
        gate_up_e4m3(make_e4m3(2 * c.experts, c.inter, c.hidden, 2)),
        down_e4m3(make_e4m3(c.experts, c.hidden, c.inter, 3)),
        gate_up(c.e4m3 ? gate_up_e4m3.values
                       : random_bf16(size(c.experts, 2 * c.inter * c.hidden), 2, sigma(c.hidden))),
        down(c.e4m3 ? down_e4m3.values : random_bf16(size(c.experts, c.hidden * c.inter), 3, sigma(c.inter))),
        weight(random_floats(size(c.tokens, c.top_k), 4, 0.3F, 1)),
        expert(make_routing(c)) {}

  static std::size_t size(std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); }
  static float sigma(int inner) { return 1 / std::sqrt(static_cast<float>(inner)); }
  [[nodiscard]] RandomE4m3Weights make_e4m3(int count, int rows, int columns, unsigned seed) const {
    return c.e4m3 ? random_e4m3_weights(count, rows, columns, seed, sigma(columns)) : RandomE4m3Weights{};
  }

  [[nodiscard]] int x_stride() const { return c.hidden + 8; }
  [[nodiscard]] int out_stride() const { return c.hidden + 4; }

  // Elements from gate's start to up's, and from an expert to the next.
  [[nodiscard]] std::int64_t up_start() const {
    return std::int64_t{c.stacked ? 1 : c.experts} * c.inter * c.hidden;
  }
  [[nodiscard]] std::int64_t expert_stride() const {
    return std::int64_t{c.stacked ? 2 : 1} * c.inter * c.hidden;
  }
  [[nodiscard]] double gate_at(int e, int row, int k) const {
    return real(gate_up[static_cast<std::size_t>(e * expert_stride() + std::int64_t{row} * c.hidden + k)]);
  }
  [[nodiscard]] double up_at(int e, int row, int k) const {
    return real(gate_up[static_cast<std::size_t>(up_start() + e * expert_stride() +
                                                 std::int64_t{row} * c.hidden + k)]);
  }
  [[nodiscard]] double down_at(int e, int row, int k) const {
    return real(down[static_cast<std::size_t>((std::int64_t{e} * c.hidden + row) * c.inter + k)]);
  }

  const Case c;
  std::vector<Bf16> x;
  RandomE4m3Weights gate_up_e4m3;
  RandomE4m3Weights down_e4m3;
  std::vector<Bf16> gate_up;
  std::vector<Bf16> down;
  std::vector<float> weight;
  std::vector<std::int32_t> expert;
};

// Where the tensors of a mixture lie, on the host or on the device; tokens [first, first + tokens) of it as a call.
struct Places {
  const Bf16* x;
  const Bf16* gate_up;
  const Bf16* down;
  const float* weight;
  const std::int32_t* expert;
  Bf16* out;
  std::uint8_t* workspace;
  std::int64_t workspace_bytes;
  const E4m3* gate_up_codes = nullptr;  // instead of gate_up and down
  const float* gate_up_scales = nullptr;
  const E4m3* down_codes = nullptr;
  const float* down_scales = nullptr;
};

// Gate or up, whose first matrix is `start` elements into the tensor of both.
WeightView gate_or_up(const Mixture& m, const Places& at, std::int64_t start) {
  const Case& c = m.c;
  const auto view = [&](const auto* data, DType dtype) {
    return ConstTensorView(data + start, dtype, {c.experts, c.inter, c.hidden},
                           {m.expert_stride(), c.hidden, 1});
  };
  if (at.gate_up_codes == nullptr) return view(at.gate_up, DType::kBF16);
  const std::int64_t rows = num_weight_blocks(c.inter);
  const std::int64_t columns = c.hidden / kWeightBlock;
  const std::int64_t matrix = std::int64_t{c.inter} * c.hidden;
  return {
      view(at.gate_up_codes, DType::kE4M3),
      ConstTensorView(at.gate_up_scales + start / matrix * rows * columns, DType::kF32,
                      {c.experts, rows, columns}, {m.expert_stride() / matrix * rows * columns, columns, 1})};
}

WeightView down_of(const Case& c, const Places& at) {
  if (at.down_codes == nullptr) return ConstTensorView(at.down, DType::kBF16, {c.experts, c.hidden, c.inter});
  return {ConstTensorView(at.down_codes, DType::kE4M3, {c.experts, c.hidden, c.inter}),
          ConstTensorView(at.down_scales, DType::kF32,
                          {c.experts, num_weight_blocks(c.hidden), c.inter / kWeightBlock})};
}

ExpertsParams make_params(const Mixture& m, const Places& at, int first, int tokens) {
  const Case& c = m.c;
  const std::int64_t choice = std::int64_t{first} * c.top_k;
  return {.x = ConstTensorView(at.x + std::int64_t{first} * m.x_stride(), DType::kBF16, {tokens, c.hidden},
                               {m.x_stride(), 1}),
          .expert = ConstTensorView(at.expert + choice, DType::kI32, {tokens, c.top_k}),
          .weight = ConstTensorView(at.weight + choice, DType::kF32, {tokens, c.top_k}),
          .identities = c.identities,
          .gate = gate_or_up(m, at, 0),
          .up = gate_or_up(m, at, m.up_start()),
          .down = down_of(c, at),
          .out = TensorView(at.out, DType::kBF16, {tokens, c.hidden}, {m.out_stride(), 1}),
          .workspace = TensorView(at.workspace, DType::kU8, {at.workspace_bytes})};
}

std::vector<Bf16> run_reference(const Mixture& m) {
  const Case& c = m.c;
  const PlainOps& ops = reference_ops::plain_ops();
  auto out = poison<Bf16>(std::int64_t{c.tokens} * m.out_stride());
  auto workspace =
      poison<std::uint8_t>(ops.experts_workspace_bytes(c.tokens, c.top_k, c.hidden, c.inter, c.experts));
  const Places at{
      m.x.data(),      m.gate_up.data(), m.down.data(),    m.weight.data(),
      m.expert.data(), out.data(),       workspace.data(), static_cast<std::int64_t>(workspace.size())};
  ops.experts(make_params(m, at, 0, c.tokens), {});
  return out;
}

// The mixture on the device.
class DeviceMixture {
 public:
  explicit DeviceMixture(const Mixture& m)
      : m_(m),
        x_(cuda(), m.x),
        gate_up_(cuda(), m.gate_up),
        down_(cuda(), m.down),
        weight_(cuda(), m.weight),
        expert_(cuda(), m.expert),
        gate_up_codes_(cuda(), m.gate_up_e4m3.codes),
        gate_up_scales_(cuda(), m.gate_up_e4m3.scales),
        down_codes_(cuda(), m.down_e4m3.codes),
        down_scales_(cuda(), m.down_e4m3.scales) {
    if (!m.c.e4m3) return;
    cuda_ops::arrange_weight(
        TensorView(gate_up_codes_.data(), DType::kE4M3, {2 * m.c.experts, m.c.inter, m.c.hidden}), nullptr);
    cuda_ops::arrange_weight(
        TensorView(down_codes_.data(), DType::kE4M3, {m.c.experts, m.c.hidden, m.c.inter}), nullptr);
  }

  // Tokens [first, first + tokens) in one call, in a workspace that is as large as it must be and full of NaN.
  [[nodiscard]] std::vector<Bf16> run(int first, int tokens) const {
    const OnDevice<Bf16> out(cuda(), poison<Bf16>(std::int64_t{tokens} * m_.out_stride()));
    const OnDevice<std::uint8_t> workspace(cuda(), poison<std::uint8_t>(bytes(tokens)));
    cuda_ops::experts(make_params(m_, places(out, workspace, bytes(tokens)), first, tokens), nullptr);
    return out.host();
  }
  [[nodiscard]] std::int64_t bytes(int tokens) const {
    return cuda_ops::experts_workspace_bytes(tokens, m_.c.top_k, m_.c.hidden, m_.c.inter, m_.c.experts);
  }
  [[nodiscard]] Places places(const OnDevice<Bf16>& out, const OnDevice<std::uint8_t>& workspace,
                              std::int64_t workspace_bytes) const {
    Places at{x_.data(),      gate_up_.data(), down_.data(),     weight_.data(),
              expert_.data(), out.data(),      workspace.data(), workspace_bytes};
    if (m_.c.e4m3) {
      at.gate_up_codes = gate_up_codes_.data();
      at.gate_up_scales = gate_up_scales_.data();
      at.down_codes = down_codes_.data();
      at.down_scales = down_scales_.data();
    }
    return at;
  }
  [[nodiscard]] const OnDevice<std::int32_t>& expert() const { return expert_; }

 private:
  const Mixture& m_;
  OnDevice<Bf16> x_;
  OnDevice<Bf16> gate_up_;
  OnDevice<Bf16> down_;
  OnDevice<float> weight_;
  OnDevice<std::int32_t> expert_;
  OnDevice<E4m3> gate_up_codes_;
  OnDevice<float> gate_up_scales_;
  OnDevice<E4m3> down_codes_;
  OnDevice<float> down_scales_;
};

// What two right results of a token may differ by, beside the rounding of each: `sum` from h that may have been
// rounded to a neighbour, `exact` where no h was.
struct Slack {
  std::vector<double> sum;
  std::vector<double> exact;
};

// Sums of K products in fp32, in any order: the reference rounds each addition, the tensor core truncates, so up to
// 2^-23 of the magnitudes a term for the one and half of that for the other. h = silu(gate) * up differs by that (the
// slope of silu is at most 1.1), and then by a unit of bf16 (2^-7) where that crosses a border between two roundings.
// Of these units the signs are independent: they add up like a random walk, four standard deviations.
Slack slack_of(const Mixture& m, int token) {
  const Case& c = m.c;
  const auto hidden = static_cast<std::size_t>(c.hidden);
  Slack slack{std::vector<double>(hidden), std::vector<double>(hidden)};
  for (int k = 0; k < c.top_k; ++k) {
    const auto pair = static_cast<std::size_t>(token * c.top_k + k);
    const int e = m.expert[pair];
    if (e >= c.experts) continue;
    std::vector<double> h(static_cast<std::size_t>(c.inter));
    for (int i = 0; i < c.inter; ++i) {
      double gate = 0;
      double up = 0;
      for (int d = 0; d < c.hidden; ++d) {
        const double x = real(m.x[static_cast<std::size_t>(token * m.x_stride() + d)]);
        gate += x * m.gate_at(e, i, d);
        up += x * m.up_at(e, i, d);
      }
      h[static_cast<std::size_t>(i)] = gate / (1 + std::exp(-gate)) * up;
    }
    const double weight = std::fabs(m.weight[pair]);
    for (int d = 0; d < c.hidden; ++d) {
      double squares = 0;
      double magnitude = 0;
      for (int i = 0; i < c.inter; ++i) {
        const double product = std::fabs(m.down_at(e, d, i) * h[static_cast<std::size_t>(i)]);
        squares += product * product;
        magnitude += product;
      }
      const double fp32 = 1.5 * 0x1p-23 * (c.inter + 1) * magnitude;
      slack.sum[static_cast<std::size_t>(d)] += weight * (4 * 2 * kBf16Rounding * std::sqrt(squares) + fp32);
      slack.exact[static_cast<std::size_t>(d)] += weight * fp32;
    }
  }
  return slack;
}

class CudaExperts : public GpuCases<Case> {};

TEST_P(CudaExperts, MatchesTheReference) {
  const Mixture m(GetParam());
  const Case& c = m.c;
  const std::vector<Bf16> expected = run_reference(m);
  const std::vector<Bf16> got = DeviceMixture(m).run(0, c.tokens);
  std::int64_t checked = 0;
  std::int64_t close = 0;
  for (int t = 0; t < c.tokens; t += std::max(1, c.tokens / 40)) {
    const Slack slack = slack_of(m, t);
    for (int d = 0; d < m.out_stride(); ++d) {
      const auto at = static_cast<std::size_t>(t) * static_cast<std::size_t>(m.out_stride()) +
                      static_cast<std::size_t>(d);
      if (d >= c.hidden) {
        ASSERT_EQ(got[at].bits, 0xffff) << "written past token " << t;
        continue;
      }
      const double rounding = 2 * kBf16Rounding * std::fabs(real(expected[at]));
      const double error = std::fabs(real(got[at]) - real(expected[at]));  // NaN fails both comparisons
      ASSERT_LE(error, rounding + slack.sum[static_cast<std::size_t>(d)])
          << "token " << t << ", column " << d << ": " << real(got[at]) << " for " << real(expected[at]);
      ++checked;
      if (error <= rounding + slack.exact[static_cast<std::size_t>(d)]) ++close;
    }
  }
  // h is rounded once and so is the result, as in the reference: few h are so near a border that they part.
  EXPECT_GT(close, checked * 8 / 10);
}

TEST_P(CudaExperts, RepeatsBitForBit) {
  const Mixture m(GetParam());
  const DeviceMixture device(m);
  const std::vector<Bf16> once = device.run(0, m.c.tokens);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(first_difference(device.run(0, m.c.tokens), once), -1);
}

TEST_P(CudaExperts, ATokenDoesNotDependOnItsCompany) {
  const Mixture m(GetParam());
  const DeviceMixture device(m);
  const std::vector<Bf16> together = device.run(0, m.c.tokens);
  for (const int size : {1, 3, 20, 100}) {
    const int step = std::max(size, m.c.tokens / 8);
    for (int first = 0; first + size <= m.c.tokens; first += step) {
      const auto from = together.begin() + std::ptrdiff_t{first} * m.out_stride();
      const std::vector<Bf16> expected(from, from + std::ptrdiff_t{size} * m.out_stride());
      ASSERT_EQ(first_difference(device.run(first, size), expected), -1)
          << size << " tokens from " << first << " of " << m.c.tokens;
    }
  }
}

// hidden and inter of a model golden, of LongCat's, not divisible by 16, one tile and one more row than tiles, and
// sums of many stages.
INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaExperts,
    ::testing::Values(Case{"OneToken", 1, 6, 256, 128, 64}, Case{"OneTokenOneExpert", 1, 1, 96, 48, 1},
                      Case{"Few", 5, 2, 96, 48, 16, 0, Routing::kRandom, true},
                      Case{"Sixteen", 16, 2, 160, 48, 8, 0, Routing::kRandom, true},
                      Case{"OddSizes", 33, 3, 72, 40, 12}, Case{"SmallestSizes", 30, 4, 8, 8, 9},
                      Case{"ATileAndEight", 90, 4, 136, 72, 16}, Case{"Identities", 70, 4, 1152, 64, 12, 6},
                      Case{"IdentitiesAlone", 9, 3, 96, 48, 4, 3, Routing::kIdentities},
                      Case{"AllToOne", 100, 1, 256, 128, 5, 0, Routing::kFirst},
                      Case{"AllToOneWide", 300, 1, 128, 64, 5, 0, Routing::kFirst},
                      Case{"Skewed", 200, 6, 256, 128, 24, 2, Routing::kSkewed, true},
                      Case{"EveryExpertEveryToken", 64, 8, 256, 128, 8},
                      Case{"Wide", 128, 8, 256, 192, 8, 0, Routing::kRandom, true},
                      Case{"Widest", 400, 8, 256, 128, 8}, Case{"Wider", 300, 8, 256, 128, 8},
                      Case{"WiderOddSizes", 257, 2, 200, 88, 3},
                      Case{"ManyStages", 48, 4, 1024, 704, 6, 0, Routing::kRandom, true},
                      Case{"ManyStagesWide", 200, 4, 1024, 704, 6}, Case{"Prefill", 2100, 2, 128, 64, 40, 3}),
    [](const auto& test) { return std::string(test.param.name); });

// One stage and more than the ring holds, rows that end within a tile and within a block of scales, every width.
INSTANTIATE_TEST_SUITE_P(
    E4m3, CudaExperts,
    ::testing::Values(Case{"OneToken", 1, 6, 256, 128, 64, 0, Routing::kRandom, false, true},
                      Case{"Few", 5, 2, 128, 256, 16, 0, Routing::kRandom, true, true},
                      Case{"Sixteen", 16, 2, 384, 128, 8, 0, Routing::kRandom, true, true},
                      Case{"Identities", 70, 4, 1152, 128, 12, 6, Routing::kRandom, false, true},
                      Case{"EveryExpertEveryToken", 64, 8, 256, 128, 8, 0, Routing::kRandom, false, true},
                      Case{"AllToOneWide", 300, 1, 128, 256, 5, 0, Routing::kFirst, false, true},
                      Case{"Widest", 400, 8, 256, 128, 8, 0, Routing::kRandom, false, true},
                      Case{"ManyStages", 48, 4, 1920, 768, 6, 0, Routing::kRandom, true, true},
                      Case{"ManyStagesWide", 200, 4, 1024, 640, 6, 0, Routing::kRandom, false, true}),
    [](const auto& test) { return std::string(test.param.name); });

class CudaExpertsGraph : public GpuTest {};

// One capture serves every step: the routing changes between replays.
TEST_F(CudaExpertsGraph, TakesNewRoutingsInACapturedGraph) {
  Mixture m(Case{"Graph", 40, 3, 256, 128, 16});
  const DeviceMixture device(m);
  const std::int64_t bytes = device.bytes(m.c.tokens);
  const OnDevice<Bf16> out(cuda(), poison<Bf16>(std::int64_t{m.c.tokens} * m.out_stride()));
  const OnDevice<std::uint8_t> workspace(cuda(), poison<std::uint8_t>(bytes));
  const Stream stream = cuda().create_stream();
  cuda().begin_capture(stream);
  cuda_ops::experts(make_params(m, device.places(out, workspace, bytes), 0, m.c.tokens),
                    static_cast<cudaStream_t>(stream.handle));
  const Graph graph = cuda().end_capture(stream);
  for (int shift = 0; shift < 4; ++shift) {
    for (std::int32_t& e : m.expert) e = shift == 3 ? 5 : (e + shift) % m.c.experts;
    cuda().copy(device.expert().data(), m.expert.data(),
                static_cast<std::int64_t>(m.expert.size() * sizeof(std::int32_t)), CopyKind::kHostToDevice,
                stream);
    cuda().launch(graph, stream);
    cuda().synchronize(stream);
    const DeviceMixture fresh(m);
    EXPECT_EQ(first_difference(out.host(), fresh.run(0, m.c.tokens)), -1) << shift;
  }
  cuda().destroy_graph(graph);
  cuda().destroy_stream(stream);
}

TEST(ExpertsArguments, SizesThatCannotBeCopiedInUnitsOf16BytesAreRefused) {
  const auto call = [](std::int64_t hidden, std::int64_t inter) {
    // Nothing of these is read: the sizes are refused before.
    auto* nowhere = reinterpret_cast<std::uint8_t*>(std::uintptr_t{4096});
    return message_of([=] {
      cuda_ops::experts({.x = ConstTensorView(nowhere, DType::kBF16, {2, hidden}),
                         .expert = ConstTensorView(nowhere, DType::kI32, {2, 1}),
                         .weight = ConstTensorView(nowhere, DType::kF32, {2, 1}),
                         .gate = ConstTensorView(nowhere, DType::kBF16, {3, inter, hidden}),
                         .up = ConstTensorView(nowhere, DType::kBF16, {3, inter, hidden}),
                         .down = ConstTensorView(nowhere, DType::kBF16, {3, hidden, inter}),
                         .out = TensorView(nowhere, DType::kBF16, {2, hidden}),
                         .workspace = TensorView(nowhere, DType::kU8, {1 << 20})},
                        nullptr);
    });
  };
  EXPECT_EQ(
      call(64, 44),
      "[experts] hidden and intermediate size must be multiples of 8 on the cuda backend; got 64 and 44");
  EXPECT_EQ(
      call(68, 48),
      "[experts] hidden and intermediate size must be multiples of 8 on the cuda backend; got 68 and 48");
}

// --- How work is shared out, on the host ---

TEST(ExpertsWork, AWidthHoldsWhatAnExpertWillLikelyGet) {
  const auto tile_width = [](int tokens, int top_k, int choices) {
    return cuda_ops::product::tile_width(cuda_ops::moe::likely_tokens(tokens, top_k, choices),
                                         cuda_ops::product::kBf16Widths);
  };
  EXPECT_EQ(tile_width(1, 6, 64), 16);
  EXPECT_EQ(tile_width(64, 6, 64), 16);
  EXPECT_EQ(tile_width(256, 6, 64), 64);
  EXPECT_EQ(tile_width(64, 8, 8), 64);  // every expert has every token, and never more
  EXPECT_EQ(tile_width(65, 8, 8), 128);
  EXPECT_EQ(tile_width(192, 8, 12), 192);
  EXPECT_EQ(tile_width(256, 8, 8), 256);
  EXPECT_EQ(tile_width(300, 8, 8), 192);  // two tiles of 192 ask L2 for less than two of 256
  EXPECT_EQ(tile_width(4096, 6, 64), 256);
}

TEST(ExpertsWork, TilesHaveRoomWhateverTheRouting) {
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    const int experts = 1 + static_cast<int>(random() % 40);
    const int pairs = 1 + static_cast<int>(random() % 600);
    const std::size_t used = 1 + random() % static_cast<std::size_t>(experts);
    std::vector<int> count(static_cast<std::size_t>(experts));
    for (int pair = 0; pair < pairs; ++pair) ++count[random() % used];
    for (const int width : cuda_ops::product::kBf16Widths) {
      std::int64_t tiles = 0;
      for (const int n : count) tiles += (n + width - 1) / width;
      ASSERT_LE(tiles, cuda_ops::moe::most_tiles(pairs, experts, width));
      ASSERT_LE(tiles, cuda_ops::moe::most_tiles(pairs, experts, cuda_ops::product::kBf16Widths.front()));
    }
  }
}

TEST(ExpertsWork, ItemsCoverEveryRowOfEveryTileOnce) {
  for (const int outputs : {64, 128}) {
    for (const int rows : {8, 64, 72, 128, 136, 320}) {
      for (const int tiles : {1, 3, 7}) {
        const int row_sets = cuda_ops::moe::num_row_sets(rows, outputs);
        std::set<std::pair<int, int>> seen;
        for (int item = 0; item < tiles * row_sets; ++item) {
          const auto place = place_of_item(item, tiles, outputs);
          ASSERT_TRUE(place.tile >= 0 && place.tile < tiles && place.first_row % outputs == 0);
          ASSERT_TRUE(seen.emplace(place.tile, place.first_row).second);
        }
        for (int tile = 0; tile < tiles; ++tile) {
          for (int row = 0; row < rows; row += outputs) ASSERT_TRUE(seen.count({tile, row}) == 1);
        }
      }
    }
  }
}

TEST(ExpertsWork, FewerTokensNeedNoMoreWorkspace) {
  std::int64_t before = 0;
  for (int tokens = 1; tokens < 600; ++tokens) {
    const std::int64_t bytes = cuda_ops::experts_workspace_bytes(tokens, 6, 2048, 1408, 64);
    ASSERT_GE(bytes, before) << tokens;
    before = bytes;
  }
}

}  // namespace
}  // namespace snapmla::test
