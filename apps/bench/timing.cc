#include "bench/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

#include "bench/device/device.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

using Clock = std::chrono::steady_clock;

// A replay lasts about 2 ms: events step by half a microsecond and a graph takes a few to start.
constexpr double kReplayUs = 2000;
constexpr int kLeastCalls = 2;
constexpr int kMostCalls = 20;  // more only where there are more sets
constexpr double kSustainedSeconds = 1;

class OwnEvent {
 public:
  explicit OwnEvent(Backend& backend) : backend_(&backend), event_(backend.create_event()) {}
  ~OwnEvent() {
    if (event_.handle != nullptr) backend_->destroy_event(event_);
  }
  OwnEvent(OwnEvent&& other) noexcept : backend_(other.backend_), event_(other.event_) { other.event_ = {}; }
  OwnEvent(const OwnEvent&) = delete;
  OwnEvent& operator=(const OwnEvent&) = delete;
  OwnEvent& operator=(OwnEvent&&) = delete;
  [[nodiscard]] Event get() const { return event_; }

 private:
  Backend* backend_;
  Event event_;
};

/// `calls` calls, the sets in turn, as one thing to launch.
class Replay {
 public:
  Replay(Backend& backend, const TimingParams& params, int calls, Stream stream)
      : backend_(backend), params_(params), calls_(calls), stream_(stream) {
    if (!backend.supports_graphs()) return;
    backend.begin_capture(stream);
    try {
      run_calls();
    } catch (...) {
      backend.destroy_graph(backend.end_capture(stream));
      throw;
    }
    graph_ = backend.end_capture(stream);
  }
  ~Replay() {
    if (graph_.handle != nullptr) backend_.destroy_graph(graph_);
  }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  void launch() {
    if (graph_.handle != nullptr) {
      backend_.launch(graph_, stream_);
    } else {
      run_calls();
    }
  }

 private:
  void run_calls() {
    for (int i = 0; i < calls_; ++i) params_.call(i % params_.num_sets, stream_);
  }

  Backend& backend_;
  const TimingParams& params_;
  int calls_;
  Stream stream_;
  Graph graph_{};
};

/// Microseconds of one call, roughly; the first calls load code and are not counted.
double estimate_us(Backend& backend, const TimingParams& params, Stream stream) {
  const OwnEvent begin(backend);
  const OwnEvent end(backend);
  params.call(0, stream);
  backend.record(begin.get(), stream);
  params.call(params.num_sets > 1 ? 1 : 0, stream);
  backend.record(end.get(), stream);
  return std::max(backend.elapsed_us(begin.get(), end.get()), 1.0);
}

int choose_calls(const Backend& backend, double us, int num_sets) {
  const double wanted = std::ceil(kReplayUs / us);
  const int least = backend.supports_graphs() ? kLeastCalls : 1;
  const int calls = std::clamp(static_cast<int>(std::min<double>(wanted, kMostCalls)), least, kMostCalls);
  return (calls + num_sets - 1) / num_sets * num_sets;
}

void run_for_a_second(Backend& backend, Replay& replay, double replay_us, Stream stream) {
  constexpr double kBatchUs = 50'000;  // queued at once
  const int launches = std::max(1, static_cast<int>(kBatchUs / replay_us));
  const auto start = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - start).count() < kSustainedSeconds) {
    for (int i = 0; i < launches; ++i) replay.launch();
    backend.synchronize(stream);
    stop_if_asked();
  }
}

/// The value at `part` (0 .. 1) of sorted values, interpolated.
double percentile(const std::vector<double>& sorted, double part) {
  const double at = part * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

Timing measure(Backend& backend, const TimingParams& params, Stream stream) {
  const double us = estimate_us(backend, params, stream);
  const int calls = choose_calls(backend, us, params.num_sets);
  Replay replay(backend, params, calls, stream);
  std::vector<OwnEvent> events;
  for (int i = 0; i <= params.repeat; ++i) events.emplace_back(backend);
  if (params.sustained) {
    run_for_a_second(backend, replay, us * calls, stream);
  } else if (backend.supports_graphs()) {
    replay.launch();
    backend.synchronize(stream);
    std::this_thread::sleep_for(params.pause);
    replay.launch();
  }
  backend.record(events[0].get(), stream);
  for (std::size_t i = 1; i < events.size(); ++i) {
    replay.launch();
    backend.record(events[i].get(), stream);
  }
  const std::optional<double> clock_mhz = backend.supports_graphs() ? sm_clock_mhz(stream) : std::nullopt;
  std::vector<double> times;
  for (std::size_t i = 1; i < events.size(); ++i) {
    times.push_back(backend.elapsed_us(events[i - 1].get(), events[i].get()) / calls);
  }
  std::sort(times.begin(), times.end());
  constexpr double kLow = 0.1;
  constexpr double kMiddle = 0.5;
  constexpr double kHigh = 0.9;
  return {.us = percentile(times, kMiddle),
          .us_p10 = percentile(times, kLow),
          .us_p90 = percentile(times, kHigh),
          .calls = calls,
          .clock_mhz = clock_mhz};
}

}  // namespace snapmla::apps
