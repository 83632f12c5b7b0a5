// Tokenizers that list tokens by rank, without merges and without Hugging Face's JSON:
//
//   tiktoken.model   Kimi: a line "base64 rank" a token. Its regex stands in Kimi's own code and so in ours; its 256
//                    special tokens follow the others and have their names in tokenizer_config.json.
//   tekken.json      Mistral: regex, tokens and special tokens in one file; special tokens have the first ids.
//
// Both are tiktoken's: text outside every match of the regex is dropped, a piece that is a token stays whole, and
// merges go by rank. Special tokens are recognised in text, as in tokenizer.json: chat templates write them out.
// Kimi's code cuts runs of more than 25,000 characters without (or of nothing but) white space before it encodes
// them; that protects its library and is not done here.
#pragma once

#include <string>

#include "engine/tokenizer_file.h"

namespace snapmla {

/// Reads <dir>/tiktoken.model and <dir>/tokenizer_config.json. Throws kNotFound, kIo, kCorruptFile, kUnsupported; the
/// text names file and field.
[[nodiscard]] TokenizerFile read_tiktoken_files(const std::string& dir);

/// Reads a tekken.json. Throws as above.
[[nodiscard]] TokenizerFile read_tekken_file(const std::string& path);

}  // namespace snapmla
