#include "model/slice.h"

#include <algorithm>
#include <cstddef>

#include "core/check.h"

namespace snapmla {
namespace {

ModelConfig keep_layers(const ModelConfig& whole, int num_layers) {
  SNAPMLA_REQUIRE(num_layers >= 1 && num_layers <= whole.num_layers, "slice",
                  "num_layers must be from 1 to the model's own ", whole.num_layers, "; got ", num_layers);
  ModelConfig slice = whole;
  slice.num_layers = num_layers;
  const std::vector<bool>& layers = whole.expert_layers;
  if (whole.shortcut_experts) {
    SNAPMLA_REQUIRE(num_layers % 2 == 0, "slice", "num_layers of ", whole.model_type,
                    " must be even: its attention layers come in pairs; got ", num_layers);
    slice.expert_layers.resize(static_cast<std::size_t>(num_layers));
    return slice;
  }
  const auto first_experts = std::find(layers.begin(), layers.end(), true);
  const auto dense = static_cast<int>(first_experts - layers.begin());
  if (first_experts == layers.end() || dense == 0) {
    slice.expert_layers.resize(static_cast<std::size_t>(num_layers));
    return slice;
  }
  const int rounded = (2 * dense * num_layers + whole.num_layers) / (2 * whole.num_layers);
  const int kept = std::max(1, rounded);
  slice.expert_layers.assign(static_cast<std::size_t>(kept), false);
  slice.expert_layers.insert(slice.expert_layers.end(), first_experts,
                             first_experts + static_cast<std::ptrdiff_t>(num_layers - kept));
  return slice;
}

ModelConfig keep_experts(const ModelConfig& whole, int rank, int ranks) {
  SNAPMLA_REQUIRE(ranks >= 1 && rank >= 0 && rank < ranks, "slice",
                  "expert_rank must be from 0 to below expert_ranks; got rank ", rank, " of ", ranks);
  if (ranks == 1) return whole;
  SNAPMLA_REQUIRE(whole.num_experts > 0, "slice", "expert_ranks must be 1 for a model without experts; got ",
                  ranks);
  SNAPMLA_REQUIRE(whole.num_experts % ranks == 0 && whole.num_zero_experts % ranks == 0, "slice",
                  "expert_ranks must divide the ", whole.num_experts, " experts",
                  whole.num_zero_experts > 0 ? " and those that do nothing" : "", "; got ", ranks);
  ModelConfig slice = whole;
  slice.num_experts = whole.num_experts / ranks;
  slice.num_zero_experts = whole.num_zero_experts / ranks;
  slice.first_expert = rank * slice.num_experts;
  slice.num_groups = 1;
  slice.top_groups = 1;
  const int routed = slice.num_experts + slice.num_zero_experts;
  SNAPMLA_REQUIRE(slice.top_k <= routed, "slice", "expert_ranks must leave a rank the ", slice.top_k,
                  " experts that a token chooses; got ", ranks, ", which leave ", routed);
  return slice;
}

}  // namespace

ModelConfig slice_config(const ModelConfig& whole, const ModelSlice& slice) {
  ModelConfig config = slice.num_layers == 0 ? whole : keep_layers(whole, slice.num_layers);
  return keep_experts(config, slice.expert_rank, slice.expert_ranks);
}

ModelConfig load_config(const std::string& dir, LoadFormat format, const ModelSlice& slice) {
  ModelConfig config = slice_config(load_config(dir), slice);
  const bool whole = slice.num_layers == 0 && slice.expert_ranks == 1;
  SNAPMLA_REQUIRE(whole || format == LoadFormat::kDummy, "slice",
                  "num_layers and expert_ranks are for dummy weights only (load_format): a checkpoint's are "
                  "those of its whole model");
  return config;
}

}  // namespace snapmla
