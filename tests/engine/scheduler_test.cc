#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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

/// A prompt that shares nothing with one of another `first`.
Tokens make_prompt(int length, int first = 0) {
  Tokens tokens(static_cast<std::size_t>(length));
  std::iota(tokens.begin(), tokens.end(), first * 10000);
  return tokens;
}

/// One step of at most `chunk` prompt tokens. Returns the requests that got a token.
std::set<RequestId> step(Scheduler& scheduler, int chunk = 512) {
  std::set<RequestId> got;
  for (const DecodeRow& row : scheduler.next_decode()) {
    scheduler.decoded(row);
    if (row.wants_token) got.insert(row.request);
  }
  while (chunk > 0) {
    const auto prefill = scheduler.next_prefill(chunk);
    if (!prefill) break;
    scheduler.prefilled(*prefill);
    if (prefill->wants_token) got.insert(prefill->request);
    chunk -= prefill->num_tokens;
  }
  return got;
}

Tokens positions(const std::vector<DecodeRow>& rows, RequestId request) {
  Tokens result;
  for (const DecodeRow& row : rows)
    if (row.request == request) result.push_back(row.position);
  return result;
}

TEST(Scheduler, NothingToDo) {
  Scheduler scheduler({.num_pages = 4, .max_batch = 2});
  EXPECT_THAT(scheduler.next_decode(), IsEmpty());
  EXPECT_FALSE(scheduler.next_prefill(8));
}

TEST(Scheduler, CutsPromptsIntoChunksAndDecodesAfterTheLast) {
  Scheduler scheduler({.num_pages = 4, .max_batch = 2});
  const Tokens prompt = make_prompt(20);
  scheduler.add(1, prompt, 24);
  for (const int start : {0, 8, 16}) {
    EXPECT_THAT(scheduler.next_decode(), IsEmpty());
    const auto prefill = scheduler.next_prefill(8);
    ASSERT_TRUE(prefill);
    EXPECT_EQ(prefill->request, 1);
    EXPECT_EQ(prefill->start, start);
    EXPECT_EQ(prefill->num_tokens, start == 16 ? 4 : 8);
    EXPECT_EQ(prefill->wants_token, start == 16);
    scheduler.prefilled(*prefill);
  }
  EXPECT_FALSE(scheduler.next_prefill(8));
  for (const int position : {20, 21}) {
    const std::vector<DecodeRow> rows = scheduler.next_decode();
    ASSERT_EQ(rows.size(), 1U);
    EXPECT_EQ(rows[0].position, position);
    EXPECT_TRUE(rows[0].wants_token);
    scheduler.decoded(rows[0]);
  }
}

TEST(Scheduler, PrefillsPromptsOneAfterTheOtherBesideTheDecodes) {
  Scheduler scheduler({.num_pages = 8, .max_batch = 3});
  const Tokens prompt = make_prompt(8);
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, prompt, 10);
  EXPECT_THAT(step(scheduler, 8), ElementsAre(1));
  EXPECT_EQ(scheduler.num_running(), 1) << "the next is admitted when its turn to prefill comes";
  EXPECT_THAT(step(scheduler, 12), ElementsAre(1, 2, 3)) << "one token each of what is in the cache already";
  EXPECT_THAT(step(scheduler, 12), ElementsAre(1, 2, 3));
}

TEST(Scheduler, AskingTwiceChangesNothing) {
  Scheduler scheduler({.num_pages = 5, .max_batch = 2});
  const Tokens prompt = make_prompt(100);
  scheduler.add(1, prompt, 300);
  scheduler.prefilled(*scheduler.next_prefill(512));
  scheduler.add(2, prompt, 130);
  for (int i = 0; i < 2; ++i) {
    const auto prefill = scheduler.next_prefill(8);
    EXPECT_EQ(prefill->request, 2);
    EXPECT_EQ(prefill->start, 99);
    EXPECT_NE(prefill->copy_from, PagePool::kNoPage);
    EXPECT_EQ(scheduler.next_decode().size(), 1U);
    EXPECT_EQ(scheduler.pool().num_held(), 3);
    EXPECT_EQ(scheduler.num_tokens_found(), 99);
  }
}

TEST(Scheduler, TakesPagesAsARequestGrows) {
  Scheduler scheduler({.num_pages = 3, .max_batch = 2});
  const Tokens prompt = make_prompt(60);
  scheduler.add(1, prompt, 192);
  (void)step(scheduler);
  for (int cached = 61; cached <= 191; ++cached) {
    EXPECT_THAT(step(scheduler), ElementsAre(1));
    EXPECT_EQ(std::ssize(scheduler.pages(1)), pages_for(cached));
  }
  EXPECT_EQ(scheduler.num_preemptions(), 0);
}

TEST(Scheduler, MakesThoseBehindWaitAndLeavesAPageForEachThatRuns) {
  Scheduler scheduler({.num_pages = 5, .max_batch = 8});
  const Tokens long_prompt = make_prompt(3 * kPageTokens, 1);
  const Tokens prompt = make_prompt(kPageTokens + 1, 2);
  const Tokens short_prompt = make_prompt(1, 3);
  scheduler.add(1, long_prompt, 4 * kPageTokens);
  scheduler.add(2, prompt, 100);
  scheduler.add(3, short_prompt, 2);  // would fit, but must not overtake
  (void)step(scheduler);
  EXPECT_EQ(scheduler.num_running(), 1) << "2 pages are free and 2 needed, but the first may need one";
  EXPECT_EQ(scheduler.num_waiting(), 2);
  EXPECT_THAT(step(scheduler), ElementsAre(1));
  scheduler.remove(1);
  EXPECT_THAT(step(scheduler), ElementsAre(2, 3));
}

TEST(Scheduler, HoldsNoMoreThanMaxBatch) {
  Scheduler scheduler({.num_pages = 100, .max_batch = 2});
  const Tokens prompt = make_prompt(1);
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, prompt, 2);
  (void)step(scheduler);
  EXPECT_EQ(scheduler.num_running(), 2);
  scheduler.remove(1);
  (void)step(scheduler);
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(scheduler.num_waiting(), 0);
}

TEST(Scheduler, RemovesAWaitingRequest) {
  Scheduler scheduler({.num_pages = 1, .max_batch = 1});
  const Tokens prompt = make_prompt(1);
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, prompt, 1);
  (void)step(scheduler);
  scheduler.remove(2);
  scheduler.remove(1);
  EXPECT_EQ(scheduler.next_prefill(8)->request, 3);
}

// Three requests with two pages each, and one page is left when all of them need a third.
TEST(Scheduler, PreemptsTheYoungestAndReplaysItsTokens) {
  Scheduler scheduler({.num_pages = 7, .max_batch = 4, .prefix_caching = false});
  const Tokens prompt = make_prompt(40);
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, prompt, 3 * kPageTokens);
  EXPECT_THAT(step(scheduler), ElementsAre(1, 2, 3));
  int steps = 1;
  while (scheduler.num_preemptions() == 0) {
    EXPECT_THAT(step(scheduler), ElementsAre(1, 2, 3));
    ++steps;
    ASSERT_LT(steps, 200);
    (void)scheduler.next_decode();
  }
  // 40 + 88 tokens fill two pages each; the first asks for a third.
  EXPECT_EQ(steps, 2 * kPageTokens - 40 + 1);
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_EQ(scheduler.pages(1).size(), 3U);
  EXPECT_EQ(scheduler.pages(2).size(), 3U) << "the youngest left two";
  const int generated = steps;
  EXPECT_THAT(step(scheduler), ElementsAre(1, 2)) << "3 pages are needed and one is free";
  scheduler.remove(1);

  // The prompt first, without asking for a token; then its tokens, as many a step as the batch has rows for.
  EXPECT_THAT(step(scheduler, 39), ElementsAre(2));
  const auto prefill = scheduler.next_prefill(512);
  EXPECT_EQ(prefill->request, 3);
  EXPECT_EQ(prefill->start, 39);
  EXPECT_FALSE(prefill->wants_token);
  scheduler.prefilled(*prefill);
  Tokens replayed;
  int num_steps = 0;
  while (true) {
    const std::vector<DecodeRow> rows = scheduler.next_decode();
    ASSERT_LE(rows.size(), 4U);
    EXPECT_EQ(rows[0].request, 2);
    EXPECT_TRUE(rows[0].wants_token);
    if (rows[1].wants_token) break;
    EXPECT_THAT(positions(rows, 2).size(), 1U);
    for (const DecodeRow& row : rows) {
      if (row.request == 3) replayed.push_back(row.position);
      scheduler.decoded(row);
    }
    ++num_steps;
  }
  Tokens want(static_cast<std::size_t>(generated) - 1);
  std::iota(want.begin(), want.end(), 40);
  EXPECT_EQ(replayed, want);
  EXPECT_EQ(num_steps, (generated - 1 + 2) / 3) << "3 of 4 rows are free to replay";
  EXPECT_EQ(positions(scheduler.next_decode(), 3), Tokens{40 + generated - 1});
}

TEST(Scheduler, APreemptedPromptStartsOver) {
  Scheduler scheduler({.num_pages = 6, .max_batch = 4, .prefix_caching = false});
  const Tokens first = make_prompt(64, 1);
  const Tokens second = make_prompt(190, 2);
  scheduler.add(1, first, 6 * kPageTokens);
  (void)step(scheduler);
  scheduler.add(2, second, 191);
  for (int i = 0; i < 2 * kPageTokens; ++i) (void)step(scheduler, 1);
  EXPECT_EQ(scheduler.num_running(), 2);
  (void)step(scheduler, 1);  // the first needs a fourth page
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.remove(1);
  EXPECT_EQ(scheduler.next_prefill(512)->start, 0);
  EXPECT_EQ(scheduler.pool().num_held(), 3);
}

TEST(Scheduler, SharesThePagesOfPromptsThatBeginAlike) {
  Scheduler scheduler({.num_pages = 20, .max_batch = 4});
  const Tokens prompt = make_prompt(150);
  Tokens other = prompt;
  other[140] = -1;
  scheduler.add(1, prompt, 200);
  (void)step(scheduler);
  scheduler.add(2, other, 200);
  const auto prefill = scheduler.next_prefill(512);
  EXPECT_EQ(prefill->start, 140);
  EXPECT_EQ(prefill->num_tokens, 10);
  EXPECT_EQ(prefill->copy_from, scheduler.pages(1)[2]);
  EXPECT_EQ(scheduler.pages(2)[0], scheduler.pages(1)[0]);
  EXPECT_EQ(scheduler.pages(2)[1], scheduler.pages(1)[1]);
  EXPECT_NE(scheduler.pages(2)[2], scheduler.pages(1)[2]) << "both write on their last page";
  scheduler.prefilled(*prefill);
  EXPECT_EQ(scheduler.pool().num_held(), 4);
  scheduler.remove(1);
  EXPECT_EQ(scheduler.pool().num_held(), 3);
  EXPECT_EQ(scheduler.pool().num_kept(), 1);
  scheduler.remove(2);
  EXPECT_EQ(scheduler.pool().num_held(), 0);
  EXPECT_EQ(scheduler.pool().num_kept(), 4);
}

TEST(Scheduler, AlwaysPrefillsTheLastToken) {
  Scheduler scheduler({.num_pages = 9, .max_batch = 2});
  const Tokens prompt = make_prompt(128);
  scheduler.add(1, prompt, 130);
  (void)step(scheduler);
  scheduler.add(2, prompt, 130);
  const auto prefill = scheduler.next_prefill(512);
  EXPECT_EQ(prefill->start, 127);
  EXPECT_EQ(prefill->copy_from, scheduler.pages(1)[1]);
  EXPECT_TRUE(prefill->wants_token);
  scheduler.prefilled(*prefill);
  EXPECT_EQ(scheduler.pages(2), scheduler.pages(1))
      << "the copy is what the original is, so it is given back";
  EXPECT_EQ(scheduler.pool().num_held(), 2);
}

TEST(Scheduler, NeverPublishesGeneratedTokens) {
  Scheduler scheduler({.num_pages = 20, .max_batch = 4});
  const Tokens prompt = make_prompt(100);
  scheduler.add(1, prompt, 300);
  for (int i = 0; i < 150; ++i) (void)step(scheduler);
  const Tokens longer = make_prompt(250);  // as if 100 .. 249 were what was generated
  scheduler.add(2, longer, 260);
  EXPECT_EQ(scheduler.next_prefill(512)->start, 100);
}

TEST(Scheduler, SharesNothingIfNotAllowedTo) {
  Scheduler scheduler({.num_pages = 9, .max_batch = 2, .prefix_caching = false});
  const Tokens prompt = make_prompt(128);
  scheduler.add(1, prompt, 130);
  (void)step(scheduler);
  scheduler.add(2, prompt, 130);
  EXPECT_EQ(scheduler.next_prefill(512)->start, 0);
  scheduler.remove(1);
  scheduler.remove(2);
  EXPECT_EQ(scheduler.pool().num_kept(), 0);
}

TEST(Scheduler, PrefillsAnewWhatItHasNoRoomToCopy) {
  Scheduler scheduler({.num_pages = 2, .max_batch = 2});
  const Tokens prompt = make_prompt(100);
  scheduler.add(1, prompt, 128);
  (void)step(scheduler);
  scheduler.remove(1);
  scheduler.add(2, prompt, 128);
  const auto prefill = scheduler.next_prefill(512);
  EXPECT_EQ(prefill->start, 64) << "page 1 is both the one to copy and the only one to copy to";
  EXPECT_EQ(prefill->copy_from, PagePool::kNoPage);
}

TEST(Scheduler, CancelledBeforeItsCopyItLetsGoOfThePage) {
  Scheduler scheduler({.num_pages = 4, .max_batch = 2});
  const Tokens prompt = make_prompt(100);
  scheduler.add(1, prompt, 128);
  (void)step(scheduler);
  scheduler.remove(1);
  scheduler.add(2, prompt, 128);
  EXPECT_NE(scheduler.next_prefill(1)->copy_from, PagePool::kNoPage);
  EXPECT_EQ(scheduler.pool().num_held(), 3);
  scheduler.remove(2);
  EXPECT_EQ(scheduler.pool().num_held(), 0);
}

TEST(Scheduler, MisuseIsABug) {
  Scheduler scheduler({.num_pages = 1, .max_batch = 1});
  const Tokens prompt = make_prompt(2);
  EXPECT_FALSE(scheduler.can_ever_run(kPageTokens + 1));
  EXPECT_THROW(scheduler.add(1, prompt, kPageTokens + 1), Error);
  EXPECT_THROW(scheduler.add(1, {}, 1), Error);
  EXPECT_THROW(scheduler.add(1, prompt, 1), Error);
  scheduler.add(1, prompt, 3);
  EXPECT_THROW(scheduler.add(1, prompt, 3), Error);
  EXPECT_THROW(scheduler.remove(2), Error);
  EXPECT_THROW((void)scheduler.pages(1), Error);  // waiting: holds none
  const auto prefill = scheduler.next_prefill(8);
  scheduler.prefilled(*prefill);
  EXPECT_THROW(scheduler.prefilled(*prefill), Error);
  const DecodeRow row = scheduler.next_decode().at(0);
  scheduler.decoded(row);
  EXPECT_THROW(scheduler.decoded(row), Error);
}

// Random arrivals, lengths and early ends against what must always hold.
struct Life {
  Tokens prompt;
  int max_cached = 0;
  int generated = 0;
  int cached = 0;
};

class Lives {
 public:
  explicit Lives(unsigned seed)
      : random_(seed),
        limits_{.num_pages = pick(4, 20), .max_batch = pick(1, 6), .prefix_caching = pick(0, 3) != 0},
        scheduler_(limits_) {}

  void run(int num_steps) {
    for (int i = 0; i < num_steps || !alive_.empty(); ++i) {
      ASSERT_LT(i, 60000) << "a request starves";
      if (i < num_steps && pick(0, 2) == 0) arrive();
      const std::int64_t before = num_tokens_;
      decode();
      prefill(pick(1, 90));
      ASSERT_TRUE(alive_.empty() || num_tokens_ > before) << "stuck";
      ASSERT_LE(scheduler_.num_running(), limits_.max_batch);
      ASSERT_EQ(scheduler_.num_running() + scheduler_.num_waiting(), std::ssize(alive_));
      if (!alive_.empty() && pick(0, 40) == 0)
        leave(std::next(alive_.begin(), pick(0, static_cast<int>(alive_.size()) - 1))->first);
      if (::testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(scheduler_.pool().num_held(), 0);
    EXPECT_EQ(scheduler_.pool().num_available(), limits_.num_pages);
  }
  [[nodiscard]] std::int64_t num_preemptions() const { return scheduler_.num_preemptions(); }

 private:
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  void arrive() {
    const int cached = pick(1, static_cast<int>(limits_.num_pages) * kPageTokens);
    Life life{.prompt = Tokens(static_cast<std::size_t>(pick(1, cached)), 7), .max_cached = cached};
    for (std::size_t i = 0; i < life.prompt.size(); i += 50) life.prompt[i] = pick(0, 1);
    const Life& kept = alive_.emplace(++newest_, std::move(life)).first->second;
    scheduler_.add(newest_, kept.prompt, kept.max_cached);
  }

  void leave(RequestId id) {
    scheduler_.remove(id);
    alive_.erase(id);
    started_.erase(id);
  }

  void decode() {
    const std::vector<DecodeRow> rows = scheduler_.next_decode();
    ASSERT_LE(std::ssize(rows), limits_.max_batch);
    std::erase_if(started_, [&](RequestId id) {
      const bool runs =
          std::any_of(rows.begin(), rows.end(), [&](const DecodeRow& row) { return row.request == id; });
      if (!runs) alive_.at(id).cached = 0;  // preempted
      return !runs;
    });
    // A page that a request writes on is its own.
    std::map<std::int32_t, std::set<RequestId>> holders;
    for (const RequestId id : started_)
      for (const std::int32_t page : scheduler_.pages(id)) holders[page].insert(id);
    for (const DecodeRow& row : rows) {
      const auto& pages = scheduler_.pages(row.request);
      ASSERT_LT(row.position / kPageTokens, std::ssize(pages));
      ASSERT_EQ(holders[pages[static_cast<std::size_t>(row.position / kPageTokens)]].size(), 1U);
    }
    for (const DecodeRow& row : rows) {
      if (!alive_.contains(row.request)) continue;
      Life& life = alive_.at(row.request);
      ASSERT_EQ(row.position, life.cached);
      ASSERT_EQ(row.wants_token, life.cached + 1 == std::ssize(life.prompt) + life.generated);
      scheduler_.decoded(row);
      ++num_tokens_;
      ++life.cached;
      if (!row.wants_token) continue;
      ++life.generated;
      if (std::ssize(life.prompt) + life.generated > life.max_cached || pick(0, 99) == 0) leave(row.request);
    }
  }

  void prefill(int chunk) {
    while (chunk > 0) {
      const auto prefill = scheduler_.next_prefill(chunk);
      if (!prefill) return;
      Life& life = alive_.at(prefill->request);
      ASSERT_LE(prefill->num_tokens, chunk);
      ASSERT_TRUE(started_.empty() || prefill->request > *started_.rbegin()) << "overtaken";
      scheduler_.prefilled(*prefill);
      num_tokens_ += prefill->num_tokens;
      chunk -= prefill->num_tokens;
      life.cached = prefill->start + prefill->num_tokens;
      if (life.cached < std::ssize(life.prompt)) {
        ASSERT_FALSE(prefill->wants_token);
        continue;
      }
      ASSERT_EQ(prefill->wants_token, life.generated == 0);
      started_.insert(prefill->request);
      if (!prefill->wants_token) continue;
      ++life.generated;
      if (std::ssize(life.prompt) + life.generated > life.max_cached) leave(prefill->request);
    }
  }

  std::mt19937 random_;
  SchedulerLimits limits_;
  Scheduler scheduler_;
  std::map<RequestId, Life> alive_;
  std::set<RequestId> started_;  // those that decode
  RequestId newest_ = 0;
  std::int64_t num_tokens_ = 0;
};

TEST(Scheduler, RandomLivesKeepTheRules) {
  std::int64_t num_preemptions = 0;
  for (unsigned seed = 1; seed <= 60; ++seed) {
    Lives lives(seed);
    lives.run(400);
    num_preemptions += lives.num_preemptions();
    if (HasFatalFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(num_preemptions, 100);
}

}  // namespace
}  // namespace snapmla
