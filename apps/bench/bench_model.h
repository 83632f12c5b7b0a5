// A model as benchmarks hold it: loaded once, its weights shared by every engine and every batch that is measured.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "bench/peak_memory.h"
#include "common.h"
#include "engine/engine_loop.h"
#include "model/weights.h"

namespace snapmla::apps {

class BenchModel {
 public:
  /// Reads the config. `backend` must outlive this.
  BenchModel(const CommonOptions& options, Backend& backend);

  /// Loads the weights, and says how they are: a line for people, fields for `document`.
  std::string load(nlohmann::ordered_json& document);

  /// An engine of these options, which must name this model. The tokenizer is none: prompts are tokens.
  [[nodiscard]] std::unique_ptr<EngineLoop> make_engine(const CommonOptions& options,
                                                        CacheFormat format) const;

  [[nodiscard]] std::string name() const { return base_name(dir_); }
  [[nodiscard]] Backend& backend() const { return backend_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const std::shared_ptr<const ModelWeights>& weights() const { return weights_; }
  [[nodiscard]] const PeakMemory& memory() const { return memory_; }

 private:
  const CommonOptions& options_;
  Backend& backend_;
  std::string dir_;
  ModelConfig config_;
  PeakMemory memory_;
  std::shared_ptr<const ModelWeights> weights_;
};

}  // namespace snapmla::apps
