// load_weights: names to tensors, the split of kv_b_proj, stacked experts, and what wrong checkpoints get.
#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/bf16.h"
#include "snapmla/error.h"
#include "support/checkpoint.h"

namespace snapmla {
namespace {

using ::testing::HasSubstr;
using testing::NamedTensor;
using testing::TempDir;
using testing::tiny_config;
using Tensors = std::vector<NamedTensor>;

const NamedTensor& find(const Tensors& tensors, const std::string& name) {
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [&](const NamedTensor& tensor) { return tensor.name == name; });
  if (it == tensors.end()) throw std::runtime_error("no tensor " + name);
  return *it;
}

NamedTensor& find(Tensors& tensors, const std::string& name) {
  return const_cast<NamedTensor&>(find(static_cast<const Tensors&>(tensors), name));
}

ModelWeights load(const nlohmann::json& config, const Tensors& tensors,
                  testing::StoredAs stored = testing::StoredAs::kBf16) {
  const TempDir dir;
  testing::write_file(dir.file("config.json"), config.dump());
  testing::write_safetensors(dir.file("model.safetensors"), tensors, stored);
  const Checkpoint checkpoint(dir.path());
  return load_weights(reference(), checkpoint, load_config(dir.path()));
}

std::vector<float> values_of(const ConstTensorView& view) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < view.num_elements(); ++i) {
    values.push_back(view.dtype() == DType::kF32 ? view.as<float>()[i] : to_float(view.as<Bf16>()[i]));
  }
  return values;
}

TEST(Weights, AreFoundByName) {
  nlohmann::json config = tiny_config();
  config["q_lora_rank"] = 24;
  config["attention_bias"] = true;
  const Tensors tensors = testing::make_tensors(config, 4);
  const ModelWeights weights = load(config, tensors);
  const auto expect = [&](const ConstTensorView& view, const std::string& name) {
    ASSERT_TRUE(view.present()) << name;
    EXPECT_EQ(values_of(view), find(tensors, name).values) << name;
  };
  expect(weights.embedding, "model.embed_tokens.weight");
  expect(weights.norm, "model.norm.weight");
  expect(weights.lm_head.weight, "lm_head.weight");
  ASSERT_EQ(weights.layers.size(), 2U);
  const LayerWeights& layer = weights.layers[1];
  const std::string prefix = "model.layers.1.";
  expect(layer.attention_norm, prefix + "input_layernorm.weight");
  expect(layer.ffn_norm, prefix + "post_attention_layernorm.weight");
  expect(layer.attention.q_a.weight, prefix + "self_attn.q_a_proj.weight");
  expect(layer.attention.q_a.bias, prefix + "self_attn.q_a_proj.bias");
  expect(layer.attention.q_a_norm, prefix + "self_attn.q_a_layernorm.weight");
  expect(layer.attention.q_b.weight, prefix + "self_attn.q_b_proj.weight");
  expect(layer.attention.kv_a.weight, prefix + "self_attn.kv_a_proj_with_mqa.weight");
  expect(layer.attention.kv_a.bias, prefix + "self_attn.kv_a_proj_with_mqa.bias");
  expect(layer.attention.kv_a_norm, prefix + "self_attn.kv_a_layernorm.weight");
  expect(layer.attention.o.weight, prefix + "self_attn.o_proj.weight");
  expect(layer.attention.o.bias, prefix + "self_attn.o_proj.bias");
  expect(layer.moe.router, prefix + "mlp.gate.weight");
  expect(layer.moe.router_bias, prefix + "mlp.gate.e_score_correction_bias");
  expect(layer.ffn.gate.weight, prefix + "mlp.shared_experts.gate_proj.weight");
  expect(layer.ffn.up.weight, prefix + "mlp.shared_experts.up_proj.weight");
  expect(layer.ffn.down.weight, prefix + "mlp.shared_experts.down_proj.weight");
  expect(weights.layers[0].ffn.down.weight, "model.layers.0.mlp.down_proj.weight");
  EXPECT_FALSE(weights.layers[0].moe.router.present());
  EXPECT_EQ(layer.moe.router.dtype(), DType::kF32);
}

TEST(Weights, SplitKvBIntoHeads) {
  const Tensors tensors = testing::make_tensors(tiny_config(), 4);
  const ModelWeights weights = load(tiny_config(), tensors);
  const std::vector<float>& kv_b = find(tensors, "model.layers.0.self_attn.kv_b_proj.weight").values;
  const ConstTensorView w_uk = weights.layers[0].attention.w_uk;
  const ConstTensorView w_uv = weights.layers[0].attention.w_uv;
  ASSERT_EQ(to_string(w_uk), "bf16 [2, 32, 512]");
  ASSERT_EQ(to_string(w_uv), "bf16 [2, 32, 512]");
  const std::vector<float> uk = values_of(w_uk);
  const std::vector<float> uv = values_of(w_uv);
  const std::size_t block = 32 * 512;  // head 0's nope rows, its v rows, head 1's nope rows, its v rows
  for (std::size_t i = 0; i < block; ++i) {
    ASSERT_EQ(uk[i], kv_b[i]);
    ASSERT_EQ(uv[i], kv_b[block + i]);
    ASSERT_EQ(uk[block + i], kv_b[2 * block + i]);
    ASSERT_EQ(uv[block + i], kv_b[3 * block + i]);
  }
}

TEST(Weights, StackExperts) {
  const Tensors tensors = testing::make_tensors(tiny_config(), 4);
  const ModelWeights weights = load(tiny_config(), tensors);
  const MoeWeights& moe = weights.layers[1].moe;
  ASSERT_EQ(to_string(moe.up), "bf16 [8, 32, 64]");
  ASSERT_EQ(to_string(moe.down), "bf16 [8, 64, 32]");
  const std::vector<float> up = values_of(moe.up);
  const std::vector<float> gate = values_of(moe.gate);
  for (std::size_t expert = 0; expert < 8; ++expert) {
    const std::string prefix = "model.layers.1.mlp.experts." + std::to_string(expert) + '.';
    const std::vector<float>& one = find(tensors, prefix + "up_proj.weight").values;
    EXPECT_TRUE(
        std::equal(one.begin(), one.end(), up.begin() + static_cast<std::ptrdiff_t>(expert * one.size())));
    const std::vector<float>& two = find(tensors, prefix + "gate_proj.weight").values;
    EXPECT_TRUE(
        std::equal(two.begin(), two.end(), gate.begin() + static_cast<std::ptrdiff_t>(expert * two.size())));
  }
}

TEST(Weights, TiedEmbeddingsAreTheHead) {
  nlohmann::json config = tiny_config();
  config["tie_word_embeddings"] = true;
  const ModelWeights weights = load(config, testing::make_tensors(config, 4));
  EXPECT_EQ(weights.lm_head.weight.data(), weights.embedding.data());
}

TEST(Weights, TheStoredTypeChangesNothing) {
  const Tensors tensors = testing::make_tensors(tiny_config(), 4);
  const ModelWeights bf16 = load(tiny_config(), tensors);
  const ModelWeights f32 = load(tiny_config(), tensors, testing::StoredAs::kF32);
  EXPECT_EQ(values_of(f32.layers[1].moe.down), values_of(bf16.layers[1].moe.down));
  EXPECT_EQ(values_of(f32.layers[1].moe.router), values_of(bf16.layers[1].moe.router));
}

TEST(Weights, LayersBeyondTheModelAreLeftAlone) {
  Tensors tensors = testing::make_tensors(tiny_config(), 4);
  const std::int64_t parameters = load(tiny_config(), tensors).num_parameters;
  tensors.push_back(testing::random_tensor(1, "model.layers.2.eh_proj.weight", {4, 4}, 1));
  EXPECT_EQ(load(tiny_config(), tensors).num_parameters, parameters);
}

Error error_of(const nlohmann::json& config, const Tensors& tensors) {
  try {
    load(config, tensors);
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e;
  }
  ADD_FAILURE() << "no Error was thrown";
  return {ErrorCode::kInternal, "none"};
}

TEST(Weights, AMissingTensorIsNamed) {
  const Tensors all = testing::make_tensors(tiny_config(), 4);
  for (const NamedTensor& missing : all) {
    Tensors tensors;
    for (const NamedTensor& tensor : all) {
      if (tensor.name != missing.name) tensors.push_back(tensor);
    }
    const Error error = error_of(tiny_config(), tensors);
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_THAT(error.what(), HasSubstr(missing.name));
  }
}

TEST(Weights, AWrongShapeIsNamed) {
  for (const char* name :
       {"model.embed_tokens.weight", "model.layers.0.self_attn.kv_b_proj.weight",
        "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.1.mlp.experts.7.down_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight", "model.norm.weight", "lm_head.weight"}) {
    Tensors tensors = testing::make_tensors(tiny_config(), 4);
    NamedTensor& tensor = find(tensors, name);
    tensor.shape.push_back(1);
    const Error error = error_of(tiny_config(), tensors);
    EXPECT_EQ(error.code(), ErrorCode::kCorruptFile) << name;
    EXPECT_THAT(error.what(), HasSubstr("model.safetensors"));
    EXPECT_THAT(error.what(), HasSubstr(name));
  }
  // A config that does not belong to the weights.
  nlohmann::json config = tiny_config();
  config["num_attention_heads"] = 4;
  EXPECT_EQ(error_of(config, testing::make_tensors(tiny_config(), 4)).code(), ErrorCode::kCorruptFile);
}

}  // namespace
}  // namespace snapmla
