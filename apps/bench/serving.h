// Requests that go through the engine: random prompts, all submitted at the start, and when each of their tokens came.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine_loop.h"
#include "snapmla/engine.h"

namespace snapmla::apps {

struct Load {
  int num_prompts = 1;
  int prefix_len = 0;  ///< tokens that all prompts begin with
  int input_len = 1;   ///< tokens of each prompt's own behind them
  int output_len = 1;
  std::uint64_t seed = 0;
};

std::vector<Request> make_requests(const Load& load, int vocab);

struct Served {
  double seconds = 0;
  std::vector<double> first_token_ms;  ///< a request, from the start
  std::vector<double>
      output_token_ms;          ///< a request: time between tokens after the first; none with one token
  std::vector<double> step_ms;  ///< a step that decoded and did not prefill
  EngineStats stats{};          ///< of the engine
};

/// Submits all, and steps until they are done.
Served serve(EngineLoop& engine, const std::vector<Request>& requests);

}  // namespace snapmla::apps
