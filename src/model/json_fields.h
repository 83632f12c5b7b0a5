// Typed, range-checked reading of the fields of one JSON object. Every failure names file, field, rule and
// what came. A field that is null counts as missing. Where a file has another name for a field, a list of
// aliases says so, and errors name what the file has.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/check.h"

namespace snapmla {

/// Our name of a field, and the file's; a dot in the latter leads into an object.
struct FieldAlias {
  std::string_view name;
  std::string_view path;
};

class JsonFields {
 public:
  using Aliases = std::span<const FieldAlias>;

  /// `object` and `aliases` must outlive this. `prefix` is the path of the object within the file
  /// ("rope_scaling.").
  JsonFields(std::string file, const nlohmann::json& object, Aliases aliases = {}, std::string prefix = {})
      : file_(std::move(file)), prefix_(std::move(prefix)), object_(&object), aliases_(aliases) {}

  [[nodiscard]] const std::string& file() const { return file_; }

  /// The key is there, null or not.
  [[nodiscard]] bool has_key(const char* name) const { return find(name) != nullptr; }
  /// There is a value other than null.
  [[nodiscard]] bool has(const char* name) const {
    const nlohmann::json* value = find(name);
    return value != nullptr && !value->is_null();
  }
  /// The key must be there, though it may be null.
  void require_key(const char* name) const {
    if (!has_key(name))
      fail(ErrorCode::kCorruptFile, "config", file_, ": field ", label(name), " is missing");
  }
  [[nodiscard]] const nlohmann::json& at(const char* name) const {
    if (!has(name)) fail(ErrorCode::kCorruptFile, "config", file_, ": field ", label(name), " is missing");
    return *find(name);
  }

  [[nodiscard]] int integer(const char* name, std::int64_t low, std::int64_t high) const {
    return integer_of(name, at(name), low, high);
  }
  [[nodiscard]] int integer_or(const char* name, int otherwise, std::int64_t low, std::int64_t high) const {
    return has(name) ? integer(name, low, high) : otherwise;
  }

  /// One element of a list, or the value itself, that must be an integer in [low, high].
  [[nodiscard]] int integer_of(const char* name, const nlohmann::json& value, std::int64_t low,
                               std::int64_t high) const {
    // Values beyond int64 parse as unsigned or float; both fail the comparison below.
    const bool fits =
        value.is_number_integer() &&
        (!value.is_number_unsigned() ||
         value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!fits || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
      refuse(name, value, "must be an integer from ", low, " to ", high);
    }
    return static_cast<int>(value.get<std::int64_t>());
  }

  [[nodiscard]] double number(const char* name, double low, double high) const {
    const nlohmann::json& value = at(name);
    if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
      refuse(name, value, "must be a number from ", low, " to ", high);
    }
    return value.get<double>();
  }
  [[nodiscard]] double number_or(const char* name, double otherwise, double low, double high) const {
    return has(name) ? number(name, low, high) : otherwise;
  }

  [[nodiscard]] bool boolean_or(const char* name, bool otherwise) const {
    if (!has(name)) return otherwise;
    const nlohmann::json& value = at(name);
    if (!value.is_boolean()) refuse(name, value, "must be true or false");
    return value.get<bool>();
  }

  [[nodiscard]] std::string text(const char* name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_string()) refuse(name, value, "must be a string");
    return value.get<std::string>();
  }
  [[nodiscard]] std::string text_or(const char* name, const char* otherwise) const {
    return has(name) ? text(name) : otherwise;
  }

  [[nodiscard]] JsonFields object(const char* name, Aliases aliases = {}) const {
    const nlohmann::json& value = at(name);
    if (!value.is_object()) refuse(name, value, "must be an object");
    return {file_, value, aliases, prefix_ + std::string(path_of(name)) + '.'};
  }

  /// Throws kCorruptFile: the field breaks a rule.
  template <class... Parts>
  [[noreturn]] void refuse(const char* name, const nlohmann::json& value, const Parts&... rule) const {
    fail(ErrorCode::kCorruptFile, "config", file_, ": field ", label(name), ' ', rule..., "; got ",
         shown(value));
  }

  /// Throws kUnsupported: the field is valid, but asks for what this version does not do.
  template <class... Parts>
  [[noreturn]] void unsupported(const char* name, const nlohmann::json& value, const Parts&... rule) const {
    fail(ErrorCode::kUnsupported, "config", file_, ": field ", label(name), ' ', rule..., "; got ",
         shown(value));
  }

 private:
  [[nodiscard]] std::string_view path_of(std::string_view name) const {
    for (const FieldAlias& alias : aliases_) {
      if (alias.name == name) return alias.path;
    }
    return name;
  }

  /// nullptr where there is none.
  [[nodiscard]] const nlohmann::json* find(const char* name) const {
    const nlohmann::json* value = object_;
    std::string_view path = path_of(name);
    while (value->is_object()) {
      const std::size_t dot = path.find('.');
      const auto it = value->find(std::string(path.substr(0, dot)));
      if (it == value->end()) return nullptr;
      if (dot == std::string_view::npos) return &*it;
      value = &*it;
      path.remove_prefix(dot + 1);
    }
    return nullptr;
  }

  [[nodiscard]] std::string label(const char* name) const {
    return '"' + prefix_ + std::string(path_of(name)) + '"';
  }

  static std::string shown(const nlohmann::json& value) {
    constexpr std::size_t kMost = 60;
    std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (text.size() > kMost) text = text.substr(0, kMost) + "...";
    return text;
  }

  std::string file_;
  std::string prefix_;
  const nlohmann::json* object_;
  Aliases aliases_;
};

}  // namespace snapmla
