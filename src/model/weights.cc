#include "model/weights.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "core/bf16.h"
#include "core/check.h"
#include "model/fp8_weights.h"
#include "model/read_ahead.h"
#include "model/tensor_list.h"

namespace snapmla {
namespace {

std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

/// Finds tensors by name, with the shapes of list_tensors, makes room for them on the backend, and then reads them
/// all in the order in which they lie in their files, ahead of what is converted and copied.
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

  // What these return is filled by read_all().

  ConstTensorView bf16(const std::string& name) {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    return make_view(bf16_into(name, allocate(element_count(shape) * size_of(DType::kBF16))), DType::kBF16,
                     shape);
  }

  /// A norm's weight times `scale`, rounded to bf16 again.
  ConstTensorView norm(const std::string& prefix, double scale = 1) {
    const std::string name = prefix + ".weight";
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    void* data = allocate(element_count(shape) * size_of(DType::kBF16));
    later(name, [this, name, data, scale](ReadAhead& ahead) {
      std::vector<Bf16> values = take_whole(name, ahead);
      for (Bf16& value : values) value = to_bf16(to_float(value) * static_cast<float>(scale));
      copy(data, std::span<const Bf16>(values));
    });
    return make_view(data, DType::kBF16, shape);
  }

  ConstTensorView f32(const std::string& name) {
    const std::vector<std::int64_t>& shape = shapes_.at(name);
    void* data = allocate(element_count(shape) * size_of(DType::kF32));
    // So few and small that they need no reading ahead.
    reads_.push_back({place_of(name), {}, [this, name, data, &shape](ReadAhead& /*ahead*/) {
                        copy(data, std::span<const float>(checkpoint_.read_f32(name, shape)));
                      }});
    return make_view(data, DType::kF32, shape);
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
    const std::vector<std::int64_t>& shape = shapes_.at(prefix + "0." + name + ".weight");
    const std::int64_t expert_bytes = element_count(shape) * size_of(DType::kBF16);
    auto* stack = static_cast<std::byte*>(allocate(count * expert_bytes));
    for (int expert = 0; expert < count; ++expert) {
      std::string tensor = prefix;
      tensor.append(std::to_string(expert)).append(".").append(name).append(".weight");
      bf16_into(tensor, stack + expert * expert_bytes);
    }
    return {stack, DType::kBF16, {count, shape[0], shape[1]}};
  }

  /// kv_b_proj [heads * (nope + v), 512], per head nope rows of W_UK and then v rows of W_UV, into the two.
  void split_kv_b(const std::string& name, const ModelConfig& config, AttentionWeights& attention) {
    const auto nope = static_cast<std::size_t>(config.nope_dim) * kLatentDim;
    const auto v = static_cast<std::size_t>(config.v_dim) * kLatentDim;
    const auto heads = static_cast<std::size_t>(config.heads);
    auto* w_uk = static_cast<Bf16*>(allocate(static_cast<std::int64_t>(heads * nope * sizeof(Bf16))));
    auto* w_uv = static_cast<Bf16*>(allocate(static_cast<std::int64_t>(heads * v * sizeof(Bf16))));
    later(name, [=, this](ReadAhead& ahead) {
      const std::vector<Bf16> kv_b = take_whole(name, ahead);
      for (std::size_t head = 0; head < heads; ++head) {
        const auto both = std::span(kv_b).subspan(head * (nope + v), nope + v);
        copy(w_uk + head * nope, both.first(nope));
        copy(w_uv + head * v, both.last(v));
      }
    });
    attention.w_uk = {w_uk, DType::kBF16, {config.heads, config.nope_dim, kLatentDim}};
    attention.w_uv = {w_uv, DType::kBF16, {config.heads, config.v_dim, kLatentDim}};
  }

  void read_all() {
    std::sort(reads_.begin(), reads_.end(), [](const Read& a, const Read& b) { return a.place < b.place; });
    std::vector<ReadAhead::Part> parts;
    for (const Read& read : reads_) parts.insert(parts.end(), read.parts.begin(), read.parts.end());
    ReadAhead ahead(std::move(parts));
    for (const Read& read : reads_) read.run(ahead);
    reads_.clear();
  }

  [[nodiscard]] const TensorNames& names() const { return names_; }
  [[nodiscard]] ModelWeights& weights() { return weights_; }

 private:
  using Place = std::pair<const SafetensorsFile*, std::int64_t>;
  using TakeBf16 = std::function<void(std::int64_t first, std::span<const Bf16> elements)>;

  struct Read {
    Place place;
    std::vector<ReadAhead::Part> parts;
    std::function<void(ReadAhead&)> run;  ///< takes the parts
  };

  [[nodiscard]] Place place_of(const std::string& name) const {
    return {&checkpoint_.file_of(name), checkpoint_.info(name).begin};
  }

  void later(const std::string& name, std::function<void(ReadAhead&)> run) {
    const TensorInfo& info = checkpoint_.info(name);
    const std::int64_t most = part_bytes(info);
    std::vector<ReadAhead::Part> parts;
    for (std::int64_t begin = info.begin; begin < info.end; begin += most) {
      parts.push_back({&checkpoint_.file_of(name).file(), begin, std::min(most, info.end - begin)});
    }
    reads_.push_back({place_of(name), std::move(parts), std::move(run)});
  }

  /// About a megabyte, which stays in the processor's caches until it has been copied; whole rows where each has its
  /// scales.
  static std::int64_t part_bytes(const TensorInfo& info) {
    constexpr std::int64_t kBytes = 1 << 20;
    if (info.dtype != DType::kE4M3) return kBytes;
    const std::int64_t columns = info.shape.back();
    return std::max<std::int64_t>(1, kBytes / 2 / columns) * columns;
  }

  /// Takes a tensor's parts and hands them on as bf16; `first` is the index of the first element.
  void take_parts(const std::string& name, ReadAhead& ahead, const TakeBf16& take) const {
    const TensorInfo& info = checkpoint_.info(name);
    const std::int64_t count = element_count(info.shape);
    std::optional<Fp8Decoder> fp8;
    if (info.dtype == DType::kE4M3) fp8.emplace(checkpoint_, name, fp8_);
    std::vector<Bf16> converted;
    for (std::int64_t first = 0; first < count;) {
      const std::span<const std::byte> stored = ahead.next();
      std::span<const Bf16> elements;
      if (fp8) {
        fp8->decode(first / info.shape.back(), stored, converted);
        elements = converted;
      } else {
        elements = as_bf16(info.dtype, stored, converted);
      }
      take(first, elements);
      first += std::ssize(elements);
    }
  }

  [[nodiscard]] std::vector<Bf16> take_whole(const std::string& name, ReadAhead& ahead) const {
    std::vector<Bf16> values;
    take_parts(name, ahead, [&](std::int64_t /*first*/, std::span<const Bf16> elements) {
      values.insert(values.end(), elements.begin(), elements.end());
    });
    return values;
  }

  /// The tensor as bf16 into memory of the backend, which is returned.
  void* bf16_into(const std::string& name, void* dst) {
    later(name, [this, name, dst](ReadAhead& ahead) {
      take_parts(name, ahead, [&](std::int64_t first, std::span<const Bf16> elements) {
        copy(static_cast<Bf16*>(dst) + first, elements);
      });
    });
    return dst;
  }

  void check(const TensorSpec& tensor) const {
    const TensorInfo& info = checkpoint_.info(tensor.name);
    if (info.dtype == DType::kE4M3) return check_fp8(checkpoint_, tensor.name, tensor.shape, fp8_);
    checkpoint_.require_floats(tensor.name, tensor.shape);
  }

  void* allocate(std::int64_t bytes) {
    weights_.bytes += bytes;
    return weights_.buffers.emplace_back(backend_, bytes).data();
  }

  template <class T>
  void copy(void* dst, std::span<const T> src) {
    backend_.copy(dst, src.data(), static_cast<std::int64_t>(src.size_bytes()), CopyKind::kHostToDevice,
                  Stream{});
    backend_.synchronize(Stream{});
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
  const Checkpoint& checkpoint_;
  const TensorNames& names_;
  Fp8Blocks fp8_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  std::vector<Read> reads_;
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
  loader.read_all();
  return std::move(weights);
}

}  // namespace snapmla
