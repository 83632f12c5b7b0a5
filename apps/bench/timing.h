// Times calls on a stream: several of them captured in one graph, events around each replay of it, and the
// median, 10th and 90th percentile over replays, a call. Where a backend has no graphs, plain calls.
#pragma once

#include <chrono>
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
  int repeat = 1;                        ///< replays measured
  std::chrono::milliseconds pause{100};  ///< before them, where there are graphs
  bool sustained = false;                ///< instead of the pause, a second of replays
};

Timing measure(Backend& backend, const TimingParams& params, Stream stream);

}  // namespace snapmla::apps
