#include "eval_stats.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"

namespace snapmla::apps {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double log_sum_exp(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - largest);
  return largest + std::log(sum);
}

auto first_largest(const std::vector<float>& logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

}  // namespace

void ClusteredMean::add(int cluster, double x) {
  Cluster& c = clusters_[cluster];
  c.sum += x;
  ++c.count;
}

Mean ClusteredMean::result() const {
  double sum = 0;
  std::int64_t count = 0;
  for (const auto& [_, c] : clusters_) {
    sum += c.sum;
    count += c.count;
  }
  if (count == 0) return {.value = kNaN, .standard_error = kNaN, .count = 0};
  const auto n = static_cast<double>(count);
  const double mean = sum / n;
  double squares = 0;
  for (const auto& [_, c] : clusters_) {
    const double residual = c.sum - static_cast<double>(c.count) * mean;
    squares += residual * residual;
  }
  const auto groups = static_cast<double>(clusters_.size());
  const double error = clusters_.size() < 2 ? kNaN : std::sqrt(groups / (groups - 1) * squares) / n;
  return {.value = mean, .standard_error = error, .count = count};
}

double negative_log_likelihood(const std::vector<float>& logits, std::int32_t token) {
  return log_sum_exp(logits) - static_cast<double>(logits.at(static_cast<std::size_t>(token)));
}

TokenScore score_both(const std::vector<float>& bf16, const std::vector<float>& fp8, std::int32_t token) {
  SNAPMLA_ASSERT(bf16.size() == fp8.size() && !bf16.empty());
  const double norm_bf16 = log_sum_exp(bf16);
  const double norm_fp8 = log_sum_exp(fp8);
  double kl = 0;
  for (std::size_t v = 0; v < bf16.size(); ++v) {
    const double p = static_cast<double>(bf16[v]) - norm_bf16;
    kl += std::exp(p) * (p - (static_cast<double>(fp8[v]) - norm_fp8));
  }
  return {.nll_bf16 = norm_bf16 - static_cast<double>(bf16.at(static_cast<std::size_t>(token))),
          .nll_fp8 = norm_fp8 - static_cast<double>(fp8.at(static_cast<std::size_t>(token))),
          .kl = kl,
          .same_top1 = first_largest(bf16) == first_largest(fp8)};
}

void Figures::add(const TokenScore& score) {
  ++tokens_;
  if (score.nll_bf16) nll_bf16_.add(score.sequence, *score.nll_bf16);
  if (score.nll_fp8) nll_fp8_.add(score.sequence, *score.nll_fp8);
  if (!score.nll_bf16 || !score.nll_fp8) return;
  const double difference = *score.nll_fp8 - *score.nll_bf16;
  nll_difference_.add(score.sequence, difference);
  kl_.add(score.sequence, score.kl);
  top1_.add(score.sequence, score.same_top1 ? 1 : 0);
  // Written so that a NaN difference is kept, not dropped.
  if (!(std::abs(difference) <= max_difference_)) max_difference_ = std::abs(difference);
}

Mean Figures::exponential(const Mean& mean) {
  const double value = std::exp(mean.value);
  return {.value = value, .standard_error = value * mean.standard_error, .count = mean.count};
}

std::vector<Bucket> context_buckets(int max_context) {
  std::vector<Bucket> buckets;
  int low = 0;
  for (int high : {128, 512, 1024}) {
    if (low >= max_context) return buckets;
    buckets.push_back({.low = low, .high = std::min(high, max_context)});
    low = high;
  }
  while (low < max_context) {
    const int high = low > std::numeric_limits<int>::max() / 2 ? max_context : std::min(2 * low, max_context);
    buckets.push_back({.low = low, .high = high});
    low = high;
  }
  return buckets;
}

std::string short_length(int tokens) {
  constexpr int kKilo = 1024;
  if (tokens >= kKilo && tokens % kKilo == 0) return fmt::format("{}K", tokens / kKilo);
  return fmt::format("{}", tokens);
}

std::string to_string(const Bucket& bucket) {
  return fmt::format("[{}, {})", short_length(bucket.low), short_length(bucket.high));
}

std::uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15U;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31U);
}

int Random::below(int count) {
  SNAPMLA_ASSERT(count >= 1);
  // The bias of the remainder is below count / 2^64.
  return static_cast<int>(next() % static_cast<std::uint64_t>(count));
}

}  // namespace snapmla::apps
