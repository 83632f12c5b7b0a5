// PagePool: which pages of the cache are free. Knows counts and indices only, no memory and no requests.
//
// Pages given back are the next ones taken, lowest first in a fresh pool: memory of pages that no request
// ever needed is never touched. Taking more than there is, or giving back what is not in use, is our own bug.
#pragma once

#include <cstdint>
#include <vector>

#include "snapmla/format.h"

namespace snapmla {

/// Pages that hold `tokens` tokens.
constexpr std::int64_t pages_for(std::int64_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

class PagePool {
 public:
  explicit PagePool(std::int64_t num_pages);

  [[nodiscard]] std::int64_t num_total() const { return static_cast<std::int64_t>(in_use_.size()); }
  [[nodiscard]] std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }
  [[nodiscard]] std::int64_t num_in_use() const { return num_total() - num_free(); }

  /// `count` distinct pages, 0 <= count <= num_free().
  [[nodiscard]] std::vector<std::int32_t> take(std::int64_t count);

  /// Every page must be in use. All or none are given back.
  void give_back(const std::vector<std::int32_t>& pages);

 private:
  std::vector<std::int32_t> free_;  // a stack
  std::vector<bool> in_use_;
};

}  // namespace snapmla
