// Logits of tiny models of every family against Hugging Face transformers
// (tests/tools/make_model_goldens.py made the files; weights come from the shared generator).
//
// Bound for a BF16 cache: twice the difference between transformers in BF16 and in fp32, as rms and as
// largest difference over all stored positions; greedy tokens equal. For an FP8 cache that bound and sixteen more:
// sixteen is the ratio of the rounding steps of e4m3 (2^-4) and BF16 (2^-8), so its whole budget is that of
// one e4m3 rounding wherever BF16 has one, beside what the backend has with BF16; these random models have logits so flat that a token may differ,
// and two thirds must not. Each mistake of the list at the end, made on purpose, exceeds the BF16 bound
// tenfold, two of Mistral's fivefold.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/model.h"
#include "model_runner.h"
#include "support/checkpoint.h"

namespace snapmla {
namespace {

using testing::ModelRunner;
using testing::NamedTensor;
using testing::Sequence;
using testing::TempDir;

constexpr double kBf16Factor = 2;
constexpr double kFp8Factor = kBf16Factor + 16;
constexpr double kMistakeFactor = 10;

struct Golden {
  nlohmann::json config;
  std::uint64_t seed = 0;
  std::vector<std::int32_t> prompt;
  std::vector<std::int32_t> greedy;
  std::vector<int> positions;
  std::vector<std::vector<float>> logits;
  double bf16_max_abs = 0;
  double bf16_rms = 0;
};

Golden load_golden(const std::string& name) {
  std::ifstream in(std::string(SNAPMLA_SOURCE_DIR) + "/tests/data/goldens/" + name + ".json");
  const nlohmann::json file = nlohmann::json::parse(in);
  return {.config = file.at("config"),
          .seed = file.at("seed"),
          .prompt = file.at("prompt"),
          .greedy = file.at("greedy"),
          .positions = file.at("positions"),
          .logits = file.at("logits"),
          .bf16_max_abs = file.at("bf16_max_abs"),
          .bf16_rms = file.at("bf16_rms")};
}

int argmax(const std::vector<float>& logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Logits at the golden's positions: chunks that end at each, then its greedy tokens one by one.
std::vector<std::vector<float>> run(const Golden& golden, std::unique_ptr<Model> model,
                                    Backend& backend = reference()) {
  ModelRunner runner(std::move(model), 8, backend);
  Sequence sequence;
  std::vector<std::vector<float>> logits;
  std::size_t next_greedy = 0;
  for (const int position : golden.positions) {
    if (position < static_cast<int>(golden.prompt.size())) {
      const std::vector<std::int32_t> tokens(golden.prompt.begin() + sequence.length,
                                             golden.prompt.begin() + position + 1);
      logits.push_back(runner.prefill(sequence, tokens, static_cast<int>(tokens.size())));
    } else {
      logits.push_back(runner.decode(sequence, golden.greedy.at(next_greedy++)));
    }
  }
  return logits;
}

/// Differences in units of those between transformers in BF16 and in fp32.
struct Difference {
  double rms = 0;
  double max_abs = 0;
};

Difference compare(const Golden& golden, const std::vector<std::vector<float>>& logits) {
  double squares = 0;
  double largest = 0;
  double count = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    for (std::size_t j = 0; j < logits[i].size(); ++j) {
      const double difference = logits[i][j] - static_cast<double>(golden.logits[i][j]);
      squares += difference * difference;
      largest = std::isnan(difference) ? HUGE_VAL : std::max(largest, std::abs(difference));
      count += 1;
    }
  }
  return {.rms = std::sqrt(squares / count) / golden.bf16_rms, .max_abs = largest / golden.bf16_max_abs};
}

using Tensors = std::vector<NamedTensor>;
using Edit = std::function<void(ModelConfig& config, Tensors& tensors)>;

struct Where {
  const char* name;
  Backend& (*backend)();
  bool deterministic;
};

constexpr Where kReference{"reference", reference, true};

std::unique_ptr<Model> load(const Golden& golden, CacheFormat format, const Edit& edit = {},
                            const Where& where = kReference) {
  const TempDir dir;
  Tensors tensors = testing::make_tensors(golden.config, golden.seed);
  testing::write_file(dir.file("config.json"), golden.config.dump());
  ModelConfig config = load_config(dir.path());
  if (config.fp8.rows != 0) tensors = testing::quantize_fp8(tensors, config.fp8.rows);
  if (edit) edit(config, tensors);
  testing::write_safetensors(dir.file("model.safetensors"), tensors);
  return Model::load(where.backend(), dir.path(), config,
                     {.max_batch = 1,
                      .max_chunk = 64,
                      .max_seq_len = 256,
                      .cache_format = format,
                      .deterministic = where.deterministic});
}

class Goldens : public ::testing::TestWithParam<std::tuple<Where, const char*>> {
 protected:
  void SetUp() override {
    if (const Support support = where().backend().supports_models(); !support.ok)
      GTEST_SKIP() << support.reason;
  }
  static const Where& where() { return std::get<0>(GetParam()); }
  static Golden golden() { return load_golden(std::get<1>(GetParam())); }

  static std::vector<std::vector<float>> expect_within(const Golden& golden, CacheFormat format,
                                                       double factor) {
    std::vector<std::vector<float>> logits =
        run(golden, load(golden, format, {}, where()), where().backend());
    EXPECT_EQ(logits.size(), golden.logits.size());
    const Difference difference = compare(golden, logits);
    RecordProperty("rms", std::to_string(difference.rms));
    RecordProperty("max_abs", std::to_string(difference.max_abs));
    EXPECT_LE(difference.rms, factor);
    EXPECT_LE(difference.max_abs, factor);
    return logits;
  }
};

TEST_P(Goldens, Bf16CacheMatchesTransformers) {
  const Golden golden = Goldens::golden();
  const auto logits = expect_within(golden, CacheFormat::kBf16, kBf16Factor);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    EXPECT_EQ(argmax(logits[i]), argmax(golden.logits[i])) << "position " << golden.positions[i];
  }
  const std::size_t prompt_end = logits.size() - golden.greedy.size();
  for (std::size_t i = 0; i < golden.greedy.size(); ++i) {
    EXPECT_EQ(argmax(logits[prompt_end + i]), golden.greedy[i]) << "greedy token " << i;
  }
}

TEST_P(Goldens, Fp8CacheIsNear) {
  const Golden golden = Goldens::golden();
  const auto logits = expect_within(golden, CacheFormat::kFp8, kFp8Factor);
  std::size_t equal = 0;
  for (std::size_t i = 0; i < logits.size(); ++i)
    equal += argmax(logits[i]) == argmax(golden.logits[i]) ? 1 : 0;
  EXPECT_GE(3 * equal, 2 * logits.size());
}

INSTANTIATE_TEST_SUITE_P(Models, Goldens,
                         ::testing::Combine(::testing::Values(kReference, Where{"cuda", cuda, false},
                                                              Where{"cuda_deterministic", cuda, true}),
                                            ::testing::Values("v2_greedy", "v2_groups", "v3_yarn", "v3_plain",
                                                              "v3_halves", "v3_fp8", "kimi_k2",
                                                              "glm4_moe_lite", "youtu", "axk1",
                                                              "longcat_flash", "mistral_large3")),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + '_' + std::get<1>(test.param);
                         });

/// What a params.json says of a mistral4 config.
nlohmann::json mistral_params(const nlohmann::json& config) {
  const nlohmann::json& rope = config.at("rope_parameters");
  const auto original = rope.at("original_max_position_embeddings");
  nlohmann::json params = config;
  for (const char* field : {"model_type", "rope_parameters", "n_routed_experts"}) params.erase(field);
  for (const auto& [ours, theirs] : std::map<const char*, const char*>{{"hidden_size", "dim"},
                                                                       {"num_hidden_layers", "n_layers"},
                                                                       {"num_attention_heads", "n_heads"},
                                                                       {"intermediate_size", "hidden_dim"},
                                                                       {"rms_norm_eps", "norm_eps"}}) {
    params[theirs] = config.at(ours);
    params.erase(ours);
  }
  params["rope_theta"] = rope.at("rope_theta");
  params["yarn"] = {{"factor", rope.at("factor")},
                    {"original_max_position_embeddings", original},
                    {"beta", rope.at("beta_fast")},
                    {"alpha", rope.at("beta_slow")},
                    {"apply_scale", false}};
  params["llama_4_scaling"] = {{"beta", rope.at("llama_4_scaling_beta")},
                               {"original_max_position_embeddings", original}};
  params["moe"] = {{"num_experts", config.at("n_routed_experts")},
                   {"num_experts_per_tok", config.at("num_experts_per_tok")},
                   {"routed_scale", config.at("routed_scaling_factor")},
                   {"expert_hidden_dim", config.at("moe_intermediate_size")},
                   {"num_shared_experts", config.at("n_shared_experts")},
                   {"first_k_dense_replace", config.at("first_k_dense_replace")}};
  return params;
}

std::string mistral_name(std::string name) {
  // The longer of two that begin alike comes first.
  const std::vector<std::pair<std::string, std::string>> parts = {
      {"self_attn.q_a_proj", "attention.wq_a"},
      {"self_attn.q_a_layernorm", "attention.q_a_norm"},
      {"self_attn.q_b_proj", "attention.wq_b"},
      {"self_attn.kv_a_proj_with_mqa", "attention.wkv_a_with_mqa"},
      {"self_attn.kv_a_layernorm", "attention.kv_a_norm"},
      {"self_attn.kv_b_proj", "attention.wkv_b"},
      {"self_attn.o_proj", "attention.wo"},
      {"input_layernorm", "attention_norm"},
      {"post_attention_layernorm", "ffn_norm"},
      {"mlp.shared_experts.", "shared_experts."},
      {"mlp.experts.", "experts."},
      {"mlp.gate.", "gate."},
      {"mlp.", "feed_forward."},
      {"gate_proj", "w1"},
      {"up_proj", "w3"},
      {"down_proj", "w2"},
      {"embed_tokens", "tok_embeddings"},
      {"lm_head", "output"},
      {"model.", ""}};
  for (const auto& [ours, theirs] : parts) {
    const std::size_t at = name.find(ours);
    if (at != std::string::npos) name.replace(at, ours.size(), theirs);
  }
  return name;
}

/// The matrices [rows, columns] of `stack` [n, all rows, columns] from `first` on.
Tensors unstack(const NamedTensor& stack, const std::string& name, std::int64_t first, std::int64_t rows) {
  Tensors matrices;
  const std::int64_t columns = stack.shape[2];
  for (std::int64_t i = 0; i < stack.shape[0]; ++i) {
    const auto begin = stack.values.begin() + (i * stack.shape[1] + first) * columns;
    matrices.push_back(
        {stack.name.substr(0, stack.name.rfind('.') + 1) + std::to_string(i) + '.' + name + ".weight",
         {rows, columns},
         {begin, begin + rows * columns}});
  }
  return matrices;
}

TEST(MistralsLayout, GivesTheSameLogitsBitForBit) {
  const Golden golden = load_golden("mistral_large3");
  Tensors tensors;
  for (const NamedTensor& tensor : testing::make_tensors(golden.config, golden.seed)) {
    Tensors parts = {tensor};
    if (testing::ends_with(tensor.name, "experts.gate_up_proj")) {
      const std::int64_t inter = tensor.shape[1] / 2;
      parts = unstack(tensor, "gate_proj", 0, inter);
      for (NamedTensor& up : unstack(tensor, "up_proj", inter, inter)) parts.push_back(std::move(up));
    } else if (testing::ends_with(tensor.name, "experts.down_proj")) {
      parts = unstack(tensor, "down_proj", 0, tensor.shape[1]);
    }
    for (NamedTensor& part : parts) {
      part.name = mistral_name(part.name);
      tensors.push_back(std::move(part));
    }
  }
  const TempDir dir;
  testing::write_file(dir.file("params.json"), mistral_params(golden.config).dump());
  testing::write_safetensors(dir.file("consolidated.safetensors"), tensors);
  const ModelLimits limits{
      .max_batch = 1, .max_chunk = 64, .max_seq_len = 256, .cache_format = CacheFormat::kBf16};
  EXPECT_EQ(run(golden, Model::load(reference(), dir.path(), limits)),
            run(golden, load(golden, CacheFormat::kBf16)));
}

void zero(Tensors& tensors, const std::string& suffix) {
  for (NamedTensor& tensor : tensors) {
    if (testing::ends_with(tensor.name, suffix)) std::fill(tensor.values.begin(), tensor.values.end(), 0.0F);
  }
}

// What a mistaken reader of the config or the checkpoint would do.
void no_mscale(ModelConfig& config, Tensors& /*tensors*/) {
  config.softmax_scale = 1 / std::sqrt(static_cast<float>(config.nope_dim + kRopeDim));
}
void scale_of_the_latent(ModelConfig& config, Tensors& /*tensors*/) {
  config.softmax_scale = 1 / std::sqrt(static_cast<float>(kTokenDim));
}
void halves(ModelConfig& config, Tensors& /*tensors*/) {
  config.rope_interleaved = false;
}
void pairs(ModelConfig& config, Tensors& /*tensors*/) {
  config.rope_interleaved = true;
}
void usual_theta(ModelConfig& config, Tensors& /*tensors*/) {
  config.rope_theta = 10000;
}
void no_yarn(ModelConfig& config, Tensors& /*tensors*/) {
  config.yarn = {};
}
void deepseeks_betas(ModelConfig& config, Tensors& /*tensors*/) {
  config.yarn.beta_fast = 32;
}
void usual_eps(ModelConfig& config, Tensors& /*tensors*/) {
  config.norm_eps = 1e-6;
}
void files_eps_in_latent_norms(ModelConfig& config, Tensors& /*tensors*/) {
  config.latent_norm_eps = config.norm_eps;
}
void no_router_bias(ModelConfig& /*config*/, Tensors& tensors) {
  zero(tensors, "e_score_correction_bias");
}
void no_attention_bias(ModelConfig& /*config*/, Tensors& tensors) {
  zero(tensors, ".bias");
}
void all_groups(ModelConfig& config, Tensors& /*tensors*/) {
  config.top_groups = config.num_groups;
}
void other_group_score(ModelConfig& config, Tensors& /*tensors*/) {
  config.group_score = config.group_score == GroupScore::kMax ? GroupScore::kTopTwoSum : GroupScore::kMax;
}
void other_scoring(ModelConfig& config, Tensors& /*tensors*/) {
  config.scoring = config.scoring == Scoring::kSigmoid ? Scoring::kSoftmax : Scoring::kSigmoid;
}
void no_routed_scaling(ModelConfig& config, Tensors& /*tensors*/) {
  config.routed_scaling = 1;
}
void no_normalization(ModelConfig& config, Tensors& /*tensors*/) {
  config.normalize_weights = false;
}
void no_post_norm(ModelConfig& config, Tensors& tensors) {
  config.post_ffn_norm = false;
  const auto is_norm = [](const NamedTensor& tensor) {
    return testing::ends_with(tensor.name, "post_mlp_layernorm.weight");
  };
  tensors.erase(std::remove_if(tensors.begin(), tensors.end(), is_norm), tensors.end());
}
void no_query_scale(ModelConfig& config, Tensors& /*tensors*/) {
  config.query_scale = 1;
}
void no_latent_scale(ModelConfig& config, Tensors& /*tensors*/) {
  config.latent_scale = 1;
}

void dividing_by_fp8_scales(ModelConfig& /*config*/, Tensors& tensors) {
  for (NamedTensor& tensor : tensors) {
    if (!testing::ends_with(tensor.name, "_scale_inv")) continue;
    for (float& scale : tensor.values) scale = 1 / scale;
  }
}
void no_query_growth(ModelConfig& config, Tensors& /*tensors*/) {
  config.query_growth = 0;
}
void mscale_in_the_softmax(ModelConfig& config, Tensors& /*tensors*/) {
  const double mscale = 0.1 * std::log(config.yarn.factor) + 1;
  config.softmax_scale *= static_cast<float>(mscale * mscale);
}
void mscale_on_cos_and_sin(ModelConfig& config, Tensors& /*tensors*/) {
  config.yarn.cos_sin_factor = 0.1 * std::log(config.yarn.factor) + 1;
}

struct Mistake {
  const char* name;
  const char* golden;
  void (*edit)(ModelConfig& config, Tensors& tensors);
  double factor = kMistakeFactor;
};

// transformers routes mistral4 in BF16, the other families in fp32: its own differences, our unit, are larger.
constexpr double kMistralRoutingFactor = 5;

const std::vector<Mistake>& mistakes() {
  static const std::vector<Mistake> list = {
      {"NoMscaleV2", "v2_greedy", no_mscale},
      {"RopeInHalvesV2", "v2_greedy", halves},
      {"NoYarnV2", "v2_groups", no_yarn},
      {"NoAttentionBiasV2", "v2_groups", no_attention_bias},
      {"AllGroupsV2", "v2_groups", all_groups},
      {"OtherGroupScoreV2", "v2_groups", other_group_score},
      {"NoRoutedScalingV2", "v2_groups", no_routed_scaling},
      {"NoMscaleV3", "v3_yarn", no_mscale},
      {"NoYarnV3", "v3_yarn", no_yarn},
      {"NoRouterBias", "v3_yarn", no_router_bias},
      {"AllGroupsV3", "v3_yarn", all_groups},
      {"OtherGroupScoreV3", "v3_yarn", other_group_score},
      {"OtherScoringV3", "v3_yarn", other_scoring},
      {"NoRoutedScalingV3", "v3_yarn", no_routed_scaling},
      {"RopeInHalvesV3", "v3_plain", halves},
      {"NoAttentionBiasV3", "v3_plain", no_attention_bias},
      {"RopeInPairsV3", "v3_halves", pairs},
      {"UsualThetaV3", "v3_halves", usual_theta},
      {"NoNormalizationV3", "v3_halves", no_normalization},
      {"DividingByFp8Scales", "v3_fp8", dividing_by_fp8_scales},
      {"NoMscaleKimi", "kimi_k2", no_mscale},
      {"DeepseeksBetasKimi", "kimi_k2", deepseeks_betas},
      {"UsualThetaKimi", "kimi_k2", usual_theta},
      {"ScaleOfTheLatentGlm", "glm4_moe_lite", scale_of_the_latent},
      {"RopeInHalvesGlm", "glm4_moe_lite", halves},
      {"UsualThetaGlm", "glm4_moe_lite", usual_theta},
      {"NoRouterBiasGlm", "glm4_moe_lite", no_router_bias},
      {"NoNormalizationGlm", "glm4_moe_lite", no_normalization},
      {"RopeInHalvesYoutu", "youtu", halves},
      {"UsualThetaYoutu", "youtu", usual_theta},
      {"UsualEpsYoutu", "youtu", usual_eps},
      {"FilesEpsInLatentNormsYoutu", "youtu", files_eps_in_latent_norms},
      {"RopeInHalvesAxk1", "axk1", halves},
      {"NoPostNormAxk1", "axk1", no_post_norm},
      {"AllGroupsAxk1", "axk1", all_groups},
      {"RopeInHalvesLongcat", "longcat_flash", halves},
      {"UsualThetaLongcat", "longcat_flash", usual_theta},
      {"NoQueryScaleLongcat", "longcat_flash", no_query_scale},
      {"NoLatentScaleLongcat", "longcat_flash", no_latent_scale},
      {"NoRouterBiasLongcat", "longcat_flash", no_router_bias},
      {"OtherScoringLongcat", "longcat_flash", other_scoring},
      {"NoRoutedScalingLongcat", "longcat_flash", no_routed_scaling},
      {"RopeInHalvesMistral", "mistral_large3", halves},
      {"NoQueryGrowthMistral", "mistral_large3", no_query_growth},
      {"MscaleInTheSoftmaxMistral", "mistral_large3", mscale_in_the_softmax},
      {"MscaleOnCosAndSinMistral", "mistral_large3", mscale_on_cos_and_sin},
      {"NoNormalizationMistral", "mistral_large3", no_normalization, kMistralRoutingFactor},
      {"OtherScoringMistral", "mistral_large3", other_scoring, kMistralRoutingFactor},
  };
  return list;
}

class GoldenMistakes : public ::testing::TestWithParam<Mistake> {};

TEST_P(GoldenMistakes, ExceedTheBoundManyTimes) {
  const Golden golden = load_golden(GetParam().golden);
  const Difference difference =
      compare(golden, run(golden, load(golden, CacheFormat::kBf16, GetParam().edit)));
  RecordProperty("rms", std::to_string(difference.rms));
  EXPECT_GE(difference.rms, GetParam().factor * kBf16Factor);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenMistakes, ::testing::ValuesIn(mistakes()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace snapmla
