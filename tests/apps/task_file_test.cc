// Task files: what is read, what is refused, and that scores are those of the model.
#include "task_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/tokenizer.h"
#include "model_folder.h"
#include "run_program.h"
#include "snapmla/error.h"

namespace snapmla::apps {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::string& text) {
  try {
    parse_task_file(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "nothing was thrown";
}

TEST(TaskFileText, ReadsBothForms) {
  const TaskFile file = parse_task_file(
      "{\"context\": \"a\", \"choices\": [\" b\", \" c\"], \"answer\": 1}\n\n"
      "{\"text\": \"d e\", \"source\": \"ignored\"}");
  ASSERT_EQ(file.choices.size(), 1U);
  EXPECT_EQ(file.choices[0].context, "a");
  EXPECT_EQ(file.choices[0].choices, (std::vector<std::string>{" b", " c"}));
  EXPECT_EQ(file.choices[0].answer, 1U);
  EXPECT_EQ(file.texts, std::vector<std::string>{"d e"});
}

TEST(TaskFileText, NamesTheLineItRefuses) {
  EXPECT_THAT(refusal("{\"text\": \"a\"}\n{\"text\": 1}"), HasSubstr("[tasks] line 2 must be"));
  for (const char* bad : {"not json", "[]", "{}", R"({"context": "a", "choices": [" b"], "answer": 0})",
                          R"({"context": "a", "choices": [" b", " c"], "answer": 2})",
                          R"({"context": "a", "choices": [" b", " c"], "answer": -1})",
                          R"({"context": "a", "choices": [" b", ""], "answer": 0})",
                          R"({"context": 1, "choices": [" b", " c"], "answer": 0})",
                          R"({"context": "a", "choices": [" b", " c"], "answer": "b"})"}) {
    EXPECT_THAT(refusal(bad), HasSubstr("line 1 must be")) << bad;
  }
  EXPECT_THAT(refusal("\n \n"), HasSubstr("at least one line"));
}

class Tasks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_.emplace();
    model_ = testing::make_model_folder(folder_->file("model"));
  }
  static void TearDownTestSuite() { folder_.reset(); }
  static Engine engine(CacheFormat format) {
    return Engine({.model_dir = model_, .cache_format = format, .max_seq_len = 256});
  }
  static std::optional<testing::TempDir> folder_;
  static std::string model_;
};
std::optional<testing::TempDir> Tasks::folder_;
std::string Tasks::model_;

/// ln p of each token behind the context, from one decode of the whole text.
std::vector<double> log_probabilities(Engine& engine, const std::vector<std::int32_t>& tokens) {
  engine.submit({.prompt_tokens = {tokens.front()},
                 .max_tokens = static_cast<int>(tokens.size()) - 1,
                 .ignore_eos = true,
                 .forced_tokens = {tokens.begin() + 1, tokens.end()}});
  std::vector<double> all;
  while (!engine.idle()) {
    for (const TokenEvent& event : engine.step()) all.push_back(event.logprob);
  }
  return all;
}

TEST_F(Tasks, ScoresAreThoseOfTheTokens) {
  Engine bf16 = engine(CacheFormat::kBf16);
  Engine fp8 = engine(CacheFormat::kFp8);
  const std::string context = "And it came to pass in those";
  const std::vector<std::string> choices{" days, that", " purple", " kings of the earth"};
  const std::string text = "In the beginning God created the heaven and the earth.";
  // Worked out by hand: which choice is likeliest behind the context?
  std::vector<double> sums;
  for (const std::string& choice : choices) {
    const std::vector<std::int32_t> whole = bf16.tokenizer().encode(context + choice);
    const std::size_t skip = bf16.tokenizer().encode(context).size() - 1;
    const std::vector<double> all = log_probabilities(bf16, whole);
    sums.push_back(std::accumulate(all.begin() + static_cast<std::ptrdiff_t>(skip), all.end(), 0.0));
  }
  const auto best = static_cast<std::size_t>(std::max_element(sums.begin(), sums.end()) - sums.begin());
  TaskFile file{.choices = {{context + " ", choices, best}, {context, choices, (best + 1) % 3}},
                .texts = {text}};
  for (std::string& choice : file.choices[0].choices) choice.erase(0, 1);  // the space stands in the context
  const TaskSequences tasks(file, bf16.tokenizer(), 200);
  int calls = 0;
  const TaskFigures figures = tasks.score({.bf16 = &bf16, .fp8 = &fp8}, [&] { ++calls; });
  EXPECT_EQ(calls, tasks.num_scored());
  EXPECT_EQ(figures.questions, 2);
  EXPECT_EQ(figures.bf16.right, 1);
  EXPECT_EQ(figures.fp8.right + figures.only_bf16 - figures.only_fp8, figures.bf16.right);

  const std::vector<std::int32_t> tokens = bf16.tokenizer().encode(text);
  const std::vector<double> all = log_probabilities(bf16, tokens);
  const double mean = std::accumulate(all.begin() + 1, all.end(), 0.0) / static_cast<double>(all.size() - 1);
  EXPECT_EQ(figures.texts.tokens(), static_cast<std::int64_t>(all.size()) - 1);
  EXPECT_NEAR(figures.texts.perplexity_bf16().value, std::exp(-mean), 1e-3 * std::exp(-mean));
  EXPECT_EQ(figures.text_bytes,
            static_cast<std::int64_t>(bf16.tokenizer().decode({tokens.begin() + 2, tokens.end()}).size()));
}

TEST_F(Tasks, CutsLongTextsAndRefusesLongQuestions) {
  const Engine bf16 = engine(CacheFormat::kBf16);
  std::string text;
  for (int i = 0; i < 30; ++i) text += "And God said, Let there be light. ";
  const auto tokens = static_cast<int>(bf16.tokenizer().encode(text).size());
  ASSERT_GT(tokens, 200);
  const TaskSequences pieces({.choices = {}, .texts = {text}}, bf16.tokenizer(), 64);
  EXPECT_EQ(static_cast<int>(pieces.sequences().size()), (tokens - 1 + 62) / 63);
  for (const Sequence& piece : pieces.sequences()) {
    EXPECT_LE(piece.tokens.size(), 64U);
    EXPECT_EQ(piece.tokens.front(), pieces.sequences().front().tokens.front()) << "each begins anew";
  }
  EXPECT_THROW(TaskSequences({.choices = {{text, {" a", " b"}, 0}}, .texts = {}}, bf16.tokenizer(), 64),
               Error);
  EXPECT_THROW(TaskSequences({.choices = {{"", {" a", " b"}, 0}}, .texts = {}}, bf16.tokenizer(), 64), Error);
}

TEST_F(Tasks, TheProgramScoresAFile) {
  const testing::TempDir files;
  testing::write_file(
      files.file("quiz.jsonl"),
      "{\"context\": \"And it came\", \"choices\": [\" to pass\", \" purple\"], \"answer\": 0}\n"
      "{\"text\": \"In the beginning God created the heaven.\"}\n");
  const auto result = testing::run_program(
      {.args = {"eval", model_, "--tokens", "0", "--tasks", files.file("quiz.jsonl"), "--json"}});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["tasks"]["choices"]["questions"], 1);
  EXPECT_TRUE(json["tasks"]["choices"]["fp8"].contains("right_normed"));
  EXPECT_GT(json["tasks"]["texts"]["bits_per_byte_bf16"], 0);
}

// The text is wrong too, which the later steps say: the tasks' error comes before theirs.
TEST_F(Tasks, TheProgramRefusesTasksBeforeItScores) {
  const testing::TempDir files;
  testing::write_file(files.file("bad.jsonl"), "{\"text\": 1}\n");
  testing::write_file(files.file("short.jsonl"),
                      "{\"context\": \"\", \"choices\": [\" a\", \" b\"], \"answer\": 0}\n");
  testing::write_file(files.file("text.txt"), "too short for a greedy text");
  const auto error = [&](const std::string& tasks, const std::string& text) {
    const auto result = testing::run_program({.args = {"eval", model_, "--text", files.file(text), "--tokens",
                                                       "0", "--greedy", "1", "--tasks", files.file(tasks)}});
    EXPECT_EQ(result.exit_code, 1) << result.err;
    return result.err;
  };
  EXPECT_THAT(error("none.jsonl", "none.txt"), HasSubstr("none.jsonl: No such file or directory"));
  EXPECT_THAT(error("bad.jsonl", "none.txt"), HasSubstr("[tasks] line 1 must be"));
  EXPECT_THAT(error("short.jsonl", "text.txt"), HasSubstr("[tasks] a context must be at least two tokens"));
}

}  // namespace
}  // namespace snapmla::apps
