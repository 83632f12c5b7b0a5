// Byte-level byte-pair encoding: a piece of text starts as one symbol a byte; the adjacent pair with the best
// (lowest) merge rank, the leftmost among equals, becomes one symbol, until no pair has a rank.
//
// Vocabularies spell bytes as printable characters: the byte alphabet of GPT-2. A heap of candidate pairs
// over a linked list makes a piece of n bytes cost O(n log n).
#pragma once

#include <array>
#include <cstdint>
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
    std::int32_t id = 0;
  };
  [[nodiscard]] const Merge* find_merge(std::int32_t left, std::int32_t right) const;

  std::unordered_map<std::string, std::int32_t> ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::array<std::int32_t, 256> byte_ids_{};
  bool ignore_merges_;
};

}  // namespace snapmla
