// What a token's probability must be, from a row of logits on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace snapmla::testing {

/// ln softmax(logits)[token], in fp64.
inline double log_probability(const std::vector<float>& logits, std::int32_t token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return logits[static_cast<std::size_t>(token)] - top - std::log(sum);
}

}  // namespace snapmla::testing
