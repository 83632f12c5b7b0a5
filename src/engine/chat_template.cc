#include "engine/chat_template.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/jinja/interpreter.h"
#include "engine/jinja/parser.h"
#include "engine/json_node.h"

namespace snapmla {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

/// A token is a string or an object with `content`.
std::optional<std::string> token_text(const JsonNode& node) {
  if (node.is_string()) return node.string();
  if (node.is_object() && node.at("content").is_string()) return node.at("content").string();
  return std::nullopt;
}

ordered_json read_tokens(const std::string& dir) {
  ordered_json variables = ordered_json::object();
  const std::string path = dir + "/tokenizer_config.json";
  if (!exists(path)) return variables;
  const json config = read_json(path);
  const JsonNode root(config, path, "");
  for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"})
    if (const auto text = token_text(root.at(name))) variables[name] = *text;
  return variables;
}

/// The text at `chat_template`: a string, or the one named "default" of a list.
std::optional<std::string> template_text(const JsonNode& node) {
  if (node.is_null()) return std::nullopt;
  if (node.is_string()) return node.string();
  for (const JsonNode& entry : node.list())
    if (entry.at("name").string() == "default") return entry.at("template").string();
  node.corrupt(" has no template named \"default\"");
}

}  // namespace

struct ChatTemplate::Impl {
  std::string name;
  jinja::Body body;
  ordered_json variables = ordered_json::object();
};

ChatTemplate::ChatTemplate(std::string_view source, std::string name) : impl_(std::make_unique<Impl>()) {
  impl_->name = std::move(name);
  impl_->body = jinja::parse(source, impl_->name);
}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::optional<ChatTemplate> ChatTemplate::load(const std::string& dir) {
  std::optional<ChatTemplate> found;
  const std::string own = dir + "/chat_template.jinja";
  if (exists(own)) found.emplace(read_tokenizer_text(own), own);
  for (const char* file : {"/chat_template.json", "/tokenizer_config.json"}) {
    const std::string path = dir + file;
    if (found || !exists(path)) continue;
    const json config = read_json(path);
    if (const auto text = template_text(JsonNode(config, path, "").at("chat_template")))
      found.emplace(*text, path + ": chat_template");
  }
  if (found) found->use_tokens_of(dir);
  return found;
}

void ChatTemplate::use_tokens_of(const std::string& dir) {
  impl_->variables = read_tokens(dir);
}

std::string ChatTemplate::render(const ordered_json& variables) const {
  ordered_json all = impl_->variables;
  all.update(variables);
  return jinja::render(impl_->body, all, impl_->name);
}

}  // namespace snapmla
