// The plain ops a model needs around attention: embedding, norms, projections, routing, experts, prefill
// attention, sampling. Like the attention ops they exist once a backend, enqueue on a stream, allocate
// nothing and check their arguments with SNAPMLA_ASSERT only: the model layer is their one caller.
//
// Number rule, the same on every backend: activations and weights are bf16 (an e4m3 weight stands for bf16 numbers:
// WeightView), sums are fp32, each op rounds its result to bf16 once. A row of a result depends on that row of the input alone, bit for bit, whatever else
// is in the call: that is what makes a request's text independent of its batch and of prefill chunks. One exception: how linear
// and head_linear sum may depend on the number of rows, unless the ops come from deterministic().
#pragma once

#include <cstdint>

#include "core/random_fill.h"
#include "snapmla/backend.h"
#include "snapmla/tensor.h"

namespace snapmla {

inline constexpr std::int64_t kWeightBlock = 128;

/// Scales of so many rows or columns of weights.
constexpr std::int64_t num_weight_blocks(std::int64_t extent) {
  return (extent + kWeightBlock - 1) / kWeightBlock;
}

/// A weight matrix [out, in] or a stack of them [n, out, in], as the products take it: bf16, or e4m3 with a scale a
/// block of kWeightBlock x kWeightBlock. An e4m3 weight stands for the bf16 numbers bf16(fp32(e4m3 * scale)), so that a product
/// is the same whether its weight was made bf16 beforehand or not.
struct WeightView {
  ConstTensorView
      values{};  ///< dense but for the first dimension; e4m3: codes other than NaN, as arrange_weight() left them
  ConstTensorView
      scales{};  ///< e4m3 only: f32 [(n,) num_weight_blocks(out), in / kWeightBlock], dense, finite

  WeightView() = default;
  // Implicit: most weights are bf16.
  WeightView(const ConstTensorView& bf16) : values(bf16) {}  // NOLINT(google-explicit-constructor)
  WeightView(const TensorView& bf16) : values(bf16) {}       // NOLINT(google-explicit-constructor)
  WeightView(const ConstTensorView& e4m3, const ConstTensorView& block_scales)
      : values(e4m3), scales(block_scales) {}

  [[nodiscard]] bool present() const { return values.present(); }
  [[nodiscard]] bool is_e4m3() const { return scales.present(); }
};

/// How the router turns logits into the chosen experts and their weights.
enum class Scoring : std::uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : std::uint8_t {
  kMax,       ///< a group counts by its best expert (DeepSeek-V2 group_limited_greedy)
  kTopTwoSum  ///< by the sum of its two best biased scores (DeepSeek-V3 noaux_tc)
};

struct RouteParams {
  ConstTensorView logits{};  ///< [tokens, experts] f32
  ConstTensorView
      bias{};  ///< [experts] f32: added to scores for choosing only (e_score_correction_bias); may be absent
  Scoring scoring = Scoring::kSigmoid;
  GroupScore group_score = GroupScore::kTopTwoSum;
  int num_groups = 1;
  int top_groups = 1;      ///< groups kept; experts of others cannot be chosen
  bool normalize = false;  ///< divide the chosen weights by (their sum + 1e-20)
  float scaling_factor = 1;
  TensorView expert{};  ///< [tokens, top_k] int32, by falling score, ties to the lower index
  TensorView weight{};  ///< [tokens, top_k] f32
};

struct ExpertsParams {
  ConstTensorView x{};       ///< [tokens, hidden] bf16
  ConstTensorView expert{};  ///< [tokens, top_k] int32, in [0, experts + identities)
  ConstTensorView weight{};  ///< [tokens, top_k] f32
  int identities = 0;        ///< experts behind the others that give x itself
  WeightView gate{};         ///< [experts, inter, hidden]; all three bf16, or all e4m3
  WeightView up{};           ///< [experts, inter, hidden]
  WeightView down{};         ///< [experts, hidden, inter]
  TensorView out{};          ///< [tokens, hidden] bf16: sum over top_k of weight * down(silu(gate x) * up x)
  TensorView workspace{};    ///< [experts_workspace_bytes()] u8
};

struct PrefillAttentionParams {
  ConstTensorView
      q{};  ///< [tokens, heads, nope + 64] bf16: query token i is at position seq_len - tokens + i
  ConstTensorView k_nope{};  ///< [seq_len, heads, nope] bf16
  ConstTensorView k_rope{};  ///< [seq_len, 64] bf16, shared by all heads
  ConstTensorView v{};       ///< [seq_len, heads, v_dim] bf16
  float softmax_scale = 0;
  TensorView out{};  ///< [tokens, heads, v_dim] bf16, causal
};

/// One row's way to choose its token. Copied to the device as it lies in memory.
struct SampleRow {
  float temperature = 0;     ///< 0: greedy
  std::int32_t top_k = 0;    ///< 0: no cut
  float top_p = 1;           ///< 1: no cut
  std::int32_t forced = -1;  ///< a token to take as it is; -1: choose
  std::uint64_t seed = 0;
  std::uint64_t position =
      0;  ///< index of the generated token: the random number is a function of (seed, position)
};
inline constexpr std::int64_t kSampleRowBytes = sizeof(SampleRow);

class PlainOps {
 public:
  virtual ~PlainOps() = default;

  /// out[i] = number fill.first + i of the stream fill.seed (core/random_fill.h), rounded to out's type.   out
  /// bf16, f32 or e4m3, dense, i counting its elements in row-major order. The same bits on every backend.
  virtual void fill_random(const TensorView& out, const RandomFill& fill, Stream) const = 0;

  /// The same ops without the exception below: a row of a result depends on that row of the input alone, bit for bit. On a backend
  /// whose ops are so anyway, these ops themselves.
  [[nodiscard]] virtual const PlainOps& deterministic() const = 0;

  /// token[i] = sampled[-1 - token[i]] where token[i] is negative.   token [n], sampled [m] int32; token at least -m.
  virtual void take_tokens(const ConstTensorView& sampled, const TensorView& token, Stream) const = 0;

  /// out[i] = table[token[i]].   token [n] int32, table [vocab, hidden] bf16, out [n, hidden] bf16.
  virtual void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
                     Stream) const = 0;

  /// out = x / sqrt(mean(x^2) + eps) * weight.   x, out [n, d] bf16 (row strides free), weight [d] bf16; out
  /// may be x.
  virtual void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps,
                        const TensorView& out, Stream) const = 0;

  /// Whether e4m3 weights of such matrices are faster here, at the rows of a decode step, than the bf16 ones they stand for. If not, linear and experts still
  /// take them, except where arrange_weight() refuses.
  [[nodiscard]] virtual bool prefers_e4m3(std::int64_t out, std::int64_t in) const = 0;

  /// Brings an e4m3 weight from the order of a checkpoint, row by row, into the one in which this backend's products read
  /// it, in place. Once a weight, before its first product.   values [(n,) out, in] e4m3, dense, `in` a multiple of
  /// kWeightBlock.
  virtual void arrange_weight(const TensorView& values, Stream) const = 0;

  /// out[i, o] = sum_k x[i, k] weight[o, k] (+ bias[o]).   x [n, in] bf16, weight [out, in], bias [out]
  /// bf16 or absent, out [n, out] bf16 or f32. Row strides of x and out are free.
  virtual void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
                      const TensorView& out, Stream) const = 0;

  /// As linear with fp32 products of an fp32 weight: the router.   weight [out, in] f32, out [n, out] f32.
  virtual void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                          Stream) const = 0;

  /// A projection a head: out[i, h, o] = sum_k x[i, h, k] weight[h, o, k], or weight[h, k, o] if transposed.
  /// x [n, heads, in] bf16 (any strides but the last), weight [heads, out, in] or [heads, in, out] bf16, out
  /// [n, heads, out] bf16.
  virtual void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                           const TensorView& out, Stream) const = 0;

  /// Rotates x [n, heads, 64] bf16 (any strides but the last) into out, same shape; positions [n]. out may be
  /// x.
  virtual void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out,
                    Stream) const = 0;

  /// out[i] = x[i] * factor[positions[i]].   x, out [n, d] bf16 (row strides free), positions [n] int32, factor
  /// [positions] f32; out may be x.
  virtual void scale_rows(const ConstTensorView& x, const ConstTensorView& positions,
                          const ConstTensorView& factor, const TensorView& out, Stream) const = 0;

  /// out = silu(gate) * up, all [n, d] bf16; silu(gate) is not rounded between; out may be gate or up.
  virtual void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
                        Stream) const = 0;

  /// out = a + b, all [n, d] bf16; out may be a or b.
  virtual void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out,
                   Stream) const = 0;

  virtual void route(const RouteParams& params, Stream) const = 0;
  virtual std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter,
                                               int experts) const = 0;
  virtual void experts(const ExpertsParams& params, Stream) const = 0;
  virtual void prefill_attention(const PrefillAttentionParams& params, Stream) const = 0;

  /// token[i] from logits[i].   logits [at least n, vocab] f32, rows [n, kSampleRowBytes] u8: n SampleRow, dense
  /// and 16-byte aligned, token [n] int32, logprob [n] f32: ln softmax of the unscaled logits at the token.
  /// Greedy takes the lowest index among equals. A row without a softmax (core/sample_rule.h) throws where ops
  /// run at once; where they are enqueued its token is -1, and its logprob NaN.
  virtual void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
                      const TensorView& logprob, Stream) const = 0;
};

}  // namespace snapmla
