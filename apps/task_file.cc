#include "task_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "engine/tokenizer.h"

namespace snapmla::apps {
namespace {

constexpr const char* kForms =
    R"({"context": string, "choices": [string, string, ...], "answer": index} or {"text": string})";

ChoiceTask parse_choice(const nlohmann::json& json, int line) {
  const auto is_text = [](const nlohmann::json& x) {
    return x.is_string() && !x.get_ref<const std::string&>().empty();
  };
  const nlohmann::json& choices = json.at("choices");
  SNAPMLA_REQUIRE(json.at("context").is_string() && choices.is_array() && choices.size() >= 2 &&
                      std::all_of(choices.begin(), choices.end(), is_text) &&
                      json.at("answer").is_number_unsigned() && json.at("answer") < choices.size(),
                  "tasks", "line ", line, " must be ", kForms, "; got ", json.dump());
  return {.context = json.at("context"), .choices = choices, .answer = json.at("answer")};
}

/// The index of the choice with the largest sum, or the largest a byte.
std::size_t best(const double* log_probability, const std::vector<std::string>& choices, bool normed) {
  std::size_t at = 0;
  const auto score = [&](std::size_t i) {
    return normed ? log_probability[i] / static_cast<double>(choices[i].size()) : log_probability[i];
  };
  for (std::size_t i = 1; i < choices.size(); ++i) {
    if (score(i) > score(at)) at = i;
  }
  return at;
}

/// Counts one cache's answers; returns whether each is right.
std::vector<bool> count_answers(const std::vector<ChoiceTask>& tasks,
                                const std::vector<double>& log_probability, TaskCounts& counts) {
  std::vector<bool> right;
  std::size_t first = 0;
  for (const ChoiceTask& task : tasks) {
    right.push_back(best(&log_probability[first], task.choices, false) == task.answer);
    counts.right += right.back() ? 1 : 0;
    counts.right_normed += best(&log_probability[first], task.choices, true) == task.answer ? 1 : 0;
    first += task.choices.size();
  }
  return right;
}

}  // namespace

TaskFile parse_task_file(const std::string& text) {
  TaskFile file;
  int line = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string row = text.substr(at, end - at);
    at = end + 1;
    ++line;
    if (row.find_first_not_of(" \t\r") == std::string::npos) continue;
    const nlohmann::json json = nlohmann::json::parse(row, nullptr, /*allow_exceptions=*/false);
    const bool is_choice =
        json.is_object() && json.contains("context") && json.contains("choices") && json.contains("answer");
    const bool is_text = json.is_object() && json.contains("text") && json["text"].is_string();
    SNAPMLA_REQUIRE(is_choice || is_text, "tasks", "line ", line, " must be ", kForms, "; got ", row);
    if (is_choice) {
      file.choices.push_back(parse_choice(json, line));
    } else {
      file.texts.push_back(json["text"]);
    }
  }
  SNAPMLA_REQUIRE(!file.choices.empty() || !file.texts.empty(), "tasks",
                  "the file must have at least one line; got ", text.size(), " bytes without");
  return file;
}

TaskSequences::TaskSequences(TaskFile file, const Tokenizer& tokenizer, int longest)
    : file_(std::move(file)) {
  for (const ChoiceTask& task : file_.choices) {
    for (const std::string& choice : task.choices) add_choice(task.context, choice, tokenizer, longest);
  }
  num_choices_ = sequences_.size();
  for (const std::string& text : file_.texts) add_text(text, tokenizer, longest);
}

void TaskSequences::add_choice(const std::string& context, const std::string& choice,
                               const Tokenizer& tokenizer, int longest) {
  const std::string trimmed = context.substr(0, context.find_last_not_of(" \t\n") + 1);
  const auto prefix = static_cast<int>(tokenizer.encode(trimmed).size()) - 1;
  Sequence sequence{.tokens = tokenizer.encode(context + choice), .prefix = prefix};
  SNAPMLA_REQUIRE(
      prefix >= 1 && sequence.num_scored() >= 1, "tasks",
      "a context must be at least two tokens long, its begin token included, and a choice at least one; "
      "got context '",
      context, "', choice '", choice, "'");
  SNAPMLA_REQUIRE(static_cast<int>(sequence.tokens.size()) <= longest, "tasks",
                  "a context and its choice must be at most ", longest, " tokens; got ",
                  sequence.tokens.size());
  sequences_.push_back(std::move(sequence));
}

void TaskSequences::add_text(const std::string& text, const Tokenizer& tokenizer, int longest) {
  constexpr std::ptrdiff_t kLeast = 3;  // the prefix, one token that prefill predicts, a scored one
  const std::vector<std::int32_t> tokens = tokenizer.encode(text);
  const std::vector<std::int32_t> begin_alone = tokenizer.encode("");
  for (auto at = tokens.begin(); tokens.end() - at >= kLeast;) {
    Sequence piece;
    if (at != tokens.begin()) piece.tokens = begin_alone;
    const auto room = static_cast<std::ptrdiff_t>(longest) - static_cast<std::ptrdiff_t>(piece.tokens.size());
    const auto end = at + std::min(room, tokens.end() - at);
    piece.tokens.insert(piece.tokens.end(), at, end);
    text_bytes_ += static_cast<std::int64_t>(
        tokenizer.decode({piece.tokens.begin() + kLeast - 1, piece.tokens.end()}).size());
    sequences_.push_back(std::move(piece));
    at = end;
  }
}

std::int64_t TaskSequences::num_scored() const {
  return std::accumulate(
      sequences_.begin(), sequences_.end(), std::int64_t{0},
      [](std::int64_t sum, const Sequence& sequence) { return sum + sequence.num_scored(); });
}

TaskFigures TaskSequences::score(const Caches& caches, const std::function<void()>& on_score) const {
  TaskFigures figures{.questions = static_cast<int>(file_.choices.size()), .text_bytes = text_bytes_};
  std::vector<double> bf16(num_choices_);
  std::vector<double> fp8(num_choices_);
  const auto add = [&](const TokenScore& score) {
    const auto sequence = static_cast<std::size_t>(score.sequence);
    if (sequence < num_choices_) {
      bf16[sequence] -= score.nll_bf16.value_or(0);
      fp8[sequence] -= score.nll_fp8.value_or(0);
    } else {
      figures.texts.add(score);
    }
    if (on_score) on_score();
  };
  score_sequences(caches, sequences_, {.on_score = add, .after_step = {}});
  const std::vector<bool> right_bf16 = count_answers(file_.choices, bf16, figures.bf16);
  const std::vector<bool> right_fp8 = count_answers(file_.choices, fp8, figures.fp8);
  for (std::size_t i = 0; i < right_bf16.size(); ++i) {
    figures.only_bf16 += right_bf16[i] && !right_fp8[i] ? 1 : 0;
    figures.only_fp8 += right_fp8[i] && !right_bf16[i] ? 1 : 0;
  }
  return figures;
}

}  // namespace snapmla::apps
