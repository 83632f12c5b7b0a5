// Chat templates against goldens of jinja2 (tests/tools/make_chat_goldens.py), templates that must be refused, and
// templates that would not end.
#include "engine/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "snapmla/error.h"
#include "support/processor_time.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::ProcessorTime;
using testing::seconds_allowed;
using testing::TempDir;

const std::string kData = SNAPMLA_SOURCE_DIR "/tests/data/chat/goldens.jsonl";

std::string render(const std::string& source, const Json& variables = Json::object()) {
  return ChatTemplate(source, "t").render(variables);
}

/// What jinja2 does and we refuse, each with its reason in the error.
bool refused_on_purpose(const std::string& message) {
  for (const char* reason :
       {"more than 63 bits", "key that is not a string", "% is not supported", "beyond ASCII"})
    if (message.find(reason) != std::string::npos) return true;
  return false;
}

TEST(ChatTemplate, EqualsJinja2) {
  std::ifstream stream(kData);
  std::string line;
  ASSERT_TRUE(std::getline(stream, line)) << kData;
  const Json head = Json::parse(line);
  int cases = 0;
  int wrong = 0;
  while (std::getline(stream, line) && wrong < 30) {
    const Json expected = Json::parse(line);
    const std::string source = head["sources"][expected["source"].get<std::size_t>()];
    const Json& variables = head["variables"][expected["variables"].get<std::size_t>()];
    SCOPED_TRACE(source.size() < 300 ? source
                                     : source.substr(0, 60) + " ... with " + variables.dump().substr(0, 400));
    ++cases;
    try {
      const std::string text = render(source, variables);
      if (!expected.contains("text")) {
        ADD_FAILURE() << "jinja2 says " << expected["error"] << "; we give " << text;
        ++wrong;
      } else if (text != expected["text"].get<std::string>()) {
        EXPECT_EQ(text, expected["text"].get<std::string>());
        ++wrong;
      }
    } catch (const Error& error) {
      if (!expected.contains("text") || refused_on_purpose(error.what())) continue;
      ADD_FAILURE() << error.what() << "; jinja2 gives " << expected["text"];
      ++wrong;
    }
  }
  EXPECT_GT(cases, 1400);
}

/// Renders, which must fail; the code, the text and that it is one line are checked.
void expect_error(ErrorCode code, const std::string& message, const std::string& source,
                  const Json& variables = Json::object()) {
  SCOPED_TRACE(source.substr(0, 100));
  try {
    const std::string text = render(source, variables);
    ADD_FAILURE() << "no error but " << text.substr(0, 100);
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), std::string(to_string(code))) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
  }
}

TEST(ChatTemplate, NamesTheLineOfWhatIsWrong) {
  const auto corrupt = ErrorCode::kCorruptFile;
  const auto invalid = ErrorCode::kInvalidArgument;
  const auto unsupported = ErrorCode::kUnsupported;
  expect_error(corrupt, "[chat template] t, line 3: expected an expression, got the end of the tag",
               "a\n\n{{ 1 + }}");
  expect_error(corrupt, "t, line 2: unknown statement \"nosuch\"", "\n{% nosuch %}");
  expect_error(corrupt, "t, line 3: expected {% endfor %}, got the end of the template",
               "{% for x in y %}\na\nb");
  expect_error(corrupt, "t, line 2: a string is not closed", "x\n{{ 'abc }}");
  expect_error(corrupt, "t, line 1: a comment is not closed", "{# abc");
  expect_error(corrupt, "t, line 1: unexpected \"$\"", "{{ $ }}");
  expect_error(corrupt, "t is not valid UTF-8", "\xff");
  expect_error(unsupported, "t, line 2: {% include %} is not supported", "\n{% include 'x' %}");
  expect_error(unsupported, "t, line 1: the filter \"urlize\" is not supported", "{{ 'x'|urlize }}");
  expect_error(unsupported, "the test \"nosuch\" is not supported", "{{ 'x' is nosuch }}");
  expect_error(invalid, "t, line 4: the template says: \"only\\x0auser\"",
               "a\n\n\n{{ raise_exception('only\\nuser') }}");
  expect_error(invalid, "t, line 2: \"x\" is undefined", "\n{{ x.y }}");
  expect_error(invalid, "operator + does not take str and int", "{{ 'a' + 1 }}");
  expect_error(invalid, "t, line 3: \"z\" is undefined",
               "{% macro f() %}\n\n{{ z + 1 }}{% endmacro %}{{ f() }}");
  expect_error(invalid, "division by zero", "{{ 1 % 0 }}");
}

std::string repeated(const std::string& unit, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += unit;
  return text;
}

TEST(ChatTemplate, EndsTemplatesThatWouldNot) {
  const ProcessorTime time;
  const auto too_much = ErrorCode::kUnsupported;
  expect_error(too_much, "takes too many steps",
               "{% for i in range(100000) %}{{ 1" + repeated(" + 1", 100) + " }}{% endfor %}");
  expect_error(too_much, "too much text",
               repeated("{% for i in range(1000) %}", 10) + repeated("{% endfor %}", 10));
  expect_error(
      too_much, "too much text",
      "{% set s = namespace(t='ab') %}{% for i in range(99) %}{% set s.t = s.t + s.t %}{% endfor %}");
  expect_error(too_much, "too much text", "{{ 'abc' * 9000000000000000000 }}");
  expect_error(too_much, "too much text", "{{ [1] * 1000000000 }}");
  expect_error(too_much, "too much text", "{{ range(9000000000000000000) }}");
  expect_error(too_much, "too much text", "{% set a = 'x' * 1000000 %}{% set b = [a] * 100000 %}{{ b }}");
  const std::string shared =
      "{% set s = namespace(t=[1]) %}{% for i in range(90) %}{% set s.t = [s.t, s.t] %}{% endfor %}";
  expect_error(too_much, "too much text", shared + "{{ s.t }}");
  expect_error(too_much, "too much text", shared + "{{ s.t|tojson }}");
  expect_error(too_much, "too much text", shared + "{{ s.t == [s.t[0], s.t[1]] }}");
  expect_error(too_much, "nested too deeply",
               "{% set s = namespace(t=[]) %}{% for i in range(200) %}{% set s.t = [s.t] %}{% endfor %}");
  expect_error(too_much, "nested too deeply", "{% set s = namespace() %}{% set s.t = [s] %}");
  expect_error(too_much, "inside another value", "{% set s = namespace() %}{% set s.t = s %}");
  expect_error(too_much, "append() of a list", "{% set q = [] %}{% set _ = q.append(q) %}");
  expect_error(too_much, "nests or recurses too deeply", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
  expect_error(too_much, "nesting more than 200 deep",
               "{{ " + repeated("(", 10'000) + "1" + repeated(")", 10'000) + " }}");
  expect_error(too_much, "nesting more than 200 deep", "{{ " + repeated("not ", 10'000) + "1 }}");
  expect_error(too_much, "nesting more than 200 deep", repeated("{% if 1 %}", 10'000));
  expect_error(too_much, "more than 200 steps", "{{ 1" + repeated(" + 1", 10'000) + " }}");
  expect_error(too_much, "more than 200 steps", "{{ a" + repeated(".b", 10'000) + " }}");
  expect_error(too_much, "more than 200 steps", "{{ a" + repeated("|list", 10'000) + " }}");
  Json deep = 1;
  for (int i = 0; i < 150; ++i) deep = Json::array({deep});
  expect_error(too_much, "nested more than 100 deep", "{{ x }}", {{"x", deep}});
  EXPECT_LT(time.seconds(), seconds_allowed(60));
}

TEST(ChatTemplate, RendersALongConversation) {
  Json messages = Json::array();
  for (int i = 0; i < 20'000; ++i)
    messages.push_back({{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", std::string(200, 'x')}});
  const std::string text = render(
      "{% for m in messages %}{% set c = m['content'] %}{{ '<' + m['role'] + '>' + c + '</>' }}{% endfor %}",
      {{"messages", messages}});
  EXPECT_EQ(text.size(), 20'000 * 205 + 10'000 * (4 + 9));
}

TEST(ChatTemplate, TellsTheDate) {
  std::array<char, 5> year{};
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  std::strftime(year.data(), year.size(), "%Y", localtime_r(&now, &local));
  EXPECT_EQ(render("{{ strftime_now('%Y') }}"), year.data());
  EXPECT_EQ(render("[{{ strftime_now('') }}]"), "[]");
}

TEST(ChatTemplate, ComesWithItsFolder) {
  const TempDir dir;
  const auto load = [&] { return ChatTemplate::load(dir.path()); };
  const auto write = [&](const char* name, const std::string& text) {
    testing::write_file(dir.file(name), text);
  };
  EXPECT_FALSE(load());
  write("tokenizer_config.json",
        R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null})");
  EXPECT_FALSE(load());
  write(
      "tokenizer_config.json",
      R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "1{{ bos_token }}{{ eos_token }}{{ pad_token }}"})");
  EXPECT_EQ(load()->render(Json::object()), "1<s></s>");
  EXPECT_EQ(load()->render({{"bos_token", "other"}}), "1other</s>");
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]})");
  EXPECT_EQ(load()->render(Json::object()), "yes");
  write("chat_template.json", R"({"chat_template": "2"})");
  EXPECT_EQ(load()->render(Json::object()), "2");
  write("chat_template.jinja", "3\n");
  EXPECT_EQ(load()->render(Json::object()), "3");
  write("chat_template.jinja", "{% if %}");
  try {
    load();
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("chat_template.jinja, line 1: expected an expression"));
  }
  std::filesystem::remove(dir.file("chat_template.jinja"));
  std::filesystem::remove(dir.file("chat_template.json"));
  for (const char* text : {R"({"chat_template": 1})", R"({"chat_template": []})",
                           R"({"chat_template": [{"name": 1}]})", "[]", "{"}) {
    write("tokenizer_config.json", text);
    EXPECT_THROW(load(), Error) << text;
  }
}

}  // namespace
}  // namespace snapmla
