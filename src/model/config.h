// ModelConfig: what config.json (or Mistral's params.json) and generation_config.json of a folder say, checked
// and in our own words.
//
// Families are data, not classes: family.h has the defaults and the few rules that differ; everything the
// forward pass needs is a field below.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/plain_ops.h"
#include "model/family.h"

namespace snapmla {

/// How checkpoints name their tensors (tensor_list.h).
enum class NameStyle : std::uint8_t {
  kHuggingFace,
  kLongcat,
  kStacked,  ///< kHuggingFace with all experts of a layer in one tensor
  kMistral
};

/// YaRN (arXiv 2309.00071) as DeepSeek uses it; absent if factor is 1.
struct YarnConfig {
  double factor = 1;
  int original_max_position = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;       ///< the two borders of the ramp are rounded to whole dimensions
  double mscale = 0;          ///< with mscale_all_dim: cos_sin_factor, see there; 0: not given
  double mscale_all_dim = 0;  ///< scales the softmax: get_mscale(factor, mscale_all_dim)^2; 0: no scaling
  double cos_sin_factor =
      1;  ///< get_mscale(factor, mscale) / get_mscale(factor, mscale_all_dim) if both are given, else
          ///< get_mscale(factor, 1); attention_factor wins. get_mscale(f, m) = 0.1 m ln f + 1
};

/// FP8 weights have a scale for each block of so many rows and columns (fp8_weights.h); 0: none has.
struct Fp8Blocks {
  int rows = 0;
  int columns = 0;
};

struct ModelConfig {
  Family family = Family::kDeepseekV3;
  std::string model_type;  ///< as in config.json; mistral4 for a params.json
  NameStyle names = NameStyle::kHuggingFace;
  int num_layers =
      0;  ///< attention layers, each with a cache of its own: LongCat-Flash has two in one of its layers
  int hidden = 0;
  int heads = 0;
  int vocab = 0;
  int max_position = 0;  ///< at most kMaxSeqLen, whatever the file says
  int q_lora = 0;        ///< rank of the query's low-rank projection; 0: none
  int nope_dim = 0;
  int v_dim = 0;
  double norm_eps = 1e-6;  ///< layer norms and final norm
  double latent_norm_eps =
      1e-6;                 ///< q_a and kv_a norms: the reference classes use 1e-6 whatever norm_eps says
  double query_scale = 1;   ///< on the normed low-rank query
  double latent_scale = 1;  ///< on the normed latent, before it is cached
  Fp8Blocks fp8{};
  bool tied_embeddings = false;
  bool attention_bias = false;

  double rope_theta = 10000;
  bool rope_interleaved = true;
  YarnConfig yarn{};
  double query_growth =
      0;  ///< queries are multiplied by 1 + query_growth ln(1 + floor(position / query_growth_every))
  int query_growth_every = 1;
  float softmax_scale = 0;  ///< (nope_dim + 64)^-0.5 times YaRN's mscale^2

  int intermediate = 0;      ///< dense FFN width
  int num_experts = 0;       ///< routed experts; 0: every layer is dense
  int first_expert = 0;      ///< of an expert-parallel slice (slice.h): what its first is in the whole model
  int num_zero_experts = 0;  ///< routed to like the others, but what they give is their input
  int top_k = 0;
  int num_shared_experts = 0;
  int moe_intermediate = 0;
  std::vector<bool> expert_layers;  ///< [num_layers]
  bool shortcut_experts =
      false;  ///< experts stand beside a layer's dense FFN, not in its place, and what they
              ///< give is added behind the next layer's FFN
  Scoring scoring = Scoring::kSigmoid;
  GroupScore group_score = GroupScore::kTopTwoSum;
  int num_groups = 1;
  int top_groups = 1;
  bool normalize_weights = true;
  float routed_scaling = 1;
  Presence router_bias = Presence::kNever;  ///< e_score_correction_bias in checkpoints
  bool post_ffn_norm = false;               ///< layers with experts norm what their FFN gives

  int bos_token = -1;  ///< -1: none
  std::vector<std::int32_t>
      stop_tokens;  ///< generation_config.json's eos_token_id (one or a list), else config.json's
  float default_temperature = 0;  ///< generation_config.json: 0 unless do_sample
  int default_top_k = 0;          ///< 0 (all) where the file names none
  float default_top_p = 1;

  [[nodiscard]] bool is_moe_layer(int layer) const { return expert_layers[static_cast<std::size_t>(layer)]; }
};

/// Reads <dir>/config.json, or Mistral's <dir>/params.json where there is none, and, if there,
/// <dir>/generation_config.json. Throws Error kNotFound, kCorruptFile
/// (not JSON, a field missing, of the wrong type, or absurd: the text names file, field, rule and value) or
/// kUnsupported (another model_type, latent other than 512, rope other than 64, sparse attention, an unknown
/// rope type, quantized weights: the text names what would be needed).
ModelConfig load_config(const std::string& dir);

}  // namespace snapmla
