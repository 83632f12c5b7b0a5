#include "engine/jinja/value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "engine/jinja/runtime.h"
#include "engine/utf8.h"

namespace snapmla::jinja {
namespace {

constexpr std::string_view kHex = "0123456789abcdef";

/// What str.isspace() holds for, beyond ASCII.
constexpr std::array<std::string_view, 19> kWideSpaces = {
    "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
    "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
    "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
    "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

bool is_narrow_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f');
}

/// repr(float): the shortest digits that read back the same, an exponent below 1e-4 and from 1e16 on.
std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  const double size = std::fabs(number);
  const bool plain = number == 0 || (size >= 1e-4 && size < 1e16);
  std::array<char, 64> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string text(buffer.data(), end);
  if (plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

/// repr(str). Characters beyond ASCII count as printable but for C1 controls, no-break space and soft hyphen.
std::string text_repr(std::string_view text) {
  const char quote =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0U;
    if (text[i] == quote || text[i] == '\\')
      out += {'\\', text[i]};
    else if (text[i] == '\n')
      out += "\\n";
    else if (text[i] == '\r')
      out += "\\r";
    else if (text[i] == '\t')
      out += "\\t";
    else if (byte < 0x20 || byte == 0x7f)
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 0xf]};
    else if (byte == 0xc2 && (next <= 0xa0 || next == 0xad))
      out += {'\\', 'x', kHex[next >> 4], kHex[text[++i] & 0xf]};
    else
      out += text[i];
  }
  return out + quote;
}

/// str() of all but texts, lists and dicts.
std::string scalar_text(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.flag() ? "True" : "False";
  if (value.is_int()) return std::to_string(value.integer());
  if (value.is_float()) return float_text(value.number());
  return value.is_namespace() ? "<Namespace>" : "<function>";
}

void write_repr(Runtime& run, const Value& value, std::string& out) {
  const auto add = [&](const std::string& text) {
    run.charge(text.size());
    out += text;
  };
  if (value.is_text()) {
    add(text_repr(value.text()));
  } else if (value.is_list()) {
    add(value.is_tuple() ? "(" : "[");
    for (std::size_t i = 0; i < value.list().size(); ++i) {
      if (i > 0) add(", ");
      write_repr(run, value.list()[i], out);
    }
    add(!value.is_tuple() ? "]" : value.list().size() == 1 ? ",)" : ")");
  } else if (value.is_dict()) {
    add("{");
    for (std::size_t i = 0; i < value.dict().size(); ++i) {
      add((i > 0 ? ", " : "") + text_repr(value.dict()[i].first) + ": ");
      write_repr(run, value.dict()[i].second, out);
    }
    add("}");
  } else {
    add(value.is_undefined() ? "Undefined" : scalar_text(value));
  }
}

/// \uXXXX, in two halves beyond the first plane.
void write_escape(std::uint32_t point, std::string& out) {
  if (point >= 0x10000) {
    write_escape(0xd800 + ((point - 0x10000) >> 10), out);
    return write_escape(0xdc00 + ((point - 0x10000) & 0x3ff), out);
  }
  out += {'\\', 'u', kHex[point >> 12], kHex[point >> 8 & 0xf], kHex[point >> 4 & 0xf], kHex[point & 0xf]};
}

void write_json_text(std::string_view text, bool ascii, std::string& out) {
  out += '"';
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    const std::size_t length = first_utf8(text.substr(i)).length;
    const auto byte = static_cast<unsigned char>(c);
    constexpr std::string_view kFrom = "\"\\\n\r\t\b\f";
    constexpr std::string_view kTo = "\"\\nrtbf";
    if (const std::size_t special = kFrom.find(c); special != std::string_view::npos) {
      out += {'\\', kTo[special]};
    } else if (byte < 0x20 || (byte == 0x7f && ascii)) {
      write_escape(byte, out);
    } else if (byte < 0x80 || !ascii) {
      out += text.substr(i, length);
    } else {
      std::uint32_t point = byte & (0x7fU >> length);
      for (std::size_t k = 1; k < length; ++k)
        point = point << 6 | (static_cast<unsigned char>(text[i + k]) & 0x3fU);
      write_escape(point, out);
    }
    i += length;
  }
  out += '"';
}

class JsonWriter {
 public:
  JsonWriter(Runtime& run, const JsonStyle& style, std::string& out)
      : run_(&run), style_(&style), out_(&out) {}

  void write(const Value& value, int level) {
    run_->charge(1 + (value.is_text() ? value.text().size() : 0));
    if (value.is_text()) {
      write_json_text(value.text(), style_->ascii, *out_);
    } else if (value.is_list()) {
      bracket('[', ']', value.list().size(), level,
              [&](std::size_t i) { write(value.list()[i], level + 1); });
    } else if (value.is_dict()) {
      std::vector<const Fields::value_type*> fields;
      for (const auto& field : value.dict()) fields.push_back(&field);
      if (style_->sorted)
        std::stable_sort(fields.begin(), fields.end(), [](auto* a, auto* b) { return a->first < b->first; });
      bracket('{', '}', fields.size(), level, [&](std::size_t i) {
        run_->charge(fields[i]->first.size());
        write_json_text(fields[i]->first, style_->ascii, *out_);
        *out_ += style_->key_separator;
        write(fields[i]->second, level + 1);
      });
    } else if (value.is_none()) {
      *out_ += "null";
    } else if (value.is_bool()) {
      *out_ += value.flag() ? "true" : "false";
    } else if (value.is_float() && !std::isfinite(value.number())) {
      *out_ += std::isnan(value.number()) ? "NaN" : value.number() > 0 ? "Infinity" : "-Infinity";
    } else if (value.is_number()) {
      *out_ += scalar_text(value);
    } else {
      run_->error("Object of type ", value.type_name(), " is not JSON serializable");
    }
  }

 private:
  template <class Item>
  void bracket(char open, char close, std::size_t count, int level, const Item& item) {
    *out_ += open;
    for (std::size_t i = 0; i < count; ++i) {
      if (i > 0) *out_ += style_->item_separator;
      new_line(level + 1);
      item(i);
    }
    if (count > 0) new_line(level);
    *out_ += close;
  }
  void new_line(int level) {
    if (style_->indent < 0) return;
    const std::size_t width = static_cast<std::size_t>(style_->indent) * static_cast<std::size_t>(level);
    run_->charge(width);
    out_->append(1, '\n').append(width, ' ');
  }
  Runtime* run_;
  const JsonStyle* style_;
  std::string* out_;
};

}  // namespace

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (is_text()) return !text().empty();
  if (is_list()) return !list().empty();
  if (is_dict()) return !dict().empty();
  return true;
}

int Value::nesting() const {
  if (is_list()) return std::get<std::shared_ptr<ListObject>>(data_)->nesting;
  if (is_dict()) return std::get<std::shared_ptr<const DictObject>>(data_)->nesting;
  return is_namespace() || is_function() ? kMaxNesting : 0;
}

const char* Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_text()) return "str";
  if (is_list()) return is_tuple() ? "tuple" : "list";
  if (is_dict()) return "dict";
  return is_namespace() ? "Namespace" : "function";
}

const Value* find(const Fields& fields, std::string_view key) {
  const auto found =
      std::find_if(fields.begin(), fields.end(), [&](const auto& field) { return field.first == key; });
  return found == fields.end() ? nullptr : &found->second;
}

bool equal(Runtime& run, const Value& a, const Value& b) {
  run.charge(1);
  if (a.is_number() && b.is_number())
    return a.is_float() || b.is_float() ? a.number() == b.number() : a.integer() == b.integer();
  if (a.is_text() && b.is_text()) return a.text() == b.text();
  if (a.is_list() && b.is_list())
    return a.is_tuple() == b.is_tuple() &&
           std::equal(a.list().begin(), a.list().end(), b.list().begin(), b.list().end(),
                      [&](const Value& x, const Value& y) { return equal(run, x, y); });
  if (a.is_dict() && b.is_dict())
    return a.dict().size() == b.dict().size() &&
           std::all_of(a.dict().begin(), a.dict().end(), [&](const auto& field) {
             run.charge(b.dict().size());
             const Value* other = find(b.dict(), field.first);
             return other != nullptr && equal(run, field.second, *other);
           });
  if (a.is_namespace() && b.is_namespace()) return &a.space() == &b.space();
  if (a.is_function() && b.is_function()) return &a.function() == &b.function();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

std::string to_text(Runtime& run, const Value& value) {
  if (value.is_text()) return value.text();
  if (!value.is_list() && !value.is_dict()) return scalar_text(value);
  std::string out;
  write_repr(run, value, out);
  return out;
}

std::string to_json(Runtime& run, const Value& value, const JsonStyle& style) {
  std::string out;
  JsonWriter(run, style, out).write(value, 0);
  return out;
}

std::size_t count_points(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

std::size_t space_at_start(std::string_view text) {
  if (text.empty()) return 0;
  if (is_narrow_space(text.front())) return 1;
  for (const std::string_view space : kWideSpaces)
    if (text.starts_with(space)) return space.size();
  return 0;
}

std::size_t space_at_end(std::string_view text) {
  if (text.empty()) return 0;
  if (is_narrow_space(text.back())) return 1;
  for (const std::string_view space : kWideSpaces)
    if (text.ends_with(space)) return space.size();
  return 0;
}

}  // namespace snapmla::jinja
