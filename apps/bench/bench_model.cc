#include "bench/bench_model.h"

#include <fmt/format.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "model/slice.h"

namespace snapmla::apps {

BenchModel::BenchModel(const CommonOptions& options, Backend& backend)
    : options_(options),
      backend_(backend),
      dir_(find_model(options.model)),
      config_(load_config(dir_, parse_load_format(options.load_format), model_slice(options))),
      memory_(backend) {}

std::string BenchModel::load(nlohmann::ordered_json& document) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  weights_ = Model::load_weights(backend_, dir_, config_, parse_load_format(options_.load_format));
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  document["model"] = dir_;
  document["load_format"] = options_.load_format;
  document["layers"] = config_.num_layers;
  document["expert_slice"] = options_.expert_parallel_slice;
  document["parameters"] = weights_->num_parameters;
  document["fp8_parameters"] = weights_->num_e4m3;
  document["weight_bytes"] = weights_->bytes;
  std::string text = fmt::format("{} on {} ({}): {} layers, {} in {:.1f} s{}\n", name(), backend_.name(),
                                 backend_.device_name(), config_.num_layers,
                                 weights_text(weights_->num_parameters, weights_->num_e4m3, weights_->bytes),
                                 seconds, options_.load_format == "dummy" ? ", dummy" : "");
  const ModelSlice slice = model_slice(options_);
  if (slice.expert_ranks > 1) {
    text += fmt::format(
        "rank {} of {} in expert parallelism: {} of its experts, the load balanced; communication between "
        "ranks is "
        "not part of these times\n",
        slice.expert_rank, slice.expert_ranks, config_.num_experts);
  }
  return text;
}

std::unique_ptr<EngineLoop> BenchModel::make_engine(const CommonOptions& options, CacheFormat format) const {
  EngineOptions asked = engine_options(options, format);
  asked.gpu_memory_utilization = options.gpu_memory_utilization;
  asked.kv_cache_memory_bytes = options.kv_cache_memory_bytes;
  asked.backend = &backend_;  // which may be one in front of that which the options name
  const EngineOptions chosen = complete_options(asked, config_);
  std::unique_ptr<Model> model = Model::make(backend_, config_, weights_, model_limits(chosen));
  return std::make_unique<EngineLoop>(with_pages(chosen, config_, memory_.free_at_start()), std::move(model),
                                      Tokenizer::none());
}

}  // namespace snapmla::apps
