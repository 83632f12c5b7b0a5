// The files of src/engine: tokenizers and chat templates.
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/chat_template.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"
#include "fuzz/support.h"
#include "fuzz/targets.h"
#include "snapmla/error.h"

namespace snapmla::fuzz {
namespace {

constexpr std::string_view kText =
    "It's  a \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e test,\r\n\r\n 12345 <s></s> "
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7 e\xcc\x81 \xff\xc3 ABCdef\t!";

void use(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int32_t> ids = tokenizer.encode(text, true);
  for (const bool skip : {true, false}) {
    StreamDecoder decoder(tokenizer, skip);
    std::string streamed;
    for (const std::int32_t id : ids) {
      const std::string part = decoder.push(id);
      check(replace_invalid_utf8(part) == part, "a stream broke a character");
      streamed += part;
    }
    streamed += decoder.finish();
    check(streamed == tokenizer.decode(ids, skip), "a stream differs from decode()");
  }
}

bool load_and_use(const std::string& dir, std::string_view data) {
  try {
    const Tokenizer tokenizer = Tokenizer::load(dir);
    use(tokenizer, kText);
    use(tokenizer, data.substr(0, 256));
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// The conversations that templates get: one with tools, one with content in parts.
nlohmann::ordered_json conversations() {
  return nlohmann::ordered_json::parse(R"([{
    "messages": [
      {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a \u65e5 b"},
      {"role": "assistant", "content": "", "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
      {"role": "tool", "content": "{}"}, {"role": "assistant", "content": "<think>x</think>y"}, {"role": "user", "content": "z"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>"
  }, {
    "messages": [
      {"role": "user", "content": [{"type": "text", "text": "z"}]}, {"role": "assistant", "content": "y", "reasoning_content": "x"},
      {"role": "user", "content": [{"type": "image"}, "w"], "n": [1.5, true, null, -7]}]
  }])");
}

/// A seed of the tiktoken target, without the byte that says which file it is.
std::string seed(const std::string& name) {
  std::ifstream file(SNAPMLA_SOURCE_DIR "/tests/fuzz/seeds/tiktoken/" + name, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  check(!text.empty(), "the seeds are not where they were");
  return text.substr(1);
}

}  // namespace

bool tokenizer_json(std::string_view data) {
  static const Scratch scratch;
  scratch.write("tokenizer.json", data);
  return load_and_use(scratch.path(), data);
}

bool tiktoken(std::string_view data) {
  static const Scratch scratch;
  static const std::string model = seed("model");
  static const std::string config = seed("config");
  const bool is_config = data.starts_with('c');
  const std::string_view body = data.substr(data.empty() ? 0 : 1);
  scratch.write("tiktoken.model", is_config ? model : body);
  scratch.write("tokenizer_config.json", is_config ? body : config);
  return load_and_use(scratch.path(), data);
}

bool tekken(std::string_view data) {
  static const Scratch scratch;
  scratch.write("tekken.json", data);
  return load_and_use(scratch.path(), data);
}

bool chat_template(std::string_view data) {
  static const nlohmann::ordered_json given = conversations();
  bool accepted = false;
  try {
    const ChatTemplate parsed(data, "fuzz");
    for (const auto& variables : given) {
      try {
        const std::string text = parsed.render(variables);
        check(replace_invalid_utf8(text) == text, "a template made ill-formed text");
        accepted = true;
      } catch (const Error&) {
      }
    }
  } catch (const Error&) {
  }
  return accepted;
}

}  // namespace snapmla::fuzz
