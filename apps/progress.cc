#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace snapmla::apps {
namespace {

constexpr int kBarWidth = 24;
constexpr auto kRedrawEvery = std::chrono::milliseconds(100);

}  // namespace

std::string progress_line(const std::string& label, std::int64_t done, std::int64_t total,
                          const std::string& unit, double seconds) {
  const std::int64_t part = std::clamp<std::int64_t>(done, 0, total);
  const double fraction = total > 0 ? static_cast<double>(part) / static_cast<double>(total) : 1;
  const auto filled = static_cast<std::size_t>(fraction * kBarWidth);
  std::string line = fmt::format("{} [{}{}] {}/{} {}", label, std::string(filled, '#'),
                                 std::string(kBarWidth - filled, '.'), part, total, unit);
  if (part > 0) {
    const std::int64_t left = std::llround(seconds * (1 / fraction - 1));
    line += fmt::format(", {}:{:02} left", left / 60, left % 60);
  }
  return line;
}

Progress::Progress(std::string label, std::int64_t total, std::string unit)
    : label_(std::move(label)), total_(total), unit_(std::move(unit)), shown_(isatty(STDERR_FILENO) == 1) {
  update(0);
}

Progress::~Progress() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(std::int64_t done) {
  if (!shown_) return;
  const auto now = Clock::now();
  if (now - last_ < kRedrawEvery) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  fmt::print(stderr, "\r{}\x1b[K", progress_line(label_, done, total_, unit_, seconds));
  std::fflush(stderr);
}

}  // namespace snapmla::apps
