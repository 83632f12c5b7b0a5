// Where plan() cuts a batch: the arithmetic of both backends. Host and device, integers only.
//
// The unit is a pair of pages, 128 tokens, which is what a decode kernel takes in one step. Requests lie one
// behind the other on a line: a request takes its pairs and kItemPairs more, what it costs to begin an item
// and to hand in its result. Cut into num_workers equal shares, the line says who does what: worker w does
// the pairs on [w * share, (w + 1) * share).
//
//     share = ceil(line / num_workers)      at least 1; the line ends with the last request's last pair
//
// Balanced plans cut requests where shares end. But a cut is not free either: both sides write fp32 partials
// that another kernel reads back. Where whole requests, ceil(batch / num_workers) a worker, cost no more than
// share + kSlackPairs + share / 16, nothing is cut. Fixed plans cut every request each so many tokens; a
// worker does the items that begin on its share.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "snapmla/format.h"

namespace snapmla {

inline constexpr int kPairTokens = 2 * kPageTokens;
/// An item's fixed cost: query load, first page's latency, epilogue. An estimate, not measured: about a pair's.
inline constexpr int kItemPairs = 1;
/// A cut's, estimated likewise: 128 KB of fp32 partials for 64 rows, written and read back on each side, and a merge.
inline constexpr int kSlackPairs = 2;

SNAPMLA_HOST_DEVICE inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

/// What all requests together decide. `line`: the sum of request_length; `longest`: the most pairs in a
/// request.
struct PlanRule {
  int share = 1;              ///< pairs of a worker
  int requests_a_worker = 0;  ///< if not 0: whole requests, so many a worker
};

SNAPMLA_HOST_DEVICE inline PlanRule make_plan_rule(int batch, int num_workers, bool balanced, int line,
                                                   int longest) {
  PlanRule rule;
  const int share = ceil_div(line - kItemPairs, num_workers);
  rule.share = share > 1 ? share : 1;
  const int requests = ceil_div(batch, num_workers);
  const std::int64_t whole = std::int64_t{requests} * (longest + kItemPairs) - kItemPairs;
  if (balanced && whole <= rule.share + kSlackPairs + rule.share / 16) rule.requests_a_worker = requests;
  return rule;
}

/// Items of a request in a fixed plan: at least one.
SNAPMLA_HOST_DEVICE inline int fixed_items(int seq_len, int fixed_split_tokens) {
  return seq_len > fixed_split_tokens ? ceil_div(seq_len, fixed_split_tokens) : 1;
}

/// What a request takes on the line.
SNAPMLA_HOST_DEVICE inline int request_length(int seq_len, int fixed_split_tokens) {
  if (fixed_split_tokens == 0) return ceil_div(seq_len, kPairTokens) + kItemPairs;
  const int before_last = fixed_items(seq_len, fixed_split_tokens) - 1;
  return before_last * (ceil_div(fixed_split_tokens, kPairTokens) + kItemPairs) +
         ceil_div(seq_len - before_last * fixed_split_tokens, kPairTokens) + kItemPairs;
}

}  // namespace snapmla
