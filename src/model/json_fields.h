// Typed, range-checked reading of the fields of one JSON object. Every failure names file, field, rule and
// what came. A field that is null counts as missing.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/check.h"

namespace snapmla {

class JsonFields {
 public:
  /// `object` must outlive this. `prefix` is the path of the object within the file ("rope_scaling.").
  JsonFields(std::string file, const nlohmann::json& object, std::string prefix = {})
      : file_(std::move(file)), prefix_(std::move(prefix)), object_(&object) {}

  [[nodiscard]] const std::string& file() const { return file_; }

  /// The key is there, null or not.
  [[nodiscard]] bool has_key(const char* name) const { return object_->contains(name); }
  /// There is a value other than null.
  [[nodiscard]] bool has(const char* name) const {
    const auto it = object_->find(name);
    return it != object_->end() && !it->is_null();
  }
  /// The key must be there, though it may be null.
  void require_key(const char* name) const {
    if (!has_key(name))
      fail(ErrorCode::kCorruptFile, "config", file_, ": field ", label(name), " is missing");
  }
  [[nodiscard]] const nlohmann::json& at(const char* name) const {
    if (!has(name)) fail(ErrorCode::kCorruptFile, "config", file_, ": field ", label(name), " is missing");
    return object_->at(name);
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

  [[nodiscard]] JsonFields object(const char* name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_object()) refuse(name, value, "must be an object");
    return {file_, value, prefix_ + name + '.'};
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
  [[nodiscard]] std::string label(const char* name) const { return '"' + prefix_ + name + '"'; }

  static std::string shown(const nlohmann::json& value) {
    constexpr std::size_t kMost = 60;
    std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (text.size() > kMost) text = text.substr(0, kMost) + "...";
    return text;
  }

  std::string file_;
  std::string prefix_;
  const nlohmann::json* object_;
};

}  // namespace snapmla
