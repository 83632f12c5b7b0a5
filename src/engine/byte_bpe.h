// Byte-level byte-pair encoding: a piece of text starts as one symbol a byte; the adjacent pair with the best
// (lowest) merge rank, the leftmost among equals, becomes one symbol, until no pair has a rank.
//
// Where the file lists merges, a merge's rank is its place in that list; where it lists only tokens, any two
// symbols whose bytes together are a token merge, and the token's id is the rank.
//
// Vocabularies spell bytes as printable characters: the byte alphabet of GPT-2. A heap of candidate pairs
// over a linked list makes a piece of n bytes cost O(n log n).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/tokenizer_file.h"

namespace snapmla {

/// The bytes a token stands for; nothing if a character is not in the byte alphabet. `token` is valid UTF-8.
[[nodiscard]] std::optional<std::string> token_bytes(std::string_view token);

/// The token that spells `bytes`.
[[nodiscard]] std::string bytes_token(std::string_view bytes);

class ByteBpe {
 public:
  /// Throws kCorruptFile naming `path`.
  ByteBpe(const TokenizerFile& file, const std::string& path);

  /// Appends the ids of one piece. A byte that is no token is left out.
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) const;

  /// -1 if there is none.
  [[nodiscard]] std::int32_t id(std::string_view token) const;

 private:
  struct Merge {
    std::int32_t rank = 0;
    std::int32_t id = -1;  ///< -1: these two do not merge
  };
  /// A symbol of the piece, in a doubly linked list; id -1: merged away.
  struct Symbol {
    std::int32_t id = -1;
    std::int32_t previous = -1;
    std::int32_t next = -1;
  };
  struct Hash {
    using is_transparent = void;  // NOLINT(readability-identifier-naming): the standard's name
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  using Ids = std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>>;

  void read_merges(const TokenizerFile& file, const std::string& path);
  [[nodiscard]] std::vector<Symbol> split(std::string_view piece) const;
  [[nodiscard]] Merge find_merge(std::string_view piece, const std::vector<Symbol>& symbols,
                                 std::int32_t at) const;

  Ids ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  Ids by_bytes_;             ///< bytes -> id, if merge_by_id_
  std::size_t longest_ = 0;  ///< bytes of the longest in by_bytes_
  std::array<std::int32_t, 256> byte_ids_{};
  bool ignore_merges_;
  bool merge_by_id_;
};

}  // namespace snapmla
