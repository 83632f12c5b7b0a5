#include "bench/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/check.h"

namespace snapmla::apps {
namespace {

double bytes_of(const ConstTensorView& view) {
  return view.present() ? static_cast<double>(view.num_elements() * size_of(view.dtype())) : 0;
}

/// Of an e4m3 weight its scales too.
double bytes_of(const WeightView& weight) {
  return bytes_of(weight.values) + bytes_of(weight.scales);
}

template <class... Views>
OpCost moving(const Views&... views) {
  return {.bytes = (0.0 + ... + bytes_of(ConstTensorView(views)))};
}

/// Reads `rows` rows of a table, each of which is as wide as its.
double row_bytes(const ConstTensorView& table, double rows) {
  return bytes_of(table) / static_cast<double>(table.dim(0)) * rows;
}

double limit_of(const OpCost& cost, const DeviceLimits& limits) {
  constexpr double kBytesAGbUs = 1e3;     // 1 GB/s for 1 us
  constexpr double kFlopsATflopUs = 1e6;  // 1 TFLOPS for 1 us
  return std::max(cost.bytes / (limits.read_gbps.sustained * kBytesAGbUs),
                  cost.bf16_flops / (limits.bf16_tflops.sustained * kFlopsATflopUs) +
                      cost.fp8_flops / (limits.fp8_tflops.sustained * kFlopsATflopUs));
}

OpCost decode_cost(const DecodeParams& params, const std::vector<std::int32_t>& seq_lens) {
  double tokens = 0;
  for (const std::int32_t seq_len : seq_lens) tokens += seq_len;
  OpCost cost = moving(params.q_latent, params.q_rope, params.q_scale, params.out, params.lse);
  cost.bytes += tokens * static_cast<double>(token_bytes(params.cache.format));
  const double pairs = tokens * static_cast<double>(params.q_latent.dim(1) * params.q_latent.dim(2));
  if (params.cache.format == CacheFormat::kFp8) {
    cost.fp8_flops = pairs * 4 * kLatentDim;
    cost.bf16_flops = pairs * 2 * kRopeDim;
  } else {
    cost.bf16_flops = pairs * 2 * (kTokenDim + kLatentDim);
  }
  return cost;
}

OpCost experts_cost(const ExpertsParams& params, const std::vector<std::int32_t>& chosen) {
  const std::int64_t experts = params.gate.values.dim(0);
  std::set<std::int32_t> used;
  double pairs = 0;
  for (const std::int32_t expert : chosen) {
    if (expert >= experts) continue;  // gives its input back
    used.insert(expert);
    ++pairs;
  }
  OpCost cost = moving(params.x, params.out);
  for (const WeightView& weight : {params.gate, params.up, params.down}) {
    cost.bytes += bytes_of(weight) * static_cast<double>(used.size()) / static_cast<double>(experts);
    cost.bf16_flops += 2 * pairs * static_cast<double>(weight.values.dim(1) * weight.values.dim(2));
  }
  return cost;
}

OpCost prefill_cost(const PrefillAttentionParams& params) {
  const auto tokens = static_cast<double>(params.q.dim(0));
  const auto context = static_cast<double>(params.k_nope.dim(0));
  const double pairs = tokens * (context - (tokens - 1) / 2);  // causal
  OpCost cost = moving(params.q, params.k_nope, params.k_rope, params.v, params.out);
  cost.bf16_flops = 2 * pairs * static_cast<double>(params.q.dim(1) * (params.q.dim(2) + params.v.dim(2)));
  return cost;
}

/// At the rate of bf16 for e4m3 weights too: products take them as the bf16 numbers that they stand for.
OpCost product_cost(const ConstTensorView& x, const WeightView& weight, const TensorView& out) {
  OpCost cost = moving(x, out);
  cost.bytes += bytes_of(weight);
  cost.bf16_flops = 2 * static_cast<double>(x.dim(0) * weight.values.num_elements());
  return cost;
}

}  // namespace

/// The plain ops of the backend behind.
class Profiler::Ops final : public PlainOps {
 public:
  Ops(Profiler& profiler, const PlainOps& inner) : profiler_(profiler), inner_(inner) {}

  void fill_random(const TensorView& out, const RandomFill& fill, Stream stream) const override {
    profiler_.measure(
        "fill_random", stream, [&] { return moving(out); }, [&] { inner_.fill_random(out, fill, stream); });
  }
  [[nodiscard]] const PlainOps& deterministic() const override { return *profiler_.deterministic_ops_; }
  void take_tokens(const ConstTensorView& sampled, const TensorView& token, Stream stream) const override {
    profiler_.measure(
        "take_tokens", stream, [&] { return moving(token, token); },
        [&] { inner_.take_tokens(sampled, token, stream); });
  }
  void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
             Stream stream) const override {
    profiler_.measure(
        "embed", stream, [&] { return moving(token, out, out); },
        [&] { inner_.embed(token, table, out, stream); });
  }
  void rms_norm(const ConstTensorView& x, const ConstTensorView& weight, float eps, const TensorView& out,
                Stream stream) const override {
    profiler_.measure(
        "rms_norm", stream, [&] { return moving(x, weight, out); },
        [&] { inner_.rms_norm(x, weight, eps, out, stream); });
  }
  [[nodiscard]] bool prefers_e4m3(std::int64_t out, std::int64_t in) const override {
    return inner_.prefers_e4m3(out, in);
  }
  void arrange_weight(const TensorView& values, Stream stream) const override {
    inner_.arrange_weight(values, stream);
  }
  void linear(const ConstTensorView& x, const WeightView& weight, const ConstTensorView& bias,
              const TensorView& out, Stream stream) const override {
    profiler_.measure(
        profiler_.name_of(weight.values, "linear"), stream, [&] { return product_cost(x, weight, out); },
        [&] { inner_.linear(x, weight, bias, out, stream); });
  }
  void linear_f32(const ConstTensorView& x, const ConstTensorView& weight, const TensorView& out,
                  Stream stream) const override {
    profiler_.measure(
        profiler_.name_of(weight, "linear_f32"), stream, [&] { return moving(x, weight, out); },
        [&] { inner_.linear_f32(x, weight, out, stream); });
  }
  void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                   const TensorView& out, Stream stream) const override {
    profiler_.measure(
        profiler_.name_of(weight, "head_linear"), stream, [&] { return product_cost(x, weight, out); },
        [&] { inner_.head_linear(x, weight, transposed, out, stream); });
  }
  void rope(const ConstTensorView& x, const RopeParams& rope, const TensorView& out,
            Stream stream) const override {
    profiler_.measure(
        "rope", stream, [&] { return moving(x, out); }, [&] { inner_.rope(x, rope, out, stream); });
  }
  void scale_rows(const ConstTensorView& x, const ConstTensorView& positions, const ConstTensorView& factor,
                  const TensorView& out, Stream stream) const override {
    profiler_.measure(
        "scale_rows", stream, [&] { return moving(x, out); },
        [&] { inner_.scale_rows(x, positions, factor, out, stream); });
  }
  void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
                Stream stream) const override {
    profiler_.measure(
        "silu_mul", stream, [&] { return moving(gate, up, out); },
        [&] { inner_.silu_mul(gate, up, out, stream); });
  }
  void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out,
           Stream stream) const override {
    profiler_.measure(
        "add", stream, [&] { return moving(a, b, out); }, [&] { inner_.add(a, b, out, stream); });
  }
  void route(const RouteParams& params, Stream stream) const override {
    profiler_.measure(
        "route", stream, [&] { return moving(params.logits, params.bias, params.expert, params.weight); },
        [&] { inner_.route(params, stream); });
  }
  std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter,
                                       int experts) const override {
    return inner_.experts_workspace_bytes(tokens, top_k, hidden, inter, experts);
  }
  void experts(const ExpertsParams& params, Stream stream) const override {
    profiler_.measure(
        "experts", stream, [&] { return experts_cost(params, profiler_.read_ints(params.expert, stream)); },
        [&] { inner_.experts(params, stream); });
  }
  void prefill_attention(const PrefillAttentionParams& params, Stream stream) const override {
    profiler_.measure(
        "prefill_attention", stream, [&] { return prefill_cost(params); },
        [&] { inner_.prefill_attention(params, stream); });
  }
  void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
              const TensorView& logprob, Stream stream) const override {
    profiler_.measure(
        "sample", stream,
        [&] { return OpCost{.bytes = row_bytes(logits, static_cast<double>(rows.dim(0)))}; },
        [&] { inner_.sample(logits, rows, token, logprob, stream); });
  }

 private:
  Profiler& profiler_;
  const PlainOps& inner_;
};

Profiler::Profiler(Backend& inner)
    : ForwardingBackend(inner),
      ops_(std::make_unique<Ops>(*this, inner.plain_ops())),
      deterministic_ops_(std::make_unique<Ops>(*this, inner.plain_ops().deterministic())) {}

Profiler::~Profiler() {
  forget_times();
}

const PlainOps& Profiler::plain_ops() const {
  return *ops_;
}

void Profiler::name_weights(const ModelWeights& weights) {
  const auto name = [&](const ConstTensorView& weight, const char* text) {
    if (weight.present()) weight_names_[weight.data()] = text;
  };
  for (const LayerWeights& layer : weights.layers) {
    const bool has_experts = layer.moe.router.present();
    name(layer.attention.q_a.weight.values, "q_a");
    name(layer.attention.q_b.weight.values, layer.attention.q_a.weight.present() ? "q_b" : "q");
    name(layer.attention.kv_a.weight.values, "kv_a");
    name(layer.attention.w_uk, "W_UK");
    name(layer.attention.w_uv, "W_UV");
    name(layer.attention.o.weight.values, "o");
    name(layer.ffn.gate.weight.values, has_experts ? "shared experts" : "dense FFN");
    name(layer.ffn.up.weight.values, has_experts ? "shared experts" : "dense FFN");
    name(layer.ffn.down.weight.values, has_experts ? "shared experts" : "dense FFN");
    name(layer.moe.router, "router");
  }
  name(weights.lm_head.weight.values, "lm_head");
}

void Profiler::set_mode(Mode mode) {
  if (mode == Mode::kCount) {
    calls_.clear();
    forget_times();
  }
  mode_ = mode;
}

void Profiler::forget_times() {
  for (const Stamps& stamps : stamps_) {
    destroy_event(stamps.begin);
    destroy_event(stamps.end);
  }
  stamps_.clear();
}

void Profiler::measure(const std::string& name, Stream stream, const std::function<OpCost()>& cost,
                       const std::function<void()>& call) {
  if (mode_ == Mode::kOff) return call();
  if (mode_ == Mode::kCount) {
    calls_.push_back({.name = name, .cost = cost()});
    return call();
  }
  stamps_.push_back({.begin = create_event(), .end = create_event()});
  record(stamps_.back().begin, stream);
  call();
  record(stamps_.back().end, stream);
}

std::string Profiler::name_of(const ConstTensorView& weight, const char* op) const {
  const auto found = weight_names_.find(weight.data());
  return found != weight_names_.end() ? found->second : op;
}

std::vector<std::int32_t> Profiler::read_ints(const ConstTensorView& view, Stream stream) {
  std::vector<std::int32_t> host(static_cast<std::size_t>(view.num_elements()));
  ForwardingBackend::copy(host.data(), view.data(), view.num_elements() * size_of(DType::kI32),
                          CopyKind::kDeviceToHost, stream);
  synchronize(stream);
  return host;
}

void Profiler::copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) {
  measure(
      kind == CopyKind::kHostToDevice ? "copy to device" : "copy to host", stream,
      [&] { return OpCost{.bytes = static_cast<double>(bytes)}; },
      [&] { ForwardingBackend::copy(dst, src, bytes, kind, stream); });
}

void Profiler::do_quantize_q(const QuantizeQParams& params, Stream stream) {
  measure(
      "quantize_q", stream,
      [&] {
        return moving(params.q_latent, params.q_rope, params.q_latent_out, params.q_rope_out,
                      params.q_scale_out);
      },
      [&] { ForwardingBackend::do_quantize_q(params, stream); });
}

void Profiler::do_append_kv(const AppendKvParams& params, Stream stream) {
  measure(
      "append_kv", stream,
      [&] {
        OpCost cost = moving(params.kv);
        cost.bytes += static_cast<double>(params.kv.dim(0) * token_bytes(params.cache.format));
        return cost;
      },
      [&] { ForwardingBackend::do_append_kv(params, stream); });
}

void Profiler::do_fetch_kv(const FetchKvParams& params, Stream stream) {
  measure(
      "fetch_kv", stream,
      [&] {
        OpCost cost = moving(params.latent_out, params.rope_out);
        cost.bytes += static_cast<double>(params.latent_out.dim(0) * token_bytes(params.cache.format));
        return cost;
      },
      [&] { ForwardingBackend::do_fetch_kv(params, stream); });
}

void Profiler::do_plan(const PlanParams& params, Stream stream) {
  measure(
      "plan", stream, [&] { return moving(params.seq_lens); },
      [&] { ForwardingBackend::do_plan(params, stream); });
}

void Profiler::do_decode(const DecodeParams& params, Stream stream) {
  measure(
      "attention", stream, [&] { return decode_cost(params, read_ints(params.seq_lens, stream)); },
      [&] { ForwardingBackend::do_decode(params, stream); });
}

void Profiler::do_combine(const CombineParams& params, Stream stream) {
  measure(
      "combine", stream,
      [&] { return moving(params.partial_out, params.partial_lse, params.out, params.lse); },
      [&] { ForwardingBackend::do_combine(params, stream); });
}

std::vector<OpProfile> Profiler::profile(const DeviceLimits* limits) {
  SNAPMLA_ASSERT(!calls_.empty() && !stamps_.empty() && stamps_.size() % calls_.size() == 0);
  const std::size_t num_steps = stamps_.size() / calls_.size();
  const auto steps = static_cast<double>(num_steps);
  std::map<std::string, OpProfile> by_name;
  for (std::size_t i = 0; i < stamps_.size(); ++i) {
    const Call& call = calls_[i % calls_.size()];
    OpProfile& op = by_name[call.name];
    op.us += elapsed_us(stamps_[i].begin, stamps_[i].end) / steps;
    if (i >= calls_.size()) continue;
    op.name = call.name;
    ++op.calls;
    op.cost.bytes += call.cost.bytes;
    op.cost.bf16_flops += call.cost.bf16_flops;
    op.cost.fp8_flops += call.cost.fp8_flops;
    if (limits != nullptr) op.limit_us += limit_of(call.cost, *limits);
  }
  std::vector<OpProfile> profile;
  profile.reserve(by_name.size());
  for (auto& [name, op] : by_name) profile.push_back(std::move(op));
  std::sort(profile.begin(), profile.end(),
            [](const OpProfile& a, const OpProfile& b) { return a.us > b.us; });
  return profile;
}

std::string profile_text(const std::vector<OpProfile>& profile) {
  constexpr double kPercent = 100;
  OpProfile all{.name = "all"};
  for (const OpProfile& op : profile) {
    all.calls += op.calls;
    all.us += op.us;
    all.limit_us += op.limit_us;
    all.cost.bytes += op.cost.bytes;
    all.cost.bf16_flops += op.cost.bf16_flops;
    all.cost.fp8_flops += op.cost.fp8_flops;
  }
  std::string text =
      fmt::format("          {:<18} {:>6} {:>10} {:>7} {:>10} {:>8} {:>8} {:>10} {:>7}\n", "op", "calls",
                  "us", "% time", "MB", "GB/s", "TFLOPS", "limit us", "% limit");
  const auto line = [&](const OpProfile& op) {
    constexpr double kMegabyte = 1e6;
    const double flops = op.cost.bf16_flops + op.cost.fp8_flops;
    const bool limited = op.limit_us > 0;
    text += fmt::format(
        "          {:<18} {:>6} {:>10.1f} {:>7.1f} {:>10.1f} {:>8.0f} {:>8.1f} {:>10} {:>7}\n", op.name,
        op.calls, op.us, kPercent * op.us / all.us, op.cost.bytes / kMegabyte, 1e-3 * op.cost.bytes / op.us,
        1e-6 * flops / op.us, limited ? fmt::format("{:.1f}", op.limit_us) : "-",
        limited ? fmt::format("{:.1f}", kPercent * op.limit_us / op.us) : "-");
  };
  for (const OpProfile& op : profile) line(op);
  line(all);
  return text;
}

nlohmann::ordered_json profile_json(const std::vector<OpProfile>& profile) {
  nlohmann::ordered_json ops = nlohmann::ordered_json::array();
  for (const OpProfile& op : profile) {
    ops.push_back({{"op", op.name},
                   {"calls", op.calls},
                   {"us", op.us},
                   {"bytes", op.cost.bytes},
                   {"bf16_flops", op.cost.bf16_flops},
                   {"fp8_flops", op.cost.fp8_flops},
                   {"limit_us", op.limit_us > 0 ? nlohmann::ordered_json(op.limit_us) : nullptr}});
  }
  return ops;
}

}  // namespace snapmla::apps
