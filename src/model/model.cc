// Model::load, and the one Model there is: state and weights around Forward.
#include "model/model.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "model/decode_graphs.h"
#include "model/dummy_weights.h"
#include "model/forward.h"
#include "model/state.h"
#include "model/weights.h"

namespace snapmla {
namespace {

void check_limits(const ModelLimits& limits, const ModelConfig& config) {
  constexpr int kMaxBatch = 4096;
  constexpr int kMaxChunk = 1 << 20;
  const int longest = std::min(config.max_position, kMaxSeqLen);
  SNAPMLA_REQUIRE(limits.max_batch >= 1 && limits.max_batch <= kMaxBatch, "model", "max_batch must be 1 to ",
                  kMaxBatch, "; got ", limits.max_batch);
  SNAPMLA_REQUIRE(limits.max_chunk >= 0 && limits.max_chunk <= kMaxChunk, "model", "max_chunk must be 0 to ",
                  kMaxChunk, "; got ", limits.max_chunk);
  SNAPMLA_REQUIRE(limits.max_seq_len >= 1 && limits.max_seq_len <= longest, "model",
                  "max_seq_len must be 1 to the model's max_position_embeddings, ", longest, "; got ",
                  limits.max_seq_len);
}

class MlaModel final : public Model {
 public:
  MlaModel(Backend& backend, ModelConfig config, const ModelLimits& limits,
           std::shared_ptr<const ModelWeights> weights)
      : config_(std::move(config)),
        limits_(limits),
        weights_(std::move(weights)),
        state_(backend, config_, limits_),
        forward_(backend, config_, limits_, *weights_, state_),
        graphs_(backend) {}

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] const ModelLimits& limits() const override { return limits_; }
  [[nodiscard]] std::int64_t num_parameters() const override { return weights_->num_parameters; }
  [[nodiscard]] std::int64_t num_fp8_parameters() const override { return weights_->num_e4m3; }
  [[nodiscard]] std::int64_t weight_bytes() const override { return weights_->bytes; }
  [[nodiscard]] TensorView logits() const override { return state_.logits; }

  void prefill(const PrefillChunk& chunk, const std::vector<CacheView>& cache, bool want_logits,
               Stream stream) override {
    check_layers(cache);
    forward_.prefill(state_.upload(chunk, cache.front(), stream), cache, want_logits, stream);
  }

  void decode(const DecodeBatch& batch, const std::vector<CacheView>& cache, Stream stream) override {
    check_layers(cache);
    const auto batch_rows = static_cast<int>(batch.tokens.size());
    if (!graphs_.usable(stream)) {
      const Step step = state_.upload(batch, cache.front(), batch_rows, stream);
      if (batch.sampled.present()) forward_.take_sampled(step, batch.sampled, stream);
      forward_.decode(step, cache, stream);
      return;
    }
    const Step step = state_.upload(batch, cache.front(), padded_rows(batch_rows, limits_.max_batch), stream);
    if (batch.sampled.present()) forward_.take_sampled(step, batch.sampled, stream);
    graphs_.run(step.rows, cache, stream, [&] { forward_.decode(step, cache, stream); });
  }

 private:
  void check_layers(const std::vector<CacheView>& cache) const {
    SNAPMLA_REQUIRE(cache.size() == weights_->layers.size(), "model", "cache must have a view for each of ",
                    weights_->layers.size(), " layers; got ", cache.size());
  }

  ModelConfig config_;
  ModelLimits limits_;
  std::shared_ptr<const ModelWeights> weights_;
  ModelState state_;
  Forward forward_;
  DecodeGraphs graphs_;
};

}  // namespace

std::unique_ptr<Model> Model::load(Backend& backend, const std::string& dir, const ModelLimits& limits) {
  return load(backend, dir, load_config(dir), limits);
}

std::unique_ptr<Model> Model::load(Backend& backend, const std::string& dir, const ModelConfig& config,
                                   const ModelLimits& limits) {
  check_limits(limits, config);  // before the weights: they take long
  return make(backend, config, load_weights(backend, dir, config, LoadFormat::kAuto), limits);
}

std::shared_ptr<const ModelWeights> Model::load_weights(Backend& backend, const std::string& dir,
                                                        const ModelConfig& config, LoadFormat format) {
  return std::make_shared<const ModelWeights>(format == LoadFormat::kDummy
                                                  ? make_dummy_weights(backend, config)
                                                  : snapmla::load_weights(backend, Checkpoint(dir), config));
}

std::unique_ptr<Model> Model::make(Backend& backend, const ModelConfig& config,
                                   std::shared_ptr<const ModelWeights> weights, const ModelLimits& limits) {
  check_limits(limits, config);
  return std::make_unique<MlaModel>(backend, config, limits, std::move(weights));
}

}  // namespace snapmla
