#include "study/attention_rows.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/bf16.h"
#include "core/check.h"
#include "core/parallel.h"
#include "eval_stats.h"
#include "reference/multiversion.h"

namespace snapmla::apps {
namespace {

constexpr std::size_t kLatent = kLatentDim;
constexpr std::size_t kRope = kRopeDim;
constexpr std::size_t kRow = kTokenDim;

/// In fp64, where products of fp32 numbers are exact: 8 lanes in a fixed order.
SNAPMLA_MULTIVERSION double dot(const float* a, const float* b) {
  constexpr std::size_t kLanes = 8;
  std::array<double, kLanes> lane{};
  for (std::size_t d = 0; d < kRow; d += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l)
      lane[l] += static_cast<double>(a[d + l]) * static_cast<double>(b[d + l]);
  }
  double sum = 0;
  for (const double partial : lane) sum += partial;
  return sum;
}

SNAPMLA_MULTIVERSION void add_scaled(double weight, const float* value, double* out) {
  for (std::size_t d = 0; d < kLatent; ++d) out[d] += weight * static_cast<double>(value[d]);
}

void attend_row(const float* query, const float* keys, int sees, double softmax_scale, double* out) {
  std::vector<double> logit(static_cast<std::size_t>(sees));
  for (std::size_t t = 0; t < logit.size(); ++t) logit[t] = softmax_scale * dot(query, keys + t * kRow);
  const double max = *std::max_element(logit.begin(), logit.end());
  double sum = 0;
  for (double& x : logit) {
    x = std::exp(x - max);
    sum += x;
  }
  for (std::size_t t = 0; t < logit.size(); ++t) add_scaled(logit[t] / sum, keys + t * kRow, out);
}

/// Normal numbers that are the same on every machine: the sum of 12 uniform ones, less 6.
class Normal {
 public:
  explicit Normal(std::uint64_t seed) : random_(seed) {}
  float operator()() {
    constexpr int kTerms = 12;
    double sum = -kTerms / 2.0;
    for (int i = 0; i < kTerms; ++i) sum += static_cast<double>(random_.next() >> 11U) * 0x1p-53;
    return static_cast<float>(sum);
  }

 private:
  Random random_;
};

/// What a synthetic cache is made from.
struct Recipe {
  float latent_size = 2;
  double content_nats = 1.2;                  ///< deviation of the logits' content part
  std::array<double, kRope / 2> amplitude{};  ///< of each rope pair's keys
  std::array<double, kRope / 2> nats{};       ///< what each pair gives to a logit at most
};

Recipe recipe_of(Shape shape) {
  constexpr double kLargest = 1000;
  constexpr std::size_t kSlowPairs = 4;
  constexpr double kSlowNats = 20;
  Recipe recipe;
  for (std::size_t i = 0; i < recipe.amplitude.size(); ++i) {
    const auto at = static_cast<double>(i) / static_cast<double>(recipe.amplitude.size() - 1);
    recipe.amplitude[i] = std::pow(kLargest, at);
    recipe.nats[i] = i + kSlowPairs >= recipe.nats.size() ? kSlowNats : 0.3;
  }
  if (shape == Shape::kUniform) {
    recipe.content_nats = 0.05;
    recipe.amplitude.fill(1);
    recipe.nats.fill(0);
  }
  return recipe;
}

/// The angle of pair i at a position: slow ones hardly turn within any context.
double angle(std::size_t pair, int position) {
  return position * std::pow(1e6, -static_cast<double>(pair) / (kRope / 2.0));
}

void add_key(const Recipe& recipe, const SyntheticOptions& options, const std::vector<float>& mean, int t,
             Normal& normal, std::vector<Bf16>& keys) {
  constexpr int kOutlierEvery = 64;
  const bool outlier = options.shape == Shape::kOutlier && t % kOutlierEvery == 0;
  for (std::size_t d = 0; d < kLatent; ++d) {
    float value = recipe.latent_size * (mean[d] + normal());
    if (outlier)
      value = d == 7 ? 1.4F * recipe.latent_size * std::sqrt(static_cast<float>(kLatent)) : value / 64;
    keys.push_back(to_bf16(value));
  }
  for (std::size_t i = 0; i < kRope / 2; ++i) {
    const double size = recipe.amplitude[i] * (1 + 0.02 * static_cast<double>(normal()));
    keys.push_back(to_bf16(static_cast<float>(size * std::cos(angle(i, t)))));
    keys.push_back(to_bf16(static_cast<float>(size * std::sin(angle(i, t)))));
  }
}

void add_query(const Recipe& recipe, float softmax_scale, int position, Normal& normal,
               std::vector<Bf16>& queries) {
  const double content = recipe.content_nats / (static_cast<double>(softmax_scale * recipe.latent_size) *
                                                std::sqrt(static_cast<double>(kLatent)));
  for (std::size_t d = 0; d < kLatent; ++d)
    queries.push_back(to_bf16(static_cast<float>(content) * normal()));
  for (std::size_t i = 0; i < kRope / 2; ++i) {
    const double size = recipe.nats[i] / (static_cast<double>(softmax_scale) * recipe.amplitude[i]);
    queries.push_back(to_bf16(static_cast<float>(size * std::cos(angle(i, position)))));
    queries.push_back(to_bf16(static_cast<float>(size * std::sin(angle(i, position)))));
  }
}

/// Moves token 0's latent along every query's content part until its logit stands `nats` above its own.
void add_sink(AttentionRows& rows) {
  constexpr double kSinkNats = 8;
  std::vector<double> direction(kLatent);
  double norm = 0;
  for (std::size_t row = 0; row < rows.num_rows(); ++row) {
    for (std::size_t d = 0; d < kLatent; ++d)
      direction[d] += static_cast<double>(to_float(rows.queries[row * kRow + d]));
  }
  for (std::size_t row = 0; row < rows.num_rows(); ++row) {
    for (std::size_t d = 0; d < kLatent; ++d)
      norm += direction[d] * static_cast<double>(to_float(rows.queries[row * kRow + d]));
  }
  const double length =
      kSinkNats * static_cast<double>(rows.num_rows()) / (static_cast<double>(rows.softmax_scale) * norm);
  for (std::size_t d = 0; d < kLatent; ++d) {
    const double moved = static_cast<double>(to_float(rows.keys[d])) + length * direction[d];
    rows.keys[d] = to_bf16(static_cast<float>(moved));
  }
}

}  // namespace

std::vector<float> widen(const std::vector<Bf16>& values) {
  std::vector<float> wide(values.size());
  std::transform(values.begin(), values.end(), wide.begin(), [](Bf16 x) { return to_float(x); });
  return wide;
}

std::vector<double> attend(const AttentionRows& rows, const std::vector<float>& queries,
                           const std::vector<float>& keys) {
  SNAPMLA_ASSERT(queries.size() == rows.queries.size() && keys.size() == rows.keys.size());
  std::vector<double> out(rows.num_rows() * kLatent);
  parallel_for(static_cast<std::int64_t>(rows.num_rows()), 1, [&](std::int64_t i) {
    const auto row = static_cast<std::size_t>(i);
    attend_row(queries.data() + row * kRow, keys.data(),
               rows.sees[row / static_cast<std::size_t>(rows.heads)], static_cast<double>(rows.softmax_scale),
               out.data() + row * kLatent);
  });
  return out;
}

const char* to_string(Shape shape) {
  switch (shape) {
    case Shape::kTails:
      return "tails";
    case Shape::kSink:
      return "sink";
    case Shape::kUniform:
      return "uniform";
    case Shape::kOutlier:
      return "outlier";
  }
  return "unknown";
}

AttentionRows make_synthetic(const SyntheticOptions& options) {
  SNAPMLA_ASSERT(options.tokens >= options.steps);
  const Recipe recipe = recipe_of(options.shape);
  AttentionRows rows{.source = to_string(options.shape),
                     .softmax_scale = 1 / std::sqrt(192.0F),  // DeepSeek-V3's un-absorbed head: 128 + 64
                     .heads = options.heads};
  Normal normal(options.seed);
  std::vector<float> mean(kLatent);
  for (float& x : mean) x = normal();
  for (int t = 0; t < options.tokens; ++t) add_key(recipe, options, mean, t, normal, rows.keys);
  for (int step = 0; step < options.steps; ++step) {
    rows.sees.push_back(options.tokens - options.steps + 1 + step);
    for (int head = 0; head < options.heads; ++head)
      add_query(recipe, rows.softmax_scale, rows.sees.back() - 1, normal, rows.queries);
  }
  if (options.shape == Shape::kSink) add_sink(rows);
  return rows;
}

}  // namespace snapmla::apps
