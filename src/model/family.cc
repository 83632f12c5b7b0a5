#include "model/family.h"

#include <algorithm>
#include <array>

namespace snapmla {
namespace {

constexpr std::array kFamilies = {
    FamilyRules{.model_type = "deepseek_v2",
                .family = Family::kDeepseekV2,
                .scoring = Scoring::kSoftmax,
                .group_score = GroupScore::kMax,
                .scoring_func = "softmax",
                .topk_method = "greedy",
                .router_bias = Presence::kNever,
                .normalize_weights = false,
                .normalize_is_free = false,
                .rope_interleave_is_free = false},
    FamilyRules{.model_type = "deepseek_v3", .family = Family::kDeepseekV3},
    FamilyRules{.model_type = "kimi_k2", .family = Family::kDeepseekV3},
    FamilyRules{.model_type = "glm4_moe_lite",
                .family = Family::kGlm4MoeLite,
                .first_dense_layers = 1,
                .norm_eps = 1e-5},
    FamilyRules{.model_type = "youtu", .family = Family::kYoutu, .experts = false, .tied_embeddings = true},
    FamilyRules{.model_type = "axk1",
                .family = Family::kAxk1,
                .router_bias = Presence::kOptional,
                .first_dense_layers = 1,
                .post_ffn_norm = true},
    FamilyRules{.model_type = "longcat_flash",
                .family = Family::kLongcatFlash,
                .scoring = Scoring::kSoftmax,
                .scoring_func = "softmax",
                .topk_method = "noaux_tc",
                .normalize_weights = false,
                .normalize_is_free = false,
                .rope_interleave_is_free = false,
                .norm_eps = 1e-5,
                .rope_theta = 1e7},
    FamilyRules{.model_type = "mistral4",
                .family = Family::kMistral4,
                .scoring = Scoring::kSoftmax,
                .scoring_func = "softmax",
                .topk_method = "greedy",
                .router_bias = Presence::kNever,
                .first_dense_layers = 0},
};

struct Refusal {
  std::string_view model_type;
  std::string_view text;
};

constexpr std::string_view kLinear =
    "linear attention in most layers, which would need a recurrent state beside the cache";
constexpr std::string_view kWrapper =
    "several modalities: its language model must be exported on its own, with the config.json that is here "
    "under text_config";

constexpr std::array kRefusals = {
    Refusal{"deepseek_v32", kSparseAttention},
    Refusal{
        "deepseek_v4",
        "sparse attention over compressed tokens, which would need their compressor, the indexer, caches of "
        "both, a window of plain tokens, and hyper-connections between layers"},
    Refusal{"glm_moe_dsa", kSparseAttention},
    Refusal{"hy_v4", kSparseAttention},
    Refusal{"longcat_flash_lsa", kSparseAttention},
    Refusal{"kimi_linear", kLinear},
    Refusal{"kimi_k3", kLinear},
    Refusal{"kimi_k25", kWrapper},
    Refusal{"mistral3", kWrapper},
    Refusal{"deepseek_vl_v2", kWrapper},
    Refusal{"minicpm3",
            "a latent of 256 and RoPE keys of 32, which would need pages and kernels of these widths"},
    Refusal{"longcat_flash_ngram",
            "n-gram embeddings, which would need their tables and the hash of preceding tokens"},
};

}  // namespace

const FamilyRules* find_family(std::string_view model_type) {
  const auto* const it = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const FamilyRules& rules) {
    return rules.model_type == model_type;
  });
  return it == kFamilies.end() ? nullptr : it;
}

std::string family_names() {
  std::string names;
  for (const FamilyRules& rules : kFamilies) {
    if (!names.empty()) names += ", ";
    names += rules.model_type;
  }
  return names;
}

std::string_view refusal_of(std::string_view model_type) {
  const auto* const it = std::find_if(kRefusals.begin(), kRefusals.end(), [&](const Refusal& refusal) {
    return refusal.model_type == model_type;
  });
  return it == kRefusals.end() ? std::string_view{} : it->text;
}

}  // namespace snapmla
