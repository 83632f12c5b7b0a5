// FP8 checkpoints on a backend that prefers e4m3 weights: which stay so, and that models say the same, bit for bit, as
// where all become bf16.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "config_files.h"
#include "model/fp8_weights.h"
#include "model/model.h"
#include "model/weights.h"
#include "model_runner.h"
#include "support/checkpoint.h"
#include "support/e4m3_backend.h"

namespace snapmla {
namespace {

using testing::E4m3Backend;
using ::testing::HasSubstr;
using testing::NamedTensor;
using testing::StoredAs;
using testing::TempDir;
using Tensors = std::vector<NamedTensor>;

constexpr const char* kAttention = "model.layers.1.self_attn.";
constexpr const char* kExperts = "model.layers.1.mlp.experts.";

/// Every matrix of it can stay e4m3. kv_a_proj_with_mqa has 576 outputs, blocks of 128 do not end with it.
nlohmann::json wide_config() {
  nlohmann::json config = testing::tiny_config();
  config["hidden_size"] = 256;
  config["intermediate_size"] = 384;
  config["moe_intermediate_size"] = 128;
  config["q_lora_rank"] = 128;
  config["v_head_dim"] = 64;
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  return config;
}

nlohmann::json stacked_config(int inter) {
  nlohmann::json config = wide_config();
  config["model_type"] = "mistral4";
  config["moe_intermediate_size"] = inter;
  config.erase("scoring_func");
  config.erase("topk_method");
  config.erase("rope_scaling");
  config["n_group"] = 1;
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
  return config;
}

/// A stack of matrices in FP8, each with its blocks.
std::pair<NamedTensor, NamedTensor> stack_to_fp8(const NamedTensor& stack) {
  NamedTensor codes{stack.name, stack.shape, {}, StoredAs::kE4m3};
  NamedTensor scales{stack.name + "_scale_inv", stack.shape, {}, StoredAs::kF32};
  const std::int64_t matrix = stack.shape[1] * stack.shape[2];
  for (std::int64_t i = 0; i < stack.shape[0]; ++i) {
    const auto begin = stack.values.begin() + i * matrix;
    const auto [code, scale] =
        testing::to_fp8({"", {stack.shape[1], stack.shape[2]}, {begin, begin + matrix}}, 128, 128, "scales");
    codes.values.insert(codes.values.end(), code.values.begin(), code.values.end());
    scales.values.insert(scales.values.end(), scale.values.begin(), scale.values.end());
    scales.shape = {stack.shape[0], scale.shape[0], scale.shape[1]};
  }
  return {codes, scales};
}

Tensors fp8_tensors(const nlohmann::json& config) {
  const std::int64_t block = config.at("quantization_config").at("weight_block_size").at(0);
  Tensors tensors;
  for (NamedTensor& tensor : testing::quantize_fp8(testing::make_tensors(config, 4), block)) {
    if (tensor.shape.size() != 3) {
      tensors.push_back(std::move(tensor));
      continue;
    }
    auto [codes, scales] = stack_to_fp8(tensor);
    tensors.push_back(std::move(codes));
    tensors.push_back(std::move(scales));
  }
  return tensors;
}

NamedTensor& find(Tensors& tensors, const std::string& name) {
  for (NamedTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::runtime_error("no tensor " + name);
}

/// A checkpoint in a folder of its own.
struct Stored {
  Stored(const nlohmann::json& json, const Tensors& tensors)
      : config(load_config(testing::write_checkpoint(dir.path(), json, tensors))) {}
  explicit Stored(const nlohmann::json& json) : Stored(json, fp8_tensors(json)) {}

  [[nodiscard]] ModelWeights weights(Backend& backend) const {
    return load_weights(backend, Checkpoint(dir.path()), config);
  }

  /// Logits of a prompt in two chunks, and of two decode steps.
  [[nodiscard]] std::vector<std::vector<float>> logits(Backend& backend) const {
    testing::ModelRunner runner(
        Model::load(backend, dir.path(), config,
                    {.max_batch = 1, .max_chunk = 8, .max_seq_len = 64, .deterministic = true}),
        4, backend);
    testing::Sequence sequence;
    std::vector<std::vector<float>> all;
    all.push_back(runner.prefill(sequence, {5, 17, 80, 299, 4, 33, 21, 7, 9, 120, 65}, 8));
    all.push_back(runner.decode(sequence, 44));
    all.push_back(runner.decode(sequence, 208));
    return all;
  }

  TempDir dir;
  ModelConfig config;
};

/// The logits are those of the reference backend; returns how many products had an e4m3 weight.
int expect_same_logits(const Stored& stored) {
  E4m3Backend backend;
  const auto kept = stored.logits(backend);
  const auto converted = stored.logits(reference());
  EXPECT_EQ(kept, converted);
  EXPECT_GT(std::abs(kept[0][0]) + std::abs(kept[0][1]), 0);
  return backend.num_e4m3_products();
}

std::string types_of(const MoeWeights& moe) {
  std::string types;
  for (const WeightView* weight : {&moe.gate, &moe.up, &moe.down}) {
    types += std::string(to_string(weight->values.dtype())) + ' ';
  }
  return types;
}

constexpr const char* kAllE4m3 = "e4m3 e4m3 e4m3 ";
constexpr const char* kAllBf16 = "bf16 bf16 bf16 ";

TEST(E4m3Weights, StayWhereProductsTakeThem) {
  const Stored stored(wide_config());
  E4m3Backend backend;
  const ModelWeights weights = stored.weights(backend);
  for (const LayerWeights& layer : weights.layers) {
    const AttentionWeights& attention = layer.attention;
    for (const LinearWeight* weight : {&attention.q_a, &attention.q_b, &attention.kv_a, &attention.o,
                                       &layer.ffn.gate, &layer.ffn.up, &layer.ffn.down}) {
      EXPECT_TRUE(weight->weight.is_e4m3());
      EXPECT_EQ(weight->weight.values.dtype(), DType::kE4M3);
    }
    EXPECT_EQ(attention.w_uk.dtype(), DType::kBF16);
    EXPECT_EQ(attention.w_uv.dtype(), DType::kBF16);
  }
  EXPECT_EQ(to_string(weights.layers[1].attention.kv_a.weight.values), "e4m3 [576, 256]");
  EXPECT_EQ(to_string(weights.layers[1].attention.kv_a.weight.scales), "f32 [5, 2]");
  EXPECT_EQ(types_of(weights.layers[1].moe), kAllE4m3);
  EXPECT_EQ(to_string(weights.layers[1].moe.down.values), "e4m3 [8, 256, 128]");
  EXPECT_EQ(to_string(weights.layers[1].moe.down.scales), "f32 [8, 2, 1]");
  EXPECT_FALSE(weights.lm_head.weight.is_e4m3()) << "it is bf16 in the file";

  // A byte for what is kept in place of two, and its scales.
  const ModelWeights converted = stored.weights(reference());
  std::int64_t saved = 0;
  const auto count = [&](const WeightView& weight) {
    saved += weight.values.num_elements() - weight.scales.num_elements() * size_of(DType::kF32);
  };
  for (const LayerWeights& layer : weights.layers) {
    for (const LinearWeight* weight : {&layer.attention.q_a, &layer.attention.q_b, &layer.attention.kv_a,
                                       &layer.attention.o, &layer.ffn.gate, &layer.ffn.up, &layer.ffn.down}) {
      count(weight->weight);
    }
  }
  for (const WeightView* weight :
       {&weights.layers[1].moe.gate, &weights.layers[1].moe.up, &weights.layers[1].moe.down}) {
    count(*weight);
  }
  EXPECT_EQ(weights.bytes, converted.bytes - saved);
  EXPECT_EQ(weights.num_parameters, converted.num_parameters);
}

TEST(E4m3Weights, GiveTheSameLogitsBitForBit) {
  EXPECT_EQ(expect_same_logits(Stored(wide_config())), 4 * (4 + 3) + 4 * (4 + 3 + 1));
}

TEST(E4m3Weights, GiveTheSameLogitsWithBiases) {
  nlohmann::json config = wide_config();
  config["attention_bias"] = true;
  EXPECT_GT(expect_same_logits(Stored(config)), 0);
}

// hidden is 160: of every layer o alone, [160, 128], can stay.
TEST(E4m3Weights, OfOddShapesBecomeBf16) {
  nlohmann::json config = wide_config();
  config["hidden_size"] = 160;
  config["q_lora_rank"] = 144;
  config["moe_intermediate_size"] = 48;
  config["intermediate_size"] = 192;
  const Stored stored(config);
  EXPECT_EQ(expect_same_logits(stored), 4 * 2);
  E4m3Backend backend;
  const ModelWeights weights = stored.weights(backend);
  EXPECT_TRUE(weights.layers[0].attention.o.weight.is_e4m3());
  EXPECT_FALSE(weights.layers[0].attention.q_b.weight.is_e4m3());
  EXPECT_FALSE(weights.layers[0].attention.kv_a.weight.is_e4m3());
  EXPECT_EQ(types_of(weights.layers[1].moe), kAllBf16);
}

// down of the experts has 48 inputs: gate and up, which could stay, go with it.
TEST(E4m3Weights, OfExpertsStayTogetherOrNotAtAll) {
  nlohmann::json config = wide_config();
  config["moe_intermediate_size"] = 48;
  const Stored stored(config);
  E4m3Backend backend;
  EXPECT_EQ(types_of(stored.weights(backend).layers[1].moe), kAllBf16);
  EXPECT_GT(expect_same_logits(stored), 0);
}

TEST(E4m3Weights, InStacksOfGateAndUpAreCutWithTheirScales) {
  const Stored stored(stacked_config(128));
  E4m3Backend backend;
  const ModelWeights weights = stored.weights(backend);
  const MoeWeights& moe = weights.layers[1].moe;
  EXPECT_EQ(types_of(moe), kAllE4m3);
  EXPECT_EQ(moe.up.values.as<E4m3>() - moe.gate.values.as<E4m3>(), 128 * 256);
  EXPECT_EQ(to_string(moe.up.scales), "f32 [8, 1, 2]");
  EXPECT_GT(expect_same_logits(stored), 0);
}

// A block would have rows of gate and of up.
TEST(E4m3Weights, InStacksWhoseHalvesShareABlockBecomeBf16) {
  const Stored stored(stacked_config(64));
  E4m3Backend backend;
  const Checkpoint checkpoint(stored.dir.path());
  EXPECT_FALSE(kept_scales(backend.plain_ops(), checkpoint, std::string(kExperts) + "gate_up_proj",
                           stored.config.fp8, 2)
                   .has_value());
  EXPECT_EQ(types_of(stored.weights(backend).layers[1].moe), kAllBf16);
  EXPECT_GT(expect_same_logits(stored), 0);
}

TEST(E4m3Weights, WithExponentsForScalesStay) {
  Tensors tensors = fp8_tensors(wide_config());
  for (NamedTensor& tensor : tensors) {
    if (!testing::ends_with(tensor.name, "_scale_inv")) continue;
    tensor.stored = StoredAs::kE8m0;
    for (float& scale : tensor.values) scale = std::ldexp(1.0F, std::ilogb(scale));
  }
  EXPECT_EQ(expect_same_logits(Stored(wide_config(), tensors)), 4 * (4 + 3) + 4 * (4 + 3 + 1));
}

TEST(E4m3Weights, InOtherBlocksBecomeBf16) {
  nlohmann::json config = wide_config();
  config["quantization_config"]["weight_block_size"] = {64, 64};
  EXPECT_EQ(expect_same_logits(Stored(config)), 0);
}

TEST(E4m3Weights, OfTheHeadStayWhereTheyAreInTheFile) {
  Tensors tensors = fp8_tensors(wide_config());
  NamedTensor& head = find(tensors, "lm_head.weight");
  head.shape[0] = 304;
  head.values.resize(304 * 256, 0.5F);
  NamedTensor& embedding = find(tensors, "model.embed_tokens.weight");
  embedding.shape[0] = 304;
  embedding.values.resize(304 * 256, 0.5F);
  auto [codes, scales] = testing::to_fp8(head, 128, 128, "lm_head.weight_scale_inv");
  head = codes;
  tensors.push_back(scales);
  nlohmann::json config = wide_config();
  config["vocab_size"] = 304;
  const Stored stored(config, tensors);
  E4m3Backend backend;
  const ModelWeights weights = stored.weights(backend);
  EXPECT_TRUE(weights.lm_head.weight.is_e4m3());
  EXPECT_EQ(to_string(weights.lm_head.weight.scales), "f32 [3, 2]");
  EXPECT_GT(expect_same_logits(stored), 0);
}

TEST(E4m3Weights, StayOnlyWhereTheOpsPreferThem) {
  const Stored stored(wide_config());
  const Checkpoint checkpoint(stored.dir.path());
  const std::string name = std::string(kAttention) + "kv_a_proj_with_mqa.weight";
  const Fp8Blocks blocks = stored.config.fp8;
  E4m3Backend backend;
  const auto scales = kept_scales(backend.plain_ops(), checkpoint, name, blocks);
  ASSERT_TRUE(scales.has_value());
  EXPECT_EQ(scales->size(), 5U * 2U);
  EXPECT_FALSE(kept_scales(reference().plain_ops(), checkpoint, name, blocks).has_value());
  EXPECT_FALSE(kept_scales(backend.plain_ops(), checkpoint, "lm_head.weight", blocks).has_value());
}

// Neither a product nor a conversion must meet one.
TEST(E4m3Weights, ThatAreNanAreRefusedOnBothWays) {
  const std::string kept = std::string(kExperts) + "5.down_proj.weight";
  const std::string split = std::string(kAttention) + "kv_b_proj.weight";
  for (const std::string& name : {kept, split}) {
    Tensors tensors = fp8_tensors(wide_config());
    find(tensors, name).values.back() = NAN;
    const Stored stored(wide_config(), tensors);
    E4m3Backend prefers;
    for (Backend* backend : {static_cast<Backend*>(&prefers), &reference()}) {
      const Error error = testing::error_of([&] { (void)stored.weights(*backend); });
      EXPECT_EQ(error.code(), ErrorCode::kCorruptFile);
      EXPECT_THAT(error.what(), HasSubstr(stored.dir.path()));
      EXPECT_THAT(error.what(), HasSubstr("\"" + name + "\" must be of numbers; got a NaN"));
    }
  }
}

}  // namespace
}  // namespace snapmla
