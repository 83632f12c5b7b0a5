#include "reference/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "core/parallel.h"
#include "reference/block_product.h"
#include "reference/linear.h"

namespace snapmla::reference_ops {
namespace {

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// The index of the largest logit, the lowest among equals; throws on what has no softmax.
int checked_argmax(const float* logits, int vocab, std::int64_t row) {
  int best = 0;
  for (int i = 0; i < vocab; ++i) {
    SNAPMLA_REQUIRE(logits[i] < std::numeric_limits<float>::infinity(), "sample",
                    "logits must be numbers below infinity; got ", logits[i], " for token ", i, " in row ",
                    row);
    if (logits[i] > logits[best]) best = i;
  }
  SNAPMLA_REQUIRE(std::isfinite(logits[best]), "sample", "a row of logits must have a finite one; row ", row,
                  " has none");
  return best;
}

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

double uniform_at(std::uint64_t seed, std::uint64_t position) {
  constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;
  const std::uint64_t bits = mix(mix(seed + kGolden) + (position + 1) * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

void sample(const ConstTensorView& logits, const std::vector<SampleRow>& rows, const TensorView& token,
            const TensorView& logprob) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto vocab = static_cast<int>(logits.dim(1));
  SNAPMLA_ASSERT(is_tensor(logits, DType::kF32, 2) && logits.dim(0) >= n && vocab >= 1);
  SNAPMLA_ASSERT(is_tensor(token, DType::kI32, 1) && token.dim(0) >= n);
  SNAPMLA_ASSERT(is_tensor(logprob, DType::kF32, 1) && logprob.dim(0) >= n);
  for (const SampleRow& row : rows) {
    SNAPMLA_ASSERT(std::isfinite(row.temperature) && row.temperature >= 0);
    SNAPMLA_ASSERT(row.top_k >= 0 && row.top_p > 0 && row.top_p <= 1);
  }
  parallel_for(n, grain_of(std::int64_t{vocab} * 32), [&](std::int64_t i) {
    const float* row_logits = logits.as<float>() + i * logits.stride(0);
    const int argmax = checked_argmax(row_logits, vocab, i);
    const int chosen = choose(rows[static_cast<std::size_t>(i)], row_logits, vocab, argmax);
    double sum = 0;
    for (int v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row_logits[v]) - row_logits[argmax]);
    token.as<std::int32_t>()[i] = chosen;
    logprob.as<float>()[i] =
        static_cast<float>(static_cast<double>(row_logits[chosen]) - row_logits[argmax] - std::log(sum));
  });
}

}  // namespace snapmla::reference_ops
