#include "engine/pre_tokenizer.h"

namespace snapmla {
namespace {

struct Piece {
  Regex::Span span;
  bool match = false;
};

/// Matches and the stretches between them, in order, covering the text.
std::vector<Piece> cover(const std::vector<Regex::Span>& matches, std::size_t size, bool invert) {
  std::vector<Piece> pieces;
  std::size_t at = 0;
  for (const Regex::Span& match : matches) {
    if (at < match.begin) pieces.push_back({.span = {.begin = at, .end = match.begin}, .match = invert});
    pieces.push_back({.span = match, .match = !invert});
    at = match.end;
  }
  if (at < size) pieces.push_back({.span = {.begin = at, .end = size}, .match = invert});
  return pieces;
}

/// Whether piece i belongs to piece i - 1.
bool joins(const std::vector<Piece>& pieces, std::size_t i, SplitBehavior behavior) {
  if (i == 0) return false;
  const bool before = pieces[i - 1].match;
  const bool now = pieces[i].match;
  switch (behavior) {
    case SplitBehavior::kContiguous:
      return before == now;
    case SplitBehavior::kMergedWithPrevious:
      return now && !before;
    case SplitBehavior::kMergedWithNext:
      return before && !now;
    default:
      return false;
  }
}

}  // namespace

PreTokenizer::PreTokenizer(const std::vector<PreTokenStep>& steps) {
  for (const PreTokenStep& step : steps) {
    Step compiled{.prefix_space = step.prefix_space, .behavior = step.behavior, .invert = step.invert};
    if (!step.prefix_space)
      compiled.regex.emplace_back(step.pattern,
                                  step.literal ? Regex::Syntax::kLiteral : Regex::Syntax::kOniguruma);
    steps_.push_back(std::move(compiled));
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text, std::deque<std::string>& storage,
                                                  std::int64_t& steps_left) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  std::vector<Regex::Span> matches;
  for (const Step& step : steps_) {
    std::vector<std::string_view> next;
    for (const std::string_view piece : pieces) {
      if (step.prefix_space) {
        next.push_back(piece.starts_with(' ') ? piece : storage.emplace_back(" " + std::string(piece)));
        continue;
      }
      step.regex[0].find_all(piece, matches, steps_left);
      const std::vector<Piece> parts = cover(matches, piece.size(), step.invert);
      Regex::Span open{};
      for (std::size_t i = 0; i < parts.size(); ++i) {
        if (step.behavior == SplitBehavior::kRemoved && parts[i].match) continue;
        open = {.begin = joins(parts, i, step.behavior) ? open.begin : parts[i].span.begin,
                .end = parts[i].span.end};
        const bool last = i + 1 == parts.size() || !joins(parts, i + 1, step.behavior);
        if (last && open.begin < open.end) next.push_back(piece.substr(open.begin, open.end - open.begin));
      }
    }
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace snapmla
