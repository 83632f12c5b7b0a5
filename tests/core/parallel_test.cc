// parallel_for: every index once, exceptions, nesting, several callers.
#include "core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace snapmla {
namespace {

TEST(ParallelFor, DoesEveryIndexOnce) {
  for (const std::int64_t count : {0, 1, 2, 7, 64, 1000, 1001}) {
    for (const std::int64_t grain : {1, 3, 64, 5000}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
      parallel_for(count, grain, [&](std::int64_t i) { ++done[static_cast<std::size_t>(i)]; });
      for (const std::atomic<int>& times : done) ASSERT_EQ(times, 1) << count << ' ' << grain;
    }
  }
}

TEST(ParallelFor, OneGrainRunsOnTheCaller) {
  const std::thread::id caller = std::this_thread::get_id();
  parallel_for(8, 8, [&](std::int64_t) { EXPECT_EQ(std::this_thread::get_id(), caller); });
}

TEST(ParallelFor, RethrowsAndWorksAgain) {
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(parallel_for(1000, 1,
                              [](std::int64_t i) {
                                if (i == 500) throw std::runtime_error("500");
                              }),
                 std::runtime_error);
    std::atomic<int> done = 0;
    parallel_for(100, 1, [&](std::int64_t) { ++done; });
    ASSERT_EQ(done, 100);
  }
  EXPECT_THROW(parallel_for(1, 1, [](std::int64_t) { throw std::runtime_error("alone"); }),
               std::runtime_error);
}

TEST(ParallelFor, NestedCallsRunOnTheirOwnThread) {
  std::vector<std::atomic<int>> done(50 * 40);
  parallel_for(50, 1, [&](std::int64_t i) {
    const std::thread::id outer = std::this_thread::get_id();
    parallel_for(40, 1, [&](std::int64_t j) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++done[static_cast<std::size_t>(i * 40 + j)];
    });
  });
  for (const std::atomic<int>& times : done) ASSERT_EQ(times, 1);
}

TEST(ParallelFor, TakesCallersOnSeveralThreads) {
  std::atomic<std::int64_t> sum = 0;
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) parallel_for(100, 7, [&](std::int64_t i) { sum += i; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 50 * 4950);
}

TEST(NumThreads, IsPositive) {
  EXPECT_GE(num_threads(), 1);
  EXPECT_LE(num_threads(), 1024);
}

}  // namespace
}  // namespace snapmla
