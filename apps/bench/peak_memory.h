// How much memory a benchmark takes. On cuda what the device has less of than at the start, so that libraries and graphs
// count too; on the reference backend what the process had resident at most.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <cstdint>

#include "snapmla/backend.h"

namespace snapmla::apps {

class PeakMemory {
 public:
  explicit PeakMemory(Backend& backend) : backend_(backend), free_at_start_(backend.free_memory()) {}

  [[nodiscard]] std::int64_t free_at_start() const { return free_at_start_; }
  [[nodiscard]] std::int64_t taken() const {
    return std::max<std::int64_t>(0, free_at_start_ - backend_.free_memory());
  }

  /// To be asked while everything is allocated.
  [[nodiscard]] std::int64_t peak() const {
    if (backend_.name() == cuda().name()) return taken();
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    constexpr std::int64_t kKilobyte = 1024;
    return usage.ru_maxrss * kKilobyte;
  }

 private:
  Backend& backend_;
  std::int64_t free_at_start_;
};

}  // namespace snapmla::apps
