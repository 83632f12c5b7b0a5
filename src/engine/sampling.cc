#include "engine/sampling.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/sample_rule.h"

namespace snapmla {

void check_sampling(const SamplingParams& params) {
  SNAPMLA_REQUIRE(std::isfinite(params.temperature) && params.temperature >= 0, "submit",
                  "temperature must be finite and at least 0; got ", params.temperature);
  SNAPMLA_REQUIRE(params.top_k >= 0, "submit", "top_k must be at least 0; got ", params.top_k);
  SNAPMLA_REQUIRE(params.top_p > 0 && params.top_p <= 1, "submit",
                  "top_p must be above 0 and at most 1; got ", params.top_p);
}

Sampler::Sampler(Backend& backend, int max_rows)
    : backend_(&backend),
      staged_(static_cast<std::size_t>(max_rows)),
      rows_(backend, max_rows * kSampleRowBytes),
      tokens_(backend, std::int64_t{max_rows} * size_of(DType::kI32)),
      logprobs_(backend, std::int64_t{max_rows} * size_of(DType::kF32)) {}

std::vector<Chosen> Sampler::choose(const ConstTensorView& logits, const std::vector<Choice>& choices,
                                    Stream stream) {
  const auto num_rows = static_cast<std::int64_t>(choices.size());
  SNAPMLA_ASSERT(num_rows >= 1 && choices.size() <= staged_.size() && num_rows <= logits.dim(0));
  SNAPMLA_ASSERT(logits.dtype() == DType::kF32 && logits.is_contiguous());
  const std::int64_t vocab = logits.dim(1);

  std::transform(choices.begin(), choices.end(), staged_.begin(), [](const Choice& choice) {
    return SampleRow{.temperature = choice.sampling.temperature,
                     .top_k = choice.sampling.top_k,
                     .top_p = choice.sampling.top_p,
                     .forced = choice.forced,
                     .seed = choice.sampling.seed,
                     .position = static_cast<std::uint64_t>(choice.token_idx)};
  });
  backend_->copy(rows_.data(), staged_.data(), num_rows * kSampleRowBytes, CopyKind::kHostToDevice, stream);
  backend_->plain_ops().sample(ConstTensorView(logits.data(), DType::kF32, {num_rows, vocab}),
                               ConstTensorView(rows_.data(), DType::kU8, {num_rows, kSampleRowBytes}),
                               TensorView(tokens_.data(), DType::kI32, {num_rows}),
                               TensorView(logprobs_.data(), DType::kF32, {num_rows}), stream);

  std::vector<std::int32_t> tokens(choices.size());
  std::vector<float> logprobs(choices.size());
  backend_->copy(tokens.data(), tokens_.data(), num_rows * size_of(DType::kI32), CopyKind::kDeviceToHost,
                 stream);
  backend_->copy(logprobs.data(), logprobs_.data(), num_rows * size_of(DType::kF32), CopyKind::kDeviceToHost,
                 stream);
  const auto download = [&](std::size_t row) {
    std::vector<float> values(static_cast<std::size_t>(vocab));
    backend_->copy(values.data(), logits.as<float>() + static_cast<std::int64_t>(row) * vocab,
                   vocab * size_of(DType::kF32), CopyKind::kDeviceToHost, stream);
    return values;
  };
  std::vector<Chosen> chosen(choices.size());
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (choices[i].return_logits) chosen[i].logits = download(i);
  }
  backend_->synchronize(stream);

  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (tokens[i] < 0) {  // a device cannot throw: the row itself says what is wrong with it
      const std::vector<float> row = download(i);
      backend_->synchronize(stream);
      require_softmax(row.data(), vocab, static_cast<std::int64_t>(i));
    }
    SNAPMLA_ASSERT(tokens[i] >= 0);
    chosen[i].token = tokens[i];
    chosen[i].logprob = logprobs[i];
  }
  return chosen;
}

}  // namespace snapmla
