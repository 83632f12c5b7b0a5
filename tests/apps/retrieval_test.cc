#include "retrieval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <regex>
#include <set>

#include "common.h"
#include "engine/tokenizer.h"
#include "model_folder.h"
#include "snapmla/error.h"

namespace snapmla::apps {
namespace {

TEST(SplitUnits, CutsBeforeTheSpaceBehindASentence) {
  EXPECT_THAT(split_units("Start cut. One two. Three?\n\n\nFour! Rest of it"),
              ::testing::ElementsAre(" One two.", " Three?", "\nFour!"));
  EXPECT_THAT(split_units("no sentence end"), ::testing::IsEmpty());
  EXPECT_THAT(split_units("3.5 is not. an end.x But this. is"),
              ::testing::ElementsAre(" an end.x But this."));
}

class RetrievalPrompts : public ::testing::Test {
 protected:
  RetrievalPrompt prompt(int length, int pairs, Random& random) const {
    return make_retrieval_prompt(
        {.length = length, .pairs = pairs, .bos_token = tokenizer_.token_id("<|begin|>")}, filler_,
        tokenizer_, random);
  }
  Tokenizer tokenizer_ = Tokenizer::load(testing::kBundledModel);
  Filler filler_{read_text(testing::kBundledModel + "/held_out.txt"), tokenizer_};
};

TEST_F(RetrievalPrompts, PasskeyHasItsFactAndQuestion) {
  Random random(1);
  for (int i = 0; i < 20; ++i) {
    const RetrievalPrompt p = prompt(512, 0, random);
    const std::string text = tokenizer_.decode(p.tokens);
    EXPECT_EQ(p.tokens.front(), tokenizer_.token_id("<|begin|>"));
    EXPECT_TRUE(std::regex_match(p.answer, std::regex(" [0-9]{5}"))) << p.answer;
    const std::string fact = " The passkey is" + p.answer + ". Remember it.";
    const std::size_t at = text.find(fact);
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(text.find(fact, at + 1), std::string::npos);
    EXPECT_THAT(text, ::testing::EndsWith("\nQuestion: What is the passkey?\nAnswer: The passkey is"));
    // Units, facts and question may be tokenized one by one: the whole string gives the same tokens.
    EXPECT_EQ(tokenizer_.encode(text), p.tokens);
    const auto place = static_cast<double>(at) / static_cast<double>(text.size() - fact.size() - 60);
    EXPECT_NEAR(place, p.depth, 0.25);
  }
}

TEST_F(RetrievalPrompts, FillTheLengthButForTheAnswer) {
  Random random(2);
  for (const int length : {128, 512, 1024, 4096}) {
    for (int i = 0; i < 5; ++i) {
      const RetrievalPrompt p = prompt(length, 0, random);
      EXPECT_LE(static_cast<int>(p.tokens.size()), length - kRoomForAnswer);
      EXPECT_GT(static_cast<int>(p.tokens.size()), length - 200) << "at most one long sentence is missing";
    }
  }
}

TEST_F(RetrievalPrompts, PairsHaveDistinctKeysOfThreeWordsAndAskForOne) {
  Random random(3);
  const std::regex fact(" Remember: ([a-z]+ [a-z]+ [a-z]+) ([0-9]{5})\\.");
  const std::regex question("\nQuestion: What is ([a-z]+ [a-z]+ [a-z]+)\\?\nAnswer: ([a-z]+ [a-z]+ [a-z]+)$");
  for (int i = 0; i < 5; ++i) {
    const RetrievalPrompt p = prompt(2048, 64, random);
    const std::string text = tokenizer_.decode(p.tokens);
    std::map<std::string, std::string> codes;
    for (auto it = std::sregex_iterator(text.begin(), text.end(), fact); it != std::sregex_iterator(); ++it) {
      codes[(*it)[1]] = (*it)[2];
    }
    EXPECT_EQ(codes.size(), 64U);
    std::smatch asked;
    ASSERT_TRUE(std::regex_search(text, asked, question));
    EXPECT_EQ(asked[1], asked[2]);
    EXPECT_EQ(" " + codes.at(asked[1]), p.answer);
    EXPECT_EQ(tokenizer_.encode(text), p.tokens);
    EXPECT_GT(static_cast<int>(p.tokens.size()), 2048 - 200) << "at most one long sentence is missing";
  }
}

TEST_F(RetrievalPrompts, WordsOfKeysAreDrawnAlikeAtEachPlace) {
  Random random(7);
  const std::regex fact(" Remember: ([a-z]+) ([a-z]+) ([a-z]+) [0-9]{5}\\.");
  const std::string text = tokenizer_.decode(prompt(8192, 512, random).tokens);
  std::array<std::map<std::string, int>, 3> counts;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), fact); it != std::sregex_iterator(); ++it) {
    for (std::size_t place = 0; place < 3; ++place) ++counts.at(place)[(*it)[place + 1]];
  }
  for (const auto& words : counts) {
    EXPECT_EQ(words.size(), 16U);
    // 512 of 4096 keys: 32 a word on average, standard deviation 5.1.
    for (const auto& [word, count] : words) EXPECT_NEAR(count, 32, 26) << word;
  }
}

TEST_F(RetrievalPrompts, TakeAsManyPairsAsThereAreKeys) {
  Random random(8);
  EXPECT_LE(prompt(65536, kMaxPairs, random).tokens.size(), 65536U - kRoomForAnswer);
  try {
    prompt(65536, kMaxPairs + 1, random);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("pairs must be at most 4096; got 4097"));
  }
}

TEST_F(RetrievalPrompts, DepthsCoverThePrompt) {
  Random random(4);
  std::set<int> quarters;
  for (int i = 0; i < 40; ++i)
    quarters.insert(std::min(3, static_cast<int>(4 * prompt(512, 0, random).depth)));
  EXPECT_EQ(quarters.size(), 4U);
}

TEST_F(RetrievalPrompts, RefuseALengthThatHoldsNoFacts) {
  Random random(5);
  try {
    prompt(512, 64, random);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("got length 512"));
  }
}

TEST_F(RetrievalPrompts, AreAnsweredByTheEngineInOrder) {
  const testing::TempDir folder;
  const std::string dir = testing::make_model_folder(folder.file("model"));
  Engine engine({.model_dir = dir, .max_seq_len = 256, .max_batch = 2});
  Random random(6);
  std::vector<RetrievalPrompt> prompts;
  for (int i = 0; i < 3; ++i) prompts.push_back(prompt(128, 0, random));
  int answered = 0;
  EXPECT_EQ(answer_prompts(engine, prompts, [&] { ++answered; }), std::vector<bool>(3, false));
  EXPECT_EQ(answered, 3);

  // What the model says to the second prompt, asked for: that prompt alone is right.
  engine.submit({.prompt_tokens = prompts[1].tokens, .max_tokens = kRetrievalMaxTokens, .forced_tokens = {}});
  std::string text;
  while (!engine.idle()) {
    for (const TokenEvent& event : engine.step()) text += event.text;
  }
  prompts[1].answer = text.substr(0, 6);
  prompts[0].answer = prompts[2].answer = "never said";
  EXPECT_EQ(answer_prompts(engine, prompts, {}), (std::vector<bool>{false, true, false}));
}

}  // namespace
}  // namespace snapmla::apps
