#include "selftest.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/bf16.h"
#include "core/device_buffer.h"
#include "eval_stats.h"

namespace snapmla::apps {
namespace {

constexpr std::int64_t kHeads = 16;
constexpr std::int64_t kNumPages = 6;
constexpr std::int64_t kMaxPagesOfRequest = 4;
constexpr std::int64_t kBatch = 2;
constexpr std::array<std::int32_t, kBatch> kSeqLens{200, 77};
constexpr std::array<std::int32_t, kBatch * kMaxPagesOfRequest> kBlockTable{3, 0, 5, 1, 2, 4, -1, -1};
constexpr float kSoftmaxScale = 0.04F;  // logits with a std of about one
constexpr unsigned char kPoison = 0xff;

template <class T>
void upload(Backend& backend, const DeviceBuffer& to, const T& host, Stream stream) {
  backend.copy(to.data(), host.data(), static_cast<std::int64_t>(host.size() * sizeof(host[0])),
               CopyKind::kHostToDevice, stream);
}

/// A stream, destroyed at the end of its scope.
class OwnStream {
 public:
  explicit OwnStream(Backend& backend) : backend_(&backend), stream_(backend.create_stream()) {}
  ~OwnStream() { backend_->destroy_stream(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  [[nodiscard]] Stream get() const { return stream_; }

 private:
  Backend* backend_;
  Stream stream_;
};

struct Inputs {
  std::vector<Bf16> kv;      // [tokens, 576]
  std::vector<Bf16> latent;  // [batch, 1, heads, 512]
  std::vector<Bf16> rope;    // [batch, 1, heads, 64]
  std::vector<std::int32_t> slots;
};

/// About normal: the sum of twelve uniform numbers.
float normal(Random& random) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += static_cast<double>(random.next() >> 11U) * 0x1p-53;
  return static_cast<float>(sum);
}

Inputs make_inputs() {
  Random random(1);
  Inputs in;
  std::vector<float> mean(kLatentDim);
  for (float& m : mean) m = 0.5F * normal(random);
  for (int b = 0; b < kBatch; ++b) {
    for (int t = 0; t < kSeqLens[static_cast<std::size_t>(b)]; ++t) {
      for (int d = 0; d < kTokenDim; ++d) {
        const float shift = d < kLatentDim ? mean[static_cast<std::size_t>(d)] : 0;
        in.kv.push_back(to_bf16(shift + normal(random)));
      }
      const auto entry = static_cast<std::size_t>(b * kMaxPagesOfRequest + t / kPageTokens);
      in.slots.push_back(kBlockTable[entry] * kPageTokens + t % kPageTokens);
    }
  }
  for (int i = 0; i < kBatch * kHeads * kLatentDim; ++i) in.latent.push_back(to_bf16(normal(random)));
  for (int i = 0; i < kBatch * kHeads * kRopeDim; ++i) in.rope.push_back(to_bf16(normal(random)));
  return in;
}

double dot(const Bf16* a, const Bf16* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i)
    sum += static_cast<double>(to_float(a[i])) * static_cast<double>(to_float(b[i]));
  return sum;
}

/// softmax(scale * q k) k_latent of one query row over `tokens` rows of kv, in fp64.
std::vector<double> attend(const Bf16* q_latent, const Bf16* q_rope, const Bf16* kv, int tokens) {
  std::vector<double> logit(static_cast<std::size_t>(tokens));
  for (int t = 0; t < tokens; ++t) {
    const Bf16* row = kv + static_cast<std::ptrdiff_t>(t) * kTokenDim;
    logit[static_cast<std::size_t>(t)] =
        static_cast<double>(kSoftmaxScale) *
        (dot(q_latent, row, kLatentDim) + dot(q_rope, row + kLatentDim, kRopeDim));
  }
  const double largest = *std::max_element(logit.begin(), logit.end());
  std::vector<double> out(kLatentDim, 0.0);
  double sum = 0;
  for (int t = 0; t < tokens; ++t) {
    const double p = std::exp(logit[static_cast<std::size_t>(t)] - largest);
    const Bf16* row = kv + static_cast<std::ptrdiff_t>(t) * kTokenDim;
    sum += p;
    for (std::size_t d = 0; d < kLatentDim; ++d) out[d] += p * static_cast<double>(to_float(row[d]));
  }
  for (double& x : out) x /= sum;
  return out;
}

/// Appends and decodes; returns the output rows [batch, 1, heads, 512].
std::vector<float> run_ops(Backend& backend, CacheFormat format, const Inputs& in) {
  const OwnStream own_stream(backend);
  const Stream stream = own_stream.get();
  const auto tokens = std::ssize(in.slots);
  const std::int64_t rows = kBatch * kHeads;
  const bool fp8 = format == CacheFormat::kFp8;
  const std::vector<unsigned char> poison(static_cast<std::size_t>(kNumPages * page_bytes(format)), kPoison);
  const DeviceBuffer pool(backend, std::ssize(poison));
  const DeviceBuffer kv(backend, tokens * kTokenDim * 2);
  const DeviceBuffer slots(backend, tokens * 4);
  const DeviceBuffer block_table(backend, kBatch * kMaxPagesOfRequest * 4);
  const DeviceBuffer seq_lens(backend, kBatch * 4);
  const DeviceBuffer q_latent(backend, rows * kLatentDim * 2);
  const DeviceBuffer q_rope(backend, rows * kRopeDim * 2);
  upload(backend, pool, poison, stream);
  upload(backend, kv, in.kv, stream);
  upload(backend, slots, in.slots, stream);
  upload(backend, block_table, kBlockTable, stream);
  upload(backend, seq_lens, kSeqLens, stream);
  upload(backend, q_latent, in.latent, stream);
  upload(backend, q_rope, in.rope, stream);

  const CacheView cache = make_cache_view(format, pool.data(), kNumPages);
  append_kv(backend,
            {.kv = {kv.data(), DType::kBF16, {tokens, kTokenDim}},
             .slot_mapping = {slots.data(), DType::kI32, {tokens}},
             .cache = cache},
            stream);

  ConstTensorView latent(q_latent.data(), DType::kBF16, {kBatch, 1, kHeads, kLatentDim});
  ConstTensorView rope(q_rope.data(), DType::kBF16, {kBatch, 1, kHeads, kRopeDim});
  ConstTensorView scale;
  const DeviceBuffer q8(backend, rows * kLatentDim);
  const DeviceBuffer q_rope8(backend, rows * kRopeDim * 2);
  const DeviceBuffer q_scale(backend, rows * 4);
  if (fp8) {
    const QuantizeQParams quantize{
        .q_latent = latent,
        .q_rope = rope,
        .q_latent_out = {q8.data(), DType::kE4M3, {kBatch, 1, kHeads, kLatentDim}},
        .q_rope_out = {q_rope8.data(), DType::kBF16, {kBatch, 1, kHeads, kRopeDim}},
        .q_scale_out = {q_scale.data(), DType::kF32, {kBatch, 1, kHeads}}};
    quantize_q(backend, quantize, stream);
    latent = quantize.q_latent_out;
    rope = quantize.q_rope_out;
    scale = quantize.q_scale_out;
  }

  const PlanShape shape = make_plan_shape(
      backend, {.batch = kBatch, .max_seq_len = kMaxPagesOfRequest * kPageTokens, .num_workers = 3});
  const DeviceBuffer items(backend, std::int64_t{16} * shape.max_items);
  const DeviceBuffer workers(backend, std::int64_t{4} * (shape.num_workers + 1));
  const DeviceBuffer splits(backend, (kBatch + 1) * 4);
  const PlanView plan_view{.shape = shape,
                           .work_items = {items.data(), DType::kI32, {shape.max_items, 4}},
                           .worker_offsets = {workers.data(), DType::kI32, {shape.num_workers + 1}},
                           .split_offsets = {splits.data(), DType::kI32, {kBatch + 1}}};
  const ConstTensorView lens(seq_lens.data(), DType::kI32, {kBatch});
  plan(backend, {.seq_lens = lens, .plan = plan_view}, stream);

  const std::int64_t workspace_bytes = decode_workspace_bytes(backend, shape, 1, kHeads);
  const DeviceBuffer workspace(backend, std::max<std::int64_t>(workspace_bytes, 1));
  const DeviceBuffer out(backend, rows * kLatentDim * 4);
  const DeviceBuffer lse(backend, rows * 4);
  decode(backend,
         {.q_latent = latent,
          .q_rope = rope,
          .q_scale = scale,
          .cache = cache,
          .block_table = {block_table.data(), DType::kI32, {kBatch, kMaxPagesOfRequest}},
          .seq_lens = lens,
          .softmax_scale = kSoftmaxScale,
          .plan = plan_view,
          .out = {out.data(), DType::kF32, {kBatch, 1, kHeads, kLatentDim}},
          .lse = {lse.data(), DType::kF32, {kBatch, 1, kHeads}},
          .workspace = {workspace.data(), DType::kU8, {workspace_bytes}}},
         stream);
  std::vector<float> result(static_cast<std::size_t>(rows * kLatentDim));
  backend.copy(result.data(), out.data(), rows * kLatentDim * 4, CopyKind::kDeviceToHost, stream);
  backend.synchronize(stream);
  return result;
}

}  // namespace

SelfTest run_self_test(Backend& backend, CacheFormat format) {
  const auto start = std::chrono::steady_clock::now();
  const Inputs in = make_inputs();
  const std::vector<float> out = run_ops(backend, format, in);
  SelfTest test{.tolerance = self_test_tolerance(format)};
  const Bf16* kv = in.kv.data();
  for (int b = 0; b < kBatch; ++b) {
    const int tokens = kSeqLens[static_cast<std::size_t>(b)];
    for (int h = 0; h < kHeads; ++h) {
      const std::ptrdiff_t row = b * kHeads + h;
      const std::vector<double> expected =
          attend(in.latent.data() + row * kLatentDim, in.rope.data() + row * kRopeDim, kv, tokens);
      double error = 0;
      double norm = 0;
      for (std::size_t d = 0; d < kLatentDim; ++d) {
        const double off =
            static_cast<double>(out[static_cast<std::size_t>(row) * kLatentDim + d]) - expected[d];
        error += off * off;
        norm += expected[d] * expected[d];
      }
      const double relative = std::sqrt(error / norm);
      // Written so that a NaN is kept.
      if (!(relative <= test.max_relative_error)) test.max_relative_error = relative;
    }
    kv += static_cast<std::ptrdiff_t>(tokens) * kTokenDim;
  }
  test.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return test;
}

}  // namespace snapmla::apps
