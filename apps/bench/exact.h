// Exact rows of a decode call, to measure its error against: softmax attention in fp64 over what is stored,
//
//     logit[t] = softmax_scale * q_scale * scale[t] * (q_latent . latent[t] + q_rope . rope[t])
//     out      = sum_t softmax(logit)[t] * scale[t] * latent[t]            lse = ln sum_t exp(logit[t])
//
// so the rounding of cache and query to their formats is not part of the error; that of P, of sums and of the
// output is. Products of two stored numbers are exact in fp32 (at most 16 significant bits) and are summed in
// fp64. Slow and plain: for a few rows.
#pragma once

#include <array>
#include <vector>

#include "snapmla/attention.h"

namespace snapmla::apps {

/// One query row: row = query token * heads + head, over the first `tokens` cached tokens.
struct RowAt {
  int request = 0;
  int row = 0;
  int tokens = 0;
};

struct ExactRow {
  std::array<double, kLatentDim> out{};
  double lse = 0;
};

/// Tensors in host memory.
std::vector<ExactRow> exact_rows_on_host(const DecodeParams& params, const std::vector<RowAt>& rows);

}  // namespace snapmla::apps
