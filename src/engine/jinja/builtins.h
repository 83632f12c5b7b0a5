// The filters, tests, methods and functions that chat templates use, as in Jinja and Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/jinja/runtime.h"

namespace snapmla::jinja {

/// value | name(arguments). Throws kUnsupported for a filter that is not here.
[[nodiscard]] Value apply_filter(Runtime& run, std::string_view name, const Value& value,
                                 const Arguments& args);

/// value is name(arguments).
[[nodiscard]] bool apply_test(Runtime& run, std::string_view name, const Value& value, const Arguments& args);

/// Whether object.name is a method that call_method knows.
[[nodiscard]] bool has_method(const Value& object, std::string_view name);
[[nodiscard]] Value call_method(Runtime& run, const Value& object, std::string_view name,
                                const Arguments& args);

/// range, namespace, dict, raise_exception, strftime_now.
[[nodiscard]] bool is_function(std::string_view name);
[[nodiscard]] Value call_function(Runtime& run, std::string_view name, const Arguments& args);

/// What a loop goes over: a list's items, a dict's keys, a text's characters, nothing if undefined.
[[nodiscard]] List iterate(Runtime& run, const Value& value);

/// object.name as a template's filters mean it: fields of a dict or namespace; undefined if there is none.
[[nodiscard]] Value field(Runtime& run, const Value& object, std::string_view name);

/// left + right, -, *, /, //, %, **, ~.
[[nodiscard]] Value calculate(Runtime& run, std::string_view op, const Value& left, const Value& right);
/// ==, !=, <, <=, >, >=, in, not in.
[[nodiscard]] bool compare(Runtime& run, std::string_view op, const Value& left, const Value& right);

/// object[begin:end:step], absent bounds none.
[[nodiscard]] Value slice(Runtime& run, const Value& object, const Value& begin, const Value& end,
                          const Value& step);
/// object[index] for lists and texts; undefined where there is none.
[[nodiscard]] Value item(Runtime& run, const Value& object, const Value& index);

}  // namespace snapmla::jinja
