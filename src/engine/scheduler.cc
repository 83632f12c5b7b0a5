#include "engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/check.h"

namespace snapmla {

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), pool_(limits.num_pages) {
  SNAPMLA_ASSERT(limits.max_batch >= 1);
}

void Scheduler::add(RequestId request, std::span<const std::int32_t> prompt, int max_cached) {
  SNAPMLA_ASSERT(request > newest_);
  SNAPMLA_ASSERT(!prompt.empty() && max_cached >= std::ssize(prompt) && can_ever_run(max_cached));
  waiting_.emplace(request, State{.prompt = prompt});
  newest_ = request;
}

std::vector<DecodeRow> Scheduler::next_decode() {
  // Preempting takes requests off the end of running_, in the end this one too.
  for (auto it = running_.begin(); it != running_.end();) {
    State& state = it->second;
    if (state.cached < std::ssize(state.pages) * kPageTokens) {
      ++it;
    } else if (pool_.num_available() > 0) {
      state.pages.push_back(pool_.take(1).front());
    } else {
      if (std::next(it) == running_.end()) it = running_.end();
      preempt_youngest();
    }
  }
  std::vector<DecodeRow> rows;
  std::vector<DecodeRow> replays;
  int num_spare = limits_.max_batch - num_running();
  for (const auto& [request, state] : running_) {
    if (state.is_prefilling()) continue;
    const int last = state.num_tokens() - 1;
    if (state.cached == last) {
      rows.push_back({.request = request, .position = last, .wants_token = true});
      continue;
    }
    const int num_more = std::min(num_spare, last - 1 - state.cached);
    num_spare -= num_more;
    for (int i = 0; i <= num_more; ++i) {
      replays.push_back({.request = request, .position = state.cached + i});
    }
  }
  rows.insert(rows.end(), replays.begin(), replays.end());
  return rows;
}

void Scheduler::decoded(const DecodeRow& row) {
  const auto it = running_.find(row.request);
  SNAPMLA_ASSERT(it != running_.end());
  State& state = it->second;
  SNAPMLA_ASSERT(!state.is_prefilling() && state.cached == row.position);
  ++state.cached;
  if (row.wants_token) ++state.generated;
  SNAPMLA_ASSERT(state.cached < state.num_tokens());
}

std::optional<PrefillStep> Scheduler::next_prefill(int most) {
  SNAPMLA_ASSERT(most >= 1);
  const bool busy = !running_.empty() && running_.rbegin()->second.is_prefilling();
  if (!busy && !admit_oldest()) return std::nullopt;
  const auto& [request, state] = *running_.rbegin();
  const int left = state.num_prompt() - state.cached;
  return PrefillStep{.request = request,
                     .start = state.cached,
                     .num_tokens = std::min(left, most),
                     .copy_from = state.copy_from,
                     .wants_token = left <= most && state.generated == 0};
}

bool Scheduler::admit_oldest() {
  if (waiting_.empty() || num_running() >= limits_.max_batch) return false;
  State& state = waiting_.begin()->second;
  KnownPrefix known;
  if (limits_.prefix_caching) known = pool_.find(state.prompt.first(state.prompt.size() - 1));
  // Of what is available, it needs its new pages, and those it shares with nobody who runs.
  const std::int64_t num_new = pages_for(state.num_tokens()) - std::ssize(known.pages);
  const std::int64_t num_kept = std::count_if(known.pages.begin(), known.pages.end(),
                                              [this](std::int32_t page) { return !pool_.is_held(page); });
  const std::int64_t num_needed = num_new + num_kept + num_running();
  if (num_needed > pool_.num_available()) return false;
  // A page to copy must outlive the taking; if there is no room for that, it is prefilled anew.
  if (known.partial_tokens > 0 && (pool_.is_held(known.partial_page) || num_needed < pool_.num_available())) {
    state.copy_from = known.partial_page;
    state.cached = known.partial_tokens;
    pool_.hold(state.copy_from);
  }
  for (const std::int32_t page : known.pages) pool_.hold(page);
  state.cached += static_cast<int>(std::ssize(known.pages)) * kPageTokens;
  num_tokens_found_ += state.cached;
  state.pages = std::move(known.pages);
  const std::vector<std::int32_t> taken = pool_.take(num_new);
  state.pages.insert(state.pages.end(), taken.begin(), taken.end());
  running_.insert(waiting_.extract(waiting_.begin()));
  return true;
}

void Scheduler::prefilled(const PrefillStep& step) {
  const auto it = running_.find(step.request);
  SNAPMLA_ASSERT(it != running_.end());
  State& state = it->second;
  SNAPMLA_ASSERT(step.num_tokens >= 1 && step.start == state.cached);
  SNAPMLA_ASSERT(step.num_tokens <= state.num_prompt() - state.cached);
  state.cached += step.num_tokens;
  if (step.wants_token) ++state.generated;
  if (state.copy_from != PagePool::kNoPage) {
    pool_.release({std::exchange(state.copy_from, PagePool::kNoPage)});
  }
  if (limits_.prefix_caching) publish_prompt(state, step.start / kPageTokens);
}

// Pages from the first-th on: whole ones, and the prompt's last when the prompt is complete.
void Scheduler::publish_prompt(State& state, int first) {
  const int end =
      state.is_prefilling() ? state.cached / kPageTokens : static_cast<int>(pages_for(state.num_prompt()));
  for (int i = first; i < end; ++i) {
    const auto begin = static_cast<std::size_t>(i) * kPageTokens;
    const auto tokens =
        state.prompt.subspan(begin, std::min<std::size_t>(kPageTokens, state.prompt.size() - begin));
    const std::int32_t parent = i == 0 ? PagePool::kNoPage : state.pages[static_cast<std::size_t>(i) - 1];
    std::int32_t& page = state.pages[static_cast<std::size_t>(i)];
    const std::int32_t known = pool_.publish(parent, tokens, page);
    // Another request was quicker. Its page has the same bits; a page still to be written is not shared.
    if (known == page || tokens.size() < kPageTokens) continue;
    pool_.hold(known);
    pool_.release({std::exchange(page, known)});
  }
}

void Scheduler::preempt_youngest() {
  const auto youngest = std::prev(running_.end());
  let_go(youngest->second);
  waiting_.insert(running_.extract(youngest));
  ++num_preemptions_;
}

void Scheduler::let_go(State& state) {
  if (state.copy_from != PagePool::kNoPage) {
    pool_.release({std::exchange(state.copy_from, PagePool::kNoPage)});
  }
  pool_.release(std::exchange(state.pages, {}));
  state.cached = 0;
}

void Scheduler::remove(RequestId request) {
  if (waiting_.erase(request) > 0) return;
  const auto it = running_.find(request);
  SNAPMLA_ASSERT(it != running_.end());
  let_go(it->second);
  running_.erase(it);
}

const std::vector<std::int32_t>& Scheduler::pages(RequestId request) const {
  const auto it = running_.find(request);
  SNAPMLA_ASSERT(it != running_.end());
  return it->second.pages;
}

}  // namespace snapmla
