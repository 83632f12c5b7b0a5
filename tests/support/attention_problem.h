// Attention problems as data: one list of cases feeds the tests of every backend. A case says shapes and
// distributions; a Problem holds its random inputs; solve() runs the public ops on a backend; formula() is
// softmax attention in fp64 on the unquantized inputs, with the error that the number formats should cause
// worked out beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <ostream>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "snapmla/backend.h"

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
  int num_workers = 0;
  int fixed_split_tokens = 0;
  std::uint64_t seed = 1;
};

inline std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
  out << to_string(c.format) << ' ' << to_string(c.rule) << " s " << c.s << " heads " << c.heads << " lens";
  for (const int len : c.seq_lens) out << ' ' << len;
  return out << " latents " << static_cast<int>(c.latents) << " ropes " << static_cast<int>(c.ropes)
             << " logits " << static_cast<int>(c.logits) << (c.causal ? " causal" : " full") << " workers "
             << c.num_workers << " fixed " << c.fixed_split_tokens << " seed " << c.seed;
}

/// A vector in a backend's memory.
template <class T>
class OnDevice {
 public:
  OnDevice(Backend& backend, const std::vector<T>& host) : backend_(&backend), size_(host.size()) {
    data_ = static_cast<T*>(backend.allocate(bytes()));
    backend.copy(data_, host.data(), bytes(), CopyKind::kHostToDevice, {});
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { backend_->deallocate(data_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> result(size_);
    backend_->copy(result.data(), data_, bytes(), CopyKind::kDeviceToHost, {});
    backend_->synchronize({});
    return result;
  }

 private:
  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(size_ * sizeof(T)); }
  Backend* backend_;
  std::size_t size_;
  T* data_;
};

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

/// The cache pool of a problem, filled by append_kv in chunks; everything else in it is NaN in every format.
inline std::vector<std::uint8_t> poisoned_pool(const Problem& problem) {
  return std::vector<std::uint8_t>(
      static_cast<std::size_t>(problem.num_pages * page_bytes(problem.spec.format)), 0xff);
}

inline void append_all(Backend& backend, const Problem& problem, const CacheView& cache) {
  for (std::size_t b = 0; b < problem.kv.size(); ++b) {
    const int seq_len = problem.spec.seq_lens[b];
    std::vector<std::int32_t> slots;
    slots.reserve(static_cast<std::size_t>(seq_len));
    for (int t = 0; t < seq_len; ++t) {
      slots.push_back(problem.block_table[b * problem.max_pages + t / kPageTokens] * kPageTokens +
                      t % kPageTokens);
    }
    const OnDevice<Bf16> kv(backend, problem.kv[b]);
    const OnDevice<std::int32_t> slot_mapping(backend, slots);
    if (seq_len == 0) continue;
    append_kv(backend,
              {.kv = ConstTensorView(kv.data(), DType::kBF16, {seq_len, kTokenDim}),
               .slot_mapping = ConstTensorView(slot_mapping.data(), DType::kI32, {seq_len}),
               .scale_rule = problem.spec.rule,
               .cache = cache},
              {});
  }
}

/// append_kv, quantize_q, plan and decode, as an engine would call them.
inline Solution solve(Backend& backend, const Problem& problem) {
  const AttentionCase& spec = problem.spec;
  const auto batch = static_cast<std::int64_t>(spec.seq_lens.size());
  const std::int64_t s = spec.s;
  const std::int64_t heads = spec.heads;
  const auto rows = static_cast<std::size_t>(batch * s * heads);
  const bool fp8 = spec.format == CacheFormat::kFp8;

  const OnDevice<std::uint8_t> pool(backend, poisoned_pool(problem));
  const CacheView cache = make_cache_view(spec.format, pool.data(), problem.num_pages);
  append_all(backend, problem, cache);

  const OnDevice<Bf16> q_latent(backend, problem.q_latent);
  const OnDevice<Bf16> q_rope(backend, problem.q_rope);
  const OnDevice<E4m3> q_latent8(backend, std::vector<E4m3>(rows * kLatentDim, E4m3{0x7f}));
  const OnDevice<Bf16> q_rope_scaled(backend, std::vector<Bf16>(rows * kRopeDim, Bf16{0x7fff}));
  const OnDevice<float> q_scale(backend, std::vector<float>(rows, NAN));
  if (fp8) {
    quantize_q(backend,
               {.q_latent = ConstTensorView(q_latent.data(), DType::kBF16, {batch, s, heads, kLatentDim}),
                .q_rope = ConstTensorView(q_rope.data(), DType::kBF16, {batch, s, heads, kRopeDim}),
                .scale_rule = spec.rule,
                .q_latent_out = TensorView(q_latent8.data(), DType::kE4M3, {batch, s, heads, kLatentDim}),
                .q_rope_out = TensorView(q_rope_scaled.data(), DType::kBF16, {batch, s, heads, kRopeDim}),
                .q_scale_out = TensorView(q_scale.data(), DType::kF32, {batch, s, heads})},
               {});
  }

  const int longest = std::max(1, *std::max_element(spec.seq_lens.begin(), spec.seq_lens.end()));
  const PlanShape shape = make_plan_shape(backend, {.batch = static_cast<int>(batch),
                                                    .max_seq_len = longest,
                                                    .num_workers = spec.num_workers,
                                                    .fixed_split_tokens = spec.fixed_split_tokens});
  const auto poison = [](std::int64_t count) {
    return std::vector<std::int32_t>(static_cast<std::size_t>(count), -1);
  };
  const OnDevice<std::int32_t> seq_lens(
      backend, std::vector<std::int32_t>(spec.seq_lens.begin(), spec.seq_lens.end()));
  const OnDevice<std::int32_t> block_table(backend, problem.block_table);
  const OnDevice<std::int32_t> work_items(backend, poison(std::int64_t{4} * shape.max_items));
  const OnDevice<std::int32_t> worker_offsets(backend, poison(shape.num_workers + 1));
  const OnDevice<std::int32_t> split_offsets(backend, poison(batch + 1));
  const PlanView plan_view{
      .shape = shape,
      .work_items = TensorView(work_items.data(), DType::kI32, {shape.max_items, 4}),
      .worker_offsets = TensorView(worker_offsets.data(), DType::kI32, {shape.num_workers + 1}),
      .split_offsets = TensorView(split_offsets.data(), DType::kI32, {batch + 1})};
  plan(backend, {.seq_lens = ConstTensorView(seq_lens.data(), DType::kI32, {batch}), .plan = plan_view}, {});

  const std::int64_t workspace_bytes = decode_workspace_bytes(backend, shape, spec.s, spec.heads);
  const OnDevice<std::uint8_t> workspace(
      backend, std::vector<std::uint8_t>(static_cast<std::size_t>(workspace_bytes), 0xff));
  const OnDevice<float> out(backend, std::vector<float>(rows * kLatentDim, NAN));
  const OnDevice<float> lse(backend, std::vector<float>(rows, NAN));
  decode(
      backend,
      {.q_latent = fp8 ? ConstTensorView(q_latent8.data(), DType::kE4M3, {batch, s, heads, kLatentDim})
                       : ConstTensorView(q_latent.data(), DType::kBF16, {batch, s, heads, kLatentDim}),
       .q_rope = ConstTensorView(fp8 ? q_rope_scaled.data() : q_rope.data(), DType::kBF16,
                                 {batch, s, heads, kRopeDim}),
       .q_scale = fp8 ? ConstTensorView(q_scale.data(), DType::kF32, {batch, s, heads}) : ConstTensorView(),
       .cache = cache,
       .block_table = ConstTensorView(block_table.data(), DType::kI32, {batch, problem.max_pages}),
       .seq_lens = ConstTensorView(seq_lens.data(), DType::kI32, {batch}),
       .softmax_scale = problem.softmax_scale,
       .causal = spec.causal,
       .plan = plan_view,
       .out = TensorView(out.data(), DType::kF32, {batch, s, heads, kLatentDim}),
       .lse = TensorView(lse.data(), DType::kF32, {batch, s, heads}),
       .workspace = TensorView(workspace.data(), DType::kU8, {workspace_bytes})},
      {});
  backend.synchronize({});
  return {.out = out.host(), .lse = lse.host()};
}

/// One row of softmax attention in fp64.
struct FormulaRow {
  std::vector<double> out;  ///< [512]; zero where the row sees nothing
  double lse = -std::numeric_limits<double>::infinity();
  double out_error = 0;  ///< expected Euclidean norm of the error that the formats cause in out
  double lse_error = 0;  ///< standard deviation of the error in lse
  double lse_bias = 0;   ///< its mean
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
    double variance = 0;
    for (int d = 0; d < kTokenDim; ++d) {
      const bool latent = d < kLatentDim;
      const double q_error = error_of(q[d], q_amax, latent);
      const double k_error = error_of(k[d], amax, latent);
      dot += q[d] * k[d];
      variance += q_error * q_error * (k[d] * k[d] + k_error * k_error) + q[d] * q[d] * k_error * k_error;
      key_variance[t] += q[d] * q[d] * k_error * k_error;
      if (latent) value_variance[t] += k_error * k_error;
    }
    logit[t] = problem.softmax_scale * dot;
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
      row.out_error += p * p * (logit_variance[t] * centered + value_variance[t]) + p_error * p_error * norm;
    }
  }
  row.out_error = std::sqrt(row.out_error);
  row.lse_error = std::sqrt(row.lse_error);
  return row;
}

}  // namespace snapmla::test
