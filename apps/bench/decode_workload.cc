#include "bench/decode_workload.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/device/device.h"
#include "core/bf16.h"

namespace snapmla::apps {
namespace {

const float kSoftmaxScale = 1 / std::sqrt(192.0F);  // DeepSeek-V3 without YaRN: un-absorbed head dim 128 + 64

/// Queries of this deviation give logits one of 1.2 beside unit keys: a flat softmax, but not a uniform one.
float query_deviation() {
  constexpr float kLogitDeviation = 1.2F;
  return kLogitDeviation / (kSoftmaxScale * std::sqrt(static_cast<float>(kTokenDim)));
}

constexpr int kCheckedRows = 8;

/// Rows spread over batch, query tokens and heads; the first and the last request among them.
std::vector<RowAt> rows_to_check(const BenchShape& shape) {
  const std::vector<std::int32_t> lens = shape.seq_lens();
  const int batch = shape.batch();
  const int rows = shape.s * shape.heads;
  const auto count = static_cast<int>(std::min<std::int64_t>(kCheckedRows, std::int64_t{batch} * rows));
  std::vector<RowAt> all;
  for (int i = 0; i < count; ++i) {
    const int request = count > 1 ? i * (batch - 1) / (count - 1) : 0;
    const int row = (i * rows / count + i) % rows;
    const int hidden = shape.s - 1 - row / shape.heads;  // cached tokens this query does not see
    all.push_back({.request = request,
                   .row = row,
                   .tokens = std::max(0, lens[static_cast<std::size_t>(request)] - hidden)});
  }
  return all;
}

/// Keeps the larger, and a NaN for good.
void keep_largest(double& most, double x) {
  if (!(x <= most) && !std::isnan(most)) most = x;
}

/// Compares rows of out and lse with exact ones.
class Comparison {
 public:
  void add(const Bf16* out, float lse, const ExactRow& exact) {
    double off = 0;
    double norm = 0;
    for (std::size_t d = 0; d < kLatentDim; ++d) {
      const auto x = static_cast<double>(to_float(out[d]));
      off += (x - exact.out[d]) * (x - exact.out[d]);
      norm += exact.out[d] * exact.out[d];
      product_ += x * exact.out[d];
    }
    norm_ += norm;
    keep_largest(errors_.rel_err, norm > 0 ? std::sqrt(off / norm) : std::sqrt(off));
    const bool both_empty = std::isinf(exact.lse) && static_cast<double>(lse) == exact.lse;
    keep_largest(errors_.lse_err, both_empty ? 0 : std::abs(static_cast<double>(lse) - exact.lse));
  }
  [[nodiscard]] RowErrors result() const {
    RowErrors errors = errors_;
    errors.gain = norm_ > 0 ? product_ / norm_ : 1;
    return errors;
  }

 private:
  RowErrors errors_{};
  double product_ = 0;
  double norm_ = 0;
};

}  // namespace

DecodeWorkload::DecodeWorkload(Backend& backend, const BenchPoint& point, int num_sets, Stream stream)
    : backend_(backend),
      shape_(point.shape),
      fp8_(point.format == CacheFormat::kFp8),
      num_rows_(static_cast<std::int64_t>(shape_.batch()) * shape_.s * shape_.heads),
      pool_(backend, point.format, shape_.num_pages() * num_sets, stream),
      tables_(backend, shape_, num_sets, stream),
      queries_(backend, shape_, query_deviation(), stream),
      plan_(backend, shape_, stream),
      out_(backend, num_rows_ * kLatentDim * 2),
      lse_(backend, num_rows_ * 4),
      workspace_(backend, std::max<std::int64_t>(1, decode_workspace_bytes(backend, plan_.params().plan.shape,
                                                                           shape_.s, shape_.heads))) {
  num_sets_ = num_sets;
  const auto tokens = static_cast<double>(shape_.num_tokens());
  bytes_ = tokens * static_cast<double>(token_bytes(point.format));
  flops_ = 2 * tokens * shape_.s * shape_.heads * (kTokenDim + kLatentDim);
  if (fp8_) quantize_q(backend, queries_.params(), stream);
  backend.synchronize(stream);
}

DecodeParams DecodeWorkload::params(int set) const {
  const std::int64_t batch = shape_.batch();
  const QuantizeQParams q = queries_.params();
  return {.q_latent = fp8_ ? ConstTensorView(q.q_latent_out) : q.q_latent,
          .q_rope = fp8_ ? ConstTensorView(q.q_rope_out) : q.q_rope,
          .q_scale = fp8_ ? ConstTensorView(q.q_scale_out) : ConstTensorView(),
          .cache = pool_.view(),
          .block_table = tables_.view(set),
          .seq_lens = plan_.params().seq_lens,
          .softmax_scale = kSoftmaxScale,
          .plan = plan_.params().plan,
          .out = {out_.data(), DType::kBF16, {batch, shape_.s, shape_.heads, kLatentDim}},
          .lse = {lse_.data(), DType::kF32, {batch, shape_.s, shape_.heads}},
          .workspace = {workspace_.data(), DType::kU8, {workspace_.bytes()}}};
}

void DecodeWorkload::call(int set, Stream stream) {
  decode(backend_, params(set), stream);
}

void DecodeWorkload::call_with_quantize(int set, Stream stream) {
  quantize_q(backend_, queries_.params(), stream);
  decode(backend_, params(set), stream);
}

std::optional<RowErrors> DecodeWorkload::check(Stream stream) {
  constexpr unsigned char kPoison = 0xff;  // NaN in bf16 and f32: a row that is not written shows
  const std::vector<unsigned char> poison(static_cast<std::size_t>(out_.bytes()), kPoison);
  backend_.copy(out_.data(), poison.data(), out_.bytes(), CopyKind::kHostToDevice, stream);
  backend_.copy(lse_.data(), poison.data(), lse_.bytes(), CopyKind::kHostToDevice, stream);
  const DecodeParams decode_params = params(0);
  decode(backend_, decode_params, stream);
  backend_.synchronize(stream);

  const std::vector<RowAt> rows = rows_to_check(shape_);
  const std::vector<ExactRow> exact = backend_.name() == "cuda"
                                          ? exact_rows_on_device(decode_params, rows, stream)
                                          : exact_rows_on_host(decode_params, rows);
  const auto out = to_host<Bf16>(backend_, out_.data(), num_rows_ * kLatentDim, stream);
  const auto lse = to_host<float>(backend_, lse_.data(), num_rows_, stream);
  Comparison comparison;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row =
        static_cast<std::size_t>(rows[i].request) * static_cast<std::size_t>(shape_.s * shape_.heads) +
        static_cast<std::size_t>(rows[i].row);
    comparison.add(out.data() + row * kLatentDim, lse[row], exact[i]);
  }
  return comparison.result();
}

}  // namespace snapmla::apps
