#include "engine/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/check.h"
#include "engine/jinja/value.h"
#include "engine/utf8.h"

namespace snapmla::jinja {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_word(char c) {
  return is_digit(c) || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

void append_utf8(std::uint32_t point, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (point >> shift & 0x3f)); };
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xc0 | point >> 6);
    tail(0);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xe0 | point >> 12);
    tail(6);
    tail(0);
  } else {
    out += static_cast<char>(0xf0 | point >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

/// Line ends become \n, and one at the very end is dropped: Jinja does both before it reads.
std::string with_unix_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out += source[i] == '\r' ? '\n' : source[i];
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : in_(with_unix_lines(source)), name_(&name) {}

  std::vector<Token> run() {
    while (at_ < in_.size()) text();
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_here(std::string_view what) const {
    fail(ErrorCode::kCorruptFile, "chat template", *name_, ", line ", line_, ": ", what);
  }
  [[nodiscard]] std::string_view rest() const { return std::string_view{in_}.substr(at_); }
  void skip(std::size_t count) {
    line_ += static_cast<int>(std::count(in_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         in_.begin() + static_cast<std::ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
  }
  void skip_spaces() {
    while (const std::size_t size = space_at_start(rest())) skip(size);
  }
  void add(Token::Kind kind, std::string text) {
    tokens_.push_back({.kind = kind, .text = std::move(text), .line = line_});
  }

  /// Text up to the next tag, and that tag.
  void text() {
    std::size_t open = at_;
    while (open + 1 < in_.size() &&
           (in_[open] != '{' || (in_[open + 1] != '{' && in_[open + 1] != '%' && in_[open + 1] != '#')))
      ++open;
    if (open + 1 >= in_.size()) open = in_.size();
    std::string text = in_.substr(at_, open - at_);
    if (open < in_.size()) trim_end(text, in_[open + 1], open + 2 < in_.size() ? in_[open + 2] : ' ');
    if (!text.empty()) add(Token::Kind::kText, std::move(text));
    skip(open - at_);
    if (at_ < in_.size()) tag();
  }

  /// What a tag's opening does to the text before it: `-` takes all white space; a block tag or comment that
  /// stands first on its line takes the line's.
  void trim_end(std::string& text, char kind, char sign) const {
    if (sign == '-') {
      while (const std::size_t size = space_at_end(text)) text.erase(text.size() - size);
      return;
    }
    if (sign == '+' || kind == '{') return;
    const std::size_t line_break = text.rfind('\n');
    const bool starts_line = line_break != std::string::npos || at_ == 0 || in_[at_ - 1] == '\n';
    const std::size_t begin = line_break == std::string::npos ? 0 : line_break + 1;
    std::size_t end = text.size();
    while (end > begin) {
      const std::size_t size = space_at_end(std::string_view{text}.substr(begin, end - begin));
      if (size == 0) return;
      end -= size;
    }
    if (starts_line) text.erase(begin);
  }

  void tag() {
    const char kind = in_[at_ + 1];
    const bool has_sign = at_ + 2 < in_.size() && (in_[at_ + 2] == '-' || in_[at_ + 2] == '+');
    if (kind != '#') add(kind == '{' ? Token::Kind::kOutputBegin : Token::Kind::kTagBegin, "");
    skip(has_sign ? 3 : 2);
    if (kind == '#') return comment();
    const std::string_view close = kind == '{' ? "}}" : "%}";
    std::size_t depth = 0;
    while (true) {
      skip_spaces();
      if (at_ >= in_.size()) fail_here("a tag is not closed");
      if (depth == 0 && ends_tag(close)) break;
      word(depth);
    }
    add(kind == '{' ? Token::Kind::kOutputEnd : Token::Kind::kTagEnd, "");
    end_tag(close);
  }

  [[nodiscard]] bool ends_tag(std::string_view close) const {
    const bool sign = rest().starts_with('-') || (rest().starts_with('+') && close != "}}");
    return rest().substr(sign ? 1 : 0).starts_with(close);
  }

  /// Past the tag's end and the white space it takes: all after `-`, else one line break after a block tag.
  void end_tag(std::string_view close) {
    const char sign = rest().starts_with(close) ? ' ' : rest()[0];
    skip(sign == ' ' ? 2 : 3);
    if (sign == '-')
      skip_spaces();
    else if (sign == ' ' && close != "}}" && rest().starts_with('\n'))
      skip(1);
  }

  void comment() {
    const std::size_t close = in_.find("#}", at_);
    if (close == std::string::npos) fail_here("a comment is not closed");
    const bool sign = close > at_ && (in_[close - 1] == '-' || in_[close - 1] == '+');
    skip(close - at_ - (sign ? 1 : 0));
    end_tag("#}");
  }

  void word(std::size_t& depth) {
    const char c = in_[at_];
    if (c == '"' || c == '\'') return string(c);
    if (is_digit(c)) return number();
    if (is_word(c)) {
      std::size_t end = at_;
      while (end < in_.size() && is_word(in_[end])) ++end;
      add(Token::Kind::kName, in_.substr(at_, end - at_));
      return skip(end - at_);
    }
    static constexpr std::array<std::string_view, 25> kOperators = {
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "<",
        ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ",", ":", ".", "|"};
    const auto* const found = std::find_if(kOperators.begin(), kOperators.end(),
                                           [&](std::string_view op) { return rest().starts_with(op); });
    if (found == kOperators.end())
      fail_here("unexpected " + quote_text(rest().substr(0, first_utf8(rest()).length)));
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') {
      if (depth == 0) fail_here("unexpected " + quote_text(*found));
      --depth;
    }
    add(Token::Kind::kOperator, std::string(*found));
    skip(found->size());
  }

  void number() {
    std::size_t end = at_;
    const auto digits = [&] {
      while (end < in_.size() && (is_digit(in_[end]) || in_[end] == '_')) ++end;
    };
    digits();
    bool is_float = false;
    if (end + 1 < in_.size() && in_[end] == '.' && is_digit(in_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      const std::size_t sign = end + 1 < in_.size() && (in_[end + 1] == '-' || in_[end + 1] == '+') ? 2 : 1;
      if (end + sign < in_.size() && is_digit(in_[end + sign])) {
        is_float = true;
        end += sign;
        digits();
      }
    }
    if (end < in_.size() && is_word(in_[end])) fail_here("a number runs into a name");
    std::string text = in_.substr(at_, end - at_);
    std::erase(text, '_');
    add(is_float ? Token::Kind::kFloat : Token::Kind::kInt, text);
    skip(end - at_);
  }

  void string(char quote) {
    std::string text;
    std::size_t i = at_ + 1;
    while (true) {
      if (i >= in_.size()) fail_here("a string is not closed");
      if (in_[i] == quote) break;
      if (in_[i] == '\\')
        escape(i, text);
      else
        text += in_[i++];
    }
    add(Token::Kind::kString, std::move(text));
    skip(i + 1 - at_);
  }

  /// One escape of Python's strings at in_[i]; an unknown one stands for itself.
  void escape(std::size_t& i, std::string& text) const {
    if (i + 1 >= in_.size()) fail_here("a string is not closed");
    const char c = in_[i + 1];
    static constexpr std::string_view kFrom = "ntrbfva\\'\"";
    static constexpr std::string_view kTo = "\n\t\r\b\f\v\a\\'\"";
    const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
      const std::string_view hex = std::string_view{in_}.substr(i + 2, digits);
      std::uint32_t point = 0;
      const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), point, 16);
      const bool whole = hex.size() == digits && error == std::errc{} && end == hex.data() + digits;
      if (!whole || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
        fail_here("a broken escape in a string");
      append_utf8(point, text);
      i += 2 + digits;
      return;
    }
    if (is_digit(c) || c == 'N')
      fail_here("the escape \\" + std::string(1, c) + " in a string is not supported");
    if (const std::size_t found = kFrom.find(c); found != std::string_view::npos)
      text += kTo[found];
    else if (c != '\n')
      text += {'\\', c};
    i += 2;
  }

  std::string in_;
  const std::string* name_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, const std::string& name) {
  if (replace_invalid_utf8(source) != source)
    fail(ErrorCode::kCorruptFile, "chat template", name, " is not valid UTF-8");
  return Lexer(source, name).run();
}

}  // namespace snapmla::jinja
