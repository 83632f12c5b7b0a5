#include "model/forward.h"

namespace snapmla {
namespace {

/// [n, ...] with the dimension `s` = 1 that the attention ops have after the batch.
ConstTensorView with_s(const ConstTensorView& view, std::int64_t n) {
  if (view.rank() == 1) return {view.data(), view.dtype(), {n, 1}};
  return {view.data(),
          view.dtype(),
          {n, 1, view.dim(1), view.dim(2)},
          {view.stride(0), view.stride(0), view.stride(1), view.stride(2)}};
}

/// [n, 1, heads, d] without the `s`.
ConstTensorView without_s(const TensorView& view, std::int64_t n) {
  return {view.data(), view.dtype(), {n, view.dim(2), view.dim(3)}};
}

}  // namespace

void Forward::prefill(const Step& step, const std::vector<CacheView>& cache, bool want_logits,
                      Stream stream) {
  embed(step, stream);
  for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    project(layer, step, stream);
    append(layer.attention, step, cache[i], stream);
    attend_unabsorbed(layer.attention, step, cache[i], stream);
    add_attention(layer.attention, step.rows, stream);
    add_ffn(i, step.rows, stream);
  }
  if (!want_logits) return;
  auto* last = state_.x.as<Bf16>() + std::int64_t{step.rows - 1} * config_.hidden;
  logits(TensorView(last, DType::kBF16, {1, config_.hidden}), stream);
}

void Forward::decode(const Step& step, const std::vector<CacheView>& cache, Stream stream) {
  const PlanView plan_view = state_.plan_view(backend_, step.rows);
  plan(backend_, {.seq_lens = step.seq_lens, .plan = plan_view}, stream);
  embed(step, stream);
  for (std::size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    project(layer, step, stream);
    append(layer.attention, step, cache[i], stream);
    attend_absorbed(layer.attention, step, cache[i], plan_view, stream);
    add_attention(layer.attention, step.rows, stream);
    add_ffn(i, step.rows, stream);
  }
  logits(first_rows(state_.x, step.rows), stream);
}

void Forward::embed(const Step& step, Stream stream) {
  ops_.embed(step.tokens, weights_.embedding, first_rows(state_.x, step.rows), stream);
}

// q = W_QB norm(W_QA x) (or W_Q x), grown with its position in some families, and kv = W_KVA x: neither normed nor
// rotated yet.
void Forward::project(const LayerWeights& layer, const Step& step, Stream stream) {
  const AttentionWeights& attention = layer.attention;
  const std::int64_t n = step.rows;
  const TensorView normed = first_rows(state_.normed, n);
  ops_.rms_norm(first_rows(state_.x, n), layer.attention_norm, static_cast<float>(config_.norm_eps), normed,
                stream);
  TensorView q_in = normed;
  if (config_.q_lora > 0) {
    q_in = first_rows(state_.q_low_normed, n);
    apply(attention.q_a, normed, first_rows(state_.q_low, n), stream);
    ops_.rms_norm(first_rows(state_.q_low, n), attention.q_a_norm,
                  static_cast<float>(config_.latent_norm_eps), q_in, stream);
  }
  const TensorView q_flat(state_.q.data(), DType::kBF16, {n, state_.q.dim(1) * state_.q.dim(2)});
  apply(attention.q_b, q_in, q_flat, stream);
  if (state_.query_growth.present()) {
    ops_.scale_rows(q_flat, step.positions, state_.query_growth, q_flat, stream);
  }
  apply(attention.kv_a, normed, first_rows(state_.kv, n), stream);
}

void Forward::append(const AttentionWeights& attention, const Step& step, const CacheView& cache,
                     Stream stream) {
  append_kv(backend_,
            {.kv = first_rows(state_.kv, step.rows),
             .norm_weight = attention.kv_a_norm,
             .norm_eps = static_cast<float>(config_.latent_norm_eps),
             .rope = rope(step.positions),
             .slot_mapping = step.slots,
             .scale_rule = limits_.scale_rule,
             .cache = cache},
            stream);
}

void Forward::attend_unabsorbed(const AttentionWeights& attention, const Step& step, const CacheView& cache,
                                Stream stream) {
  const TensorView latent = first_rows(state_.latent, step.context);
  const TensorView k_rope = first_rows(state_.rope, step.context);
  const TensorView k_nope = first_rows(state_.k_nope, step.context);
  const TensorView v = first_rows(state_.v, step.context);
  fetch_kv(backend_,
           {.cache = cache,
            .block_table = step.block_table,
            .starts = step.starts,
            .offsets = step.offsets,
            .latent_out = latent,
            .rope_out = k_rope},
           stream);
  // Every head projects the same latent: a head stride of 0.
  const ConstTensorView shared(latent.data(), DType::kBF16, {step.context, config_.heads, kLatentDim},
                               {kLatentDim, 0, 1});
  ops_.head_linear(shared, attention.w_uk, false, k_nope, stream);
  ops_.head_linear(shared, attention.w_uv, false, v, stream);
  ops_.rope(q_rope(step.rows), rope(step.positions), q_rope(step.rows), stream);
  ops_.prefill_attention({.q = first_rows(state_.q, step.rows),
                          .k_nope = k_nope,
                          .k_rope = k_rope,
                          .v = v,
                          .softmax_scale = config_.softmax_scale,
                          .out = first_rows(state_.attended, step.rows)},
                         stream);
}

void Forward::attend_absorbed(const AttentionWeights& attention, const Step& step, const CacheView& cache,
                              const PlanView& plan, Stream stream) {
  const std::int64_t n = step.rows;
  const TensorView q_latent = first_rows(state_.q_latent, n);
  const TensorView q_rotated = first_rows(state_.q_rope, n);
  const TensorView out = first_rows(state_.out_latent, n);
  ops_.head_linear(q_nope(step.rows), attention.w_uk, true, q_latent, stream);

  DecodeParams params{.q_latent = with_s(q_latent, n),
                      .q_rope = q_rotated,
                      .q_scale = {},
                      .cache = cache,
                      .block_table = step.block_table,
                      .seq_lens = step.seq_lens,
                      .softmax_scale = config_.softmax_scale,
                      .plan = plan,
                      .out = out,
                      .lse = first_rows(state_.lse, n),
                      .workspace = state_.workspace};
  if (cache.format == CacheFormat::kFp8) {
    const TensorView q_fp8 = first_rows(state_.q_latent_fp8, n);
    const TensorView q_scale = first_rows(state_.q_scale, n);
    quantize_q(backend_,
               {.q_latent = with_s(q_latent, n),
                .q_rope = with_s(q_rope(step.rows), n),
                .rope = rope(with_s(step.positions, n)),
                .scale_rule = limits_.scale_rule,
                .q_latent_out = q_fp8,
                .q_rope_out = q_rotated,
                .q_scale_out = q_scale},
               stream);
    params.q_latent = q_fp8;
    params.q_scale = q_scale;
  } else {
    const TensorView rotated(q_rotated.data(), DType::kBF16, {n, config_.heads, kRopeDim});
    ops_.rope(q_rope(step.rows), rope(step.positions), rotated, stream);
  }
  snapmla::decode(backend_, params, stream);
  ops_.head_linear(without_s(out, n), attention.w_uv, false, first_rows(state_.attended, n), stream);
}

// x += W_O attended
void Forward::add_attention(const AttentionWeights& attention, int rows, Stream stream) {
  const TensorView x = first_rows(state_.x, rows);
  const TensorView branch = first_rows(state_.branch, rows);
  const ConstTensorView attended(state_.attended.data(), DType::kBF16,
                                 {rows, state_.attended.dim(1) * state_.attended.dim(2)});
  apply(attention.o, attended, branch, stream);
  ops_.add(x, branch, x, stream);
}

// x += FFN(norm(x)), where an expert layer's FFN is its routed experts plus its shared ones, normed in some
// families. Experts on a shortcut see the same norm(x) as the dense FFN beside them, and join x one layer later:
// expert_out keeps what they gave until then.
void Forward::add_ffn(std::size_t index, int rows, Stream stream) {
  const LayerWeights& layer = weights_.layers[index];
  const TensorView x = first_rows(state_.x, rows);
  const TensorView branch = first_rows(state_.branch, rows);
  ops_.rms_norm(x, layer.ffn_norm, static_cast<float>(config_.norm_eps), first_rows(state_.normed, rows),
                stream);
  const bool has_ffn = layer.ffn.gate.weight.present();
  const bool has_experts = layer.moe.router.present();
  if (has_ffn) dense_ffn(layer.ffn, rows, stream);
  if (has_experts) expert_ffn(layer.moe, rows, stream);
  const TensorView routed = first_rows(has_experts ? state_.expert_out : state_.branch, rows);
  if (config_.shortcut_experts) {
    ops_.add(x, branch, x, stream);
    const bool experts_join = index > 0 && weights_.layers[index - 1].moe.router.present();
    if (experts_join) ops_.add(x, first_rows(state_.expert_out, rows), x, stream);
    return;
  }
  if (has_ffn && has_experts) ops_.add(routed, branch, branch, stream);
  const TensorView& sum = has_ffn ? branch : routed;
  if (layer.post_ffn_norm.present()) {
    ops_.rms_norm(sum, layer.post_ffn_norm, static_cast<float>(config_.norm_eps), sum, stream);
  }
  ops_.add(x, sum, x, stream);
}

void Forward::dense_ffn(const FfnWeights& ffn, int rows, Stream stream) {
  const TensorView normed = first_rows(state_.normed, rows);
  const std::int64_t inter = ffn.gate.weight.values.dim(0);
  const TensorView gate(state_.gate.data(), DType::kBF16, {rows, inter});
  const TensorView up(state_.up.data(), DType::kBF16, {rows, inter});
  apply(ffn.gate, normed, gate, stream);
  apply(ffn.up, normed, up, stream);
  ops_.silu_mul(gate, up, gate, stream);
  apply(ffn.down, gate, first_rows(state_.branch, rows), stream);
}

void Forward::expert_ffn(const MoeWeights& moe, int rows, Stream stream) {
  const TensorView normed = first_rows(state_.normed, rows);
  const TensorView router_logits = first_rows(state_.router_logits, rows);
  const TensorView expert = first_rows(state_.expert, rows);
  const TensorView weight = first_rows(state_.expert_weight, rows);
  ops_.linear_f32(normed, moe.router, router_logits, stream);
  ops_.route({.logits = router_logits,
              .bias = moe.router_bias,
              .scoring = config_.scoring,
              .group_score = config_.group_score,
              .num_groups = config_.num_groups,
              .top_groups = config_.top_groups,
              .normalize = config_.normalize_weights,
              .scaling_factor = config_.routed_scaling,
              .expert = expert,
              .weight = weight},
             stream);
  ops_.experts({.x = normed,
                .expert = expert,
                .weight = weight,
                .identities = config_.num_zero_experts,
                .gate = moe.gate,
                .up = moe.up,
                .down = moe.down,
                .out = first_rows(state_.expert_out, rows),
                .workspace = state_.expert_workspace},
               stream);
}

void Forward::logits(const TensorView& x, Stream stream) {
  const TensorView normed = first_rows(state_.normed, x.dim(0));
  ops_.rms_norm(x, weights_.norm, static_cast<float>(config_.norm_eps), normed, stream);
  apply(weights_.lm_head, normed, first_rows(state_.logits, x.dim(0)), stream);
}

void Forward::apply(const LinearWeight& linear, const ConstTensorView& x, const TensorView& out,
                    Stream stream) {
  ops_.linear(x, linear.weight, linear.bias, out, stream);
}

RopeParams Forward::rope(const ConstTensorView& positions) const {
  return {.cos_sin = state_.cos_sin, .positions = positions, .interleaved = config_.rope_interleaved};
}

TensorView Forward::q_nope(int rows) const {
  const std::int64_t width = state_.q.dim(2);
  return {state_.q.data(),
          DType::kBF16,
          {rows, config_.heads, config_.nope_dim},
          {config_.heads * width, width, 1}};
}

TensorView Forward::q_rope(int rows) const {
  const std::int64_t width = state_.q.dim(2);
  return {state_.q.as<Bf16>() + config_.nope_dim,
          DType::kBF16,
          {rows, config_.heads, kRopeDim},
          {config_.heads * width, width, 1}};
}

}  // namespace snapmla
