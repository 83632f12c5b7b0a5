// A bound on the time of what must not take hours: in processor time, which neighbours on the machine do not stretch, and
// five times as long under a sanitizer, as the tests' own timeouts are (tests/CMakeLists.txt).
#pragma once

#include <ctime>

#if defined(__has_feature)  // clang
#define SNAPMLA_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)  // GCC
#define SNAPMLA_SANITIZED 1
#else
#define SNAPMLA_SANITIZED 0
#endif

namespace snapmla::testing {

/// Seconds that this process has run for since the object was made, in all its threads.
class ProcessorTime {
 public:
  [[nodiscard]] double seconds() const {
    return static_cast<double>(std::clock() - start_) / static_cast<double>(CLOCKS_PER_SEC);
  }

 private:
  std::clock_t start_ = std::clock();
};

constexpr double seconds_allowed(double seconds) {
#if SNAPMLA_SANITIZED
  return 5 * seconds;
#else
  return seconds;
#endif
}

}  // namespace snapmla::testing
