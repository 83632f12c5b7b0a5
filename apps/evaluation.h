// Scoring text with one or two engines in step: every scored token comes from a decode step over the cache.
//
// A sequence is a prefix, written by prefill, and tokens after it, teacher-forced. The first token after the
// prefix is predicted by prefill itself and therefore not scored; each later one is predicted by a decode
// step that reads the cache of all tokens before it. Two engines are stepped in turn, so that only the logits
// of tokens the other has not reached yet are held.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "eval_stats.h"
#include "snapmla/engine.h"

namespace snapmla::apps {

/// The engines to run; either may be absent.
struct Caches {
  Engine* bf16 = nullptr;
  Engine* fp8 = nullptr;
};

struct Sequence {
  std::vector<std::int32_t> tokens;  ///< prefix, one unscored token, scored tokens
  int prefix = 1;

  [[nodiscard]] int num_scored() const { return static_cast<int>(tokens.size()) - prefix - 1; }
};

struct ScoreHooks {
  std::function<void(const TokenScore&)> on_score;  ///< must be set
  std::function<void(Engine&)> after_step;          ///< may be absent; tests damage the cache here
};

/// Scores all sequences and returns the number of tokens scored. Throws Stop on a signal, and what the
/// engines throw.
std::int64_t score_sequences(const Caches& caches, const std::vector<Sequence>& sequences,
                             const ScoreHooks& hooks);

struct WindowOptions {
  std::int64_t num_tokens = 10240;  ///< scored tokens at least, spread evenly over the buckets
  int max_context = 4096;
  std::uint64_t seed = 0;
};

/// Cuts sequences from documents laid end to end (each already with its begin and end tokens, if the model
/// has any): windows start at the head of a document, and their prefixes are drawn so that every context
/// bucket gets its share. Throws Error(kInvalidArgument) if the text is too short for max_context.
std::vector<Sequence> make_windows(const std::vector<std::vector<std::int32_t>>& documents,
                                   const WindowOptions& options);

/// The paragraphs-of-lines between blank lines.
std::vector<std::string> split_documents(const std::string& text);

}  // namespace snapmla::apps
