// Methods of texts, lists and dicts, and the global functions.
#include <algorithm>
#include <array>
#include <ctime>

#include "engine/jinja/builtins.h"
#include "engine/utf8.h"

namespace snapmla::jinja {
namespace {

constexpr std::array<std::string_view, 19> kTextMethods = {
    "split",    "rsplit",       "splitlines",   "strip",   "lstrip",     "rstrip",  "startswith",
    "endswith", "upper",        "lower",        "title",   "capitalize", "replace", "join",
    "find",     "removeprefix", "removesuffix", "isdigit", "count"};
constexpr std::array<std::string_view, 4> kDictMethods = {"items", "keys", "values", "get"};
constexpr std::array<std::string_view, 4> kListMethods = {"append", "pop", "index", "count"};
constexpr std::array<std::string_view, 5> kFunctions = {"range", "namespace", "dict", "raise_exception",
                                                        "strftime_now"};

template <std::size_t kSize>
bool among(const std::array<std::string_view, kSize>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// An argument that must be a text.
const std::string& text_at(Runtime& run, std::string_view method, const Arguments& args, std::size_t index,
                           std::string_view name) {
  const Value* value = args.get(index, name);
  if (value == nullptr || !value->is_text())
    run.error(method, "() needs a string as ", name, "; got ",
              value == nullptr ? "nothing" : value->type_name());
  return value->text();
}

std::int64_t integer_at(Runtime& run, std::string_view method, const Arguments& args, std::size_t index,
                        std::string_view name, std::int64_t otherwise) {
  const Value* value = args.get(index, name);
  if (value == nullptr) return otherwise;
  if (!value->is_int() && !value->is_bool())
    run.error(method, "() needs a whole number as ", name, "; got ", value->type_name());
  return value->integer();
}

/// Whether `text`, a character, is one of `set`.
bool has_character(std::string_view set, std::string_view text) {
  for (std::size_t at = 0; at < set.size();) {
    const std::size_t length = first_utf8(set.substr(at)).length;
    if (set.substr(at, length) == text) return true;
    at += length;
  }
  return false;
}

std::string_view strip(std::string_view text, const std::string* characters, bool left, bool right) {
  const auto first = [&]() -> std::size_t {
    if (characters == nullptr) return space_at_start(text);
    const std::size_t length = text.empty() ? 0 : first_utf8(text).length;
    return has_character(*characters, text.substr(0, length)) ? length : 0;
  };
  const auto last = [&]() -> std::size_t {
    if (characters == nullptr) return space_at_end(text);
    std::size_t length = text.empty() ? 0 : 1;
    while (length < text.size() && (static_cast<unsigned char>(text[text.size() - length]) & 0xc0U) == 0x80U)
      ++length;
    return has_character(*characters, text.substr(text.size() - length)) ? length : 0;
  };
  for (std::size_t size = left ? first() : 0; size > 0; size = first()) text.remove_prefix(size);
  for (std::size_t size = right ? last() : 0; size > 0; size = last()) text.remove_suffix(size);
  return text;
}

/// split() without a separator: words between white space.
std::vector<std::string> words(std::string_view text, std::int64_t most) {
  std::vector<std::string> out;
  while (true) {
    text = strip(text, nullptr, true, false);
    if (text.empty()) return out;
    if (most >= 0 && static_cast<std::int64_t>(out.size()) == most) {
      out.emplace_back(strip(text, nullptr, false, true));
      return out;
    }
    std::size_t end = 0;
    while (end < text.size() && space_at_start(text.substr(end)) == 0)
      end += first_utf8(text.substr(end)).length;
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(end);
  }
}

std::vector<std::string> split_at(std::string_view text, std::string_view separator, std::int64_t most,
                                  bool from_right) {
  std::vector<std::string> out;
  while (most < 0 || static_cast<std::int64_t>(out.size()) < most) {
    const std::size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    const std::size_t after = at + separator.size();
    out.emplace_back(from_right ? text.substr(after) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(after);
  }
  out.emplace_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

/// Lines without their ends: \n, \r\n, \r. (Python knows rarer ones too.)
std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of("\r\n"), text.size());
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(text.size(), end + (text.substr(end).starts_with("\r\n") ? 2 : 1)));
  }
  return out;
}

Value texts(Runtime& run, const std::vector<std::string>& parts) {
  List items;
  for (const std::string& part : parts) items.push_back(run.text(part));
  return run.list(std::move(items));
}

Value split_method(Runtime& run, const std::string& text, std::string_view name, const Arguments& args) {
  run.charge(text.size());
  if (name == "splitlines") return texts(run, split_lines(text));
  const Value* separator = args.get(0, "sep");
  const std::int64_t most = integer_at(run, name, args, 1, "maxsplit", -1);
  if (separator == nullptr || separator->is_none()) {
    if (name == "rsplit" && most >= 0) run.refuse("rsplit() without a separator is not supported");
    return texts(run, words(text, most));
  }
  const std::string& by = text_at(run, name, args, 0, "sep");
  if (by.empty()) run.error("empty separator");
  return texts(run, split_at(text, by, most, name == "rsplit"));
}

/// startswith and endswith take one text or a tuple of them.
bool has_affix(Runtime& run, const std::string& text, std::string_view name, const Arguments& args) {
  const Value* affix = args.get(0, "prefix");
  const auto fits = [&](const Value& value) {
    if (!value.is_text()) run.error(name, "() needs a string; got ", value.type_name());
    return name == "startswith" ? text.starts_with(value.text()) : text.ends_with(value.text());
  };
  if (affix == nullptr) run.error(name, "() needs a string; got nothing");
  if (!affix->is_list()) return fits(*affix);
  return std::any_of(affix->list().begin(), affix->list().end(), fits);
}

Value replace_all(Runtime& run, const std::string& text, const Arguments& args) {
  const std::string& from = text_at(run, "replace", args, 0, "old");
  const std::string& to = text_at(run, "replace", args, 1, "new");
  std::int64_t left = integer_at(run, "replace", args, 2, "count", -1);
  if (from.empty()) run.refuse("replace() of an empty string is not supported");
  std::string out;
  std::size_t at = 0;
  for (; left != 0; --left) {
    const std::size_t found = text.find(from, at);
    if (found == std::string::npos) break;
    run.charge(to.size());
    out.append(text, at, found - at).append(to);
    at = found + from.size();
  }
  return run.text(out.append(text, at, std::string::npos));
}

std::int64_t count_of(std::string_view text, std::string_view part) {
  std::int64_t count = 0;
  for (std::size_t at = text.find(part); !part.empty() && at != std::string_view::npos;
       at = text.find(part, at + part.size()))
    ++count;
  return count;
}

Value text_method(Runtime& run, const std::string& text, std::string_view name, const Arguments& args) {
  if (name == "split" || name == "rsplit" || name == "splitlines") return split_method(run, text, name, args);
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Value* characters = args.get(0, "chars");
    const bool any = characters != nullptr && !characters->is_none();
    const std::string* set = any ? &text_at(run, name, args, 0, "chars") : nullptr;
    return run.text(std::string(strip(text, set, name != "rstrip", name != "lstrip")));
  }
  if (name == "startswith" || name == "endswith") return has_affix(run, text, name, args);
  if (name == "replace") return replace_all(run, text, args);
  if (name == "find") {
    const std::size_t at = text.find(text_at(run, name, args, 0, "sub"));
    return at == std::string::npos
               ? std::int64_t{-1}
               : static_cast<std::int64_t>(count_points(std::string_view{text}.substr(0, at)));
  }
  if (name == "count") return count_of(text, text_at(run, name, args, 0, "sub"));
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& affix = text_at(run, name, args, 0, "prefix");
    if (name == "removeprefix" && text.starts_with(affix)) return run.text(text.substr(affix.size()));
    if (name == "removesuffix" && text.ends_with(affix))
      return run.text(text.substr(0, text.size() - affix.size()));
    return run.text(text);
  }
  if (name == "isdigit")
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (name == "join") {
    const Value* parts = args.get(0, "iterable");
    if (parts == nullptr) run.error("join() needs a list");
    for (const Value& part : iterate(run, *parts))
      if (!part.is_text()) run.error("join() needs strings; got ", part.type_name());
    return apply_filter(run, "join", *parts, {.positional = {run.text(text)}});
  }
  return apply_filter(run, name, run.text(text), args);  // upper, lower, title, capitalize
}

Value list_method(Runtime& run, List& list, std::string_view name, const Arguments& args) {
  const Value* value = args.get(0, "value");
  if (name == "pop") {
    if (list.empty()) run.error("pop from an empty list");
    const auto size = static_cast<std::int64_t>(list.size());
    std::int64_t at = integer_at(run, name, args, 0, "index", -1);
    if (at < 0) at += size;
    if (at < 0 || at >= size) run.error("pop index out of range");
    run.charge(list.size());
    Value out = list[at];
    list.erase(list.begin() + at);
    return out;
  }
  if (value == nullptr) run.error(name, "() needs a value");
  if (name == "append") {
    if (value->nesting() > 0) run.refuse("append() of a list, dict or namespace is not supported");
    run.charge(sizeof(Value));
    list.push_back(*value);
    return None{};
  }
  run.charge(list.size());
  const auto same = [&](const Value& other) { return equal(run, other, *value); };
  if (name == "count") return static_cast<std::int64_t>(std::count_if(list.begin(), list.end(), same));
  const auto found = std::find_if(list.begin(), list.end(), same);
  if (found == list.end()) run.error("the value is not in the list");
  return static_cast<std::int64_t>(found - list.begin());
}

Value dict_method(Runtime& run, const Value& dict, std::string_view name, const Arguments& args) {
  if (name == "get") {
    const Value* key = args.get(0, "key");
    const Value* otherwise = args.get(1, "default");
    if (key == nullptr) run.error("get() needs a key");
    run.charge(dict.dict().size() / 8);
    const Value* found = key->is_text() ? find(dict.dict(), key->text()) : nullptr;
    return found != nullptr ? *found : otherwise != nullptr ? *otherwise : Value(None{});
  }
  List out;
  for (const auto& [key, value] : dict.dict()) {
    if (name == "values")
      out.push_back(value);
    else
      out.push_back(name == "keys" ? run.text(key) : run.list({run.text(key), value}, true));
  }
  return run.list(std::move(out));
}

Value make_range(Runtime& run, const Arguments& args) {
  std::int64_t begin = 0;
  std::int64_t end = integer_at(run, "range", args, 0, "stop", 0);
  if (args.positional.empty() || args.positional.size() > 3)
    run.error("range() needs one to three whole numbers");
  if (args.positional.size() > 1) {
    begin = end;
    end = integer_at(run, "range", args, 1, "stop", 0);
  }
  const std::int64_t step = integer_at(run, "range", args, 2, "step", 1);
  if (step == 0) run.error("range() step must not be zero");
  List out;
  for (std::int64_t at = begin; step > 0 ? at < end : at > end;) {
    run.charge(sizeof(Value));
    out.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return run.list(std::move(out));
}

/// Python's datetime.now().strftime(format).
Value now_as(Runtime& run, const std::string& format) {
  if (format.empty()) return run.text("");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 256> buffer{};
  const std::size_t size = std::strftime(buffer.data(), buffer.size(), format.c_str(), &local);
  return run.text(replace_invalid_utf8({buffer.data(), size}));
}

}  // namespace

bool has_method(const Value& object, std::string_view name) {
  return (object.is_text() && among(kTextMethods, name)) || (object.is_dict() && among(kDictMethods, name)) ||
         (object.is_list() && among(kListMethods, name) &&
          (!object.is_tuple() || (name != "append" && name != "pop")));
}

Value call_method(Runtime& run, const Value& object, std::string_view name, const Arguments& args) {
  if (object.is_text()) return text_method(run, object.text(), name, args);
  if (object.is_list()) return list_method(run, object.list(), name, args);
  return dict_method(run, object, name, args);
}

bool is_function(std::string_view name) {
  return among(kFunctions, name);
}

Value call_function(Runtime& run, std::string_view name, const Arguments& args) {
  if (name == "range") return make_range(run, args);
  if (name == "raise_exception") {
    const Value* message = args.get(0, "message");
    run.error("the template says: ", quote_text(message == nullptr ? "" : to_text(run, *message)));
  }
  if (name == "strftime_now") return now_as(run, text_at(run, name, args, 0, "format"));
  if (!args.positional.empty() && (args.positional.size() > 1 || !args.positional[0].is_dict()))
    run.error(name, "() takes one dict and named values");
  Fields fields = args.positional.empty() ? Fields{} : args.positional[0].dict();
  for (const auto& [key, value] : args.named) {
    const auto found = std::find_if(fields.begin(), fields.end(),
                                    [&name_given = key](const auto& f) { return f.first == name_given; });
    if (found == fields.end())
      fields.emplace_back(key, value);
    else
      found->second = value;
  }
  Value dict = run.dict(std::move(fields));
  return name == "dict" ? std::move(dict)
                        : Value(std::make_shared<Namespace>(Namespace{.fields = dict.dict()}));
}

}  // namespace snapmla::jinja
