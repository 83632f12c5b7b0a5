// Dummy weights: the shapes of a checkpoint's, the same numbers for the same seed, an expert-parallel slice's experts
// those of the whole model, and activations of a sane size through as many layers as the deepest model has.
#include "model/dummy_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "config_files.h"
#include "core/bf16.h"
#include "core/e4m3.h"
#include "model/model.h"
#include "model/slice.h"
#include "model/tensor_list.h"
#include "snapmla/backend.h"
#include "support/e4m3_backend.h"

namespace snapmla {
namespace {

using testing::tiny_config;

std::vector<Bf16> values(const ConstTensorView& view) {
  return {view.as<Bf16>(), view.as<Bf16>() + view.num_elements()};
}

bool same(const ConstTensorView& a, const ConstTensorView& b) {
  return a.num_elements() == b.num_elements() && a.dtype() == b.dtype() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.num_elements() * size_of(a.dtype()))) ==
             0;
}

void expect_deviation(const ConstTensorView& view, double expected, const char* name) {
  double squares = 0;
  for (const Bf16 value : values(view)) squares += std::pow(static_cast<double>(to_float(value)), 2);
  const auto count = static_cast<double>(view.num_elements());
  // The sample deviation of n numbers is within 4 / sqrt(2 n) but once in 15,000.
  EXPECT_NEAR(std::sqrt(squares / count) / expected, 1, 4 / std::sqrt(2 * count)) << name;
}

std::string shape(const ConstTensorView& view) {
  return to_string(view);
}

std::string shape(const WeightView& weight) {
  return to_string(weight.values) + ", scales " + to_string(weight.scales);
}

void expect_same_shapes(const LayerWeights& dummy, const LayerWeights& read) {
  EXPECT_EQ(shape(dummy.attention_norm), shape(read.attention_norm));
  EXPECT_EQ(shape(dummy.attention.q_a.weight), shape(read.attention.q_a.weight));
  EXPECT_EQ(shape(dummy.attention.q_a.bias), shape(read.attention.q_a.bias));
  EXPECT_EQ(shape(dummy.attention.q_a_norm), shape(read.attention.q_a_norm));
  EXPECT_EQ(shape(dummy.attention.q_b.weight), shape(read.attention.q_b.weight));
  EXPECT_EQ(shape(dummy.attention.kv_a.weight), shape(read.attention.kv_a.weight));
  EXPECT_EQ(shape(dummy.attention.kv_a.bias), shape(read.attention.kv_a.bias));
  EXPECT_EQ(shape(dummy.attention.kv_a_norm), shape(read.attention.kv_a_norm));
  EXPECT_EQ(shape(dummy.attention.w_uk), shape(read.attention.w_uk));
  EXPECT_EQ(shape(dummy.attention.w_uv), shape(read.attention.w_uv));
  EXPECT_EQ(shape(dummy.attention.o.weight), shape(read.attention.o.weight));
  EXPECT_EQ(shape(dummy.attention.o.bias), shape(read.attention.o.bias));
  EXPECT_EQ(shape(dummy.ffn_norm), shape(read.ffn_norm));
  EXPECT_EQ(shape(dummy.ffn.gate.weight), shape(read.ffn.gate.weight));
  EXPECT_EQ(shape(dummy.ffn.up.weight), shape(read.ffn.up.weight));
  EXPECT_EQ(shape(dummy.ffn.down.weight), shape(read.ffn.down.weight));
  EXPECT_EQ(shape(dummy.moe.router), shape(read.moe.router));
  EXPECT_EQ(shape(dummy.moe.router_bias), shape(read.moe.router_bias));
  EXPECT_EQ(shape(dummy.moe.gate), shape(read.moe.gate));
  EXPECT_EQ(shape(dummy.moe.up), shape(read.moe.up));
  EXPECT_EQ(shape(dummy.moe.down), shape(read.moe.down));
  EXPECT_EQ(shape(dummy.post_ffn_norm), shape(read.post_ffn_norm));
}

void expect_same_shapes(const nlohmann::json& config_json) {
  const testing::TempDir dir;
  testing::write_checkpoint(dir.path(), config_json);
  const ModelConfig config = load_config(dir.path());
  const ModelWeights read = load_weights(reference(), Checkpoint(dir.path()), config);
  const ModelWeights dummy = make_dummy_weights(reference(), config);
  EXPECT_EQ(dummy.num_parameters, read.num_parameters);
  EXPECT_EQ(dummy.bytes, read.bytes);
  EXPECT_EQ(shape(dummy.embedding), shape(read.embedding));
  EXPECT_EQ(shape(dummy.norm), shape(read.norm));
  EXPECT_EQ(shape(dummy.lm_head.weight), shape(read.lm_head.weight));
  ASSERT_EQ(dummy.layers.size(), read.layers.size());
  for (std::size_t i = 0; i < read.layers.size(); ++i) expect_same_shapes(dummy.layers[i], read.layers[i]);
}

TEST(DummyWeights, HaveTheShapesOfACheckpoint) {
  nlohmann::json config = tiny_config();
  expect_same_shapes(config);
  config["q_lora_rank"] = 48;
  config["attention_bias"] = true;
  config["tie_word_embeddings"] = true;
  expect_same_shapes(config);
  config["model_type"] = "axk1";
  config.erase("tie_word_embeddings");
  expect_same_shapes(config);
  config = tiny_config();
  config["model_type"] = "deepseek_v2";
  config["scoring_func"] = "softmax";
  config["topk_method"] = "greedy";
  config["norm_topk_prob"] = false;
  expect_same_shapes(config);
}

TEST(DummyWeights, AreTheSeedsAlone) {
  const ModelConfig config = testing::load(tiny_config());
  const ModelWeights first = make_dummy_weights(reference(), config);
  const ModelWeights again = make_dummy_weights(reference(), config);
  const ModelWeights other = make_dummy_weights(reference(), config, 1);
  const LayerWeights& layer = first.layers[1];
  EXPECT_TRUE(same(first.embedding, again.embedding));
  EXPECT_TRUE(same(layer.moe.down.values, again.layers[1].moe.down.values));
  EXPECT_FALSE(same(first.embedding, other.embedding));
  EXPECT_FALSE(same(layer.attention.o.weight.values, first.layers[0].attention.o.weight.values));
  EXPECT_FALSE(same(layer.moe.gate.values, layer.moe.up.values));
}

TEST(DummyWeights, HaveTheDeviationsThatKeepActivationsTheirSize) {
  const ModelConfig config = testing::load(tiny_config());
  const ModelWeights weights = make_dummy_weights(reference(), config);
  const double layers = config.num_layers;
  const LayerWeights& layer = weights.layers[1];
  expect_deviation(weights.embedding, 1, "embedding");
  expect_deviation(weights.lm_head.weight.values, 1 / std::sqrt(64), "lm_head");
  expect_deviation(layer.attention.q_b.weight.values, 1 / std::sqrt(64), "q");
  expect_deviation(layer.attention.w_uk, 1 / std::sqrt(512), "w_uk");
  expect_deviation(layer.attention.o.weight.values, 1 / std::sqrt(2 * 32 * 2 * layers), "o");
  expect_deviation(layer.moe.up.values, 1 / std::sqrt(64), "up of experts");
  expect_deviation(layer.moe.down.values, 1 / std::sqrt(32 * 2 * layers), "down of experts");
  for (const Bf16 value : values(layer.attention_norm)) EXPECT_EQ(to_float(value), 1);
  for (int i = 0; i < config.num_experts; ++i) EXPECT_EQ(layer.moe.router_bias.as<float>()[i], 0);
}

// The matrices that a checkpoint of the config has in FP8, where a checkpoint's would stay so.
TEST(DummyWeights, AreFp8WhereACheckpointsStaySo) {
  nlohmann::json json = tiny_config();
  json["hidden_size"] = 256;
  json["intermediate_size"] = 192;  // down becomes bf16
  json["moe_intermediate_size"] = 128;
  json["v_head_dim"] = 64;
  json["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  const testing::TempDir dir;
  testing::write_checkpoint(dir.path(), json, testing::quantize_fp8(testing::make_tensors(json, 1), 128));
  const ModelConfig config = load_config(dir.path());
  testing::E4m3Backend backend;
  const ModelWeights read = load_weights(backend, Checkpoint(dir.path()), config);
  const ModelWeights dummy = make_dummy_weights(backend, config);
  EXPECT_GT(dummy.num_e4m3, 0);
  EXPECT_EQ(dummy.num_e4m3, read.num_e4m3);
  EXPECT_EQ(dummy.num_parameters, read.num_parameters);
  EXPECT_EQ(dummy.bytes, read.bytes);
  for (std::size_t i = 0; i < read.layers.size(); ++i) expect_same_shapes(dummy.layers[i], read.layers[i]);
  EXPECT_EQ(shape(dummy.lm_head.weight), shape(read.lm_head.weight));
  EXPECT_EQ(make_dummy_weights(reference(), config).num_e4m3, 0);

  // Of the deviation that bf16 ones have: rounding to 4 bits adds less than 0.1 % to it.
  const WeightView& o = dummy.layers[0].attention.o.weight;
  double squares = 0;
  for (std::int64_t i = 0; i < o.values.num_elements(); ++i) {
    squares += std::pow(to_float(o.values.as<E4m3>()[i]) * o.scales.as<float>()[0], 2);
  }
  const auto count = static_cast<double>(o.values.num_elements());
  const double expected = 1 / std::sqrt(2 * 64 * 2 * config.num_layers);
  EXPECT_NEAR(std::sqrt(squares / count) / expected, 1, 1e-3 + 4 / std::sqrt(2 * count));
  for (std::int64_t i = 0; i < o.scales.num_elements(); ++i) {
    EXPECT_EQ(o.scales.as<float>()[i], o.scales.as<float>()[0]);
  }

  // A slice's experts are those of the whole model in FP8 too.
  const ModelWeights part =
      make_dummy_weights(backend, slice_config(config, {.expert_rank = 1, .expert_ranks = 2}));
  const ConstTensorView& all = dummy.layers[1].moe.up.values;
  EXPECT_TRUE(
      same({all.as<E4m3>() + 4 * all.stride(0), DType::kE4M3, {4, 128, 256}}, part.layers[1].moe.up.values));
}

TEST(DummyWeights, GiveARankTheExpertsOfTheWholeModel) {
  const ModelConfig config = testing::load(tiny_config());
  const ModelWeights whole = make_dummy_weights(reference(), config);
  const ModelWeights part =
      make_dummy_weights(reference(), slice_config(config, {.expert_rank = 2, .expert_ranks = 4}));
  const auto experts = [](const ConstTensorView& view, std::int64_t first, std::int64_t count) {
    return ConstTensorView(
        static_cast<const std::byte*>(view.data()) + first * view.stride(0) * size_of(view.dtype()),
        view.dtype(), {count, view.stride(0)});
  };
  const MoeWeights& all = whole.layers[1].moe;
  const MoeWeights& own = part.layers[1].moe;
  EXPECT_TRUE(same(experts(all.gate.values, 4, 2), experts(own.gate.values, 0, 2)));
  EXPECT_TRUE(same(experts(all.up.values, 4, 2), experts(own.up.values, 0, 2)));
  EXPECT_TRUE(same(experts(all.down.values, 4, 2), experts(own.down.values, 0, 2)));
  EXPECT_TRUE(same(experts(all.router, 4, 2), experts(own.router, 0, 2)));
  EXPECT_TRUE(same(whole.layers[1].ffn.up.weight.values, part.layers[1].ffn.up.weight.values));
  EXPECT_TRUE(same(whole.layers[0].attention.o.weight.values, part.layers[0].attention.o.weight.values));
}

/// The rms of the logits of a prompt's last token.
double rms_of_logits(const nlohmann::json& config_json) {
  const ModelConfig config = testing::load(config_json);
  const auto weights = std::make_shared<const ModelWeights>(make_dummy_weights(reference(), config));
  const ModelLimits limits{.max_batch = 1, .max_chunk = 32, .max_seq_len = 64};
  const auto model = Model::make(reference(), config, weights, limits);
  std::vector<std::vector<std::byte>> pools(
      static_cast<std::size_t>(config.num_layers),
      std::vector<std::byte>(static_cast<std::size_t>(page_bytes(limits.cache_format)) + 16));
  std::vector<CacheView> caches;
  for (auto& pool : pools) {
    void* base = pool.data();
    std::size_t space = pool.size();
    caches.push_back(make_cache_view(limits.cache_format, std::align(16, space - 16, base, space), 1));
  }
  std::vector<std::int32_t> tokens(32);
  std::iota(tokens.begin(), tokens.end(), 7);
  model->prefill({.tokens = tokens, .start = 0, .pages = {0}}, caches, true, {});
  double squares = 0;
  for (int i = 0; i < config.vocab; ++i) squares += std::pow(model->logits().as<float>()[i], 2);
  return std::sqrt(squares / config.vocab);
}

// Logits are products of a normed x with rows of deviation 1 / sqrt(hidden): of rms 1, whatever happened before, as
// long as nothing overflowed. So x itself is looked at too, through a last norm that does not change its size.
TEST(DummyWeights, KeepActivationsSaneThroughSixtyOneLayers) {
  nlohmann::json config = tiny_config();
  config["num_hidden_layers"] = 61;
  config["first_k_dense_replace"] = 3;
  EXPECT_NEAR(rms_of_logits(config), 1, 0.3);
  config["rms_norm_eps"] =
      1.0;  // norm(x) = x / sqrt(mean x^2 + 1): its rms is 0.89 if x has one of 2, 0.99 if of 8
  const double rms = rms_of_logits(config);
  EXPECT_GT(rms, 0.6);
  EXPECT_LT(rms, 1.2);
}

struct Published {
  const char* folder;
  double parameters;  ///< in 10^9
  double tolerance;   ///< of the published figure's last digit
};

class ModelConfigs : public ::testing::TestWithParam<Published> {};

TEST_P(ModelConfigs, HaveThePublishedNumberOfParameters) {
  const ModelConfig config =
      load_config(std::string(SNAPMLA_SOURCE_DIR "/models/configs/") + GetParam().folder);
  double parameters = 0;
  for (const TensorSpec& tensor : list_tensors(config)) {
    parameters += static_cast<double>(
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::int64_t{1}, std::multiplies<>()));
  }
  EXPECT_NEAR(parameters / 1e9, GetParam().parameters, GetParam().tolerance);
}

INSTANTIATE_TEST_SUITE_P(, ModelConfigs,
                         ::testing::Values(Published{"deepseek-v2-lite", 15.7, 0.05},
                                           Published{"deepseek-v3", 671, 0.5}, Published{"kimi-k2", 1030, 5},
                                           Published{"longcat-flash", 560, 5}),
                         [](const ::testing::TestParamInfo<Published>& published) {
                           std::string name = published.param.folder;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace snapmla
