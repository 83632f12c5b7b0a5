#include "bench/step_floor.h"

#include <algorithm>
#include <cmath>

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

void add_experts(const ModelConfig& config, int batch, int layers, std::vector<StepPart>& parts) {
  const double hidden = config.hidden;
  const double routed = config.num_experts + config.num_zero_experts;
  const double expert = 3.0 * hidden * config.moe_intermediate;
  const double pairs = static_cast<double>(batch) * config.top_k * config.num_experts / routed;
  parts.push_back({.name = "router", .times = layers, .bytes = kF32Bytes * routed * hidden});
  parts.push_back({.name = "experts",
                   .times = layers,
                   .bytes = kBf16Bytes * distinct_experts(config, batch) * expert,
                   .bf16_flops = 2 * pairs * expert});
  if (config.num_shared_experts > 0 && !config.shortcut_experts) {
    parts.push_back(product("shared experts", layers, config.num_shared_experts * expert, batch));
  }
}

}  // namespace

double distinct_experts(const ModelConfig& config, int batch) {
  const double routed = config.num_experts + config.num_zero_experts;
  return config.num_experts * (1 - std::pow(1 - config.top_k / routed, batch));
}

std::vector<StepPart> step_parts(const ModelConfig& config, CacheFormat format, int batch, double context) {
  const int layers = config.num_layers;
  const double hidden = config.hidden;
  const double heads = config.heads;
  const double rows = batch;
  const double q_width = heads * (config.nope_dim + kRopeDim);
  std::vector<StepPart> parts;
  if (config.q_lora > 0) {
    parts.push_back(product("q_a", layers, hidden * config.q_lora, rows));
    parts.push_back(product("q_b", layers, q_width * config.q_lora, rows));
  } else {
    parts.push_back(product("q", layers, q_width * hidden, rows));
  }
  parts.push_back(product("kv_a", layers, hidden * kTokenDim, rows));
  parts.push_back(product("W_UK", layers, heads * config.nope_dim * kLatentDim, rows));
  parts.push_back(attention(config, format, rows, context));
  parts.push_back(product("W_UV", layers, heads * config.v_dim * kLatentDim, rows));
  parts.push_back(product("o", layers, heads * config.v_dim * hidden, rows));
  const auto& with_experts = config.expert_layers;
  const auto moe_layers = static_cast<int>(std::count(with_experts.begin(), with_experts.end(), true));
  const int dense_layers = config.shortcut_experts ? layers : layers - moe_layers;
  if (dense_layers > 0)
    parts.push_back(product("dense FFN", dense_layers, 3 * hidden * config.intermediate, rows));
  if (moe_layers > 0) add_experts(config, batch, moe_layers, parts);
  parts.push_back(product("lm_head", 1, hidden * config.vocab, rows));
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
