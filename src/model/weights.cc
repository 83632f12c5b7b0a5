#include "model/weights.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "core/bf16.h"
#include "core/check.h"
#include "model/fp8_weights.h"
#include "model/tensor_list.h"
#include "model/tensor_reader.h"

namespace snapmla {
namespace {

std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

/// Finds tensors by name, with the shapes of list_tensors, makes room for them on the backend, and then reads them all.
class Loader {
 public:
  Loader(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config)
      : backend_(backend),
        checkpoint_(checkpoint),
        names_(tensor_names(config.names)),
        fp8_(config.fp8),
        reader_(backend, checkpoint, config.fp8) {
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

  // What these return is filled by read_all().

  ConstTensorView bf16(const std::string& name) {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    auto* data = allocate<Bf16>(element_count(shape));
    reader_.bf16_into(name, data);
    return make_view(data, DType::kBF16, shape);
  }

  /// A norm's weight times `scale`, rounded to bf16 again.
  ConstTensorView norm(const std::string& prefix, double scale = 1) {
    const std::string name = prefix + ".weight";
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    auto* data = allocate<Bf16>(element_count(shape));
    reader_.whole(name, [this, data, scale](std::vector<Bf16> values) {
      for (Bf16& value : values) value = to_bf16(to_float(value) * static_cast<float>(scale));
      reader_.copy(data, std::span<const Bf16>(values));
    });
    return make_view(data, DType::kBF16, shape);
  }

  ConstTensorView f32(const std::string& name) {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    auto* data = allocate<float>(element_count(shape));
    reader_.f32_into(name, shape, data);
    return make_view(data, DType::kF32, shape);
  }

  /// A weight of PlainOps::linear.
  WeightView weight(const std::string& name) {
    const std::optional<std::vector<float>> scales = kept_scales(ops_, checkpoint_, name, fp8_);
    if (!scales) return bf16(name);
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    const TensorView values = codes(name);
    return {values, upload(*scales, {num_weight_blocks(shape[0]), num_weight_blocks(shape[1])})};
  }

  LinearWeight linear(const std::string& prefix) {
    LinearWeight linear;
    linear.weight = weight(prefix + ".weight");
    if (has(prefix + ".bias")) linear.bias = bf16(prefix + ".bias");
    return linear;
  }

  FfnWeights ffn(const std::string& prefix) {
    return {.gate = linear(prefix + names_.gate),
            .up = linear(prefix + names_.up),
            .down = linear(prefix + names_.down)};
  }

  /// <prefix><expert>.<name>.weight of all experts, stacked [experts, out, in].
  void experts(const std::string& prefix, int count, MoeWeights& moe) {
    const std::array names = {names_.gate, names_.up, names_.down};
    const std::array<WeightView*, 3> weights = {&moe.gate, &moe.up, &moe.down};
    std::array<std::optional<std::vector<float>>, 3> scales;
    for (std::size_t i = 0; i < names.size(); ++i) scales[i] = scales_of_experts(prefix, names[i], count);
    const bool keep = scales[0] && scales[1] && scales[2];  // experts() takes three of one kind
    for (std::size_t i = 0; i < names.size(); ++i) {
      const std::vector<std::int64_t>& shape = shapes_.at(expert_name(prefix, 0, names[i]));
      *weights[i] = keep ? e4m3_stack(prefix, names[i], {count, shape[0], shape[1]}, *scales[i])
                         : bf16_stack(prefix, names[i], {count, shape[0], shape[1]});
    }
  }

  /// gate and up in one tensor [experts, 2 inter, hidden], down in another.
  void stacked_experts(const std::string& prefix, MoeWeights& moe) {
    const std::string gate_up = prefix + names_.stacked_gate_up;
    const std::string down = prefix + names_.stacked_down;
    const std::optional<std::vector<float>> scales = kept_scales(ops_, checkpoint_, gate_up, fp8_, 2);
    const std::optional<std::vector<float>> down_scales = kept_scales(ops_, checkpoint_, down, fp8_);
    if (!scales || !down_scales) {
      const ConstTensorView both = bf16(gate_up);
      moe.gate = half_of(both, 0);
      moe.up = half_of(both, 1);
      moe.down = bf16(down);
      return;
    }
    const TensorView both = codes(gate_up);
    const std::int64_t experts = both.dim(0);
    const std::array<std::int64_t, 2> blocks = {both.dim(1) / 2 / kWeightBlock, both.dim(2) / kWeightBlock};
    const auto half_scales = [&](std::int64_t which) {
      std::vector<float> half;
      const std::int64_t count = blocks[0] * blocks[1];
      for (std::int64_t expert = 0; expert < experts; ++expert) {
        const auto begin = scales->begin() + (2 * expert + which) * count;
        half.insert(half.end(), begin, begin + count);
      }
      return upload(half, {experts, blocks[0], blocks[1]});
    };
    moe.gate = {half_of(both, 0), half_scales(0)};
    moe.up = {half_of(both, 1), half_scales(1)};
    const TensorView values = codes(down);
    moe.down = {values, upload(*down_scales, {experts, num_weight_blocks(values.dim(1)),
                                              num_weight_blocks(values.dim(2))})};
  }

  /// kv_b_proj [heads * (nope + v), 512], per head nope rows of W_UK and then v rows of W_UV, into the two.
  void split_kv_b(const std::string& name, const ModelConfig& config, AttentionWeights& attention) {
    const auto nope = static_cast<std::size_t>(config.nope_dim) * kLatentDim;
    const auto v = static_cast<std::size_t>(config.v_dim) * kLatentDim;
    const auto heads = static_cast<std::size_t>(config.heads);
    auto* w_uk = allocate<Bf16>(static_cast<std::int64_t>(heads * nope));
    auto* w_uv = allocate<Bf16>(static_cast<std::int64_t>(heads * v));
    reader_.whole(name, [=, this](const std::vector<Bf16>& kv_b) {
      for (std::size_t head = 0; head < heads; ++head) {
        const auto both = std::span(kv_b).subspan(head * (nope + v), nope + v);
        reader_.copy(w_uk + head * nope, both.first(nope));
        reader_.copy(w_uv + head * v, both.last(v));
      }
    });
    attention.w_uk = {w_uk, DType::kBF16, {config.heads, config.nope_dim, kLatentDim}};
    attention.w_uv = {w_uv, DType::kBF16, {config.heads, config.v_dim, kLatentDim}};
  }

  void read_all() {
    reader_.read_all();
    for (const TensorView& weight : to_arrange_) ops_.arrange_weight(weight, Stream{});
    to_arrange_.clear();
    backend_.synchronize(Stream{});
  }

  [[nodiscard]] const TensorNames& names() const { return names_; }
  [[nodiscard]] ModelWeights& weights() { return weights_; }

 private:
  /// Room for a weight's e4m3 codes, which read_all() arranges when they are there.
  TensorView allocate_codes(const std::vector<std::int64_t>& shape) {
    auto* data = allocate<E4m3>(element_count(shape));
    weights_.num_e4m3 += element_count(shape);
    to_arrange_.push_back(shape.size() == 2 ? TensorView(data, DType::kE4M3, {shape[0], shape[1]})
                                            : TensorView(data, DType::kE4M3, {shape[0], shape[1], shape[2]}));
    return to_arrange_.back();
  }

  TensorView codes(const std::string& name) {
    const TensorView values = allocate_codes(shapes_.at(name));
    reader_.codes_into(name, values.as<E4m3>());
    return values;
  }

  ConstTensorView upload(const std::vector<float>& scales, const std::vector<std::int64_t>& shape) {
    auto* data = allocate<float>(std::ssize(scales));
    reader_.copy(data, std::span<const float>(scales));
    return make_view(data, DType::kF32, shape);
  }

  static std::string expert_name(const std::string& prefix, int expert, const std::string& name) {
    return prefix + std::to_string(expert) + '.' + name + ".weight";
  }

  /// The scales of all experts one after the other, or nothing where any of them must become bf16.
  [[nodiscard]] std::optional<std::vector<float>> scales_of_experts(const std::string& prefix,
                                                                    const std::string& name,
                                                                    int count) const {
    std::vector<float> all;
    for (int expert = 0; expert < count; ++expert) {
      const auto scales = kept_scales(ops_, checkpoint_, expert_name(prefix, expert, name), fp8_);
      if (!scales) return {};
      all.insert(all.end(), scales->begin(), scales->end());
    }
    return all;
  }

  WeightView e4m3_stack(const std::string& prefix, const std::string& name,
                        const std::vector<std::int64_t>& shape, const std::vector<float>& scales) {
    const TensorView stack = allocate_codes(shape);
    for (int expert = 0; expert < shape[0]; ++expert) {
      reader_.codes_into(expert_name(prefix, expert, name), stack.as<E4m3>() + expert * stack.stride(0));
    }
    return {stack, upload(scales, {shape[0], num_weight_blocks(shape[1]), num_weight_blocks(shape[2])})};
  }

  ConstTensorView bf16_stack(const std::string& prefix, const std::string& name,
                             const std::vector<std::int64_t>& shape) {
    auto* stack = allocate<Bf16>(element_count(shape));
    for (int expert = 0; expert < shape[0]; ++expert) {
      reader_.bf16_into(expert_name(prefix, expert, name), stack + expert * shape[1] * shape[2]);
    }
    return make_view(stack, DType::kBF16, shape);
  }

  /// The upper (0) or lower (1) halves of a stack's matrices.
  static ConstTensorView half_of(const ConstTensorView& stack, std::int64_t which) {
    const std::int64_t rows = stack.dim(1) / 2;
    const auto* begin = static_cast<const std::byte*>(stack.data());
    return {begin + which * rows * stack.stride(1) * size_of(stack.dtype()),
            stack.dtype(),
            {stack.dim(0), rows, stack.dim(2)},
            {stack.stride(0), stack.stride(1), 1}};
  }

  void check(const TensorSpec& tensor) const {
    const TensorInfo& info = checkpoint_.info(tensor.name);
    if (info.dtype == DType::kE4M3) return check_fp8(checkpoint_, tensor.name, tensor.shape, fp8_);
    checkpoint_.require_floats(tensor.name, tensor.shape);
  }

  template <class T>
  T* allocate(std::int64_t count) {
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    weights_.bytes += bytes;
    return static_cast<T*>(weights_.buffers.emplace_back(backend_, bytes).data());
  }

  static ConstTensorView make_view(const void* data, DType dtype, const std::vector<std::int64_t>& shape) {
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
  const PlainOps& ops_ = backend_.plain_ops();
  const Checkpoint& checkpoint_;
  const TensorNames& names_;
  Fp8Blocks fp8_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  TensorReader reader_;
  std::vector<TensorView> to_arrange_;  ///< e4m3 weights, once they are read
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
    loader.stacked_experts(prefix, moe);
  } else {
    loader.experts(prefix + "experts.", config.num_experts, moe);
  }
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
  loader.read_all();
  return std::move(weights);
}

}  // namespace snapmla
