#include "retrieval.h"

#include <fmt/format.h>

#include <array>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "engine/tokenizer.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

constexpr std::size_t kNumWords = 16;
constexpr int kNumDigits = 5;
constexpr std::array<std::string_view, kNumWords> kAdjectives{
    "red",  "blue",  "green", "white", "black", "gold", "silver", "grey",
    "dark", "light", "hot",   "cold",  "old",   "new",  "long",   "short"};
constexpr std::array<std::string_view, kNumWords> kNouns{"king",  "stone", "water", "house", "tree",  "river",
                                                         "field", "city",  "fire",  "book",  "sword", "horse",
                                                         "ship",  "road",  "door",  "wall"};
static_assert(kMaxPairs == kNumWords * kNumWords * kNumWords);

using Tokens = std::vector<std::int32_t>;

struct Facts {
  std::vector<std::string> texts{};
  std::size_t asked = 0;
  std::string question{};
  std::string answer{};
};

std::string random_digits(Random& random) {
  std::string digits;
  for (int i = 0; i < kNumDigits; ++i) digits += static_cast<char>('0' + random.below(10));
  return digits;
}

std::string key_text(int key) {
  const auto at = static_cast<std::size_t>(key);
  return fmt::format("{} {} {}", kAdjectives[at / kNumWords / kNumWords],
                     kAdjectives[at / kNumWords % kNumWords], kNouns[at % kNumWords]);
}

Facts passkey_facts(Random& random) {
  const std::string digits = random_digits(random);
  return {.texts = {fmt::format(" The passkey is {}. Remember it.", digits)},
          .question = "\nQuestion: What is the passkey?\nAnswer: The passkey is",
          .answer = " " + digits};
}

Facts pair_facts(int pairs, Random& random) {
  SNAPMLA_REQUIRE(pairs <= kMaxPairs, "eval", "pairs must be at most ", kMaxPairs, "; got ", pairs);
  std::vector<int> keys(kMaxPairs);
  for (int i = 0; i < kMaxPairs; ++i) keys[static_cast<std::size_t>(i)] = i;
  random.shuffle(keys);
  const auto asked = static_cast<std::size_t>(random.below(pairs));
  Facts facts{.asked = asked};
  for (std::size_t i = 0; i < static_cast<std::size_t>(pairs); ++i) {
    const std::string digits = random_digits(random);
    const std::string key = key_text(keys[i]);
    facts.texts.push_back(fmt::format(" Remember: {} {}.", key, digits));
    if (i != asked) continue;
    facts.question = fmt::format("\nQuestion: What is {0}?\nAnswer: {0}", key);
    facts.answer = " " + digits;
  }
  return facts;
}

bool ends_sentence(char c) {
  return c == '.' || c == '?' || c == '!';
}

void append(Tokens& tokens, const Tokens& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

}  // namespace

std::vector<std::string> split_units(const std::string& text) {
  std::string joined;  // runs of newlines become one
  for (const char c : text) {
    if (c != '\n' || (!joined.empty() && joined.back() != '\n')) joined += c;
  }
  if (!joined.empty() && joined.back() == '\n') joined.pop_back();

  std::vector<std::string> units;
  std::size_t begin = std::string::npos;
  for (std::size_t i = 1; i < joined.size(); ++i) {
    if (!ends_sentence(joined[i - 1]) || (joined[i] != ' ' && joined[i] != '\n')) continue;
    if (begin != std::string::npos) units.push_back(joined.substr(begin, i - begin));
    begin = i;
  }
  return units;
}

Filler::Filler(const std::string& text, const Tokenizer& tokenizer) {
  for (const std::string& unit : split_units(text)) {
    units_.push_back(tokenizer.encode(unit, /*add_special=*/false));
  }
  SNAPMLA_REQUIRE(!units_.empty(), "eval", "the text must have at least three sentence ends; got ",
                  text.size(), " bytes without");
}

RetrievalPrompt make_retrieval_prompt(const RetrievalTask& task, const Filler& filler,
                                      const Tokenizer& tokenizer, Random& random) {
  const Facts facts = task.pairs == 0 ? passkey_facts(random) : pair_facts(task.pairs, random);
  const Tokens question = tokenizer.encode(facts.question, /*add_special=*/false);
  std::vector<Tokens> encoded;
  auto used = static_cast<int>(question.size()) + 1 + kRoomForAnswer;
  for (const std::string& fact : facts.texts) {
    encoded.push_back(tokenizer.encode(fact, /*add_special=*/false));
    used += static_cast<int>(encoded.back().size());
  }
  SNAPMLA_REQUIRE(used <= task.length, "eval", "a retrieval prompt with ", facts.texts.size(),
                  " facts must be at least ", used, " tokens long; got length ", task.length);

  const int first_unit = random.below(filler.num_units());
  int num_units = 0;
  for (int room = task.length - used;; ++num_units) {
    room -= static_cast<int>(filler.unit(first_unit + num_units).size());
    if (room < 0) break;
  }
  std::vector<std::vector<std::size_t>> facts_in_gap(static_cast<std::size_t>(num_units) + 1);
  double depth = 0;
  for (std::size_t i = 0; i < encoded.size(); ++i) {
    const int gap = random.below(num_units + 1);
    facts_in_gap[static_cast<std::size_t>(gap)].push_back(i);
    if (i == facts.asked && num_units > 0) depth = static_cast<double>(gap) / num_units;
  }

  RetrievalPrompt prompt{.answer = facts.answer, .length = task.length, .depth = depth};
  if (task.bos_token >= 0) prompt.tokens.push_back(task.bos_token);
  for (int gap = 0; gap <= num_units; ++gap) {
    for (const std::size_t fact : facts_in_gap[static_cast<std::size_t>(gap)]) {
      append(prompt.tokens, encoded[fact]);
    }
    if (gap < num_units) append(prompt.tokens, filler.unit(first_unit + gap));
  }
  append(prompt.tokens, question);
  return prompt;
}

std::vector<bool> answer_prompts(Engine& engine, const std::vector<RetrievalPrompt>& prompts,
                                 const std::function<void()>& on_answer) {
  std::unordered_map<RequestId, std::size_t> index;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    index[engine.submit(
        {.prompt_tokens = prompts[i].tokens, .max_tokens = kRetrievalMaxTokens, .forced_tokens = {}})] = i;
  }
  std::vector<std::string> texts(prompts.size());
  while (!engine.idle()) {
    stop_if_asked();
    for (const TokenEvent& event : engine.step()) {
      texts[index.at(event.request)] += event.text;
      if (event.finish != FinishReason::kNone && on_answer) on_answer();
    }
  }
  std::vector<bool> right(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) right[i] = texts[i].rfind(prompts[i].answer, 0) == 0;
  return right;
}

}  // namespace snapmla::apps
