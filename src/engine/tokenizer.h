// Tokenizer: byte-level BPE as Hugging Face's tokenizer.json, Kimi's tiktoken.model or Mistral's tekken.json
// describes it, on PCRE2. Checked against the libraries tokenizers, tiktoken and mistral-common
// (tests/engine/tokenizer_test.cc, tests/engine/families_test.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace snapmla {

class Tokenizer {
 public:
  /// Reads the first of <dir>/tokenizer.json, tiktoken.model (with tokenizer_config.json) and tekken.json that
  /// is there. Throws Error kNotFound, kCorruptFile (not JSON, a field missing or of the
  /// wrong type, a merge whose parts are not in the vocabulary), kUnsupported (a model other than byte-level
  /// BPE, a pre-tokenizer or normalizer this version does not know: the text names it).
  static Tokenizer load(const std::string& dir);

  /// Whether <dir> has one of these files.
  static bool is_in(const std::string& dir);

  /// For a folder without a tokenizer (LoadFormat::kDummy): encode() throws Error(kUnsupported), and no id is in
  /// its vocabulary, which is empty.
  static Tokenizer none();
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Text to ids. Added and special tokens in the text are recognised as tokenizer.json says. `add_special`:
  /// also apply the post-processor (a BOS, usually). Any bytes are accepted; invalid UTF-8 is replaced by
  /// U+FFFD. Const and thread-safe.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, bool add_special = true) const;

  /// Ids to text; ids outside the vocabulary throw Error(kInvalidArgument). Special tokens are left out if
  /// `skip_special`.
  [[nodiscard]] std::string decode(const std::vector<std::int32_t>& ids, bool skip_special = true) const;

  [[nodiscard]] int vocab_size() const;                               ///< largest id + 1
  [[nodiscard]] std::int32_t token_id(std::string_view token) const;  ///< -1 if there is none

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Turns a stream of ids into text without ever emitting a broken character: bytes of an unfinished UTF-8
/// character are held back until it is complete; finish() gives what is left, replaced by U+FFFD where it
/// never became valid.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  std::string push(std::int32_t id);
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace snapmla
