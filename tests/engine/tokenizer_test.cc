// The tokenizer against goldens of the `tokenizers` library (tests/tools/make_tokenizer_goldens.py), files it
// must refuse, and inputs it must survive.
#include "engine/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "engine/regex.h"
#include "snapmla/error.h"
#include "support/processor_time.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::ProcessorTime;
using testing::seconds_allowed;
using testing::TempDir;

const std::string kData = SNAPMLA_SOURCE_DIR "/tests/data/tokenizer/";

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream) << path;
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::vector<Json> read_lines(const std::string& path) {
  std::istringstream stream(read_file(path));
  std::vector<Json> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

Tokenizer load_text(const std::string& text) {
  const TempDir dir;
  testing::write_file(dir.file("tokenizer.json"), text);
  return Tokenizer::load(dir.path());
}

Json base_json() {
  return Json::parse(read_file(kData + "gpt2.json"));
}

/// `changes` maps JSON pointers to new values.
Json changed(Json json, const Json& changes) {
  for (const auto& [pointer, value] : changes.items()) json[Json::json_pointer(pointer)] = value;
  return json;
}

std::string fnv(const std::string& data) {
  std::uint64_t value = 0xcbf29ce484222325U;
  for (const char c : data) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  std::ostringstream text;
  text << std::hex << std::setw(16) << std::setfill('0') << value;
  return text.str();
}

std::string stream_decode(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_NO_THROW(static_cast<void>(Json(part).dump())) << "not UTF-8 on its own";
    text += part;
  }
  return text + decoder.finish();
}

/// One line of a golden file; `frame` has what the post-processor adds.
void check_case(const Tokenizer& tokenizer, const Json& line, const Json& frame) {
  SCOPED_TRACE(line.dump().substr(0, 300));
  std::string text;
  for (int i = 0; i < line.value("repeat", 1); ++i) text += line.value("text", "");
  Ids ids = line.value("ids", Ids{});
  for (const Json& run : line.value("runs", Json::array())) ids.insert(ids.end(), run[1], run[0]);

  if (line.contains("text")) {
    EXPECT_EQ(tokenizer.encode(text, false), ids);
    Ids full = frame["prefix"];
    full.insert(full.end(), ids.begin(), ids.end());
    const Ids suffix = frame["suffix"];
    full.insert(full.end(), suffix.begin(), suffix.end());
    EXPECT_EQ(tokenizer.encode(text, true), full);
  }
  EXPECT_EQ(tokenizer.decode(ids, true), line.value("decoded", text));
  EXPECT_EQ(tokenizer.decode(ids, false), line.value("decoded_special", text));
  EXPECT_EQ(stream_decode(tokenizer, ids, true), line.value("decoded", text));
  EXPECT_EQ(stream_decode(tokenizer, ids, false), line.value("decoded_special", text));
}

void check_goldens(const std::string& tokenizer_file, const std::string& golden_file) {
  const std::string text = read_file(tokenizer_file);
  const std::vector<Json> lines = read_lines(golden_file);
  ASSERT_GT(lines.size(), 400U);
  ASSERT_EQ(lines[0]["fnv"], fnv(text)) << "the goldens are of another " << tokenizer_file
                                        << "; run tests/tools/make_tokenizer_goldens.py --tokenizer "
                                        << tokenizer_file << " --out " << golden_file;
  const Tokenizer tokenizer = load_text(text);
  for (std::size_t i = 1; i < lines.size(); ++i) check_case(tokenizer, lines[i], lines[0]);
}

TEST(Tokenizer, EqualsLibraryWithGpt2Pipeline) {
  check_goldens(kData + "gpt2.json", kData + "gpt2.jsonl");
}

TEST(Tokenizer, EqualsLibraryWithDeepseekV3Pipeline) {
  check_goldens(kData + "deepseek_v3.json", kData + "deepseek_v3.jsonl");
}

TEST(Tokenizer, EqualsLibraryWithSingleDigits) {
  check_goldens(kData + "digits.json", kData + "digits.jsonl");
}

TEST(Tokenizer, EqualsLibraryWithBundledModel) {
  check_goldens(SNAPMLA_SOURCE_DIR "/models/tiny-mla/tokenizer.json", kData + "tiny-mla.jsonl");
}

TEST(Tokenizer, EqualsLibraryInEveryVariant) {
  const std::vector<Json> lines = read_lines(kData + "variants.jsonl");
  std::optional<Tokenizer> tokenizer;
  Json frame;
  int variants = 0;
  for (const Json& line : lines) {
    if (line.contains("variant")) {
      frame = line;
      ++variants;
      Json json = changed(base_json(), line["patch"]);
      if (line["variant"] == "merges as strings")
        for (Json& merge : json["model"]["merges"])
          merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
      tokenizer.emplace(load_text(json.dump()));
      continue;
    }
    SCOPED_TRACE(frame["variant"]);
    check_case(*tokenizer, line, frame);
  }
  EXPECT_GT(variants, 90);
}

TEST(Tokenizer, ReplacesInvalidUtf8AsPythonDoes) {
  const Tokenizer tokenizer = load_text(changed(base_json(), {{"/added_tokens", nullptr}}).dump());
  for (const Json& line : read_lines(kData + "utf8.jsonl")) {
    SCOPED_TRACE(line.dump());
    const std::string hex = line["hex"];
    std::string bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    const std::string text = line["text"];
    const Ids ids = tokenizer.encode(bytes, false);
    EXPECT_EQ(ids, tokenizer.encode(text, false));
    EXPECT_EQ(tokenizer.decode(ids), text);
  }
}

TEST(Tokenizer, NamesTokens) {
  const Tokenizer tokenizer = load_text(read_file(kData + "gpt2.json"));
  EXPECT_EQ(tokenizer.vocab_size(), 713);
  EXPECT_EQ(tokenizer.token_id("<|begin|>"), 0);
  EXPECT_EQ(tokenizer.token_id("the river"), 712);
  EXPECT_EQ(tokenizer.token_id("\xc4\xa0"), tokenizer.encode(" ", false).at(0));
  EXPECT_EQ(tokenizer.token_id("no such token"), -1);
  EXPECT_EQ(tokenizer.token_id(""), -1);
}

/// Calls `call`, which must throw; the error's code and text are then checked.
template <class Call>
void expect_error(ErrorCode code, const std::string& text, const Call& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with \"" << text << '"';
  } catch (const Error& e) {
    EXPECT_EQ(to_string(e.code()), std::string(to_string(code))) << e.what();
    EXPECT_THAT(e.what(), HasSubstr(text));
    EXPECT_THAT(e.what(), Not(HasSubstr("\n")));
  }
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  const Tokenizer tokenizer = load_text(changed(base_json(), {{"/model/vocab/zz", 1000}}).dump());
  EXPECT_EQ(tokenizer.decode({1000}), "zz");
  for (const std::int32_t id : {-1, 999, 1001, INT32_MAX, INT32_MIN}) {
    const std::string text = "got " + std::to_string(id);
    expect_error(ErrorCode::kInvalidArgument, text, [&] { static_cast<void>(tokenizer.decode({0, id})); });
    StreamDecoder decoder(tokenizer);
    expect_error(ErrorCode::kInvalidArgument, text, [&] { decoder.push(id); });
  }
}

TEST(StreamDecoder, HoldsBackUnfinishedCharacters) {
  const Tokenizer tokenizer = load_text(read_file(kData + "gpt2.json"));
  const auto id = [&](const char* token) { return tokenizer.token_id(token); };
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(id("\xc3\xb0")), "");  // F0 9F 98 80, spelled in the byte alphabet
  EXPECT_EQ(decoder.push(id("\xc5\x81")), "");
  EXPECT_EQ(decoder.push(id("<|end|>")), "");
  EXPECT_EQ(decoder.push(id("\xc4\xba")), "");
  EXPECT_EQ(decoder.push(id("\xc4\xa2")), "\xf0\x9f\x98\x80");
  EXPECT_EQ(decoder.push(id("\xc3\xb0")), "");
  EXPECT_EQ(decoder.push(id("a")),
            "\xef\xbf\xbd"
            "a");
  EXPECT_EQ(decoder.push(id("\xc3\xb0")), "");
  EXPECT_EQ(decoder.finish(), "\xef\xbf\xbd");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(Tokenizer, RefusesBrokenFiles) {
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, "tokenizer.json: cannot be opened",
               [&] { Tokenizer::load(dir.file("none")); });
  const auto refused = [](const std::string& text, const std::string& message) {
    expect_error(ErrorCode::kCorruptFile, message, [&] { load_text(text); });
  };
  refused("", "is not JSON");
  refused("{\"model\": ", "is not JSON");
  refused("{\"a\": 1e999}", "is not JSON");
  refused("{\"a\": \"\xff\"}", "is not JSON");
  refused("[]", "must be an object; got array");
  refused("{}", "model must be an object");
  refused(std::string(200'000, '['), "is not JSON");
}

TEST(Tokenizer, RefusesAFolderAsFile) {
  const TempDir dir;
  std::filesystem::create_directory(dir.file("tokenizer.json"));
  EXPECT_THROW(Tokenizer::load(dir.path()), Error);
}

struct Refusal {
  ErrorCode code;
  std::string message;
  Json changes;
};

Json byte_level() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
}

Json split(const std::string& regex, const std::string& behavior = "Isolated") {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", behavior}, {"invert", false}};
}

Json sequence(const Json& parts, const char* key = "pretokenizers") {
  return {{"type", "Sequence"}, {key, parts}};
}

Json deep_sequence(int depth) {
  Json json = byte_level();
  for (int i = 0; i < depth; ++i) json = sequence(Json::array({json}));
  return json;
}

TEST(Tokenizer, RefusesWrongFields) {
  const auto corrupt = ErrorCode::kCorruptFile;
  const Json added = {{"id", 800}, {"content", "<new>"}, {"special", true}};
  const auto with_added = [&](const Json& token) { return Json{{"/added_tokens", Json::array({token})}}; };
  const std::vector<Refusal> refusals = {
      {corrupt, "model.vocab must be an object; got array", {{"/model/vocab", Json::array()}}},
      {corrupt, "model.vocab is empty", {{"/model/vocab", Json::object()}}},
      {corrupt, "model.vocab[\"x\"] must be a token id; got string", {{"/model/vocab/x", "7"}}},
      {corrupt, "model.vocab[\"x\"] must be a token id; got number", {{"/model/vocab/x", 1.5}}},
      {corrupt, "from 0 to 1048575; got -3", {{"/model/vocab/x", -3}}},
      {corrupt, "from 0 to 1048575; got 1048576", {{"/model/vocab/x", 1 << 20}}},
      {corrupt, "got 18446744073709551615", {{"/model/vocab/x", UINT64_MAX}}},
      {corrupt, "has id 5, which", {{"/model/vocab/zz", 5}}},
      {corrupt, "model.merges must be an array; got object", {{"/model/merges", Json::object()}}},
      {corrupt, "model.merges must be an array; got null", {{"/model/merges", nullptr}}},
      {corrupt,
       "model.merges[1] needs a token that model.vocab lacks: \"qx\"",
       {{"/model/merges", {"t h", "q x"}}}},
      {corrupt, "lacks: \"nope\"", {{"/model/merges", Json::array({{"t", "nope"}})}}},
      {corrupt, "model.merges[0] must be two tokens", {{"/model/merges", {"th"}}}},
      {corrupt, "model.merges[0] must be two tokens", {{"/model/merges", {"a b c"}}}},
      {corrupt,
       "model.merges[0] must have two tokens; got 3",
       {{"/model/merges", Json::array({{"a", "b", "c"}})}}},
      {corrupt,
       "model.merges[0][1] must be a string; got number",
       {{"/model/merges", Json::array({{"a", 1}})}}},
      {corrupt, "model.ignore_merges must be true or false; got string", {{"/model/ignore_merges", "yes"}}},
      {corrupt, "added_tokens must be an array; got string", {{"/added_tokens", "x"}}},
      {corrupt, "added_tokens[0] must be an object; got number", with_added(1)},
      {corrupt, "added_tokens[0].content must be a string; got null", with_added({{"id", 800}})},
      {corrupt, "added_tokens[0].content is empty", with_added(changed(added, {{"/content", ""}}))},
      {corrupt, "added_tokens[0].id must be a token id; got null", with_added({{"content", "<new>"}})},
      {corrupt, "added_tokens[0].lstrip must be true or false", with_added(changed(added, {{"/lstrip", 1}}))},
      {corrupt, "added_tokens[0] has id 5, which", with_added(changed(added, {{"/id", 5}}))},
      {corrupt, "\"<|end|>\" has id 800 here and 1 elsewhere",
       with_added(changed(added, {{"/content", "<|end|>"}}))},
      {corrupt, "pre_tokenizer must be an object; got string", {{"/pre_tokenizer", "ByteLevel"}}},
      {corrupt, "pre_tokenizer.type must be a string; got null", {{"/pre_tokenizer", Json::object()}}},
      {corrupt,
       "pre_tokenizer.pattern must have either",
       {{"/pre_tokenizer", changed(split("a"), {{"/pattern/String", "a"}})}}},
      {corrupt, "post_processor.single must be an array; got null", {{"/post_processor/single", nullptr}}},
      {corrupt, "model.vocab[\"a\\x0ab\"] must be a token id", {{"/model/vocab/a\nb", "7"}}},
      {corrupt, "is not among special_tokens", {{"/post_processor/special_tokens", Json::object()}}},
      {corrupt,
       "post_processor adds id 9999, which no token has",
       {{"/post_processor/special_tokens/<|begin|>/ids", {9999}}}},
  };
  for (const Refusal& r : refusals) {
    SCOPED_TRACE(r.changes.dump());
    expect_error(r.code, r.message, [&] { load_text(changed(base_json(), r.changes).dump()); });
  }
}

TEST(Tokenizer, NamesWhatItDoesNotSupport) {
  const auto other = ErrorCode::kUnsupported;
  Json few = base_json()["model"]["vocab"];
  few.erase("q");
  const std::vector<Refusal> refusals = {
      {other, "model.type must be \"BPE\"; got \"WordPiece\"", {{"/model/type", "WordPiece"}}},
      {other, "model.byte_fallback", {{"/model/byte_fallback", true}}},
      {other, "model.dropout", {{"/model/dropout", 0.1}}},
      {other, "model.end_of_word_suffix", {{"/model/end_of_word_suffix", "</w>"}}},
      {other,
       "model.unk_token is supported only",
       {{"/model/unk_token", "<unk>"}, {"/model/vocab", few}, {"/model/merges", Json::array()}}},
      {other, "normalizer of type \"NFC\"", {{"/normalizer", {{"type", "NFC"}}}}},
      {other,
       "normalizer.normalizers[0] of type \"Lowercase\"",
       {{"/normalizer", sequence(Json::array({{{"type", "Lowercase"}}}), "normalizers")}}},
      {other, "pre_tokenizer must contain ByteLevel", {{"/pre_tokenizer", nullptr}}},
      {other, "pre_tokenizer must contain ByteLevel", {{"/pre_tokenizer", split("a")}}},
      {other, "pre_tokenizer of type \"Metaspace\"", {{"/pre_tokenizer", {{"type", "Metaspace"}}}}},
      {other,
       "pre_tokenizer.pretokenizers[1] comes after ByteLevel",
       {{"/pre_tokenizer", sequence({byte_level(), split("a")})}}},
      {other, "nested too deeply", {{"/pre_tokenizer", deep_sequence(20)}}},
      {other, "behavior \"Sideways\"", {{"/pre_tokenizer", split("a", "Sideways")}}},
      {other, "decoder must contain ByteLevel once", {{"/decoder", nullptr}}},
      {other, "decoder of type \"WordPiece\"", {{"/decoder", {{"type", "WordPiece"}}}}},
      {other,
       "post_processor of type \"BertProcessing\"",
       {{"/post_processor", {{"type", "BertProcessing"}}}}},
      {other, "post_processor.single has no Sequence A", {{"/post_processor/single", Json::array()}}},
      {other, "must be A, once", {{"/post_processor/single/1/Sequence/id", "B"}}},
  };
  for (const Refusal& r : refusals) {
    SCOPED_TRACE(r.message);
    expect_error(r.code, r.message, [&] { load_text(changed(base_json(), r.changes).dump()); });
  }
}

TEST(Tokenizer, NamesRegexesItDoesNotSupport) {
  const std::vector<std::pair<std::string, std::string>> patterns = {
      {"\\w+", "\\w"},
      {"\\bx", "\\b"},
      {"a\\h", "\\h"},
      {"(a)\\1", "\\1"},
      {"(?i)a", "(?i"},
      {"(?<name>a)", "(?<"},
      {"(?m:.)", "(?m"},
      {"a{2}+", "{n,m}+"},
      {"a{2}?", "{n,m}?"},
      {"[a[b]]", "nested"},
      {"[a&&b]", "&&"},
      {"[a&&[^b]]", "&&"},
      {"[^\\p{L}&&[^b]]", "&&"},
      {"[\\p{L}&&[b]]", "&&"},
      {"[\\p{Han}&&[^b]]", "&&"},
      {"[\\p{L}&&[^b]c]", "more than one class"},
      {"[\\p{L}&&[^b", "unfinished"},
      {"[\\p{L", "\\p without"},
      {"[]a]", "] as the first"},
      {"[a", "unfinished"},
      {"[a-\\d]", "range"},
      {"a\\", "backslash at the end"},
      {"\\p{Nonsense}", "PCRE2 says"},
      {"\\p{L", "\\p without"},
      {"\\pL", "\\p without"},
      {"\\p{sc:Han}", "\\p{sc:Han}"},
      {"\\xe9", "\\x"},
      {"\\u12", "\\u"},
      {"(", "PCRE2 says"},
      {"a**", "PCRE2 says"},
      {"(?<=a+)b", "PCRE2 says"},
      {"\\x{110000}", "PCRE2 says"},
      {std::string(1000, '('), "PCRE2 says"},
  };
  for (const auto& [pattern, message] : patterns) {
    SCOPED_TRACE(pattern.substr(0, 50));
    const Json json = changed(base_json(), {{"/pre_tokenizer", sequence({split(pattern), byte_level()})}});
    expect_error(ErrorCode::kUnsupported, message, [&] { load_text(json.dump()); });
  }
}

TEST(Regex, TurnsCategoriesWithoutAClassIntoOneClass) {
  EXPECT_EQ(translate_oniguruma(R"([\p{L}&&[^\p{Han}a-z]]+x)"),
            R"([^\p{C}\p{M}\p{N}\p{P}\p{S}\p{Z}\p{sc:Han}a-z]+x)");
  EXPECT_EQ(translate_oniguruma(R"([\p{Lu}\p{Lo}\p{M}&&[^\s]])"),
            R"([^\p{C}\p{Ll}\p{Lm}\p{Lt}\p{N}\p{P}\p{S}\p{Z})" + translate_oniguruma(R"([\s])").substr(1));
}

TEST(Tokenizer, GivesUpOnRegexesThatBacktrackWithoutEnd) {
  for (const char* pattern :
       {"(?:a+)+$", "(?:a|aa)+$", "(?:a|a)*[bc]", "(?:(?:a*)*)*[bc]", "(?:a|c)+(?=b)"}) {
    SCOPED_TRACE(pattern);
    const Json json = changed(base_json(), {{"/pre_tokenizer", sequence({split(pattern), byte_level()})}});
    const Tokenizer tokenizer = load_text(json.dump());
    expect_error(ErrorCode::kUnsupported, "limit exceeded",
                 [&] { static_cast<void>(tokenizer.encode(std::string(5'000, 'a') + "!")); });
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("b")), "b");
  }
}

TEST(Tokenizer, IsNotQuadraticInTheLengthOfAWord) {
  const Tokenizer tokenizer = load_text(read_file(kData + "deepseek_v3.json"));
  const ProcessorTime time;
  for (const char* unit : {"ab", "\xe8\xaa\x9e", " ", "x\n", "!", "\xcc\x81"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  // A quadratic merge loop needs minutes.
  EXPECT_LT(time.seconds(), seconds_allowed(60));
}

TEST(Tokenizer, EncodesFromSeveralThreadsAtOnce) {
  const Tokenizer tokenizer = load_text(read_file(kData + "deepseek_v3.json"));
  const std::vector<Json> lines = read_lines(kData + "deepseek_v3.jsonl");
  const auto check = [&] {
    int wrong = 0;
    for (const Json& line : lines)
      if (line.contains("text") && line.contains("ids"))
        wrong += tokenizer.encode(line["text"].get<std::string>(), false) == line["ids"].get<Ids>() ? 0 : 1;
    return wrong;
  };
  std::array<int, 2> wrong{-1, -1};
  std::thread other([&] { wrong[1] = check(); });
  wrong[0] = check();
  other.join();
  EXPECT_EQ(wrong[0], 0);
  EXPECT_EQ(wrong[1], 0);
}

}  // namespace
}  // namespace snapmla
