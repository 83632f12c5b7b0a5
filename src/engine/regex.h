// Regular expressions of tokenizer.json, which are Oniguruma's (Ruby syntax), run by PCRE2.
//
// What both read alike passes through; what differs is rewritten (\s, \v, \uHHHH, {,n}, script names; ^ and $
// match at lines, only \n ends a line; general categories && [^...] becomes one plain class) or, where no
// tokenizer needs it, refused with kUnsupported and its name (\w, \b, nested classes, any other && in
// classes, back-references, {n,m}+ ...). What is left to differ: the Unicode version of the PCRE2 in use, and
// multi-character case folding ((?i:ss) finds no sharp s here).
//
// tiktoken.model and tekken.json go with regexes in Rust's syntax; what theirs use reads the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace snapmla {

/// A pattern rewritten for PCRE2. Throws kUnsupported.
[[nodiscard]] std::string translate_oniguruma(std::string_view pattern);

class Regex {
 public:
  enum class Syntax { kOniguruma, kLiteral };
  struct Span {
    std::size_t begin = 0;
    std::size_t end = 0;
  };

  /// Throws kUnsupported if the pattern cannot be used.
  Regex(std::string_view pattern, Syntax syntax);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Steps of backtracking that the searches of one text may take together: far more than any tokenizer's
  /// regex needs, few enough to end in seconds.
  [[nodiscard]] static std::int64_t step_budget(std::size_t text_size);

  /// Replaces `spans` by all matches, from left to right. An empty match right after another match does not
  /// count. `text` must be valid UTF-8. Throws kUnsupported where steps_left, which it counts down, or memory
  /// does not suffice. Const and thread-safe.
  void find_all(std::string_view text, std::vector<Span>& spans, std::int64_t& steps_left) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace snapmla
