// Values of a template, as Python has them: undefined, none, booleans, integers, floats, text, lists, dicts, namespaces
// and functions. Text is UTF-8 and shared, so copying a value is cheap; lists are shared too, as append() and pop() show.
//
// No value can hold itself, and nesting is bounded (kMaxNesting), so that values can be compared, printed and freed by
// recursion: containers are made by Runtime, which checks, dicts never change, and append() takes no container.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace snapmla::jinja {

inline constexpr int kMaxNesting = 100;

class Value;
class Runtime;    // runtime.h
struct Function;  // runtime.h
using List = std::vector<Value>;
using Fields = std::vector<std::pair<std::string, Value>>;  ///< in order of insertion; keys are distinct

/// A name or attribute that is not there; `what` says which, for the error of who uses it.
struct Undefined {
  std::string what;
};
struct None {};
struct ListObject {
  List items;
  int nesting = 1;
  bool tuple = false;  ///< prints in parentheses, equals no list, never changes
};
struct DictObject {
  Fields fields;
  int nesting = 1;
};
struct Namespace {
  Fields fields;
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(None none) : data_(none) {}
  Value(bool flag) : data_(flag) {}
  Value(std::int64_t number) : data_(number) {}
  Value(double number) : data_(number) {}
  Value(std::string text) : data_(std::make_shared<const std::string>(std::move(text))) {}
  Value(std::shared_ptr<ListObject> list) : data_(std::move(list)) {}
  Value(std::shared_ptr<const DictObject> dict) : data_(std::move(dict)) {}
  Value(std::shared_ptr<Namespace> fields) : data_(std::move(fields)) {}
  Value(std::shared_ptr<const Function> function) : data_(std::move(function)) {}

  [[nodiscard]] bool is_undefined() const { return holds<Undefined>(); }
  [[nodiscard]] bool is_none() const { return holds<None>(); }
  [[nodiscard]] bool is_bool() const { return holds<bool>(); }
  [[nodiscard]] bool is_int() const { return holds<std::int64_t>(); }
  [[nodiscard]] bool is_float() const { return holds<double>(); }
  [[nodiscard]] bool is_number() const { return is_int() || is_float() || is_bool(); }
  [[nodiscard]] bool is_text() const { return holds<Text>(); }
  [[nodiscard]] bool is_list() const { return holds<std::shared_ptr<ListObject>>(); }
  [[nodiscard]] bool is_tuple() const {
    return is_list() && std::get<std::shared_ptr<ListObject>>(data_)->tuple;
  }
  [[nodiscard]] bool is_dict() const { return holds<std::shared_ptr<const DictObject>>(); }
  [[nodiscard]] bool is_namespace() const { return holds<std::shared_ptr<Namespace>>(); }
  [[nodiscard]] bool is_function() const { return holds<std::shared_ptr<const Function>>(); }

  // Each for a value of that kind only.
  [[nodiscard]] const std::string& undefined() const { return std::get<Undefined>(data_).what; }
  [[nodiscard]] bool flag() const { return std::get<bool>(data_); }
  [[nodiscard]] const std::string& text() const { return *std::get<Text>(data_); }
  [[nodiscard]] List& list() const { return std::get<std::shared_ptr<ListObject>>(data_)->items; }
  [[nodiscard]] const Fields& dict() const {
    return std::get<std::shared_ptr<const DictObject>>(data_)->fields;
  }
  [[nodiscard]] Fields& space() const { return std::get<std::shared_ptr<Namespace>>(data_)->fields; }
  [[nodiscard]] const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }
  /// An int or bool.
  [[nodiscard]] std::int64_t integer() const {
    return is_bool() ? (flag() ? 1 : 0) : std::get<std::int64_t>(data_);
  }
  /// Any number.
  [[nodiscard]] double number() const {
    return is_float() ? std::get<double>(data_) : static_cast<double>(integer());
  }

  [[nodiscard]] bool truthy() const;
  /// How deep containers lie in this one; a namespace or function counts as too deep for any.
  [[nodiscard]] int nesting() const;
  /// As in Python's errors: "str", "NoneType".
  [[nodiscard]] const char* type_name() const;

 private:
  using Text = std::shared_ptr<const std::string>;
  template <class T>
  [[nodiscard]] bool holds() const {
    return std::holds_alternative<T>(data_);
  }
  std::variant<Undefined, None, bool, std::int64_t, double, Text, std::shared_ptr<ListObject>,
               std::shared_ptr<const DictObject>, std::shared_ptr<Namespace>, std::shared_ptr<const Function>>
      data_;
};

/// Null if there is no such key.
[[nodiscard]] const Value* find(const Fields& fields, std::string_view key);

// A list may hold another many times over, so that what it spells out is far larger than itself: these three charge `run`
// as they go.

/// Python's ==.
[[nodiscard]] bool equal(Runtime& run, const Value& a, const Value& b);

/// Python's str(): what {{ value }} prints.
[[nodiscard]] std::string to_text(Runtime& run, const Value& value);

struct JsonStyle {
  bool ascii = false;  ///< other characters as \uXXXX
  int indent = -1;     ///< spaces a level; -1: all on one line
  bool sorted = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

/// Python's json.dumps(). What JSON has not is the template's error.
[[nodiscard]] std::string to_json(Runtime& run, const Value& value, const JsonStyle& style);

/// Code points of valid UTF-8.
[[nodiscard]] std::size_t count_points(std::string_view text);

/// Bytes of the white space (str.isspace) at the start of `text`, one character; 0 if it starts otherwise.
[[nodiscard]] std::size_t space_at_start(std::string_view text);
[[nodiscard]] std::size_t space_at_end(std::string_view text);

}  // namespace snapmla::jinja
