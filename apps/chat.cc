// snapmla chat: a conversation with the model, one line a turn. The whole history goes through the model's chat template each
// time, so what the model sees is what its template makes of the conversation.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli.h"
#include "common.h"
#include "core/check.h"
#include "engine/chat_template.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"
#include "generation.h"
#include "model/config.h"
#include "snapmla/backend.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

struct ChatOptions {
  CommonOptions common{};
  GenerationOptions generation{.max_tokens = 512};
  std::string system;
  std::string chat_template;
  std::string kv_cache_dtype = "fp8";
};

constexpr const char* kHelp =
    "/reset          forget the conversation, keep the system prompt\n"
    "/system TEXT    another system prompt (none without TEXT), and forget the conversation\n"
    "/exit           end, as the end of the input does\n"
    "//...           a message that begins with a slash\n";

ChatTemplate find_template(const ChatOptions& options, const std::string& model) {
  if (!options.chat_template.empty()) {
    ChatTemplate chosen(read_text(options.chat_template), options.chat_template);
    chosen.use_tokens_of(model);
    return chosen;
  }
  std::optional<ChatTemplate> own = ChatTemplate::load(model);
  if (!own)
    fail(ErrorCode::kUnsupported, "chat", model,
         " has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json), so it was "
         "probably not trained to chat; give one with --chat-template FILE, or use snapmla run");
  return std::move(*own);
}

/// Lines of standard input, read so that a signal ends the waiting.
class Lines {
 public:
  /// The next line without its end; nothing at the end of the input.
  std::optional<std::string> next() {
    while (true) {
      if (const std::size_t end = pending_.find('\n'); end != std::string::npos) {
        std::string line = pending_.substr(0, end);
        pending_.erase(0, end + 1);
        if (line.ends_with('\r')) line.pop_back();
        return line;
      }
      if (ended_) return pending_.empty() ? std::nullopt : std::optional(std::exchange(pending_, {}));
      read_more();
    }
  }

 private:
  void read_more() {
    std::array<char, 1 << 12> buffer{};
    const ssize_t count = read(STDIN_FILENO, buffer.data(), buffer.size());
    stop_if_asked();
    if (count > 0) pending_.append(buffer.data(), static_cast<std::size_t>(count));
    if (count == 0) ended_ = true;
    if (count < 0 && errno != EINTR)
      fail(ErrorCode::kIo, "file", "cannot read standard input: ", std::strerror(errno));
  }
  std::string pending_;
  bool ended_ = false;
};

class Conversation {
 public:
  Conversation(const ChatOptions& options, ChatTemplate chat_template, Engine& engine)
      : options_(&options), template_(std::move(chat_template)), engine_(&engine), system_(options.system) {
    reset();
  }

  void reset() {
    messages_ = nlohmann::ordered_json::array();
    if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
  }
  void set_system(std::string text) {
    system_ = std::move(text);
    reset();
  }

  /// One turn: streams the answer and remembers both sides. What throws leaves no trace in the history.
  void say(const std::string& text) {
    nlohmann::ordered_json messages = messages_;
    messages.push_back({{"role", "user"}, {"content", replace_invalid_utf8(text)}});
    const std::string prompt = template_.render({{"messages", messages}, {"add_generation_prompt", true}});
    spdlog::debug("prompt: {}", one_line(prompt));
    // The template writes the special tokens, a BOS included.
    const std::vector<std::int32_t> tokens = engine_->tokenizer().encode(prompt, false);
    const Request request = make_request(options_->generation, tokens, engine_->config());
    const Generation answer = generate(*engine_, request, show_model_text);
    write_stdout("\n");
    stop_if_asked();
    if (answer.finish == FinishReason::kLength)
      spdlog::info("the answer was cut at {} tokens", answer.tokens.size());
    messages.push_back({{"role", "assistant"}, {"content", answer.text}});
    messages_ = std::move(messages);
  }

 private:
  const ChatOptions* options_;
  ChatTemplate template_;
  Engine* engine_;
  std::string system_;
  nlohmann::ordered_json messages_;
};

/// Gives whether to go on.
bool obey(const std::string& command, Conversation& conversation) {
  const std::size_t space = command.find(' ');
  const std::string name = command.substr(0, space);
  if (name == "/exit" || name == "/quit") return false;
  if (name == "/reset") {
    conversation.reset();
  } else if (name == "/system") {
    conversation.set_system(space == std::string::npos ? "" : command.substr(space + 1));
  } else if (name == "/help") {
    std::fputs(kHelp, stderr);
  } else {
    fail(ErrorCode::kInvalidArgument, "chat", "unknown command ", quote_text(name), "; /help lists them");
  }
  return true;
}

int run_chat(const ChatOptions& options) {
  EngineOptions engine_options =
      apps::engine_options(options.common, parse_cache_format(options.kv_cache_dtype));
  engine_options.max_batch = 1;
  ChatTemplate chat_template = find_template(options, engine_options.model_dir);
  Engine engine(engine_options);
  Conversation conversation(options, std::move(chat_template), engine);
  const bool terminal = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
  const Style style = make_style(STDOUT_FILENO, options.common.color);
  if (terminal)
    write_stdout(style.accent("snapmla chat") + std::string(style.dot()) +
                 base_name(engine_options.model_dir) + std::string(style.dot()) +
                 "/help for commands, Ctrl-D to end\n");
  Lines lines;
  int exit_code = 0;
  while (true) {
    if (terminal) write_stdout("\n" + style.bold("> "));
    const std::optional<std::string> line = lines.next();
    if (!line) break;
    if (line->empty()) continue;
    try {
      if (line->starts_with('/') && !line->starts_with("//")) {
        if (!obey(*line, conversation)) break;
      } else {
        conversation.say(line->starts_with("//") ? line->substr(1) : *line);
      }
    } catch (const Error& error) {
      // A turn that cannot be taken (too long, refused by the template) leaves the others.
      fmt::print(stderr, "snapmla: error: {}\n", one_line(error.what()));
      if (!terminal) exit_code = 1;
    }
  }
  return exit_code;
}

}  // namespace

Command add_chat(CLI::App& program) {
  const auto options = std::make_shared<ChatOptions>();
  CLI::App* app = program.add_subcommand("chat", "Talk with a model through its chat template");
  add_model_option(*app, options->common);
  app->add_option("--system", options->system, "the system prompt (default: what the template has for none)")
      ->option_text("TEXT");
  app->add_option("--chat-template", options->chat_template, "a Jinja template instead of the model's own")
      ->option_text("FILE");
  add_generation_options(*app, options->generation);
  add_cache_option(*app, options->kv_cache_dtype);
  add_engine_options(*app, options->common);
  add_size_options(*app, options->common);
  add_log_options(*app, options->common);
  app->footer(
      "One line of standard input is one message; answers go to standard output as they come. /help lists "
      "the\n"
      "commands. The history stays in context until /reset; a message that no longer fits is refused.\n\n"
      "Examples:\n"
      "  snapmla chat DIR --system \"Answer in one sentence.\"\n"
      "  printf 'Hello\\nAnd in French?\\n' | snapmla chat DIR --temperature 0");
  return {.app = app, .run = [options] {
            apply(options->common);
            return run_chat(*options);
          }};
}

}  // namespace snapmla::apps
