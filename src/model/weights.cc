#include "model/weights.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "core/bf16.h"
#include "core/check.h"
#include "model/fp8_weights.h"
#include "model/tensor_list.h"

namespace snapmla {
namespace {

std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

/// Reads tensors by name, with the shapes of list_tensors, and puts them on the backend.
class Loader {
 public:
  Loader(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config)
      : backend_(backend), checkpoint_(checkpoint), names_(tensor_names(config.names)), fp8_(config.fp8) {
    // Before the first read: a checkpoint of many gigabytes must not fail in its last tensor.
    const std::vector<TensorSpec> list = list_tensors(config);
    for (const TensorSpec& tensor : list) {
      if (tensor.optional && !checkpoint_.contains(tensor.name)) continue;
      check(tensor);
      weights_.num_parameters += element_count(tensor.shape);
      shapes_.emplace(tensor.name, tensor.shape);
    }
    refuse_other_tensors(checkpoint, config, list);
  }

  [[nodiscard]] bool has(const std::string& name) const { return shapes_.count(name) != 0; }

  ConstTensorView bf16(const std::string& name) { return upload(read(name), DType::kBF16, shapes_.at(name)); }

  /// A norm's weight times `scale`, rounded to bf16 again.
  ConstTensorView norm(const std::string& name, double scale = 1) {
    std::vector<Bf16> values = read(name + ".weight");
    for (Bf16& value : values) value = to_bf16(to_float(value) * static_cast<float>(scale));
    return upload(values, DType::kBF16, shapes_.at(name + ".weight"));
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
    return {.gate = linear(prefix + names_.gate),
            .up = linear(prefix + names_.up),
            .down = linear(prefix + names_.down)};
  }

  /// <prefix><expert>.<name>.weight of all experts, stacked [experts, out, in].
  ConstTensorView experts(const std::string& prefix, const std::string& name, int count) {
    const std::vector<std::int64_t> shape = shapes_.at(prefix + "0." + name + ".weight");
    const std::int64_t bytes = element_count(shape) * size_of(DType::kBF16);
    auto* stack = static_cast<std::byte*>(allocate(count * bytes));
    for (int expert = 0; expert < count; ++expert) {
      std::string tensor = prefix;
      tensor.append(std::to_string(expert)).append(".").append(name).append(".weight");
      const std::vector<Bf16> values = read(tensor);
      copy(stack + expert * bytes, values.data(), bytes);
    }
    return {stack, DType::kBF16, {count, shape[0], shape[1]}};
  }

  /// kv_b_proj [heads * (nope + v), 512], per head nope rows of W_UK and then v rows of W_UV, into the two.
  void split_kv_b(const std::string& name, const ModelConfig& config, AttentionWeights& attention) {
    const std::vector<Bf16> kv_b = read(name);
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

  [[nodiscard]] const TensorNames& names() const { return names_; }
  [[nodiscard]] ModelWeights& weights() { return weights_; }

 private:
  void check(const TensorSpec& tensor) const {
    const TensorInfo& info = checkpoint_.info(tensor.name);
    if (info.dtype == DType::kE4M3) return check_fp8(checkpoint_, tensor.name, tensor.shape, fp8_);
    const bool readable =
        info.dtype == DType::kBF16 || info.dtype == DType::kF16 || info.dtype == DType::kF32;
    // The read throws then, and names file, tensor and rule.
    if (info.shape != tensor.shape || !readable) {
      static_cast<void>(checkpoint_.read_bf16(tensor.name, tensor.shape));
    }
  }

  [[nodiscard]] std::vector<Bf16> read(const std::string& name) const {
    if (checkpoint_.info(name).dtype == DType::kE4M3) return read_fp8(checkpoint_, name, fp8_);
    return checkpoint_.read_bf16(name, shapes_.at(name));
  }

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
  const TensorNames& names_;
  Fp8Blocks fp8_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  ModelWeights weights_;
};

AttentionWeights load_attention(Loader& loader, const std::string& prefix, const ModelConfig& config) {
  const TensorNames& names = loader.names();
  AttentionWeights attention;
  if (config.q_lora > 0) {
    attention.q_a = loader.linear(prefix + names.q_a);
    attention.q_a_norm = loader.norm(prefix + names.q_a_norm, config.query_scale);
    attention.q_b = loader.linear(prefix + names.q_b);
  } else {
    attention.q_b = loader.linear(prefix + names.q);
  }
  attention.kv_a = loader.linear(prefix + names.kv_a);
  attention.kv_a_norm = loader.norm(prefix + names.kv_a_norm, config.latent_scale);
  loader.split_kv_b(prefix + names.kv_b + ".weight", config, attention);
  attention.o = loader.linear(prefix + names.o);
  return attention;
}

MoeWeights load_moe(Loader& loader, const std::string& prefix, const ModelConfig& config) {
  const TensorNames& names = loader.names();
  MoeWeights moe;
  moe.router = loader.f32(prefix + names.router + ".weight");
  const std::string bias = prefix + names.router_bias;
  if (loader.has(bias)) moe.router_bias = loader.f32(bias);
  if (names.stacked_down != nullptr) {
    const ConstTensorView both = loader.bf16(prefix + names.stacked_gate_up);
    const std::int64_t inter = config.moe_intermediate;
    const auto half = [&](std::int64_t first) {
      return ConstTensorView(both.as<Bf16>() + first * both.stride(1), DType::kBF16,
                             {both.dim(0), inter, both.dim(2)}, {both.stride(0), both.stride(1), 1});
    };
    moe.gate = half(0);
    moe.up = half(inter);
    moe.down = loader.bf16(prefix + names.stacked_down);
    return moe;
  }
  moe.gate = loader.experts(prefix + "experts.", names.gate, config.num_experts);
  moe.up = loader.experts(prefix + "experts.", names.up, config.num_experts);
  moe.down = loader.experts(prefix + "experts.", names.down, config.num_experts);
  return moe;
}

LayerWeights load_layer(Loader& loader, int index, const ModelConfig& config) {
  const LayerNames at = layer_names(config.names, index);
  LayerWeights layer;
  layer.attention_norm = loader.norm(at.attention_norm);
  layer.attention = load_attention(loader, at.attention, config);
  layer.ffn_norm = loader.norm(at.ffn_norm);
  const bool has_experts = config.is_moe_layer(index);
  if (has_experts) layer.moe = load_moe(loader, at.moe, config);
  if (has_experts && config.post_ffn_norm) layer.post_ffn_norm = loader.norm(at.post_ffn_norm);
  if (!has_experts || config.shortcut_experts) {
    layer.ffn = loader.ffn(at.ffn);
  } else if (config.num_shared_experts > 0) {
    layer.ffn = loader.ffn(at.moe + "shared_experts.");
  }
  return layer;
}

}  // namespace

ModelWeights load_weights(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config) {
  Loader loader(backend, checkpoint, config);
  ModelWeights& weights = loader.weights();
  weights.embedding = loader.bf16(std::string(loader.names().embedding) + ".weight");
  for (int layer = 0; layer < config.num_layers; ++layer) {
    weights.layers.push_back(load_layer(loader, layer, config));
  }
  weights.norm = loader.norm(loader.names().norm);
  weights.lm_head = config.tied_embeddings ? LinearWeight{.weight = weights.embedding, .bias = {}}
                                           : loader.linear(loader.names().lm_head);
  return std::move(weights);
}

}  // namespace snapmla
