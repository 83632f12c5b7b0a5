// Times calls on a stream: several of them captured in one graph, events around each replay of it, and the
// median, 10th and 90th percentile over replays, a call. Where a backend has no graphs, plain calls.
#pragma once

#include <functional>
#include <optional>

#include "snapmla/backend.h"

namespace snapmla::apps {

struct Timing {
  double us = 0;  ///< median
  double us_p10 = 0;
  double us_p90 = 0;
  int calls = 0;                      ///< in a replay
  std::optional<double> clock_mhz{};  ///< right behind the last replay
};

struct TimingParams {
  std::function<void(int set, Stream stream)> call{};
  int num_sets = 1;
  int repeat = 1;          ///< replays measured
  bool sustained = false;  ///< after a second of replays without a pause; else after a pause
};

Timing measure(Backend& backend, const TimingParams& params, Stream stream);

}  // namespace snapmla::apps
