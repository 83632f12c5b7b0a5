// Sampling: from rows of logits on the device to one token each on the host.
//
// A row's choice depends on its logits, its SamplingParams and the index of the token alone: the random
// number is a function of (seed, index). A forced token is taken as it is, and its probability is read off
// the row. Logits stay on the device unless they are asked for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/device_buffer.h"
#include "core/plain_ops.h"
#include "core/staging.h"
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

  /// enqueue() and collect() in one.
  [[nodiscard]] std::vector<Chosen> choose(const ConstTensorView& logits, const std::vector<Choice>& choices,
                                           Stream stream);

  /// Enqueues the choice of one token a `choices` from rows 0 .. n-1 of `logits` [at least n, vocab] f32 device; returns before it is
  /// made, unless logits are to be returned. What enqueue() before the last chose must have been collected.
  void enqueue(const ConstTensorView& logits, const std::vector<Choice>& choices, Stream stream);

  /// What the last enqueue() chooses, [n] int32 device, for work behind it on the stream.
  [[nodiscard]] ConstTensorView tokens() const;

  /// Waits for the oldest choice that was enqueued and not collected. Throws Error(kInvalidArgument) on a row without a softmax
  /// (core/sample_rule.h), and then may be called again.
  [[nodiscard]] std::vector<Chosen> collect();

 private:
  /// One of the two choices that may be under way.
  struct Slot {
    Slot(Backend& backend, int max_rows);
    Staging rows;            // [max_rows] SampleRow
    Staging results;         // [max_rows] int32 tokens, then f32 logprobs
    DeviceBuffer on_device;  // rows, tokens, logprobs
    int num_rows = 0;
    std::vector<Chosen> chosen{};  // with the logits that are to be returned
  };

  [[nodiscard]] TensorView tokens_of(const Slot& slot) const;

  Backend* backend_;
  int max_rows_;
  std::array<std::unique_ptr<Slot>, 2> slots_;
  std::size_t newest_ = 0;  // counts enqueue(); slot newest_ % 2 is the last's
  std::size_t oldest_ = 0;  // counts collect()
};

}  // namespace snapmla
