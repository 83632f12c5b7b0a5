#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "snapmla/error.h"

namespace snapmla {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

void run_prefill(Scheduler& scheduler, const StepPlan& plan) {
  if (plan.prefill) scheduler.prefilled(*plan.prefill);
}

TEST(Scheduler, NothingToDo) {
  Scheduler scheduler({.num_pages = 4, .max_batch = 2, .prefill_chunk = 8});
  const StepPlan plan = scheduler.next_step();
  EXPECT_FALSE(plan.prefill);
  EXPECT_THAT(plan.decode, IsEmpty());
}

TEST(Scheduler, CutsPromptsIntoChunksAndDecodesAfterTheLast) {
  Scheduler scheduler({.num_pages = 4, .max_batch = 2, .prefill_chunk = 8});
  scheduler.add(1, {.prompt_tokens = 20, .max_cached = 24});
  for (const int start : {0, 8, 16}) {
    const StepPlan plan = scheduler.next_step();
    ASSERT_TRUE(plan.prefill);
    EXPECT_EQ(plan.prefill->request, 1);
    EXPECT_EQ(plan.prefill->start, start);
    EXPECT_EQ(plan.prefill->num_tokens, start == 16 ? 4 : 8);
    EXPECT_EQ(plan.prefill->completes_prompt, start == 16);
    EXPECT_THAT(plan.decode, IsEmpty());
    scheduler.prefilled(*plan.prefill);
  }
  const StepPlan plan = scheduler.next_step();
  EXPECT_FALSE(plan.prefill);
  EXPECT_THAT(plan.decode, ElementsAre(1));
}

TEST(Scheduler, PrefillsOneRequestAStepBesideTheDecodes) {
  Scheduler scheduler({.num_pages = 8, .max_batch = 3, .prefill_chunk = 8});
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, {.prompt_tokens = 8, .max_cached = 10});
  StepPlan plan = scheduler.next_step();
  EXPECT_EQ(plan.prefill->request, 1);
  EXPECT_THAT(plan.decode, IsEmpty());
  run_prefill(scheduler, plan);
  plan = scheduler.next_step();
  EXPECT_EQ(plan.prefill->request, 2);
  EXPECT_THAT(plan.decode, ElementsAre(1));
  run_prefill(scheduler, plan);
  plan = scheduler.next_step();
  EXPECT_EQ(plan.prefill->request, 3);
  EXPECT_THAT(plan.decode, ElementsAre(1, 2));
}

TEST(Scheduler, AskingTwiceChangesNothing) {
  Scheduler scheduler({.num_pages = 2, .max_batch = 2, .prefill_chunk = 8});
  scheduler.add(1, {.prompt_tokens = 20, .max_cached = 30});
  const StepPlan first = scheduler.next_step();
  const StepPlan second = scheduler.next_step();
  EXPECT_EQ(first.prefill->start, second.prefill->start);
  EXPECT_EQ(first.prefill->num_tokens, second.prefill->num_tokens);
  EXPECT_EQ(scheduler.pool().num_in_use(), 1);
}

TEST(Scheduler, ReservesTheWholeRequestAndMakesTheNextWait) {
  Scheduler scheduler({.num_pages = 4, .max_batch = 8, .prefill_chunk = 64});
  scheduler.add(1, {.prompt_tokens = 1, .max_cached = 3 * kPageTokens});
  scheduler.add(2, {.prompt_tokens = 1, .max_cached = 2 * kPageTokens});
  scheduler.add(3, {.prompt_tokens = 1, .max_cached = 1});  // would fit, but must not overtake
  run_prefill(scheduler, scheduler.next_step());
  EXPECT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(scheduler.num_waiting(), 2);
  EXPECT_EQ(scheduler.pool().num_in_use(), 3);
  EXPECT_THAT(scheduler.next_step().decode, ElementsAre(1));

  scheduler.remove(1);
  EXPECT_EQ(scheduler.pool().num_in_use(), 0);
  EXPECT_EQ(scheduler.next_step().prefill->request, 2);
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(scheduler.pool().num_in_use(), 3);
}

TEST(Scheduler, HoldsNoMoreThanMaxBatch) {
  Scheduler scheduler({.num_pages = 100, .max_batch = 2, .prefill_chunk = 64});
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, {.prompt_tokens = 1, .max_cached = 2});
  (void)scheduler.next_step();
  EXPECT_EQ(scheduler.num_running(), 2);
  scheduler.remove(1);
  (void)scheduler.next_step();
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(scheduler.num_waiting(), 0);
}

TEST(Scheduler, RemovesAWaitingRequest) {
  Scheduler scheduler({.num_pages = 1, .max_batch = 1, .prefill_chunk = 64});
  for (RequestId id = 1; id <= 3; ++id) scheduler.add(id, {.prompt_tokens = 1, .max_cached = 1});
  (void)scheduler.next_step();
  scheduler.remove(2);
  scheduler.remove(1);
  EXPECT_EQ(scheduler.next_step().prefill->request, 3);
}

TEST(Scheduler, MisuseIsABug) {
  Scheduler scheduler({.num_pages = 1, .max_batch = 1, .prefill_chunk = 64});
  const Demand small{.prompt_tokens = 1, .max_cached = 1};
  EXPECT_FALSE(scheduler.can_ever_run({.prompt_tokens = 1, .max_cached = kPageTokens + 1}));
  EXPECT_THROW(scheduler.add(1, {.prompt_tokens = 1, .max_cached = kPageTokens + 1}), Error);
  EXPECT_THROW(scheduler.add(1, {.prompt_tokens = 0, .max_cached = 1}), Error);
  EXPECT_THROW(scheduler.add(1, {.prompt_tokens = 2, .max_cached = 1}), Error);
  scheduler.add(1, small);
  EXPECT_THROW(scheduler.add(1, small), Error);
  EXPECT_THROW(scheduler.remove(2), Error);
  EXPECT_THROW((void)scheduler.pages(1), Error);  // waiting: holds none
  const StepPlan plan = scheduler.next_step();
  scheduler.prefilled(*plan.prefill);
  EXPECT_THROW(scheduler.prefilled(*plan.prefill), Error);
}

// Random arrivals, lengths and early ends against what must always hold.
TEST(Scheduler, RandomLivesKeepTheRules) {
  std::mt19937 random(7);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int round = 0; round < 20; ++round) {
    const SchedulerLimits limits{
        .num_pages = pick(4, 20), .max_batch = pick(1, 6), .prefill_chunk = pick(1, 90)};
    Scheduler scheduler(limits);
    std::map<RequestId, int> prefilled;  // requests that were given a chunk, and their tokens so far
    std::map<RequestId, Demand> alive;
    RequestId newest = 0;
    RequestId newest_started = 0;
    for (int step = 0; step < 400 || !alive.empty(); ++step) {
      ASSERT_LT(step, 20000) << "a request starves";
      if (step < 400 && pick(0, 2) == 0) {
        const int cached = pick(1, static_cast<int>(limits.num_pages) * kPageTokens);
        alive[++newest] = {.prompt_tokens = pick(1, cached), .max_cached = cached};
        scheduler.add(newest, alive[newest]);
      }
      const StepPlan plan = scheduler.next_step();
      ASSERT_TRUE(alive.empty() || plan.prefill || !plan.decode.empty()) << "stuck";
      ASSERT_LE(scheduler.num_running(), limits.max_batch);
      ASSERT_EQ(scheduler.num_running() + scheduler.num_waiting(), static_cast<int>(alive.size()));
      if (plan.prefill) {
        const PrefillStep& prefill = *plan.prefill;
        if (prefill.start == 0) {
          ASSERT_GT(prefill.request, newest_started) << "overtaken";
          newest_started = prefill.request;
        }
        ASSERT_EQ(prefill.start, prefilled[prefill.request]);
        ASSERT_LE(prefill.num_tokens, limits.prefill_chunk);
        prefilled[prefill.request] += prefill.num_tokens;
        ASSERT_EQ(prefill.completes_prompt,
                  prefilled[prefill.request] == alive.at(prefill.request).prompt_tokens);
        scheduler.prefilled(prefill);
      }
      std::set<std::int32_t> pages;
      std::int64_t num_held = 0;
      for (const RequestId id : plan.decode) {
        ASSERT_EQ(prefilled.at(id), alive.at(id).prompt_tokens);
        const auto& held = scheduler.pages(id);
        ASSERT_EQ(static_cast<std::int64_t>(held.size()), pages_for(alive.at(id).max_cached));
        num_held += static_cast<std::int64_t>(held.size());
        pages.insert(held.begin(), held.end());
      }
      ASSERT_EQ(static_cast<std::int64_t>(pages.size()), num_held) << "a page has two owners";
      for (const RequestId id : plan.decode) {
        if (pick(0, 9) != 0) continue;
        scheduler.remove(id);
        alive.erase(id);
      }
      if (!alive.empty() && pick(0, 30) == 0) {
        const RequestId id = std::next(alive.begin(), pick(0, static_cast<int>(alive.size()) - 1))->first;
        scheduler.remove(id);
        alive.erase(id);
      }
    }
    EXPECT_EQ(scheduler.pool().num_in_use(), 0);
  }
}

}  // namespace
}  // namespace snapmla
