#include "engine/added_tokens.h"

#include <algorithm>
#include <array>
#include <utility>

namespace snapmla {
namespace {

/// Unicode's White_Space.
constexpr std::array<std::string_view, 25> kWhiteSpace = {
    "\t",           "\n",           "\v",           "\f",           "\r",           " ",
    "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82",
    "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88",
    "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f",
    "\xe3\x80\x80"};

/// What counts as a part of a word beside a `single_word` token.
constexpr std::string_view kWordCharacter = R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}])";

std::size_t white_space_at_start(std::string_view text) {
  std::size_t size = 0;
  while (true) {
    const auto* const found = std::find_if(kWhiteSpace.begin(), kWhiteSpace.end(), [&](std::string_view c) {
      return text.substr(size).starts_with(c);
    });
    if (found == kWhiteSpace.end()) return size;
    size += found->size();
  }
}

std::size_t white_space_at_end(std::string_view text) {
  std::size_t size = 0;
  while (true) {
    const std::string_view rest = text.substr(0, text.size() - size);
    const auto* const found = std::find_if(kWhiteSpace.begin(), kWhiteSpace.end(),
                                           [&](std::string_view c) { return rest.ends_with(c); });
    if (found == kWhiteSpace.end()) return size;
    size += found->size();
  }
}

/// Where the character that ends at `end` begins.
std::size_t character_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0U) == 0x80U) --begin;
  return begin;
}

}  // namespace

void AddedTokens::Trie::insert(std::string_view content, std::int32_t index) {
  std::uint32_t node = 0;
  for (const char c : content) {
    const std::uint64_t key = std::uint64_t{node} * 256 + static_cast<unsigned char>(c);
    const auto [edge, fresh] = edges.emplace(key, static_cast<std::uint32_t>(token.size()));
    if (fresh) token.push_back(-1);
    node = edge->second;
  }
  token[node] = index;
}

std::int32_t AddedTokens::Trie::longest(std::string_view text) const {
  std::int32_t found = -1;
  std::uint32_t node = 0;
  for (const char c : text) {
    const auto edge = edges.find(std::uint64_t{node} * 256 + static_cast<unsigned char>(c));
    if (edge == edges.end()) break;
    node = edge->second;
    if (token[node] >= 0) found = token[node];
  }
  return found;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    Trie& trie = tokens_[i].normalized ? normalized_ : raw_;
    trie.insert(tokens_[i].content, static_cast<std::int32_t>(i));
    if (tokens_[i].single_word && word_character_.empty())
      word_character_.emplace_back(kWordCharacter, Regex::Syntax::kOniguruma);
  }
}

std::vector<Segment> AddedTokens::split(std::string_view text) const {
  std::vector<Segment> raw;
  split_by(raw_, text, raw);
  std::vector<Segment> segments;
  for (const Segment& segment : raw) {
    if (segment.id >= 0)
      segments.push_back(segment);
    else
      split_by(normalized_, segment.text, segments);
  }
  return segments;
}

bool AddedTokens::stands_alone(std::string_view text, std::size_t begin, std::size_t end) const {
  std::vector<Regex::Span> found;
  std::int64_t steps_left = Regex::step_budget(text.size());
  const std::size_t before = begin == 0 ? 0 : character_before(text, begin);
  word_character_[0].find_all(text.substr(before, begin - before), found, steps_left);
  if (!found.empty()) return false;
  std::size_t after = end;
  while (after < text.size() && (after == end || (static_cast<unsigned char>(text[after]) & 0xc0U) == 0x80U))
    ++after;
  word_character_[0].find_all(text.substr(end, after - end), found, steps_left);
  return found.empty();
}

void AddedTokens::split_by(const Trie& trie, std::string_view text, std::vector<Segment>& segments) const {
  std::size_t done = 0;  // text before this is in a segment
  std::size_t at = 0;
  while (at < text.size()) {
    const std::int32_t index = trie.longest(text.substr(at));
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    std::size_t begin = at;
    std::size_t end = at + token.content.size();
    at = end;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin -= white_space_at_end(text.substr(0, begin));
    if (token.rstrip) end += white_space_at_start(text.substr(end));
    if (done < begin) segments.push_back({.text = text.substr(done, begin - done)});
    segments.push_back({.text = text.substr(begin, end - begin), .id = token.id});
    done = end;
  }
  if (done < text.size()) segments.push_back({.text = text.substr(done)});
}

}  // namespace snapmla
