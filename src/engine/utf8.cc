#include "engine/utf8.h"

#include <cstdint>

namespace snapmla {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

/// What may follow a lead byte: `count` bytes, the first of them in [low, high], the others in [80, BF].
struct Continuation {
  std::size_t count = 0;
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xbf;
};

/// The narrowed ranges keep out overlong forms (E0, F0), surrogates (ED) and code points past 10FFFF (F4).
Continuation continuation(std::uint8_t lead) noexcept {
  if (lead >= 0xc2 && lead <= 0xdf) return {.count = 1};
  if (lead == 0xe0) return {.count = 2, .low = 0xa0};
  if (lead == 0xed) return {.count = 2, .high = 0x9f};
  if (lead >= 0xe1 && lead <= 0xef) return {.count = 2};
  if (lead == 0xf0) return {.count = 3, .low = 0x90};
  if (lead >= 0xf1 && lead <= 0xf3) return {.count = 3};
  if (lead == 0xf4) return {.count = 3, .high = 0x8f};
  return {};
}

/// Appends the text up to its unfinished end, ill-formed parts replaced; gives the bytes consumed.
std::size_t append_finished(std::string_view text, std::string& out) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = first_utf8(text.substr(at));
    if (step.unfinished) break;
    out += step.valid ? text.substr(at, step.length) : kReplacement;
    at += step.length;
  }
  return at;
}

}  // namespace

Utf8Step first_utf8(std::string_view text) noexcept {
  const auto lead = static_cast<std::uint8_t>(text[0]);
  if (lead < 0x80) return {.length = 1, .valid = true};
  const Continuation rule = continuation(lead);
  if (rule.count == 0) return {.length = 1};
  for (std::size_t i = 1; i <= rule.count; ++i) {
    if (i == text.size()) return {.length = i, .unfinished = true};
    const auto byte = static_cast<std::uint8_t>(text[i]);
    const std::uint8_t low = i == 1 ? rule.low : 0x80;
    const std::uint8_t high = i == 1 ? rule.high : 0xbf;
    if (byte < low || byte > high) return {.length = i};
  }
  return {.length = rule.count + 1, .valid = true};
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  if (append_finished(text, out) < text.size()) out += kReplacement;
  return out;
}

std::string take_finished_utf8(std::string& bytes) {
  std::string out;
  bytes.erase(0, append_finished(bytes, out));
  return out;
}

std::string quote_text(std::string_view text) {
  constexpr std::size_t kMost = 80;
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, kMost)) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (byte >= 0x20 && byte != 0x7f)
      out += c;
    else
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 0xf]};
  }
  return replace_invalid_utf8(out) + (text.size() > kMost ? "...\"" : "\"");
}

}  // namespace snapmla
