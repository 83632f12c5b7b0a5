// Prefill attention against fp64, and that a query's result is the same bits whatever chunk it came in.
#include "reference/prefill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "core/plain_ops.h"
#include "reference/ops.h"
#include "support/random_tensors.h"

namespace snapmla {
namespace {

using testing::fp32_sum_error;
using testing::kBf16Rounding;
using testing::random_bf16;
using testing::real;
using testing::same_bits;

// k_nope and v are halves of one buffer, as a kv_b projection leaves them; q has padded rows.
struct Problem {
  Problem(int tokens, int num_heads, int nope_dim, int v_size, float q_sigma)
      : seq_len(tokens),
        heads(num_heads),
        nope(nope_dim),
        v_dim(v_size),
        q(random_bf16(static_cast<std::size_t>(seq_len * q_stride()), 1, q_sigma)),
        kv(random_bf16(static_cast<std::size_t>(seq_len * heads * (nope + v_dim)), 2, 1, 0.3F)),
        k_rope(random_bf16(static_cast<std::size_t>(seq_len * kRopeDim), 3)) {}

  [[nodiscard]] int q_stride() const { return heads * (nope + kRopeDim) + 8; }
  [[nodiscard]] int kv_stride() const { return heads * (nope + v_dim); }

  // Queries [first, end) of the sequence, as one chunk.
  [[nodiscard]] std::vector<Bf16> run(int first, int end) const {
    std::vector<Bf16> out(static_cast<std::size_t>((end - first) * heads * v_dim), Bf16{0x7fff});
    const std::int64_t head_stride = nope + v_dim;
    reference_ops::plain_ops().prefill_attention(
        {.q = ConstTensorView(q.data() + first * q_stride(), DType::kBF16,
                              {end - first, heads, nope + kRopeDim}, {q_stride(), nope + kRopeDim, 1}),
         .k_nope =
             ConstTensorView(kv.data(), DType::kBF16, {end, heads, nope}, {kv_stride(), head_stride, 1}),
         .k_rope = ConstTensorView(k_rope.data(), DType::kBF16, {end, kRopeDim}),
         .v = ConstTensorView(kv.data() + nope, DType::kBF16, {end, heads, v_dim},
                              {kv_stride(), head_stride, 1}),
         .softmax_scale = scale,
         .out = TensorView(out.data(), DType::kBF16, {end - first, heads, v_dim})},
        {});
    return out;
  }

  int seq_len;
  int heads;
  int nope;
  int v_dim;
  float scale = 0.09F;
  std::vector<Bf16> q;
  std::vector<Bf16> kv;
  std::vector<Bf16> k_rope;
};

// Checks query i, head h of `out`, which starts at query `first`.
void expect_fp64(const Problem& p, const std::vector<Bf16>& out, int first, int i, int h) {
  std::vector<double> logit, magnitude;
  for (int t = 0; t <= i; ++t) {
    double sum = 0, size = 0;
    for (int d = 0; d < p.nope + kRopeDim; ++d) {
      const auto q_at = static_cast<std::size_t>(i * p.q_stride() + h * (p.nope + kRopeDim) + d);
      const double key =
          d < p.nope ? real(p.kv[static_cast<std::size_t>(t * p.kv_stride() + h * (p.nope + p.v_dim) + d)])
                     : real(p.k_rope[static_cast<std::size_t>(t * kRopeDim + d - p.nope)]);
      sum += real(p.q[q_at]) * key;
      size += std::fabs(real(p.q[q_at]) * key);
    }
    logit.push_back(real(p.scale) * sum);
    magnitude.push_back(real(p.scale) * size);
  }
  const double max = *std::max_element(logit.begin(), logit.end());
  const double logit_size = *std::max_element(magnitude.begin(), magnitude.end());
  double total = 0;
  for (double& value : logit) total += value = std::exp(value - max);
  // A logit's fp32 error is a relative error of its p; so are exp's own error and the roundings while
  // summing.
  const double p_error = fp32_sum_error(p.nope + kRopeDim + 1, logit_size) + fp32_sum_error(i / 64 + 72, 1);
  for (int d = 0; d < p.v_dim; ++d) {
    double expected = 0, size = 0;
    for (int t = 0; t <= i; ++t) {
      const double v =
          real(p.kv[static_cast<std::size_t>(t * p.kv_stride() + h * (p.nope + p.v_dim) + p.nope + d)]);
      expected += logit[static_cast<std::size_t>(t)] / total * v;
      size += logit[static_cast<std::size_t>(t)] / total * std::fabs(v);
    }
    const double got = real(out[static_cast<std::size_t>(((i - first) * p.heads + h) * p.v_dim + d)]);
    ASSERT_NEAR(got, expected, std::fabs(expected) * kBf16Rounding + 3 * p_error * size)
        << "query " << i << " head " << h << " dim " << d;
  }
}

TEST(PrefillAttention, MatchesFp64) {
  for (const int seq_len : {1, 2, 63, 64, 65, 130, 200}) {
    for (const float q_sigma : {0.0F, 1.0F, 8.0F}) {  // uniform, flat and peaked weights
      const Problem p(seq_len, 3, 40, 24, q_sigma);
      const std::vector<Bf16> out = p.run(0, seq_len);
      for (int i = 0; i < seq_len; i += i < 3 || i > seq_len - 4 ? 1 : 13) {
        for (int h = 0; h < p.heads; ++h) expect_fp64(p, out, 0, i, h);
      }
    }
  }
}

TEST(PrefillAttention, LateChunkMatchesFp64) {
  const Problem p(1500, 1, 64, 48, 4);
  const std::vector<Bf16> out = p.run(1400, 1500);
  for (const int i : {1400, 1407, 1408, 1409, 1450, 1499}) expect_fp64(p, out, 1400, i, 0);
}

TEST(PrefillAttention, ChunksChangeNoBit) {
  const Problem p(300, 2, 40, 40, 4);
  const std::vector<Bf16> whole = p.run(0, p.seq_len);
  const auto row = static_cast<std::ptrdiff_t>(p.heads) * p.v_dim;
  for (const int chunk : {1, 7, 33, 64, 100}) {
    for (int first = 0; first < p.seq_len; first += chunk) {
      const std::vector<Bf16> part = p.run(first, std::min(first + chunk, p.seq_len));
      ASSERT_TRUE(same_bits(part.data(), whole.data() + first * row, part.size()))
          << chunk << " at " << first;
    }
  }
}

TEST(PrefillAttention, LaterKeysAreNeverTouched) {
  const Problem clean(150, 2, 40, 24, 4);
  const std::vector<Bf16> expected = clean.run(0, 150);
  for (const int seen : {1, 63, 64, 65, 100}) {
    Problem poisoned = clean;
    std::fill(poisoned.kv.begin() + seen * clean.kv_stride(), poisoned.kv.end(), Bf16{0x7fc0});
    std::fill(poisoned.k_rope.begin() + seen * kRopeDim, poisoned.k_rope.end(), Bf16{0x7f80});
    const auto visible = static_cast<std::size_t>(seen * clean.heads * clean.v_dim);
    EXPECT_TRUE(same_bits(poisoned.run(0, 150).data(), expected.data(), visible)) << seen;
  }
}

TEST(PrefillAttention, HugeLogitsDoNotOverflow) {
  Problem p(100, 1, 40, 24, 1000);
  p.scale = 10;
  for (const Bf16 value : p.run(0, 100)) ASSERT_TRUE(std::isfinite(to_float(value)));
}

TEST(PrefillAttention, WrongShapesAreOurBug) {
  std::vector<Bf16> memory(4096);
  const ConstTensorView q(memory.data(), DType::kBF16, {3, 1, 80});
  const ConstTensorView k_nope(memory.data(), DType::kBF16, {2, 1, 16});
  const ConstTensorView k_rope(memory.data(), DType::kBF16, {2, kRopeDim});
  const TensorView out(memory.data(), DType::kBF16, {3, 1, 16});
  testing::expect_code(ErrorCode::kInternal, [&] {  // more queries than tokens
    reference_ops::plain_ops().prefill_attention(
        {.q = q, .k_nope = k_nope, .k_rope = k_rope, .v = k_nope, .softmax_scale = 1, .out = out}, {});
  });
}

}  // namespace
}  // namespace snapmla
