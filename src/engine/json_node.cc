#include "engine/json_node.h"

#include <cerrno>
#include <cstring>
#include <fstream>

namespace snapmla {

std::string read_tokenizer_text(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(ErrorCode::kNotFound, "tokenizer", path, " cannot be opened: ", std::strerror(errno));
  std::string text;
  std::string chunk(1 << 16, '\0');
  while (stream.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || stream.gcount() > 0)
    text.append(chunk, 0, static_cast<std::size_t>(stream.gcount()));
  if (stream.bad()) fail(ErrorCode::kIo, "tokenizer", path, " cannot be read: ", std::strerror(errno));
  return text;
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
