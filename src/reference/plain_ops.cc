// PlainOps on the CPU: each op as core/plain_ops.h states it, threads over rows or outputs only. The row-wise
// ops are here; projections, experts, prefill attention and sampling have files of their own.
#include "core/plain_ops.h"

#include <algorithm>

#include "core/bf16.h"
#include "core/check.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "reference/block_product.h"
#include "reference/linear.h"
#include "reference/moe.h"
#include "reference/norm_rope.h"
#include "reference/ops.h"
#include "reference/prefill.h"
#include "reference/sample.h"

namespace snapmla::reference_ops {
namespace {

void require_same_rows(const ConstTensorView& a, const ConstTensorView& b) {
  SNAPMLA_ASSERT(is_tensor(a, DType::kBF16, 2) && is_tensor(b, DType::kBF16, 2));
  SNAPMLA_ASSERT(a.dim(0) == b.dim(0) && a.dim(1) == b.dim(1));
}

void embed_rows(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out) {
  SNAPMLA_ASSERT(is_tensor(token, DType::kI32, 1) && is_tensor(table, DType::kBF16, 2) &&
                 is_tensor(out, DType::kBF16, 2));
  SNAPMLA_ASSERT(out.dim(0) == token.dim(0) && out.dim(1) == table.dim(1));
  for (std::int64_t i = 0; i < token.dim(0); ++i) {
    const std::int32_t id = token.as<std::int32_t>()[i];
    SNAPMLA_REQUIRE(id >= 0 && id < table.dim(0), "embed", "token must lie in [0, ", table.dim(0), "); got ",
                    id, " at ", i);
    std::copy_n(table.as<Bf16>() + id * table.stride(0), table.dim(1), out.as<Bf16>() + i * out.stride(0));
  }
}

template <class Store>
void fill_elements(std::int64_t count, const RandomFill& fill, const Store& store) {
  const float factor = random_factor(fill.deviation);
  constexpr std::int64_t kRun = 4096;
  parallel_for((count + kRun - 1) / kRun, 1, [&](std::int64_t run) {
    const std::int64_t end = std::min(count, (run + 1) * kRun);
    for (std::int64_t i = run * kRun; i < end; ++i) {
      store(i, random_number(fill.seed, fill.first + static_cast<std::uint64_t>(i), factor));
    }
  });
}

void fill_random_view(const TensorView& out, const RandomFill& fill) {
  SNAPMLA_ASSERT(out.is_contiguous() &&
                 (out.dtype() == DType::kBF16 || out.dtype() == DType::kF32 || out.dtype() == DType::kE4M3));
  const std::int64_t count = out.num_elements();
  if (out.dtype() == DType::kF32) {
    fill_elements(count, fill, [&](std::int64_t i, float x) { out.as<float>()[i] = x; });
  } else if (out.dtype() == DType::kE4M3) {
    fill_elements(count, fill, [&](std::int64_t i, float x) { out.as<E4m3>()[i] = to_e4m3(x); });
  } else {
    fill_elements(count, fill, [&](std::int64_t i, float x) { out.as<Bf16>()[i] = to_bf16(x); });
  }
}

class ReferencePlainOps final : public PlainOps {
 public:
  void fill_random(const TensorView& out, const RandomFill& fill, Stream /*stream*/) const override {
    fill_random_view(out, fill);
  }

  [[nodiscard]] const PlainOps& deterministic() const override { return *this; }

  void take_tokens(const ConstTensorView& sampled, const TensorView& token,
                   Stream /*stream*/) const override {
    SNAPMLA_ASSERT(is_tensor(sampled, DType::kI32, 1) && is_tensor(token, DType::kI32, 1));
    for (std::int64_t i = 0; i < token.dim(0); ++i) {
      std::int32_t& id = token.as<std::int32_t>()[i];
      if (id >= 0) continue;
      SNAPMLA_ASSERT(-1 - std::int64_t{id} < sampled.dim(0));
      id = sampled.as<std::int32_t>()[-1 - id];
    }
  }

  void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
             Stream /*stream*/) const override {
    embed_rows(token, table, out);
  }

  void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps, const TensorView& out,
                Stream /*stream*/) const override {
    require_same_rows(x, out);
    SNAPMLA_ASSERT(is_tensor(weight, DType::kBF16, 1) && weight.dim(0) == x.dim(1));
    parallel_for(x.dim(0), grain_of(x.dim(1) * 8), [&](std::int64_t i) {
      rms_norm_row(x.as<Bf16>() + i * x.stride(0), weight.as<Bf16>(), eps, static_cast<int>(x.dim(1)),
                   out.as<Bf16>() + i * out.stride(0));
    });
  }

  // Decoding costs more than reading half as many bytes saves.
  [[nodiscard]] bool prefers_e4m3(std::int64_t /*out*/, std::int64_t /*in*/) const override { return false; }

  void arrange_weight(const TensorView& values, Stream /*stream*/) const override {
    SNAPMLA_ASSERT(values.dtype() == DType::kE4M3 && values.rank() >= 2 && values.is_contiguous() &&
                   values.dim(values.rank() - 1) % kWeightBlock == 0);
  }

  void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
              const TensorView& out, Stream /*stream*/) const override {
    reference_ops::linear(x, weight, bias, out);
  }

  void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                  Stream /*stream*/) const override {
    reference_ops::linear_f32(x, weight, out);
  }

  void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                   const TensorView& out, Stream /*stream*/) const override {
    reference_ops::head_linear(x, weight, transposed, out);
  }

  void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out,
            Stream /*stream*/) const override {
    SNAPMLA_ASSERT(is_tensor(x, DType::kBF16, 3) && is_tensor(out, DType::kBF16, 3));
    SNAPMLA_ASSERT(x.dim(2) == kRopeDim && out.dim(0) == x.dim(0) && out.dim(1) == x.dim(1) &&
                   out.dim(2) == x.dim(2));
    SNAPMLA_ASSERT(is_tensor(rope.cos_sin, DType::kF32, 2) && rope.cos_sin.dim(1) == kRopeDim &&
                   rope.cos_sin.is_contiguous());
    SNAPMLA_ASSERT(is_tensor(rope.positions, DType::kI32, 1) && rope.positions.dim(0) == x.dim(0));
    parallel_for(x.dim(0), grain_of(x.dim(1) * kRopeDim * 4), [&](std::int64_t i) {
      const float* cos_sin = cos_sin_row("rope", rope, i);
      for (std::int64_t h = 0; h < x.dim(1); ++h) {
        rotate_row(x.as<Bf16>() + i * x.stride(0) + h * x.stride(1), cos_sin, rope.interleaved,
                   out.as<Bf16>() + i * out.stride(0) + h * out.stride(1));
      }
    });
  }

  void scale_rows(const ConstTensorView& x, const ConstTensorView& positions, const ConstTensorView& factor,
                  const TensorView& out, Stream /*stream*/) const override {
    require_same_rows(x, out);
    SNAPMLA_ASSERT(is_tensor(positions, DType::kI32, 1) && positions.dim(0) == x.dim(0));
    SNAPMLA_ASSERT(is_tensor(factor, DType::kF32, 1));
    parallel_for(x.dim(0), grain_of(x.dim(1)), [&](std::int64_t i) {
      const std::int32_t position = positions.as<std::int32_t>()[i];
      SNAPMLA_REQUIRE(position >= 0 && position < factor.dim(0), "scale_rows", "positions must lie in [0, ",
                      factor.dim(0), "); got ", position, " at ", i);
      const float by = factor.as<float>()[position];
      const Bf16* from = x.as<Bf16>() + i * x.stride(0);
      Bf16* to = out.as<Bf16>() + i * out.stride(0);
      for (std::int64_t d = 0; d < x.dim(1); ++d) to[d] = to_bf16(to_float(from[d]) * by);
    });
  }

  void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
                Stream /*stream*/) const override {
    require_same_rows(gate, up);
    require_same_rows(gate, out);
    parallel_for(gate.dim(0), grain_of(gate.dim(1) * 16), [&](std::int64_t i) {
      const Bf16* g = gate.as<Bf16>() + i * gate.stride(0);
      const Bf16* u = up.as<Bf16>() + i * up.stride(0);
      Bf16* y = out.as<Bf16>() + i * out.stride(0);
      for (std::int64_t d = 0; d < gate.dim(1); ++d) y[d] = to_bf16(silu(to_float(g[d])) * to_float(u[d]));
    });
  }

  void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out,
           Stream /*stream*/) const override {
    require_same_rows(a, b);
    require_same_rows(a, out);
    parallel_for(a.dim(0), grain_of(a.dim(1)), [&](std::int64_t i) {
      const Bf16* left = a.as<Bf16>() + i * a.stride(0);
      const Bf16* right = b.as<Bf16>() + i * b.stride(0);
      Bf16* y = out.as<Bf16>() + i * out.stride(0);
      for (std::int64_t d = 0; d < a.dim(1); ++d) y[d] = to_bf16(to_float(left[d]) + to_float(right[d]));
    });
  }

  void route(const RouteParams& params, Stream /*stream*/) const override { reference_ops::route(params); }

  std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter,
                                       int experts) const override {
    return reference_ops::experts_workspace_bytes(tokens, top_k, hidden, inter, experts);
  }

  void experts(const ExpertsParams& params, Stream /*stream*/) const override {
    reference_ops::experts(params);
  }

  void prefill_attention(const PrefillAttentionParams& params, Stream /*stream*/) const override {
    reference_ops::prefill_attention(params);
  }

  void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
              const TensorView& logprob, Stream /*stream*/) const override {
    reference_ops::sample(logits, rows, token, logprob);
  }
};

}  // namespace

const PlainOps& plain_ops() {
  static const ReferencePlainOps ops;
  return ops;
}

}  // namespace snapmla::reference_ops
