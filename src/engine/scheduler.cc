#include "engine/scheduler.h"

#include <algorithm>

#include "core/check.h"

namespace snapmla {

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), pool_(limits.num_pages) {
  SNAPMLA_ASSERT(limits.max_batch >= 1 && limits.prefill_chunk >= 1);
}

void Scheduler::add(RequestId request, const Demand& demand) {
  SNAPMLA_ASSERT(request > newest_);
  SNAPMLA_ASSERT(demand.prompt_tokens >= 1 && demand.max_cached >= demand.prompt_tokens);
  SNAPMLA_ASSERT(can_ever_run(demand));
  waiting_.emplace(request, demand);
  newest_ = request;
}

void Scheduler::admit() {
  while (!waiting_.empty() && num_running() < limits_.max_batch) {
    const auto [request, demand] = *waiting_.begin();
    const std::int64_t num_pages = pages_for(demand.max_cached);
    if (num_pages > pool_.num_free()) return;
    running_.emplace(request, Running{.prompt_tokens = demand.prompt_tokens, .pages = pool_.take(num_pages)});
    waiting_.erase(waiting_.begin());
  }
}

StepPlan Scheduler::next_step() {
  admit();
  StepPlan plan;
  for (const auto& [request, state] : running_) {
    const int left = state.prompt_tokens - state.prefilled;
    if (left == 0) {
      plan.decode.push_back(request);
    } else if (!plan.prefill) {
      const int num_tokens = std::min(left, limits_.prefill_chunk);
      plan.prefill = PrefillStep{.request = request,
                                 .start = state.prefilled,
                                 .num_tokens = num_tokens,
                                 .completes_prompt = num_tokens == left};
    }
  }
  return plan;
}

void Scheduler::prefilled(const PrefillStep& step) {
  const auto it = running_.find(step.request);
  SNAPMLA_ASSERT(it != running_.end() && it->second.prefilled == step.start);
  SNAPMLA_ASSERT(step.num_tokens >= 1 && step.num_tokens <= it->second.prompt_tokens - step.start);
  it->second.prefilled += step.num_tokens;
}

void Scheduler::remove(RequestId request) {
  if (waiting_.erase(request) > 0) return;
  const auto it = running_.find(request);
  SNAPMLA_ASSERT(it != running_.end());
  pool_.give_back(it->second.pages);
  running_.erase(it);
}

const std::vector<std::int32_t>& Scheduler::pages(RequestId request) const {
  const auto it = running_.find(request);
  SNAPMLA_ASSERT(it != running_.end());
  return it->second.pages;
}

}  // namespace snapmla
