// Small random checkpoints in Hugging Face layout, made from a config.json and a seed.
//
// Every value is a function of (seed, tensor name, index), defined by exact integer arithmetic and a few fp32
// operations, and rounded to bf16, so that tests/tools/seeded_checkpoint.py makes the same bits with numpy:
//     z = (sum of the four 16-bit parts of splitmix64(seed ^ fnv1a(name), index) - 131070) * (1 / 37837.2)
//     value = bf16(offset + z * gain)
// z has mean 0 and variance 1. Gains (see spec_of) give attention logits a std of about the config's
// test_query_gain (2.5 if there is none) and every part of a layer a share of the result, so that a mistake
// in any of them shows in the logits.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "support/splitmix64.h"
#include "support/temp_dir.h"

namespace snapmla::testing {

enum class StoredAs : std::uint8_t { kBf16, kF32, kE4m3, kE8m0, kU8 };

struct NamedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;            ///< exact in the type they are stored as
  std::optional<StoredAs> stored = {};  ///< in place of the file's type
};

inline std::uint64_t fnv1a(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : text) hash = (hash ^ static_cast<std::uint8_t>(c)) * 0x100000001b3U;
  return hash;
}

struct ValueSpec {
  float gain = 1;
  float offset = 0;
};

inline bool ends_with(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

inline ValueSpec spec_of(const std::string& name, const std::vector<std::int64_t>& shape, double query_gain) {
  if (name.find("norm.") != std::string::npos) return {0.25F, 1.0F};
  if (ends_with(name, "embed_tokens.weight")) return {1.0F, 0.0F};
  if (ends_with(name, "e_score_correction_bias")) return {0.2F, 0.0F};
  if (ends_with(name, ".bias")) return {0.5F, 0.0F};
  double gain = 1.0;
  if (ends_with(name, "q_proj.weight") || ends_with(name, "q_b_proj.weight")) gain = query_gain;
  if (ends_with(name, "o_proj.weight")) gain = 2.0;
  if (ends_with(name, "down_proj.weight") || ends_with(name, "down_proj")) gain = 1.5;
  if (ends_with(name, "lm_head.weight")) gain = 2.0;
  return {static_cast<float>(gain / std::sqrt(static_cast<double>(shape.back()))), 0.0F};
}

inline NamedTensor random_tensor(std::uint64_t seed, const std::string& name, std::vector<std::int64_t> shape,
                                 double query_gain) {
  const ValueSpec spec = spec_of(name, shape, query_gain);
  const std::uint64_t state = seed ^ fnv1a(name);
  std::size_t count = 1;
  for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t bits = splitmix64(state, i);
    const auto sum = static_cast<int>((bits & 0xffffU) + ((bits >> 16U) & 0xffffU) +
                                      ((bits >> 32U) & 0xffffU) + (bits >> 48U));
    const float z = static_cast<float>(sum - 131070) * static_cast<float>(1 / 37837.2);
    values[i] = round_to_bf16(spec.offset + z * spec.gain);
  }
  return {name, std::move(shape), std::move(values)};
}

/// What a layer of the config has: the names of the goldens' families, spelled here a second time on purpose.
class TensorMaker {
 public:
  TensorMaker(const nlohmann::json& config, std::uint64_t seed) : config_(config), seed_(seed) {}

  [[nodiscard]] std::vector<NamedTensor> make() {
    add("model.embed_tokens.weight", {field("vocab_size"), hidden_});
    for (std::int64_t layer = 0; layer < field("num_layers"); ++layer) {
      add_longcat_layer("model.layers." + std::to_string(layer) + ".");
    }
    for (std::int64_t layer = 0; layer < field("num_hidden_layers"); ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      add_attention(prefix + "self_attn.");
      add(prefix + "input_layernorm.weight", {hidden_});
      add(prefix + "post_attention_layernorm.weight", {hidden_});
      if (family_ == "axk1") add(prefix + "post_mlp_layernorm.weight", {hidden_});
      if (has_experts(layer)) {
        add_experts(prefix + "mlp.");
      } else {
        add_mlp(prefix + "mlp.", field("intermediate_size"));
      }
    }
    add("model.norm.weight", {hidden_});
    if (!config_.value("tie_word_embeddings", family_ == "youtu")) {
      add("lm_head.weight", {field("vocab_size"), hidden_});
    }
    return std::move(tensors_);
  }

 private:
  /// 0 if missing or null.
  [[nodiscard]] std::int64_t field(const char* name) const {
    const auto it = config_.find(name);
    return it == config_.end() || it->is_null() ? 0 : it->get<std::int64_t>();
  }

  [[nodiscard]] bool has_experts(std::int64_t layer) const {
    const auto types = config_.find("mlp_layer_types");
    if (types != config_.end()) return types->at(static_cast<std::size_t>(layer)) == "sparse";
    return field("n_routed_experts") > 0 && layer >= field("first_k_dense_replace");
  }

  void add(const std::string& name, std::vector<std::int64_t> shape) {
    tensors_.push_back(random_tensor(seed_, name, std::move(shape), config_.value("test_query_gain", 2.5)));
  }

  void add_mlp(const std::string& prefix, std::int64_t inter) {
    add(prefix + "gate_proj.weight", {inter, hidden_});
    add(prefix + "up_proj.weight", {inter, hidden_});
    add(prefix + "down_proj.weight", {hidden_, inter});
  }

  void add_attention(const std::string& prefix) {
    const std::int64_t heads = field("num_attention_heads");
    const std::int64_t nope = field("qk_nope_head_dim");
    const std::int64_t rope = field("qk_rope_head_dim");
    const std::int64_t latent = field("kv_lora_rank");
    const std::int64_t v = field("v_head_dim");
    const std::int64_t q_lora = field("q_lora_rank");
    const bool bias = config_.value("attention_bias", false);
    if (q_lora > 0) {
      add(prefix + "q_a_proj.weight", {q_lora, hidden_});
      if (bias) add(prefix + "q_a_proj.bias", {q_lora});
      add(prefix + "q_a_layernorm.weight", {q_lora});
      add(prefix + "q_b_proj.weight", {heads * (nope + rope), q_lora});
    } else {
      add(prefix + "q_proj.weight", {heads * (nope + rope), hidden_});
    }
    add(prefix + "kv_a_proj_with_mqa.weight", {latent + rope, hidden_});
    if (bias) add(prefix + "kv_a_proj_with_mqa.bias", {latent + rope});
    add(prefix + "kv_a_layernorm.weight", {latent});
    add(prefix + "kv_b_proj.weight", {heads * (nope + v), latent});
    add(prefix + "o_proj.weight", {hidden_, heads * v});
    if (bias) add(prefix + "o_proj.bias", {hidden_});
  }

  void add_longcat_layer(const std::string& prefix) {
    const std::int64_t routed = field("n_routed_experts") + field("zero_expert_num");
    add(prefix + "mlp.router.classifier.weight", {routed, hidden_});
    add(prefix + "mlp.router.e_score_correction_bias", {routed});
    for (std::int64_t expert = 0; expert < field("n_routed_experts"); ++expert) {
      add_mlp(prefix + "mlp.experts." + std::to_string(expert) + ".", field("expert_ffn_hidden_size"));
    }
    for (const char* half : {"0", "1"}) {
      add_attention(prefix + "self_attn." + half + ".");
      add_mlp(prefix + "mlps." + half + ".", field("ffn_hidden_size"));
      add(prefix + "input_layernorm." + half + ".weight", {hidden_});
      add(prefix + "post_attention_layernorm." + half + ".weight", {hidden_});
    }
  }

  void add_experts(const std::string& prefix) {
    const std::int64_t experts = field("n_routed_experts");
    const std::int64_t inter = field("moe_intermediate_size");
    const bool stacked = family_ == "mistral4";
    add(prefix + "gate.weight", {experts, hidden_});
    if (stacked) {
      add(prefix + "experts.gate_up_proj", {experts, 2 * inter, hidden_});
      add(prefix + "experts.down_proj", {experts, hidden_, inter});
    } else if (family_ != "deepseek_v2" && family_ != "axk1") {
      add(prefix + "gate.e_score_correction_bias", {experts});
    }
    for (std::int64_t expert = 0; !stacked && expert < experts; ++expert) {
      add_mlp(prefix + "experts." + std::to_string(expert) + ".", inter);
    }
    if (field("n_shared_experts") > 0) add_mlp(prefix + "shared_experts.", inter * field("n_shared_experts"));
  }

  const nlohmann::json& config_;
  std::uint64_t seed_;
  std::string family_ = config_.at("model_type");
  std::int64_t hidden_ = field("hidden_size");
  std::vector<NamedTensor> tensors_;
};

/// All tensors that the config asks for, by the names of its family.
inline std::vector<NamedTensor> make_tensors(const nlohmann::json& config, std::uint64_t seed) {
  return TensorMaker(config, seed).make();
}

/// The bytes of `value`. Of exponents (kE8m0, and kU8 that stands for it) only powers of two have any.
inline std::string encode(float value, StoredAs stored) {
  std::uint32_t bits = 0;
  std::size_t size = 1;
  switch (stored) {
    case StoredAs::kBf16:
      bits = to_bf16(value).bits;
      size = 2;
      break;
    case StoredAs::kF32:
      bits = float_to_bits(value);
      size = 4;
      break;
    case StoredAs::kE4m3:
      bits = to_e4m3(value).bits;
      break;
    case StoredAs::kE8m0:
    case StoredAs::kU8:
      bits = std::isnan(value) ? 255 : static_cast<std::uint32_t>(std::ilogb(value) + 127);
      break;
  }
  std::string bytes(size, '\0');
  std::memcpy(bytes.data(), &bits, size);
  return bytes;
}

/// One safetensors file; tensors that name no type of their own are stored as `stored`.
inline void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                              StoredAs stored = StoredAs::kBf16) {
  constexpr std::array kNames = {"BF16", "F32", "F8_E4M3", "F8_E8M0", "U8"};
  nlohmann::ordered_json header;
  std::string data;
  for (const NamedTensor& tensor : tensors) {
    const std::size_t begin = data.size();
    const StoredAs as = tensor.stored.value_or(stored);
    for (const float value : tensor.values) data += encode(value, as);
    header[tensor.name] = {{"dtype", kNames.at(static_cast<std::size_t>(as))},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  const std::uint64_t size = text.size();
  std::memcpy(length.data(), &size, sizeof size);
  write_file(path, length + text + data);
}

/// A matrix in FP8 with a scale a block, the largest of the block over 448: two tensors, the second `scales`.
inline std::pair<NamedTensor, NamedTensor> to_fp8(const NamedTensor& matrix, std::int64_t block_rows,
                                                  std::int64_t block_columns, const std::string& scales) {
  const std::int64_t rows = matrix.shape.at(0);
  const std::int64_t columns = matrix.shape.at(1);
  NamedTensor codes{matrix.name, matrix.shape, matrix.values, StoredAs::kE4m3};
  NamedTensor scale{scales, {0, 0}, {}, StoredAs::kF32};
  for (std::int64_t top = 0; top < rows; top += block_rows) {
    ++scale.shape[0];
    for (std::int64_t left = 0; left < columns; left += block_columns) {
      const auto each = [&](const auto& body) {
        for (std::int64_t i = top; i < std::min(rows, top + block_rows); ++i) {
          for (std::int64_t j = left; j < std::min(columns, left + block_columns); ++j) {
            body(codes.values[static_cast<std::size_t>(i * columns + j)]);
          }
        }
      };
      float largest = 0;
      each([&](float& value) { largest = std::max(largest, std::abs(value)); });
      const float by = largest / 448;
      each([&](float& value) { value = to_float(to_e4m3(value / by)); });
      scale.values.push_back(by);
    }
  }
  scale.shape[1] = static_cast<std::int64_t>(scale.values.size()) / scale.shape[0];
  return {codes, scale};
}

/// What DeepSeek-V3 stores in FP8: all matrices of a layer but the router.
inline std::vector<NamedTensor> quantize_fp8(const std::vector<NamedTensor>& tensors, std::int64_t block) {
  std::vector<NamedTensor> quantized;
  for (const NamedTensor& tensor : tensors) {
    if (tensor.shape.size() != 2 || tensor.name.find(".layers.") == std::string::npos ||
        ends_with(tensor.name, "gate.weight")) {
      quantized.push_back(tensor);
      continue;
    }
    auto [codes, scale] = to_fp8(tensor, block, block, tensor.name + "_scale_inv");
    quantized.push_back(std::move(codes));
    quantized.push_back(std::move(scale));
  }
  return quantized;
}

/// Writes config.json and model.safetensors into `dir`, which is made if missing; returns `dir`.
inline std::string write_checkpoint(const std::string& dir, const nlohmann::json& config,
                                    const std::vector<NamedTensor>& tensors) {
  std::filesystem::create_directories(dir);
  write_file(dir + "/config.json", config.dump(2));
  write_safetensors(dir + "/model.safetensors", tensors);
  return dir;
}

inline std::string write_checkpoint(const std::string& dir, const nlohmann::json& config,
                                    std::uint64_t seed = 1) {
  return write_checkpoint(dir, config, make_tensors(config, seed));
}

/// A config that is complete, tiny and quick: DeepSeek-V3, 2 layers (one dense, one of 8 experts), 2 heads.
inline nlohmann::json tiny_config() {
  return {{"model_type", "deepseek_v3"},
          {"architectures", {"DeepseekV3ForCausalLM"}},
          {"vocab_size", 300},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"moe_intermediate_size", 32},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 2},
          {"n_shared_experts", 1},
          {"n_routed_experts", 8},
          {"num_experts_per_tok", 2},
          {"n_group", 2},
          {"topk_group", 1},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 1.5},
          {"scoring_func", "sigmoid"},
          {"topk_method", "noaux_tc"},
          {"first_k_dense_replace", 1},
          {"kv_lora_rank", 512},
          {"q_lora_rank", nullptr},
          {"qk_nope_head_dim", 32},
          {"qk_rope_head_dim", 64},
          {"v_head_dim", 32},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 4096},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000.0},
          {"rope_scaling", nullptr},
          {"attention_bias", false},
          {"tie_word_embeddings", false},
          {"bos_token_id", 0},
          {"eos_token_id", 1}};
}

}  // namespace snapmla::testing
