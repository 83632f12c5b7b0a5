#include "engine/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "core/check.h"
#include "engine/utf8.h"

namespace snapmla {
namespace {

// Oniguruma's \s is Unicode's White_Space; PCRE2's also has U+180E.
constexpr std::string_view kSpaces =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNoSpaces =
    R"(\x{0}-\x{8}\x{e}-\x{1f}!-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

// PCRE2's step limit counts from each start position anew. Searches begin with a small one; a search that
// hits it pays from the caller's budget for four times as many, so a whole text ends in seconds or in an
// Error.
constexpr std::int64_t kJitSteps =
    65'536;  // plus kJitStepsPerByte: one run of white space may take its length
constexpr std::int64_t kJitStepsPerByte = 16;
constexpr std::int64_t kInterpreterSteps = 256;
constexpr std::int64_t kStepsPerText = 5'000'000;  // half a second
constexpr std::int64_t kStepsPerByte = 64;
constexpr std::uint32_t kHeapLimitKib = 65'536;

constexpr std::array<std::string_view, 37> kCategories = {
    "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",
    "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi",
    "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};

// What the one-letter categories C, L, M, N, P, S, Z consist of.
constexpr std::array<std::string_view, 7> kMajors = {"C", "L", "M", "N", "P", "S", "Z"};

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_hex(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/// Reads an Oniguruma pattern once from left to right and writes PCRE2's.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) item();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::kUnsupported, "tokenizer", "regex ", quote_text(in_), ": ", what, " at byte ", at_,
         " is not supported");
  }
  [[nodiscard]] std::string_view rest() const { return in_.substr(at_); }
  void copy(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }
  void replace(std::size_t count, std::string_view text) {
    out_ += text;
    at_ += count;
  }

  void item() {
    switch (in_[at_]) {
      case '\\':
        escape(false);
        return;
      case '[':
        return char_class();
      case '(':
        return group();
      case '{':
        return interval();
      default:
        return copy(1);
    }
  }

  void group() {
    if (!rest().starts_with("(?")) return copy(1);
    for (const std::string_view open : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"})
      if (rest().starts_with(open)) return copy(open.size());
    refuse("the group " + quote_text(rest().substr(0, 3)));
  }

  /// {n}, {n,}, {,m}, {n,m}; anything else in braces is literal text to both engines.
  void interval() {
    const std::size_t close = rest().find('}');
    const std::string_view body = close == std::string_view::npos ? "" : rest().substr(1, close - 1);
    const bool digits = std::all_of(body.begin(), body.end(), [](char c) { return is_digit(c) || c == ','; });
    const std::size_t comma = body.find(',');
    if (!digits || body.empty() || body == "," || body.find(',', comma + 1) < body.size())
      return replace(1, "\\{");
    if (comma == 0)
      replace(close + 1, "{0" + std::string(body) + "}");
    else
      copy(close + 1);
    // Ruby reads these as a repeat of the repeat, PCRE2 as possessive and lazy.
    if (rest().starts_with('+')) refuse("{n,m}+");
    if (rest().starts_with('?')) refuse("{n,m}?");
  }

  void char_class() {
    if (categories_without()) return;
    copy(1);
    if (rest().starts_with('^')) copy(1);
    class_body();
  }

  /// [\p{Lu}\p{M}&&[^...]], general categories but for what the inner class names: everything except the other
  /// categories and those names, which is one plain class again. (A lookahead before the class would say the
  /// same, but would cost memory for each character of a long word.) Gives whether this was one.
  bool categories_without() {
    std::vector<std::string_view> kept;
    std::size_t end = 1;
    while (rest().substr(end).starts_with("\\p{")) {
      const std::size_t close = rest().find('}', end);
      if (close == std::string_view::npos) return false;
      const std::string_view name = rest().substr(end + 3, close - end - 3);
      if (!is_general_category(name)) return false;
      kept.push_back(name);
      end += name.size() + 4;
    }
    constexpr std::string_view kBut = "&&[^";
    if (kept.empty() || !rest().substr(end).starts_with(kBut)) return false;
    replace(end + kBut.size(), "[^" + other_categories(kept));
    class_body();
    if (!rest().starts_with(']')) refuse("more than one class after &&");
    ++at_;
    return true;
  }

  static bool is_general_category(std::string_view name) {
    return std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
  }

  /// \p{...} for every general category that is neither in `kept` nor a part of one in it.
  static std::string other_categories(const std::vector<std::string_view>& kept) {
    const auto keeps = [&](std::string_view name) {
      return std::find(kept.begin(), kept.end(), name) != kept.end();
    };
    std::string others;
    for (const std::string_view major : kMajors) {
      if (keeps(major)) continue;
      const bool whole = std::none_of(kept.begin(), kept.end(),
                                      [&](std::string_view name) { return name.starts_with(major); });
      for (const std::string_view name : kCategories)
        if (is_general_category(name) && name.starts_with(major) && !keeps(name) &&
            (name.size() == 1) == whole)
          others += "\\p{" + std::string(name) + "}";
    }
    return others;
  }

  /// From the first character of a class on, its ] included.
  void class_body() {
    if (rest().starts_with(']')) refuse("] as the first character of a class");
    bool range = false;      // the last thing written was the '-' of a range
    bool can_range = false;  // ... was a character that a range can start at
    while (true) {
      if (at_ >= in_.size()) refuse("an unfinished class");
      const char c = in_[at_];
      if (c == ']') return copy(1);
      if (c == '[') refuse("a nested class");
      if (rest().starts_with("&&")) refuse("&& in a class");
      if (c == '-') {
        range = can_range && at_ + 1 < in_.size() && in_[at_ + 1] != ']';
        can_range = false;
        replace(1, range ? "-" : "\\-");
      } else if (c == '\\') {
        const bool set = escape(true);
        if (set && range) refuse("a class in a range");
        can_range = !set && !range;
        range = false;
      } else {
        copy(first_utf8(rest()).length);
        can_range = !range;
        range = false;
      }
    }
  }

  /// One escape. Gives whether it stands for a set of characters, not for one.
  bool escape(bool in_class) {
    if (at_ + 1 >= in_.size()) refuse("a backslash at the end");
    const char c = in_[at_ + 1];
    const auto set = [&](std::string_view ranges) {
      replace(2, in_class ? std::string(ranges) : "[" + std::string(ranges) + "]");
      return true;
    };
    switch (c) {
      case 's':
        return set(kSpaces);
      case 'S':
        return set(kNoSpaces);
      case 'd':
        return set("\\p{Nd}");
      case 'D':
        return set("\\P{Nd}");
      case 'p':
      case 'P':
        property();
        return true;
      case 'v':
        replace(2, "\\x{b}");
        return false;
      case 'u':
      case 'x':
        code_point(c);
        return false;
      default:
        break;
    }
    const bool anchor = !in_class && (c == 'A' || c == 'z');
    const bool same = anchor || std::string_view("rntfae").find(c) != std::string_view::npos;
    if ((is_letter(c) || is_digit(c)) && !same) refuse("\\" + std::string(1, c));
    if (static_cast<unsigned char>(c) >= 0x80) refuse("an escaped non-ASCII character");
    copy(2);
    return false;
  }

  /// \xHH below 80, \x{H...}, \uHHHH.
  void code_point(char kind) {
    const bool braces = kind == 'x' && rest().substr(2).starts_with('{');
    const std::size_t begin = braces ? 3 : 2;
    const std::size_t most = braces ? 8 : kind == 'u' ? 4 : 2;
    std::size_t end = begin;
    while (end < rest().size() && end < begin + most && is_hex(rest()[end])) ++end;
    const std::string digits(rest().substr(begin, end - begin));
    const bool closed = !braces || (end < rest().size() && rest()[end] == '}');
    // A two-digit \x from 80 on is a raw byte of UTF-8 to Oniguruma.
    const bool whole = kind == 'u' ? digits.size() == 4 : braces || digits.size() == 1 || digits[0] < '8';
    if (digits.empty() || !closed || !whole) refuse("the escape \\" + std::string(1, kind) + digits);
    replace(end + (braces ? 1 : 0), "\\x{" + digits + "}");
  }

  void property() {
    const std::size_t close = rest().find('}');
    if (!rest().substr(2).starts_with('{') || close == std::string_view::npos) refuse("\\p without {...}");
    bool negated = in_[at_ + 1] == 'P';
    std::string_view name = rest().substr(3, close - 3);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool category = name == "Alphabetic" || is_general_category(name);
    if (!category && (name.size() < 3 || !std::all_of(name.begin(), name.end(), is_letter)))
      refuse("the property " + quote_text(name));
    // Any other name must be a script; unmarked, PCRE2 would take it for the script's extensions.
    replace(close + 1,
            std::string(negated ? "\\P{" : "\\p{") + (category ? "" : "sc:") + std::string(name) + "}");
  }

  std::string_view in_;
  std::size_t at_ = 0;
  std::string out_;
};

struct Deleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
template <class T>
using Owned = std::unique_ptr<T, Deleter>;

template <class T>
Owned<T> own(T* p) {
  if (p == nullptr) fail(ErrorCode::kOutOfMemory, "tokenizer", "PCRE2 could not allocate");
  return Owned<T>(p);
}

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return {text.begin(), std::find(text.begin(), text.end(), PCRE2_UCHAR{0})};
}

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

std::string translate_oniguruma(std::string_view pattern) {
  return Translator(pattern).run();
}

struct Regex::Code {
  /// One call of PCRE2, repeated with more and more steps; its result, the bounds in `data`.
  int match(std::string_view text, std::size_t at, std::uint32_t options, std::int64_t steps,
            pcre2_match_data* data, std::int64_t& steps_left) const {
    const auto limits = own(pcre2_match_context_create(nullptr));
    pcre2_set_heap_limit(limits.get(), kHeapLimitKib);
    while (true) {
      pcre2_set_match_limit(limits.get(),
                            static_cast<std::uint32_t>(std::min<std::int64_t>(steps, UINT32_MAX)));
      const int result = pcre2_match(compiled.get(), units(text), text.size(), at,
                                     options | PCRE2_NO_UTF_CHECK, data, limits.get());
      if (result != PCRE2_ERROR_MATCHLIMIT || steps_left < steps) return result;
      steps_left -= steps;
      steps *= 4;
    }
  }

  /// The first match at or after `at`.
  int search(std::string_view text, std::size_t at, pcre2_match_data* data, std::int64_t& steps_left) const {
    if (has_jit) {
      const std::int64_t steps = kJitSteps + kJitStepsPerByte * static_cast<std::int64_t>(text.size());
      const int result = match(text, at, 0, steps, data, steps_left);
      if (result != PCRE2_ERROR_JIT_STACKLIMIT) return result;
    }
    // The interpreter, start by start: JIT proves quickly that many starts are hopeless, the interpreter
    // takes quadratic time for that, and this way it pays.
    while (true) {
      const int result = match(text, at, PCRE2_ANCHORED | PCRE2_NO_JIT, kInterpreterSteps, data, steps_left);
      if (result != PCRE2_ERROR_NOMATCH || at == text.size()) return result;
      at += first_utf8(text.substr(at)).length;
    }
  }

  std::string pattern;
  Owned<pcre2_code> compiled;
  bool has_jit = false;
};

Regex::Regex(std::string_view pattern, Syntax syntax) : code_(std::make_unique<Code>()) {
  code_->pattern = pattern;
  const std::string translated =
      syntax == Syntax::kLiteral ? std::string(pattern) : translate_oniguruma(pattern);
  const std::uint32_t options =
      syntax == Syntax::kLiteral ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
  const auto context = own(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->compiled.reset(
      pcre2_compile(units(translated), translated.size(), options, &error, &offset, context.get()));
  if (code_->compiled == nullptr)
    fail(ErrorCode::kUnsupported, "tokenizer", "regex ", quote_text(pattern),
         ": PCRE2 says: ", error_text(error), " (at byte ", offset, " of ", quote_text(translated), ")");
  code_->has_jit = pcre2_jit_compile(code_->compiled.get(), PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::int64_t Regex::step_budget(std::size_t text_size) {
  return kStepsPerText + kStepsPerByte * static_cast<std::int64_t>(text_size);
}

void Regex::find_all(std::string_view text, std::vector<Span>& spans, std::int64_t& steps_left) const {
  spans.clear();
  const auto data = own(pcre2_match_data_create(1, nullptr));
  std::size_t at = 0;
  while (at <= text.size()) {
    const int result = code_->search(text, at, data.get(), steps_left);
    if (result == PCRE2_ERROR_NOMATCH) return;
    if (result < 0)
      fail(ErrorCode::kUnsupported, "tokenizer", "regex ", quote_text(code_->pattern), " on a text of ",
           text.size(), " bytes: PCRE2 says: ", error_text(result));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    const Span span{.begin = bounds[0], .end = bounds[1]};
    const bool repeated = span.begin == span.end && !spans.empty() && spans.back().end == span.end;
    if (!repeated) spans.push_back(span);
    at = span.end;
    if (repeated) at += at < text.size() ? first_utf8(text.substr(at)).length : 1;
  }
}

}  // namespace snapmla
