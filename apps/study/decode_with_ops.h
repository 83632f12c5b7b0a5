// AttentionRows through the public ops of a backend: what an engine would get for them.
#pragma once

#include <vector>

#include "snapmla/attention.h"
#include "snapmla/backend.h"
#include "study/attention_rows.h"

namespace snapmla::apps {

struct OpsOptions {
  ScaleRule scale_rule = ScaleRule::kPowerOfTwo;
  int fixed_split_tokens = 0;  ///< 0: balanced
  int num_workers = 0;         ///< 0: the backend's own number
  int copies = 1;              ///< the same requests so many times in one batch
};

/// quantize_q, append_kv, plan and decode over FP8 pages: out [copies, rows, 512], not rounded to bf16.
std::vector<double> decode_with_ops(Backend& backend, const AttentionRows& rows, const OpsOptions& options);

}  // namespace snapmla::apps
