// plan: cuts requests into work items and hands them to workers in order; where, says core/plan_rule.h.
//
// Balanced: an item is a whole request, one of a request's even parts, or the part of one request in one worker's
// share. Fixed: a request is cut every fixed_split_tokens; only who does an item depends on the rest of the batch,
// never what it is.
#include <algorithm>
#include <cstdint>

#include "core/plan_rule.h"
#include "reference/ops.h"
#include "reference/page.h"

namespace snapmla::reference_ops {
namespace {

PlanRule rule_for(const PlanParams& params) {
  const PlanShape& shape = params.plan.shape;
  int line = 0;
  int longest = 0;
  for (int b = 0; b < shape.batch; ++b) {
    const int seq_len = seq_len_of("plan", params.seq_lens, b);
    line += request_length(seq_len, shape.fixed_split_tokens);
    longest = std::max(longest, ceil_div(seq_len, kPairTokens));
  }
  return make_plan_rule(shape.batch, shape.num_workers, shape.fixed_split_tokens, line, longest);
}

/// The worker of a request's item `k`, which begins at `place` on the line.
int owner_of(const PlanRule& rule, int request, int k, int place, int num_workers) {
  if (rule.requests_a_worker > 0) return request / rule.requests_a_worker;
  if (rule.items_a_request > 0) return request * rule.items_a_request + k;
  return std::min(place / rule.share, num_workers - 1);
}

}  // namespace

void plan(const PlanParams& params) {
  const PlanShape& shape = params.plan.shape;
  auto* work_items = params.plan.work_items.as<std::int32_t>();
  auto* worker_offsets = params.plan.worker_offsets.as<std::int32_t>();
  auto* split_offsets = params.plan.split_offsets.as<std::int32_t>();
  const PlanRule rule = rule_for(params);

  int num_items = 0;
  int worker = 0;
  int place = 0;  // on the line: where the next item begins
  worker_offsets[0] = 0;
  for (int b = 0; b < shape.batch; ++b) {
    const int seq_len = seq_len_of("plan", params.seq_lens, b);
    const int request_end = place + request_length(seq_len, shape.fixed_split_tokens);
    split_offsets[b] = num_items;
    int first = 0;
    do {
      const int owner = owner_of(rule, b, num_items - split_offsets[b], place, shape.num_workers);
      while (worker < owner) worker_offsets[++worker] = num_items;  // some may get nothing
      std::int64_t tokens = seq_len;
      if (rule.split_tokens > 0) {
        tokens = rule.split_tokens;
        place += ceil_div(rule.split_tokens, kPairTokens) + kItemPairs;
      } else if (rule.requests_a_worker == 0) {
        const int share_end = (owner + 1) * rule.share;
        tokens = std::int64_t{share_end - place} * kPairTokens;
        place = share_end;
      }
      const int end = static_cast<int>(std::min<std::int64_t>(seq_len, first + tokens));
      SNAPMLA_REQUIRE(num_items < shape.max_items, "plan",
                      "seq_lens must not exceed the max_seq_len that the plan was made for; got ", seq_len,
                      " for request ", b);
      std::int32_t* item = work_items + std::int64_t{4} * num_items;
      item[0] = b;
      item[1] = first;
      item[2] = end;
      item[3] = num_items;
      ++num_items;
      first = end;
    } while (first < seq_len);
    place = request_end;
  }
  split_offsets[shape.batch] = num_items;
  while (worker < shape.num_workers) worker_offsets[++worker] = num_items;
}

}  // namespace snapmla::reference_ops
