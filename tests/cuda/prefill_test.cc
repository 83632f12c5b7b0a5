// Prefill attention on the GPU: against the formula in fp64 and against the reference, which keys a query sees, and
// that its bits depend on nothing else. Memory that is not part of a tensor holds NaN throughout.
#include <algorithm>
#include <ostream>

#include "core/plain_ops.h"
#include "cuda/plain_ops.h"
#include "gpu_test.h"
#include "support/random_tensors.h"

namespace snapmla::test {
namespace {

using testing::fp32_sum_error;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::real;

constexpr Bf16 kNan{0x7fff};
constexpr int kPadding = 8;       ///< elements between rows
constexpr int kRowsBehind = 150;  ///< rows behind a tensor's last: more than a tile

enum class Logits {
  kNormal,
  kUniform,    ///< all zero
  kSink,       ///< the first key takes nearly everything
  kLargeRope,  ///< RoPE keys up to 10^3: peaked weights, references that move late
};

struct Case {
  int heads;
  int nope;
  int v_dim;
  int tokens;
  int seq_len;
  Logits logits = Logits::kNormal;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.heads << " heads of " << c.nope << " and " << c.v_dim << ", " << c.tokens << " of "
             << c.seq_len << " tokens, logits " << static_cast<int>(c.logits);
}

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

/// The last `tokens` queries of a sequence. k_nope and v are parts of one buffer, as a kv_b projection leaves them; all
/// rows have NaN between them and behind the last.
struct Problem {
  explicit Problem(const Case& problem)
      : spec(problem),
        first(spec.seq_len - spec.tokens),
        scale(1 / std::sqrt(static_cast<float>(spec.nope + kRopeDim))),
        q(fill(spec.tokens, q_stride() - kPadding, 1, spec.logits == Logits::kUniform ? 0.0F : 1.0F,
               spec.logits == Logits::kSink ? 0.5F : 0.0F)),
        kv(fill(spec.seq_len, kv_stride() - kPadding, 2, 1, 0.3F)),
        k_rope(fill(spec.seq_len, kRopeDim, 3, 1, 0)) {
    if (spec.logits == Logits::kSink) {
      for (int h = 0; h < spec.heads; ++h)
        std::fill_n(kv.begin() + h * (spec.nope + spec.v_dim), spec.nope, to_bf16(3));
      std::fill_n(k_rope.begin(), kRopeDim, to_bf16(3));
    }
    if (spec.logits == Logits::kLargeRope) {
      for (std::int64_t t = 0; t < spec.seq_len; t += 7) {
        for (int d = 0; d < kRopeDim; ++d) {
          Bf16& x = k_rope[at(t * rope_stride() + d)];
          x = to_bf16(to_float(x) * static_cast<float>(1 + t % 1000));
        }
      }
    }
  }

  static std::vector<Bf16> fill(std::int64_t rows, std::int64_t width, unsigned seed, float sigma,
                                float mean) {
    const std::vector<Bf16> dense = random_bf16(at(rows * width), seed, sigma, mean);
    std::vector<Bf16> padded(at((rows + kRowsBehind) * (width + kPadding)), kNan);
    for (std::int64_t row = 0; row < rows; ++row)
      std::copy_n(dense.begin() + row * width, width, padded.begin() + row * (width + kPadding));
    return padded;
  }

  [[nodiscard]] std::int64_t q_stride() const { return spec.heads * (spec.nope + kRopeDim) + kPadding; }
  [[nodiscard]] std::int64_t kv_stride() const { return spec.heads * (spec.nope + spec.v_dim) + kPadding; }
  [[nodiscard]] static std::int64_t rope_stride() { return kRopeDim + kPadding; }
  [[nodiscard]] std::int64_t out_stride() const { return spec.heads * spec.v_dim + kPadding; }

  [[nodiscard]] Bf16 query(std::int64_t i, int h, int d) const {
    return q[at((i - first) * q_stride() + h * (spec.nope + kRopeDim) + d)];
  }
  [[nodiscard]] Bf16 key(std::int64_t t, int h, int d) const {
    return d < spec.nope ? kv[at(t * kv_stride() + h * (spec.nope + spec.v_dim) + d)]
                         : k_rope[at(t * rope_stride() + d - spec.nope)];
  }
  [[nodiscard]] Bf16 value(std::int64_t t, int h, int d) const { return kv[value_at(t, h, d)]; }
  [[nodiscard]] std::size_t value_at(std::int64_t t, int h, int d) const {
    return at(t * kv_stride() + h * (spec.nope + spec.v_dim) + spec.nope + d);
  }
  [[nodiscard]] std::size_t out_at(std::int64_t i, int h, int d) const {
    return at((i - first) * out_stride() + h * spec.v_dim + d);
  }

  /// Queries [begin, end) of the sequence, a chunk whose context ends with it; buffers where a backend can reach them.
  [[nodiscard]] PrefillAttentionParams params(std::int64_t begin, std::int64_t end, const Bf16* q_data,
                                              const Bf16* kv_data, const Bf16* rope_data,
                                              Bf16* out_data) const {
    const std::int64_t q_width = spec.nope + kRopeDim;
    const std::int64_t kv_width = spec.nope + spec.v_dim;
    return {.q = ConstTensorView(q_data + (begin - first) * q_stride(), DType::kBF16,
                                 {end - begin, spec.heads, q_width}, {q_stride(), q_width, 1}),
            .k_nope = ConstTensorView(kv_data, DType::kBF16, {end, spec.heads, spec.nope},
                                      {kv_stride(), kv_width, 1}),
            .k_rope = ConstTensorView(rope_data, DType::kBF16, {end, kRopeDim}, {rope_stride(), 1}),
            .v = ConstTensorView(kv_data + spec.nope, DType::kBF16, {end, spec.heads, spec.v_dim},
                                 {kv_stride(), kv_width, 1}),
            .softmax_scale = scale,
            .out = TensorView(out_data + (begin - first) * out_stride(), DType::kBF16,
                              {end - begin, spec.heads, spec.v_dim}, {out_stride(), spec.v_dim, 1})};
  }

  Case spec;
  std::int64_t first;  ///< position of the first query
  float scale;
  std::vector<Bf16> q;
  std::vector<Bf16> kv;
  std::vector<Bf16> k_rope;
};

/// All queries on the GPU, in chunks of `chunk`, in an output that was poison before, with what lies between its rows.
std::vector<Bf16> solve(const Problem& p, std::int64_t chunk) {
  const OnDevice<Bf16> q(cuda(), p.q);
  const OnDevice<Bf16> kv(cuda(), p.kv);
  const OnDevice<Bf16> k_rope(cuda(), p.k_rope);
  const OnDevice<Bf16> out(cuda(), poison<Bf16>((p.spec.tokens + kRowsBehind) * p.out_stride()));
  for (std::int64_t begin = p.first; begin < p.spec.seq_len; begin += chunk) {
    const std::int64_t end = std::min<std::int64_t>(begin + chunk, p.spec.seq_len);
    cuda_ops::prefill_attention(p.params(begin, end, q.data(), kv.data(), k_rope.data(), out.data()),
                                nullptr);
  }
  return out.host();
}

std::vector<Bf16> solve(const Problem& p) {
  return solve(p, p.spec.tokens);
}

/// Row i, head h against fp64. A logit's error is a relative error of its p: that of an fp32 sum, and of the argument
/// of exp2. p is rounded to bf16, the sums add in fp32, a key in four to each lane, and the result is rounded to bf16.
void expect_fp64(const Problem& p, const std::vector<Bf16>& out, std::int64_t i, int h) {
  std::vector<double> weight;
  double magnitude = 0;
  for (std::int64_t t = 0; t <= i; ++t) {
    double logit = 0;
    double size = 0;
    for (int d = 0; d < p.spec.nope + kRopeDim; ++d) {
      const double product = real(p.query(i, h, d)) * real(p.key(t, h, d));
      logit += product;
      size += std::fabs(product);
    }
    weight.push_back(real(p.scale) * logit);
    magnitude = std::max(magnitude, real(p.scale) * size);
  }
  const double max = *std::max_element(weight.begin(), weight.end());
  double total = 0;
  for (double& w : weight) total += w = std::exp(w - max);
  const double p_error =
      fp32_sum_error(p.spec.nope + kRopeDim + 3, magnitude) + fp32_sum_error(i / 4 + 40, 1) + 0x1p-22;
  for (int d = 0; d < p.spec.v_dim; ++d) {
    double expected = 0;
    double size = 0;
    for (std::int64_t t = 0; t <= i; ++t) {
      const double v = real(p.value(t, h, d));
      expected += weight[at(t)] / total * v;
      size += weight[at(t)] / total * std::fabs(v);
    }
    ASSERT_NEAR(real(out[p.out_at(i, h, d)]), expected,
                kBf16Rounding * (std::fabs(expected) + size) + 3 * p_error * size)
        << p.spec << ": query " << i << " head " << h << " dim " << d;
  }
}

/// What is no part of the output is what it was before.
void expect_poison_elsewhere(const Problem& p, const std::vector<Bf16>& out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / p.out_stride();
    const auto column = static_cast<std::int64_t>(i) % p.out_stride();
    if (row < p.spec.tokens && column < p.out_stride() - kPadding) continue;
    ASSERT_EQ(out[i].bits, 0xffff) << p.spec << ": row " << row << " column " << column;
  }
}

class CudaPrefillCase : public GpuCases<Case> {};

TEST_P(CudaPrefillCase, MatchesFp64) {
  const Problem p(GetParam());
  const std::vector<Bf16> out = solve(p);
  const std::int64_t last = p.spec.seq_len - 1;
  const std::int64_t step = std::max(1, p.spec.tokens / 12);
  for (std::int64_t i = p.first; i <= last; i += i < p.first + 3 || i + step > last - 3 ? 1 : step) {
    for (const int h : {0, p.spec.heads / 2, p.spec.heads - 1}) expect_fp64(p, out, i, h);
  }
  expect_poison_elsewhere(p, out);
}

std::vector<Case> cases() {
  std::vector<Case> list;
  // the head dims of real models, and of the goldens'; a chunk that is filled, one more, one less
  for (const auto& [nope, v_dim] : std::vector<std::pair<int, int>>{{128, 128},
                                                                    {192, 256},
                                                                    {32, 32},
                                                                    {40, 24},
                                                                    {48, 80},
                                                                    {64, 64},
                                                                    {8, 8},
                                                                    {72, 136},
                                                                    {200, 16},
                                                                    {256, 256}}) {
    list.push_back({.heads = 3, .nope = nope, .v_dim = v_dim, .tokens = 200, .seq_len = 200});
    list.push_back({.heads = 2, .nope = nope, .v_dim = v_dim, .tokens = 70, .seq_len = 4500});
  }
  for (const int tokens : {1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 256, 500}) {
    for (const int before : {0, 1, 64, 100, 127, 128})
      list.push_back({.heads = 1, .nope = 128, .v_dim = 128, .tokens = tokens, .seq_len = before + tokens});
    list.push_back({.heads = 1, .nope = 192, .v_dim = 256, .tokens = tokens, .seq_len = 63 + tokens});
  }
  for (const Logits logits : {Logits::kUniform, Logits::kSink, Logits::kLargeRope}) {
    list.push_back({.heads = 4, .nope = 128, .v_dim = 128, .tokens = 300, .seq_len = 300, .logits = logits});
    list.push_back(
        {.heads = 16, .nope = 128, .v_dim = 128, .tokens = 128, .seq_len = 4096, .logits = logits});
    list.push_back({.heads = 20, .nope = 192, .v_dim = 256, .tokens = 65, .seq_len = 1500, .logits = logits});
  }
  list.push_back({.heads = 128, .nope = 128, .v_dim = 128, .tokens = 33, .seq_len = 700});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaPrefillCase, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return std::to_string(test.index); });

class CudaPrefill : public GpuTest {};

// The reference rounds no p. What p's rounding may change is bounded by the same op on |v|.
TEST_F(CudaPrefill, AgreesWithTheReference) {
  for (const Case& spec : {Case{.heads = 4, .nope = 128, .v_dim = 128, .tokens = 500, .seq_len = 500},
                           Case{.heads = 16, .nope = 128, .v_dim = 128, .tokens = 150, .seq_len = 1000},
                           Case{.heads = 2, .nope = 192, .v_dim = 256, .tokens = 400, .seq_len = 900}}) {
    Problem p(spec);
    const std::vector<Bf16> found = solve(p);
    const auto on_reference = [&] {
      std::vector<Bf16> out = poison<Bf16>((spec.tokens + kRowsBehind) * p.out_stride());
      reference().plain_ops().prefill_attention(
          p.params(p.first, spec.seq_len, p.q.data(), p.kv.data(), p.k_rope.data(), out.data()), {});
      return out;
    };
    const std::vector<Bf16> expected = on_reference();
    for (std::int64_t t = 0; t < spec.seq_len; ++t) {
      for (int h = 0; h < spec.heads; ++h) {
        for (int d = 0; d < spec.v_dim; ++d) p.kv[p.value_at(t, h, d)].bits &= 0x7fff;
      }
    }
    const std::vector<Bf16> size = on_reference();
    for (std::int64_t i = p.first; i < spec.seq_len; ++i) {
      for (int h = 0; h < spec.heads; ++h) {
        for (int d = 0; d < spec.v_dim; ++d) {
          const std::size_t index = p.out_at(i, h, d);
          const double want = real(expected[index]);
          // two results rounded, p rounded, and 1/64 of that for all fp32 sums
          const double bound =
              kBf16Rounding * (2 * std::fabs(want) + 1.02 * (1 + 1.0 / 64) * real(size[index]));
          ASSERT_NEAR(real(found[index]), want, bound)
              << spec << ": query " << i << " head " << h << " dim " << d;
        }
      }
    }
  }
}

// Equal weights over unit vectors: a result is the share of keys of each residue among those seen, nothing of it
// rounded but the end. A key too many, too few, or in the wrong column shows.
TEST_F(CudaPrefill, CountsEveryKeyOnce) {
  for (const auto& [nope, v_dim] :
       std::vector<std::pair<int, int>>{{128, 128}, {192, 256}, {32, 32}, {256, 200}, {48, 80}}) {
    for (const auto& [tokens, seq_len] :
         std::vector<std::pair<int, int>>{{700, 700}, {130, 2100}, {1, 640}}) {
      Problem p({.heads = 2,
                 .nope = nope,
                 .v_dim = v_dim,
                 .tokens = tokens,
                 .seq_len = seq_len,
                 .logits = Logits::kUniform});
      const auto residue = [&, v = v_dim](std::int64_t t, int h) { return (t + 5 * h) % v; };
      for (std::int64_t t = 0; t < seq_len; ++t) {
        for (int h = 0; h < 2; ++h) {
          for (int d = 0; d < v_dim; ++d)
            p.kv[p.value_at(t, h, d)] = to_bf16(residue(t, h) == d ? 1.0F : 0.0F);
        }
      }
      const std::vector<Bf16> out = solve(p);
      for (int h = 0; h < 2; ++h) {
        std::vector<int> count(at(v_dim), 0);
        for (std::int64_t i = 0; i < seq_len; ++i) {
          ++count[at(residue(i, h))];
          if (i < p.first) continue;
          for (int d = 0; d < v_dim; ++d) {
            const double expected = static_cast<double>(count[at(d)]) / static_cast<double>(i + 1);
            ASSERT_NEAR(real(out[p.out_at(i, h, d)]), expected, 1.001 * kBf16Rounding * expected)
                << p.spec << ": query " << i << " head " << h << " dim " << d;
          }
        }
      }
    }
  }
}

TEST_F(CudaPrefill, ChunksChangeNoBit) {
  for (const auto& [nope, v_dim] : std::vector<std::pair<int, int>>{{128, 128}, {192, 256}, {40, 24}}) {
    for (const Logits logits : {Logits::kNormal, Logits::kLargeRope}) {
      const Problem p(
          {.heads = 2, .nope = nope, .v_dim = v_dim, .tokens = 1100, .seq_len = 1100, .logits = logits});
      const std::vector<Bf16> whole = solve(p);
      for (const std::int64_t chunk : {1, 64, 100, 128, 512, 1099})
        ASSERT_EQ(first_difference(solve(p, chunk), whole), -1) << p.spec << ", chunks of " << chunk;
    }
  }
}

// Keys change the rows from their own position on, and no row before, not even by a bit.
TEST_F(CudaPrefill, KeysCountFromTheirPositionOn) {
  const Problem p({.heads = 2, .nope = 128, .v_dim = 128, .tokens = 300, .seq_len = 400});
  const std::vector<Bf16> expected = solve(p);
  for (const std::int64_t t : {0, 63, 64, 127, 128, 163, 164, 227, 228, 300, 399}) {
    Problem other = p;
    for (int d = 0; d < p.spec.nope; ++d) other.kv[at(t * p.kv_stride() + d)] = to_bf16(100);
    for (int d = 0; d < p.spec.v_dim; ++d) other.kv[p.value_at(t, 0, d)] = to_bf16(1e6F);
    for (int d = 0; d < p.spec.v_dim; ++d) other.kv[p.value_at(t, 1, d)] = to_bf16(1e6F);
    const std::vector<Bf16> found = solve(other);
    for (std::int64_t i = p.first; i < p.spec.seq_len; ++i) {
      const std::size_t begin = p.out_at(i, 1, 0);  // head 1: its key is as it was, so its weight is never 0
      const bool same = std::equal(found.begin() + static_cast<std::ptrdiff_t>(begin),
                                   found.begin() + static_cast<std::ptrdiff_t>(begin) + p.spec.v_dim,
                                   expected.begin() + static_cast<std::ptrdiff_t>(begin),
                                   [](Bf16 a, Bf16 b) { return a.bits == b.bits; });
      ASSERT_EQ(same, i < t) << "key " << t << " query " << i;
      if (i >= t) continue;
      for (int d = 0; d < p.spec.v_dim; ++d)
        ASSERT_EQ(found[p.out_at(i, 0, d)].bits, expected[p.out_at(i, 0, d)].bits)
            << "key " << t << " query " << i;
    }
  }
}

// Keys that a row does not see may hold anything in their own part; that is no part of its sum.
TEST_F(CudaPrefill, LaterKeysMayBeNan) {
  const Problem p({.heads = 1, .nope = 128, .v_dim = 128, .tokens = 200, .seq_len = 200});
  const std::vector<Bf16> expected = solve(p);
  for (const std::int64_t seen : {1, 63, 64, 65, 130}) {
    Problem poisoned = p;
    for (std::int64_t t = seen; t < 200; ++t) {
      std::fill_n(poisoned.kv.begin() + t * p.kv_stride(), p.spec.nope, kNan);
      std::fill_n(poisoned.k_rope.begin() + t * Problem::rope_stride(), kRopeDim, Bf16{0x7f80});
    }
    const std::vector<Bf16> found = solve(poisoned);
    const auto visible = static_cast<std::size_t>(seen * p.out_stride());
    EXPECT_TRUE(testing::same_bits(found.data(), expected.data(), visible)) << seen;
  }
}

TEST_F(CudaPrefill, HugeLogitsDoNotOverflow) {
  Problem p(
      {.heads = 1, .nope = 128, .v_dim = 128, .tokens = 150, .seq_len = 150, .logits = Logits::kLargeRope});
  p.scale = 1000;
  const std::vector<Bf16> out = solve(p);
  for (std::int64_t i = 0; i < 150; ++i) {
    for (int d = 0; d < p.spec.v_dim; ++d) ASSERT_TRUE(std::isfinite(to_float(out[p.out_at(i, 0, d)]))) << i;
  }
}

TEST_F(CudaPrefill, RepeatsBitForBit) {
  const Problem p({.heads = 16, .nope = 128, .v_dim = 128, .tokens = 1000, .seq_len = 1500});
  const std::vector<Bf16> first = solve(p);
  for (int i = 0; i < 20; ++i) ASSERT_EQ(first_difference(solve(p), first), -1) << i;
}

TEST_F(CudaPrefill, TakesAWholePromptOfManyTiles) {
  const Problem p({.heads = 5, .nope = 128, .v_dim = 128, .tokens = 8192, .seq_len = 8192});
  const std::vector<Bf16> out = solve(p);
  for (const std::int64_t i : {0, 1000, 4095, 4096, 8191}) expect_fp64(p, out, i, static_cast<int>(i % 5));
  expect_poison_elsewhere(p, out);
}

TEST_F(CudaPrefill, SlowLongContext) {
  const Problem p({.heads = 2, .nope = 128, .v_dim = 128, .tokens = 130, .seq_len = 256 * 1024});
  const std::vector<Bf16> out = solve(p);
  for (const std::int64_t i : {0, 64, 129}) expect_fp64(p, out, p.first + i, static_cast<int>(i % 2));
}

TEST_F(CudaPrefill, RefusesWhatItCannotRun) {
  const Problem p({.heads = 1, .nope = 128, .v_dim = 128, .tokens = 4, .seq_len = 8});
  const OnDevice<Bf16> memory(cuda(), poison<Bf16>(1 << 16));
  PrefillAttentionParams params =
      p.params(p.first, 8, memory.data(), memory.data(), memory.data(), memory.data());
  params.v = ConstTensorView(memory.data(), DType::kBF16, {8, 1, 12}, {128, 128, 1});
  params.out = TensorView(memory.data(), DType::kBF16, {4, 1, 12}, {128, 128, 1});
  EXPECT_NE(message_of([&] {
              cuda_ops::prefill_attention(params, nullptr);
            }).find("[prefill] qk_nope_head_dim and v_head_dim must be multiples of 8 up to 256"),
            std::string::npos);
  params = p.params(p.first, 8, memory.data(), memory.data(), memory.data() + 4, memory.data());
  EXPECT_NE(message_of([&] {
              cuda_ops::prefill_attention(params, nullptr);
            }).find("[prefill] q, k_nope, k_rope and v must have 16-byte aligned rows"),
            std::string::npos);
  params = p.params(p.first, 4, memory.data(), memory.data(), memory.data(), memory.data());
  params.k_rope = ConstTensorView(memory.data(), DType::kBF16, {3, kRopeDim});
  testing::expect_code(ErrorCode::kInternal, [&] { cuda_ops::prefill_attention(params, nullptr); });
}

}  // namespace
}  // namespace snapmla::test
