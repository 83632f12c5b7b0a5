// P V over a long context, the way a kernel does it block by block, with each choice a parameter: against what
// P is quantized, where products are summed, and how often that sum is promoted to a wide one.
//
//     p[t] = exp(logit[t] - M)      f[t] = p[t] * scale[t]      w[t] = e4m3(f[t] / unit)
//     chain += sum_t w[t] * latent8[t], rescaled when M or the unit changes      out += unit * chain, when promoted
//
// M is the running maximum. With one unit for a block and a fresh chain each block this is what snapmla does; with
// a chain that is never promoted it is the paper's form, whose accumulator stays in the tensor core
// (arXiv 2602.10718, "implicit dequantization").
#pragma once

#include <cstddef>
#include <vector>

#include "snapmla/tensor.h"

namespace snapmla::apps {

enum class WeightRange {
  kNone,   ///< w = f, nothing rounded: the formula
  kBlock,  ///< unit = the block's largest f / 448
  kBound,  ///< unit = the block's largest scale / 448, p against the block's largest: what the CUDA kernel does
  kRunning,  ///< unit = the largest scale so far / 448, p against the running maximum
};

enum class SumOf {
  kWide,        ///< fp64
  kTensorCore,  ///< core/e4m3_accumulator.h
};

struct WeightedSumRule {
  const char* name = "";
  WeightRange range = WeightRange::kBlock;
  SumOf sum = SumOf::kTensorCore;
  int block = 64;    ///< tokens quantized together: 64 or 128
  int promote = 64;  ///< tokens of a chain; a multiple of the block; 0: never promoted
};

/// A run of tokens, a multiple of 128.
struct WeightedTokens {
  std::size_t width = 0;         ///< of a latent
  std::vector<double> logits{};  ///< [tokens]
  std::vector<float> scales{};   ///< [tokens]
  std::vector<E4m3> latents{};   ///< [width][tokens]: a column of V lies together
};

/// The running state of one query row.
class WeightedSum {
 public:
  WeightedSum(const WeightedSumRule& rule, std::size_t width);
  void add(const WeightedTokens& tokens);
  /// The attention output over all tokens added so far.
  [[nodiscard]] std::vector<double> output() const;

 private:
  struct Weights {
    std::vector<float> values;
    double unit = 1;  ///< relative to exp(max)
  };
  [[nodiscard]] Weights weights(const WeightedTokens& tokens, std::size_t begin, double block_max);
  void add_block(const WeightedTokens& tokens, std::size_t begin);
  void add_to_chain(const WeightedTokens& tokens, std::size_t begin, const Weights& weights);

  WeightedSumRule rule_;
  double max_ = 0;  ///< running maximum of the logits; nothing yet while sum_ is 0
  double sum_ = 0;  ///< of p
  float largest_scale_ = 0;
  std::vector<double> out_;   ///< promoted so far, relative to exp(max_)
  std::vector<float> chain_;  ///< not yet promoted, in chain_unit_
  double chain_unit_ = 0;     ///< relative to exp(max_); 0: no chain
  int chain_tokens_ = 0;
};

}  // namespace snapmla::apps
