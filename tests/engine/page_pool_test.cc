#include "engine/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "snapmla/error.h"

namespace snapmla {
namespace {

template <class Call>
void expect_internal_error(const Call& call) {
  try {
    call();
    FAIL() << "nothing thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal) << error.what();
  }
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
    const std::vector<std::int32_t> pages = pool.take(count);
    EXPECT_EQ(static_cast<std::int64_t>(pages.size()), count);
    seen.insert(pages.begin(), pages.end());
  }
  EXPECT_EQ(seen.size(), 10U);
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), 9);
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.num_in_use(), 10);
  EXPECT_EQ(pool.num_total(), 10);
}

TEST(PagePool, UsesPagesAgainBeforeFreshOnes) {
  PagePool pool(1000);
  std::int32_t highest = 0;
  for (int i = 0; i < 50; ++i) {
    const std::vector<std::int32_t> pages = pool.take(7);
    highest = std::max(highest, *std::max_element(pages.begin(), pages.end()));
    pool.give_back(pages);
  }
  EXPECT_EQ(highest, 6);
}

TEST(PagePool, TakingTooManyIsABugAndTakesNone) {
  PagePool pool(4);
  const std::vector<std::int32_t> held = pool.take(2);
  expect_internal_error([&] { (void)pool.take(3); });
  expect_internal_error([&] { (void)pool.take(-1); });
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.take(2).size(), 2U);
}

TEST(PagePool, GivingBackWhatIsNotInUseIsABugAndGivesNothingBack) {
  PagePool pool(8);
  const std::vector<std::int32_t> held = pool.take(3);
  expect_internal_error([&] { pool.give_back({held[0], held[0]}); });
  expect_internal_error([&] { pool.give_back({held[0], 7}); });
  expect_internal_error([&] { pool.give_back({held[0], 8}); });
  expect_internal_error([&] { pool.give_back({held[0], -1}); });
  EXPECT_EQ(pool.num_in_use(), 3);
  pool.give_back(held);
  EXPECT_EQ(pool.num_in_use(), 0);
  expect_internal_error([&] { pool.give_back({held[0]}); });
  EXPECT_EQ(pool.num_free(), 8);
}

}  // namespace
}  // namespace snapmla
