// A progress bar with the time left, on standard error, where that is a terminal; elsewhere silent.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace snapmla::apps {

class Progress {
 public:
  /// `total` in `unit`s of work ("tokens").
  Progress(std::string label, std::int64_t total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::int64_t done);

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  std::int64_t total_;
  std::string unit_;
  bool shown_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
};

/// The bar's text: label, bar, done/total, time left (none known before the first unit is done).
std::string progress_line(const std::string& label, std::int64_t done, std::int64_t total,
                          const std::string& unit, double seconds);

}  // namespace snapmla::apps
