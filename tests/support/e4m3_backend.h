// The reference backend as one that prefers e4m3 weights and keeps them in an order of its own: each 128 codes of a row
// backwards. So whoever forgets arrange_weight(), or calls it twice, gets other numbers.
#pragma once

#include <algorithm>
#include <limits>
#include <set>
#include <vector>

#include "core/check.h"
#include "core/plain_ops.h"
#include "engine/metered_backend.h"

namespace snapmla::testing {

class E4m3Ops final : public PlainOps {
 public:
  explicit E4m3Ops(const PlainOps& inner) : inner_(inner) {}

  [[nodiscard]] bool prefers_e4m3(std::int64_t /*out*/, std::int64_t /*in*/) const override { return true; }
  void arrange_weight(const TensorView& values, Stream stream) const override {
    inner_.arrange_weight(values, stream);
    SNAPMLA_ASSERT(arranged_.insert(values.data()).second);
    turn_around(values.as<E4m3>(), values.num_elements());
  }
  void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
              const TensorView& out, Stream stream) const override {
    if (weight.is_e4m3()) ++num_e4m3_products_;
    std::vector<E4m3> codes;
    inner_.linear(x, as_stored(weight, codes), bias, out, stream);
  }
  void experts(const ExpertsParams& params, Stream stream) const override {
    if (params.gate.is_e4m3()) ++num_e4m3_products_;
    ExpertsParams stored = params;
    std::vector<E4m3> gate, up, down;
    stored.gate = as_stored(params.gate, gate);
    stored.up = as_stored(params.up, up);
    stored.down = as_stored(params.down, down);
    inner_.experts(stored, stream);
  }

  [[nodiscard]] int num_e4m3_products() const { return num_e4m3_products_; }

  [[nodiscard]] const PlainOps& deterministic() const override { return *this; }
  void fill_random(const TensorView& out, const RandomFill& fill, Stream stream) const override {
    inner_.fill_random(out, fill, stream);
  }
  void take_tokens(const ConstTensorView& sampled, const TensorView& token, Stream stream) const override {
    inner_.take_tokens(sampled, token, stream);
  }
  void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
             Stream stream) const override {
    inner_.embed(token, table, out, stream);
  }
  void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps, const TensorView& out,
                Stream stream) const override {
    inner_.rms_norm(x, weight, eps, out, stream);
  }
  void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                  Stream stream) const override {
    inner_.linear_f32(x, weight, out, stream);
  }
  void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                   const TensorView& out, Stream stream) const override {
    inner_.head_linear(x, weight, transposed, out, stream);
  }
  void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out,
            Stream stream) const override {
    inner_.rope(x, rope, out, stream);
  }
  void scale_rows(const ConstTensorView& x, const ConstTensorView& positions, const ConstTensorView& factor,
                  const TensorView& out, Stream stream) const override {
    inner_.scale_rows(x, positions, factor, out, stream);
  }
  void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
                Stream stream) const override {
    inner_.silu_mul(gate, up, out, stream);
  }
  void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out,
           Stream stream) const override {
    inner_.add(a, b, out, stream);
  }
  void route(const RouteParams& params, Stream stream) const override { inner_.route(params, stream); }
  [[nodiscard]] std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter,
                                                     int experts) const override {
    return inner_.experts_workspace_bytes(tokens, top_k, hidden, inter, experts);
  }
  void prefill_attention(const PrefillAttentionParams& params, Stream stream) const override {
    inner_.prefill_attention(params, stream);
  }
  void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
              const TensorView& logprob, Stream stream) const override {
    inner_.sample(logits, rows, token, logprob, stream);
  }

 private:
  static void turn_around(E4m3* codes, std::int64_t count) {
    for (std::int64_t at = 0; at < count; at += kWeightBlock) {
      std::reverse(codes + at, codes + at + kWeightBlock);
    }
  }

  /// The weight in the order of a checkpoint, in memory of `codes`.
  static WeightView as_stored(const WeightView& weight, std::vector<E4m3>& codes) {
    if (!weight.is_e4m3()) return weight;
    const ConstTensorView& values = weight.values;
    const bool stack = values.rank() == 3;
    const std::int64_t matrices = stack ? values.dim(0) : 1;
    const std::int64_t count = values.num_elements() / matrices;
    for (std::int64_t i = 0; i < matrices; ++i) {
      const E4m3* from = values.as<E4m3>() + (stack ? i * values.stride(0) : 0);
      codes.insert(codes.end(), from, from + count);
    }
    turn_around(codes.data(), matrices * count);
    if (!stack) return {{codes.data(), DType::kE4M3, {values.dim(0), values.dim(1)}}, weight.scales};
    return {{codes.data(), DType::kE4M3, {matrices, values.dim(1), values.dim(2)}}, weight.scales};
  }

  const PlainOps& inner_;
  mutable std::set<const void*> arranged_;
  mutable int num_e4m3_products_ = 0;
};

class E4m3Backend final : public MeteredBackend {
 public:
  E4m3Backend() : MeteredBackend(std::numeric_limits<std::int64_t>::max()) {}
  [[nodiscard]] const PlainOps& plain_ops() const override { return ops_; }
  [[nodiscard]] int num_e4m3_products() const { return ops_.num_e4m3_products(); }

 private:
  E4m3Ops ops_{reference().plain_ops()};
};

}  // namespace snapmla::testing
