// snapmla chat, as the built program with piped input: what goes into the model is shown by --log-level debug.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>

#include "model_folder.h"
#include "run_program.h"

namespace snapmla::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}";

class Chat : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_.emplace();
    model_ = make_model_folder(folder_->file("model"));
    write_file(model_ + "/chat_template.jinja", kTemplate);
    write_file(model_ + "/tokenizer_config.json", R"({"bos_token": "<B>"})");
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static ProgramResult chat(const std::string& input, std::vector<std::string> more = {}) {
    std::vector<std::string> args{"chat", model_, "-n", "4", "--ignore-eos"};
    args.insert(args.end(), more.begin(), more.end());
    return run_program({.args = args, .input = input});
  }
  /// The prompts that went in, in order.
  static std::vector<std::string> prompts(const std::string& input, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--log-level", "debug"});
    const ProgramResult result = chat(input, more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    std::vector<std::string> found;
    const std::string mark = "prompt: ";
    for (std::size_t at = result.err.find(mark); at != std::string::npos; at = result.err.find(mark, at + 1))
      found.push_back(result.err.substr(at + mark.size(), result.err.find('\n', at) - at - mark.size()));
    return found;
  }

  static std::optional<TempDir> folder_;
  static std::string model_;
};

std::optional<TempDir> Chat::folder_;
std::string Chat::model_;

TEST_F(Chat, AnswersEachLine) {
  const ProgramResult result = chat("Hello\n\nAnd again\r\nno line end");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_GE(std::count(result.out.begin(), result.out.end(), '\n'), 3);
  EXPECT_THAT(result.out, Not(HasSubstr("\x1b[")));
  EXPECT_EQ(chat("Hello\n\nAnd again\r\nno line end").out, result.out);
}

TEST_F(Chat, KeepsTheHistoryInContext) {
  const std::vector<std::string> all = prompts("first\nsecond\nthird\n");
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0], "<B>[user]first[end][assistant]");
  EXPECT_THAT(all[1], AllOf(StartsWith("<B>[user]first[end][assistant]"),
                            HasSubstr("[end][user]second[end][assistant]")));
  EXPECT_THAT(all[2], StartsWith(all[1]));
  EXPECT_THAT(all[2], HasSubstr("[end][user]third[end][assistant]"));
}

TEST_F(Chat, ObeysCommands) {
  const std::vector<std::string> all =
      prompts("one\n/reset\ntwo\n/system New rules.\nthree\n/system\n//four\n/exit\nfive\n",
              {"--system", "Old rules."});
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[0], "<B>[system]Old rules.[end][user]one[end][assistant]");
  EXPECT_EQ(all[1], "<B>[system]Old rules.[end][user]two[end][assistant]");
  EXPECT_EQ(all[2], "<B>[system]New rules.[end][user]three[end][assistant]");
  EXPECT_EQ(all[3], "<B>[user]/four[end][assistant]");
  EXPECT_THAT(chat("/help\n").err, HasSubstr("/reset"));
  EXPECT_THAT(chat("/help\n").out, IsEmpty());
}

TEST_F(Chat, ATurnThatFailsLeavesTheOthers) {
  std::string text = "first\n";
  for (int i = 0; i < 300; ++i) text += "long ";
  text += "\n/nosuch\nlast\n";
  const ProgramResult result = chat(text, {"--max-model-len", "128", "--log-level", "debug"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("snapmla: error: [submit]"), HasSubstr("unknown command \"/nosuch\"")));
  const std::string last = result.err.substr(result.err.rfind("prompt: "));
  EXPECT_THAT(last,
              AllOf(HasSubstr("[user]first[end]"), HasSubstr("[user]last[end]"), Not(HasSubstr("long"))));
}

TEST_F(Chat, AFileCanReplaceTheTemplate) {
  const std::string file = folder_->file("other.jinja");
  write_file(file, "{{ bos_token }}{{ messages[-1].content }}:");
  EXPECT_EQ(prompts("a\nb\n", {"--chat-template", file}), (std::vector<std::string>{"<B>a:", "<B>b:"}));
  write_file(file, "{{ raise_exception('not ' ~ messages|length) }}");
  const ProgramResult refused = chat("a\n", {"--chat-template", file});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("other.jinja, line 1: the template says: \"not 1\""));
  write_file(file, "{% if %}");
  const ProgramResult broken = chat("a\n", {"--chat-template", file});
  EXPECT_EQ(broken.exit_code, 1);
  EXPECT_THAT(broken.err, HasSubstr("other.jinja, line 1: expected an expression"));
}

TEST_F(Chat, SaysWhatAModelWithoutATemplateNeeds) {
  const ProgramResult result = run_program({.args = {"chat", kBundledModel}, .input = "hello\n"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, AllOf(StartsWith("snapmla: error: [chat] "), HasSubstr("has no chat template"),
                                HasSubstr("--chat-template FILE")));
}

TEST_F(Chat, SignalsAndClosedPipesEndIt) {
  const ProgramResult stopped = run_program({.args = {"chat", model_, "-n", "4000", "--ignore-eos"},
                                             .input = "hello\n",
                                             .signal_after_ms = 700,
                                             .signal = SIGTERM});
  EXPECT_EQ(stopped.exit_code, 128 + SIGTERM) << stopped.err;
  const ProgramResult closed =
      run_program({.args = {"chat", model_, "-n", "50"}, .input = "hello\n", .closed_stdout = true});
  EXPECT_EQ(closed.exit_code, 0) << closed.err;
}

}  // namespace
}  // namespace snapmla::testing
