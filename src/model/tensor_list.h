// Which tensors a checkpoint of a config holds, and what they are called: each NameStyle has its own names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/safetensors.h"

namespace snapmla {

/// Names within a layer, or of the whole model; those of matrices and norms without the final ".weight".
struct TensorNames {
  const char* embedding;
  const char* norm;
  const char* lm_head;
  const char* q_a;  ///< this and the next seven behind LayerNames::attention
  const char* q_a_norm;
  const char* q_b;
  const char* q;  ///< in place of the three above where queries have no low-rank projection
  const char* kv_a;
  const char* kv_a_norm;
  const char* kv_b;
  const char* o;
  const char* gate;  ///< this and the next two behind the prefix of an FFN or an expert
  const char* up;
  const char* down;
  const char* router;  ///< this and the next behind LayerNames::moe
  const char* router_bias;
  const char* stacked_gate_up = nullptr;  ///< [experts, 2 inter, hidden] in place of the experts' own; behind
                                          ///< LayerNames::moe
  const char* stacked_down = nullptr;     ///< [experts, hidden, inter]
};

/// Prefixes and norms of one attention layer.
struct LayerNames {
  std::string attention_norm;
  std::string attention;
  std::string ffn_norm;
  std::string ffn;
  std::string moe;
  std::string post_ffn_norm;
};

const TensorNames& tensor_names(NameStyle style);
LayerNames layer_names(NameStyle style, int layer);

struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  bool optional = false;
};

/// Every tensor that a checkpoint of this config must or, where optional, may hold.
std::vector<TensorSpec> list_tensors(const ModelConfig& config);

/// Throws kUnsupported, naming the first, if the checkpoint has tensors that are not in `list` and that no result
/// may be without. Left alone are: layers of multi-token prediction (those with an eh_proj, and model.mtp), scales
/// beside FP8 weights, the vision parts of Mistral's models, RoPE frequencies, a head that is tied, and A.X-K1's
/// norms of dense layers.
void refuse_other_tensors(const Checkpoint& checkpoint, const ModelConfig& config,
                          const std::vector<TensorSpec>& list);

}  // namespace snapmla
