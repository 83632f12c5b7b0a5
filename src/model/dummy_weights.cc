#include "model/dummy_weights.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/bf16.h"
#include "core/mix_bits.h"
#include "core/plain_ops.h"

namespace snapmla {
namespace {

/// What a tensor is: with its layer, a stream of random numbers of its own.
enum class Part : std::uint8_t {
  kEmbedding,
  kLmHead,
  kQA,
  kQB,
  kKvA,
  kUk,
  kUv,
  kO,
  kGate,
  kUp,
  kDown,
  kRouter,
  kExpertGate,
  kExpertUp,
  kExpertDown,
};

class Maker {
 public:
  Maker(Backend& backend, const ModelConfig& config, std::uint64_t seed)
      : backend_(backend), config_(config), seed_(seed) {}

  ModelWeights make() {
    constexpr int kOutside = -1;
    weights_.embedding = random({Part::kEmbedding, kOutside}, 1, {config_.vocab, config_.hidden});
    for (int layer = 0; layer < config_.num_layers; ++layer) weights_.layers.push_back(make_layer(layer));
    weights_.norm = norm(config_.hidden);
    weights_.lm_head = config_.tied_embeddings
                           ? LinearWeight{.weight = weights_.embedding, .bias = {}}
                           : matrix({Part::kLmHead, kOutside}, config_.vocab, config_.hidden);
    backend_.synchronize(Stream{});
    return std::move(weights_);
  }

 private:
  struct Place {
    Part part;
    int layer;
    std::uint64_t first = 0;  ///< of the whole model's tensor
  };

  LayerWeights make_layer(int index) {
    LayerWeights layer;
    layer.attention_norm = norm(config_.hidden);
    layer.attention = make_attention(index);
    layer.ffn_norm = norm(config_.hidden);
    const bool has_experts = config_.is_moe_layer(index);
    if (has_experts) layer.moe = make_moe(index);
    if (has_experts && config_.post_ffn_norm) layer.post_ffn_norm = norm(config_.hidden);
    if (!has_experts || config_.shortcut_experts) {
      layer.ffn = make_ffn(index, config_.intermediate);
    } else if (config_.num_shared_experts > 0) {
      layer.ffn = make_ffn(index, config_.num_shared_experts * config_.moe_intermediate);
    }
    return layer;
  }

  AttentionWeights make_attention(int layer) {
    AttentionWeights attention;
    const int q_width = config_.heads * (config_.nope_dim + kRopeDim);
    if (config_.q_lora > 0) {
      attention.q_a = matrix({Part::kQA, layer}, config_.q_lora, config_.hidden);
      attention.q_a_norm = norm(config_.q_lora, config_.query_scale);
    }
    attention.q_b = matrix({Part::kQB, layer}, q_width, config_.q_lora > 0 ? config_.q_lora : config_.hidden);
    attention.kv_a = matrix({Part::kKvA, layer}, kTokenDim, config_.hidden);
    attention.kv_a_norm = norm(kLatentDim, config_.latent_scale);
    attention.w_uk = random({Part::kUk, layer}, kLatentDim, {config_.heads, config_.nope_dim, kLatentDim});
    attention.w_uv = random({Part::kUv, layer}, kLatentDim, {config_.heads, config_.v_dim, kLatentDim});
    attention.o =
        matrix({Part::kO, layer}, config_.hidden, std::int64_t{config_.heads} * config_.v_dim, branches());
    if (config_.attention_bias) {
      if (config_.q_lora > 0) attention.q_a.bias = zeros(config_.q_lora, DType::kBF16);
      attention.kv_a.bias = zeros(kTokenDim, DType::kBF16);
      attention.o.bias = zeros(config_.hidden, DType::kBF16);
    }
    return attention;
  }

  FfnWeights make_ffn(int layer, int inter) {
    return {.gate = matrix({Part::kGate, layer}, inter, config_.hidden),
            .up = matrix({Part::kUp, layer}, inter, config_.hidden),
            .down = matrix({Part::kDown, layer}, config_.hidden, inter, branches())};
  }

  MoeWeights make_moe(int layer) {
    const int routed = config_.num_experts + config_.num_zero_experts;
    MoeWeights moe;
    moe.router = random({Part::kRouter, layer, first_of(config_.hidden)}, config_.hidden,
                        {routed, config_.hidden}, DType::kF32);
    if (config_.router_bias == Presence::kAlways) moe.router_bias = zeros(routed, DType::kF32);
    const std::int64_t inter = config_.moe_intermediate;
    const std::uint64_t first = first_of(inter * config_.hidden);
    moe.gate = random({Part::kExpertGate, layer, first}, config_.hidden,
                      {config_.num_experts, inter, config_.hidden});
    moe.up =
        random({Part::kExpertUp, layer, first}, config_.hidden, {config_.num_experts, inter, config_.hidden});
    moe.down = random({Part::kExpertDown, layer, first}, static_cast<double>(inter) * branches(),
                      {config_.num_experts, config_.hidden, inter});
    return moe;
  }

  /// What a branch's sum over its inputs is divided by beside their number.
  [[nodiscard]] double branches() const { return 2.0 * config_.num_layers; }

  /// The numbers before those of this config's first expert, of a tensor with so many an expert.
  [[nodiscard]] std::uint64_t first_of(std::int64_t an_expert) const {
    return static_cast<std::uint64_t>(config_.first_expert) * static_cast<std::uint64_t>(an_expert);
  }

  LinearWeight matrix(const Place& place, std::int64_t out, std::int64_t in, double damping = 1) {
    return {.weight = random(place, static_cast<double>(in) * damping, {out, in}), .bias = {}};
  }

  /// Numbers of deviation 1 / sqrt(inputs).
  ConstTensorView random(const Place& place, double inputs, std::initializer_list<std::int64_t> shape,
                         DType dtype = DType::kBF16) {
    const TensorView view = allocate(dtype, shape);
    constexpr unsigned kPartBits = 8;
    const auto layer = static_cast<std::uint64_t>(std::int64_t{place.layer} + 1);
    const std::uint64_t which = (layer << kPartBits) | static_cast<std::uint64_t>(place.part);
    backend_.plain_ops().fill_random(view,
                                     {.seed = mix_bits(mix_bits(seed_) + which),
                                      .first = place.first,
                                      .deviation = static_cast<float>(1 / std::sqrt(inputs))},
                                     Stream{});
    return view;
  }

  ConstTensorView norm(std::int64_t width, double value = 1) {
    return upload(std::vector<Bf16>(static_cast<std::size_t>(width), to_bf16(static_cast<float>(value))));
  }

  ConstTensorView zeros(std::int64_t width, DType dtype) {
    const std::vector<std::byte> bytes(static_cast<std::size_t>(width * size_of(dtype)));
    const TensorView view = allocate(dtype, {width});
    copy(view, bytes.data());
    return view;
  }

  ConstTensorView upload(const std::vector<Bf16>& values) {
    const TensorView view = allocate(DType::kBF16, {static_cast<std::int64_t>(values.size())});
    copy(view, values.data());
    return view;
  }

  void copy(const TensorView& to, const void* from) {
    backend_.copy(to.data(), from, to.num_elements() * size_of(to.dtype()), CopyKind::kHostToDevice,
                  Stream{});
    backend_.synchronize(Stream{});  // `from` does not outlive this
  }

  TensorView allocate(DType dtype, std::initializer_list<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    weights_.num_parameters += count;
    weights_.bytes += count * size_of(dtype);
    return {weights_.buffers.emplace_back(backend_, count * size_of(dtype)).data(), dtype, shape};
  }

  Backend& backend_;
  const ModelConfig& config_;
  std::uint64_t seed_;
  ModelWeights weights_;
};

}  // namespace

ModelWeights make_dummy_weights(Backend& backend, const ModelConfig& config, std::uint64_t seed) {
  return Maker(backend, config, seed).make();
}

}  // namespace snapmla
