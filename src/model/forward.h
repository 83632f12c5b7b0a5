// The forward pass of an MLA transformer with dense or expert FFNs (DeepSeek-V2, arXiv 2405.04434; V3, arXiv
// 2412.19437), in two forms over the same paged cache:
//
//     prefill   append c, r to the cache; fetch all of it; k = [W_UK c ; r], v = W_UV c; attend un-absorbed
//     decode    q_latent = W_UK^T q_nope; append; attend in the latent space; W_UV on what comes out
//
// Activations are bf16 between ops, the residual stream included. Holds no memory of its own.
#pragma once

#include <vector>

#include "model/config.h"
#include "model/state.h"
#include "model/weights.h"

namespace snapmla {

class Forward {
 public:
  /// All must outlive this.
  Forward(Backend& backend, const ModelConfig& config, const ModelLimits& limits, const ModelWeights& weights,
          ModelState& state)
      : backend_(backend),
        ops_(limits.deterministic ? backend.plain_ops().deterministic() : backend.plain_ops()),
        config_(config),
        limits_(limits),
        weights_(weights),
        state_(state) {}

  /// Puts the sampled tokens that stand in for some of the step's in their place (DecodeBatch::sampled).
  void take_sampled(const Step& step, const ConstTensorView& sampled, Stream stream) {
    ops_.take_tokens(sampled, step.tokens, stream);
  }

  /// Logits of the last row go to row 0 of state.logits if asked for.
  void prefill(const Step& step, const std::vector<CacheView>& cache, bool want_logits, Stream stream);

  /// Logits of every row go to state.logits.
  void decode(const Step& step, const std::vector<CacheView>& cache, Stream stream);

 private:
  void embed(const Step& step, Stream stream);
  void project(const LayerWeights& layer, const Step& step, Stream stream);
  void append(const AttentionWeights& attention, const Step& step, const CacheView& cache, Stream stream);
  void attend_unabsorbed(const AttentionWeights& attention, const Step& step, const CacheView& cache,
                         Stream stream);
  void attend_absorbed(const AttentionWeights& attention, const Step& step, const CacheView& cache,
                       const PlanView& plan, Stream stream);
  void add_attention(const AttentionWeights& attention, int rows, Stream stream);
  void add_ffn(std::size_t index, int rows, Stream stream);
  void dense_ffn(const FfnWeights& ffn, int rows, Stream stream);
  void expert_ffn(const MoeWeights& moe, int rows, Stream stream);
  void logits(const TensorView& x, Stream stream);

  void apply(const LinearWeight& linear, const ConstTensorView& x, const TensorView& out, Stream stream);
  [[nodiscard]] RopeParams rope(const ConstTensorView& positions) const;
  [[nodiscard]] TensorView q_nope(int rows) const;
  [[nodiscard]] TensorView q_rope(int rows) const;

  Backend& backend_;
  const PlainOps& ops_;
  const ModelConfig& config_;
  const ModelLimits& limits_;
  const ModelWeights& weights_;
  ModelState& state_;
};

}  // namespace snapmla
