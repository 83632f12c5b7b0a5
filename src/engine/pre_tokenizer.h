// Cuts a text into the pieces that byte-pair merges never cross: the steps of tokenizer.json in order, each
// on every piece the one before it left.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "engine/regex.h"
#include "engine/tokenizer_file.h"

namespace snapmla {

class PreTokenizer {
 public:
  explicit PreTokenizer(const std::vector<PreTokenStep>& steps);

  /// The pieces of `text` (valid UTF-8), none empty. They point into `text` or into `storage`. steps_left:
  /// see Regex.
  [[nodiscard]] std::vector<std::string_view> split(std::string_view text, std::deque<std::string>& storage,
                                                    std::int64_t& steps_left) const;

 private:
  struct Step {
    bool prefix_space = false;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    std::vector<Regex> regex{};  ///< one, or none for a prefix space
  };
  std::vector<Step> steps_;
};

}  // namespace snapmla
