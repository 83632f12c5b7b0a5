// A template's source as tokens: text between tags, and the words inside them, with Jinja's rules for the white space
// around tags (trim_blocks and lstrip_blocks on, as transformers has them; - and + at a tag's ends).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace snapmla::jinja {

struct Token {
  enum class Kind {
    kText,
    kOutputBegin,
    kOutputEnd,
    kTagBegin,
    kTagEnd,
    kName,
    kString,
    kInt,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  std::string text{};  ///< of a string: what it stands for
  int line = 0;
};

/// `name` is for error texts. Throws kCorruptFile.
[[nodiscard]] std::vector<Token> tokenize(std::string_view source, const std::string& name);

}  // namespace snapmla::jinja
