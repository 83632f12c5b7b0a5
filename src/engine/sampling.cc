#include "engine/sampling.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/sample_rule.h"

namespace snapmla {
namespace {

constexpr std::int64_t kResultBytes = sizeof(std::int32_t) + sizeof(float);  // a token and its logprob

}  // namespace

void check_sampling(const SamplingParams& params) {
  SNAPMLA_REQUIRE(std::isfinite(params.temperature) && params.temperature >= 0, "submit",
                  "temperature must be finite and at least 0; got ", params.temperature);
  SNAPMLA_REQUIRE(params.top_k >= 0, "submit", "top_k must be at least 0; got ", params.top_k);
  SNAPMLA_REQUIRE(params.top_p > 0 && params.top_p <= 1, "submit",
                  "top_p must be above 0 and at most 1; got ", params.top_p);
}

// The parts of on_device and results.
Sampler::Slot::Slot(Backend& backend, int max_rows)
    : rows(backend, max_rows * kSampleRowBytes),
      results(backend, max_rows * kResultBytes),
      on_device(backend, max_rows * (kSampleRowBytes + kResultBytes)) {}

Sampler::Sampler(Backend& backend, int max_rows) : backend_(&backend), max_rows_(max_rows) {
  for (auto& slot : slots_) slot = std::make_unique<Slot>(backend, max_rows);
}

TensorView Sampler::tokens_of(const Slot& slot) const {
  auto* behind_rows = static_cast<std::byte*>(slot.on_device.data()) + max_rows_ * kSampleRowBytes;
  return {behind_rows, DType::kI32, {slot.num_rows}};
}

ConstTensorView Sampler::tokens() const {
  SNAPMLA_ASSERT(newest_ > oldest_);
  return tokens_of(*slots_[newest_ % 2]);
}

std::vector<Chosen> Sampler::choose(const ConstTensorView& logits, const std::vector<Choice>& choices,
                                    Stream stream) {
  SNAPMLA_ASSERT(newest_ == oldest_);
  enqueue(logits, choices, stream);
  const Slot& slot = *slots_[newest_ % 2];
  slot.results.wait();
  const std::int64_t vocab = logits.dim(1);
  for (std::int64_t i = 0; i < slot.num_rows; ++i) {
    if (slot.results.as<std::int32_t>()[i] >= 0) continue;
    oldest_ = newest_;  // nobody will ask again
    std::vector<float> row(static_cast<std::size_t>(vocab));
    backend_->copy(row.data(), logits.as<float>() + i * vocab, vocab * size_of(DType::kF32),
                   CopyKind::kDeviceToHost, stream);
    backend_->synchronize(stream);
    require_softmax(row.data(), vocab, i);
    SNAPMLA_ASSERT(false);
  }
  return collect();
}

void Sampler::enqueue(const ConstTensorView& logits, const std::vector<Choice>& choices, Stream stream) {
  const auto num_rows = static_cast<std::int64_t>(choices.size());
  SNAPMLA_ASSERT(num_rows >= 1 && num_rows <= max_rows_ && num_rows <= logits.dim(0));
  SNAPMLA_ASSERT(logits.dtype() == DType::kF32 && logits.is_contiguous());
  SNAPMLA_ASSERT(newest_ - oldest_ < slots_.size());
  const std::int64_t vocab = logits.dim(1);
  Slot& slot = *slots_[(newest_ + 1) % 2];
  slot.rows.wait();
  slot.num_rows = static_cast<int>(num_rows);
  std::transform(choices.begin(), choices.end(), slot.rows.as<SampleRow>(), [](const Choice& choice) {
    return SampleRow{.temperature = choice.sampling.temperature,
                     .top_k = choice.sampling.top_k,
                     .top_p = choice.sampling.top_p,
                     .forced = choice.forced,
                     .seed = choice.sampling.seed,
                     .position = static_cast<std::uint64_t>(choice.token_idx)};
  });
  slot.rows.to_device(slot.on_device.data(), num_rows * kSampleRowBytes, stream);
  const TensorView tokens = tokens_of(slot);
  const TensorView logprobs(tokens.as<std::int32_t>() + max_rows_, DType::kF32, {num_rows});
  backend_->plain_ops().sample(
      ConstTensorView(logits.data(), DType::kF32, {num_rows, vocab}),
      ConstTensorView(slot.on_device.data(), DType::kU8, {num_rows, kSampleRowBytes}), tokens, logprobs,
      stream);
  auto* results = slot.results.as<std::int32_t>();
  backend_->copy(results, tokens.data(), num_rows * size_of(DType::kI32), CopyKind::kDeviceToHost, stream);
  backend_->copy(results + max_rows_, logprobs.data(), num_rows * size_of(DType::kF32),
                 CopyKind::kDeviceToHost, stream);
  slot.chosen.assign(choices.size(), Chosen{});
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (!choices[i].return_logits) continue;
    std::vector<float>& row = slot.chosen[i].logits;
    row.resize(static_cast<std::size_t>(vocab));
    backend_->copy(row.data(), logits.as<float>() + static_cast<std::int64_t>(i) * vocab,
                   vocab * size_of(DType::kF32), CopyKind::kDeviceToHost, stream);
  }
  slot.results.mark(stream);
  ++newest_;
}

std::vector<Chosen> Sampler::collect() {
  SNAPMLA_ASSERT(newest_ > oldest_);
  Slot& slot = *slots_[(oldest_ + 1) % 2];
  slot.results.wait();
  const auto* tokens = slot.results.as<std::int32_t>();
  const auto* logprobs = reinterpret_cast<const float*>(tokens + max_rows_);
  for (int i = 0; i < slot.num_rows; ++i) {
    // A device cannot throw: the token says that its row has no softmax. The row itself may be gone.
    SNAPMLA_REQUIRE(tokens[i] >= 0, "sample",
                    "a row of logits must be numbers below infinity, and one of them finite; row ", i,
                    " is not");
  }
  for (std::size_t i = 0; i < slot.chosen.size(); ++i) {
    slot.chosen[i].token = tokens[i];
    slot.chosen[i].logprob = logprobs[i];
  }
  ++oldest_;
  return std::move(slot.chosen);
}

}  // namespace snapmla
