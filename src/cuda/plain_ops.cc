// PlainOps on CUDA: the functions of plain_ops.h and linear.h behind the interface.
#include "cuda/plain_ops.h"

#include "cuda/linear.h"
#include "cuda/linear_e4m3.h"
#include "cuda/ops.h"

namespace snapmla::cuda_ops {
namespace {

cudaStream_t handle_of(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

class CudaPlainOps final : public PlainOps {
 public:
  explicit CudaPlainOps(Algorithms algorithms) : algorithms_(algorithms) {}

  [[nodiscard]] const PlainOps& deterministic() const override {
    static const CudaPlainOps ops(Algorithms::kOneAShape);
    return ops;
  }

  void fill_random(const TensorView& out, const RandomFill& fill, Stream stream) const override {
    cuda_ops::fill_random(out, fill, handle_of(stream));
  }
  void take_tokens(const ConstTensorView& sampled, const TensorView& token, Stream stream) const override {
    cuda_ops::take_tokens(sampled, token, handle_of(stream));
  }
  void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
             Stream stream) const override {
    cuda_ops::embed(token, table, out, handle_of(stream));
  }
  void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps, const TensorView& out,
                Stream stream) const override {
    cuda_ops::rms_norm(x, weight, eps, out, handle_of(stream));
  }
  [[nodiscard]] bool prefers_e4m3(std::int64_t out, std::int64_t in) const override {
    return cuda_ops::prefers_e4m3(out, in);
  }
  void arrange_weight(const TensorView& values, Stream stream) const override {
    cuda_ops::arrange_weight(values, handle_of(stream));
  }
  void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
              const TensorView& out, Stream stream) const override {
    if (weight.is_e4m3()) return linear_e4m3(x, weight, bias, out, handle_of(stream));
    cuda_ops::linear(x, weight.values, bias, out, algorithms_, handle_of(stream));
  }
  void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                  Stream stream) const override {
    cuda_ops::linear_f32(x, weight, out, handle_of(stream));
  }
  void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                   const TensorView& out, Stream stream) const override {
    cuda_ops::head_linear(x, weight, transposed, out, algorithms_, handle_of(stream));
  }
  void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out,
            Stream stream) const override {
    cuda_ops::rope(x, rope, out, handle_of(stream));
  }
  void scale_rows(const ConstTensorView& x, const ConstTensorView& positions, const ConstTensorView& factor,
                  const TensorView& out, Stream stream) const override {
    cuda_ops::scale_rows(x, positions, factor, out, handle_of(stream));
  }
  void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
                Stream stream) const override {
    cuda_ops::silu_mul(gate, up, out, handle_of(stream));
  }
  void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out,
           Stream stream) const override {
    cuda_ops::add(a, b, out, handle_of(stream));
  }
  void route(const RouteParams& params, Stream stream) const override {
    cuda_ops::route(params, handle_of(stream));
  }
  std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter,
                                       int experts) const override {
    return cuda_ops::experts_workspace_bytes(tokens, top_k, hidden, inter, experts);
  }
  void experts(const ExpertsParams& params, Stream stream) const override {
    cuda_ops::experts(params, handle_of(stream));
  }
  void prefill_attention(const PrefillAttentionParams& params, Stream stream) const override {
    cuda_ops::prefill_attention(params, handle_of(stream));
  }
  void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
              const TensorView& logprob, Stream stream) const override {
    cuda_ops::sample(logits, rows, token, logprob, handle_of(stream));
  }

 private:
  Algorithms algorithms_;
};

}  // namespace

const PlainOps& plain_ops() {
  static const CudaPlainOps ops(Algorithms::kByRows);
  return ops;
}

}  // namespace snapmla::cuda_ops
