#include "greedy.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "core/check.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

/// Runs all prompts and hands out every token: sink(prompt, index of the token, event).
template <class Sink>
void generate_all(Engine& engine, const std::vector<std::vector<std::int32_t>>& prompts, int num_tokens,
                  bool return_logits, const std::function<void()>& on_done, const Sink& sink) {
  struct Place {
    std::size_t prompt = 0;
    int next = 0;
  };
  std::unordered_map<RequestId, Place> places;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const RequestId id = engine.submit({.prompt_tokens = prompts[i],
                                        .max_tokens = num_tokens,
                                        .ignore_eos = true,
                                        .forced_tokens = {},
                                        .return_logits = return_logits});
    places[id] = {.prompt = i};
  }
  while (!engine.idle()) {
    stop_if_asked();
    for (const TokenEvent& event : engine.step()) {
      Place& place = places.at(event.request);
      if (event.token >= 0) sink(place.prompt, place.next++, event);
      if (event.finish != FinishReason::kNone && on_done) on_done();
    }
  }
}

/// Of the row, the largest logit less the second largest.
double margin_of(const std::vector<float>& logits) {
  float first = -std::numeric_limits<float>::infinity();
  float second = first;
  for (const float x : logits) {
    second = std::max(second, std::min(first, x));
    first = std::max(first, x);
  }
  return static_cast<double>(first - second);
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::vector<GreedyComparison> compare_greedy(const Caches& caches,
                                             const std::vector<std::vector<std::int32_t>>& prompts,
                                             int num_tokens, const std::function<void()>& on_done) {
  std::vector<std::vector<std::int32_t>> fp8(prompts.size());
  generate_all(*caches.fp8, prompts, num_tokens, /*return_logits=*/false, on_done,
               [&](std::size_t prompt, int, const TokenEvent& event) { fp8[prompt].push_back(event.token); });
  std::vector<GreedyComparison> comparisons(prompts.size());
  generate_all(*caches.bf16, prompts, num_tokens, /*return_logits=*/true, on_done,
               [&](std::size_t prompt, int index, const TokenEvent& event) {
                 GreedyComparison& comparison = comparisons[prompt];
                 comparison.tokens = index + 1;
                 if (comparison.first_difference) return;
                 const auto at = static_cast<std::size_t>(index);
                 SNAPMLA_ASSERT(at < fp8[prompt].size());
                 const std::int32_t other = fp8[prompt][at];
                 if (other == event.token) {
                   comparison.margins.push_back(margin_of(event.logits));
                   return;
                 }
                 comparison.first_difference = index;
                 comparison.gap = static_cast<double>(event.logits[static_cast<std::size_t>(event.token)] -
                                                      event.logits[static_cast<std::size_t>(other)]);
               });
  return comparisons;
}

GreedySummary summarize(const std::vector<GreedyComparison>& comparisons) {
  GreedySummary summary{.texts = static_cast<int>(comparisons.size())};
  std::vector<double> gaps;
  std::vector<double> margins;
  for (const GreedyComparison& comparison : comparisons) {
    margins.insert(margins.end(), comparison.margins.begin(), comparison.margins.end());
    if (comparison.first_difference) {
      gaps.push_back(comparison.gap);
    } else {
      ++summary.same;
    }
  }
  summary.median_margin = median(margins);
  summary.median_gap = median(gaps);
  summary.largest_gap =
      gaps.empty() ? std::numeric_limits<double>::quiet_NaN() : *std::max_element(gaps.begin(), gaps.end());
  const auto below =
      std::count_if(margins.begin(), margins.end(), [&](double x) { return x < summary.largest_gap; });
  if (!margins.empty())
    summary.margins_below = static_cast<double>(below) / static_cast<double>(margins.size());
  return summary;
}

}  // namespace snapmla::apps
