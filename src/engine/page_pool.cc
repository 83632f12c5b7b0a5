#include "engine/page_pool.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace snapmla {
namespace {

int common_tokens(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  const std::size_t most = std::min(a.size(), b.size());
  return static_cast<int>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(most), b.begin()).first - a.begin());
}

}  // namespace

PagePool::PagePool(std::int64_t num_pages) {
  SNAPMLA_ASSERT(num_pages >= 0 && num_pages <= std::numeric_limits<std::int32_t>::max());
  pages_.resize(static_cast<std::size_t>(num_pages), Page{.known = index_.end(), .kept = kept_.end()});
  free_.resize(static_cast<std::size_t>(num_pages));
  std::iota(free_.rbegin(), free_.rend(), 0);
}

std::size_t PagePool::checked(std::int32_t page) const {
  SNAPMLA_ASSERT(page >= 0 && page < num_total());
  return static_cast<std::size_t>(page);
}

std::vector<std::int32_t> PagePool::take(std::int64_t count) {
  SNAPMLA_ASSERT(count >= 0 && count <= num_available());
  while (static_cast<std::int64_t>(free_.size()) < count) forget_oldest();
  std::vector<std::int32_t> taken(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - static_cast<std::size_t>(count));
  for (const std::int32_t page : taken) at(page).holders = 1;
  return taken;
}

void PagePool::forget_oldest() {
  const std::int32_t page = kept_.front();
  const auto child = index_.lower_bound({page, {}});
  SNAPMLA_ASSERT(child == index_.end() || child->first.first != page);
  index_.erase(at(page).known);
  kept_.pop_front();
  at(page) = {.known = index_.end(), .kept = kept_.end()};
  free_.push_back(page);
}

void PagePool::hold(std::int32_t page) {
  Page& state = at(page);
  SNAPMLA_ASSERT(state.holders > 0 || state.kept != kept_.end());
  if (state.kept != kept_.end()) kept_.erase(std::exchange(state.kept, kept_.end()));
  ++state.holders;
}

void PagePool::release(const std::vector<std::int32_t>& pages) {
  std::vector<std::int32_t> sorted = pages;
  std::sort(sorted.begin(), sorted.end());
  SNAPMLA_ASSERT(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
  for (const std::int32_t page : pages) SNAPMLA_ASSERT(is_held(page));
  for (std::size_t i = pages.size(); i-- > 0;) {
    Page& state = at(pages[i]);
    if (--state.holders > 0) continue;
    if (state.known != index_.end()) {
      state.kept = kept_.insert(kept_.end(), pages[i]);
    } else {
      free_.push_back(pages[i]);
    }
  }
}

KnownPrefix PagePool::find(std::span<const std::int32_t> tokens) const {
  KnownPrefix prefix;
  std::int32_t parent = kNoPage;
  while (true) {
    const auto rest = tokens.subspan(prefix.pages.size() * kPageTokens);
    const auto page_tokens = rest.first(std::min<std::size_t>(rest.size(), kPageTokens));
    const auto next = index_.lower_bound({parent, {page_tokens.begin(), page_tokens.end()}});
    const auto look_at = [&](Index::const_iterator entry) {
      if (entry->first.first != parent) return;
      const int common = common_tokens(entry->first.second, page_tokens);
      if (common > prefix.partial_tokens) {
        prefix.partial_page = entry->second;
        prefix.partial_tokens = common;
      }
    };
    if (next != index_.end()) look_at(next);
    if (next != index_.begin()) look_at(std::prev(next));
    if (prefix.partial_tokens < kPageTokens) return prefix;
    parent = prefix.partial_page;
    prefix.pages.push_back(parent);
    prefix.partial_page = kNoPage;
    prefix.partial_tokens = 0;
  }
}

std::int32_t PagePool::publish(std::int32_t parent, std::span<const std::int32_t> tokens, std::int32_t page) {
  SNAPMLA_ASSERT(!tokens.empty() && tokens.size() <= kPageTokens);
  SNAPMLA_ASSERT(parent == kNoPage || (is_held(parent) && at(parent).known != index_.end()));
  SNAPMLA_ASSERT(is_held(page) && at(page).known == index_.end());
  const auto [entry, added] = index_.try_emplace({parent, {tokens.begin(), tokens.end()}}, page);
  if (added) at(page).known = entry;
  return entry->second;
}

}  // namespace snapmla
