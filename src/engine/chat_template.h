// A model's chat template: how a conversation becomes the text the model was trained on. Templates are written in Jinja and
// come with the checkpoint; this runs the part of Jinja they use (src/engine/jinja/), as transformers does: block tags take
// the line break after them and the white space before them, tojson is json.dumps, undefined variables print nothing.
// Checked against jinja2 (tests/engine/chat_template_test.cc).
//
// A template is untrusted: it reaches nothing but what is given to it and the clock, and a budget of steps and bytes
// ends one that would not end.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace snapmla {

class ChatTemplate {
 public:
  /// Parses a template; `name` (its file) is for error texts. Throws Error kCorruptFile (no Jinja) or kUnsupported (Jinja
  /// that is not supported here); the text names the line.
  ChatTemplate(std::string_view source, std::string name);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  /// The template of a Hugging Face folder: chat_template.jinja, else chat_template.json, else the chat_template of
  /// tokenizer_config.json (of several named ones, "default"); nothing if there is none. bos_token, eos_token and the like
  /// of tokenizer_config.json become variables. Throws as above and kIo.
  static std::optional<ChatTemplate> load(const std::string& dir);

  /// The same variables for a template from elsewhere.
  void use_tokens_of(const std::string& dir);

  /// The text of a conversation: `variables` has messages, add_generation_prompt, tools ...; what it holds wins over the
  /// folder's variables. Const and thread-safe. Throws kInvalidArgument where the template refuses the conversation, and
  /// kUnsupported.
  [[nodiscard]] std::string render(const nlohmann::ordered_json& variables) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace snapmla
