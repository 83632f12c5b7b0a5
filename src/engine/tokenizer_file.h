// What a model's tokenizer files say, read and checked, in plain data: tokenizer.json here, tiktoken.model and
// tekken.json in rank_files.h. These are the only places that know the files' JSON.
//
// Pre-tokenizers are reduced to two kinds of step: splitting by a pattern, and putting a space in front.
// Digits is a split by \p{N}, and the built-in regex of ByteLevel is a split by kByteLevelPattern. Fields
// that change offsets only (trim_offsets) or that transformers sets at each call (truncation, padding) are
// ignored.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace snapmla {

enum class SplitBehavior : std::uint8_t {
  kRemoved,             ///< matches are dropped
  kIsolated,            ///< each match is a piece
  kMergedWithPrevious,  ///< a match ends the piece before it
  kMergedWithNext,      ///< a match starts the piece after it
  kContiguous           ///< matches that touch are one piece
};

struct PreTokenStep {
  bool prefix_space = false;  ///< put a space in front of a piece that has none; the rest is then unused
  std::string pattern{};
  bool literal = false;  ///< `pattern` is the text to find, not a regex
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  ///< matches and what lies between them change roles
};

struct AddedToken {
  std::string content{};
  std::int32_t id = 0;
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space before it along
  bool rstrip = false;       ///< takes the white space after it along
  bool normalized = false;   ///< looked for only where no token without this flag was found
  bool special = false;
};

struct TokenizerFile {
  std::vector<std::pair<std::string, std::int32_t>> vocab;  ///< distinct ids in [0, kMaxTokenId]
  std::vector<std::pair<std::string, std::string>> merges;  ///< by falling priority
  bool merge_by_id = false;              ///< no `merges`: whatever makes a token merges, lowest id first
  bool ignore_merges = false;            ///< a piece that is a token as a whole is not split and merged
  bool needs_all_bytes = false;          ///< an unk_token is named, which a full byte alphabet never uses
  std::vector<AddedToken> added_tokens;  ///< ids agree with `vocab` where both have the content
  std::vector<PreTokenStep> pre_tokenizer;
  std::vector<std::int32_t> prefix;  ///< ids the post-processor puts before the text
  std::vector<std::int32_t> suffix;  ///< and after it
};

/// Four times the largest real vocabulary; bounds the table of tokens by id.
inline constexpr std::int32_t kMaxTokenId = (1 << 20) - 1;

/// Throws kNotFound, kIo, kCorruptFile or kUnsupported; the text names file and field.
[[nodiscard]] TokenizerFile read_tokenizer_file(const std::string& path);

}  // namespace snapmla
