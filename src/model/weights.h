// Weights: the tensors of a Hugging Face checkpoint, by name, on a backend.
//
// kv_b_proj is split once into W_UK [heads, nope, 512] and W_UV [heads, v, 512], row blocks of each head, and
// never multiplied into another projection. The experts of a layer are stacked. Factors that a family puts on
// its normed query and latent (LongCat-Flash) are multiplied into the weights of these norms. FP8 weights of
// products stay FP8 on a backend that prefers them, and become BF16 elsewhere (fp8_weights.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device_buffer.h"
#include "core/plain_ops.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace snapmla {

struct LinearWeight {
  WeightView weight{};     ///< [out, in]
  ConstTensorView bias{};  ///< [out] bf16, or absent
};

struct AttentionWeights {
  LinearWeight q_a{};           ///< [q_lora, hidden]; absent without q_lora
  ConstTensorView q_a_norm{};   ///< [q_lora]
  LinearWeight q_b{};           ///< [heads * (nope + 64), q_lora], or from hidden without q_lora
  LinearWeight kv_a{};          ///< [576, hidden]
  ConstTensorView kv_a_norm{};  ///< [512]
  ConstTensorView w_uk{};       ///< [heads, nope, 512]
  ConstTensorView w_uv{};       ///< [heads, v, 512]
  LinearWeight o{};             ///< [hidden, heads * v]
};

/// down(silu(gate x) * up x). A dense FFN or the shared experts, which are one FFN of their summed width.
struct FfnWeights {
  LinearWeight gate{};
  LinearWeight up{};
  LinearWeight down{};
};

struct MoeWeights {
  ConstTensorView router{};       ///< [experts + zero experts, hidden] f32
  ConstTensorView router_bias{};  ///< [experts + zero experts] f32, or absent
  WeightView gate{};              ///< [experts, inter, hidden]; may be a slice of a stack with up
  WeightView up{};                ///< [experts, inter, hidden]
  WeightView down{};              ///< [experts, hidden, inter]; bf16 or e4m3 as gate and up are
};

struct LayerWeights {
  ConstTensorView attention_norm{};  ///< [hidden]
  AttentionWeights attention{};
  ConstTensorView ffn_norm{};       ///< [hidden]
  FfnWeights ffn{};                 ///< dense layers: all; expert layers: the shared experts, or absent; with
                                    ///< shortcut_experts: beside the experts
  MoeWeights moe{};                 ///< expert layers only
  ConstTensorView post_ffn_norm{};  ///< [hidden], of what an expert layer's FFN gives; or absent
};

struct ModelWeights {
  ConstTensorView embedding{};  ///< [vocab, hidden]
  std::vector<LayerWeights> layers;
  ConstTensorView norm{};  ///< [hidden]
  LinearWeight lm_head{};  ///< [vocab, hidden]; the embedding itself if tied
  std::vector<DeviceBuffer> buffers;
  std::int64_t num_parameters = 0;  ///< elements of the tensors read
  std::int64_t num_e4m3 = 0;        ///< of these, what stayed e4m3
  std::int64_t bytes = 0;           ///< on the device
};

/// Checks that all tensors are there with the right shapes, and no others that matter, and makes room for them before
/// the first is read, then reads them in the order of the files. Throws as Checkpoint does, naming file and tensor, and Error(kUnsupported, kOutOfMemory).
ModelWeights load_weights(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace snapmla
