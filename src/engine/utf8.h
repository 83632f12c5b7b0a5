// UTF-8 at the edge of the tokenizer: every ill-formed stretch becomes U+FFFD, one a maximal subpart (Unicode
// 15, section 3.9, table 3-8), which is what Python's bytes.decode("utf-8", "replace") and Rust's
// from_utf8_lossy do. Not a Unicode library: nothing here knows what a character means.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace snapmla {

/// The first character of a text, or the first maximal ill-formed subpart.
struct Utf8Step {
  std::size_t length = 0;   ///< bytes, at least 1
  bool valid = false;       ///< one whole character
  bool unfinished = false;  ///< not valid only because the text ends: more bytes could complete it
};

/// `text` must not be empty.
[[nodiscard]] Utf8Step first_utf8(std::string_view text) noexcept;

[[nodiscard]] std::string replace_invalid_utf8(std::string_view text);

/// Moves the part of `bytes` that no later byte can change to the result, replaced where ill-formed; what is
/// left is empty or the start of one character.
std::string take_finished_utf8(std::string& bytes);

/// Text from a file in double quotes for an error message: one line, at most 80 bytes of it.
[[nodiscard]] std::string quote_text(std::string_view text);

}  // namespace snapmla
