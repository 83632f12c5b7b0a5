// The list of decode cases that every backend's tests share, and how a solution is held against the formula.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "core/e4m3.h"
#include "core/parallel.h"
#include "support/attention_problem.h"

namespace snapmla::test {

template <class T>
const T& pick(const std::vector<T>& values, std::size_t i) {
  return values[i % values.size()];
}

inline const std::vector<int> kLengths = {0, 1, 63, 64, 65, 200, 700};
inline const std::vector<int> kHeads = {1, 5, 16, 20, 64, 128};
inline const std::vector<int> kQueryTokens = {1, 2, 4};
inline const std::vector<Latents> kLatents = {Latents::kMean, Latents::kZeroMean, Latents::kMean,
                                              Latents::kZero};
inline const std::vector<Ropes> kRopes = {Ropes::kNormal, Ropes::kOutliers};
inline const std::vector<Logits> kLogits = {Logits::kFlat, Logits::kPeaked, Logits::kUniform, Logits::kSink};
inline const std::vector<PageLayout> kLayouts = {PageLayout::kRecords, PageLayout::kPadded,
                                                 PageLayout::kPlanes};

// Every value of every list occurs; pairs are sampled by walking the lists with a seeded generator once each
// has come round.
inline std::vector<AttentionCase> sampled_cases() {
  std::vector<AttentionCase> cases;
  std::mt19937_64 random(20261123);
  constexpr std::size_t kCases = 48;
  for (std::size_t i = 0; i < kCases; ++i) {
    const auto at = [&](std::size_t round) { return i < round ? i : random(); };
    AttentionCase c;
    c.seq_lens = {pick(kLengths, at(7)), pick(kLengths, random()), pick(kLengths, random())};
    c.heads = pick(kHeads, at(6));
    c.s = pick(kQueryTokens, at(3));
    c.format = i % 4 == 3 ? CacheFormat::kBf16 : CacheFormat::kFp8;
    c.rule = i % 3 == 2 ? ScaleRule::kAmax : ScaleRule::kPowerOfTwo;
    c.latents = pick(kLatents, at(4));
    if (c.latents == Latents::kZero)
      c.rule = ScaleRule::kPowerOfTwo;  // the paper's rule overflows there: see below
    c.ropes = pick(kRopes, at(2));
    c.logits = pick(kLogits, at(4));
    c.causal = i % 5 != 4;
    c.layout = pick(kLayouts, i);
    c.num_workers = pick<int>({0, 1, 2, 7}, random());
    c.fixed_split_tokens = pick<int>({0, 0, 64, 256}, random());
    c.seed = i;
    cases.push_back(c);
  }
  return cases;
}

inline double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  return std::sqrt(sum);
}

/// What the rows of one problem come to: error and gain over all heads of all queries that see something.
struct Accuracy {
  double relative_error = 0;  ///< |out - formula| / |formula|
  double gain = 0;            ///< <out, formula> / <formula, formula>
};

/// `check` is called with each row's index, formula and |out - formula|.
inline Accuracy compare(const Problem& problem, const Solution& solution,
                        const std::function<void(std::size_t, const FormulaRow&, double)>& check) {
  const AttentionCase& spec = problem.spec;
  const std::size_t rows = problem.kv.size() * spec.s * spec.heads;
  std::vector<FormulaRow> formula(rows);
  parallel_for(static_cast<std::int64_t>(rows), 1, [&](std::int64_t row) {
    const std::int64_t token = row / spec.heads;
    formula[row] = formula_row(problem, token / spec.s, static_cast<int>(token % spec.s),
                               static_cast<int>(row % spec.heads));
  });
  double error_norm = 0;
  double product = 0;
  double formula_norm = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    double squared = 0;
    for (std::size_t d = 0; d < kLatentDim; ++d) {
      const double out = solution.out[row * kLatentDim + d];
      const double expected = formula[row].out[d];
      squared += (out - expected) * (out - expected);
      product += out * expected;
      formula_norm += expected * expected;
    }
    error_norm += squared;
    check(row, formula[row], std::sqrt(squared));
  }
  return {.relative_error = std::sqrt(error_norm / formula_norm), .gain = product / formula_norm};
}

/// How far a backend's own arithmetic may be off, relative to magnitudes before cancellation; 0 for the
/// reference, whose sums are wide.
struct Arithmetic {
  double logits = 0;   ///< of FormulaRow::magnitude
  double outputs = 0;  ///< of FormulaRow::weight
};

inline void expect_within_format_error(const Problem& problem, const Solution& solution,
                                       const Arithmetic& arithmetic = {}) {
  SCOPED_TRACE(::testing::PrintToString(problem.spec));
  compare(problem, solution, [&](std::size_t row, const FormulaRow& formula, double error) {
    const float lse = solution.lse[row];
    if (std::isinf(formula.lse)) {
      EXPECT_EQ(error, 0) << "row " << row << " sees nothing and must be zero";
      EXPECT_EQ(lse, -std::numeric_limits<float>::infinity()) << "row " << row;
      return;
    }
    const double logit_error = arithmetic.logits * formula.magnitude;
    // 512 dims average out: four deviations are never reached. lse is one number: six. 1e-6: fp32 results.
    EXPECT_LE(error, 4 * formula.out_error + 1e-6 * norm(formula.out) + logit_error * formula.spread +
                         arithmetic.outputs * formula.weight)
        << "row " << row;
    EXPECT_LE(std::abs(lse - formula.lse),
              formula.lse_bias + 6 * formula.lse_error + 2e-6 * (1 + std::abs(formula.lse)) + logit_error)
        << "row " << row;
  });
}

/// The same problem with every latent already an e4m3 code times its scale: then only P is quantized on the
/// way.
inline Problem with_quantized_inputs(Problem problem) {
  const auto quantize = [](Bf16* row) {
    float amax = 0;
    for (int d = 0; d < kLatentDim; ++d) amax = std::max(amax, std::abs(to_float(row[d])));
    const float scale = quantization_scale(amax);
    for (int d = 0; d < kLatentDim; ++d)
      row[d] = to_bf16(to_float(to_e4m3(to_float(row[d]) / scale)) * scale);
  };
  for (auto& tokens : problem.kv) {
    for (std::size_t i = 0; i < tokens.size(); i += kTokenDim) quantize(&tokens[i]);
  }
  for (std::size_t i = 0; i < problem.q_latent.size(); i += kLatentDim) quantize(&problem.q_latent[i]);
  return problem;
}

/// A problem's query once dense, once as batched products over heads leave it: one tensor [s * heads][batch] of
/// latent and rope side by side, with a gap. Reading rows elsewhere must not change a bit.
inline void expect_the_same_from_strided_rows(Backend& backend, const Problem& problem) {
  SCOPED_TRACE(::testing::PrintToString(problem.spec));
  Decoder decoder(backend, problem);
  decoder.enqueue({});
  const Solution dense = decoder.solution();
  DecodeParams params = decoder.decode_params();
  const std::int64_t batch = params.q_latent.dim(0);
  const std::int64_t heads = params.q_latent.dim(2);
  const std::int64_t rows = params.q_latent.dim(1) * heads;
  const std::int64_t latent_bytes = kLatentDim * size_of(params.q_latent.dtype());
  const std::int64_t rope_bytes = kRopeDim * size_of(DType::kBF16);
  const std::int64_t pitch = latent_bytes + rope_bytes + 16;
  const OnDevice<std::uint8_t> wide(backend, poison<std::uint8_t>(rows * batch * pitch));
  const auto move = [&](ConstTensorView& q, std::int64_t row_bytes, std::int64_t at) {
    const auto* from = q.as<std::uint8_t>();
    for (std::int64_t i = 0; i < batch * rows; ++i)
      backend.copy(wide.data() + (i % rows * batch + i / rows) * pitch + at, from + i * row_bytes, row_bytes,
                   CopyKind::kDeviceToDevice, {});
    const std::int64_t request = pitch / size_of(q.dtype());
    q = {wide.data() + at,
         q.dtype(),
         {batch, rows / heads, heads, q.dim(3)},
         {request, heads * batch * request, batch * request, 1}};
  };
  move(params.q_latent, latent_bytes, 0);
  move(params.q_rope, rope_bytes, latent_bytes);
  decoder.poison_outputs({});
  decode(backend, params, {});
  const Solution strided = decoder.solution();
  EXPECT_EQ(std::memcmp(dense.out.data(), strided.out.data(), dense.out.size() * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(dense.lse.data(), strided.lse.data(), dense.lse.size() * sizeof(float)), 0);
}

inline Accuracy accuracy_at(Backend& backend, int seq_len, Logits logits, int heads) {
  const Problem problem = with_quantized_inputs(
      make_problem({.seq_lens = {seq_len}, .heads = heads, .logits = logits, .seed = 5}));
  return compare(problem, solve(backend, problem), [](std::size_t, const FormulaRow&, double) {});
}

}  // namespace snapmla::test
