// The maths of the evaluation: how one scored token compares under two caches, and means with honest errors.
//
//     nll = -ln p(token)      KL(bf16 || fp8) = sum_v p_bf16(v) (ln p_bf16(v) - ln p_fp8(v))    all in fp64
//
// Tokens of one text are not independent, so standard errors are clustered: with S_g the sum and n_g the
// count of sequence g, N = sum n_g, mean m = sum S_g / N over G sequences,
//     se = sqrt(G / (G - 1) * sum_g (S_g - n_g m)^2) / N.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace snapmla::apps {

struct Mean {
  double value = 0;           ///< NaN if there is nothing to average
  double standard_error = 0;  ///< NaN with fewer than two clusters
  std::int64_t count = 0;
};

class ClusteredMean {
 public:
  void add(int cluster, double x);
  [[nodiscard]] Mean result() const;

 private:
  struct Cluster {
    double sum = 0;
    std::int64_t count = 0;
  };
  std::map<int, Cluster> clusters_;
};

/// -ln softmax(logits)[token].
double negative_log_likelihood(const std::vector<float>& logits, std::int32_t token);

/// One scored token under one or both caches. Absent: that cache was not run.
struct TokenScore {
  int sequence = 0;
  int context = 0;  ///< cached tokens it was predicted from
  std::optional<double> nll_bf16{};
  std::optional<double> nll_fp8{};
  double kl = 0;           ///< of both caches, else 0
  bool same_top1 = false;  ///< both caches rank the same token first
};

/// Fills nll, kl and same_top1 from the logits rows of one token. The rows must be equally long.
TokenScore score_both(const std::vector<float>& bf16, const std::vector<float>& fp8, std::int32_t token);

/// The figures over a set of scored tokens.
class Figures {
 public:
  void add(const TokenScore& score);

  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] Mean perplexity_bf16() const { return exponential(nll_bf16_.result()); }
  [[nodiscard]] Mean perplexity_fp8() const { return exponential(nll_fp8_.result()); }
  /// exp(mean(nll_fp8 - nll_bf16)): paired, so its error is far below that of either perplexity.
  [[nodiscard]] Mean perplexity_ratio() const { return exponential(nll_difference_.result()); }
  [[nodiscard]] Mean kl() const { return kl_.result(); }
  [[nodiscard]] Mean top1_agreement() const { return top1_.result(); }
  [[nodiscard]] double max_logprob_difference() const { return max_difference_; }

 private:
  static Mean exponential(const Mean& mean);
  std::int64_t tokens_ = 0;
  ClusteredMean nll_bf16_;
  ClusteredMean nll_fp8_;
  ClusteredMean nll_difference_;
  ClusteredMean kl_;
  ClusteredMean top1_;
  double max_difference_ = 0;
};

/// Context lengths [low, high).
struct Bucket {
  int low = 0;
  int high = 0;
};

/// [0, 128), [128, 512), [512, 1K), [1K, 2K) ... up to `max_context`; the last one may be cut short.
std::vector<Bucket> context_buckets(int max_context);
/// "[0, 128)", "[1K, 2K)".
std::string to_string(const Bucket& bucket);
/// 512 as "512", 4096 as "4K".
std::string short_length(int tokens);

/// A small random generator (splitmix64) whose numbers are the same on every machine and compiler.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// Uniform in [0, count); count >= 1.
  int below(int count);
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (int i = static_cast<int>(items.size()) - 1; i > 0; --i) {
      std::swap(items[static_cast<std::size_t>(i)], items[static_cast<std::size_t>(below(i + 1))]);
    }
  }

 private:
  std::uint64_t state_;
};

}  // namespace snapmla::apps
