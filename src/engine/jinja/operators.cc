// Operators, subscripts and iteration.
#include <algorithm>
#include <cmath>

#include "engine/jinja/builtins.h"
#include "engine/utf8.h"

namespace snapmla::jinja {
namespace {

[[noreturn]] void refuse_operands(Runtime& run, std::string_view op, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right})
    if (value->is_undefined()) run.error(quote_text(value->undefined()), " is undefined");
  run.error("operator ", op, " does not take ", left.type_name(), " and ", right.type_name());
}

std::int64_t checked(Runtime& run, bool overflow, std::int64_t result) {
  if (overflow) run.refuse("a whole number of more than 63 bits");
  return result;
}

std::int64_t integer_power(Runtime& run, std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  for (; exponent > 0; --exponent) {
    if (result == 0 || base == 1) return result;
    if (base == -1) return exponent % 2 == 0 ? result : -result;
    std::int64_t product = 0;
    const bool overflow = __builtin_mul_overflow(result, base, &product);
    result = checked(run, overflow, product);
  }
  return result;
}

Value integer_result(Runtime& run, std::string_view op, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (op == "+") {
    const bool overflow = __builtin_add_overflow(a, b, &result);
    return checked(run, overflow, result);
  }
  if (op == "-") {
    const bool overflow = __builtin_sub_overflow(a, b, &result);
    return checked(run, overflow, result);
  }
  if (op == "*") {
    const bool overflow = __builtin_mul_overflow(a, b, &result);
    return checked(run, overflow, result);
  }
  if (op == "**")
    return b < 0 ? Value(std::pow(static_cast<double>(a), static_cast<double>(b))) : integer_power(run, a, b);
  if (b == 0) run.error("division by zero");
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  checked(run, b == -1 && a == INT64_MIN, 0);
  const std::int64_t remainder = a % b;
  const bool below = remainder != 0 && (remainder < 0) != (b < 0);  // Python rounds towards minus infinity
  if (op == "//") return a / b - (below ? 1 : 0);
  return remainder + (below ? b : 0);
}

Value float_result(Runtime& run, std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) run.error("division by zero");
  if (op == "/") return a / b;
  if (op == "//") return std::floor(a / b);
  const double remainder = std::fmod(a, b);
  return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

/// text * count or list * count.
Value repeat(Runtime& run, const Value& value, std::int64_t count) {
  count = std::max<std::int64_t>(count, 0);
  const std::size_t size = value.is_text() ? value.text().size() : value.list().size() * sizeof(Value);
  // Charged first: what is too much must not be made.
  if (size > 0 && static_cast<std::size_t>(count) > (std::size_t{1} << 40U) / size)
    run.charge(std::size_t{1} << 40U);
  run.charge(size * static_cast<std::size_t>(count));
  if (size == 0) count = 0;
  if (value.is_text()) {
    std::string out;
    for (; count > 0; --count) out += value.text();
    return run.text(std::move(out));
  }
  List out;
  for (; count > 0; --count) out.insert(out.end(), value.list().begin(), value.list().end());
  return run.list(std::move(out), value.is_tuple());
}

/// -1, 0, 1, as Python orders what it can order.
int order(Runtime& run, std::string_view op, const Value& a, const Value& b) {
  run.charge(1);
  if (a.is_number() && b.is_number()) {
    if (!a.is_float() && !b.is_float())
      return a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
    return a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
  }
  if (a.is_text() && b.is_text()) {
    const int result = a.text().compare(b.text());  // UTF-8 sorts as its code points do
    return result < 0 ? -1 : result > 0 ? 1 : 0;
  }
  if (!a.is_list() || !b.is_list()) refuse_operands(run, op, a, b);
  for (std::size_t i = 0; i < std::min(a.list().size(), b.list().size()); ++i)
    if (const int result = order(run, op, a.list()[i], b.list()[i]); result != 0) return result;
  return a.list().size() < b.list().size() ? -1 : a.list().size() > b.list().size() ? 1 : 0;
}

bool contains(Runtime& run, const Value& item, const Value& container) {
  if (container.is_undefined()) return false;
  if (container.is_text()) {
    if (!item.is_text()) run.error("'in <string>' requires a string on its left, got ", item.type_name());
    run.charge(container.text().size() / 16);
    return container.text().find(item.text()) != std::string::npos;
  }
  if (container.is_list()) {
    run.charge(container.list().size());
    return std::any_of(container.list().begin(), container.list().end(),
                       [&](const Value& v) { return equal(run, v, item); });
  }
  if (!container.is_dict())
    run.error("operator in does not take ", item.type_name(), " and ", container.type_name());
  run.charge(container.dict().size());
  return item.is_text() && find(container.dict(), item.text()) != nullptr;
}

/// The bytes of code points [begin, end) of a text.
std::string_view points(std::string_view text, std::size_t begin, std::size_t end) {
  std::size_t at = 0;
  const auto advance = [&](std::size_t count) {
    for (; count > 0; --count) at += first_utf8(text.substr(at)).length;
    return at;
  };
  const std::size_t first = advance(begin);
  return text.substr(first, advance(end - begin) - first);
}

std::int64_t bound(Runtime& run, const Value& value, std::int64_t otherwise) {
  if (value.is_none()) return otherwise;
  if (!value.is_int() && !value.is_bool())
    run.error("slice bounds must be whole numbers; got ", value.type_name());
  return value.integer();
}

}  // namespace

Value calculate(Runtime& run, std::string_view op, const Value& left, const Value& right) {
  if (op == "~") {
    const std::string a = to_text(run, left);
    run.charge(a.size());
    return run.text(a + to_text(run, right));
  }
  if (left.is_number() && right.is_number())
    return left.is_float() || right.is_float() ? float_result(run, op, left.number(), right.number())
                                               : integer_result(run, op, left.integer(), right.integer());
  if (op == "+" && left.is_text() && right.is_text()) return run.text(left.text() + right.text());
  if (op == "+" && left.is_list() && right.is_list() && left.is_tuple() == right.is_tuple()) {
    List items = left.list();
    items.insert(items.end(), right.list().begin(), right.list().end());
    return run.list(std::move(items), left.is_tuple());
  }
  const bool left_counts = left.is_int() || left.is_bool();
  const bool right_counts = right.is_int() || right.is_bool();
  if (op == "*" && (left.is_text() || left.is_list()) && right_counts)
    return repeat(run, left, right.integer());
  if (op == "*" && (right.is_text() || right.is_list()) && left_counts)
    return repeat(run, right, left.integer());
  if (op == "%" && left.is_text()) run.refuse("formatting a string with % is not supported");
  refuse_operands(run, op, left, right);
}

bool compare(Runtime& run, std::string_view op, const Value& left, const Value& right) {
  if (op == "==") return equal(run, left, right);
  if (op == "!=") return !equal(run, left, right);
  if (op == "in") return contains(run, left, right);
  if (op == "not in") return !contains(run, left, right);
  const bool nan =
      (left.is_float() && std::isnan(left.number())) || (right.is_float() && std::isnan(right.number()));
  const int result = order(run, op, left, right);
  if (nan) return false;
  return op == "<" ? result < 0 : op == "<=" ? result <= 0 : op == ">" ? result > 0 : result >= 0;
}

Value slice(Runtime& run, const Value& object, const Value& begin, const Value& end, const Value& step) {
  if (!object.is_text() && !object.is_list()) {
    if (object.is_undefined()) run.error(quote_text(object.undefined()), " is undefined");
    run.error(object.type_name(), " cannot be sliced");
  }
  const std::int64_t stride = bound(run, step, 1);
  if (stride == 0) run.error("slice step cannot be zero");
  const auto size =
      static_cast<std::int64_t>(object.is_text() ? count_points(object.text()) : object.list().size());
  run.charge(object.is_text() ? object.text().size() / 16 : 0);
  const auto clip = [&](std::int64_t at) {
    if (at < 0) at = at < -size ? -1 : at + size;
    return stride > 0 ? std::clamp<std::int64_t>(at, 0, size) : std::clamp<std::int64_t>(at, -1, size - 1);
  };
  const std::int64_t from = begin.is_none() ? (stride > 0 ? 0 : size - 1) : clip(bound(run, begin, 0));
  const std::int64_t to = end.is_none() ? (stride > 0 ? size : -1) : clip(bound(run, end, 0));
  if (object.is_text() && stride == 1)
    return run.text(from < to ? std::string(points(object.text(), from, to)) : std::string());
  const List items = object.is_text() ? iterate(run, object) : object.list();
  List out;
  for (std::int64_t at = from; stride > 0 ? at < to : at > to;) {
    out.push_back(items[at]);
    if (__builtin_add_overflow(at, stride, &at)) break;
  }
  if (object.is_list()) return run.list(std::move(out), object.is_tuple());
  std::string text;
  for (const Value& character : out) text += character.text();
  return run.text(std::move(text));
}

Value item(Runtime& run, const Value& object, const Value& index) {
  const Undefined missing{.what = to_text(run, index)};
  if (object.is_undefined()) run.error(quote_text(object.undefined()), " is undefined");
  if ((object.is_dict() || object.is_namespace()) && index.is_text()) return field(run, object, index.text());
  if ((!object.is_list() && !object.is_text()) || (!index.is_int() && !index.is_bool())) return missing;
  const auto size =
      static_cast<std::int64_t>(object.is_text() ? count_points(object.text()) : object.list().size());
  const std::int64_t at = index.integer() < 0 ? index.integer() + size : index.integer();
  if (at < 0 || at >= size) return missing;
  if (object.is_list()) return object.list()[at];
  run.charge(object.text().size() / 16);
  return run.text(std::string(points(object.text(), at, at + 1)));
}

Value field(Runtime& run, const Value& object, std::string_view name) {
  const Undefined missing{.what = std::string(name)};
  if (object.is_undefined()) run.error(quote_text(object.undefined()), " is undefined");
  if (!object.is_dict() && !object.is_namespace()) return missing;
  const Fields& fields = object.is_dict() ? object.dict() : object.space();
  run.charge(fields.size() / 8);
  const Value* found = find(fields, name);
  return found == nullptr ? missing : *found;
}

List iterate(Runtime& run, const Value& value) {
  List items;
  if (value.is_list()) {
    items = value.list();
  } else if (value.is_dict()) {
    for (const auto& [key, unused] : value.dict()) items.push_back(run.text(key));
  } else if (value.is_text()) {
    const std::string& text = value.text();
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = first_utf8(std::string_view{text}.substr(at)).length;
      items.push_back(run.text(text.substr(at, length)));
      at += length;
    }
  } else if (!value.is_undefined()) {
    run.error(value.type_name(), " is not iterable");
  }
  run.charge(items.size() * sizeof(Value));
  return items;
}

}  // namespace snapmla::jinja
