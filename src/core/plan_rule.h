// Where plan() cuts a batch: the arithmetic of both backends. Host and device, integers only.
//
// The unit is a pair of pages, 128 tokens, which is what a decode kernel takes in one step. A worker that ends an
// item and begins another pays kItemPairs for it. There are three balanced plans:
//
// Whole: ceil(batch / num_workers) requests a worker, none of them cut.
//
// Cut: requests lie one behind the other on a line, and a request takes its pairs and kItemPairs more. Equal
// shares of the line say who does what: worker w does the pairs on [w * share, (w + 1) * share).
//
//     share = ceil(line / num_workers)      at least 1; the line ends with the last request's last pair
//
// Even: where lengths are alike, a share often ends just behind the beginning of a request, and its worker pays for
// a second item of a pair or two. So each request gets num_workers / batch workers of its own, and each of them one
// item of ceil(longest / workers of a request) pairs or what is left of the request. Or half as many workers, where
// that is at most num_workers / kCrowdWorkers pairs more.
//
// A plan costs what its slowest worker does. Even plans are taken where they cost no more than share. A cut of either
// kind, c pairs, is not free: both sides write partials that another kernel reads back. Where whole requests cost no
// more than c + kSlackPairs + c / 16, nothing is cut; where they leave half of the workers free, twice
// num_workers / kCrowdWorkers more are allowed. Fixed plans cut every request each so many tokens; a worker does
// the items that begin on its share.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "snapmla/format.h"

namespace snapmla {

inline constexpr int kPairTokens = 2 * kPageTokens;
/// A change of item: 5 to 7 us on an H100, and a pair takes 2.2 us (docs/decode-kernel.md).
inline constexpr int kItemPairs = 3;
/// A cut: partials written and read back on each side, and a merge, 4 us when this was fitted and 3 since.
inline constexpr int kSlackPairs = 2;
/// A crowd: with short items 132 workers of one SM each took 3 to 5 pairs longer than 66, and 66 of two SMs 2 pairs
/// longer than 33 (more partials to merge, pages and results that queue, no SM left where the next kernel could get
/// ready). Half a plan's workers are worth a pair for each 64 of them.
inline constexpr int kCrowdWorkers = 64;

SNAPMLA_HOST_DEVICE inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

/// What all requests together decide.
struct PlanRule {
  int share = 1;              ///< pairs of a worker
  int requests_a_worker = 0;  ///< whole plans: so many; else 0
  int items_a_request = 0;    ///< even plans: at most, each with a worker of its own; else 0
  int split_tokens = 0;       ///< even and fixed plans: of an item but a request's last; else 0
};

/// `line`: the sum of request_length; `longest`: the most pairs in a request.
SNAPMLA_HOST_DEVICE inline PlanRule make_plan_rule(int batch, int num_workers, int fixed_split_tokens,
                                                   int line, int longest) {
  PlanRule rule;
  const int share = ceil_div(line - kItemPairs, num_workers);
  rule.share = share > 1 ? share : 1;
  if (fixed_split_tokens > 0) {
    rule.split_tokens = fixed_split_tokens;
    return rule;
  }
  // Even: over all workers, and over half of them.
  const int most_items = num_workers / batch;
  const int least_pairs = most_items > 0 ? ceil_div(longest, most_items) : longest;
  const bool is_even = most_items > 0 && least_pairs <= rule.share;
  const int cut = is_even ? least_pairs : rule.share;
  const int half_items = num_workers / 2 / batch;
  const int half_gain = num_workers / kCrowdWorkers;

  const int requests = ceil_div(batch, num_workers);
  const std::int64_t whole = std::int64_t{requests} * (longest + kItemPairs) - kItemPairs;
  if (whole <= cut + kSlackPairs + cut / 16 + (half_items == 1 ? 2 * half_gain : 0)) {
    rule.requests_a_worker = requests;
  } else if (is_even) {
    const bool halve = half_items > 0 && ceil_div(longest, half_items) <= least_pairs + half_gain;
    rule.items_a_request = halve ? half_items : most_items;
    rule.split_tokens = ceil_div(longest, rule.items_a_request) * kPairTokens;
  }
  return rule;
}

/// Items of a request that is cut each so many tokens: at least one.
SNAPMLA_HOST_DEVICE inline int split_items(int seq_len, int split_tokens) {
  return seq_len > split_tokens ? ceil_div(seq_len, split_tokens) : 1;
}

/// What a request takes on the line.
SNAPMLA_HOST_DEVICE inline int request_length(int seq_len, int fixed_split_tokens) {
  if (fixed_split_tokens == 0) return ceil_div(seq_len, kPairTokens) + kItemPairs;
  const int before_last = split_items(seq_len, fixed_split_tokens) - 1;
  return before_last * (ceil_div(fixed_split_tokens, kPairTokens) + kItemPairs) +
         ceil_div(seq_len - before_last * fixed_split_tokens, kPairTokens) + kItemPairs;
}

}  // namespace snapmla
