// Filters and tests.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "engine/jinja/builtins.h"
#include "engine/utf8.h"

namespace snapmla::jinja {
namespace {

using FilterFunction = Value (*)(Runtime&, const Value&, const Arguments&);

template <class T>
struct Named {
  std::string_view name;
  T function;
};

const std::string& need_text(Runtime& run, std::string_view filter, const Value& value) {
  if (value.is_undefined()) run.error(quote_text(value.undefined()), " is undefined");
  if (!value.is_text()) run.error(filter, " needs a string; got ", value.type_name());
  return value.text();
}

bool is_lower(char c) {
  return c >= 'a' && c <= 'z';
}
bool is_upper(char c) {
  return c >= 'A' && c <= 'Z';
}
char to_lower(char c) {
  return is_upper(c) ? static_cast<char>(c + 32) : c;
}
char to_upper(char c) {
  return is_lower(c) ? static_cast<char>(c - 32) : c;
}

/// Text whose case is to be changed or ignored: ASCII only, since roles and names are all that templates do it to.
std::string cased_text(Runtime& run, const Value& value) {
  std::string text = to_text(run, value);
  if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; }))
    run.refuse("upper and lower case beyond ASCII are not supported");
  return text;
}

Value upper(Runtime& run, const Value& value, const Arguments&) {
  std::string text = cased_text(run, value);
  std::transform(text.begin(), text.end(), text.begin(), to_upper);
  return run.text(std::move(text));
}
Value lower(Runtime& run, const Value& value, const Arguments&) {
  std::string text = cased_text(run, value);
  std::transform(text.begin(), text.end(), text.begin(), to_lower);
  return run.text(std::move(text));
}
Value capitalize(Runtime& run, const Value& value, const Arguments& args) {
  std::string text = lower(run, value, args).text();
  if (!text.empty()) text[0] = to_upper(text[0]);
  return run.text(std::move(text));
}
Value title(Runtime& run, const Value& value, const Arguments&) {
  std::string text = cased_text(run, value);
  bool inside = false;
  for (char& c : text) {
    const bool letter = is_lower(c) || is_upper(c);
    c = inside ? to_lower(c) : to_upper(c);
    inside = letter;
  }
  return run.text(std::move(text));
}

Value trim(Runtime& run, const Value& value, const Arguments& args) {
  return call_method(run, run.text(to_text(run, value)), "strip", args);
}
Value replace(Runtime& run, const Value& value, const Arguments& args) {
  return call_method(run, run.text(to_text(run, value)), "replace", args);
}
Value string(Runtime& run, const Value& value, const Arguments&) {
  return run.text(to_text(run, value));
}

Value length(Runtime& run, const Value& value, const Arguments&) {
  if (value.is_text()) return static_cast<std::int64_t>(count_points(value.text()));
  if (value.is_dict()) return static_cast<std::int64_t>(value.dict().size());
  if (value.is_list()) return static_cast<std::int64_t>(value.list().size());
  if (value.is_undefined()) return std::int64_t{0};
  run.error(value.type_name(), " has no length");
}

Value to_list(Runtime& run, const Value& value, const Arguments&) {
  return run.list(iterate(run, value));
}
Value first(Runtime& run, const Value& value, const Arguments&) {
  const List items = iterate(run, value);
  return items.empty() ? Value(Undefined{.what = "first"}) : items.front();
}
Value last(Runtime& run, const Value& value, const Arguments&) {
  const List items = iterate(run, value);
  return items.empty() ? Value(Undefined{.what = "last"}) : items.back();
}
Value reverse(Runtime& run, const Value& value, const Arguments&) {
  List items = iterate(run, value);
  std::reverse(items.begin(), items.end());
  if (!value.is_text()) return run.list(std::move(items));
  std::string text;
  for (const Value& item : items) text += item.text();
  return run.text(std::move(text));
}

/// object.a.b, as the `attribute` of filters says; parts that are numbers index.
Value attribute(Runtime& run, Value object, const Value& path) {
  if (path.is_int()) return item(run, object, path);
  std::string_view rest = need_text(run, "attribute", path);
  while (!rest.empty()) {
    const std::string_view name = rest.substr(0, rest.find('.'));
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
    std::int64_t index = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool number = error == std::errc{} && end == name.data() + name.size();
    object = number ? item(run, object, index) : field(run, object, name);
  }
  return object;
}

Value join(Runtime& run, const Value& value, const Arguments& args) {
  const Value* separator = args.get(0, "d");
  const Value* path = args.get(1, "attribute");
  const std::string between = separator == nullptr ? "" : to_text(run, *separator);
  std::string out;
  bool more = false;
  for (const Value& each : iterate(run, value)) {
    const std::string part = to_text(run, path == nullptr ? each : attribute(run, each, *path));
    run.charge(part.size() + between.size());
    if (std::exchange(more, true)) out += between;
    out += part;
  }
  return run.text(std::move(out));
}

Value defaulted(Runtime&, const Value& value, const Arguments& args) {
  const Value* otherwise = args.get(0, "default_value");
  const Value* boolean = args.get(1, "boolean");
  const bool use = value.is_undefined() || (boolean != nullptr && boolean->truthy() && !value.truthy());
  if (!use) return value;
  return otherwise == nullptr ? Value(std::string()) : *otherwise;
}

Value tojson(Runtime& run, const Value& value, const Arguments& args) {
  JsonStyle style;
  const auto is_true = [&](std::size_t index, const char* name) {
    const Value* flag = args.get(index, name);
    return flag != nullptr && flag->truthy();
  };
  style.ascii = is_true(0, "ensure_ascii");
  style.sorted = is_true(3, "sort_keys");
  if (const Value* indent = args.get(1, "indent"); indent != nullptr && !indent->is_none()) {
    if (!indent->is_int() || indent->integer() < 0 || indent->integer() > 100)
      run.refuse("tojson() with an indent that is not a number from 0 to 100 is not supported");
    style.indent = static_cast<int>(indent->integer());
    style.item_separator = ",";
  }
  if (const Value* separators = args.get(2, "separators"); separators != nullptr && !separators->is_none()) {
    if (!separators->is_list() || separators->list().size() != 2 || !separators->list()[0].is_text() ||
        !separators->list()[1].is_text())
      run.error("tojson() needs two strings as separators");
    style.item_separator = separators->list()[0].text();
    style.key_separator = separators->list()[1].text();
    run.charge((style.item_separator.size() + style.key_separator.size()) * 64);
    if (style.item_separator.size() + style.key_separator.size() > 64)
      run.refuse("tojson() with long separators is not supported");
  }
  return run.text(to_json(run, value, style));
}

Value items_of(Runtime& run, const Value& value, const Arguments& args) {
  if (value.is_undefined()) return run.list({});
  if (!value.is_dict()) run.error("items needs a dict; got ", value.type_name());
  return call_method(run, value, "items", args);
}

std::int64_t parse_int(std::string_view text, std::int64_t otherwise) {
  while (const std::size_t size = space_at_start(text)) text.remove_prefix(size);
  while (const std::size_t size = space_at_end(text)) text.remove_suffix(size);
  if (text.starts_with('+')) text.remove_prefix(1);
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() ? number : otherwise;
}

Value to_int(Runtime&, const Value& value, const Arguments& args) {
  const Value* given = args.get(0, "default");
  const std::int64_t otherwise = given != nullptr && given->is_int() ? given->integer() : 0;
  if (value.is_float())
    return std::fabs(value.number()) < 9e18 ? static_cast<std::int64_t>(value.number()) : otherwise;
  if (value.is_number()) return value.integer();
  return value.is_text() ? parse_int(value.text(), otherwise) : otherwise;
}
Value to_float(Runtime&, const Value& value, const Arguments&) {
  if (value.is_number()) return value.number();
  double number = 0;
  if (!value.is_text()) return number;
  const std::string& text = value.text();
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() ? number : 0.0;
}
Value absolute(Runtime& run, const Value& value, const Arguments&) {
  if (!value.is_number()) run.error("abs needs a number; got ", value.type_name());
  if (value.is_float()) return std::fabs(value.number());
  return calculate(run, "*", value, value.integer() < 0 ? std::int64_t{-1} : std::int64_t{1});
}

/// What sort, unique, min and max compare: texts without their case, as Jinja does by default.
Value sort_key(Runtime& run, const Value& value) {
  return value.is_text() ? lower(run, value, {}) : value;
}

Value unique(Runtime& run, const Value& value, const Arguments&) {
  List seen;
  List out;
  for (const Value& each : iterate(run, value)) {
    Value key = sort_key(run, each);
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& other) { return equal(run, other, key); }))
      continue;
    seen.push_back(std::move(key));
    out.push_back(each);
  }
  return run.list(std::move(out));
}

Value sort(Runtime& run, const Value& value, const Arguments& args) {
  const Value* backwards = args.get(0, "reverse");
  const Value* path = args.get(2, "attribute");
  List items = iterate(run, value);
  const bool down = backwards != nullptr && backwards->truthy();
  const auto key = [&](const Value& each) {
    return sort_key(run, path == nullptr ? each : attribute(run, each, *path));
  };
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    return down ? compare(run, "<", key(b), key(a)) : compare(run, "<", key(a), key(b));
  });
  return run.list(std::move(items));
}

Value map(Runtime& run, const Value& value, const Arguments& args) {
  const Value* path = find(args.named, "attribute");
  List out;
  Arguments rest;
  if (path == nullptr) {
    if (args.positional.empty()) run.error("map needs a filter or an attribute");
    rest.positional.assign(args.positional.begin() + 1, args.positional.end());
  }
  for (const Value& each : iterate(run, value)) {
    run.step();
    out.push_back(path != nullptr ? attribute(run, each, *path)
                                  : apply_filter(run, need_text(run, "map", args.positional[0]), each, rest));
  }
  return run.list(std::move(out));
}

/// select, reject, selectattr, rejectattr: items whose (attribute's) test is `wanted`; without a test, its truth.
Value choose(Runtime& run, const Value& value, const Arguments& args, bool by_attribute, bool wanted) {
  const std::size_t test = by_attribute ? 1 : 0;
  if (by_attribute && args.positional.empty()) run.error("selectattr needs an attribute");
  Arguments rest;
  if (args.positional.size() > test)
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(test) + 1,
                           args.positional.end());
  List out;
  for (const Value& each : iterate(run, value)) {
    run.step();
    const Value subject = by_attribute ? attribute(run, each, args.positional[0]) : each;
    const bool holds = args.positional.size() > test
                           ? apply_test(run, need_text(run, "select", args.positional[test]), subject, rest)
                           : subject.truthy();
    if (holds == wanted) out.push_back(each);
  }
  return run.list(std::move(out));
}

Value indent(Runtime& run, const Value& value, const Arguments& args) {
  const Value* width = args.get(0, "width");
  const Value* first_too = args.get(1, "first");
  if (args.get(2, "blank") != nullptr) run.refuse("indent() with blank is not supported");
  std::string margin(4, ' ');
  if (width != nullptr && width->is_text()) margin = width->text();
  if (width != nullptr && width->is_int()) {
    if (width->integer() > 1000) run.refuse("indent() of more than 1000 is not supported");
    margin.assign(static_cast<std::size_t>(std::max<std::int64_t>(width->integer(), 0)), ' ');
  }
  std::string out = first_too != nullptr && first_too->truthy() ? margin : "";
  const std::string& text = need_text(run, "indent", value);
  for (std::size_t i = 0; i < text.size(); ++i) {
    out += text[i];
    if (text[i] != '\n' || i + 1 == text.size() || text[i + 1] == '\n') continue;  // blank lines stay so
    run.charge(margin.size());
    out += margin;
  }
  return run.text(std::move(out));
}

Value dictsort(Runtime& run, const Value& value, const Arguments& args) {
  if (!args.positional.empty() || !args.named.empty()) run.refuse("dictsort with arguments is not supported");
  const Value by_key = std::int64_t{0};
  return sort(run, items_of(run, value, {}), {.named = {{"attribute", by_key}}});
}

Value total(Runtime& run, const Value& value, const Arguments&) {
  Value sum = std::int64_t{0};
  for (const Value& each : iterate(run, value)) sum = calculate(run, "+", sum, each);
  return sum;
}
Value smallest(Runtime& run, const Value& value, const Arguments&) {
  const List items = iterate(run, value);
  const auto less = [&](const Value& a, const Value& b) {
    return compare(run, "<", sort_key(run, a), sort_key(run, b));
  };
  return items.empty() ? Value(Undefined{.what = "min"})
                       : *std::min_element(items.begin(), items.end(), less);
}
Value largest(Runtime& run, const Value& value, const Arguments&) {
  const List items = iterate(run, value);
  const auto less = [&](const Value& a, const Value& b) {
    return compare(run, "<", sort_key(run, a), sort_key(run, b));
  };
  return items.empty() ? Value(Undefined{.what = "max"})
                       : *std::max_element(items.begin(), items.end(), less);
}

Value same(Runtime&, const Value& value, const Arguments&) {
  return value;
}

constexpr std::array kFilters = {
    Named<FilterFunction>{"abs", absolute},
    Named<FilterFunction>{"capitalize", capitalize},
    Named<FilterFunction>{"count", length},
    Named<FilterFunction>{"d", defaulted},
    Named<FilterFunction>{"default", defaulted},
    Named<FilterFunction>{"dictsort", dictsort},
    Named<FilterFunction>{"first", first},
    Named<FilterFunction>{"float", to_float},
    Named<FilterFunction>{"indent", indent},
    Named<FilterFunction>{"int", to_int},
    Named<FilterFunction>{"items", items_of},
    Named<FilterFunction>{"join", join},
    Named<FilterFunction>{"last", last},
    Named<FilterFunction>{"length", length},
    Named<FilterFunction>{"list", to_list},
    Named<FilterFunction>{"lower", lower},
    Named<FilterFunction>{"map", map},
    Named<FilterFunction>{"max", largest},
    Named<FilterFunction>{"min", smallest},
    Named<FilterFunction>{"reject", [](Runtime& r, const Value& v,
                                       const Arguments& a) { return choose(r, v, a, false, false); }},
    Named<FilterFunction>{"rejectattr", [](Runtime& r, const Value& v,
                                           const Arguments& a) { return choose(r, v, a, true, false); }},
    Named<FilterFunction>{"replace", replace},
    Named<FilterFunction>{"reverse", reverse},
    Named<FilterFunction>{"safe", same},  // nothing is escaped here
    Named<FilterFunction>{"select", [](Runtime& r, const Value& v,
                                       const Arguments& a) { return choose(r, v, a, false, true); }},
    Named<FilterFunction>{"selectattr", [](Runtime& r, const Value& v,
                                           const Arguments& a) { return choose(r, v, a, true, true); }},
    Named<FilterFunction>{"sort", sort},
    Named<FilterFunction>{"string", string},
    Named<FilterFunction>{"sum", total},
    Named<FilterFunction>{"title", title},
    Named<FilterFunction>{"tojson", tojson},
    Named<FilterFunction>{"trim", trim},
    Named<FilterFunction>{"unique", unique},
    Named<FilterFunction>{"upper", upper}};

using TypeTest = bool (*)(const Value&);

constexpr std::array kTypeTests = {
    Named<TypeTest>{"boolean", [](const Value& v) { return v.is_bool(); }},
    Named<TypeTest>{"callable", [](const Value& v) { return v.is_function(); }},
    Named<TypeTest>{"defined", [](const Value& v) { return !v.is_undefined(); }},
    Named<TypeTest>{"false", [](const Value& v) { return v.is_bool() && !v.flag(); }},
    Named<TypeTest>{"float", [](const Value& v) { return v.is_float(); }},
    Named<TypeTest>{"integer", [](const Value& v) { return v.is_int(); }},
    Named<TypeTest>{
        "iterable",
        [](const Value& v) { return v.is_undefined() || v.is_text() || v.is_list() || v.is_dict(); }},
    Named<TypeTest>{"mapping", [](const Value& v) { return v.is_dict(); }},
    Named<TypeTest>{"none", [](const Value& v) { return v.is_none(); }},
    Named<TypeTest>{"number", [](const Value& v) { return v.is_number(); }},
    Named<TypeTest>{
        "sequence",
        [](const Value& v) { return v.is_undefined() || v.is_text() || v.is_list() || v.is_dict(); }},
    Named<TypeTest>{"string", [](const Value& v) { return v.is_text(); }},
    Named<TypeTest>{"true", [](const Value& v) { return v.is_bool() && v.flag(); }},
    Named<TypeTest>{"undefined", [](const Value& v) { return v.is_undefined(); }}};

/// Tests that compare with one argument, and the operator each stands for.
constexpr std::array kComparisons = {
    Named<std::string_view>{"eq", "=="},         Named<std::string_view>{"equalto", "=="},
    Named<std::string_view>{"ge", ">="},         Named<std::string_view>{"gt", ">"},
    Named<std::string_view>{"greaterthan", ">"}, Named<std::string_view>{"in", "in"},
    Named<std::string_view>{"le", "<="},         Named<std::string_view>{"lessthan", "<"},
    Named<std::string_view>{"lt", "<"},          Named<std::string_view>{"ne", "!="}};

template <class T, std::size_t kSize>
const T* look_up(const std::array<Named<T>, kSize>& table, std::string_view name) {
  const auto* const found =
      std::find_if(table.begin(), table.end(), [&](const auto& entry) { return entry.name == name; });
  return found == table.end() ? nullptr : &found->function;
}

}  // namespace

Value apply_filter(Runtime& run, std::string_view name, const Value& value, const Arguments& args) {
  const FilterFunction* filter = look_up(kFilters, name);
  if (filter == nullptr) run.refuse("the filter ", quote_text(name), " is not supported");
  return (*filter)(run, value, args);
}

bool apply_test(Runtime& run, std::string_view name, const Value& value, const Arguments& args) {
  if (const TypeTest* test = look_up(kTypeTests, name)) return (*test)(value);
  const std::string_view* op = look_up(kComparisons, name);
  const Value* other = args.get(0, "other");
  if (op != nullptr) {
    if (other == nullptr) run.error("the test ", name, " needs a value");
    return compare(run, *op, value, *other);
  }
  if (name == "odd" || name == "even") {
    const Value rest = calculate(run, "%", value, std::int64_t{2});
    return rest.truthy() == (name == "odd");
  }
  if (name == "divisibleby") {
    if (other == nullptr) run.error("the test divisibleby needs a number");
    return !calculate(run, "%", value, *other).truthy();
  }
  run.refuse("the test ", quote_text(name), " is not supported");
}

}  // namespace snapmla::jinja
