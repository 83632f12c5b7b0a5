// What is fuzzed: one function a reader. Each takes any bytes, lets no exception out (nothing but Error may come), and
// checks what must hold for input that is accepted; it gives whether this one was. driver.cc makes a libFuzzer program of each (`make fuzz`); replay_test.cc runs seeds/ and found/, the
// inputs that once showed a bug, in the ordinary tests.
#pragma once

#include <string_view>

namespace snapmla::fuzz {

bool safetensors(std::string_view data);     ///< a .safetensors file: header, then every tensor it lists
bool config(std::string_view data);          ///< config.json
bool tokenizer_json(std::string_view data);  ///< tokenizer.json; then a text is encoded and decoded
bool tiktoken(
    std::string_view data);  ///< 'c' and a tokenizer_config.json, or any other byte and a tiktoken.model
bool tekken(std::string_view data);         ///< tekken.json
bool chat_template(std::string_view data);  ///< a Jinja template, rendered with two conversations

struct Target {
  const char* name;
  bool (*run)(std::string_view data);
};
inline constexpr Target kTargets[] = {
    {"safetensors", safetensors}, {"config", config}, {"tokenizer_json", tokenizer_json},
    {"tiktoken", tiktoken},       {"tekken", tekken}, {"chat_template", chat_template}};

}  // namespace snapmla::fuzz
