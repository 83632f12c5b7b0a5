// A model's own queries and cached tokens, layer by layer, taken from decode steps of its engine over a BF16 cache.
#pragma once

#include <string>
#include <vector>

#include "study/attention_rows.h"
#include "study/formats.h"

namespace snapmla {
class Backend;
}

namespace snapmla::apps {

struct RecordOptions {
  std::string model_dir{};
  Backend* backend = nullptr;
  std::string text{};          ///< tokens are read from its start; its end calibrates
  std::vector<int> lengths{};  ///< cached tokens at the last decode step
  int steps = 4;               ///< decode steps, so queries a head, a length
};

struct Recording {
  std::vector<AttentionRows> rows;         ///< a length and layer each, layers of a length together
  std::vector<Calibration> calibration{};  ///< a layer each, from the text's last 1,024 tokens
};

/// Throws Error(kInvalidArgument) if the text has fewer tokens than the greatest length.
Recording record_activations(const RecordOptions& options);

}  // namespace snapmla::apps
