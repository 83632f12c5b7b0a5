// Finds added tokens (special ones, mostly) in raw text, before anything else looks at it: at each position
// the longest one; first those that are not `normalized`, over the whole text, then the others in between.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/regex.h"
#include "engine/tokenizer_file.h"

namespace snapmla {

/// A stretch of text without added tokens (id -1), or one added token.
struct Segment {
  std::string_view text;
  std::int32_t id = -1;
};

class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  /// Segments in the order of the text; `text` is valid UTF-8.
  [[nodiscard]] std::vector<Segment> split(std::string_view text) const;

 private:
  /// Tokens as a tree of bytes.
  struct Trie {
    std::unordered_map<std::uint64_t, std::uint32_t> edges;  ///< node * 256 + byte -> node; 0 is the root
    std::vector<std::int32_t> token{-1};                     ///< node -> index into tokens_, or -1
    void insert(std::string_view content, std::int32_t index);
    [[nodiscard]] std::int32_t longest(std::string_view text) const;
  };
  void split_by(const Trie& trie, std::string_view text, std::vector<Segment>& segments) const;
  [[nodiscard]] bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) const;

  std::vector<AddedToken> tokens_;
  std::vector<Regex> word_character_;  ///< one, or none if no token asks for it
  Trie raw_;
  Trie normalized_;
};

}  // namespace snapmla
