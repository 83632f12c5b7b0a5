#include "engine/page_pool.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace snapmla {

PagePool::PagePool(std::int64_t num_pages) {
  SNAPMLA_ASSERT(num_pages >= 0 && num_pages <= std::numeric_limits<std::int32_t>::max());
  in_use_.resize(static_cast<std::size_t>(num_pages), false);
  free_.resize(static_cast<std::size_t>(num_pages));
  std::iota(free_.rbegin(), free_.rend(), 0);
}

std::vector<std::int32_t> PagePool::take(std::int64_t count) {
  SNAPMLA_ASSERT(count >= 0 && count <= num_free());
  std::vector<std::int32_t> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - static_cast<std::size_t>(count));
  for (const std::int32_t page : pages) in_use_[static_cast<std::size_t>(page)] = true;
  return pages;
}

void PagePool::give_back(const std::vector<std::int32_t>& pages) {
  for (const std::int32_t page : pages) SNAPMLA_ASSERT(page >= 0 && page < num_total());
  std::vector<std::int32_t> sorted = pages;
  std::sort(sorted.begin(), sorted.end());
  SNAPMLA_ASSERT(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
  for (const std::int32_t page : pages) SNAPMLA_ASSERT(in_use_[static_cast<std::size_t>(page)]);
  for (const std::int32_t page : pages) in_use_[static_cast<std::size_t>(page)] = false;
  free_.insert(free_.end(), pages.rbegin(), pages.rend());
}

}  // namespace snapmla
