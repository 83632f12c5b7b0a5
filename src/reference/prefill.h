// Un-absorbed causal attention of a chunk of query tokens over the whole context: the contract is in
// core/plain_ops.h.
//
//     logit[i, t] = softmax_scale * (q_nope[i] . k_nope[t] + q_rope[i] . k_rope[t])      t <= position of i
//     out[i] = sum_t softmax(logit[i])[t] v[t]
//
// Keys are taken in blocks of 64, from token 0 on, with a running maximum: O and the sum of p are rescaled
// when it moves. Logits, p and the sums are fp32 (p is not rounded to bf16 before it meets v); the output is
// rounded to bf16 once. What enters a query's sums, and in which order, follows from its position alone:
// neither its chunk nor the length of the context beyond it changes a bit, and a key it may not see adds
// nothing, not even NaN.
#pragma once

#include "core/plain_ops.h"

namespace snapmla::reference_ops {

void prefill_attention(const PrefillAttentionParams& params);

}  // namespace snapmla::reference_ops
