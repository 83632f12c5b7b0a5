// PagePool: who holds which page of the cache, and which pages are worth keeping for what is written on them.
// Knows counts, indices and tokens only, no memory and no requests.
//
//     free --take--> held (1 or more holders) --last release--> free, or kept if its tokens are known
//                      ^                                                    |
//                      +------------------------ hold -----------------------+--evicted by take--> held
//
// A page is known by the tokens written on it and by the known page before it (none for the first of a
// sequence), so by all tokens from the start. Keys are compared whole, not by a hash of them: no collision
// can hand out another text's page. The index is ordered, so that the neighbours of a key that is not there
// share the most tokens with it; that finds pages which agree only in their first tokens.
//
// What always holds:
//   - every page is free, held or kept (known, without a holder); only a held page may be written;
//   - who holds a known page also holds the known pages before it (the caller's part), and a release lets go
//     of the last page first; so kept pages go by age, the last used last, and children before their parents.
// Free pages are taken first, the latest given back first, lowest first in a fresh pool; then kept ones, the
// longest unused first. Taking more than there is, or giving back what is not held, is our own bug.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "snapmla/format.h"

namespace snapmla {

/// Pages that hold `tokens` tokens.
constexpr std::int64_t pages_for(std::int64_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

/// What the pool knows of a sequence's start.
struct KnownPrefix {
  std::vector<std::int32_t> pages;  ///< whole pages, in order
  std::int32_t partial_page = -1;   ///< the page after them, of which only the first partial_tokens agree
  int partial_tokens = 0;           ///< 0: there is none
};

class PagePool {
 public:
  static constexpr std::int32_t kNoPage = -1;

  explicit PagePool(std::int64_t num_pages);
  PagePool(const PagePool&) = delete;  // pages point into the lists
  PagePool& operator=(const PagePool&) = delete;

  [[nodiscard]] std::int64_t num_total() const { return static_cast<std::int64_t>(pages_.size()); }
  [[nodiscard]] std::int64_t num_kept() const { return static_cast<std::int64_t>(kept_.size()); }
  /// What take() can give: free and kept pages.
  [[nodiscard]] std::int64_t num_available() const {
    return static_cast<std::int64_t>(free_.size()) + num_kept();
  }
  [[nodiscard]] std::int64_t num_held() const { return num_total() - num_available(); }
  [[nodiscard]] bool is_held(std::int32_t page) const { return at(page).holders > 0; }

  /// `count` distinct pages with one holder each, 0 <= count <= num_available().
  [[nodiscard]] std::vector<std::int32_t> take(std::int64_t count);

  /// One holder more for a page that is held or kept.
  void hold(std::int32_t page);

  /// One holder less for each of these held, distinct pages, which are in the order of their tokens. All or
  /// none are let go.
  void release(const std::vector<std::int32_t>& pages);

  /// The longest known start of `tokens`. Pages found this way must be held before anything is taken.
  [[nodiscard]] KnownPrefix find(std::span<const std::int32_t> tokens) const;

  /// Makes it known that `page`, which is held and not known yet, has these 1 to 64 tokens on it, after those
  /// of the known page `parent` (kNoPage: at the start). If another page is known for the same, it stays the
  /// one. Returns the page that is known now.
  std::int32_t publish(std::int32_t parent, std::span<const std::int32_t> tokens, std::int32_t page);

 private:
  using Key = std::pair<std::int32_t, std::vector<std::int32_t>>;  // parent, tokens
  using Index = std::map<Key, std::int32_t>;
  struct Page {
    std::int64_t holders = 0;
    Index::iterator known;                   // index_.end(): its tokens are not known
    std::list<std::int32_t>::iterator kept;  // kept_.end(): it is not kept
  };

  [[nodiscard]] std::size_t checked(std::int32_t page) const;  // as an index of pages_
  [[nodiscard]] const Page& at(std::int32_t page) const { return pages_[checked(page)]; }
  [[nodiscard]] Page& at(std::int32_t page) { return pages_[checked(page)]; }
  void forget_oldest();

  std::vector<Page> pages_;
  std::vector<std::int32_t> free_;  // a stack
  std::list<std::int32_t> kept_;    // the longest unused first
  Index index_;
};

}  // namespace snapmla
