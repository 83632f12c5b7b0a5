#include "checkpoint.h"

#include "model/safetensors.h"

namespace snapmla::apps {

CheckpointSummary summarize_checkpoint(const std::string& dir) {
  CheckpointSummary summary{.config = load_config(dir)};
  if (!Checkpoint::is_in(dir)) return summary;
  const Checkpoint checkpoint(dir);
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
  for (const std::string& name : checkpoint.names()) {
    const TensorInfo& info = checkpoint.info(name);
    const std::int64_t count = (info.end - info.begin) / size_of(info.dtype);
    parameters += count;
    bytes += info.end - info.begin;
    summary.by_dtype[to_string(info.dtype)] += count;
  }
  summary.parameters = parameters;
  summary.weight_bytes = bytes;
  return summary;
}

}  // namespace snapmla::apps
