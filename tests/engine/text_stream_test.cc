#include "engine/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "engine/fake_model.h"

namespace snapmla {
namespace {

struct Result {
  std::string text;
  bool stopped = false;
};

Result run(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopMatcher matcher(stops);
  Result result;
  for (const std::string& piece : pieces) result.text += matcher.push(piece);
  result.text += matcher.finish();
  result.stopped = matcher.stopped();
  return result;
}

/// What should come: the stop string that is complete first wins, then the longest.
Result formula(const std::vector<std::string>& stops, const std::string& text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.substr(end - stop.size(), stop.size()) == stop)
        longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(StopMatcher, PassesTextOnWhereNothingCanMatch) {
  StopMatcher matcher({"STOP", "##"});
  EXPECT_EQ(matcher.push("hello "), "hello ");
  EXPECT_EQ(matcher.push("S"), "");
  EXPECT_EQ(matcher.push("T"), "");
  EXPECT_EQ(matcher.push("ART #"), "START ");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.finish(), "#");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, EndsBeforeTheStopString) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.push("one ST"), "one ");
  EXPECT_EQ(matcher.push("OP two"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, WithoutStopsNothingIsHeld) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.push("any"), "any");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, RandomTextsInRandomPieces) {
  std::mt19937 random(3);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const auto letters = [&](int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += static_cast<char>('a' + pick(0, 1));
    return text;
  };
  int num_stopped = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (int i = pick(1, 3); i > 0; --i) stops.push_back(letters(pick(1, 6)));
    const std::string text = letters(pick(0, 20));
    std::vector<std::string> pieces;
    for (std::size_t at = 0; at < text.size(); at += pieces.back().size()) {
      pieces.push_back(text.substr(at, static_cast<std::size_t>(pick(1, 5))));
    }
    const Result want = formula(stops, text);
    const Result got = run(stops, pieces);
    ASSERT_EQ(got.text, want.text) << text;
    ASSERT_EQ(got.stopped, want.stopped) << text;
    num_stopped += want.stopped ? 1 : 0;
  }
  EXPECT_GT(num_stopped, 500);
  EXPECT_LT(num_stopped, 4900);
}

class TextStreamTest : public ::testing::Test {
 protected:
  /// Pushes bytes as tokens; what came out after each.
  static std::vector<std::string> push_bytes(TextStream& stream, const std::string& bytes) {
    std::vector<std::string> texts;
    for (const char byte : bytes) texts.push_back(stream.push(static_cast<std::uint8_t>(byte)));
    return texts;
  }
  const Tokenizer tokenizer_ = testing::byte_tokenizer();
};

TEST_F(TextStreamTest, GivesWholeCharactersOnly) {
  TextStream stream(tokenizer_, {});
  EXPECT_EQ(push_bytes(stream, "a\xc3\xa9\xe2\x82\xac"),
            (std::vector<std::string>{"a", "", "\xc3\xa9", "", "", "\xe2\x82\xac"}));
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(TextStreamTest, ReplacesACharacterThatNeverCameToItsEnd) {
  TextStream stream(tokenizer_, {});
  EXPECT_EQ(push_bytes(stream, "a\xe2\x82"), (std::vector<std::string>{"a", "", ""}));
  EXPECT_EQ(stream.finish(), "\xef\xbf\xbd");
}

TEST_F(TextStreamTest, StopsAcrossTokensAndCharacters) {
  TextStream stream(tokenizer_, {"\xc3\xa9t\xc3\xa9"});
  EXPECT_EQ(push_bytes(stream, "l\xc3\xa9t\xc3\xa0"),
            (std::vector<std::string>{"l", "", "", "", "", "\xc3\xa9t\xc3\xa0"}));
  EXPECT_EQ(push_bytes(stream, "\xc3\xa9t\xc3\xa9"), (std::vector<std::string>{"", "", "", "", ""}));
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(TextStreamTest, AStopStringCanBeCompleteOnlyAtTheEnd) {
  TextStream stream(tokenizer_, {"\xef\xbf\xbd"});
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(0xe2), "");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_TRUE(stream.stopped());
}

TEST_F(TextStreamTest, SpecialAndUnknownTokensHaveNoText) {
  TextStream stream(tokenizer_, {});
  EXPECT_EQ(stream.push(testing::kEos), "");
  EXPECT_EQ(stream.push(testing::kFakeVocab - 1), "");
  EXPECT_EQ(stream.push('x'), "x");
}

}  // namespace
}  // namespace snapmla
