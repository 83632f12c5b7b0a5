#include "model/dummy_weights.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/bf16.h"
#include "core/mix_bits.h"
#include "core/plain_ops.h"
#include "model/fp8_weights.h"

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
                           : LinearWeight{.weight = random({Part::kLmHead, kOutside}, config_.hidden,
                                                           {config_.vocab, config_.hidden}),
                                          .bias = {}};
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
    const std::int64_t hidden = config_.hidden;
    const bool fp8 =
        stays_e4m3(ops_, config_.fp8, inter, hidden) && stays_e4m3(ops_, config_.fp8, hidden, inter);
    const auto stack = [&](Part part, double inputs, std::int64_t out, std::int64_t in) {
      const Place place{part, layer, first};
      return fp8 ? random_e4m3(place, inputs, {config_.num_experts, out, in})
                 : WeightView(random(place, inputs, {config_.num_experts, out, in}));
    };
    moe.gate = stack(Part::kExpertGate, config_.hidden, inter, hidden);
    moe.up = stack(Part::kExpertUp, config_.hidden, inter, hidden);
    moe.down = stack(Part::kExpertDown, static_cast<double>(inter) * branches(), hidden, inter);
    return moe;
  }

  /// What a branch's sum over its inputs is divided by beside their number.
  [[nodiscard]] double branches() const { return 2.0 * config_.num_layers; }

  /// The numbers before those of this config's first expert, of a tensor with so many an expert.
  [[nodiscard]] std::uint64_t first_of(std::int64_t an_expert) const {
    return static_cast<std::uint64_t>(config_.first_expert) * static_cast<std::uint64_t>(an_expert);
  }

  LinearWeight matrix(const Place& place, std::int64_t out, std::int64_t in, double damping = 1) {
    const double inputs = static_cast<double>(in) * damping;
    return {.weight = stays_e4m3(ops_, config_.fp8, out, in) ? random_e4m3(place, inputs, {out, in})
                                                             : WeightView(random(place, inputs, {out, in})),
            .bias = {}};
  }

  /// Numbers of deviation 1 / sqrt(inputs).
  ConstTensorView random(const Place& place, double inputs, std::initializer_list<std::int64_t> shape,
                         DType dtype = DType::kBF16) {
    const TensorView view = allocate(dtype, shape);
    fill(place, view, 1 / std::sqrt(inputs));
    return view;
  }

  /// The same as e4m3 codes of deviation 64, whose largest are half of what e4m3 holds, and one scale for all blocks.
  WeightView random_e4m3(const Place& place, double inputs, std::initializer_list<std::int64_t> shape) {
    constexpr double kCodeDeviation = 64;
    const TensorView codes = allocate(DType::kE4M3, shape);
    weights_.num_e4m3 += codes.num_elements();
    fill(place, codes, kCodeDeviation);
    ops_.arrange_weight(codes, Stream{});
    const int row_dim = codes.rank() - 2;
    const std::int64_t rows = num_weight_blocks(codes.dim(row_dim));
    const std::int64_t columns = num_weight_blocks(codes.dim(row_dim + 1));
    const std::int64_t matrices = row_dim == 0 ? 1 : codes.dim(0);
    const std::vector<float> same(static_cast<std::size_t>(matrices * rows * columns),
                                  static_cast<float>(1 / (std::sqrt(inputs) * kCodeDeviation)));
    void* scales = make_room(std::ssize(same) * size_of(DType::kF32));
    const TensorView view = row_dim == 0 ? TensorView(scales, DType::kF32, {rows, columns})
                                         : TensorView(scales, DType::kF32, {matrices, rows, columns});
    copy(view, same.data());
    return {codes, view};
  }

  void fill(const Place& place, const TensorView& view, double deviation) {
    constexpr unsigned kPartBits = 8;
    const auto layer = static_cast<std::uint64_t>(std::int64_t{place.layer} + 1);
    const std::uint64_t which = (layer << kPartBits) | static_cast<std::uint64_t>(place.part);
    ops_.fill_random(view,
                     {.seed = mix_bits(mix_bits(seed_) + which),
                      .first = place.first,
                      .deviation = static_cast<float>(deviation)},
                     Stream{});
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
    return {make_room(count * size_of(dtype)), dtype, shape};
  }

  void* make_room(std::int64_t bytes) {
    weights_.bytes += bytes;
    return weights_.buffers.emplace_back(backend_, bytes).data();
  }

  Backend& backend_;
  const PlainOps& ops_ = backend_.plain_ops();
  const ModelConfig& config_;
  std::uint64_t seed_;
  ModelWeights weights_;
};

}  // namespace

ModelWeights make_dummy_weights(Backend& backend, const ModelConfig& config, std::uint64_t seed) {
  return Maker(backend, config, seed).make();
}

}  // namespace snapmla
