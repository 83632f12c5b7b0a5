// What a Hugging Face folder holds, from config.json and the safetensors headers; no weight is read.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "model/config.h"

namespace snapmla::apps {

struct CheckpointSummary {
  ModelConfig config{};
  std::optional<std::int64_t> parameters{};        ///< absent without safetensors files
  std::optional<std::int64_t> weight_bytes{};      ///< as stored
  std::map<std::string, std::int64_t> by_dtype{};  ///< dtype -> parameters
};

/// Throws what load_config and Checkpoint throw. A folder without any safetensors file is fine: the counts
/// are absent then.
CheckpointSummary summarize_checkpoint(const std::string& dir);

}  // namespace snapmla::apps
