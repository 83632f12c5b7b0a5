// plan and combine: every token once, page borders, balance, fixed splits, merging.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "core/plan_rule.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

struct Item {
  int request;
  int first;
  int end;
  int partial;
  bool operator==(const Item&) const = default;
};

struct Plan {
  PlanShape shape{};
  std::vector<Item> items{};
  std::vector<std::int32_t> worker_offsets{};
  std::vector<std::int32_t> split_offsets{};
};

Plan make_plan(const std::vector<std::int32_t>& seq_lens, int num_workers, int fixed_split_tokens,
               int max_seq_len) {
  Plan result;
  const auto batch = static_cast<std::int64_t>(seq_lens.size());
  result.shape = make_plan_shape(reference(), {.batch = static_cast<int>(batch),
                                               .max_seq_len = max_seq_len,
                                               .num_workers = num_workers,
                                               .fixed_split_tokens = fixed_split_tokens});
  std::vector<std::int32_t> items(std::size_t{4} * result.shape.max_items, -7);
  result.worker_offsets.assign(result.shape.num_workers + 1, -7);
  result.split_offsets.assign(batch + 1, -7);
  plan(reference(),
       {.seq_lens = ConstTensorView(seq_lens.data(), DType::kI32, {batch}),
        .plan = {.shape = result.shape,
                 .work_items = TensorView(items.data(), DType::kI32, {result.shape.max_items, 4}),
                 .worker_offsets =
                     TensorView(result.worker_offsets.data(), DType::kI32, {result.shape.num_workers + 1}),
                 .split_offsets = TensorView(result.split_offsets.data(), DType::kI32, {batch + 1})}},
       {});
  for (int i = 0; i < result.split_offsets.back(); ++i)
    result.items.push_back({items[4 * i], items[4 * i + 1], items[4 * i + 2], items[4 * i + 3]});
  return result;
}

/// What a worker's items cost it: their pairs of pages, and a fixed cost for each item but the first.
int cost_of(const Plan& plan, int worker) {
  int cost = 0;
  for (int i = plan.worker_offsets[worker]; i < plan.worker_offsets[worker + 1]; ++i)
    cost += ceil_div(plan.items[i].end - plan.items[i].first, kPairTokens) + kItemPairs;
  return std::max(0, cost - kItemPairs);
}

/// The most that a worker has to do where the batch is cut into equal shares.
int share_of(const std::vector<std::int32_t>& seq_lens, int workers) {
  int line = 0;
  for (const int seq_len : seq_lens) line += request_length(seq_len, 0);
  return std::max(1, ceil_div(line - kItemPairs, workers));
}

void expect_covers(const Plan& plan, const std::vector<std::int32_t>& seq_lens) {
  ASSERT_EQ(plan.split_offsets.front(), 0);
  for (std::size_t b = 0; b < seq_lens.size(); ++b) {
    ASSERT_LT(plan.split_offsets[b], plan.split_offsets[b + 1]) << "every request has an item";
    int next = 0;
    for (int i = plan.split_offsets[b]; i < plan.split_offsets[b + 1]; ++i) {
      EXPECT_EQ(plan.items[i].request, static_cast<int>(b));
      EXPECT_EQ(plan.items[i].partial, i);
      EXPECT_EQ(plan.items[i].first, next);
      EXPECT_EQ(plan.items[i].first % kPageTokens, 0);
      EXPECT_TRUE(seq_lens[b] == 0 || plan.items[i].end > plan.items[i].first)
          << "only an empty request has an empty item";
      next = plan.items[i].end;
    }
    EXPECT_EQ(next, seq_lens[b]);
  }
  EXPECT_EQ(plan.worker_offsets.front(), 0);
  EXPECT_TRUE(std::is_sorted(plan.worker_offsets.begin(), plan.worker_offsets.end()));
  EXPECT_EQ(plan.worker_offsets.back(), plan.split_offsets.back()) << "every item has a worker";
}

TEST(Plan, CoversEveryTokenOnceInBalance) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::int32_t> seq_lens(1 + random() % 20);
    const int longest = round % 3 == 0 ? 100 : 20000;
    for (auto& seq_len : seq_lens)
      seq_len = random() % 5 == 0 ? 0 : static_cast<std::int32_t>(random() % longest);
    if (round % 7 == 0) seq_lens[0] = 131072;  // one long request beside short ones
    const int workers = 1 + static_cast<int>(random() % 140);
    const Plan plan = make_plan(seq_lens, workers, 0, 131072);
    expect_covers(plan, seq_lens);
    const int share = share_of(seq_lens, workers);
    const bool cut = plan.items.size() > seq_lens.size();
    const int half_gain = workers / kCrowdWorkers;
    for (int w = 0; w < workers; ++w) {
      EXPECT_LE(cost_of(plan, w), share + (cut ? half_gain : kSlackPairs + share / 16 + 2 * half_gain))
          << "worker " << w << " of " << workers;
    }
    for (const Item& item : plan.items) EXPECT_EQ(item.first % kPairTokens, 0) << "pairs of pages stay whole";
  }
}

// Cutting costs a merge, so requests that balance as they are stay whole: 128 of the same length on 66 workers
// (two a worker, two workers idle), but not 100 (34 workers would have two and 32 one).
TEST(Plan, LeavesRequestsWholeThatBalance) {
  for (const int tokens : {1000, 4096, 32768}) {
    const std::vector<std::int32_t> equal(128, tokens);
    const Plan plan = make_plan(equal, 66, 0, 131072);
    expect_covers(plan, equal);
    EXPECT_EQ(plan.items.size(), 128U) << tokens;
    EXPECT_EQ(plan.worker_offsets[1], 2) << tokens;
  }
  const std::vector<std::int32_t> fewer(100, 32768);
  EXPECT_GT(make_plan(fewer, 66, 0, 131072).items.size(), 100U);
}

TEST(Plan, SpreadsALoneRequestOverAllWorkers) {
  const Plan plan = make_plan({32768}, 66, 0, 131072);
  expect_covers(plan, {32768});
  EXPECT_EQ(plan.items.size(), 64U) << "256 pairs, four a worker";
  EXPECT_EQ(make_plan({128}, 66, 0, 131072).items.size(), 1U);
}

// Requests of alike lengths are cut so that nobody does parts of two, where that costs no more than equal shares.
TEST(Plan, CutsAlikeRequestsEvenly) {
  struct Case {
    int batch;
    int tokens;
    int workers;
    int items_a_request;
    int pairs;  ///< of an item
  };
  for (const Case& c : {Case{16, 4096, 66, 4, 8}, Case{32, 8192, 66, 2, 32}, Case{8, 8192, 66, 8, 8},
                        Case{64, 16384, 132, 2, 64}, Case{32, 4096, 132, 4, 8}, Case{10, 4096, 66, 6, 6}}) {
    SCOPED_TRACE(c.batch);
    const std::vector<std::int32_t> equal(c.batch, c.tokens);
    const Plan plan = make_plan(equal, c.workers, 0, 131072);
    expect_covers(plan, equal);
    EXPECT_EQ(static_cast<int>(plan.items.size()), c.batch * c.items_a_request);
    for (int w = 0; w < c.workers; ++w) {
      EXPECT_LE(plan.worker_offsets[w + 1] - plan.worker_offsets[w], 1) << "worker " << w;
      EXPECT_LE(cost_of(plan, w), c.pairs) << "worker " << w;
    }
    EXPECT_LE(c.pairs, share_of(equal, c.workers)) << "else equal shares were better";
  }
  const std::vector<std::int32_t> alike = {4096, 3000, 4000, 0, 4096, 3969, 4096, 4033, 4096, 4000, 4096};
  const Plan plan = make_plan(alike, 66, 0, 131072);
  expect_covers(plan, alike);
  for (int w = 0; w < 66; ++w) {
    EXPECT_LE(plan.worker_offsets[w + 1] - plan.worker_offsets[w], 1);
    EXPECT_LE(cost_of(plan, w), share_of(alike, 66));
  }
}

// Short items on half of the workers cost little more than on all of them, and leave the merge half as many.
TEST(Plan, LeavesHalfOfTheWorkersFreeWhereItemsAreShort) {
  struct Case {
    int batch;
    int tokens;
    int workers;
    int items_a_request;
  };
  for (const Case& c :
       {Case{1, 8192, 132, 64}, Case{1, 16384, 132, 64}, Case{1, 32768, 132, 64}, Case{1, 131072, 132, 128},
        Case{1, 4096, 66, 32}, Case{1, 8192, 66, 32}, Case{1, 32768, 66, 64}, Case{8, 4096, 132, 8},
        Case{32, 1024, 66, 1}, Case{64, 1024, 132, 1}, Case{64, 4096, 132, 2}}) {
    const std::vector<std::int32_t> equal(c.batch, c.tokens);
    const Plan plan = make_plan(equal, c.workers, 0, 131072);
    expect_covers(plan, equal);
    EXPECT_EQ(static_cast<int>(plan.items.size()), c.batch * c.items_a_request)
        << c.batch << " x " << c.tokens << " on " << c.workers;
  }
}

// Even parts would leave 16 workers idle; equal shares do not.
TEST(Plan, CutsIntoEqualSharesWhereEvenPartsCostMore) {
  const std::vector<std::int32_t> equal(50, 16384);
  const Plan plan = make_plan(equal, 132, 0, 131072);
  expect_covers(plan, equal);
  int most = 0;
  for (int w = 0; w < 132; ++w) most = std::max(most, cost_of(plan, w));
  EXPECT_LT(most, 64) << "two parts a request are 64 pairs each";
}

// One long request beside many short ones: nobody waits for the worker that has it.
TEST(Plan, BalancesRaggedBatches) {
  std::vector<std::int32_t> ragged(128, 1024);
  ragged[40] = 131072;
  for (const int workers : {66, 132}) {
    const Plan plan = make_plan(ragged, workers, 0, 131072);
    expect_covers(plan, ragged);
    int most = 0;
    for (int w = 0; w < workers; ++w) most = std::max(most, cost_of(plan, w));
    EXPECT_LE(most, ceil_div(1024 + 127 * 8 + 127 * kItemPairs, workers)) << workers;
  }
}

TEST(Plan, FixedSplitsAreTheRequestsOwn) {
  const std::vector<std::int32_t> crowd = {1000, 0, 64, 129, 5000};
  const Plan together = make_plan(crowd, 6, 128, 5000);
  expect_covers(together, crowd);
  for (std::size_t b = 0; b < crowd.size(); ++b) {
    const Plan alone = make_plan({crowd[b]}, 3, 128, 5000);
    ASSERT_EQ(together.split_offsets[b + 1] - together.split_offsets[b],
              static_cast<int>(alone.items.size()));
    for (std::size_t i = 0; i < alone.items.size(); ++i) {
      EXPECT_EQ(together.items[together.split_offsets[b] + i].first, alone.items[i].first);
      EXPECT_EQ(together.items[together.split_offsets[b] + i].end, alone.items[i].end);
    }
  }
}

TEST(Plan, RefusesLengthsItWasNotMadeFor) {
  EXPECT_THROW(make_plan({5001}, 2, 128, 4992), Error);
  EXPECT_THROW(make_plan({-1}, 2, 0, 100), Error);
  EXPECT_THROW(make_plan({kMaxSeqLen + 1}, 2, 0, 100), Error);
  EXPECT_THROW(make_plan({1}, 2, 100, 100), Error) << "not a multiple of 64";
}

TEST(Combine, MergesPartialsAndSkipsEmptyOnes) {
  constexpr std::int64_t kRows = 3;
  constexpr std::int64_t kPartials = 4;
  const float inf = std::numeric_limits<float>::infinity();
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> partial_out;
  for (std::int64_t i = 0; i < kPartials * kRows * kLatentDim; ++i) partial_out.push_back(normal(random));
  std::vector<float> partial_lse = {1, -2, 700, /**/ 3, -inf, 701, /**/ 2.5F, -1, 699, /**/ -inf, -inf, -inf};
  std::fill_n(partial_out.begin() + 4 * kLatentDim, kLatentDim, NAN);  // request 0, row 1, second partial
  std::fill_n(partial_out.begin() + 3 * kRows * kLatentDim, kRows * kLatentDim, NAN);  // all of request 1
  const std::vector<std::int32_t> split_offsets = {0, 3, 4};
  std::vector<float> out(2 * kRows * kLatentDim, NAN);
  std::vector<float> lse(2 * kRows, NAN);
  combine(reference(),
          {.partial_out = ConstTensorView(partial_out.data(), DType::kF32, {kPartials, kRows, kLatentDim}),
           .partial_lse = ConstTensorView(partial_lse.data(), DType::kF32, {kPartials, kRows}),
           .split_offsets = ConstTensorView(split_offsets.data(), DType::kI32, {3}),
           .out = TensorView(out.data(), DType::kF32, {2, 1, kRows, kLatentDim}),
           .lse = TensorView(lse.data(), DType::kF32, {2, 1, kRows})},
          {});
  for (std::int64_t row = 0; row < kRows; ++row) {
    double sum = 0;
    std::vector<double> expected(kLatentDim);
    for (std::int64_t i = 0; i < 3; ++i) {
      const double weight = std::exp(double{partial_lse[i * kRows + row]} - 700);
      if (weight == 0) continue;
      sum += weight;
      for (std::int64_t d = 0; d < kLatentDim; ++d)
        expected[d] += weight * partial_out[(i * kRows + row) * kLatentDim + d];
    }
    EXPECT_NEAR(lse[row], 700 + std::log(sum), 1e-4);
    for (std::int64_t d = 0; d < kLatentDim; ++d)
      EXPECT_NEAR(out[row * kLatentDim + d], expected[d] / sum, 1e-6);
    EXPECT_EQ(lse[kRows + row], -inf);
    EXPECT_EQ(out[(kRows + row) * kLatentDim], 0);
  }
}

}  // namespace
}  // namespace snapmla
