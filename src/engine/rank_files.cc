#include "engine/rank_files.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "engine/byte_bpe.h"
#include "engine/json_node.h"

namespace snapmla {
namespace {

/// The regex of Kimi K2, a fact of its tokenization_kimi.py.
constexpr const char* kKimiPattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::int32_t kKimiSpecialTokens = 256;

/// Far above any real file's (1,000); bounds what a wrong number can ask for.
constexpr std::int32_t kMaxSpecialTokens = 65'536;

/// The special tokens of a tekken.json that lists none (up to version 7), a fact of mistral-common.
constexpr std::array<const char*, 20> kTekkenSpecialTokens = {"<unk>",
                                                              "<s>",
                                                              "</s>",
                                                              "[INST]",
                                                              "[/INST]",
                                                              "[AVAILABLE_TOOLS]",
                                                              "[/AVAILABLE_TOOLS]",
                                                              "[TOOL_RESULTS]",
                                                              "[/TOOL_RESULTS]",
                                                              "[TOOL_CALLS]",
                                                              "[IMG]",
                                                              "<pad>",
                                                              "[IMG_BREAK]",
                                                              "[IMG_END]",
                                                              "[PREFIX]",
                                                              "[MIDDLE]",
                                                              "[SUFFIX]",
                                                              "[SYSTEM_PROMPT]",
                                                              "[/SYSTEM_PROMPT]",
                                                              "[TOOL_CONTENT]"};

constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Nothing unless `text` is whole groups of four, padded with '='.
std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  text.remove_suffix(padding);
  std::string bytes;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::size_t value = kBase64.find(c);
    if (value == std::string_view::npos) return std::nullopt;
    bits = (bits << 6 | static_cast<std::uint32_t>(value)) & 0xffffff;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

std::optional<std::int32_t> parse_rank(std::string_view text) {
  std::int32_t rank = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  return whole && rank >= 0 && rank <= kMaxTokenId ? std::optional(rank) : std::nullopt;
}

TokenizerFile tiktoken_pipeline(std::string pattern) {
  TokenizerFile file;
  file.merge_by_id = true;
  file.ignore_merges = true;
  file.pre_tokenizer.push_back(
      {.pattern = std::move(pattern), .behavior = SplitBehavior::kRemoved, .invert = true});
  return file;
}

/// The tokens of a tiktoken.model; ranks are 0, 1, 2, ... in order.
void read_tiktoken_vocab(const std::string& path, TokenizerFile& file) {
  const std::string text = read_tokenizer_text(path);
  std::unordered_map<std::string, std::int32_t> seen;
  std::int32_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    ++number;
    if (line.empty()) continue;
    const std::size_t space = line.find(' ');
    const auto bytes = decode_base64(line.substr(0, space));
    const auto rank = space == std::string_view::npos ? std::nullopt : parse_rank(line.substr(space + 1));
    const auto corrupt = [&](const auto&... parts) {
      fail(ErrorCode::kCorruptFile, "tokenizer", path, ": line ", number, parts...);
    };
    if (!bytes || !rank) corrupt(" must be a token in base64 and its rank; got ", quote_text(line));
    const auto expected = static_cast<std::int32_t>(file.vocab.size());
    if (*rank != expected) corrupt(" must have rank ", expected, "; got ", *rank);
    const auto [other, fresh] = seen.emplace(*bytes, *rank);
    if (!fresh) corrupt(" has the token of rank ", other->second, " again");
    file.vocab.emplace_back(bytes_token(*bytes), *rank);
  }
  if (file.vocab.empty()) fail(ErrorCode::kCorruptFile, "tokenizer", path, " has no tokens");
}

/// id -> token, from the added_tokens_decoder of a tokenizer_config.json.
std::unordered_map<std::int32_t, AddedToken> read_added_decoder(const JsonNode& root) {
  std::unordered_map<std::int32_t, AddedToken> tokens;
  const JsonNode decoder = root.at("added_tokens_decoder");
  if (decoder.is_null()) return tokens;
  for (const auto& [key, node] : decoder.fields()) {
    const auto id = parse_rank(key);
    if (!id) node.corrupt(": the key must be a token id");
    AddedToken token{
        .content = node.at("content").string(), .id = *id, .special = node.at("special").flag(true)};
    if (token.content.empty()) node.at("content").corrupt(" is empty");
    for (const char* flag : {"lstrip", "rstrip", "single_word"})
      if (node.at(flag).flag(false)) node.at(flag).unsupported(" is not supported with tiktoken.model");
    tokens.emplace(*id, std::move(token));
  }
  return tokens;
}

void check_distinct(const std::vector<AddedToken>& tokens, const std::string& path) {
  std::unordered_map<std::string, std::int32_t> seen;
  for (const AddedToken& token : tokens) {
    const auto [other, fresh] = seen.emplace(token.content, token.id);
    if (!fresh)
      fail(ErrorCode::kCorruptFile, "tokenizer", path, ": ids ", other->second, " and ", token.id,
           " are the same special token ", quote_text(token.content));
  }
}

/// Ranks must run from 0 up to the number of entries, in any order.
std::vector<std::string> read_tekken_vocab(const JsonNode& root, std::int32_t count) {
  std::vector<std::string> tokens(static_cast<std::size_t>(count));
  std::unordered_map<std::string, std::int32_t> seen;
  for (const JsonNode& entry : root.at("vocab").list()) {
    const std::int32_t rank = entry.at("rank").token_id();
    if (rank >= count) continue;  // the file may have more than the model uses
    const auto bytes = decode_base64(entry.at("token_bytes").string());
    if (!bytes) entry.at("token_bytes").corrupt(" must be base64 of at least one byte");
    if (!tokens[rank].empty()) entry.corrupt(" has rank ", rank, ", which another entry has too");
    const auto [other, fresh] = seen.emplace(*bytes, rank);
    if (!fresh) entry.corrupt(" has the token of rank ", other->second, " again");
    tokens[rank] = *bytes;
  }
  for (std::int32_t rank = 0; rank < count; ++rank)
    if (tokens[rank].empty()) root.at("vocab").corrupt(" has no token of rank ", rank, " below ", count);
  return tokens;
}

std::vector<AddedToken> read_tekken_special(const JsonNode& root, std::int32_t count) {
  std::vector<AddedToken> tokens;
  tokens.reserve(static_cast<std::size_t>(count));
  for (std::int32_t id = 0; id < count; ++id)
    tokens.push_back({.content = "<SPECIAL_" + std::to_string(id) + ">", .id = id, .special = true});
  const JsonNode list = root.at("special_tokens");
  if (list.is_null()) {
    for (std::int32_t id = 0; id < std::min<std::int32_t>(count, kTekkenSpecialTokens.size()); ++id)
      tokens[id].content = kTekkenSpecialTokens[id];
    return tokens;
  }
  for (const JsonNode& entry : list.list()) {
    const std::int32_t id = entry.at("rank").token_id();
    if (id >= count) entry.corrupt(" has rank ", id, ", but config.default_num_special_tokens is ", count);
    tokens[id].content = entry.at("token_str").string();
    tokens[id].special = entry.at("is_control").flag(true);
    if (tokens[id].content.empty()) entry.at("token_str").corrupt(" is empty");
  }
  return tokens;
}

}  // namespace

TokenizerFile read_tiktoken_files(const std::string& dir) {
  const std::string config_path = dir + "/tokenizer_config.json";
  const nlohmann::json json = read_json(config_path);
  const JsonNode root(json, config_path, "");
  const JsonNode type = root.at("tokenizer_class");
  // The regex is not in any file, so only the tokenizer whose regex we know can be read.
  if (type.string() != "TikTokenTokenizer")
    type.unsupported(" must be \"TikTokenTokenizer\" (Kimi) beside a tiktoken.model; got ",
                     quote_text(type.string()));
  TokenizerFile file = tiktoken_pipeline(kKimiPattern);
  read_tiktoken_vocab(dir + "/tiktoken.model", file);
  const auto named = read_added_decoder(root);
  const auto first = static_cast<std::int32_t>(file.vocab.size());
  if (first > kMaxTokenId - kKimiSpecialTokens)
    fail(ErrorCode::kCorruptFile, "tokenizer", dir, "/tiktoken.model has too many tokens: ", first);
  for (std::int32_t id = first; id < first + kKimiSpecialTokens; ++id) {
    const auto found = named.find(id);
    file.added_tokens.push_back(found != named.end()
                                    ? found->second
                                    : AddedToken{.content = "<|reserved_token_" + std::to_string(id) + "|>",
                                                 .id = id,
                                                 .special = true});
  }
  check_distinct(file.added_tokens, config_path);
  return file;
}

TokenizerFile read_tekken_file(const std::string& path) {
  const nlohmann::json json = read_json(path);
  const JsonNode root(json, path, "");
  const JsonNode config = root.at("config");
  TokenizerFile file = tiktoken_pipeline(config.at("pattern").string());
  const std::int32_t num_special = config.at("default_num_special_tokens").token_id();
  const std::int32_t size = config.at("default_vocab_size").token_id();
  if (num_special > kMaxSpecialTokens)
    config.at("default_num_special_tokens")
        .corrupt(" must be at most ", kMaxSpecialTokens, "; got ", num_special);
  if (size <= num_special)
    config.at("default_vocab_size")
        .corrupt(" must be more than the ", num_special, " special tokens; got ", size);
  // Checked before anything is made of that size: a real entry takes more than one byte of the file.
  if (static_cast<std::size_t>(size - num_special) > root.at("vocab").list().size())
    root.at("vocab").corrupt(" must have ", size - num_special, " tokens; got ",
                             root.at("vocab").list().size());
  const std::vector<std::string> tokens = read_tekken_vocab(root, size - num_special);
  for (std::int32_t rank = 0; rank < size - num_special; ++rank)
    file.vocab.emplace_back(bytes_token(tokens[rank]), num_special + rank);
  file.added_tokens = read_tekken_special(root, num_special);
  check_distinct(file.added_tokens, path);
  for (const AddedToken& token : file.added_tokens)
    if (token.content == "<s>") file.prefix.push_back(token.id);
  return file;
}

}  // namespace snapmla
