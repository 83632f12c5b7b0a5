// Choosing a token from a row of logits: the contract is in core/plain_ops.h.
//
// Temperature, then top-k, then top-p: p = softmax(logits / temperature) over the top_k most likely tokens;
// of those, the shortest run of the most likely whose p sum to top_p is kept; the token is where u times
// their sum falls, for u in [0, 1) a function of (seed, position). Equal logits rank by index. All in fp64.
#pragma once

#include <cstdint>
#include <vector>

#include "core/plain_ops.h"

namespace snapmla::reference_ops {

/// Uniform in [0, 1), 53 bits, a pure function of its arguments.
double uniform_at(std::uint64_t seed, std::uint64_t position);

/// Throws Error(kInvalidArgument) where a row holds NaN or +infinity, or nothing above -infinity.
void sample(const ConstTensorView& logits, const std::vector<SampleRow>& rows, const TensorView& token,
            const TensorView& logprob);

}  // namespace snapmla::reference_ops
