#include "engine/json_node.h"

#include "model/file.h"

namespace snapmla {
namespace {

constexpr std::int64_t kMaxFileBytes = 256 << 20;  // the largest today, of 200,000 tokens, take 30 MB

}  // namespace

std::string read_tokenizer_text(const std::string& path) {
  return read_whole_file("tokenizer", path, kMaxFileBytes);
}

nlohmann::json read_json(const std::string& path) {
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(read_tokenizer_text(path));
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorCode::kCorruptFile, "tokenizer", path, " is not JSON: ", e.what());
  }
  if (!json.is_object())
    fail(ErrorCode::kCorruptFile, "tokenizer", path, ": the file must be an object; got ", json.type_name());
  return json;
}

}  // namespace snapmla
