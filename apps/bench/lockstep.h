// Requests that decode in lock-step from a synthetic context: what a serving engine does once its requests are deep in their
// answers, without the hours of prefill before it.
//
// Every request has `context` cached tokens, written through append_kv from seeded normal numbers to pages in random order; the
// model then decodes one token of each request a step, chosen greedily and fed back as the engine does it: a step is
// enqueued before the tokens of the one ahead are known. Times are the host's, from one batch of tokens to the next.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/device_buffer.h"
#include "engine/engine_loop.h"
#include "engine/sampling.h"
#include "model/model.h"

namespace snapmla::apps {

struct LockstepShape {
  int batch = 1;
  int context = 1;  ///< cached tokens of each request before the first step
  int output = 1;   ///< steps measured
};

class Lockstep {
 public:
  /// `model` made for at least these tokens and requests. Takes pages for all of them, and fills them.
  Lockstep(Backend& backend, std::unique_ptr<Model> model, const LockstepShape& shape, std::uint64_t seed);

  /// Decodes `steps` tokens of each request, the first behind the context again; position `output` is followed by the
  /// first. Returns the seconds from one batch of tokens to the next.
  std::vector<double> run(int steps);

  /// The tokens chosen last, one a request.
  [[nodiscard]] const std::vector<std::int32_t>& tokens() const { return batch_.tokens; }

 private:
  void enqueue(int done);
  void collect();
  void fill(int layer, std::uint64_t seed);
  void make_tables(std::uint64_t seed);

  Backend& backend_;
  std::unique_ptr<Model> model_;
  LockstepShape shape_;
  std::int64_t num_pages_;
  OwnedStream stream_;
  std::vector<DeviceBuffer> pools_;  // one a layer
  std::vector<CacheView> caches_;
  Sampler sampler_;
  DecodeBatch batch_;
  std::vector<Choice> choices_;
};

}  // namespace snapmla::apps
