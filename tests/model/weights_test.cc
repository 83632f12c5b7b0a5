// load_weights: names to tensors, the split of kv_b_proj, stacked experts, and what wrong checkpoints get.
#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "config_files.h"
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
  expect(weights.lm_head.weight.values, "lm_head.weight");
  ASSERT_EQ(weights.layers.size(), 2U);
  const LayerWeights& layer = weights.layers[1];
  const std::string prefix = "model.layers.1.";
  expect(layer.attention_norm, prefix + "input_layernorm.weight");
  expect(layer.ffn_norm, prefix + "post_attention_layernorm.weight");
  expect(layer.attention.q_a.weight.values, prefix + "self_attn.q_a_proj.weight");
  expect(layer.attention.q_a.bias, prefix + "self_attn.q_a_proj.bias");
  expect(layer.attention.q_a_norm, prefix + "self_attn.q_a_layernorm.weight");
  expect(layer.attention.q_b.weight.values, prefix + "self_attn.q_b_proj.weight");
  expect(layer.attention.kv_a.weight.values, prefix + "self_attn.kv_a_proj_with_mqa.weight");
  expect(layer.attention.kv_a.bias, prefix + "self_attn.kv_a_proj_with_mqa.bias");
  expect(layer.attention.kv_a_norm, prefix + "self_attn.kv_a_layernorm.weight");
  expect(layer.attention.o.weight.values, prefix + "self_attn.o_proj.weight");
  expect(layer.attention.o.bias, prefix + "self_attn.o_proj.bias");
  expect(layer.moe.router, prefix + "mlp.gate.weight");
  expect(layer.moe.router_bias, prefix + "mlp.gate.e_score_correction_bias");
  expect(layer.ffn.gate.weight.values, prefix + "mlp.shared_experts.gate_proj.weight");
  expect(layer.ffn.up.weight.values, prefix + "mlp.shared_experts.up_proj.weight");
  expect(layer.ffn.down.weight.values, prefix + "mlp.shared_experts.down_proj.weight");
  expect(weights.layers[0].ffn.down.weight.values, "model.layers.0.mlp.down_proj.weight");
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
  ASSERT_EQ(to_string(moe.up.values), "bf16 [8, 32, 64]");
  ASSERT_EQ(to_string(moe.down.values), "bf16 [8, 64, 32]");
  const std::vector<float> up = values_of(moe.up.values);
  const std::vector<float> gate = values_of(moe.gate.values);
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
  EXPECT_EQ(weights.lm_head.weight.values.data(), weights.embedding.data());
}

TEST(Weights, TheStoredTypeChangesNothing) {
  const Tensors tensors = testing::make_tensors(tiny_config(), 4);
  const ModelWeights bf16 = load(tiny_config(), tensors);
  const ModelWeights f32 = load(tiny_config(), tensors, testing::StoredAs::kF32);
  EXPECT_EQ(values_of(f32.layers[1].moe.down.values), values_of(bf16.layers[1].moe.down.values));
  EXPECT_EQ(values_of(f32.layers[1].moe.router), values_of(bf16.layers[1].moe.router));
}

/// A config some of whose tensors are over a megabyte, and are read in parts.
nlohmann::json large_config() {
  nlohmann::json config = tiny_config();
  config["vocab_size"] = 9000;
  config["intermediate_size"] = 9000;
  return config;
}

void expect_equal(const ModelWeights& a, const ModelWeights& b) {
  ASSERT_EQ(a.buffers.size(), b.buffers.size());
  for (std::size_t i = 0; i < a.buffers.size(); ++i) {
    ASSERT_EQ(a.buffers[i].bytes(), b.buffers[i].bytes()) << i;
    EXPECT_EQ(
        std::memcmp(a.buffers[i].data(), b.buffers[i].data(), static_cast<std::size_t>(a.buffers[i].bytes())),
        0)
        << i;
  }
}

TEST(Weights, LargeTensorsAreReadInParts) {
  const Tensors tensors = testing::make_tensors(large_config(), 4);
  const ModelWeights weights = load(large_config(), tensors);
  EXPECT_EQ(values_of(weights.embedding), find(tensors, "model.embed_tokens.weight").values);
  EXPECT_EQ(values_of(weights.layers[0].ffn.down.weight.values),
            find(tensors, "model.layers.0.mlp.down_proj.weight").values);
  expect_equal(load(large_config(), tensors, testing::StoredAs::kF32), weights);
}

TEST(Weights, TheOrderInTheFileChangesNothing) {
  Tensors tensors = testing::make_tensors(large_config(), 4);
  const ModelWeights weights = load(large_config(), tensors);
  std::reverse(tensors.begin(), tensors.end());
  expect_equal(load(large_config(), tensors), weights);
}

NamedTensor extra(const std::string& name) {
  return testing::random_tensor(1, name, {4, 4}, 1);
}

TEST(Weights, WhatNoResultDependsOnIsLeftAlone) {
  Tensors tensors = testing::make_tensors(tiny_config(), 4);
  const std::int64_t parameters = load(tiny_config(), tensors).num_parameters;
  for (const char* name :
       {"model.layers.2.eh_proj.weight", "model.layers.2.enorm.weight",
        "model.layers.2.self_attn.kv_a_proj_with_mqa.weight", "model.layers.2.mlp.gate.weight",
        "model.layers.2.embed_tokens.weight", "model.mtp.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq", "vision_encoder.norm.weight",
        "vision_language_adapter.w_in.weight", "patch_merger.merging_layer.weight"}) {
    tensors.push_back(extra(name));
  }
  EXPECT_EQ(load(tiny_config(), tensors).num_parameters, parameters);

  nlohmann::json tied = tiny_config();
  tied["tie_word_embeddings"] = true;
  EXPECT_EQ(load(tied, testing::make_tensors(tiny_config(), 4)).num_parameters, parameters - 300 * 64);
}

Error error_of(const nlohmann::json& config, const Tensors& tensors) {
  return testing::error_of([&] { load(config, tensors); });
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

// A result without them would be that of another model.
TEST(Weights, OtherTensorsAreNamed) {
  for (const char* name :
       {"model.layers.0.self_attn.indexer.wk.weight", "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.self_attn.o_proj.weight", "model.layers.0.post_mlp_layernorm.weight",
        "model.layers.1.mlp.experts.8.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.0.mlp.up_proj.weight_packed", "score.weight"}) {
    Tensors tensors = testing::make_tensors(tiny_config(), 4);
    tensors.push_back(extra(name));
    const Error error = error_of(tiny_config(), tensors);
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << name;
    EXPECT_THAT(error.what(),
                HasSubstr("must hold the tensors of a deepseek_v3 of this config only; got 1 more, the "
                          "first \"" +
                          std::string(name) + '"'));
  }
  nlohmann::json fewer = tiny_config();  // a config of fewer layers than the checkpoint has
  fewer["num_hidden_layers"] = 1;
  EXPECT_EQ(error_of(fewer, testing::make_tensors(tiny_config(), 4)).code(), ErrorCode::kUnsupported);
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

/// A config whose matrices blocks of 128 do not divide, in FP8.
nlohmann::json fp8_config() {
  nlohmann::json config = tiny_config();
  config["hidden_size"] = 160;
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  return config;
}

using testing::StoredAs;

struct ScaleStorage {
  const char* name;
  StoredAs stored;
};

// kv_a_proj_with_mqa [576, 160] has 5 x 2 blocks: each gets a scale of its own, powers of two and, where the type
// can hold them, others.
TEST(Weights, Fp8TakesTheScaleOfItsBlock) {
  const std::string prefix = "model.layers.1.self_attn.kv_a_proj_with_mqa.";
  for (const ScaleStorage storage :
       {ScaleStorage{"weight_scale_inv", StoredAs::kF32}, ScaleStorage{"weight_scale", StoredAs::kBf16},
        ScaleStorage{"qscale_weight", StoredAs::kF32}, ScaleStorage{"weight_scale_inv", StoredAs::kE8m0},
        ScaleStorage{"weight_scale_inv", StoredAs::kU8}}) {
    Tensors tensors = testing::quantize_fp8(testing::make_tensors(fp8_config(), 4), 128);
    NamedTensor& scales = find(tensors, prefix + "weight_scale_inv");
    ASSERT_EQ(scales.shape, (std::vector<std::int64_t>{5, 2}));
    const bool exponents = storage.stored == StoredAs::kE8m0 || storage.stored == StoredAs::kU8;
    for (std::size_t i = 0; i < 10; ++i) {
      scales.values[i] = std::ldexp(exponents ? 1.0F : 1.25F, static_cast<int>(i) * 3 - 20);
    }
    scales.name = prefix + storage.name;
    scales.stored = storage.stored;
    const std::vector<float>& codes = find(tensors, prefix + "weight").values;
    const ModelWeights weights = load(fp8_config(), tensors);
    const std::vector<float> loaded = values_of(weights.layers[1].attention.kv_a.weight.values);
    ASSERT_EQ(loaded.size(), 576U * 160U);
    for (std::size_t i = 0; i < 576; ++i) {
      for (std::size_t j = 0; j < 160; ++j) {
        const float expected = round_to_bf16(codes[i * 160 + j] * scales.values[i / 128 * 2 + j / 128]);
        ASSERT_EQ(loaded[i * 160 + j], expected) << storage.name << ' ' << i << ' ' << j;
      }
    }
  }
}

// up_proj [9000, 64], with blocks of 1000 x 48: a part of it ends within a block.
TEST(Weights, Fp8ReadInPartsTakesTheScaleOfItsBlock) {
  nlohmann::json config = large_config();
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {1000, 48}}};
  Tensors tensors = testing::make_tensors(config, 4);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  auto [codes, scales] = testing::to_fp8(find(tensors, name), 1000, 48, name + "_scale_inv");
  ASSERT_EQ(scales.shape, (std::vector<std::int64_t>{9, 2}));
  for (std::size_t i = 0; i < 18; ++i) scales.values[i] = 1 + static_cast<float>(i) / 16;
  find(tensors, name) = codes;
  tensors.push_back(scales);
  const std::vector<float> loaded = values_of(load(config, tensors).layers[0].ffn.up.weight.values);
  ASSERT_EQ(loaded.size(), 9000U * 64U);
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    const float scale = scales.values[i / 64 / 1000 * 2 + i % 64 / 48];
    ASSERT_EQ(loaded[i], round_to_bf16(codes.values[i] * scale)) << i;
  }
}

// Powers of two lose nothing, wherever a matrix goes: experts are stacked, kv_b_proj is split.
TEST(Weights, Fp8WithExponentsIsExact) {
  Tensors tensors = testing::quantize_fp8(testing::make_tensors(fp8_config(), 4), 128);
  Tensors plain;
  for (NamedTensor& tensor : tensors) {
    if (testing::ends_with(tensor.name, "_scale_inv")) {
      std::fill(tensor.values.begin(), tensor.values.end(), 0.125F);
      tensor.stored = StoredAs::kE8m0;
      continue;
    }
    plain.push_back(tensor);
    if (tensor.stored == StoredAs::kE4m3) {
      for (float& value : plain.back().values) value *= 0.125F;
      plain.back().stored = StoredAs::kBf16;
    }
  }
  const ModelWeights fp8 = load(fp8_config(), tensors);
  const ModelWeights bf16 = load(fp8_config(), plain);
  EXPECT_EQ(values_of(fp8.layers[1].moe.gate.values), values_of(bf16.layers[1].moe.gate.values));
  EXPECT_EQ(values_of(fp8.layers[1].moe.down.values), values_of(bf16.layers[1].moe.down.values));
  EXPECT_EQ(values_of(fp8.layers[0].attention.w_uv), values_of(bf16.layers[0].attention.w_uv));
  EXPECT_EQ(fp8.bytes, bf16.bytes);
}

TEST(Weights, WrongFp8IsNamed) {
  const std::string weight = "model.layers.0.mlp.up_proj.weight";
  const Tensors good = testing::quantize_fp8(testing::make_tensors(fp8_config(), 4), 128);
  const auto text_with = [&](ErrorCode code, const std::function<void(Tensors&)>& edit) -> std::string {
    Tensors tensors = good;
    edit(tensors);
    const Error error = error_of(fp8_config(), tensors);
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  };
  EXPECT_THAT(text_with(ErrorCode::kNotFound,
                        [&](Tensors& t) { find(t, weight + "_scale_inv").name = "model.mtp.x"; }),
              HasSubstr("\"" + weight + "\" is e4m3 and must have scales"));
  EXPECT_THAT(text_with(ErrorCode::kCorruptFile,
                        [&](Tensors& t) {
                          std::reverse(find(t, weight + "_scale_inv").shape.begin(),
                                       find(t, weight + "_scale_inv").shape.end());
                        }),
              HasSubstr("_scale_inv\" must have shape [1, 2], a scale for 128 x 128 weights; got [2, 1]"));
  EXPECT_THAT(
      text_with(ErrorCode::kCorruptFile, [&](Tensors& t) { find(t, weight + "_scale_inv").values[1] = NAN; }),
      HasSubstr("_scale_inv\" must be finite; got nan"));
  EXPECT_THAT(text_with(ErrorCode::kCorruptFile,
                        [&](Tensors& t) {
                          find(t, weight + "_scale_inv").values[1] = NAN;
                          find(t, weight + "_scale_inv").stored = StoredAs::kE8m0;
                        }),
              HasSubstr("_scale_inv\" must be finite; got nan"));
  EXPECT_THAT(text_with(ErrorCode::kCorruptFile,
                        [&](Tensors& t) { find(t, weight + "_scale_inv").stored = StoredAs::kE4m3; }),
              HasSubstr("_scale_inv\" must be f32, bf16, f16 or exponents (F8_E8M0, U8); got e4m3"));
  EXPECT_THAT(text_with(ErrorCode::kUnsupported,
                        [&](Tensors& t) { find(t, "model.norm.weight").stored = StoredAs::kE4m3; }),
              HasSubstr("\"model.norm.weight\" must not be e4m3: it is not a matrix"));
  EXPECT_THAT(text_with(ErrorCode::kCorruptFile, [&](Tensors& t) { find(t, weight).shape.push_back(1); }),
              HasSubstr("\"" + weight + "\" must have shape [96, 160]; got [96, 160, 1]"));

  nlohmann::json plain = fp8_config();
  plain.erase("quantization_config");
  EXPECT_THAT(error_of(plain, good).what(), HasSubstr("is e4m3, and the config has no quantization_config"));
}

}  // namespace
}  // namespace snapmla
