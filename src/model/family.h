// The families of MLA models as data: what the config.json of each leaves unsaid. Values follow the classes of
// transformers 5 with the same model_type; a field that a file has wins over the default here.
#pragma once

#include <string>
#include <string_view>

#include "core/plain_ops.h"

namespace snapmla {

enum class Family : std::uint8_t {
  kDeepseekV2,
  kDeepseekV3,
  kGlm4MoeLite,
  kYoutu,
  kAxk1,
  kLongcatFlash,
  kMistral4,
};

/// Whether checkpoints of a family hold a tensor.
enum class Presence : std::uint8_t { kNever, kOptional, kAlways };

struct FamilyRules {
  std::string_view model_type;
  Family family;
  bool experts = true;  ///< false: every layer is dense, and fields about experts are not read
  Scoring scoring = Scoring::kSigmoid;
  GroupScore group_score = GroupScore::kTopTwoSum;
  const char* scoring_func = "sigmoid";      ///< what the field must be where it is
  const char* topk_method = "noaux_tc";      ///< likewise; kDeepseekV2 has two
  Presence router_bias = Presence::kAlways;  ///< e_score_correction_bias
  bool normalize_weights = true;             ///< norm_topk_prob where the file has none
  bool normalize_is_free = true;             ///< norm_topk_prob may be the other value too
  int first_dense_layers = -1;          ///< first_k_dense_replace where the file has none; -1: must be there
  bool rope_interleave_is_free = true;  ///< rope_interleave is read; the default is true in all families
  bool tied_embeddings = false;         ///< tie_word_embeddings where the file has none
  bool post_ffn_norm = false;           ///< a norm behind the FFN of layers with experts
  double norm_eps = 1e-6;               ///< rms_norm_eps where the file has none
  double rope_theta = 10000;            ///< rope_theta where the file has none
};

/// nullptr if no family has that model_type.
const FamilyRules* find_family(std::string_view model_type);

/// All model types, "deepseek_v2, deepseek_v3, ...", for an error's text.
std::string family_names();

/// What a model type that is known and refused has, and what that would need: "sparse attention, which would need
/// ...". Empty if there is nothing to say.
std::string_view refusal_of(std::string_view model_type);

/// The same where a field asks for it, whatever the family.
inline constexpr std::string_view kSparseAttention =
    "sparse attention, which would need the indexer, its cache, and decode over chosen tokens";

}  // namespace snapmla
