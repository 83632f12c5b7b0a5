// Made-up attention over up to a million tokens, streamed: logits of a few kinds over latents N(mean_d, 1) as an FP8
// cache stores them. The kinds are those of bench/error_vs_length.py, so that its measured curves lie beside these;
// the sinks stand at token 0, where models have them, over a rest that spreads.
#pragma once

#include <vector>

#include "study/table.h"
#include "study/weighted_sum.h"

namespace snapmla::apps {

enum class LogitKind {
  kUniform,  ///< all equal
  kFlat,     ///< a deviation of 1.2
  kPeaked,   ///< 3.6
  kSink8,    ///< token 0 stands 8 nats above the mean of the rest, which is flat
  kSink12,
};
/// "uniform", "flat", "peaked", "sink8", "sink12".
const char* to_string(LogitKind kind);

struct LongContextOptions {
  const char* part = "";
  std::vector<LogitKind> kinds{};
  std::vector<WeightedSumRule> rules{};
  std::vector<int> lengths{};  ///< multiples of 1,024
  std::size_t width = 512;
};

/// Every rule against the formula (WeightRange::kNone) on the same stored numbers: what P and the sums cost.
std::vector<StudyLine> study_long_context(const LongContextOptions& options);

/// P against its block, against a bound, against a running range, and in the paper's form.
std::vector<WeightedSumRule> weight_rules();
/// Chains of 64 to 512 tokens, and one that never ends.
std::vector<WeightedSumRule> accumulation_rules();

}  // namespace snapmla::apps
