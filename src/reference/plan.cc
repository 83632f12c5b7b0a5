// plan: cuts requests into work items at page borders and hands them to workers in order.
//
// Balanced: the pages of all requests, one after the other, are cut into num_workers runs of equal length; an
// item is the part of one request in one run. Fixed: a request is cut every fixed_split_tokens; the items are
// then dealt out in the same manner, so only who does an item depends on the rest of the batch, never what it
// is.
#include <algorithm>
#include <cstdint>

#include "reference/ops.h"
#include "reference/page.h"

namespace snapmla::reference_ops {
namespace {

std::int64_t pages_for(std::int64_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

}  // namespace

void plan(const PlanParams& params) {
  constexpr const char* kOp = "plan";
  const PlanShape& shape = params.plan.shape;
  auto* work_items = params.plan.work_items.as<std::int32_t>();
  auto* worker_offsets = params.plan.worker_offsets.as<std::int32_t>();
  auto* split_offsets = params.plan.split_offsets.as<std::int32_t>();

  std::int64_t total_pages = 0;
  for (int b = 0; b < shape.batch; ++b) total_pages += pages_for(seq_len_of(kOp, params.seq_lens, b));
  const std::int64_t pages_a_worker =
      std::max<std::int64_t>(1, (total_pages + shape.num_workers - 1) / shape.num_workers);

  int num_items = 0;
  int worker = 0;
  std::int64_t pages_done = 0;  // by all workers so far
  worker_offsets[0] = 0;
  for (int b = 0; b < shape.batch; ++b) {
    const int seq_len = seq_len_of(kOp, params.seq_lens, b);
    split_offsets[b] = num_items;
    int first = 0;
    do {
      // The next worker starts once this one has its share; a worker may get nothing where an item is long.
      while (worker + 1 < shape.num_workers && pages_done >= (worker + 1) * pages_a_worker)
        worker_offsets[++worker] = num_items;
      const std::int64_t room = shape.fixed_split_tokens > 0
                                    ? shape.fixed_split_tokens
                                    : ((worker + 1) * pages_a_worker - pages_done) * kPageTokens;
      const int end = static_cast<int>(std::min<std::int64_t>(seq_len, first + room));
      SNAPMLA_REQUIRE(num_items < shape.max_items, kOp,
                      "seq_lens must not exceed the max_seq_len that the plan was made for; got ", seq_len,
                      " for request ", b);
      std::int32_t* item = work_items + std::int64_t{4} * num_items;
      item[0] = b;
      item[1] = first;
      item[2] = end;
      item[3] = num_items;
      ++num_items;
      pages_done += pages_for(end - first);
      first = end;
    } while (first < seq_len);
  }
  split_offsets[shape.batch] = num_items;
  while (worker < shape.num_workers) worker_offsets[++worker] = num_items;
}

}  // namespace snapmla::reference_ops
