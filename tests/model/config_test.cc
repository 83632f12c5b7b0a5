// load_config: both families, both styles of rope fields, and what wrong files get; rope_table against the
// formulas of YaRN.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "config_files.h"
#include "model/position_tables.h"
#include "snapmla/error.h"
#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::load;
using testing::TempDir;
using testing::tiny_config;
using testing::write_file;

json with(const std::string& field, const json& value) {
  json config = tiny_config();
  config[field] = value;
  return config;
}

json with_yarn(const json& yarn) {
  return with("rope_scaling", yarn);
}

json yarn_fields() {
  return {{"type", "yarn"},       {"factor", 40.0}, {"original_max_position_embeddings", 4096},
          {"beta_fast", 32},      {"beta_slow", 1}, {"mscale", 1.0},
          {"mscale_all_dim", 1.0}};
}

json v2_config() {
  json config = tiny_config();
  config["model_type"] = "deepseek_v2";
  config["topk_method"] = "group_limited_greedy";
  config["scoring_func"] = "softmax";
  config["norm_topk_prob"] = false;
  return config;
}

TEST(Config, ReadsDeepseekV3) {
  const ModelConfig config = load(tiny_config());
  EXPECT_EQ(config.family, Family::kDeepseekV3);
  EXPECT_EQ(config.model_type, "deepseek_v3");
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.heads, 2);
  EXPECT_EQ(config.vocab, 300);
  EXPECT_EQ(config.max_position, 4096);
  EXPECT_EQ(config.q_lora, 0);
  EXPECT_EQ(config.nope_dim, 32);
  EXPECT_EQ(config.v_dim, 32);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-6);
  EXPECT_DOUBLE_EQ(config.latent_norm_eps, 1e-6);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_TRUE(config.rope_interleaved);
  EXPECT_FLOAT_EQ(config.softmax_scale, static_cast<float>(1 / std::sqrt(96.0)));
  EXPECT_EQ(config.intermediate, 96);
  EXPECT_EQ(config.num_experts, 8);
  EXPECT_EQ(config.top_k, 2);
  EXPECT_EQ(config.num_shared_experts, 1);
  EXPECT_EQ(config.moe_intermediate, 32);
  EXPECT_EQ(config.scoring, Scoring::kSigmoid);
  EXPECT_EQ(config.group_score, GroupScore::kTopTwoSum);
  EXPECT_EQ(config.num_groups, 2);
  EXPECT_EQ(config.top_groups, 1);
  EXPECT_TRUE(config.normalize_weights);
  EXPECT_EQ(config.router_bias, Presence::kAlways);
  EXPECT_FLOAT_EQ(config.routed_scaling, 1.5F);
  EXPECT_FALSE(config.is_moe_layer(0));
  EXPECT_TRUE(config.is_moe_layer(1));
  EXPECT_EQ(config.bos_token, 0);
  EXPECT_THAT(config.stop_tokens, ElementsAre(1));
}

TEST(Config, ReadsDeepseekV2) {
  const ModelConfig groups = load(v2_config());
  EXPECT_EQ(groups.family, Family::kDeepseekV2);
  EXPECT_EQ(groups.scoring, Scoring::kSoftmax);
  EXPECT_EQ(groups.group_score, GroupScore::kMax);
  EXPECT_EQ(groups.num_groups, 2);
  EXPECT_EQ(groups.top_groups, 1);
  EXPECT_FALSE(groups.normalize_weights);
  EXPECT_EQ(groups.router_bias, Presence::kNever);

  json greedy = v2_config();
  greedy["topk_method"] = "greedy";
  EXPECT_EQ(load(greedy).num_groups, 1);
  greedy["rope_interleave"] = false;  // the family has no such switch
  EXPECT_TRUE(load(greedy).rope_interleaved);
}

TEST(Config, ReadsADenseModel) {
  json config = with("n_routed_experts", nullptr);
  for (const char* field : {"num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace"})
    config.erase(field);
  EXPECT_FALSE(load(config).is_moe_layer(1));
}

TEST(Config, TakesYarnFromBothStyles) {
  const ModelConfig old_style = load(with_yarn(yarn_fields()));
  const double m = 0.1 * std::log(40.0) + 1;
  EXPECT_FLOAT_EQ(old_style.softmax_scale, static_cast<float>(m * m / std::sqrt(96.0)));
  EXPECT_DOUBLE_EQ(old_style.yarn.cos_sin_factor, 1);
  EXPECT_DOUBLE_EQ(old_style.rope_theta, 10000);

  json config = tiny_config();
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config["rope_parameters"] = yarn_fields();
  config["rope_parameters"]["rope_type"] = "yarn";
  config["rope_parameters"].erase("type");
  config["rope_parameters"]["rope_theta"] = 50000.0;
  const ModelConfig new_style = load(config);
  EXPECT_EQ(new_style.softmax_scale, old_style.softmax_scale);
  EXPECT_DOUBLE_EQ(new_style.rope_theta, 50000);
  EXPECT_EQ(new_style.yarn.original_max_position, 4096);

  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_DOUBLE_EQ(load(config).rope_theta, 1e6);
  EXPECT_DOUBLE_EQ(load(config).yarn.factor, 1);
}

TEST(Config, YarnsCosSinFactorFollowsTheReferenceClasses) {
  json yarn = yarn_fields();
  yarn["mscale_all_dim"] = 0.707;
  const double log40 = std::log(40.0);
  EXPECT_DOUBLE_EQ(load(with_yarn(yarn)).yarn.cos_sin_factor, (0.1 * log40 + 1) / (0.0707 * log40 + 1));
  yarn.erase("mscale_all_dim");
  EXPECT_DOUBLE_EQ(load(with_yarn(yarn)).yarn.cos_sin_factor, 0.1 * log40 + 1);
  EXPECT_FLOAT_EQ(load(with_yarn(yarn)).softmax_scale, static_cast<float>(1 / std::sqrt(96.0)));
  yarn["attention_factor"] = 1.25;
  EXPECT_DOUBLE_EQ(load(with_yarn(yarn)).yarn.cos_sin_factor, 1.25);
}

TEST(Config, GenerationConfigGivesStopTokensAndDefaults) {
  const ModelConfig plain = load(tiny_config(), {{"temperature", 0.6}});
  EXPECT_EQ(plain.default_temperature, 0) << "do_sample is not set";
  EXPECT_THAT(plain.stop_tokens, ElementsAre(1)) << "config.json's";
  const ModelConfig config = load(tiny_config(), {{"eos_token_id", {7, 8}},
                                                  {"bos_token_id", 5},
                                                  {"do_sample", true},
                                                  {"temperature", 0.6},
                                                  {"top_k", 20},
                                                  {"top_p", 0.95}});
  EXPECT_THAT(config.stop_tokens, ElementsAre(7, 8));
  EXPECT_EQ(config.bos_token, 5);
  EXPECT_FLOAT_EQ(config.default_temperature, 0.6F);
  EXPECT_EQ(config.default_top_k, 20);
  EXPECT_FLOAT_EQ(config.default_top_p, 0.95F);
  EXPECT_FLOAT_EQ(load(tiny_config(), {{"do_sample", true}}).default_temperature, 1);
  EXPECT_THAT(
      error_of([] {
        load(tiny_config(), {{"eos_token_id", {1, 300}}});
      }).what(),
      HasSubstr("generation_config.json: field \"eos_token_id\" must be an integer from 0 to 299; got 300"));
  EXPECT_EQ(error_of([] { load(tiny_config(), {{"top_p", 0}}); }).code(), ErrorCode::kCorruptFile);
}

TEST(Config, NamesAFileThatIsMissingOrNotJson) {
  const TempDir dir;
  const Error missing = error_of([&] { load_config(dir.path()); });
  EXPECT_EQ(missing.code(), ErrorCode::kNotFound);
  EXPECT_THAT(missing.what(), HasSubstr(dir.file("config.json")));
  for (const char* text : {"", "{", "[1]", "null", "{\"a\": NaN}", "{\"hidden_size\": 1e999}", "\xff\xfe"}) {
    write_file(dir.file("config.json"), text);
    const Error broken = error_of([&] { load_config(dir.path()); });
    EXPECT_EQ(broken.code(), ErrorCode::kCorruptFile) << text;
    EXPECT_THAT(broken.what(), HasSubstr(dir.file("config.json"))) << text;
  }
  write_file(dir.file("config.json"), std::string(1 << 20, '['));
  EXPECT_EQ(error_of([&] { load_config(dir.path()); }).code(), ErrorCode::kCorruptFile);
}

TEST(Config, NamesAMissingField) {
  for (const char* field :
       {"model_type", "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
        "num_hidden_layers", "num_attention_heads", "n_routed_experts", "num_experts_per_tok",
        "routed_scaling_factor", "first_k_dense_replace", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
        "qk_rope_head_dim", "v_head_dim", "max_position_embeddings"}) {
    json config = tiny_config();
    config.erase(field);
    const Error error = error_of([&] { load(config); });
    EXPECT_EQ(error.code(), ErrorCode::kCorruptFile) << field;
    EXPECT_THAT(error.what(), HasSubstr("config.json: field \"" + std::string(field) + "\" is missing"));
  }
}

struct WrongField {
  const char* field;
  json value;
};

TEST(Config, NamesAnAbsurdField) {
  const std::vector<WrongField> cases = {{"hidden_size", -5},
                                         {"hidden_size", 0},
                                         {"hidden_size", 1'000'001},
                                         {"hidden_size", 64.5},
                                         {"hidden_size", "64"},
                                         {"hidden_size", true},
                                         {"hidden_size", json::array({64})},
                                         {"hidden_size", std::uint64_t{1} << 63U},
                                         {"num_hidden_layers", 10'001},
                                         {"num_attention_heads", 129},
                                         {"num_attention_heads", 0},
                                         {"vocab_size", -1},
                                         {"vocab_size", 2'000'000'000},
                                         {"max_position_embeddings", 0},
                                         {"q_lora_rank", 0},
                                         {"q_lora_rank", -4},
                                         {"qk_nope_head_dim", 0},
                                         {"v_head_dim", 4096},
                                         {"rms_norm_eps", 0},
                                         {"rms_norm_eps", -1e-6},
                                         {"rms_norm_eps", "tiny"},
                                         {"rope_theta", 0},
                                         {"rope_theta", -1},
                                         {"tie_word_embeddings", 1},
                                         {"attention_bias", "no"},
                                         {"n_routed_experts", -8},
                                         {"n_routed_experts", 900'000},
                                         {"n_shared_experts", -1},
                                         {"num_experts_per_tok", 9},
                                         {"num_experts_per_tok", 5},  // more than one group of 4 has
                                         {"num_experts_per_tok", 0},
                                         {"moe_intermediate_size", 0},
                                         {"first_k_dense_replace", -1},
                                         {"n_group", 3},
                                         {"n_group", 0},
                                         {"n_group", 8},  // groups of one expert have no two best
                                         {"topk_group", 3},
                                         {"routed_scaling_factor", 0},
                                         {"routed_scaling_factor", -2},
                                         {"rope_scaling", 4},
                                         {"eos_token_id", 300},
                                         {"eos_token_id", "</s>"},
                                         {"bos_token_id", -2},
                                         {"hidden_act", 3},
                                         {"model_type", 3}};
  for (const WrongField& wrong : cases) {
    const Error error = error_of([&] { load(with(wrong.field, wrong.value)); });
    EXPECT_EQ(error.code(), ErrorCode::kCorruptFile) << wrong.field << ' ' << wrong.value;
    EXPECT_THAT(error.what(), HasSubstr("config.json: field \"" + std::string(wrong.field) + "\" must"));
    EXPECT_THAT(error.what(), HasSubstr("; got " + wrong.value.dump()));
  }
}

TEST(Config, NamesAnAbsurdYarnField) {
  const std::vector<WrongField> cases = {{"factor", 0.5},
                                         {"factor", 1e300},
                                         {"factor", "40"},
                                         {"beta_fast", 0},
                                         {"beta_fast", 0.5},
                                         {"mscale", -1},
                                         {"mscale_all_dim", "x"},
                                         {"original_max_position_embeddings", 0},
                                         {"truncate", 1},
                                         {"attention_factor", 0},
                                         {"type", 5}};
  for (const WrongField& wrong : cases) {
    json yarn = yarn_fields();
    yarn[wrong.field] = wrong.value;
    const Error error = error_of([&] { load(with_yarn(yarn)); });
    EXPECT_EQ(error.code(), ErrorCode::kCorruptFile) << wrong.field << ' ' << wrong.value;
    EXPECT_THAT(error.what(), HasSubstr("field \"rope_scaling." + std::string(wrong.field) + "\" must"));
  }
  json yarn = yarn_fields();
  yarn.erase("type");
  EXPECT_THAT(error_of([&] { load(with_yarn(yarn)); }).what(), HasSubstr("rope_type\" is missing"));
}

struct Unsupported {
  const char* field;
  json value;
  const char* text;
};

TEST(Config, NamesWhatIsNotSupportedAndWhatItWouldNeed) {
  const char* latent =
      "must be 512: another width of the latent would need pages and kernels of that width; got ";
  const char* rope =
      "must be 64: another width of the RoPE key would need pages and kernels of that width; got ";
  const std::vector<Unsupported> cases = {
      {"kv_lora_rank", 256, latent},
      {"kv_lora_rank", 1024, latent},
      {"qk_rope_head_dim", 32, rope},
      {"qk_rope_head_dim", 0, rope},
      {"index_topk", 2048,
       "must be absent: it asks for sparse attention, which would need the indexer, its cache, and decode "
       "over "
       "chosen tokens; got "},
      {"attention_method", "LSA",
       "must be MLA: others are sparse attention, which would need the indexer, its cache, and decode over "
       "chosen tokens; got "},
      {"sliding_window", 128,
       "must be absent: a window would need decode over a part of the tokens before; got "},
      {"hidden_act", "gelu", "must be silu: another would need an op of its own; got "},
      {"mlp_bias", true, "must be false: biases would need a place behind the products of an FFN; got "},
      {"scoring_func", "softmax", "must be sigmoid for deepseek_v3; got "},
      {"topk_method", "greedy", "must be noaux_tc for deepseek_v3; got "}};
  for (const Unsupported& wrong : cases) {
    const Error error = error_of([&] { load(with(wrong.field, wrong.value)); });
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << wrong.field << ' ' << wrong.value;
    EXPECT_THAT(error.what(), HasSubstr("config.json: field \"" + std::string(wrong.field) + "\" " +
                                        wrong.text + wrong.value.dump()));
  }
  for (const char* type : {"linear", "dynamic", "longrope", "llama3"}) {
    const Error error = error_of([&] { load(with_yarn({{"rope_type", type}, {"factor", 2}})); });
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << type;
    EXPECT_THAT(
        error.what(),
        HasSubstr("field \"rope_scaling.rope_type\" must be default or yarn: another type would need its "
                  "rule for the angle of each pair; got \"" +
                  std::string(type) + '"'));
  }
  EXPECT_EQ(error_of([] {
              load(with_yarn({{"type", "default"}, {"partial_rotary_factor", 0.5}}));
            }).code(),
            ErrorCode::kUnsupported);

  json config = v2_config();
  config["norm_topk_prob"] = true;
  EXPECT_EQ(error_of([&] { load(config); }).code(), ErrorCode::kUnsupported);
  config = v2_config();
  config["topk_method"] = "noaux_tc";
  EXPECT_EQ(error_of([&] { load(config); }).code(), ErrorCode::kUnsupported);
}

json compressed_tensors(const json& weights) {
  return {{"quant_method", "compressed-tensors"},
          {"format", "float-quantized"},
          {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
}

json fp8_block() {
  return {{"num_bits", 8}, {"type", "float"}, {"strategy", "block"}, {"block_structure", {128, 64}}};
}

TEST(Config, ReadsFp8Blocks) {
  EXPECT_EQ(load(tiny_config()).fp8.rows, 0);
  const json fp8 = {{"quant_method", "fp8"},
                    {"fmt", "e4m3"},
                    {"scale_fmt", "ue8m0"},
                    {"activation_scheme", "dynamic"},
                    {"weight_block_size", {128, 64}}};
  for (const json& quantization : {fp8, compressed_tensors(fp8_block())}) {
    const ModelConfig config = load(with("quantization_config", quantization));
    EXPECT_EQ(config.fp8.rows, 128);
    EXPECT_EQ(config.fp8.columns, 64);
  }
}

struct WrongQuantization {
  json value;
  ErrorCode code;
  const char* text;
};

TEST(Config, NamesOtherQuantizations) {
  const json int4 = {{"num_bits", 4},
                     {"type", "int"},
                     {"strategy", "group"},  // Kimi K2 Thinking's experts
                     {"group_size", 32},
                     {"symmetric", true}};
  json channels = fp8_block();
  channels["strategy"] = "channel";
  json two_groups = compressed_tensors(fp8_block());
  two_groups["config_groups"]["group_1"]["weights"] = fp8_block();
  two_groups["config_groups"]["group_1"]["weights"]["block_structure"] = {128, 128};
  json no_groups = compressed_tensors(fp8_block());
  no_groups["config_groups"] = json::object();
  constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
  constexpr ErrorCode kCorruptFile = ErrorCode::kCorruptFile;
  const std::vector<WrongQuantization> cases = {
      {{{"quant_method", "gptq"}},
       kUnsupported,
       "quant_method\" must be fp8 or compressed-tensors with FP8 in blocks: another would need its own "
       "unpacking and scales; got \"gptq\""},
      {{{"qformat_weight", "fp8_e4m3"}, {"qscheme_act", "TENSOR"}},
       kUnsupported,
       "qformat_weight\" must be absent: only FP8 with a scale a block is read, others would need their own "
       "shapes of scales; got \"fp8_e4m3\""},
      {{{"quant_method", "fp8"}},
       kUnsupported,
       "weight_block_size\" must be there: only FP8 with a scale a block is read, others would need their "
       "own "
       "shapes of scales; got null"},
      {{{"quant_method", "fp8"}, {"fmt", "e5m2"}},
       kUnsupported,
       "fmt\" must be e4m3: another would need its own decoding; got \"e5m2\""},
      {{{"quant_method", "fp8"}, {"weight_block_size", {128}}},
       kCorruptFile,
       "weight_block_size\" must be two numbers: rows and columns; got [128]"},
      {{{"quant_method", "fp8"}, {"weight_block_size", {0, 128}}},
       kCorruptFile,
       "weight_block_size\" must be an integer from 1 to 65536; got 0"},
      {compressed_tensors(int4), kUnsupported,
       "config_groups.group_0.weights.num_bits\" must be 8, of type float: integer weights would need "
       "unpacking, "
       "and a scale a group of each row; got 4"},
      {compressed_tensors(channels), kUnsupported,
       "config_groups.group_0.weights.strategy\" must be block: other scales would need their own shapes; "
       "got "
       "\"channel\""},
      {two_groups, kUnsupported, "config_groups.group_1\" must have the blocks of the group before it"},
      {no_groups, kCorruptFile, "config_groups\" must name at least one group; got {}"},
      {"fp8", kCorruptFile, "\"quantization_config\" must be an object"},
  };
  for (const WrongQuantization& wrong : cases) {
    const Error error = error_of([&] { load(with("quantization_config", wrong.value)); });
    EXPECT_EQ(error.code(), wrong.code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr("\"quantization_config"));
    EXPECT_THAT(error.what(), HasSubstr(wrong.text));
  }
}

TEST(RopeTable, TurnsPairIByThetaToTheMinusI) {
  const ModelConfig config = load(tiny_config());
  const std::vector<float> table = rope_table(config, 100);
  ASSERT_EQ(table.size(), 6400U);
  for (const int position : {0, 1, 99}) {
    for (const int i : {0, 1, 17, 31}) {
      const double angle = position * std::pow(10000.0, -i / 32.0);
      EXPECT_FLOAT_EQ(table[static_cast<std::size_t>(position * 64 + i)],
                      static_cast<float>(std::cos(angle)));
      EXPECT_FLOAT_EQ(table[static_cast<std::size_t>(position * 64 + 32 + i)],
                      static_cast<float>(std::sin(angle)));
    }
  }
}

// DeepSeek-V3's values: pairs below 10 turn more than 32 times in 4,096 tokens and keep their speed, pairs
// above 23 turn less than once and slow down by the factor.
TEST(RopeTable, YarnSlowsTheSlowPairsOnly) {
  json yarn = yarn_fields();
  yarn["mscale_all_dim"] = 0.0;  // cos and sin grow by 0.1 ln 40 + 1
  const ModelConfig config = load(with_yarn(yarn));
  const std::vector<float> table = rope_table(config, 2);
  const double growth = 0.1 * std::log(40.0) + 1;
  for (int i = 0; i < 32; ++i) {
    const double ramp = std::min(1.0, std::max(0.0, (i - 10.0) / (23.0 - 10.0)));
    const double plain = std::pow(10000.0, -i / 32.0);
    const double angle = plain * (1 - ramp) + plain / 40 * ramp;
    EXPECT_NEAR(table[static_cast<std::size_t>(64 + i)], growth * std::cos(angle), 1e-6) << i;
    EXPECT_NEAR(table[static_cast<std::size_t>(96 + i)], growth * std::sin(angle), 1e-6) << i;
  }
}

TEST(QueryGrowthTable, GrowsWithTheContextsBefore) {
  ModelConfig config = load(tiny_config());
  EXPECT_TRUE(query_growth_table(config, 10).empty());
  config.query_growth = 0.5;
  config.query_growth_every = 4;
  const std::vector<float> table = query_growth_table(config, 13);
  ASSERT_EQ(table.size(), 13U);
  EXPECT_EQ(table[3], 1.0F);
  EXPECT_FLOAT_EQ(table[4], static_cast<float>(1 + 0.5 * std::log(2.0)));
  EXPECT_EQ(table[7], table[4]);
  EXPECT_FLOAT_EQ(table[12], static_cast<float>(1 + 0.5 * std::log(4.0)));
}

}  // namespace
}  // namespace snapmla
