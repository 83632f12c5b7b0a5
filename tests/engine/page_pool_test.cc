#include "engine/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "snapmla/error.h"

namespace snapmla {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Tokens = std::vector<std::int32_t>;
constexpr std::int32_t kNoPage = PagePool::kNoPage;

template <class Call>
void expect_internal_error(const Call& call) {
  try {
    call();
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal) << error.what();
  }
}

Tokens count_from(int first, int count) {
  Tokens tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Takes pages for `tokens`, publishes them all, and returns them.
Tokens take_known(PagePool& pool, const Tokens& tokens) {
  Tokens pages = pool.take(pages_for(std::ssize(tokens)));
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::span<const std::int32_t> rest = std::span(tokens).subspan(i * kPageTokens);
    const std::int32_t parent = i == 0 ? kNoPage : pages[i - 1];
    EXPECT_EQ(pool.publish(parent, rest.first(std::min<std::size_t>(rest.size(), kPageTokens)), pages[i]),
              pages[i]);
  }
  return pages;
}

TEST(PagePool, PagesFor) {
  EXPECT_EQ(pages_for(0), 0);
  EXPECT_EQ(pages_for(1), 1);
  EXPECT_EQ(pages_for(64), 1);
  EXPECT_EQ(pages_for(65), 2);
  EXPECT_EQ(pages_for(std::int64_t{1} << 40), std::int64_t{1} << 34);
}

TEST(PagePool, TakesDistinctPagesUntilNoneIsLeft) {
  PagePool pool(10);
  std::set<std::int32_t> seen;
  for (const std::int64_t count : {3, 0, 1, 6}) {
    const Tokens pages = pool.take(count);
    EXPECT_EQ(std::ssize(pages), count);
    seen.insert(pages.begin(), pages.end());
  }
  EXPECT_EQ(seen.size(), 10U);
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), 9);
  EXPECT_EQ(pool.num_available(), 0);
  EXPECT_EQ(pool.num_held(), 10);
  EXPECT_EQ(pool.num_total(), 10);
}

TEST(PagePool, UsesUnknownPagesAgainBeforeFreshOnes) {
  PagePool pool(1000);
  std::int32_t highest = 0;
  for (int i = 0; i < 50; ++i) {
    const Tokens pages = pool.take(7);
    highest = std::max(highest, *std::max_element(pages.begin(), pages.end()));
    pool.release(pages);
  }
  EXPECT_EQ(highest, 6);
}

TEST(PagePool, TakingTooManyIsABugAndTakesNone) {
  PagePool pool(4);
  const Tokens held = pool.take(2);
  expect_internal_error([&] { (void)pool.take(3); });
  expect_internal_error([&] { (void)pool.take(-1); });
  EXPECT_EQ(pool.num_available(), 2);
  EXPECT_EQ(pool.take(2).size(), 2U);
}

TEST(PagePool, ReleasingWhatIsNotHeldIsABugAndReleasesNothing) {
  PagePool pool(8);
  const Tokens held = pool.take(3);
  expect_internal_error([&] { pool.release({held[0], held[0]}); });
  expect_internal_error([&] { pool.release({held[0], 7}); });
  expect_internal_error([&] { pool.release({held[0], 8}); });
  expect_internal_error([&] { pool.release({held[0], -1}); });
  EXPECT_EQ(pool.num_held(), 3);
  pool.release(held);
  EXPECT_EQ(pool.num_held(), 0);
  expect_internal_error([&] { pool.release({held[0]}); });
  EXPECT_EQ(pool.num_available(), 8);
}

TEST(PagePool, APageLivesUntilItsLastHolderLetsGo) {
  PagePool pool(2);
  const std::int32_t page = pool.take(1).front();
  pool.hold(page);
  pool.release({page});
  EXPECT_TRUE(pool.is_held(page));
  EXPECT_EQ(pool.num_available(), 1);
  pool.release({page});
  EXPECT_FALSE(pool.is_held(page));
  EXPECT_EQ(pool.num_available(), 2);
  expect_internal_error([&] { pool.hold(page); });  // free: nothing is known of it
}

TEST(PagePool, FindsTheLongestKnownStart) {
  PagePool pool(20);
  const Tokens tokens = count_from(0, 150);
  const Tokens pages = take_known(pool, tokens);
  const auto found = [&](const Tokens& query) {
    const KnownPrefix prefix = pool.find(query);
    return std::ssize(prefix.pages) * kPageTokens + prefix.partial_tokens;
  };
  for (const int length : {0, 1, 63, 64, 65, 127, 128, 149, 150})
    EXPECT_EQ(found(count_from(0, length)), length);
  EXPECT_EQ(found(count_from(0, 500)), 150);
  EXPECT_EQ(found(count_from(1, 150)), 0);
  // A page with the right tokens in another place is another page.
  EXPECT_EQ(found(count_from(64, 64)), 0);

  KnownPrefix prefix = pool.find(tokens);
  EXPECT_THAT(prefix.pages, ElementsAre(pages[0], pages[1]));
  EXPECT_EQ(prefix.partial_page, pages[2]);
  EXPECT_EQ(prefix.partial_tokens, 22);

  // Each first difference, and which page it falls in.
  for (int at = 0; at < 150; ++at) {
    for (const std::int32_t other : {-1, 1000}) {  // sorts before and behind what is known
      Tokens query = tokens;
      query[static_cast<std::size_t>(at)] = other;
      EXPECT_EQ(found(query), at);
    }
  }
}

TEST(PagePool, FindsTheBestAmongMany) {
  PagePool pool(100);
  std::mt19937 random(3);
  std::vector<Tokens> known;
  for (int i = 0; i < 40; ++i) {
    Tokens tokens(40);
    for (std::int32_t& token : tokens) token = std::uniform_int_distribution<int>(0, 2)(random);
    if (pool.find(tokens).partial_tokens == 40) continue;
    take_known(pool, tokens);
    known.push_back(tokens);
  }
  for (int i = 0; i < 200; ++i) {
    Tokens query(40);
    for (std::int32_t& token : query) token = std::uniform_int_distribution<int>(0, 2)(random);
    std::ptrdiff_t best = 0;
    for (const Tokens& tokens : known)
      best =
          std::max(best, std::mismatch(tokens.begin(), tokens.end(), query.begin()).first - tokens.begin());
    EXPECT_EQ(pool.find(query).partial_tokens, best);
  }
}

TEST(PagePool, TheFirstPageKnownForSomethingStays) {
  PagePool pool(4);
  const Tokens tokens = count_from(0, 64);
  const std::int32_t first = take_known(pool, tokens).front();
  const std::int32_t second = pool.take(1).front();
  EXPECT_EQ(pool.publish(kNoPage, tokens, second), first);
  pool.release({second});
  EXPECT_EQ(pool.num_kept(), 0) << "nothing is known of the second page, so it is free";
  pool.release({first});
  EXPECT_EQ(pool.num_kept(), 1);
}

TEST(PagePool, KeepsKnownPagesUntilTheRoomIsNeededTheLongestUnusedFirst) {
  PagePool pool(5);
  const Tokens a = count_from(0, 100);
  const Tokens b = count_from(1000, 100);
  const Tokens pages_a = take_known(pool, a);
  const Tokens pages_b = take_known(pool, b);
  pool.release(pages_a);
  pool.release(pages_b);
  EXPECT_EQ(pool.num_kept(), 4);
  EXPECT_EQ(pool.num_available(), 5);
  EXPECT_EQ(pool.num_held(), 0);
  // a is used again, so b is older now.
  for (const std::int32_t page : pages_a) pool.hold(page);
  EXPECT_EQ(pool.num_kept(), 2);
  pool.release(pages_a);

  EXPECT_THAT(pool.take(1), ElementsAre(4)) << "a free page first";
  EXPECT_EQ(pool.take(1), (Tokens{pages_b[1]})) << "then the end of the older text";
  EXPECT_THAT(pool.find(b).pages, ElementsAre(pages_b[0]));
  EXPECT_EQ(pool.find(b).partial_tokens, 0);
  EXPECT_EQ(pool.take(1), (Tokens{pages_b[0]}));
  EXPECT_THAT(pool.find(b).pages, IsEmpty());
  EXPECT_EQ(pool.find(a).partial_tokens, 36) << "the younger text is whole";
  EXPECT_EQ(pool.take(2), (Tokens{pages_a[0], pages_a[1]}));
  EXPECT_THAT(pool.find(a).pages, IsEmpty());
  EXPECT_EQ(pool.num_available(), 0);
}

TEST(PagePool, PublishingOutOfOrderIsABug) {
  PagePool pool(4);
  const Tokens pages = pool.take(3);
  const Tokens tokens = count_from(0, 64);
  expect_internal_error([&] { pool.publish(pages[0], tokens, pages[1]); });  // nothing is known of the parent
  expect_internal_error([&] { pool.publish(kNoPage, {}, pages[0]); });
  expect_internal_error([&] { pool.publish(kNoPage, count_from(0, 65), pages[0]); });
  expect_internal_error([&] { pool.publish(kNoPage, tokens, 3); });  // free
  EXPECT_EQ(pool.publish(kNoPage, tokens, pages[0]), pages[0]);
  expect_internal_error([&] { pool.publish(kNoPage, count_from(1, 64), pages[0]); });  // twice
  EXPECT_EQ(pool.publish(pages[0], tokens, pages[1]), pages[1]);
  // A holder that lets go of the parent alone leaves a child behind that cannot be reached any more.
  pool.release({pages[0]});
  expect_internal_error([&] { (void)pool.take(2); });
}

// Holders come and go as requests do, beside a model of the pool that is a plain map from text to page.
TEST(PagePool, RandomLivesKeepTheRules) {
  std::mt19937 random(11);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  PagePool pool(24);
  std::map<std::int32_t, Tokens> written;  // page -> all tokens up to its end, for pages that were published
  std::vector<Tokens> holders;
  int num_found = 0;
  for (int step = 0; step < 20000; ++step) {
    if (pick(0, 1) == 0 && !holders.empty()) {
      std::swap(holders[static_cast<std::size_t>(pick(0, static_cast<int>(holders.size()) - 1))],
                holders.back());
      pool.release(holders.back());
      holders.pop_back();
    }
    Tokens tokens(static_cast<std::size_t>(pick(1, 4 * kPageTokens)));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = i % 50 == 0 ? pick(0, 1) : 7;
    const KnownPrefix known = pool.find(tokens);
    for (std::size_t i = 0; i < known.pages.size(); ++i) {
      const Tokens start(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * kPageTokens));
      ASSERT_EQ(written.at(known.pages[i]), start);
    }
    if (known.partial_tokens > 0) {
      const std::size_t end =
          known.pages.size() * kPageTokens + static_cast<std::size_t>(known.partial_tokens);
      const Tokens& on_page = written.at(known.partial_page);
      ASSERT_LE(end, on_page.size());
      ASSERT_TRUE(
          std::equal(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(end), on_page.begin()));
    }
    num_found += static_cast<int>(known.pages.size());
    const std::int64_t num_new = pages_for(std::ssize(tokens)) - std::ssize(known.pages);
    const auto num_kept = std::count_if(known.pages.begin(), known.pages.end(),
                                        [&](std::int32_t page) { return !pool.is_held(page); });
    if (num_new + num_kept > pool.num_available()) continue;
    for (const std::int32_t page : known.pages) pool.hold(page);
    Tokens pages = known.pages;
    for (const std::int32_t page : pool.take(num_new)) {
      written.erase(page);
      const std::size_t begin = pages.size() * kPageTokens;
      const std::size_t end = std::min(tokens.size(), begin + kPageTokens);
      const std::int32_t parent = pages.empty() ? kNoPage : pages.back();
      if (pool.publish(parent, std::span(tokens).subspan(begin, end - begin), page) == page)
        written[page] = {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(end)};
      pages.push_back(page);
    }
    holders.push_back(pages);
    std::set<std::int32_t> held;
    for (const Tokens& holder : holders) held.insert(holder.begin(), holder.end());
    ASSERT_EQ(pool.num_held(), std::ssize(held));
  }
  for (const Tokens& holder : holders) pool.release(holder);
  EXPECT_EQ(pool.num_held(), 0);
  EXPECT_EQ(pool.num_available(), 24);
  EXPECT_GT(num_found, 1000);
}

}  // namespace
}  // namespace snapmla
