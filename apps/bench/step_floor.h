// The time below which the chip cannot do a decode step: over the products and the attention of the step, the sum of
// max(bytes / DRAM bandwidth, FLOPs / tensor rate) of each, one after the other, at the rates measured in the same
// run.
//
// Counted are the weights, each read once a step (of experts, those that a token is expected to choose when all are
// chosen alike), the cache, and two FLOPs a multiply-add. Not counted, so that the floor is below what is possible:
// activations, embeddings, norms, quantization, sampling, launches, and what passes between GPUs.
#pragma once

#include <string>
#include <vector>

#include "bench/device/device.h"
#include "core/plain_ops.h"
#include "model/config.h"

namespace snapmla::apps {

/// One kind of work in a step, as often as the step does it.
struct StepPart {
  std::string name;
  int times = 0;  ///< layers that have it
  double bytes = 0;
  double bf16_flops = 0;
  double fp8_flops = 0;
};

/// `context`: tokens that each of `batch` requests attends to; an average need not be whole.
/// `ops`: the backend's, which say where FP8 weights stay FP8; those are taken to be where DeepSeek-V3's checkpoint has them.
std::vector<StepPart> step_parts(const ModelConfig& config, const PlainOps& ops, CacheFormat format,
                                 int batch, double context);

/// Experts of a layer that `batch` tokens choose, expected.
double distinct_experts(const ModelConfig& config, int batch);

double floor_us(const std::vector<StepPart>& parts, const DeviceLimits& limits);

}  // namespace snapmla::apps
