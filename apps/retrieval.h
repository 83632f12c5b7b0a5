// Retrieval prompts, in the form that models/RETRIEVAL.md specifies: facts with five-digit codes at random
// places in natural text, a question at the end, and whether greedy decoding answers it.
//
//     passkey   " The passkey is 48213. Remember it."      one fact
//     pairs N   " Remember: cold red king 48213."          N look-alike facts, one of them asked for
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "eval_stats.h"
#include "snapmla/engine.h"

namespace snapmla {
class Tokenizer;
}

namespace snapmla::apps {

inline constexpr int kMaxPairs = 4096;         ///< distinct keys there are
inline constexpr int kRoomForAnswer = 8;       ///< tokens of a prompt's length kept free
inline constexpr int kRetrievalMaxTokens = 6;  ///< a space and five digits

/// Sentences of a text, each with the white space before it, as tokens.
class Filler {
 public:
  /// Throws Error(kInvalidArgument) if the text has no complete sentence.
  Filler(const std::string& text, const Tokenizer& tokenizer);
  [[nodiscard]] int num_units() const { return static_cast<int>(units_.size()); }
  [[nodiscard]] const std::vector<std::int32_t>& unit(int index) const {
    return units_[static_cast<std::size_t>(index % num_units())];
  }

 private:
  std::vector<std::vector<std::int32_t>> units_;
};

/// The sentences themselves.
std::vector<std::string> split_units(const std::string& text);

struct RetrievalPrompt {
  std::vector<std::int32_t> tokens{};
  std::string answer{};  ///< " 48213"
  int length = 0;        ///< the length asked for; tokens + kRoomForAnswer is at most this
  double depth = 0;      ///< where the asked-for fact stands: 0 at the start, 1 right before the question
};

struct RetrievalTask {
  int length = 0;
  int pairs = 0;       ///< 0: passkey
  int bos_token = -1;  ///< -1: none
};

/// Throws Error(kInvalidArgument) if facts and question do not fit into `length`.
RetrievalPrompt make_retrieval_prompt(const RetrievalTask& task, const Filler& filler,
                                      const Tokenizer& tokenizer, Random& random);

/// Whether the engine, decoding greedily, answers each prompt. `on_answer` is called after each.
std::vector<bool> answer_prompts(Engine& engine, const std::vector<RetrievalPrompt>& prompts,
                                 const std::function<void()>& on_answer);

}  // namespace snapmla::apps
