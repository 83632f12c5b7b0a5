// The files of src/model: safetensors and config.json.
#include <vector>

#include "fuzz/support.h"
#include "fuzz/targets.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "snapmla/error.h"

namespace snapmla::fuzz {

bool safetensors(std::string_view data) {
  static const Scratch scratch;
  scratch.write("model.safetensors", data);
  try {
    const SafetensorsFile file(scratch.path() + "/model.safetensors");
    for (const auto& [name, info] : file.tensors()) {
      check(info.begin >= 0 && info.begin <= info.end, "a tensor's bytes are out of order");
      check(static_cast<std::size_t>(info.end) <= data.size(), "a tensor's bytes run past the file");
      std::vector<char> bytes(static_cast<std::size_t>(info.end - info.begin));
      file.read(name, bytes.data());
    }
    const Checkpoint checkpoint(scratch.path());
    for (const std::string& name : checkpoint.names()) {
      try {
        static_cast<void>(checkpoint.read_f32(name, checkpoint.info(name).shape));
      } catch (const Error&) {  // a dtype that does not convert
      }
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

bool config(std::string_view data) {
  static const Scratch scratch;
  scratch.write("config.json", data);
  try {
    const ModelConfig config = load_config(scratch.path());
    check(config.num_layers > 0 && config.hidden > 0 && config.vocab > 0, "an accepted config has no size");
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace snapmla::fuzz
