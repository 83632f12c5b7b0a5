// What walks over the tokens add up: masses exp((logit - largest) / temperature) in fp64, and ones.
//
// In bins masses are fixed-point numbers, so that atomics add them up to the same bits in any order, and so that a bin's
// mass is the sum of its bins' in the next round. Each is off by at most 2^-62 of a bound on the sum of all (log2_bound), so
// all of 2^18 together by 2^-44 times that bound, which for a model's logits is far below 2^10.
#pragma once

#include "cuda/sample/config.cuh"

namespace snapmla::cuda_ops::sampling {

/// exp((logit - largest) / temperature)
struct Mass {
  double largest;
  double inverse;  ///< of the temperature

  __device__ __forceinline__ double operator()(float logit) const {
    return exp(__dmul_rn(__dsub_rn(logit, largest), inverse));
  }
};

/// The same as a fixed-point number.
struct FixedMass {
  Mass mass;
  double scale;

  __device__ __forceinline__ Wide operator()(float logit) const {
    return __double2ull_rn(mass(logit) * scale);
  }
};

struct One {
  __device__ __forceinline__ Wide operator()(float /*logit*/) const { return 1; }
};

/// log2 of a bound on the sum of masses, from the sum at temperature 1, which is at least 1. A mass is at most 1, so below
/// temperature 1 none is above what it is at 1; above, the mean of p^(1/t) is at most the mean of p to the 1/t.
__device__ __forceinline__ double log2_bound(double sum, double temperature, int vocab) {
  if (temperature <= 1) return log2(sum);
  return (1 - 1 / temperature) * log2(static_cast<double>(vocab)) + log2(sum) / temperature;
}

}  // namespace snapmla::cuda_ops::sampling
