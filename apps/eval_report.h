// What `snapmla eval` found, and how it is shown: text tables, Markdown tables, or JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "eval_stats.h"
#include "greedy.h"
#include "task_file.h"
#include "terminal.h"

namespace snapmla::apps {

/// Perplexity, KL and agreement by context length.
struct TextFigures {
  std::vector<std::pair<Bucket, Figures>> buckets;
  Figures all;
};

struct RetrievalOutcome {
  int length = 0;
  double depth = 0;
  std::optional<bool> bf16{};  ///< answered rightly; absent: that cache was not run
  std::optional<bool> fp8{};
};

struct RetrievalFigures {
  std::string task;  ///< "passkey", "64 pairs"
  int depth_buckets = 1;
  std::vector<RetrievalOutcome> outcomes{};
};

struct EvalResult {
  std::string model;
  std::string backend;
  std::string scale_rule;
  std::uint64_t seed = 0;
  bool has_bf16 = false;
  bool has_fp8 = false;
  std::string fake_format{};  ///< the cache called FP8 is a BF16 cache quantized like this; empty: it is FP8
  std::optional<TextFigures> text{};
  std::vector<RetrievalFigures> retrieval{};
  std::optional<std::vector<GreedyComparison>> greedy{};
  std::optional<TaskFigures> tasks{};
  double seconds = 0;
};

/// How one task went at one length: hits of each cache, and of the same prompts the pairs of verdicts.
struct RetrievalCounts {
  int prompts = 0;
  int bf16 = 0;
  int fp8 = 0;
  int both = 0;
  int only_bf16 = 0;
  int only_fp8 = 0;
  void add(const RetrievalOutcome& outcome);
};

std::string eval_text(const EvalResult& result, const Style& style);
std::string eval_markdown(const EvalResult& result);
nlohmann::ordered_json eval_json(const EvalResult& result);

}  // namespace snapmla::apps
