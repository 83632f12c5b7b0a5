// Tasks from a local file, one JSON object a line, scored by the probabilities of their text under each cache:
//
//     {"context": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
//     {"text": "Any text whose perplexity is wanted."}
//
// A choice's score is the sum of ln p(token) over its tokens, those of context + choice behind those of the context;
// the largest is the model's answer. The normed answer divides by the choice's bytes first, since long choices are
// less likely. White space at the context's end counts to the choice. Every scored token comes from a decode step, so of a text all tokens but the
// first two are: what the model begins with, and what prefill predicts.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "evaluation.h"

namespace snapmla {
class Tokenizer;
}

namespace snapmla::apps {

struct ChoiceTask {
  std::string context;
  std::vector<std::string> choices;
  std::size_t answer = 0;
};

struct TaskFile {
  std::vector<ChoiceTask> choices;
  std::vector<std::string> texts;
};

/// Throws Error(kInvalidArgument) naming the line for what is not as above.
TaskFile parse_task_file(const std::string& text);

/// One cache's answers.
struct TaskCounts {
  int right = 0;         ///< largest sum
  int right_normed = 0;  ///< largest sum a byte
};

struct TaskFigures {
  int questions = 0;
  TaskCounts bf16{};
  TaskCounts fp8{};
  int only_bf16 = 0;  ///< questions that only this cache answers rightly, by the sum
  int only_fp8 = 0;
  std::int64_t text_bytes = 0;  ///< of the scored tokens
  Figures texts{};
};

/// The sequences of a file under a tokenizer, ready for score_sequences: a choice each, then the texts, cut into
/// pieces of at most `longest` tokens that each begin anew.
class TaskSequences {
 public:
  /// Throws Error(kInvalidArgument) for a choice without tokens, a context of fewer than two, or one that is longer
  /// than `longest` with its choice.
  TaskSequences(TaskFile file, const Tokenizer& tokenizer, int longest);

  [[nodiscard]] const std::vector<Sequence>& sequences() const { return sequences_; }
  [[nodiscard]] std::int64_t num_scored() const;
  /// Scores them; `on_score` is called for each token.
  [[nodiscard]] TaskFigures score(const Caches& caches, const std::function<void()>& on_score) const;

 private:
  void add_choice(const std::string& context, const std::string& choice, const Tokenizer& tokenizer,
                  int longest);
  void add_text(const std::string& text, const Tokenizer& tokenizer, int longest);

  TaskFile file_;
  std::vector<Sequence> sequences_;
  std::size_t num_choices_ = 0;  ///< sequences that are choices
  std::int64_t text_bytes_ = 0;
};

}  // namespace snapmla::apps
