// The router and the experts of a mixture-of-experts layer: the contracts are in core/plain_ops.h.
//
// route: scores = softmax(logits) or sigmoid(logits); choice = scores + bias. Groups are ranked by their best
// choice value (DeepSeek-V2) or the sum of their best two (DeepSeek-V3); the top_k experts with the largest
// choice values in the best groups are taken, and weighted by their scores without bias, divided by (their
// sum + 1e-20) if asked, times the scaling factor. All in fp32. A NaN counts as lower than every number.
//
// experts: tokens are grouped by expert, each weight is read once a call. h = silu(gate x) * up x is rounded
// to bf16, as the input of a bf16 matrix product is; down(h) stays fp32, is multiplied by the token's weight
// and summed in the order of the token's choice, and rounded to bf16 once. An identity expert gives x, without
// any product.
#pragma once

#include <cmath>

#include "core/plain_ops.h"

namespace snapmla::reference_ops {

inline float silu(float x) {
  return x / (1.0F + std::exp(-x));
}

void route(const RouteParams& params);
std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter, int experts);
void experts(const ExpertsParams& params);

}  // namespace snapmla::reference_ops
