// load_config for each family: what its file leaves unsaid, what it says in its own words, and what is refused.
// The fields that all families share are in config_test.cc.
#include "model/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "config_files.h"

namespace snapmla {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::load;
using testing::tiny_config;

/// tiny_config of another type, without `missing`.
json config_of(const char* type, const std::vector<std::string>& missing = {}) {
  json config = tiny_config();
  config["model_type"] = type;
  for (const std::string& field : missing) config.erase(field);
  return config;
}

json longcat_config() {
  return {{"model_type", "longcat_flash"},
          {"vocab_size", 300},
          {"hidden_size", 4608},
          {"num_layers", 3},
          {"num_attention_heads", 2},
          {"ffn_hidden_size", 96},
          {"expert_ffn_hidden_size", 32},
          {"n_routed_experts", 8},
          {"zero_expert_num", 4},
          {"zero_expert_type", "identity"},
          {"moe_topk", 10},
          {"routed_scaling_factor", 6.0},
          {"q_lora_rank", 1152},
          {"kv_lora_rank", 512},
          {"qk_nope_head_dim", 32},
          {"qk_rope_head_dim", 64},
          {"v_head_dim", 32},
          {"max_position_embeddings", 4096},
          {"attention_method", "MLA"},
          {"mla_scale_q_lora", true},
          {"mla_scale_kv_lora", true}};
}

TEST(Families, KimiK2IsADeepseekV3) {
  const ModelConfig config = load(config_of("kimi_k2"));
  EXPECT_EQ(config.family, Family::kDeepseekV3);
  EXPECT_EQ(config.model_type, "kimi_k2");
}

TEST(Families, GlmNamesItsLayersOrBeginsWithOneDenseLayer) {
  json config = config_of("glm4_moe_lite", {"first_k_dense_replace", "rms_norm_eps"});
  EXPECT_THAT(load(config).expert_layers, ElementsAre(false, true));
  EXPECT_DOUBLE_EQ(load(config).norm_eps, 1e-5);
  config["mlp_layer_types"] = {"sparse", "dense"};
  EXPECT_THAT(load(config).expert_layers, ElementsAre(true, false));
  config["mlp_layer_types"] = {"sparse"};
  EXPECT_THAT(
      error_of([&] { load(config); }).what(),
      HasSubstr("\"mlp_layer_types\" must be an array of num_hidden_layers=2 names; got [\"sparse\"]"));
  config["mlp_layer_types"] = {"sparse", "moe"};
  EXPECT_THAT(error_of([&] { load(config); }).what(),
              HasSubstr("\"mlp_layer_types\" must hold \"dense\" or \"sparse\"; got \"moe\""));
}

TEST(Families, YoutuIsDenseAndTied) {
  json config =
      config_of("youtu", {"tie_word_embeddings", "n_routed_experts", "num_experts_per_tok",
                          "moe_intermediate_size", "first_k_dense_replace", "routed_scaling_factor"});
  EXPECT_THAT(load(config).expert_layers, ElementsAre(false, false));
  EXPECT_EQ(load(config).num_experts, 0);
  EXPECT_TRUE(load(config).tied_embeddings);
  config["tie_word_embeddings"] = false;
  EXPECT_FALSE(load(config).tied_embeddings);
}

TEST(Families, Axk1NormsBehindItsExpertsAndMayHaveARouterBias) {
  const ModelConfig config = load(config_of("axk1"));
  EXPECT_TRUE(config.post_ffn_norm);
  EXPECT_EQ(config.router_bias, Presence::kOptional);
  EXPECT_FALSE(load(tiny_config()).post_ffn_norm);
}

TEST(Families, ALayerOfLongcatIsTwoOfOurs) {
  const ModelConfig config = load(longcat_config());
  EXPECT_EQ(config.num_layers, 6);
  EXPECT_THAT(config.expert_layers, ElementsAre(true, false, true, false, true, false));
  EXPECT_TRUE(config.shortcut_experts);
  EXPECT_EQ(config.intermediate, 96);
  EXPECT_EQ(config.moe_intermediate, 32);
  EXPECT_EQ(config.num_experts, 8);
  EXPECT_EQ(config.num_zero_experts, 4);
  EXPECT_EQ(config.top_k, 10) << "experts that do nothing count";
  EXPECT_EQ(config.num_shared_experts, 0);
  EXPECT_EQ(config.scoring, Scoring::kSoftmax);
  EXPECT_FALSE(config.normalize_weights);
  EXPECT_EQ(config.router_bias, Presence::kAlways);
  EXPECT_DOUBLE_EQ(config.query_scale, 2);
  EXPECT_DOUBLE_EQ(config.latent_scale, 3);
  EXPECT_DOUBLE_EQ(config.rope_theta, 1e7);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-5);
}

TEST(Families, LongcatsErrorsUseItsOwnNames) {
  json config = longcat_config();
  config["moe_topk"] = 13;
  EXPECT_THAT(error_of([&] { load(config); }).what(),
              HasSubstr("\"moe_topk\" must be an integer from 1 to 12; got 13"));
  config.erase("ffn_hidden_size");
  config["moe_topk"] = 2;
  EXPECT_THAT(error_of([&] { load(config); }).what(), HasSubstr("\"ffn_hidden_size\" is missing"));
}

/// Of a layout as Mistral Large 3's, small.
json mistral_params() {
  return {{"dim", 64},
          {"n_layers", 3},
          {"head_dim", 96},
          {"hidden_dim", 96},
          {"n_heads", 2},
          {"n_kv_heads", 2},
          {"norm_eps", 1e-6},
          {"rope_theta", 10000.0},
          {"vocab_size", 300},
          {"tied_embeddings", false},
          {"max_position_embeddings", 294912},
          {"q_lora_rank", 24},
          {"kv_lora_rank", 512},
          {"qk_nope_head_dim", 32},
          {"qk_rope_head_dim", 64},
          {"v_head_dim", 32},
          {"llama_4_scaling", {{"original_max_position_embeddings", 8192}, {"beta", 0.1}}},
          {"yarn",
           {{"factor", 36},
            {"original_max_position_embeddings", 8192},
            {"beta", 32},
            {"alpha", 1},
            {"apply_scale", false}}},
          {"moe",
           {{"num_experts", 8},
            {"num_experts_per_tok", 2},
            {"num_expert_groups", 1},
            {"num_expert_groups_per_tok", 1},
            {"routed_scale", 1.0},
            {"expert_hidden_dim", 32},
            {"num_shared_experts", 1},
            {"route_every_n", 1},
            {"first_k_dense_replace", 1}}}};
}

ModelConfig load_params(const json& params) {
  const testing::TempDir dir;
  testing::write_file(dir.file("params.json"), params.dump());
  return load_config(dir.path());
}

TEST(Families, ReadsMistralsParams) {
  const ModelConfig config = load_params(mistral_params());
  EXPECT_EQ(config.family, Family::kMistral4);
  EXPECT_EQ(config.model_type, "mistral4");
  EXPECT_EQ(config.names, NameStyle::kMistral);
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.num_layers, 3);
  EXPECT_EQ(config.intermediate, 96);
  EXPECT_EQ(config.max_position, 294912);
  EXPECT_THAT(config.expert_layers, ElementsAre(false, true, true));
  EXPECT_EQ(config.num_experts, 8);
  EXPECT_EQ(config.top_k, 2);
  EXPECT_EQ(config.num_shared_experts, 1);
  EXPECT_EQ(config.scoring, Scoring::kSoftmax);
  EXPECT_TRUE(config.normalize_weights);
  EXPECT_EQ(config.router_bias, Presence::kNever);
  EXPECT_DOUBLE_EQ(config.yarn.factor, 36);
  EXPECT_DOUBLE_EQ(config.yarn.beta_fast, 32);
  EXPECT_DOUBLE_EQ(config.yarn.beta_slow, 1);
  EXPECT_DOUBLE_EQ(config.yarn.cos_sin_factor, 1);
  EXPECT_DOUBLE_EQ(config.query_growth, 0.1);
  EXPECT_EQ(config.query_growth_every, 8192);
  EXPECT_FLOAT_EQ(config.softmax_scale, static_cast<float>(1 / std::sqrt(96.0))) << "apply_scale is false";
  EXPECT_EQ(config.bos_token, 1);
  EXPECT_THAT(config.stop_tokens, ElementsAre(2));

  json scaled = mistral_params();
  scaled["yarn"].erase("apply_scale");
  const double mscale = 0.1 * std::log(36.0) + 1;
  EXPECT_FLOAT_EQ(load_params(scaled).softmax_scale, static_cast<float>(mscale * mscale / std::sqrt(96.0)));
  EXPECT_DOUBLE_EQ(load_params(scaled).yarn.cos_sin_factor, 1);
}

TEST(Families, MistralsErrorsUseItsOwnNames) {
  json params = mistral_params();
  params["moe"]["num_experts_per_tok"] = 9;
  EXPECT_THAT(
      error_of([&] { load_params(params); }).what(),
      HasSubstr("params.json: field \"moe.num_experts_per_tok\" must be an integer from 1 to 8; got 9"));
  params = mistral_params();
  params["yarn"]["beta"] = 0.5;
  EXPECT_THAT(error_of([&] { load_params(params); }).what(),
              HasSubstr("\"yarn.beta\" must not be below beta_slow"));
  params = mistral_params();
  params.erase("dim");
  EXPECT_THAT(error_of([&] { load_params(params); }).what(), HasSubstr("\"dim\" is missing"));
  params = mistral_params();
  params.erase("kv_lora_rank");
  EXPECT_THAT(error_of([&] { load_params(params); }).what(), HasSubstr("must describe a model with MLA"));
  params = mistral_params();
  params["moe"]["use_load_balancing_bias"] = true;
  EXPECT_EQ(error_of([&] { load_params(params); }).code(), ErrorCode::kUnsupported);
}

TEST(Families, Mistral4CountsTheRotatedPartOfAHead) {
  json config =
      config_of("mistral4", {"scoring_func", "topk_method", "first_k_dense_replace", "rope_scaling"});
  config["rope_parameters"] = {{"rope_type", "yarn"},
                               {"factor", 36.0},
                               {"original_max_position_embeddings", 8192},
                               {"attention_factor", 1.0},
                               {"llama_4_scaling_beta", 0.1},
                               {"partial_rotary_factor", 64.0 / 96}};
  EXPECT_EQ(load(config).names, NameStyle::kStacked);
  EXPECT_DOUBLE_EQ(load(config).query_growth, 0.1);
  EXPECT_FLOAT_EQ(load(config).softmax_scale, static_cast<float>(1 / std::sqrt(96.0)));
  EXPECT_THAT(load(config).expert_layers, ElementsAre(true, true));
  config["rope_parameters"]["partial_rotary_factor"] = 1;
  EXPECT_THAT(error_of([&] { load(config); }).what(),
              HasSubstr("\"rope_parameters.partial_rotary_factor\" must be 0.666667; got 1"));
  config["kv_lora_rank"] = 256;  // Mistral Small 4
  EXPECT_THAT(error_of([&] { load(config); }).what(),
              HasSubstr("\"kv_lora_rank\" must be 512: another width of the latent would need pages"));
}

struct Refused {
  json config;
  const char* text;
};

json with(json config, const char* field, const json& value) {
  config[field] = value;
  return config;
}

/// The config.json of LongCat-Flash-Lite-Sparse names no model_type.
json sparse_longcat_config() {
  json config = longcat_config();
  config.erase("model_type");
  config["architectures"] = {"LongcatCausalLM"};
  config["attention_method"] = "LSA";
  config["index_topk"] = 2048;
  return config;
}

TEST(Families, WhatIsRefusedIsNamedWithWhatItWouldNeed) {
  const json v3 = tiny_config();
  const json longcat = longcat_config();
  const char* sparse =
      "\"model_type\" names a family with sparse attention, which would need the indexer, its cache, and "
      "decode "
      "over chosen tokens; got \"";
  const char* linear =
      "\"model_type\" names a family with linear attention in most layers, which would need a recurrent "
      "state "
      "beside the cache; got \"";
  const char* wrapper =
      "\"model_type\" names a family with several modalities: its language model must be exported on its "
      "own, with "
      "the config.json that is here under text_config; got \"";
  const std::vector<Refused> cases = {
      {config_of("llama"),
       "must be one of deepseek_v2, deepseek_v3, kimi_k2, glm4_moe_lite, youtu, axk1, "
       "longcat_flash, mistral4; got \"llama\""},
      {config_of("deepseek_v32"), sparse},
      {config_of("deepseek_v4"),
       "sparse attention over compressed tokens, which would need their compressor, the indexer, caches of "
       "both, a "
       "window of plain tokens, and hyper-connections between layers; got \"deepseek_v4\""},
      {config_of("glm_moe_dsa"), sparse},
      {config_of("hy_v4"), sparse},
      {config_of("longcat_flash_lsa"), sparse},
      {sparse_longcat_config(),
       "\"attention_method\" must be MLA: others are sparse attention, which would need"},
      {with(longcat, "attention_method", "LSA"),
       "\"attention_method\" must be MLA: others are sparse attention, which would need"},
      {with(v3, "index_topk", 2048),
       "\"index_topk\" must be absent: it asks for sparse attention, which would need"},
      {with(config_of("of_tomorrow"), "index_topk", 2048), "\"index_topk\" must be absent"},
      {with(longcat, "zero_expert_type", "drop"),
       "\"zero_expert_type\" must be identity: others would need a rule for what they give; got \"drop\""},
      {with(longcat, "router_bias", true),
       "\"router_bias\" must be false: it would need a bias behind the router's product; got true"},
      {with(longcat, "norm_topk_prob", true), "\"norm_topk_prob\" must be false for longcat_flash"},
      {config_of("longcat_flash_ngram"),
       "n-gram embeddings, which would need their tables and the hash of preceding tokens"},
      {config_of("minicpm3"),
       "a latent of 256 and RoPE keys of 32, which would need pages and kernels of these widths"},
      {config_of("kimi_linear"), linear},
      {config_of("kimi_k3"), linear},
      {config_of("kimi_k25"), wrapper},
      {config_of("mistral3"), wrapper},
      {config_of("deepseek_vl_v2"), wrapper},
  };
  for (const Refused& refused : cases) {
    const Error error = error_of([&] { load(refused.config); });
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
    EXPECT_THAT(error.what(), HasSubstr("config.json: field \""));
    EXPECT_THAT(error.what(), HasSubstr(refused.text));
  }
}

}  // namespace
}  // namespace snapmla
