#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"

namespace snapmla {

void check_sampling(const SamplingParams& params) {
  SNAPMLA_REQUIRE(std::isfinite(params.temperature) && params.temperature >= 0, "submit",
                  "temperature must be finite and at least 0; got ", params.temperature);
  SNAPMLA_REQUIRE(params.top_k >= 0, "submit", "top_k must be at least 0; got ", params.top_k);
  SNAPMLA_REQUIRE(params.top_p > 0 && params.top_p <= 1, "submit",
                  "top_p must be above 0 and at most 1; got ", params.top_p);
}

double log_probability(const std::vector<float>& logits, std::int32_t token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return logits[static_cast<std::size_t>(token)] - top - std::log(sum);
}

Sampler::Sampler(Backend& backend, int max_rows)
    : backend_(&backend),
      max_rows_(max_rows),
      tokens_(backend, std::int64_t{max_rows} * size_of(DType::kI32)),
      logprobs_(backend, std::int64_t{max_rows} * size_of(DType::kF32)) {}

std::vector<Chosen> Sampler::choose(const ConstTensorView& logits, const std::vector<Choice>& choices,
                                    Stream stream) {
  const auto num_rows = static_cast<std::int64_t>(choices.size());
  SNAPMLA_ASSERT(num_rows >= 1 && num_rows <= max_rows_ && num_rows <= logits.dim(0));
  SNAPMLA_ASSERT(logits.dtype() == DType::kF32 && logits.is_contiguous());
  const std::int64_t vocab = logits.dim(1);

  std::vector<SampleRow> rows;
  rows.reserve(choices.size());
  for (const Choice& choice : choices) {
    rows.push_back({.temperature = choice.forced < 0 ? choice.sampling.temperature : 0,
                    .top_k = choice.sampling.top_k,
                    .top_p = choice.sampling.top_p,
                    .seed = choice.sampling.seed,
                    .position = static_cast<std::uint64_t>(choice.token_idx)});
  }
  backend_->plain_ops().sample(ConstTensorView(logits.data(), DType::kF32, {num_rows, vocab}), rows,
                               TensorView(tokens_.data(), DType::kI32, {num_rows}),
                               TensorView(logprobs_.data(), DType::kF32, {num_rows}), stream);

  std::vector<std::int32_t> tokens(choices.size());
  std::vector<float> logprobs(choices.size());
  backend_->copy(tokens.data(), tokens_.data(), num_rows * size_of(DType::kI32), CopyKind::kDeviceToHost,
                 stream);
  backend_->copy(logprobs.data(), logprobs_.data(), num_rows * size_of(DType::kF32), CopyKind::kDeviceToHost,
                 stream);
  std::vector<Chosen> chosen(choices.size());
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (choices[i].forced < 0 && !choices[i].return_logits) continue;
    chosen[i].logits.resize(static_cast<std::size_t>(vocab));
    backend_->copy(chosen[i].logits.data(), logits.as<float>() + static_cast<std::int64_t>(i) * vocab,
                   vocab * size_of(DType::kF32), CopyKind::kDeviceToHost, stream);
  }
  backend_->synchronize(stream);

  for (std::size_t i = 0; i < choices.size(); ++i) {
    const bool forced = choices[i].forced >= 0;
    chosen[i].token = forced ? choices[i].forced : tokens[i];
    chosen[i].logprob = forced ? log_probability(chosen[i].logits, chosen[i].token) : double{logprobs[i]};
    if (!choices[i].return_logits) chosen[i].logits = {};
  }
  return chosen;
}

}  // namespace snapmla
