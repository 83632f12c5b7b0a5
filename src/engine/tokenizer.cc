#include "engine/tokenizer.h"

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "engine/added_tokens.h"
#include "engine/byte_bpe.h"
#include "engine/pre_tokenizer.h"
#include "engine/rank_files.h"
#include "engine/tokenizer_file.h"
#include "engine/utf8.h"
#include "model/file.h"

namespace snapmla {
namespace {

/// A row of the table by id.
struct Token {
  bool exists = false;
  bool special = false;
  std::string bytes;  ///< what it adds to decoded text
};

std::vector<Token> make_table(const TokenizerFile& file) {
  std::int32_t last = 0;
  for (const auto& [content, id] : file.vocab) last = std::max(last, id);
  for (const AddedToken& token : file.added_tokens) last = std::max(last, token.id);
  std::vector<Token> table(static_cast<std::size_t>(last) + 1);
  // A token that is not spelled in the byte alphabet stands for its own characters.
  const auto set = [&table](const std::string& content, std::int32_t id, bool special) {
    table[id] = {.exists = true, .special = special, .bytes = token_bytes(content).value_or(content)};
  };
  for (const auto& [content, id] : file.vocab) set(content, id, false);
  for (const AddedToken& token : file.added_tokens) set(token.content, token.id, token.special);
  return table;
}

}  // namespace

struct Tokenizer::Impl {
  Impl(TokenizerFile file, const std::string& path)
      : bpe(file, path),
        added(file.added_tokens),
        pre_tokenizer(file.pre_tokenizer),
        table(make_table(file)),
        prefix(std::move(file.prefix)),
        suffix(std::move(file.suffix)) {
    for (const AddedToken& token : file.added_tokens) added_ids.emplace(token.content, token.id);
  }

  [[nodiscard]] const Token& token(std::int32_t id) const {
    const bool known = id >= 0 && static_cast<std::size_t>(id) < table.size() && table[id].exists;
    SNAPMLA_REQUIRE(known, "tokenizer", "ids must be in the vocabulary of ", table.size(), " tokens; got ",
                    id);
    return table[id];
  }

  ByteBpe bpe;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  std::vector<Token> table;
  std::vector<std::int32_t> prefix;
  std::vector<std::int32_t> suffix;
  std::unordered_map<std::string, std::int32_t> added_ids;
  bool has_file = true;
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const std::string& dir) {
  const auto has = [&](const char* name) { return file_exists(dir + "/" + name); };
  if (has("tokenizer.json") || (!has("tiktoken.model") && !has("tekken.json"))) {
    const std::string path = dir + "/tokenizer.json";
    return Tokenizer(std::make_unique<Impl>(read_tokenizer_file(path), path));
  }
  if (has("tiktoken.model"))
    return Tokenizer(std::make_unique<Impl>(read_tiktoken_files(dir), dir + "/tiktoken.model"));
  const std::string path = dir + "/tekken.json";
  return Tokenizer(std::make_unique<Impl>(read_tekken_file(path), path));
}

bool Tokenizer::is_in(const std::string& dir) {
  return file_exists(dir + "/tokenizer.json") || file_exists(dir + "/tiktoken.model") ||
         file_exists(dir + "/tekken.json");
}

Tokenizer Tokenizer::none() {
  auto impl = std::make_unique<Impl>(TokenizerFile{}, "");
  impl->table.clear();
  impl->has_file = false;
  return Tokenizer(std::move(impl));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  if (!impl_->has_file) {
    fail(ErrorCode::kUnsupported, "tokenizer",
         "text needs a tokenizer, and the model's folder has none; give prompts as token ids");
  }
  const std::string clean = replace_invalid_utf8(text);
  std::int64_t steps_left = Regex::step_budget(clean.size());
  std::vector<std::int32_t> ids;
  if (add_special) ids = impl_->prefix;
  for (const Segment& segment : impl_->added.split(clean)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    std::deque<std::string> storage;
    for (const std::string_view piece : impl_->pre_tokenizer.split(segment.text, storage, steps_left))
      impl_->bpe.encode(piece, ids);
  }
  if (add_special) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids, bool skip_special) const {
  std::string bytes;
  for (const std::int32_t id : ids) {
    const Token& token = impl_->token(id);
    if (!token.special || !skip_special) bytes += token.bytes;
  }
  return replace_invalid_utf8(bytes);
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(impl_->table.size());
}

std::int32_t Tokenizer::token_id(std::string_view token) const {
  const auto added = impl_->added_ids.find(std::string(token));
  return added != impl_->added_ids.end() ? added->second : impl_->bpe.id(token);
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(std::int32_t id) {
  const auto& token = tokenizer_->impl_->token(id);
  if (token.special && skip_special_) return {};
  pending_ += token.bytes;
  return take_finished_utf8(pending_);
}

std::string StreamDecoder::finish() {
  return replace_invalid_utf8(std::exchange(pending_, {}));
}

}  // namespace snapmla
