#include "study/weighted_sum.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/check.h"
#include "core/e4m3.h"
#include "core/e4m3_accumulator.h"
#include "snapmla/format.h"

namespace snapmla::apps {

WeightedSum::WeightedSum(const WeightedSumRule& rule, std::size_t width)
    : rule_(rule), out_(width), chain_(width) {
  SNAPMLA_ASSERT(rule.promote % rule.block == 0);
  SNAPMLA_ASSERT(rule.range != WeightRange::kNone || rule.sum == SumOf::kWide);
}

void WeightedSum::add(const WeightedTokens& tokens) {
  SNAPMLA_ASSERT(tokens.width == out_.size() && tokens.logits.size() % 128 == 0);
  for (std::size_t begin = 0; begin < tokens.logits.size(); begin += static_cast<std::size_t>(rule_.block))
    add_block(tokens, begin);
}

WeightedSum::Weights WeightedSum::weights(const WeightedTokens& tokens, std::size_t begin, double block_max) {
  const auto count = static_cast<std::size_t>(rule_.block);
  const float* scales = &tokens.scales[begin];
  Weights weights{.values = std::vector<float>(count)};
  const float block_scale = *std::max_element(scales, scales + count);
  largest_scale_ = std::max(largest_scale_, block_scale);
  std::vector<double> f(count);
  for (std::size_t t = 0; t < count; ++t)
    f[t] = std::exp(tokens.logits[begin + t] - max_) * static_cast<double>(scales[t]);
  const auto most = static_cast<double>(kE4m3Max);
  switch (rule_.range) {
    case WeightRange::kNone:
      weights.unit = 1;
      break;
    case WeightRange::kBlock:
      weights.unit = *std::max_element(f.begin(), f.end()) / most;
      break;
    case WeightRange::kBound:
      weights.unit = static_cast<double>(block_scale) / most * std::exp(block_max - max_);
      break;
    case WeightRange::kRunning:
      weights.unit = static_cast<double>(largest_scale_) / most;
      break;
  }
  for (std::size_t t = 0; t < count; ++t) {
    const auto value = static_cast<float>(f[t] / weights.unit);
    weights.values[t] = rule_.range == WeightRange::kNone ? value : to_float(to_e4m3(value));
  }
  return weights;
}

void WeightedSum::add_block(const WeightedTokens& tokens, std::size_t begin) {
  const auto count = static_cast<std::size_t>(rule_.block);
  const double* logits = &tokens.logits[begin];
  const double block_max = *std::max_element(logits, logits + count);
  const double new_max = sum_ > 0 ? std::max(max_, block_max) : block_max;
  if (const double keep = sum_ > 0 ? std::exp(max_ - new_max) : 0; keep != 1) {
    for (double& x : out_) x *= keep;
    chain_unit_ *= keep;
    sum_ *= keep;
  }
  max_ = new_max;
  for (std::size_t t = 0; t < count; ++t) sum_ += std::exp(logits[t] - max_);

  const Weights block = weights(tokens, begin, block_max);
  if (rule_.sum == SumOf::kTensorCore) {
    add_to_chain(tokens, begin, block);
    return;
  }
  const std::size_t stride = tokens.logits.size();
  for (std::size_t d = 0; d < out_.size(); ++d) {
    const E4m3* latent = &tokens.latents[d * stride + begin];
    double product = 0;
    for (std::size_t t = 0; t < count; ++t)
      product += static_cast<double>(block.values[t]) * static_cast<double>(to_float(latent[t]));
    out_[d] += block.unit * product;
  }
}

void WeightedSum::add_to_chain(const WeightedTokens& tokens, std::size_t begin, const Weights& weights) {
  const auto count = static_cast<std::size_t>(rule_.block);
  // A chain goes on in the block's unit: in fp32, as a kernel would rescale its registers.
  if (chain_tokens_ == 0) std::fill(chain_.begin(), chain_.end(), 0.0F);
  if (const auto factor = static_cast<float>(chain_unit_ / weights.unit); chain_tokens_ > 0 && factor != 1) {
    for (float& x : chain_) x *= factor;
  }
  chain_unit_ = weights.unit;
  std::vector<E4m3> codes(count);
  std::transform(weights.values.begin(), weights.values.end(), codes.begin(), to_e4m3);
  const std::size_t stride = tokens.logits.size();
  for (std::size_t d = 0; d < chain_.size(); ++d) {
    const E4m3* latent = &tokens.latents[d * stride + begin];
    for (std::size_t t = 0; t < count; t += kE4m3StepTokens)
      chain_[d] = add_e4m3_products(chain_[d], latent + t, codes.data() + t);
  }
  chain_tokens_ += rule_.block;
  if (rule_.promote == 0 || chain_tokens_ < rule_.promote) return;
  for (std::size_t d = 0; d < out_.size(); ++d) out_[d] += chain_unit_ * static_cast<double>(chain_[d]);
  chain_tokens_ = 0;
}

std::vector<double> WeightedSum::output() const {
  std::vector<double> result = out_;
  for (std::size_t d = 0; d < result.size(); ++d) {
    if (chain_tokens_ > 0) result[d] += chain_unit_ * static_cast<double>(chain_[d]);
    result[d] /= sum_;
  }
  return result;
}

}  // namespace snapmla::apps
