#include "model/tensor_list.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <set>
#include <string_view>
#include <utility>

#include "core/check.h"

namespace snapmla {
namespace {

constexpr TensorNames kHuggingFace = {.embedding = "model.embed_tokens",
                                      .norm = "model.norm",
                                      .lm_head = "lm_head",
                                      .q_a = "q_a_proj",
                                      .q_a_norm = "q_a_layernorm",
                                      .q_b = "q_b_proj",
                                      .q = "q_proj",
                                      .kv_a = "kv_a_proj_with_mqa",
                                      .kv_a_norm = "kv_a_layernorm",
                                      .kv_b = "kv_b_proj",
                                      .o = "o_proj",
                                      .gate = "gate_proj",
                                      .up = "up_proj",
                                      .down = "down_proj",
                                      .router = "gate",
                                      .router_bias = "gate.e_score_correction_bias"};

constexpr TensorNames longcat_names() {
  TensorNames names = kHuggingFace;
  names.router = "router.classifier";
  names.router_bias = "router.e_score_correction_bias";
  return names;
}

constexpr TensorNames stacked_names() {
  TensorNames names = kHuggingFace;
  names.stacked_gate_up = "experts.gate_up_proj";
  names.stacked_down = "experts.down_proj";
  return names;
}

constexpr TensorNames kLongcat = longcat_names();
constexpr TensorNames kStacked = stacked_names();
constexpr TensorNames kMistral = {.embedding = "tok_embeddings",
                                  .norm = "norm",
                                  .lm_head = "output",
                                  .q_a = "wq_a",
                                  .q_a_norm = "q_a_norm",
                                  .q_b = "wq_b",
                                  .q = "wq",
                                  .kv_a = "wkv_a_with_mqa",
                                  .kv_a_norm = "kv_a_norm",
                                  .kv_b = "wkv_b",
                                  .o = "wo",
                                  .gate = "w1",
                                  .up = "w3",
                                  .down = "w2",
                                  .router = "gate",
                                  .router_bias = "gate.bias"};

using TensorList = std::vector<TensorSpec>;
using Shape = std::vector<std::int64_t>;

/// Adds the tensors of one config to a list.
class Lister {
 public:
  explicit Lister(const ModelConfig& config) : config_(config), names_(tensor_names(config.names)) {}

  TensorList list() {
    weight(names_.embedding, {config_.vocab, config_.hidden});
    for (int layer = 0; layer < config_.num_layers; ++layer) add_layer(layer);
    weight(names_.norm, {config_.hidden});
    if (!config_.tied_embeddings) weight(names_.lm_head, {config_.vocab, config_.hidden});
    return std::move(list_);
  }

 private:
  void weight(const std::string& name, Shape shape) { list_.push_back({name + ".weight", std::move(shape)}); }

  void add_layer(int layer) {
    const LayerNames at = layer_names(config_.names, layer);
    weight(at.attention_norm, {config_.hidden});
    add_attention(at.attention);
    weight(at.ffn_norm, {config_.hidden});
    const bool has_experts = config_.is_moe_layer(layer);
    if (has_experts) add_moe(at.moe);
    if (has_experts && config_.post_ffn_norm) weight(at.post_ffn_norm, {config_.hidden});
    if (!has_experts || config_.shortcut_experts) add_ffn(at.ffn, config_.intermediate);
  }

  void add_attention(const std::string& prefix) {
    const std::int64_t hidden = config_.hidden;
    const std::int64_t heads = config_.heads;
    const auto linear = [&](const char* name, std::int64_t out, std::int64_t in, bool bias) {
      weight(prefix + name, {out, in});
      if (bias) list_.push_back({prefix + name + ".bias", {out}});
    };
    if (config_.q_lora > 0) {
      linear(names_.q_a, config_.q_lora, hidden, config_.attention_bias);
      weight(prefix + names_.q_a_norm, {config_.q_lora});
      linear(names_.q_b, heads * (config_.nope_dim + kRopeDim), config_.q_lora, false);
    } else {
      linear(names_.q, heads * (config_.nope_dim + kRopeDim), hidden, false);
    }
    linear(names_.kv_a, kTokenDim, hidden, config_.attention_bias);
    weight(prefix + names_.kv_a_norm, {kLatentDim});
    linear(names_.kv_b, heads * (config_.nope_dim + config_.v_dim), kLatentDim, false);
    linear(names_.o, hidden, heads * config_.v_dim, config_.attention_bias);
  }

  void add_ffn(const std::string& prefix, std::int64_t inter) {
    weight(prefix + names_.gate, {inter, config_.hidden});
    weight(prefix + names_.up, {inter, config_.hidden});
    weight(prefix + names_.down, {config_.hidden, inter});
  }

  void add_moe(const std::string& prefix) {
    const std::int64_t routed = config_.num_experts + config_.num_zero_experts;
    weight(prefix + names_.router, {routed, config_.hidden});
    if (config_.router_bias != Presence::kNever) {
      list_.push_back({.name = prefix + names_.router_bias,
                       .shape = {routed},
                       .optional = config_.router_bias == Presence::kOptional});
    }
    const std::int64_t inter = config_.moe_intermediate;
    if (names_.stacked_down != nullptr) {
      list_.push_back({prefix + names_.stacked_gate_up, {config_.num_experts, 2 * inter, config_.hidden}});
      list_.push_back({prefix + names_.stacked_down, {config_.num_experts, config_.hidden, inter}});
    }
    for (int expert = 0; names_.stacked_down == nullptr && expert < config_.num_experts; ++expert) {
      add_ffn(prefix + "experts." + std::to_string(expert) + '.', config_.moe_intermediate);
    }
    if (config_.num_shared_experts > 0) {
      add_ffn(prefix + "shared_experts.",
              std::int64_t{config_.num_shared_experts} * config_.moe_intermediate);
    }
  }

  const ModelConfig& config_;
  const TensorNames& names_;
  TensorList list_;
};

bool ends_with_any(const std::string& name, std::initializer_list<const char*> suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(),
                     [&](const char* suffix) { return name.ends_with(suffix); });
}

// What a result does not depend on, by the names alone.
bool is_left_alone(const std::string& name, const ModelConfig& config) {
  constexpr std::array kPrefixes = {"model.mtp.", "vision_encoder.", "vision_language_adapter.",
                                    "patch_merger."};
  const bool other_part = std::any_of(kPrefixes.begin(), kPrefixes.end(),
                                      [&](const char* prefix) { return name.starts_with(prefix); });
  const bool scales =
      config.fp8.rows != 0 && ends_with_any(name, {"_scale", "_scale_inv", "qscale_weight", "qscale_act"});
  const bool tied_head =
      config.tied_embeddings && name == std::string(tensor_names(config.names).lm_head) + ".weight";
  const bool unused_norm = config.post_ffn_norm && name.ends_with(".post_mlp_layernorm.weight");
  return other_part || scales || tied_head || unused_norm || name.ends_with("rotary_emb.inv_freq");
}

}  // namespace

const TensorNames& tensor_names(NameStyle style) {
  switch (style) {
    case NameStyle::kHuggingFace:
      break;
    case NameStyle::kLongcat:
      return kLongcat;
    case NameStyle::kStacked:
      return kStacked;
    case NameStyle::kMistral:
      return kMistral;
  }
  return kHuggingFace;
}

LayerNames layer_names(NameStyle style, int layer) {
  if (style == NameStyle::kLongcat) {  // two attention layers of ours are one of theirs
    const std::string prefix = "model.layers." + std::to_string(layer / 2) + '.';
    const std::string half = std::to_string(layer % 2);
    return {.attention_norm = prefix + "input_layernorm." + half,
            .attention = prefix + "self_attn." + half + '.',
            .ffn_norm = prefix + "post_attention_layernorm." + half,
            .ffn = prefix + "mlps." + half + '.',
            .moe = prefix + "mlp.",
            .post_ffn_norm = {}};
  }
  if (style == NameStyle::kMistral) {
    const std::string prefix = "layers." + std::to_string(layer) + '.';
    return {.attention_norm = prefix + "attention_norm",
            .attention = prefix + "attention.",
            .ffn_norm = prefix + "ffn_norm",
            .ffn = prefix + "feed_forward.",
            .moe = prefix,
            .post_ffn_norm = {}};
  }
  const std::string prefix = "model.layers." + std::to_string(layer) + '.';
  return {.attention_norm = prefix + "input_layernorm",
          .attention = prefix + "self_attn.",
          .ffn_norm = prefix + "post_attention_layernorm",
          .ffn = prefix + "mlp.",
          .moe = prefix + "mlp.",
          .post_ffn_norm = prefix + "post_mlp_layernorm"};
}

std::vector<TensorSpec> list_tensors(const ModelConfig& config) {
  return Lister(config).list();
}

void refuse_other_tensors(const Checkpoint& checkpoint, const ModelConfig& config,
                          const std::vector<TensorSpec>& list) {
  std::set<std::string> known;
  for (const TensorSpec& tensor : list) known.insert(tensor.name);
  const std::vector<std::string> names = checkpoint.names();
  std::vector<std::string> prediction_layers;
  for (const std::string& name : names) {
    constexpr std::string_view kJoin = "eh_proj.weight";
    if (name.ends_with(kJoin)) prediction_layers.push_back(name.substr(0, name.size() - kJoin.size()));
  }
  std::vector<std::string> others;
  for (const std::string& name : names) {
    const bool predicts = std::any_of(prediction_layers.begin(), prediction_layers.end(),
                                      [&](const std::string& prefix) { return name.starts_with(prefix); });
    if (known.count(name) == 0 && !predicts && !is_left_alone(name, config)) others.push_back(name);
  }
  if (others.empty()) return;
  fail(ErrorCode::kUnsupported, "weights", checkpoint.dir(), ": must hold the tensors of a ",
       config.model_type, " of this config only; got ", others.size(), " more, the first \"", others.front(),
       '"');
}

}  // namespace snapmla
