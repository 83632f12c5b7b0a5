// Attention problems as data: one list of cases feeds the tests of every backend. A case says shapes and
// distributions; a Problem holds its random inputs; solve() runs the public ops on a backend; formula() is
// softmax attention in fp64 on the unquantized inputs, with the error that the number formats should cause
// worked out beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <ostream>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "snapmla/backend.h"
#include "support/on_device.h"
#include "support/page_layout.h"

namespace snapmla::test {

enum class Latents { kZeroMean, kMean, kZero };  ///< N(0,1); N(mu_d,1) with mu_d ~ N(0,1); all zero
enum class Ropes { kNormal, kOutliers };         ///< N(0,1); heavy tails to 10^3
enum class Logits {
  kUniform,
  kFlat,
  kPeaked,
  kSink
};  ///< q = 0; std 1.2; std 3.6; one token 8 nats above the rest

struct AttentionCase {
  std::vector<int> seq_lens;
  int s = 1;
  int heads = 16;
  CacheFormat format = CacheFormat::kFp8;
  ScaleRule rule = ScaleRule::kPowerOfTwo;
  Latents latents = Latents::kMean;
  Ropes ropes = Ropes::kNormal;
  Logits logits = Logits::kFlat;
  bool causal = true;
  PageLayout layout = PageLayout::kRecords;
  int num_workers = 0;
  int fixed_split_tokens = 0;
  std::uint64_t seed = 1;
};

inline std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
  out << to_string(c.format) << ' ' << to_string(c.rule) << " s " << c.s << " heads " << c.heads << " lens";
  for (const int len : c.seq_lens) out << ' ' << len;
  return out << " latents " << static_cast<int>(c.latents) << " ropes " << static_cast<int>(c.ropes)
             << " logits " << static_cast<int>(c.logits) << (c.causal ? " causal" : " full") << " pages "
             << c.layout << " workers " << c.num_workers << " fixed " << c.fixed_split_tokens << " seed "
             << c.seed;
}

struct Problem {
  AttentionCase spec{};
  float softmax_scale = 0;
  std::vector<Bf16> q_latent{};             ///< [batch, s, heads, 512]
  std::vector<Bf16> q_rope{};               ///< [batch, s, heads, 64]
  std::vector<std::vector<Bf16>> kv{};      ///< a request: [seq_len, 576], normed and rotated
  std::vector<std::int32_t> block_table{};  ///< [batch, max_pages]; unused entries are far out of range
  int max_pages = 1;
  int num_pages = 0;
};

inline Problem make_problem(const AttentionCase& spec) {
  Problem problem{.spec = spec, .softmax_scale = 1 / std::sqrt(192.0F)};
  std::mt19937_64 random(spec.seed);
  std::normal_distribution<float> normal;
  const auto batch = static_cast<int>(spec.seq_lens.size());

  const float spread = spec.logits == Logits::kUniform ? 0.0F : spec.logits == Logits::kPeaked ? 3.6F : 1.2F;
  const float q_std = spread / (problem.softmax_scale * std::sqrt(static_cast<float>(kTokenDim)));
  const std::size_t rows = static_cast<std::size_t>(batch) * spec.s * spec.heads;
  for (std::size_t i = 0; i < rows * kLatentDim; ++i)
    problem.q_latent.push_back(to_bf16(q_std * normal(random)));
  for (std::size_t i = 0; i < rows * kRopeDim; ++i) {
    const std::size_t d = i % kRopeDim;
    float value = q_std * normal(random);
    if (spec.ropes == Ropes::kOutliers && d >= 1 && d <= 3)
      value *= 1e-3F;  // so that outliers count like any other
    if (spec.logits == Logits::kSink && d == 0) value = 1;
    problem.q_rope.push_back(to_bf16(value));
  }

  std::vector<float> mean(kLatentDim);
  for (float& mu : mean) mu = spec.latents == Latents::kMean ? normal(random) : 0;
  for (const int seq_len : spec.seq_lens) {
    std::vector<Bf16> tokens;
    tokens.reserve(static_cast<std::size_t>(seq_len) * kTokenDim);
    const int sink = seq_len / 3;
    for (int t = 0; t < seq_len; ++t) {
      for (std::size_t d = 0; d < kLatentDim; ++d) {
        tokens.push_back(to_bf16(spec.latents == Latents::kZero ? 0.0F : mean[d] + normal(random)));
      }
      for (std::size_t d = 0; d < kRopeDim; ++d) {
        float value = normal(random);
        if (spec.ropes == Ropes::kOutliers && d >= 1 && d <= 3) value *= 1e3F;
        if (spec.logits == Logits::kSink && d == 0) value = t == sink ? 8 / problem.softmax_scale : 0;
        tokens.push_back(to_bf16(value));
      }
    }
    problem.kv.push_back(std::move(tokens));
    problem.max_pages = std::max(problem.max_pages, (seq_len + kPageTokens - 1) / kPageTokens);
  }

  // Pages in random order, with a few nobody uses.
  for (const int seq_len : spec.seq_lens) problem.num_pages += (seq_len + kPageTokens - 1) / kPageTokens;
  problem.num_pages += 3;
  std::vector<std::int32_t> pages(static_cast<std::size_t>(problem.num_pages));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), random);
  problem.block_table.assign(static_cast<std::size_t>(batch) * problem.max_pages, 0x7fffff00);
  std::size_t next = 0;
  for (int b = 0; b < batch; ++b) {
    for (int page = 0; page * kPageTokens < spec.seq_lens[static_cast<std::size_t>(b)]; ++page) {
      problem.block_table[static_cast<std::size_t>(b) * problem.max_pages + page] = pages[next++];
    }
  }
  return problem;
}

struct Solution {
  std::vector<float> out;  ///< [batch, s, heads, 512], not rounded to bf16
  std::vector<float> lse;  ///< [batch, s, heads]
};

/// The problem on a backend: the pool, filled by append_kv and NaN in every format elsewhere; the other
/// inputs; outputs and scratch, poisoned. enqueue() calls the ops that an engine calls every step.
class Decoder {
 public:
  Decoder(Backend& backend, const Problem& problem, DType out_type = DType::kF32)
      : backend_(&backend),
        spec_(problem.spec),
        softmax_scale_(problem.softmax_scale),
        batch_(static_cast<std::int64_t>(spec_.seq_lens.size())),
        max_pages_(problem.max_pages),
        num_rows_(static_cast<std::size_t>(batch_ * spec_.s * spec_.heads)),
        shape_(make_plan_shape(backend, {.batch = static_cast<int>(batch_),
                                         .max_seq_len = std::max(1, *std::max_element(spec_.seq_lens.begin(),
                                                                                      spec_.seq_lens.end())),
                                         .rows = spec_.s * spec_.heads,
                                         .num_workers = spec_.num_workers,
                                         .fixed_split_tokens = spec_.fixed_split_tokens})),
        out_type_(out_type),
        pool_(backend,
              poison<std::uint8_t>(pool_view(spec_.layout, spec_.format, nullptr, problem.num_pages).bytes)),
        cache_(pool_view(spec_.layout, spec_.format, pool_.data(), problem.num_pages).cache),
        q_latent_(backend, problem.q_latent),
        q_rope_(backend, problem.q_rope),
        q_latent8_(backend, poison<E4m3>(rows(kLatentDim))),
        q_rope_scaled_(backend, poison<Bf16>(rows(kRopeDim))),
        q_scale_(backend, poison<float>(rows(1))),
        seq_lens_(backend, std::vector<std::int32_t>(spec_.seq_lens.begin(), spec_.seq_lens.end())),
        block_table_(backend, problem.block_table),
        work_items_(backend, poison<std::int32_t>(std::int64_t{4} * shape_.max_items)),
        worker_offsets_(backend, poison<std::int32_t>(shape_.num_workers + 1)),
        split_offsets_(backend, poison<std::int32_t>(batch_ + 1)),
        workspace_(backend,
                   poison<std::uint8_t>(decode_workspace_bytes(backend, shape_, spec_.s, spec_.heads))),
        out_(backend, poison<std::uint8_t>(rows(kLatentDim) * size_of(out_type))),
        lse_(backend, poison<float>(rows(1))) {
    append_all(problem);
    backend.synchronize({});
  }

  void enqueue(Stream stream) {
    if (spec_.format == CacheFormat::kFp8) quantize_q(*backend_, quantize_params(), stream);
    plan(*backend_, {.seq_lens = seq_lens_view(), .plan = plan_view()}, stream);
    decode(*backend_, decode_params(), stream);
  }

  /// Fewer tokens of the same requests, from the next step on.
  void set_seq_lens(const std::vector<std::int32_t>& seq_lens, Stream stream) {
    backend_->copy(seq_lens_.data(), seq_lens.data(), batch_ * 4, CopyKind::kHostToDevice, stream);
    backend_->synchronize(stream);
  }

  [[nodiscard]] Solution solution() const {
    Solution result{.out = {}, .lse = lse_.host()};
    const std::vector<std::uint8_t> bytes = out_.host();
    result.out.resize(num_rows_ * kLatentDim);
    for (std::size_t i = 0; i < result.out.size(); ++i) {
      if (out_type_ == DType::kF32) {
        std::memcpy(&result.out[i], &bytes[4 * i], 4);
      } else {
        Bf16 value;
        std::memcpy(&value, &bytes[2 * i], 2);
        result.out[i] = to_float(value);
      }
    }
    return result;
  }

  /// Puts NaN into the outputs and the workspace again.
  void poison_outputs(Stream stream) {
    const auto out = poison<std::uint8_t>(rows(kLatentDim) * size_of(out_type_));
    const auto lse = poison<float>(rows(1));
    const auto workspace =
        poison<std::uint8_t>(decode_workspace_bytes(*backend_, shape_, spec_.s, spec_.heads));
    const auto upload = [&](void* to, const auto& from) {
      backend_->copy(to, from.data(), static_cast<std::int64_t>(from.size() * sizeof(from[0])),
                     CopyKind::kHostToDevice, stream);
    };
    upload(out_.data(), out);
    upload(lse_.data(), lse);
    upload(workspace_.data(), workspace);
    backend_->synchronize(stream);
  }

  [[nodiscard]] QuantizeQParams quantize_params() const {
    return {.q_latent = {q_latent_.data(), DType::kBF16, {batch_, spec_.s, spec_.heads, kLatentDim}},
            .q_rope = {q_rope_.data(), DType::kBF16, {batch_, spec_.s, spec_.heads, kRopeDim}},
            .scale_rule = spec_.rule,
            .q_latent_out = {q_latent8_.data(), DType::kE4M3, {batch_, spec_.s, spec_.heads, kLatentDim}},
            .q_rope_out = {q_rope_scaled_.data(), DType::kBF16, {batch_, spec_.s, spec_.heads, kRopeDim}},
            .q_scale_out = {q_scale_.data(), DType::kF32, {batch_, spec_.s, spec_.heads}}};
  }

  [[nodiscard]] PlanView plan_view() const {
    return {.shape = shape_,
            .work_items = {work_items_.data(), DType::kI32, {shape_.max_items, 4}},
            .worker_offsets = {worker_offsets_.data(), DType::kI32, {shape_.num_workers + 1}},
            .split_offsets = {split_offsets_.data(), DType::kI32, {batch_ + 1}}};
  }

  [[nodiscard]] DecodeParams decode_params() const {
    const QuantizeQParams quantized = quantize_params();
    const bool fp8 = spec_.format == CacheFormat::kFp8;
    return {.q_latent = fp8 ? ConstTensorView(quantized.q_latent_out) : quantized.q_latent,
            .q_rope = fp8 ? ConstTensorView(quantized.q_rope_out) : quantized.q_rope,
            .q_scale = fp8 ? ConstTensorView(quantized.q_scale_out) : ConstTensorView(),
            .cache = cache_,
            .block_table = {block_table_.data(), DType::kI32, {batch_, max_pages_}},
            .seq_lens = seq_lens_view(),
            .softmax_scale = softmax_scale_,
            .causal = spec_.causal,
            .plan = plan_view(),
            .out = {out_.data(), out_type_, {batch_, spec_.s, spec_.heads, kLatentDim}},
            .lse = {lse_.data(), DType::kF32, {batch_, spec_.s, spec_.heads}},
            .workspace = {workspace_.data(),
                          DType::kU8,
                          {decode_workspace_bytes(*backend_, shape_, spec_.s, spec_.heads)}}};
  }

 private:
  [[nodiscard]] std::int64_t rows(std::int64_t width) const {
    return static_cast<std::int64_t>(num_rows_) * width;
  }
  [[nodiscard]] ConstTensorView seq_lens_view() const { return {seq_lens_.data(), DType::kI32, {batch_}}; }

  void append_all(const Problem& problem) {
    for (std::size_t b = 0; b < problem.kv.size(); ++b) {
      const std::int64_t seq_len = spec_.seq_lens[b];
      if (seq_len == 0) continue;
      std::vector<std::int32_t> slots;
      slots.reserve(static_cast<std::size_t>(seq_len));
      for (int t = 0; t < seq_len; ++t) {
        slots.push_back(problem.block_table[b * problem.max_pages + t / kPageTokens] * kPageTokens +
                        t % kPageTokens);
      }
      const OnDevice<Bf16> kv(*backend_, problem.kv[b]);
      const OnDevice<std::int32_t> slot_mapping(*backend_, slots);
      append_kv(*backend_,
                {.kv = {kv.data(), DType::kBF16, {seq_len, kTokenDim}},
                 .slot_mapping = {slot_mapping.data(), DType::kI32, {seq_len}},
                 .scale_rule = spec_.rule,
                 .cache = cache_},
                {});
      backend_->synchronize({});
    }
  }

  Backend* backend_;
  AttentionCase spec_;
  float softmax_scale_;
  std::int64_t batch_;
  std::int64_t max_pages_;
  std::size_t num_rows_;
  PlanShape shape_;
  DType out_type_;
  OnDevice<std::uint8_t> pool_;
  CacheView cache_;
  OnDevice<Bf16> q_latent_;
  OnDevice<Bf16> q_rope_;
  OnDevice<E4m3> q_latent8_;
  OnDevice<Bf16> q_rope_scaled_;
  OnDevice<float> q_scale_;
  OnDevice<std::int32_t> seq_lens_;
  OnDevice<std::int32_t> block_table_;
  OnDevice<std::int32_t> work_items_;
  OnDevice<std::int32_t> worker_offsets_;
  OnDevice<std::int32_t> split_offsets_;
  OnDevice<std::uint8_t> workspace_;
  OnDevice<std::uint8_t> out_;
  OnDevice<float> lse_;
};

/// append_kv, quantize_q, plan and decode, as an engine would call them.
inline Solution solve(Backend& backend, const Problem& problem, DType out_type = DType::kF32) {
  Decoder decoder(backend, problem, out_type);
  decoder.enqueue({});
  backend.synchronize({});
  return decoder.solution();
}

/// One row of softmax attention in fp64.
struct FormulaRow {
  std::vector<double> out;  ///< [512]; zero where the row sees nothing
  double lse = -std::numeric_limits<double>::infinity();
  double out_error = 0;     ///< expected Euclidean norm of the error that the formats cause in out
  double lse_error = 0;     ///< standard deviation of the error in lse
  double lse_bias = 0;      ///< its mean
  double weight_error = 0;  ///< the part of out_error that comes from rounding P
  // What arithmetic of limited width errs by is relative to these:
  double magnitude = 0;  ///< of the largest logit before cancellation: softmax_scale max_t sum_d |q_d k_td|
  double spread = 0;     ///< sum_t p_t |v_t - out|: how far out moves a unit of error in the logits
  double weight = 0;     ///< sum_t p_t |v_t|
};

/// Errors of the formats, as standard deviations, each element's error taken as independent and uniform
/// within its rounding step: an e4m3 step is at most 2^-3 of the value (or 2^-9 of the scale below the normal
/// range), so the deviation is at most 2^-3 / sqrt(12) of it; a bf16 step is 2^-7. With first-order
/// propagation through logits, softmax and the weighted sum:
///
///     dlogit_t^2 = softmax_scale^2 sum_d (eq_d k_d)^2 + (q_d ek_d)^2
///     |dout|^2   = sum_t p_t^2 (dlogit_t^2 |v_t - out|^2 + |ev_t|^2 + ew_t^2 |v_t|^2)
///     dlse^2     = softmax_scale^2 (sum_d (eq_d sum_t p_t k_td)^2 + sum_t p_t^2 sum_d (q_d ek_td)^2)
///
/// (the error of q is the same for all tokens, so in lse it adds up), and to second order lse rises by half
/// the mean dlogit^2.
inline FormulaRow formula_row(const Problem& problem, std::size_t b, int i, int h) {
  const AttentionCase& spec = problem.spec;
  const bool fp8 = spec.format == CacheFormat::kFp8;
  const double e4m3_step = std::exp2(-3) / std::sqrt(12.0);
  const double bf16_step = std::exp2(-7) / std::sqrt(12.0);
  const bool rope_rounds = fp8 && spec.rule == ScaleRule::kAmax;  // dividing by a power of two is exact
  const int seq_len = spec.seq_lens[b];
  const int sees = spec.causal ? seq_len - spec.s + i + 1 : seq_len;
  FormulaRow row{.out = std::vector<double>(kLatentDim)};
  if (sees <= 0) return row;

  const std::size_t q_row = (b * spec.s + i) * spec.heads + h;
  std::vector<double> q(kTokenDim);
  double q_amax = 0;
  for (int d = 0; d < kLatentDim; ++d) {
    q[d] = to_float(problem.q_latent[q_row * kLatentDim + d]);
    q_amax = std::max(q_amax, std::abs(q[d]));
  }
  for (int d = 0; d < kRopeDim; ++d) q[kLatentDim + d] = to_float(problem.q_rope[q_row * kRopeDim + d]);

  // Error of one stored element: relative step, or half of e4m3's subnormal step of the scale, whichever is
  // larger. The scale of either rule is at most 2 amax / 448.
  const auto error_of = [&](double value, double amax, bool latent) {
    if (!latent) return rope_rounds ? bf16_step * std::abs(value) : 0.0;
    if (!fp8) return 0.0;
    return std::max(e4m3_step * std::abs(value), std::exp2(-9) / std::sqrt(12.0) * 2 * amax / kE4m3Max);
  };

  std::vector<double> logit(sees);
  std::vector<double> logit_variance(sees);
  std::vector<double> key_variance(sees);  // the part of it that comes from the key
  std::vector<double> mean_key(kTokenDim);
  std::vector<double> value_variance(sees);  // |ev_t|^2
  std::vector<double> k(kTokenDim);
  for (int t = 0; t < sees; ++t) {
    double amax = 0;
    for (int d = 0; d < kTokenDim; ++d) {
      k[d] = to_float(problem.kv[b][static_cast<std::size_t>(t) * kTokenDim + d]);
      if (d < kLatentDim) amax = std::max(amax, std::abs(k[d]));
    }
    double dot = 0;
    double magnitude = 0;
    double variance = 0;
    for (int d = 0; d < kTokenDim; ++d) {
      const bool latent = d < kLatentDim;
      const double q_error = error_of(q[d], q_amax, latent);
      const double k_error = error_of(k[d], amax, latent);
      dot += q[d] * k[d];
      magnitude += std::abs(q[d] * k[d]);
      variance += q_error * q_error * (k[d] * k[d] + k_error * k_error) + q[d] * q[d] * k_error * k_error;
      key_variance[t] += q[d] * q[d] * k_error * k_error;
      if (latent) value_variance[t] += k_error * k_error;
    }
    logit[t] = problem.softmax_scale * dot;
    row.magnitude = std::max(row.magnitude, problem.softmax_scale * magnitude);
    logit_variance[t] = static_cast<double>(problem.softmax_scale) * problem.softmax_scale * variance;
  }
  const double max = *std::max_element(logit.begin(), logit.end());
  double sum = 0;
  for (const double x : logit) sum += std::exp(x - max);
  row.lse = max + std::log(sum);
  for (int t = 0; t < sees; ++t) {
    const double p = std::exp(logit[t] - row.lse);
    for (int d = 0; d < kTokenDim; ++d) {
      mean_key[d] += p * to_float(problem.kv[b][static_cast<std::size_t>(t) * kTokenDim + d]);
    }
    row.lse_error += p * p * key_variance[t];
    row.lse_bias += p * logit_variance[t] / 2;
  }
  for (int d = 0; d < kLatentDim; ++d) row.out[d] = mean_key[d];
  for (int d = 0; d < kTokenDim; ++d) {
    const double q_error = error_of(q[d], q_amax, d < kLatentDim) * problem.softmax_scale;
    row.lse_error += q_error * q_error * mean_key[d] * mean_key[d];
  }
  // P: relative step, or the subnormal step of its block's sigma = max f / 448.
  const double weight_step = fp8 ? e4m3_step : bf16_step;
  for (int begin = 0; begin < sees; begin += kPageTokens) {
    const int end = std::min(sees, begin + kPageTokens);
    const double block_max =
        std::exp(*std::max_element(logit.begin() + begin, logit.begin() + end) - row.lse);
    for (int t = begin; t < end; ++t) {
      const double p = std::exp(logit[t] - row.lse);
      const double p_error =
          std::max(weight_step * p, fp8 ? 2 * std::exp2(-9) / std::sqrt(12.0) * block_max / kE4m3Max : 0.0);
      double centered = 0;
      double norm = 0;
      for (int d = 0; d < kLatentDim; ++d) {
        const double v = to_float(problem.kv[b][static_cast<std::size_t>(t) * kTokenDim + d]);
        centered += (v - row.out[d]) * (v - row.out[d]);
        norm += v * v;
      }
      row.out_error += p * p * (logit_variance[t] * centered + value_variance[t]);
      row.weight_error += p_error * p_error * norm;
      row.spread += p * std::sqrt(centered);
      row.weight += p * std::sqrt(norm);
    }
  }
  row.out_error = std::sqrt(row.out_error + row.weight_error);
  row.weight_error = std::sqrt(row.weight_error);
  row.lse_error = std::sqrt(row.lse_error);
  return row;
}

}  // namespace snapmla::test
