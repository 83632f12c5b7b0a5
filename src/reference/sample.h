// Choosing a token from a row of logits: the contract is in core/plain_ops.h.
//
// Temperature, then top-k, then top-p: p = softmax(logits / temperature) over the top_k most likely tokens;
// of those, the shortest run of the most likely whose p sum to top_p is kept; the token is where u times
// their sum falls, for u = uniform_at(seed, position). Equal logits rank by index. All in fp64.
#pragma once

#include "core/plain_ops.h"

namespace snapmla::reference_ops {

/// Throws Error(kInvalidArgument) on a row without a softmax (core/sample_rule.h).
void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
            const TensorView& logprob);

}  // namespace snapmla::reference_ops
