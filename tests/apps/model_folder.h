// A small random model that whole programs can run: tiny_config() with the vocabulary and the tokenizer of
// the bundled model, and a little text to evaluate on.
#pragma once

#include <filesystem>
#include <string>

#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla::testing {

inline const std::string kBundledModel = SNAPMLA_SOURCE_DIR "/models/tiny-mla";

inline std::string make_model_folder(const std::string& dir) {
  nlohmann::json config = tiny_config();
  config["vocab_size"] = 2048;
  write_checkpoint(dir, config);
  for (const char* name : {"tokenizer.json", "held_out.txt"}) {
    std::filesystem::copy_file(kBundledModel + "/" + name, dir + "/" + name);
  }
  return dir;
}

}  // namespace snapmla::testing
