// Reading the JSON files of a tokenizer: a value that knows its place, so that every failure names file, field, rule
// and what came. (src/model/json_fields.h does the same for flat config files.)
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "engine/tokenizer_file.h"
#include "engine/utf8.h"

namespace snapmla {

/// A file's bytes. Throws kNotFound, kIo.
[[nodiscard]] std::string read_tokenizer_text(const std::string& path);

/// A file that must hold one JSON object. Throws kNotFound, kIo, kCorruptFile.
[[nodiscard]] nlohmann::json read_json(const std::string& path);

/// A JSON value with the name of its place in the file, for error texts.
class JsonNode {
 public:
  JsonNode(const nlohmann::json& json, const std::string& file, std::string place)
      : json_(&json), file_(&file), place_(std::move(place)) {}

  template <class... Parts>
  [[noreturn]] void corrupt(const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, "tokenizer", *file_, ": ", place_, parts...);
  }
  template <class... Parts>
  [[noreturn]] void unsupported(const Parts&... parts) const {
    fail(ErrorCode::kUnsupported, "tokenizer", *file_, ": ", place_, parts...);
  }

  /// A field that is null or absent is null.
  [[nodiscard]] JsonNode at(const std::string& key) const {
    static const nlohmann::json null;
    const bool plain =
        key.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") == std::string::npos;
    const std::string name = plain ? key : quote_text(key);
    const std::string place = place_.empty() ? name : place_ + "." + name;
    if (json_->is_null()) return {null, *file_, place};
    if (!json_->is_object()) corrupt(" must be an object; got ", json_->type_name());
    const auto found = json_->find(key);
    return {found == json_->end() ? null : *found, *file_, place};
  }
  [[nodiscard]] bool is_null() const { return json_->is_null(); }
  [[nodiscard]] bool is_object() const { return json_->is_object(); }
  [[nodiscard]] bool is_string() const { return json_->is_string(); }
  [[nodiscard]] bool is_array() const { return json_->is_array(); }

  [[nodiscard]] std::string string() const {
    if (!json_->is_string()) corrupt(" must be a string; got ", json_->type_name());
    return json_->get<std::string>();
  }
  [[nodiscard]] bool flag(bool absent) const {
    if (json_->is_null()) return absent;
    if (!json_->is_boolean()) corrupt(" must be true or false; got ", json_->type_name());
    return json_->get<bool>();
  }
  /// A token id, or a number of tokens.
  [[nodiscard]] std::int32_t token_id() const {
    if (!json_->is_number_integer()) corrupt(" must be a token id; got ", json_->type_name());
    const bool big = json_->is_number_unsigned() && json_->get<std::uint64_t>() > kMaxTokenId;
    if (big || json_->get<std::int64_t>() < 0)
      corrupt(" must be a token id from 0 to ", kMaxTokenId, "; got ", json_->dump());
    return json_->get<std::int32_t>();
  }
  [[nodiscard]] std::vector<JsonNode> list() const {
    if (!json_->is_array()) corrupt(" must be an array; got ", json_->type_name());
    std::vector<JsonNode> nodes;
    nodes.reserve(json_->size());
    for (const nlohmann::json& element : *json_)
      nodes.emplace_back(element, *file_, place_ + "[" + std::to_string(nodes.size()) + "]");
    return nodes;
  }
  [[nodiscard]] std::vector<std::pair<std::string, JsonNode>> fields() const {
    if (!json_->is_object()) corrupt(" must be an object; got ", json_->type_name());
    std::vector<std::pair<std::string, JsonNode>> nodes;
    nodes.reserve(json_->size());
    for (const auto& [key, value] : json_->items())
      nodes.emplace_back(key, JsonNode(value, *file_, place_ + "[" + quote_text(key) + "]"));
    return nodes;
  }

 private:
  const nlohmann::json* json_;
  const std::string* file_;
  std::string place_;
};

}  // namespace snapmla
