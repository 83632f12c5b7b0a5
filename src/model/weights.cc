#include "model/weights.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "core/check.h"

namespace snapmla {
namespace {

std::string layer_prefix(int layer) {
  return "model.layers." + std::to_string(layer) + '.';
}

std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

using TensorList = std::vector<TensorSpec>;

void add_ffn(TensorList& list, const std::string& prefix, std::int64_t hidden, std::int64_t inter) {
  list.push_back({prefix + "gate_proj.weight", {inter, hidden}});
  list.push_back({prefix + "up_proj.weight", {inter, hidden}});
  list.push_back({prefix + "down_proj.weight", {hidden, inter}});
}

void add_attention(TensorList& list, const std::string& prefix, const ModelConfig& config) {
  const auto add = [&](const char* name, std::vector<std::int64_t> shape) {
    list.push_back({prefix + name, std::move(shape)});
  };
  const std::int64_t hidden = config.hidden;
  const std::int64_t q_width = std::int64_t{config.heads} * (config.nope_dim + kRopeDim);
  const std::int64_t kv_width = std::int64_t{config.heads} * (config.nope_dim + config.v_dim);
  if (config.q_lora > 0) {
    add("q_a_proj.weight", {config.q_lora, hidden});
    if (config.attention_bias) add("q_a_proj.bias", {config.q_lora});
    add("q_a_layernorm.weight", {config.q_lora});
    add("q_b_proj.weight", {q_width, config.q_lora});
  } else {
    add("q_proj.weight", {q_width, hidden});
  }
  add("kv_a_proj_with_mqa.weight", {kTokenDim, hidden});
  if (config.attention_bias) add("kv_a_proj_with_mqa.bias", {kTokenDim});
  add("kv_a_layernorm.weight", {kLatentDim});
  add("kv_b_proj.weight", {kv_width, kLatentDim});
  add("o_proj.weight", {hidden, std::int64_t{config.heads} * config.v_dim});
  if (config.attention_bias) add("o_proj.bias", {hidden});
}

void add_moe(TensorList& list, const std::string& prefix, const ModelConfig& config) {
  list.push_back({prefix + "gate.weight", {config.num_experts, config.hidden}});
  if (config.router_bias != Presence::kNever) {
    list.push_back({.name = prefix + "gate.e_score_correction_bias",
                    .shape = {config.num_experts},
                    .optional = config.router_bias == Presence::kOptional});
  }
  for (int expert = 0; expert < config.num_experts; ++expert) {
    add_ffn(list, prefix + "experts." + std::to_string(expert) + '.', config.hidden, config.moe_intermediate);
  }
  if (config.num_shared_experts > 0) {
    add_ffn(list, prefix + "shared_experts.", config.hidden,
            std::int64_t{config.num_shared_experts} * config.moe_intermediate);
  }
}

/// Reads tensors by name, with the shapes of list_tensors, and puts them on the backend.
class Loader {
 public:
  Loader(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config)
      : backend_(backend), checkpoint_(checkpoint) {
    // Before the first read: a checkpoint of many gigabytes must not fail in its last tensor.
    for (const TensorSpec& tensor : list_tensors(config)) {
      if (tensor.optional && !checkpoint_.contains(tensor.name)) continue;
      const TensorInfo& info = checkpoint_.info(tensor.name);
      const bool readable =
          info.dtype == DType::kBF16 || info.dtype == DType::kF16 || info.dtype == DType::kF32;
      // The read throws then, and names file, tensor and rule.
      if (info.shape != tensor.shape || !readable) {
        static_cast<void>(checkpoint_.read_bf16(tensor.name, tensor.shape));
      }
      weights_.num_parameters += element_count(tensor.shape);
      shapes_.emplace(tensor.name, tensor.shape);
    }
  }

  [[nodiscard]] bool has(const std::string& name) const { return shapes_.count(name) != 0; }

  ConstTensorView bf16(const std::string& name) {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    return upload(checkpoint_.read_bf16(name, shape), DType::kBF16, shape);
  }

  ConstTensorView f32(const std::string& name) {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    return upload(checkpoint_.read_f32(name, shape), DType::kF32, shape);
  }

  LinearWeight linear(const std::string& prefix) {
    LinearWeight linear;
    linear.weight = bf16(prefix + ".weight");
    if (has(prefix + ".bias")) linear.bias = bf16(prefix + ".bias");
    return linear;
  }

  FfnWeights ffn(const std::string& prefix) {
    return {.gate = linear(prefix + "gate_proj"),
            .up = linear(prefix + "up_proj"),
            .down = linear(prefix + "down_proj")};
  }

  /// <prefix><expert>.<name>.weight of all experts, stacked [experts, out, in].
  ConstTensorView experts(const std::string& prefix, const std::string& name, int count) {
    const std::vector<std::int64_t> shape = shapes_.at(prefix + "0." + name + ".weight");
    const std::int64_t bytes = element_count(shape) * size_of(DType::kBF16);
    auto* stack = static_cast<std::byte*>(allocate(count * bytes));
    for (int expert = 0; expert < count; ++expert) {
      std::string tensor = prefix;
      tensor.append(std::to_string(expert)).append(".").append(name).append(".weight");
      const std::vector<Bf16> values = checkpoint_.read_bf16(tensor, shape);
      copy(stack + expert * bytes, values.data(), bytes);
    }
    return {stack, DType::kBF16, {count, shape[0], shape[1]}};
  }

  /// kv_b_proj [heads * (nope + v), 512], per head nope rows of W_UK and then v rows of W_UV, into the two.
  void split_kv_b(const std::string& name, const ModelConfig& config, AttentionWeights& attention) {
    const std::vector<Bf16> kv_b = checkpoint_.read_bf16(name, shapes_.at(name));
    const std::int64_t nope = std::int64_t{config.nope_dim} * kLatentDim;
    const std::int64_t v = std::int64_t{config.v_dim} * kLatentDim;
    std::vector<Bf16> w_uk;
    std::vector<Bf16> w_uv;
    for (auto head = kv_b.begin(); head != kv_b.end(); head += nope + v) {
      w_uk.insert(w_uk.end(), head, head + nope);
      w_uv.insert(w_uv.end(), head + nope, head + nope + v);
    }
    attention.w_uk = upload(w_uk, DType::kBF16, {config.heads, config.nope_dim, kLatentDim});
    attention.w_uv = upload(w_uv, DType::kBF16, {config.heads, config.v_dim, kLatentDim});
  }

  [[nodiscard]] ModelWeights& weights() { return weights_; }

 private:
  void* allocate(std::int64_t bytes) {
    weights_.bytes += bytes;
    return weights_.buffers.emplace_back(backend_, bytes).data();
  }

  void copy(void* dst, const void* src, std::int64_t bytes) {
    backend_.copy(dst, src, bytes, CopyKind::kHostToDevice, Stream{});
    backend_.synchronize(Stream{});
  }

  template <class T>
  ConstTensorView upload(const std::vector<T>& values, DType dtype, const std::vector<std::int64_t>& shape) {
    const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(T));
    void* data = allocate(bytes);
    copy(data, values.data(), bytes);
    switch (shape.size()) {
      case 1:
        return {data, dtype, {shape[0]}};
      case 2:
        return {data, dtype, {shape[0], shape[1]}};
      default:
        SNAPMLA_ASSERT(shape.size() == 3);
        return {data, dtype, {shape[0], shape[1], shape[2]}};
    }
  }

  Backend& backend_;
  const Checkpoint& checkpoint_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  ModelWeights weights_;
};

AttentionWeights load_attention(Loader& loader, const std::string& prefix, const ModelConfig& config) {
  AttentionWeights attention;
  if (config.q_lora > 0) {
    attention.q_a = loader.linear(prefix + "q_a_proj");
    attention.q_a_norm = loader.bf16(prefix + "q_a_layernorm.weight");
    attention.q_b = loader.linear(prefix + "q_b_proj");
  } else {
    attention.q_b = loader.linear(prefix + "q_proj");
  }
  attention.kv_a = loader.linear(prefix + "kv_a_proj_with_mqa");
  attention.kv_a_norm = loader.bf16(prefix + "kv_a_layernorm.weight");
  loader.split_kv_b(prefix + "kv_b_proj.weight", config, attention);
  attention.o = loader.linear(prefix + "o_proj");
  return attention;
}

LayerWeights load_layer(Loader& loader, int index, const ModelConfig& config) {
  const std::string prefix = layer_prefix(index);
  const std::string mlp = prefix + "mlp.";
  LayerWeights layer;
  layer.attention_norm = loader.bf16(prefix + "input_layernorm.weight");
  layer.attention = load_attention(loader, prefix + "self_attn.", config);
  layer.ffn_norm = loader.bf16(prefix + "post_attention_layernorm.weight");
  if (!config.is_moe_layer(index)) {
    layer.ffn = loader.ffn(mlp);
    return layer;
  }
  layer.moe.router = loader.f32(mlp + "gate.weight");
  const std::string bias = mlp + "gate.e_score_correction_bias";
  if (loader.has(bias)) layer.moe.router_bias = loader.f32(bias);
  layer.moe.gate = loader.experts(mlp + "experts.", "gate_proj", config.num_experts);
  layer.moe.up = loader.experts(mlp + "experts.", "up_proj", config.num_experts);
  layer.moe.down = loader.experts(mlp + "experts.", "down_proj", config.num_experts);
  if (config.num_shared_experts > 0) layer.ffn = loader.ffn(mlp + "shared_experts.");
  const std::string post_norm = prefix + "post_mlp_layernorm.weight";
  if (loader.has(post_norm)) layer.post_ffn_norm = loader.bf16(post_norm);
  return layer;
}

}  // namespace

std::vector<TensorSpec> list_tensors(const ModelConfig& config) {
  TensorList list;
  list.push_back({"model.embed_tokens.weight", {config.vocab, config.hidden}});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = layer_prefix(layer);
    list.push_back({prefix + "input_layernorm.weight", {config.hidden}});
    add_attention(list, prefix + "self_attn.", config);
    list.push_back({prefix + "post_attention_layernorm.weight", {config.hidden}});
    if (config.is_moe_layer(layer)) {
      add_moe(list, prefix + "mlp.", config);
      if (config.post_ffn_norm) list.push_back({prefix + "post_mlp_layernorm.weight", {config.hidden}});
    } else {
      add_ffn(list, prefix + "mlp.", config.hidden, config.intermediate);
    }
  }
  list.push_back({"model.norm.weight", {config.hidden}});
  if (!config.tied_embeddings) list.push_back({"lm_head.weight", {config.vocab, config.hidden}});
  return list;
}

ModelWeights load_weights(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config) {
  Loader loader(backend, checkpoint, config);
  ModelWeights& weights = loader.weights();
  weights.embedding = loader.bf16("model.embed_tokens.weight");
  for (int layer = 0; layer < config.num_layers; ++layer) {
    weights.layers.push_back(load_layer(loader, layer, config));
  }
  weights.norm = loader.bf16("model.norm.weight");
  weights.lm_head = config.tied_embeddings ? LinearWeight{.weight = weights.embedding, .bias = {}}
                                           : loader.linear("lm_head");
  return std::move(weights);
}

}  // namespace snapmla
