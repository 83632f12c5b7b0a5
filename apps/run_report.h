// What `snapmla run` reports behind the text: speed and cache figures of a generation, and how far the
// outputs of the two caches differ.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "eval_stats.h"
#include "snapmla/engine.h"
#include "terminal.h"

namespace snapmla::apps {

/// One finished generation.
struct Generation {
  CacheFormat format = CacheFormat::kFp8;
  int layers = 0;
  std::vector<std::int32_t> tokens{};
  std::string text{};
  FinishReason finish = FinishReason::kNone;
  EngineStats stats{};

  [[nodiscard]] double prefill_rate() const;  ///< tokens a second
  [[nodiscard]] double decode_rate() const;   ///< of the decode steps alone; 0 without any
};

/// FP8 against BF16: where the texts part, and how the two caches rate the same tokens (the BF16 text's).
struct Difference {
  std::optional<int> first{};  ///< index of the first token that differs; absent: same tokens
  Figures along{};             ///< one score a decode step
};

/// Index of the first token that differs, or that only one has.
std::optional<int> first_difference(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b);

std::string run_text(const Generation& generation, const Style& style);
nlohmann::ordered_json run_json(const Generation& generation);

std::string compare_text(const Generation& fp8, const Generation& bf16, const Difference& difference,
                         const Style& style);
nlohmann::ordered_json difference_json(const Difference& difference);

}  // namespace snapmla::apps
