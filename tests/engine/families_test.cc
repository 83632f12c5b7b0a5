// The tokenizers of the model families, each with its real pipeline and a small vocabulary, against goldens of the
// reference libraries (tests/tools/make_family_goldens.py): thousands of awkward texts a family, made here from the
// same seeds, of which only a digest of the ids is stored.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/tokenizer.h"
#include "engine/utf8.h"
#include "snapmla/error.h"
#include "support/processor_time.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;
using ::testing::HasSubstr;
using testing::ProcessorTime;
using testing::seconds_allowed;
using testing::TempDir;

const std::string kData = SNAPMLA_SOURCE_DIR "/tests/data/tokenizer/families/";

std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream) << path;
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// splitmix64, as in the script.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t bound) {
    state_ += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  std::uint64_t state_;
};

std::string utf8(std::uint64_t point) {
  std::string out;
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (point >> shift & 0x3f)); };
  if (point < 0x80) return {static_cast<char>(point)};
  if (point < 0x800) {
    out += static_cast<char>(0xc0 | point >> 6);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xe0 | point >> 12);
    tail(6);
  } else {
    out += static_cast<char>(0xf0 | point >> 18);
    tail(12);
    tail(6);
  }
  tail(0);
  return out;
}

/// The script's make_text().
class Texts {
 public:
  explicit Texts(const std::vector<std::string>& special) {
    const Json corpus = Json::parse(read_lines(kData + "corpus.json").at(0));
    fragments_ = corpus["fragments"].get<std::vector<std::string>>();
    fragments_.insert(fragments_.end(), special.begin(), special.end());
    ranges_ = corpus["ranges"].get<std::vector<std::array<std::uint64_t, 2>>>();
    bad_bytes_ = corpus["bad_bytes"].get<std::vector<int>>();
    count_ = corpus["count"];
  }
  [[nodiscard]] int count() const { return count_; }

  [[nodiscard]] std::string make(int number) const {
    Random rng(static_cast<std::uint64_t>(number));
    const std::uint64_t kind = rng.below(8);
    std::string out;
    const auto fragment = [&]() -> const std::string& { return fragments_[rng.below(fragments_.size())]; };
    const auto repeat = [&](std::uint64_t least, std::uint64_t range) {
      const std::string& text = fragment();
      for (std::uint64_t n = least + rng.below(range); n > 0; --n) out += text;
      return out;
    };
    if (number % 100 == 99) return repeat(300, 700);
    if (kind == 4) {
      std::array<std::uint64_t, 2> range = ranges_[rng.below(ranges_.size())];
      for (std::uint64_t n = 1 + rng.below(12); n > 0; --n) {
        if (rng.below(3) == 0) range = ranges_[rng.below(ranges_.size())];
        out += utf8(range[0] + rng.below(range[1] - range[0] + 1));
      }
      return out;
    }
    if (kind == 5) {
      for (std::uint64_t n = 1 + rng.below(10); n > 0; --n)
        out += static_cast<char>(bad_bytes_[rng.below(bad_bytes_.size())]);
      return out;
    }
    if (kind == 6) return repeat(1, 40);
    for (std::uint64_t n = 1 + rng.below(8); n > 0; --n) out += fragment();
    return out;
  }

 private:
  std::vector<std::string> fragments_;
  std::vector<std::array<std::uint64_t, 2>> ranges_;
  std::vector<int> bad_bytes_;
  int count_ = 0;
};

/// The last 24 bits of FNV-1a over the ids.
std::string digest(const Ids& ids) {
  std::uint64_t value = 0xcbf29ce484222325U;
  for (const std::int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8)
      value = (value ^ (static_cast<std::uint32_t>(id) >> shift & 0xffU)) * 0x100000001b3U;
  std::ostringstream text;
  text << std::hex << std::setw(6) << std::setfill('0') << (value & 0xffffffU);
  return text.str();
}

bool is_utf8(const std::string& text) {
  return replace_invalid_utf8(text) == text;
}

/// What a stream of these ids gives, each part on its own being valid.
std::string stream_decode(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder decoder(tokenizer, false);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_TRUE(is_utf8(part)) << "a broken character at id " << id;
    text += part;
  }
  return text + decoder.finish();
}

class Family : public ::testing::TestWithParam<const char*> {};

TEST_P(Family, EqualsTheReferenceLibrary) {
  const std::vector<std::string> lines = read_lines(kData + GetParam() + ".txt");
  const Json head = Json::parse(lines.at(0));
  const Texts texts(head["special"]);
  const Tokenizer tokenizer = Tokenizer::load(kData + GetParam());
  ASSERT_EQ(lines.size(), static_cast<std::size_t>(texts.count()) + 1);
  int wrong = 0;
  for (int number = 0; number < texts.count() && wrong < 5; ++number) {
    const std::string text = texts.make(number);
    const Ids ids = tokenizer.encode(text, false);
    if (digest(ids) != lines[number + 1]) {
      ADD_FAILURE() << "text " << number << ": " << quote_text(text) << " gives "
                    << ::testing::PrintToString(ids);
      ++wrong;
    }
    const std::string clean = replace_invalid_utf8(text);
    ASSERT_EQ(tokenizer.decode(ids, false), clean) << number;
    ASSERT_EQ(stream_decode(tokenizer, ids), clean) << number;
  }
  Ids full = head["prefix"];
  EXPECT_EQ(tokenizer.encode("", true), full);
}

TEST_P(Family, StreamsNeverBreakACharacter) {
  const Tokenizer tokenizer = Tokenizer::load(kData + GetParam());
  for (std::uint64_t seed = 0; seed < 2'000; ++seed) {
    Random rng(seed);
    Ids ids;
    // Mostly single bytes, so that characters are begun and not finished.
    for (std::uint64_t n = 1 + rng.below(30); n > 0; --n)
      ids.push_back(static_cast<std::int32_t>(rng.below(rng.below(3) == 0 ? tokenizer.vocab_size() : 270)));
    ASSERT_EQ(stream_decode(tokenizer, ids), tokenizer.decode(ids, false)) << seed;
  }
}

TEST_P(Family, TakesAMegabyteWordInSeconds) {
  const Tokenizer tokenizer = Tokenizer::load(kData + GetParam());
  for (const char* unit : {"a", "AB", "\xe8\xaa\x9e", "\xcc\x81", "!7", " ", " \n"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const ProcessorTime time;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
    // A second on a quiet machine; quadratic time would be hours.
    EXPECT_LT(time.seconds(), seconds_allowed(30)) << quote_text(unit);
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, Family,
                         ::testing::Values("deepseek_v2", "deepseek_v3", "glm4", "youtu", "kimi", "tekken"),
                         [](const auto& family) { return std::string(family.param); });

/// A copy of a family's folder with one file changed.
class Spoiled {
 public:
  Spoiled(const std::string& family, const std::string& file, const std::string& text) {
    std::filesystem::copy(kData + family, dir_.path());
    testing::write_file(dir_.file(file), text);
  }
  [[nodiscard]] std::string path() const { return dir_.path(); }

 private:
  TempDir dir_;
};

void expect_error(const std::string& dir, ErrorCode code, const std::string& text) {
  try {
    static_cast<void>(Tokenizer::load(dir));
    ADD_FAILURE() << "no error; expected one with " << text;
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), std::string(to_string(code))) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

std::string whole(const std::string& path) {
  std::string text;
  for (const std::string& line : read_lines(path)) text += line + "\n";
  return text;
}

TEST(TiktokenFile, RefusesWhatIsWrong) {
  const std::string model = whole(kData + "kimi/tiktoken.model");
  const auto model_error = [&](const std::string& text, const std::string& message) {
    expect_error(Spoiled("kimi", "tiktoken.model", text).path(), ErrorCode::kCorruptFile, message);
  };
  model_error("", "tiktoken.model has no tokens");
  model_error("AA==\n", "line 1 must be a token in base64 and its rank; got \"AA==\"");
  model_error("AA= 0\n", "line 1 must be a token in base64");
  model_error("A?== 0\n", "line 1 must be a token in base64");
  model_error("AA== x\n", "line 1 must be a token in base64");
  model_error("AA== 0 \n", "line 1 must be a token in base64");
  model_error("AA== 99999999999\n", "line 1 must be a token in base64");
  model_error("AA== 1\n", "line 1 must have rank 0; got 1");
  model_error("AA== 0\nAA== 1\n", "line 2 has the token of rank 0 again");
  model_error("AA== 0\n", "lacks a token for the byte 1");
  EXPECT_NO_THROW(Tokenizer::load(Spoiled("kimi", "tiktoken.model", "\n" + model + "\n").path()));

  const Json config = Json::parse(whole(kData + "kimi/tokenizer_config.json"));
  const auto config_error = [&](ErrorCode code, const char* pointer, const Json& value,
                                const std::string& message) {
    Json changed = config;
    changed[Json::json_pointer(pointer)] = value;
    expect_error(Spoiled("kimi", "tokenizer_config.json", changed.dump()).path(), code, message);
  };
  config_error(ErrorCode::kUnsupported, "/tokenizer_class", "Other",
               "tokenizer_class must be \"TikTokenTokenizer\" (Kimi) beside a tiktoken.model; got \"Other\"");
  config_error(ErrorCode::kCorruptFile, "/tokenizer_class", nullptr,
               "tokenizer_class must be a string; got null");
  config_error(ErrorCode::kCorruptFile, "/added_tokens_decoder", 1, "added_tokens_decoder must be an object");
  config_error(ErrorCode::kCorruptFile, "/added_tokens_decoder/x", Json::object(),
               "the key must be a token id");
  config_error(ErrorCode::kCorruptFile, "/added_tokens_decoder/600/content", "", "content is empty");
  config_error(ErrorCode::kCorruptFile, "/added_tokens_decoder/600/content", "[EOS]",
               "ids 600 and 602 are the same special token \"[EOS]\"");
  config_error(ErrorCode::kUnsupported, "/added_tokens_decoder/600/lstrip", true, "lstrip is not supported");
  const Spoiled missing("kimi", "x", "");
  std::filesystem::remove(missing.path() + "/tokenizer_config.json");
  expect_error(missing.path(), ErrorCode::kNotFound, "tokenizer_config.json: cannot be opened");
}

TEST(TekkenFile, RefusesWhatIsWrong) {
  const Json file = Json::parse(whole(kData + "tekken/tekken.json"));
  const auto refused = [&](const char* pointer, const Json& value, const std::string& message,
                           ErrorCode code = ErrorCode::kCorruptFile) {
    Json changed = file;
    changed[Json::json_pointer(pointer)] = value;
    expect_error(Spoiled("tekken", "tekken.json", changed.dump()).path(), code, message);
  };
  refused("/config", nullptr, "config.pattern must be a string; got null");
  refused("/config/pattern", "\\w", "\\w", ErrorCode::kUnsupported);
  refused("/config/default_vocab_size", 12, "must be more than the 12 special tokens; got 12");
  refused("/config/default_vocab_size", 613, "vocab must have 601 tokens; got 600");
  refused("/config/default_num_special_tokens", 1 << 24, "default_num_special_tokens must be a token id");
  refused("/config/default_num_special_tokens", 70'000, "default_num_special_tokens must be at most 65536");
  refused("/vocab/3/rank", 4, "has rank 4, which another entry has too");
  refused("/vocab/3/rank", 9999, "vocab has no token of rank 3 below 580");
  refused("/vocab/300/token_bytes", "AA==", "vocab[300] has the token of rank ");
  refused("/vocab/3/token_bytes", "", "must be base64 of at least one byte");
  refused("/vocab/3/token_bytes", "/////w==", "lacks a token for the byte");
  refused("/special_tokens/1/rank", 12, "special_tokens[1] has rank 12, but");
  refused("/special_tokens/1/token_str", "", "token_str is empty");
  refused("/special_tokens/1/token_str", "<unk>", "ids 0 and 1 are the same special token \"<unk>\"");
}

TEST(TekkenFile, HasTheOldSpecialTokensWhereItListsNone) {
  Json file = Json::parse(whole(kData + "tekken/tekken.json"));
  file.erase("special_tokens");
  file["config"]["default_num_special_tokens"] = 22;
  file["config"]["default_vocab_size"] = 22 + 580;
  const Spoiled folder("tekken", "tekken.json", file.dump());
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  EXPECT_EQ(tokenizer.token_id("[SYSTEM_PROMPT]"), 17);
  EXPECT_EQ(tokenizer.token_id("<SPECIAL_21>"), 21);
  EXPECT_EQ(tokenizer.encode("[INST]", true), (Ids{1, 3}));
  EXPECT_EQ(tokenizer.decode({1, 3}), "");
}

TEST(Tokenizer, TakesTokenizerJsonBeforeTheOthers) {
  const Spoiled folder("kimi", "tokenizer.json", whole(kData + "glm4/tokenizer.json"));
  EXPECT_GE(Tokenizer::load(folder.path()).token_id("[gMASK]"), 0);
}

}  // namespace
}  // namespace snapmla
