#include "bench/step_floor.h"

#include <algorithm>
#include <cmath>

#include "model/fp8_weights.h"

namespace snapmla::apps {
namespace {

constexpr double kBf16Bytes = 2;
constexpr double kF32Bytes = 4;

/// Products of `rows` rows with a bf16 matrix of so many weights.
StepPart product(std::string name, int times, double weights, double rows) {
  return {.name = std::move(name),
          .times = times,
          .bytes = kBf16Bytes * weights,
          .bf16_flops = 2 * rows * weights};
}

/// The matrices that FP8 checkpoints have in FP8, as they lie on the device.
class Fp8Products {
 public:
  Fp8Products(const PlainOps& ops, const Fp8Blocks& blocks) : ops_(ops), blocks_(blocks) {}

  [[nodiscard]] bool stays(std::int64_t out, std::int64_t in) const {
    return stays_e4m3(ops_, blocks_, out, in);
  }

  [[nodiscard]] static double bytes(bool e4m3, std::int64_t out, std::int64_t in) {
    const auto weights = static_cast<double>(out * in);
    if (!e4m3) return kBf16Bytes * weights;
    return weights + kF32Bytes * static_cast<double>(num_weight_blocks(out) * num_weight_blocks(in));
  }

  /// Of `rows` rows with a matrix [out, in]: widened to bf16 in registers, so at bf16's rate.
  [[nodiscard]] StepPart product(std::string name, int times, std::int64_t out, std::int64_t in,
                                 double rows) const {
    return {.name = std::move(name),
            .times = times,
            .bytes = bytes(stays(out, in), out, in),
            .bf16_flops = 2 * rows * static_cast<double>(out * in)};
  }

  /// Of `rows` rows with gate, up and down of a dense FFN.
  [[nodiscard]] StepPart ffn(std::string name, int times, std::int64_t hidden, std::int64_t inter,
                             double rows) const {
    return {
        .name = std::move(name),
        .times = times,
        .bytes = 2 * bytes(stays(inter, hidden), inter, hidden) + bytes(stays(hidden, inter), hidden, inter),
        .bf16_flops = 2 * rows * 3 * static_cast<double>(hidden * inter)};
  }

 private:
  const PlainOps& ops_;
  Fp8Blocks blocks_;
};

StepPart attention(const ModelConfig& config, CacheFormat format, double batch, double context) {
  const double tokens = batch * context;
  const double pairs = tokens * config.heads;
  StepPart part{.name = "attention",
                .times = config.num_layers,
                .bytes = tokens * static_cast<double>(token_bytes(format))};
  if (format == CacheFormat::kFp8) {  // QK and PV over the latent in e4m3, the RoPE part in bf16
    part.fp8_flops = pairs * 4 * kLatentDim;
    part.bf16_flops = pairs * 2 * kRopeDim;
  } else {
    part.bf16_flops = pairs * 2 * (kTokenDim + kLatentDim);
  }
  return part;
}

void add_experts(const ModelConfig& config, const Fp8Products& fp8, int batch, int layers,
                 std::vector<StepPart>& parts) {
  const std::int64_t hidden = config.hidden;
  const std::int64_t inter = config.moe_intermediate;
  const double routed = config.num_experts + config.num_zero_experts;
  const double expert = 3.0 * static_cast<double>(hidden * inter);
  const bool e4m3 = fp8.stays(inter, hidden) && fp8.stays(hidden, inter);
  const double expert_bytes =
      2 * Fp8Products::bytes(e4m3, inter, hidden) + Fp8Products::bytes(e4m3, hidden, inter);
  const double pairs = static_cast<double>(batch) * config.top_k * config.num_experts / routed;
  parts.push_back({.name = "router", .times = layers, .bytes = kF32Bytes * routed * config.hidden});
  parts.push_back({.name = "experts",
                   .times = layers,
                   .bytes = distinct_experts(config, batch) * expert_bytes,
                   .bf16_flops = 2 * pairs * expert});
  if (config.num_shared_experts > 0 && !config.shortcut_experts) {
    parts.push_back(fp8.ffn("shared experts", layers, hidden, config.num_shared_experts * inter, batch));
  }
}

}  // namespace

double distinct_experts(const ModelConfig& config, int batch) {
  const double routed = config.num_experts + config.num_zero_experts;
  return config.num_experts * (1 - std::pow(1 - config.top_k / routed, batch));
}

std::vector<StepPart> step_parts(const ModelConfig& config, const PlainOps& ops, CacheFormat format,
                                 int batch, double context) {
  const Fp8Products fp8(ops, config.fp8);
  const int layers = config.num_layers;
  const std::int64_t hidden = config.hidden;
  const std::int64_t heads = config.heads;
  const double rows = batch;
  const std::int64_t q_width = heads * (config.nope_dim + kRopeDim);
  std::vector<StepPart> parts;
  if (config.q_lora > 0) {
    parts.push_back(fp8.product("q_a", layers, config.q_lora, hidden, rows));
    parts.push_back(fp8.product("q_b", layers, q_width, config.q_lora, rows));
  } else {
    parts.push_back(fp8.product("q", layers, q_width, hidden, rows));
  }
  parts.push_back(fp8.product("kv_a", layers, kTokenDim, hidden, rows));
  parts.push_back(product("W_UK", layers, static_cast<double>(heads * config.nope_dim * kLatentDim), rows));
  parts.push_back(attention(config, format, rows, context));
  parts.push_back(product("W_UV", layers, static_cast<double>(heads * config.v_dim * kLatentDim), rows));
  parts.push_back(fp8.product("o", layers, hidden, heads * config.v_dim, rows));
  const auto& with_experts = config.expert_layers;
  const auto moe_layers = static_cast<int>(std::count(with_experts.begin(), with_experts.end(), true));
  const int dense_layers = config.shortcut_experts ? layers : layers - moe_layers;
  if (dense_layers > 0)
    parts.push_back(fp8.ffn("dense FFN", dense_layers, hidden, config.intermediate, rows));
  if (moe_layers > 0) add_experts(config, fp8, batch, moe_layers, parts);
  parts.push_back(product("lm_head", 1, static_cast<double>(hidden * config.vocab), rows));
  return parts;
}

double floor_us(const std::vector<StepPart>& parts, const DeviceLimits& limits) {
  constexpr double kBytesAGbUs = 1e3;     // 1 GB/s for 1 us
  constexpr double kFlopsATflopUs = 1e6;  // 1 TFLOPS for 1 us
  double us = 0;
  for (const StepPart& part : parts) {
    const double memory = part.bytes / (limits.read_gbps.sustained * kBytesAGbUs);
    const double math = part.bf16_flops / (limits.bf16_tflops.sustained * kFlopsATflopUs) +
                        part.fp8_flops / (limits.fp8_tflops.sustained * kFlopsATflopUs);
    us += part.times * std::max(memory, math);
  }
  return us;
}

}  // namespace snapmla::apps
