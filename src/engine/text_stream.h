// From generated ids to the text a caller sees: whole characters only, and nothing from the first stop string
// on, wherever the borders between tokens lie.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/tokenizer.h"

namespace snapmla {

/// Ends a stream of text before its first stop string. Text that might be the beginning of one is held back
/// until that is decided. The stop string that is complete first wins (of those complete at the same byte,
/// the longest), so the result depends on the text alone, not on how it was cut.
class StopMatcher {
 public:
  /// No stop string may be empty.
  explicit StopMatcher(std::vector<std::string> stops);

  /// Adds text; returns what can no longer be part of a stop string. Nothing once stopped.
  [[nodiscard]] std::string push(std::string_view text);

  /// Whether a stop string has been met.
  [[nodiscard]] bool stopped() const { return stopped_; }

  /// The text ends here: returns what was held back.
  [[nodiscard]] std::string finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

/// One request's text. Each call returns the text that became final with it; all of them together are the
/// request's text.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : decoder_(tokenizer), matcher_(std::move(stops)) {}

  /// An id that the tokenizer does not know (vocabularies are padded) has no text.
  [[nodiscard]] std::string push(std::int32_t token);
  [[nodiscard]] std::string finish();
  [[nodiscard]] bool stopped() const { return matcher_.stopped(); }

 private:
  StreamDecoder decoder_;
  StopMatcher matcher_;
};

}  // namespace snapmla
