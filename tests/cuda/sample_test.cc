// sample on the GPU against the reference: the same tokens, but where the random number falls within 1e-9 of the border
// between two; their log-probabilities; rows without a softmax.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/plain_ops.h"
#include "core/sample_rule.h"
#include "cuda/plain_ops.h"
#include "gpu_test.h"
#include "support/random_tensors.h"

namespace snapmla::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();

struct Sampled {
  std::vector<std::int32_t> token;
  std::vector<float> logprob;
};

/// Rows of logits one behind the other, on a backend with `gap` elements of poison behind each.
Sampled sample(Backend& backend, const std::vector<float>& logits, const std::vector<SampleRow>& rows,
               std::int64_t gap = 0) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const std::int64_t vocab = n == 0 ? 100 : static_cast<std::int64_t>(logits.size()) / n;
  std::vector<float> spread = poison<float>(n * (vocab + gap));
  for (std::int64_t i = 0; i < n; ++i)
    std::copy_n(logits.begin() + i * vocab, vocab, spread.begin() + i * (vocab + gap));
  const OnDevice<float> logit(backend, spread);
  const OnDevice<SampleRow> row(backend, rows);
  const OnDevice<std::int32_t> token(backend, std::vector<std::int32_t>(rows.size() + 1, -7));
  const OnDevice<float> logprob(backend, std::vector<float>(rows.size() + 1, 7));
  const ConstTensorView logits_view(logit.data(), DType::kF32, {n, vocab}, {vocab + gap, 1});
  const ConstTensorView rows_view(row.data(), DType::kU8, {n, kSampleRowBytes});
  const TensorView token_view(token.data(), DType::kI32, {n});
  const TensorView logprob_view(logprob.data(), DType::kF32, {n});
  if (&backend == &reference()) {
    reference().plain_ops().sample(logits_view, rows_view, token_view, logprob_view, {});
  } else {
    cuda_ops::sample(logits_view, rows_view, token_view, logprob_view, nullptr);
  }
  Sampled result{.token = token.host(), .logprob = logprob.host()};
  EXPECT_EQ(result.token.back(), -7) << "written past the end";
  EXPECT_EQ(result.logprob.back(), 7) << "written past the end";
  result.token.pop_back();
  result.logprob.pop_back();
  return result;
}

/// Whether a rounding may lead to this token: by the rule at the head of reference/sample.h, give or take 1e-9.
bool is_on_a_border(const std::vector<float>& logits, const SampleRow& row, std::int32_t token) {
  constexpr double kBorder = 1e-9;
  const bool cut_k = row.top_k > 0 && row.top_k < static_cast<int>(logits.size());
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  if (cut_k || row.top_p < 1) {
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    if (cut_k) order.resize(row.top_k);
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  const auto mass = [&](int i) { return std::exp((logits[i] - largest) / row.temperature); };
  double sum = 0;
  for (const int i : order) sum += mass(i);
  double kept = 0;
  std::size_t num_kept = 0;
  while (num_kept < order.size() && (row.top_p == 1 || kept < row.top_p * sum)) {
    kept += mass(order[num_kept++]);
    if (row.top_p < 1 && std::abs(kept - row.top_p * sum) < kBorder * sum) return true;
  }
  double before = 0;
  for (std::size_t i = 0; i < num_kept; ++i) {
    const double through = before + mass(order[i]);
    if (order[i] == token) {
      const double target = uniform_at(row.seed, row.position) * kept;
      return target > before - kBorder * kept && target < through + kBorder * kept;
    }
    before = through;
  }
  return false;
}

// A logprob is largest - logit - ln sum. The sum's terms are fp32: their exponents are off by 2^-24 of the difference to
// the largest, 13 on average over what has mass in a vocabulary of 2^18 at most, their exponentials by 1 ulp, and three
// are added in fp32. So the sum is off by some 2^-20 at most, and its logarithm by as much; the rest is fp64, rounded to fp32.
void expect_near(float got, float want, std::size_t row) {
  if (std::isinf(want)) {
    EXPECT_EQ(got, want) << "row " << row;
    return;
  }
  EXPECT_LE(std::abs(got - want), 0x1p-20F + std::abs(want) * 0x1p-22F)
      << "row " << row << ": " << got << ", " << want;
}

void expect_same(const std::vector<float>& logits, const std::vector<SampleRow>& rows, std::int64_t gap = 0) {
  const Sampled want = sample(reference(), logits, rows, gap);
  const Sampled got = sample(cuda(), logits, rows, gap);
  const auto vocab = static_cast<std::ptrdiff_t>(logits.size() / std::max<std::size_t>(1, rows.size()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (got.token[i] == want.token[i]) {
      expect_near(got.logprob[i], want.logprob[i], i);
      continue;
    }
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(i) * vocab;
    const bool by_chance = rows[i].forced < 0 && rows[i].temperature > 0 &&
                           is_on_a_border({begin, begin + vocab}, rows[i], got.token[i]);
    EXPECT_TRUE(by_chance) << "row " << i << " of " << vocab << ": " << got.token[i] << ", " << want.token[i]
                           << " at temperature " << rows[i].temperature << " top_k " << rows[i].top_k
                           << " top_p " << rows[i].top_p;
  }
}

/// As a model's: a few tokens stand out.
std::vector<float> model_logits(std::size_t rows, std::size_t vocab, unsigned seed) {
  std::vector<float> logits = testing::random_floats(rows * vocab, seed, 2.5F, -3);
  const std::vector<float> peaks = testing::random_floats(rows * 8, seed + 1, 4, 10);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < 8; ++i) {
      logits[row * vocab + (i * 7919 + row * 31 + seed) % vocab] = peaks[row * 8 + i];
    }
  }
  return logits;
}

std::vector<SampleRow> repeated(const SampleRow& row, std::size_t count) {
  std::vector<SampleRow> rows(count, row);
  for (std::size_t i = 0; i < count; ++i) {
    rows[i].seed += 1000 * i;
    rows[i].position = 7 * i;
  }
  return rows;
}

const std::vector<std::size_t>& vocabs() {
  static const std::vector<std::size_t> all = {1,    2,    3,    5,    31,    32,     33,     127,
                                               1000, 1024, 1025, 4099, 32000, 102400, 129280, 163841};
  return all;
}

class CudaSample : public GpuTest {};

TEST_F(CudaSample, GreedyOfAnyVocabulary) {
  for (const std::size_t vocab : vocabs()) {
    SCOPED_TRACE(vocab);
    expect_same(model_logits(5, vocab, 1), repeated({}, 5));
    expect_same(model_logits(3, vocab, 2), repeated({}, 3), 4);
    expect_same(model_logits(3, vocab, 3), repeated({}, 3), 3);
  }
}

TEST_F(CudaSample, GreedyTakesTheLowestIndexAmongEquals) {
  constexpr std::size_t kVocab = 5000;
  std::vector<float> logits = testing::random_floats(4 * kVocab, 4);
  for (const std::size_t i : {77U, 4100U, 4999U}) logits[i] = 9;                                    // row 0
  for (std::size_t i = 0; i < kVocab; ++i) logits[kVocab + i] = i % 2 == 0 ? -0.0F : 0.0F;          // row 1
  for (std::size_t i = 0; i < kVocab; ++i) logits[2 * kVocab + i] = i < 4321 ? -kInfinity : -5.0F;  // row 2
  for (std::size_t i = 0; i < kVocab; ++i) logits[3 * kVocab + i] = -kLargest;                      // row 3
  const Sampled got = sample(cuda(), logits, repeated({}, 4));
  EXPECT_EQ(got.token, (std::vector<std::int32_t>{77, 0, 4321, 0}));
  expect_same(logits, repeated({}, 4));
}

TEST_F(CudaSample, ForcedTokensAreTakenAsTheyAre) {
  constexpr std::size_t kVocab = 3001;
  std::vector<float> logits = model_logits(6, kVocab, 5);
  logits[5 * kVocab + 8] = -kInfinity;
  std::vector<SampleRow> rows(6);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = {
        .temperature = static_cast<float>(i % 3), .top_k = 5, .forced = static_cast<std::int32_t>(600 * i)};
  }
  rows[5].forced = 8;
  const Sampled got = sample(cuda(), logits, rows);
  EXPECT_EQ(got.token, (std::vector<std::int32_t>{0, 600, 1200, 1800, 2400, 8}));
  EXPECT_EQ(got.logprob[5], -kInfinity);
  expect_same(logits, rows);
}

struct Cuts {
  int top_k;
  float top_p;
};

void expect_same_with(const std::vector<float>& logits, std::size_t rows, float temperature,
                      const Cuts& cuts) {
  const std::size_t vocab = logits.size() / rows;
  const int top_k = cuts.top_k < 0 ? static_cast<int>(vocab) + cuts.top_k : cuts.top_k;
  if (top_k < 0) return;
  expect_same(logits, repeated({.temperature = temperature,
                                .top_k = top_k,
                                .top_p = cuts.top_p,
                                .seed = vocab + 10 * static_cast<std::uint64_t>(top_k)},
                               rows));
}

TEST_F(CudaSample, EqualsTheReferenceWithAndWithoutCuts) {
  for (const std::size_t vocab : vocabs()) {
    if (vocab > 5000) continue;
    const std::vector<float> logits = model_logits(12, vocab, 6);
    for (const float temperature : {0.3F, 1.0F, 2.5F}) {
      for (const int top_k : {0, 1, 7, 50, -1, 5003}) {
        for (const float top_p : {1.0F, 0.999999F, 0.9F, 0.5F, 1e-6F})
          expect_same_with(logits, 12, temperature, {top_k, top_p});
      }
    }
  }
}

TEST_F(CudaSample, EqualsTheReferenceInLargeVocabularies) {
  for (const std::size_t vocab : vocabs()) {
    if (vocab < 5000) continue;
    const std::vector<float> logits = model_logits(3, vocab, 20);
    for (const Cuts& cuts : {Cuts{0, 1}, Cuts{50, 1}, Cuts{0, 0.95F}, Cuts{-1, 0.999F}, Cuts{2000, 0.9F}}) {
      expect_same_with(logits, 3, 0.7F, cuts);
      expect_same_with(logits, 3, 4, cuts);
    }
  }
}

TEST_F(CudaSample, FollowsTheReferenceThroughManyPositions) {
  constexpr std::size_t kVocab = 300;
  constexpr std::size_t kDraws = 400;
  const std::vector<float> one = testing::random_floats(kVocab, 7, 2);
  std::vector<float> logits;
  for (std::size_t i = 0; i < kDraws; ++i) logits.insert(logits.end(), one.begin(), one.end());
  for (const int top_k : {0, 40}) {
    for (const float top_p : {1.0F, 0.8F}) {
      expect_same(logits, repeated({.temperature = 1.3F, .top_k = top_k, .top_p = top_p, .seed = 9}, kDraws));
    }
  }
}

// Few different logits, so that cuts fall among equals, where the index decides.
TEST_F(CudaSample, TiesRankByIndex) {
  for (const std::size_t vocab : {40U, 1000U, 9000U}) {
    std::vector<float> logits = testing::random_floats(20 * vocab, 8);
    for (float& logit : logits) logit = std::round(logit);
    std::fill_n(logits.begin(), 5 * vocab, 1.5F);  // rows of equals
    for (std::size_t i = 0; i < logits.size(); i += 3) logits[i] = -logits[i];
    for (const int top_k : {0, 3, 17, static_cast<int>(vocab) - 1}) {
      for (const float top_p : {1.0F, 0.7F}) {
        expect_same(logits, repeated({.temperature = 1, .top_k = top_k, .top_p = top_p, .seed = 10}, 20));
      }
    }
  }
}

TEST_F(CudaSample, MaskedTokensNeverCome) {
  constexpr std::size_t kVocab = 5000;
  std::vector<float> logits = model_logits(30, kVocab, 11);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (i % 10 != 3) logits[i] = -kInfinity;
  }
  for (const int top_k : {0, 100, 2000}) {
    for (const float top_p : {1.0F, 0.99F}) {
      const std::vector<SampleRow> rows =
          repeated({.temperature = 5, .top_k = top_k, .top_p = top_p, .seed = 12}, 30);
      for (const std::int32_t token : sample(cuda(), logits, rows).token) EXPECT_EQ(token % 10, 3);
      expect_same(logits, rows);
    }
  }
}

TEST_F(CudaSample, ExtremeLogitsAndTemperatures) {
  constexpr std::size_t kVocab = 1500;
  std::vector<float> logits = testing::random_floats(4 * kVocab, 13);
  for (std::size_t i = 0; i < kVocab; ++i) {
    logits[i] *= 1e38F;                                                           // row 0
    logits[kVocab + i] = -std::ldexp(1.0F, static_cast<int>(i % 270) - 149 + 7);  // row 1: every exponent
    logits[2 * kVocab + i] = 1e-42F * static_cast<float>(i % 97);                 // row 2: subnormals
    logits[3 * kVocab + i] = i % 2 == 0 ? kLargest : -kLargest;                   // row 3
  }
  for (const float temperature : {1e-45F, 1e-38F, 1e-3F, 1.0F, 1e3F, 1e30F, kLargest}) {
    for (const int top_k : {0, 20}) {
      for (const float top_p : {1.0F, 0.6F}) {
        expect_same(logits,
                    repeated({.temperature = temperature, .top_k = top_k, .top_p = top_p, .seed = 14}, 4));
      }
    }
  }
}

TEST_F(CudaSample, ARowWithoutSoftmaxGetsNoTokenAndSpoilsNoOther) {
  for (const std::size_t vocab : {3U, 1000U, 9000U}) {
    std::vector<float> logits = model_logits(8, vocab, 15);
    const auto row = [&](std::size_t i) { return logits.begin() + static_cast<std::ptrdiff_t>(i * vocab); };
    *(row(1) + 1) = kNan;
    *(row(2) + static_cast<std::ptrdiff_t>(vocab) - 1) = kInfinity;
    std::fill_n(row(3), vocab, -kInfinity);
    std::fill_n(row(4), vocab, kNan);
    std::fill_n(row(5), vocab, -kInfinity);
    *row(5) = -kNan;
    std::fill_n(row(6), vocab, kInfinity);
    for (const SampleRow& way :
         {SampleRow{}, SampleRow{.temperature = 1}, SampleRow{.temperature = 1, .top_k = 2},
          SampleRow{.temperature = 1, .top_p = 0.9F}, SampleRow{.forced = 0}}) {
      const Sampled got = sample(cuda(), logits, std::vector<SampleRow>(8, way));
      for (std::size_t i = 0; i < 8; ++i) {
        if (i == 0 || i == 7) {
          const Sampled want = sample(reference(), {row(i), row(i + 1)}, {way});
          EXPECT_EQ(got.token[i], want.token[0]);
          expect_near(got.logprob[i], want.logprob[0], i);
        } else {
          EXPECT_EQ(got.token[i], -1) << "row " << i;
          EXPECT_TRUE(std::isnan(got.logprob[i])) << "row " << i;
        }
      }
    }
  }
}

TEST_F(CudaSample, TakesManyRowsAndNone) {
  std::vector<SampleRow> rows = repeated({.seed = 16}, 5000);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].temperature = static_cast<float>(i % 3);
    rows[i].top_k = i % 4 == 1 ? 5 : 0;
    rows[i].top_p = i % 5 == 2 ? 0.9F : 1;
    if (i % 7 == 3) rows[i].forced = static_cast<std::int32_t>(i % 60);
  }
  const std::vector<float> logits = model_logits(rows.size(), 60, 17);
  expect_same(logits, rows);
  EXPECT_TRUE(sample(cuda(), {}, {}).token.empty());

  // Each as it is alone, bit for bit.
  const Sampled together = sample(cuda(), logits, rows);
  for (std::size_t i = 0; i < 40; ++i) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(60 * i);
    const Sampled alone = sample(cuda(), {begin, begin + 60}, {rows[i]});
    EXPECT_EQ(alone.token[0], together.token[i]);
    EXPECT_EQ(alone.logprob[0], together.logprob[i]);
  }
}

// Sums in bins come from atomics in any order, yet a row repeats bit for bit.
TEST_F(CudaSample, Repeats) {
  const std::vector<float> logits = model_logits(16, 102400, 18);
  const std::vector<SampleRow> rows =
      repeated({.temperature = 1.5F, .top_k = 5000, .top_p = 0.97F, .seed = 19}, 16);
  const Sampled first = sample(cuda(), logits, rows);
  for (int i = 0; i < 3; ++i) {
    const Sampled again = sample(cuda(), logits, rows);
    EXPECT_EQ(again.token, first.token);
    EXPECT_EQ(again.logprob, first.logprob);
  }
}

}  // namespace
}  // namespace snapmla::test
