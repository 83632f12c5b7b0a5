#include "reference/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "core/sample_rule.h"
#include "reference/block_product.h"
#include "reference/linear.h"

namespace snapmla::reference_ops {
namespace {

// The tokens a row may choose, most likely first where a cut needs the order, and their unnormalised
// probabilities.
struct Candidates {
  std::vector<int> token;
  std::vector<double> p;
};

Candidates candidates_of(const SampleRow& row, const float* logits, int vocab, float largest) {
  Candidates c;
  c.token.resize(static_cast<std::size_t>(vocab));
  std::iota(c.token.begin(), c.token.end(), 0);
  const bool cut_k = row.top_k > 0 && row.top_k < vocab;
  if (cut_k || row.top_p < 1) {
    const auto more_likely = [logits](int a, int b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    };
    const auto kept = c.token.begin() + (cut_k ? row.top_k : vocab);
    std::partial_sort(c.token.begin(), kept, c.token.end(), more_likely);
    c.token.erase(kept, c.token.end());
  }
  double sum = 0;
  for (const int token : c.token) {
    c.p.push_back(std::exp((static_cast<double>(logits[token]) - largest) / row.temperature));
    sum += c.p.back();
  }
  if (row.top_p < 1) {
    double reached = 0;
    std::size_t kept = 0;
    while (kept < c.p.size() && reached < row.top_p * sum) reached += c.p[kept++];
    c.token.resize(kept);
    c.p.resize(kept);
  }
  return c;
}

int choose(const SampleRow& row, const float* logits, int vocab, int argmax) {
  if (row.forced >= 0) return row.forced;
  if (row.temperature == 0) return argmax;
  const Candidates c = candidates_of(row, logits, vocab, logits[argmax]);
  const double target = uniform_at(row.seed, row.position) * std::accumulate(c.p.begin(), c.p.end(), 0.0);
  double reached = 0;
  for (std::size_t i = 0; i < c.p.size(); ++i) {
    reached += c.p[i];
    if (reached > target) return c.token[i];
  }
  return argmax;  // u < 1 keeps the target below the sum, so only rounding could lead here
}

}  // namespace

void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
            const TensorView& logprob) {
  const std::int64_t n = rows.dim(0);
  const auto vocab = static_cast<int>(logits.dim(1));
  SNAPMLA_ASSERT(is_tensor(logits, DType::kF32, 2) && logits.dim(0) >= n && vocab >= 1);
  SNAPMLA_ASSERT(is_tensor(rows, DType::kU8, 2) && rows.dim(1) == kSampleRowBytes && rows.is_contiguous());
  SNAPMLA_ASSERT(is_tensor(token, DType::kI32, 1) && token.dim(0) >= n);
  SNAPMLA_ASSERT(is_tensor(logprob, DType::kF32, 1) && logprob.dim(0) >= n);
  const auto* row = rows.as<SampleRow>();
  for (std::int64_t i = 0; i < n; ++i) {
    SNAPMLA_ASSERT(std::isfinite(row[i].temperature) && row[i].temperature >= 0);
    SNAPMLA_ASSERT(row[i].top_k >= 0 && row[i].top_p > 0 && row[i].top_p <= 1);
    SNAPMLA_ASSERT(row[i].forced >= -1 && row[i].forced < vocab);
  }
  parallel_for(n, grain_of(std::int64_t{vocab} * 32), [&](std::int64_t i) {
    const float* row_logits = logits.as<float>() + i * logits.stride(0);
    require_softmax(row_logits, vocab, i);
    const auto argmax = static_cast<int>(std::max_element(row_logits, row_logits + vocab) - row_logits);
    const int chosen = choose(row[i], row_logits, vocab, argmax);
    double sum = 0;
    for (int v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row_logits[v]) - row_logits[argmax]);
    token.as<std::int32_t>()[i] = chosen;
    logprob.as<float>()[i] =
        static_cast<float>(static_cast<double>(row_logits[chosen]) - row_logits[argmax] - std::log(sum));
  });
}

}  // namespace snapmla::reference_ops
