// Sampling: from rows of logits on the device to one token each on the host.
//
// A row's choice depends on its logits, its SamplingParams and the index of the token alone: the random
// number is a function of (seed, index). A forced token is taken as it is, and its probability is read off
// the row. Logits stay on the device unless they are asked for.
#pragma once

#include <cstdint>
#include <vector>

#include "core/device_buffer.h"
#include "core/plain_ops.h"
#include "snapmla/backend.h"
#include "snapmla/engine.h"

namespace snapmla {

/// Throws Error(kInvalidArgument) for values out of range, NaN included.
void check_sampling(const SamplingParams& params);

/// How one row gets its token.
struct Choice {
  SamplingParams sampling{};
  std::int64_t token_idx = 0;  ///< which of the request's generated tokens this is, from 0
  std::int32_t forced = -1;    ///< the token to take; -1: sample
  bool return_logits = false;
};

struct Chosen {
  std::int32_t token = -1;
  double logprob = 0;
  std::vector<float> logits{};  ///< [vocab] if asked for
};

class Sampler {
 public:
  Sampler(Backend& backend, int max_rows);

  /// One token a choice from rows 0 .. n-1 of `logits` [at least n, vocab] f32 device. Waits for the stream.
  /// Throws Error(kInvalidArgument) on a row without a softmax (core/sample_rule.h).
  [[nodiscard]] std::vector<Chosen> choose(const ConstTensorView& logits, const std::vector<Choice>& choices,
                                           Stream stream);

 private:
  Backend* backend_;
  std::vector<SampleRow> staged_;  // what rows_ is copied from: a copy may be under way after choose() threw
  DeviceBuffer rows_;              // [max_rows, kSampleRowBytes]
  DeviceBuffer tokens_;            // [max_rows] int32
  DeviceBuffer logprobs_;          // [max_rows] f32
};

}  // namespace snapmla
