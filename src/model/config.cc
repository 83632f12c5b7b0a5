// config.json, or params.json, and generation_config.json to ModelConfig. Rules and defaults follow the configuration classes of
// transformers, and what differs between them is in family.cc; a field on which the result depends strongly
// must be in the file.
#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/check.h"
#include "model/file.h"
#include "model/fp8_weights.h"
#include "model/json_fields.h"

namespace snapmla {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxFileBytes = 16 << 20;
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxWidth = 1'000'000;
constexpr double kMostTheta = 1e12;
constexpr int kMostExpertsInAll = 1'000'000;  // of all layers

json parse_file(const std::string& path) {
  const std::string text = read_whole_file("config", path, kMaxFileBytes);
  json parsed;
  try {
    parsed = json::parse(text);
  } catch (const json::exception& e) {
    std::string reason = e.what();
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fail(ErrorCode::kCorruptFile, "config", path, ": must be JSON; ", reason);
  }
  if (!parsed.is_object()) {
    fail(ErrorCode::kCorruptFile, "config", path, ": must be a JSON object; got ", parsed.type_name());
  }
  return parsed;
}

// LongCat-Flash's names. A layer of its file is two of ours.
constexpr std::array<FieldAlias, 4> kLongcatAliases = {{{"intermediate_size", "ffn_hidden_size"},
                                                        {"moe_intermediate_size", "expert_ffn_hidden_size"},
                                                        {"num_experts_per_tok", "moe_topk"},
                                                        {"num_hidden_layers", "num_layers"}}};

// The names of Mistral's params.json, and of the yarn object in it.
constexpr std::array<FieldAlias, 18> kMistralAliases = {
    {{"hidden_size", "dim"},
     {"num_hidden_layers", "n_layers"},
     {"num_attention_heads", "n_heads"},
     {"intermediate_size", "hidden_dim"},
     {"rms_norm_eps", "norm_eps"},
     {"tie_word_embeddings", "tied_embeddings"},
     {"hidden_act", "activation"},
     {"rope_scaling", "yarn"},
     {"quantization_config", "quantization"},
     {"first_k_dense_replace", "moe.first_k_dense_replace"},
     {"moe_layer_freq", "moe.route_every_n"},
     {"n_routed_experts", "moe.num_experts"},
     {"num_experts_per_tok", "moe.num_experts_per_tok"},
     {"n_group", "moe.num_expert_groups"},
     {"topk_group", "moe.num_expert_groups_per_tok"},
     {"routed_scaling_factor", "moe.routed_scale"},
     {"moe_intermediate_size", "moe.expert_hidden_dim"},
     {"n_shared_experts", "moe.num_shared_experts"}}};
constexpr std::array<FieldAlias, 2> kMistralYarnAliases = {{{"beta_fast", "beta"}, {"beta_slow", "alpha"}}};

double get_mscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

void refuse_sparse_attention(const JsonFields& fields) {
  const std::string method = fields.text_or("attention_method", "MLA");
  if (method != "MLA") {
    fields.unsupported("attention_method", method, "must be MLA: others are ", kSparseAttention);
  }
  if (fields.has("index_topk")) {
    fields.unsupported("index_topk", fields.at("index_topk"), "must be absent: it asks for ",
                       kSparseAttention);
  }
}

const FamilyRules& read_family(const JsonFields& fields) {
  if (!fields.has("model_type")) refuse_sparse_attention(fields);  // LongCat's files with LSA name no type
  const std::string type = fields.text("model_type");
  const FamilyRules* rules = find_family(type);
  if (rules != nullptr) return *rules;
  const std::string_view what = refusal_of(type);
  if (!what.empty()) fields.unsupported("model_type", type, "names a family with ", what);
  refuse_sparse_attention(fields);  // says more than that the type is not among ours
  fields.unsupported("model_type", type, "must be one of ", family_names());
}

// What LongCat-Flash has beside the others: two attentions with a dense FFN each and one set of experts a
// layer, experts that do nothing, and factors on the normed query and latent.
void read_longcat(const JsonFields& fields, ModelConfig& config) {
  if (fields.boolean_or("router_bias", false)) {
    fields.unsupported("router_bias", true,
                       "must be false: it would need a bias behind the router's product");
  }
  const std::string zero = fields.text_or("zero_expert_type", "identity");
  if (zero != "identity") {
    fields.unsupported("zero_expert_type", zero,
                       "must be identity: others would need a rule for what they give");
  }
  config.names = NameStyle::kLongcat;
  config.num_zero_experts = fields.integer_or("zero_expert_num", 0, 0, kMostExpertsInAll);
  config.shortcut_experts = true;
  if (fields.boolean_or("mla_scale_q_lora", true) && config.q_lora > 0) {
    config.query_scale = std::sqrt(static_cast<double>(config.hidden) / config.q_lora);
  }
  if (fields.boolean_or("mla_scale_kv_lora", true)) {
    config.latent_scale = std::sqrt(static_cast<double>(config.hidden) / kLatentDim);
  }
}

void refuse_unsupported(const JsonFields& fields) {
  refuse_sparse_attention(fields);
  if (fields.has("sliding_window")) {
    fields.unsupported("sliding_window", fields.at("sliding_window"),
                       "must be absent: a window would need decode over a part of the tokens before");
  }
  const std::string activation = fields.text_or("hidden_act", "silu");
  if (activation != "silu") {
    fields.unsupported("hidden_act", activation, "must be silu: another would need an op of its own");
  }
  if (fields.boolean_or("mlp_bias", false)) {
    fields.unsupported("mlp_bias", true,
                       "must be false: biases would need a place behind the products of an FFN");
  }
  const int latent = fields.integer("kv_lora_rank", 1, kMaxWidth);
  if (latent != kLatentDim) {
    fields.unsupported("kv_lora_rank", latent, "must be ", kLatentDim,
                       ": another width of the latent would need pages and kernels of that width");
  }
  const int rope = fields.integer("qk_rope_head_dim", 0, kMaxWidth);
  if (rope != kRopeDim) {
    fields.unsupported("qk_rope_head_dim", rope, "must be ", kRopeDim,
                       ": another width of the RoPE key would need pages and kernels of that width");
  }
}

void read_attention(const JsonFields& fields, const FamilyRules& rules, ModelConfig& config) {
  config.num_layers = fields.integer("num_hidden_layers", 1, 10'000);
  if (rules.family == Family::kLongcatFlash) config.num_layers *= 2;
  config.hidden = fields.integer("hidden_size", 1, kMaxWidth);
  config.heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  config.vocab = fields.integer("vocab_size", 1, 10'000'000);
  constexpr int kLongest = std::numeric_limits<int>::max();
  config.max_position = std::min(fields.integer("max_position_embeddings", 1, kLongest), kMaxSeqLen);
  fields.require_key("q_lora_rank");
  config.q_lora = fields.integer_or("q_lora_rank", 0, 1, kMaxWidth);
  config.nope_dim = fields.integer("qk_nope_head_dim", 1, kMaxHeadDim);
  config.v_dim = fields.integer("v_head_dim", 1, kMaxHeadDim);
  config.norm_eps = fields.number_or("rms_norm_eps", rules.norm_eps, 1e-30, 1);
  config.tied_embeddings = fields.boolean_or("tie_word_embeddings", rules.tied_embeddings);
  config.attention_bias = fields.boolean_or("attention_bias", false);
  if (rules.rope_interleave_is_free) config.rope_interleaved = fields.boolean_or("rope_interleave", true);
}

void read_query_growth(const JsonFields& fields, const char* growth, ModelConfig& config) {
  config.query_growth = fields.number_or(growth, 0, 0, 100);
  if (config.query_growth != 0) {
    config.query_growth_every = fields.integer("original_max_position_embeddings", 1, kMaxSeqLen);
  }
}

void set_softmax_scale(ModelConfig& config) {
  const YarnConfig& yarn = config.yarn;
  const double mscale = yarn.mscale_all_dim != 0 ? get_mscale(yarn.factor, yarn.mscale_all_dim) : 1;
  config.softmax_scale = static_cast<float>(mscale * mscale / std::sqrt(config.nope_dim + kRopeDim));
}

YarnConfig read_yarn(const JsonFields& rope, int max_position) {
  YarnConfig yarn;
  yarn.original_max_position =
      rope.integer_or("original_max_position_embeddings", max_position, 1, kMaxSeqLen);
  yarn.factor = rope.number_or(
      "factor", std::max(1.0, static_cast<double>(max_position) / yarn.original_max_position), 1, 1e6);
  yarn.beta_fast = rope.number_or("beta_fast", yarn.beta_fast, 1e-6, 1e6);
  yarn.beta_slow = rope.number_or("beta_slow", yarn.beta_slow, 1e-6, 1e6);
  if (yarn.beta_fast < yarn.beta_slow) {
    rope.refuse("beta_fast", yarn.beta_fast, "must not be below beta_slow, ", yarn.beta_slow);
  }
  yarn.truncate = rope.boolean_or("truncate", true);
  yarn.mscale = rope.number_or("mscale", 0, 0, 100);
  yarn.mscale_all_dim = rope.number_or("mscale_all_dim", 0, 0, 100);
  yarn.cos_sin_factor =
      yarn.mscale != 0 && yarn.mscale_all_dim != 0
          ? get_mscale(yarn.factor, yarn.mscale) / get_mscale(yarn.factor, yarn.mscale_all_dim)
          : get_mscale(yarn.factor, 1);
  yarn.cos_sin_factor = rope.number_or("attention_factor", yarn.cos_sin_factor, 1e-6, 1e6);
  return yarn;
}

// mistral4 counts the 64 rotated dimensions as a part of a head, the others as all of their head.
void check_rotated_part(const JsonFields& fields, const FamilyRules& rules, const ModelConfig& config) {
  const bool of_a_head = rules.family == Family::kMistral4;
  const double rotated = of_a_head ? static_cast<double>(kRopeDim) / (config.nope_dim + kRopeDim) : 1;
  const double partial = fields.number_or("partial_rotary_factor", rotated, 0, 1);
  if (std::abs(partial - rotated) > 1e-6) {
    fields.unsupported("partial_rotary_factor", partial, "must be ", rotated);
  }
}

// transformers 4 writes rope_theta and rope_scaling, transformers 5 one rope_parameters with both.
void read_rope(const JsonFields& fields, const FamilyRules& rules, ModelConfig& config) {
  config.rope_theta = fields.number_or("rope_theta", rules.rope_theta, 1 + 1e-6, kMostTheta);
  check_rotated_part(fields, rules, config);
  const char* name = fields.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  if (!fields.has(name)) return;
  const JsonFields rope = fields.object(name);
  config.rope_theta = rope.number_or("rope_theta", config.rope_theta, 1 + 1e-6, kMostTheta);
  check_rotated_part(rope, rules, config);
  const char* type_name = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string type = rope.has("factor") ? rope.text(type_name) : rope.text_or(type_name, "default");
  if (type == "default") return;
  if (type != "yarn") {
    rope.unsupported(type_name, type,
                     "must be default or yarn: another type would need its rule for the angle of each pair");
  }
  config.yarn = read_yarn(rope, config.max_position);
  if (rules.family == Family::kMistral4) read_query_growth(rope, "llama_4_scaling_beta", config);
}

// As vLLM reads params.json (vllm/transformers_utils/configs/mistral.py): cos and sin are never scaled, and
// apply_scale says whether the softmax is; Mistral Large 3 says false, and loses accuracy if it is scaled
// (vllm-project/vllm pull request 57563).
void read_mistral_rope(const JsonFields& fields, ModelConfig& config) {
  config.rope_theta = fields.number_or("rope_theta", config.rope_theta, 1 + 1e-6, kMostTheta);
  if (fields.has("rope_scaling")) {
    const JsonFields yarn = fields.object("rope_scaling", kMistralYarnAliases);
    config.yarn = read_yarn(yarn, config.max_position);
    config.yarn.cos_sin_factor = 1;
    config.yarn.mscale_all_dim = yarn.boolean_or("apply_scale", true) ? 1 : 0;
  }
  if (fields.has("llama_4_scaling")) read_query_growth(fields.object("llama_4_scaling"), "beta", config);
}

void read_groups(const JsonFields& fields, ModelConfig& config) {
  config.num_groups = fields.integer_or("n_group", 1, 1, config.num_experts);
  config.top_groups = fields.integer_or("topk_group", config.num_groups, 1, config.num_groups);
  if (config.num_experts % config.num_groups != 0) {
    fields.refuse("n_group", config.num_groups, "must divide n_routed_experts, ", config.num_experts);
  }
  const int group_size = config.num_experts / config.num_groups;
  if (config.group_score == GroupScore::kTopTwoSum && config.num_groups > 1 && group_size < 2) {
    fields.refuse("n_group", config.num_groups, "must leave groups of at least 2 of the ", config.num_experts,
                  " experts");
  }
  if (config.top_k > config.top_groups * group_size) {
    fields.refuse("num_experts_per_tok", config.top_k, "must not exceed the ", config.top_groups * group_size,
                  " experts of topk_group groups");
  }
}

void read_routing(const JsonFields& fields, const FamilyRules& rules, ModelConfig& config) {
  config.scoring = rules.scoring;
  config.group_score = rules.group_score;
  config.router_bias = rules.router_bias;
  const std::string scoring = fields.text_or("scoring_func", rules.scoring_func);
  if (scoring != rules.scoring_func) {
    fields.unsupported("scoring_func", scoring, "must be ", rules.scoring_func, " for ", rules.model_type);
  }
  config.normalize_weights = fields.boolean_or("norm_topk_prob", rules.normalize_weights);
  if (!rules.normalize_is_free && config.normalize_weights != rules.normalize_weights) {
    fields.unsupported("norm_topk_prob", config.normalize_weights, "must be ",
                       rules.normalize_weights ? "true" : "false", " for ", rules.model_type);
  }
  const std::string method = fields.text_or("topk_method", rules.topk_method);
  if (rules.family == Family::kDeepseekV2) {
    if (method == "greedy") return;  // whatever n_group says
    if (method == "group_limited_greedy") return read_groups(fields, config);
    fields.unsupported("topk_method", method, "must be greedy or group_limited_greedy for deepseek_v2");
  }
  if (method != rules.topk_method) {
    fields.unsupported("topk_method", method, "must be ", rules.topk_method, " for ", rules.model_type);
  }
  if (!config.shortcut_experts) read_groups(fields, config);
}

// mlp_layer_types names each layer's kind; without it, experts are in every moe_layer_freq-th layer from
// first_k_dense_replace on.
std::vector<bool> read_expert_layers(const JsonFields& fields, const FamilyRules& rules, int num_layers) {
  std::vector<bool> has_experts(static_cast<std::size_t>(num_layers));
  if (fields.has("mlp_layer_types")) {
    const json& types = fields.at("mlp_layer_types");
    if (!types.is_array() || types.size() != has_experts.size()) {
      fields.refuse("mlp_layer_types", types, "must be an array of num_hidden_layers=", num_layers, " names");
    }
    for (std::size_t layer = 0; layer < has_experts.size(); ++layer) {
      if (types[layer] != "dense" && types[layer] != "sparse") {
        fields.refuse("mlp_layer_types", types[layer], "must hold \"dense\" or \"sparse\"");
      }
      has_experts[layer] = types[layer] == "sparse";
    }
    return has_experts;
  }
  constexpr int kMostLayers = 10'000;
  const int first =
      rules.first_dense_layers < 0
          ? fields.integer("first_k_dense_replace", 0, kMostLayers)
          : fields.integer_or("first_k_dense_replace", rules.first_dense_layers, 0, kMostLayers);
  const int freq = fields.integer_or("moe_layer_freq", 1, 1, kMostLayers);
  for (int layer = first; layer < num_layers; ++layer) {
    has_experts[static_cast<std::size_t>(layer)] = layer % freq == 0;
  }
  return has_experts;
}

void read_experts(const JsonFields& fields, const FamilyRules& rules, ModelConfig& config) {
  if (config.shortcut_experts) {
    for (std::size_t layer = 0; layer < config.expert_layers.size(); layer += 2)
      config.expert_layers[layer] = true;
  } else {
    config.expert_layers = read_expert_layers(fields, rules, config.num_layers);
  }
  config.moe_intermediate = fields.integer("moe_intermediate_size", 1, kMaxWidth);
  config.num_shared_experts = fields.integer_or("n_shared_experts", 0, 0, 1024);
  config.top_k = fields.integer("num_experts_per_tok", 1, config.num_experts + config.num_zero_experts);
  config.routed_scaling = static_cast<float>(fields.number("routed_scaling_factor", 1e-6, 1e6));
  config.post_ffn_norm = rules.post_ffn_norm;
  read_routing(fields, rules, config);
}

void read_ffn(const JsonFields& fields, const FamilyRules& rules, ModelConfig& config) {
  config.expert_layers.assign(static_cast<std::size_t>(config.num_layers), false);
  if (rules.experts) {
    fields.require_key("n_routed_experts");
    config.num_experts = fields.integer_or("n_routed_experts", 0, 0, kMostExpertsInAll / config.num_layers);
    if (config.num_experts > 0) read_experts(fields, rules, config);
  }
  const auto& layers = config.expert_layers;
  const bool any_dense = std::find(layers.begin(), layers.end(), false) != layers.end();
  if (any_dense) config.intermediate = fields.integer("intermediate_size", 1, kMaxWidth);
}

std::vector<std::int32_t> read_stop_tokens(const JsonFields& fields, int vocab) {
  std::vector<std::int32_t> tokens;
  if (!fields.has("eos_token_id")) return tokens;
  const json& value = fields.at("eos_token_id");
  if (!value.is_array()) return {fields.integer_of("eos_token_id", value, 0, vocab - 1)};
  for (const json& token : value) tokens.push_back(fields.integer_of("eos_token_id", token, 0, vocab - 1));
  return tokens;
}

// A params.json may be that of any of Mistral's models.
void require_mla(const JsonFields& fields) {
  if (!fields.has("kv_lora_rank")) {
    fail(ErrorCode::kUnsupported, "config", fields.file(),
         ": must describe a model with MLA, by kv_lora_rank and its like; only such models are supported");
  }
  if (fields.boolean_or("moe.use_load_balancing_bias", false)) {
    fields.unsupported("moe.use_load_balancing_bias", true, "must be false");
  }
}

void read_generation(const JsonFields& fields, ModelConfig& config) {
  if (fields.has("eos_token_id")) config.stop_tokens = read_stop_tokens(fields, config.vocab);
  config.bos_token = fields.integer_or("bos_token_id", config.bos_token, 0, config.vocab - 1);
  const double temperature = fields.number_or("temperature", 1, 0, 1000);
  if (fields.boolean_or("do_sample", false)) config.default_temperature = static_cast<float>(temperature);
  config.default_top_k = fields.integer_or("top_k", 0, 0, std::numeric_limits<int>::max());
  config.default_top_p = static_cast<float>(fields.number_or("top_p", 1, 1e-6, 1));
}

void read_special_tokens(const std::string& dir, const JsonFields& fields, bool mistral_file,
                         ModelConfig& config) {
  config.stop_tokens = read_stop_tokens(fields, config.vocab);
  config.bos_token = fields.integer_or("bos_token_id", -1, 0, config.vocab - 1);
  if (mistral_file) {  // it names neither; these are <s> and </s> of every tekken.json
    config.bos_token = 1;
    config.stop_tokens = {2};
  }
  const std::string path = dir + "/generation_config.json";
  if (!file_exists(path)) return;
  const json generation = parse_file(path);
  read_generation(JsonFields(path, generation), config);
}

}  // namespace

ModelConfig load_config(const std::string& dir) {
  std::string path = dir + "/config.json";
  const bool mistral_file = !file_exists(path) && file_exists(dir + "/params.json");
  if (mistral_file) path = dir + "/params.json";
  const json parsed = parse_file(path);
  const FamilyRules& rules = mistral_file ? *find_family("mistral4") : read_family(JsonFields(path, parsed));
  const bool longcat = rules.family == Family::kLongcatFlash;
  JsonFields::Aliases aliases;
  if (longcat) aliases = kLongcatAliases;
  if (mistral_file) aliases = kMistralAliases;
  const JsonFields fields(path, parsed, aliases);

  ModelConfig config;
  config.family = rules.family;
  config.model_type = rules.model_type;
  if (mistral_file) require_mla(fields);
  refuse_unsupported(fields);
  config.fp8 = read_quantization(fields);
  read_attention(fields, rules, config);
  if (longcat) read_longcat(fields, config);
  if (rules.family == Family::kMistral4) {
    config.names = mistral_file ? NameStyle::kMistral : NameStyle::kStacked;
  }
  if (mistral_file) {
    read_mistral_rope(fields, config);
  } else {
    read_rope(fields, rules, config);
  }
  set_softmax_scale(config);
  read_ffn(fields, rules, config);
  read_special_tokens(dir, fields, mistral_file, config);
  return config;
}

}  // namespace snapmla
