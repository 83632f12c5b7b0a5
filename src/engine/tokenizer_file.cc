#include "engine/tokenizer_file.h"

#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "engine/json_node.h"
#include "engine/utf8.h"

namespace snapmla {
namespace {

// The built-in regex of ByteLevel with use_regex: GPT-2's.
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr int kMaxNesting = 8;

/// The parts of `node` in order, Sequences (whose list is at `key`) opened; none if it is null.
void flatten(const JsonNode& node, const std::string& key, std::vector<JsonNode>& out, int depth = 0) {
  if (node.is_null()) return;
  if (depth > kMaxNesting) node.unsupported(" is nested too deeply");
  if (node.at("type").string() != "Sequence") return out.push_back(node);
  for (const JsonNode& part : node.at(key).list()) flatten(part, key, out, depth + 1);
}

std::vector<JsonNode> flatten(const JsonNode& node, const std::string& key) {
  std::vector<JsonNode> parts;
  flatten(node, key, parts);
  return parts;
}

[[noreturn]] void refuse_type(const JsonNode& node, std::string_view supported) {
  node.unsupported(" of type ", quote_text(node.at("type").string()),
                   " is not supported; supported: ", supported);
}

void read_vocab(const JsonNode& node, TokenizerFile& file) {
  std::unordered_map<std::int32_t, std::string> by_id;
  for (const auto& [token, value] : node.fields()) {
    const std::int32_t id = value.token_id();
    const auto [other, fresh] = by_id.emplace(id, token);
    if (!fresh) value.corrupt(" has id ", id, ", which ", quote_text(other->second), " has too");
    file.vocab.emplace_back(token, id);
  }
  if (file.vocab.empty()) node.corrupt(" is empty");
}

void read_merges(const JsonNode& node, TokenizerFile& file) {
  for (const JsonNode& merge : node.list()) {
    if (merge.is_string()) {
      const std::string text = merge.string();
      const std::size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
        merge.corrupt(" must be two tokens with a space between; got ", quote_text(text));
      file.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else {
      const std::vector<JsonNode> pair = merge.list();
      if (pair.size() != 2) merge.corrupt(" must have two tokens; got ", pair.size());
      file.merges.emplace_back(pair[0].string(), pair[1].string());
    }
  }
}

void read_model(const JsonNode& model, TokenizerFile& file) {
  if (!model.is_object()) model.corrupt(" must be an object");
  const JsonNode type = model.at("type");
  // Files from before 2020 have no type; a BPE model is known by its merges.
  if (type.is_null() ? model.at("merges").is_null() : type.string() != "BPE")
    type.unsupported(" must be \"BPE\"; got ", type.is_null() ? "none" : quote_text(type.string()));
  if (model.at("byte_fallback").flag(false)) model.at("byte_fallback").unsupported(" is not supported");
  if (!model.at("dropout").is_null()) model.at("dropout").unsupported(" is not supported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonNode affix = model.at(key);
    if (!affix.is_null() && !affix.string().empty()) affix.unsupported(" is not supported");
  }
  file.needs_all_bytes = !model.at("unk_token").is_null();
  file.ignore_merges = model.at("ignore_merges").flag(false);
  read_vocab(model.at("vocab"), file);
  read_merges(model.at("merges"), file);
}

SplitBehavior read_behavior(const JsonNode& node) {
  const std::string name = node.string();
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  node.unsupported(" ", quote_text(name), " is not supported");
}

PreTokenStep read_split(const JsonNode& node) {
  const JsonNode regex = node.at("pattern").at("Regex");
  const JsonNode text = node.at("pattern").at("String");
  if (regex.is_null() == text.is_null()) node.at("pattern").corrupt(" must have either Regex or String");
  return {.pattern = regex.is_null() ? text.string() : regex.string(),
          .literal = regex.is_null(),
          .behavior = read_behavior(node.at("behavior")),
          .invert = node.at("invert").flag(false)};
}

void read_pre_tokenizer(const JsonNode& root, TokenizerFile& file) {
  bool byte_level = false;
  for (const JsonNode& node : flatten(root, "pretokenizers")) {
    if (byte_level) node.unsupported(" comes after ByteLevel, which must be the last pre-tokenizer");
    const std::string type = node.at("type").string();
    if (type == "Split") {
      file.pre_tokenizer.push_back(read_split(node));
    } else if (type == "Digits") {
      const bool each = node.at("individual_digits").flag(false);
      file.pre_tokenizer.push_back(
          {.pattern = "\\p{N}", .behavior = each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
    } else if (type == "ByteLevel") {
      byte_level = true;
      if (node.at("add_prefix_space").flag(true)) file.pre_tokenizer.push_back({.prefix_space = true});
      if (node.at("use_regex").flag(true)) file.pre_tokenizer.push_back({.pattern = kByteLevelPattern});
    } else {
      refuse_type(node, "Sequence, Split, Digits, ByteLevel");
    }
  }
  if (!byte_level) root.unsupported(" must contain ByteLevel: only byte-level BPE is supported");
}

void read_decoder(const JsonNode& root) {
  int byte_levels = 0;
  for (const JsonNode& node : flatten(root, "decoders")) {
    const std::string type = node.at("type").string();
    if (type == "ByteLevel") {
      ++byte_levels;
    } else if (type != "Fuse") {  // joins what ByteLevel has already joined
      refuse_type(node, "Sequence, ByteLevel, Fuse");
    }
  }
  if (byte_levels != 1) root.unsupported(" must contain ByteLevel once; it does ", byte_levels, " times");
}

/// The ids around the one sequence of a TemplateProcessing's `single`.
void read_template(const JsonNode& node, TokenizerFile& file) {
  bool seen_text = false;
  for (const JsonNode& piece : node.at("single").list()) {
    const JsonNode special = piece.at("SpecialToken");
    const JsonNode sequence = piece.at("Sequence");
    if (special.is_null() == sequence.is_null()) piece.corrupt(" must have either SpecialToken or Sequence");
    if (special.is_null()) {
      if (seen_text || sequence.at("id").string() != "A")
        sequence.unsupported(" must be A, once: no other sequence is supported");
      seen_text = true;
      continue;
    }
    const JsonNode definition = node.at("special_tokens").at(special.at("id").string());
    if (definition.is_null()) special.corrupt(" is not among special_tokens");
    for (const JsonNode& id : definition.at("ids").list())
      (seen_text ? file.suffix : file.prefix).push_back(id.token_id());
  }
  if (!seen_text) node.at("single").unsupported(" has no Sequence A");
}

void read_post_processor(const JsonNode& root, TokenizerFile& file) {
  bool seen = false;
  for (const JsonNode& node : flatten(root, "processors")) {
    const std::string type = node.at("type").string();
    if (type == "ByteLevel") continue;  // changes offsets only
    if (type != "TemplateProcessing") refuse_type(node, "Sequence, ByteLevel, TemplateProcessing");
    if (seen) node.unsupported(" is a second TemplateProcessing");
    seen = true;
    read_template(node, file);
  }
}

void read_added_tokens(const JsonNode& root, TokenizerFile& file) {
  if (root.is_null()) return;
  std::unordered_map<std::string, std::int32_t> by_content(file.vocab.begin(), file.vocab.end());
  std::unordered_map<std::int32_t, std::string> by_id;
  for (const auto& [token, id] : file.vocab) by_id.emplace(id, token);
  for (const JsonNode& node : root.list()) {
    AddedToken token{.content = node.at("content").string(),
                     .id = node.at("id").token_id(),
                     .single_word = node.at("single_word").flag(false),
                     .lstrip = node.at("lstrip").flag(false),
                     .rstrip = node.at("rstrip").flag(false),
                     .normalized = node.at("normalized").flag(true),
                     .special = node.at("special").flag(false)};
    if (token.content.empty()) node.at("content").corrupt(" is empty");
    const auto other_id = by_content.emplace(token.content, token.id).first->second;
    const std::string& other = by_id.emplace(token.id, token.content).first->second;
    if (other_id != token.id)
      node.corrupt(": ", quote_text(token.content), " has id ", token.id, " here and ", other_id,
                   " elsewhere");
    if (other != token.content) node.corrupt(" has id ", token.id, ", which ", quote_text(other), " has too");
    file.added_tokens.push_back(std::move(token));
  }
}

void check_template_ids(const JsonNode& root, const TokenizerFile& file) {
  std::unordered_set<std::int32_t> known;
  for (const auto& [token, id] : file.vocab) known.insert(id);
  for (const AddedToken& token : file.added_tokens) known.insert(token.id);
  for (const auto* ids : {&file.prefix, &file.suffix})
    for (const std::int32_t id : *ids)
      if (known.count(id) == 0) root.corrupt(" adds id ", id, ", which no token has");
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::string& path) {
  const nlohmann::json json = read_json(path);
  const JsonNode root(json, path, "");

  TokenizerFile file;
  read_model(root.at("model"), file);
  read_added_tokens(root.at("added_tokens"), file);
  for (const JsonNode& node : flatten(root.at("normalizer"), "normalizers"))
    refuse_type(node, "an empty Sequence");
  read_pre_tokenizer(root.at("pre_tokenizer"), file);
  read_decoder(root.at("decoder"));
  read_post_processor(root.at("post_processor"), file);
  check_template_ids(root.at("post_processor"), file);
  return file;
}

}  // namespace snapmla
