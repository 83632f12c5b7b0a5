#include "engine/text_stream.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace snapmla {
namespace {

/// Length of the longest end of `text` that a stop string begins with, the whole stop string aside.
std::size_t undecided_length(const std::string& text, const std::vector<std::string>& stops) {
  std::size_t longest = 0;
  for (const std::string& stop : stops) {
    for (std::size_t length = std::min(stop.size() - 1, text.size()); length > longest; --length) {
      if (text.compare(text.size() - length, length, stop, 0, length) == 0) longest = length;
    }
  }
  return longest;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) SNAPMLA_ASSERT(!stop.empty());
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  std::size_t first_end = std::string::npos;
  std::size_t begin = 0;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const std::size_t end = at + stop.size();
    if (end < first_end || (end == first_end && at < begin)) {
      first_end = end;
      begin = at;
    }
  }
  stopped_ = first_end != std::string::npos;
  const std::size_t num_final = stopped_ ? begin : held_.size() - undecided_length(held_, stops_);
  std::string result = held_.substr(0, num_final);
  held_.erase(0, stopped_ ? held_.size() : num_final);
  return result;
}

std::string StopMatcher::finish() {
  return std::exchange(held_, {});
}

std::string TextStream::push(std::int32_t token) {
  std::string text;
  try {
    text = decoder_.push(token);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) throw;
  }
  return matcher_.push(text);
}

std::string TextStream::finish() {
  std::string text = matcher_.push(decoder_.finish());
  text += matcher_.finish();
  return text;
}

}  // namespace snapmla
