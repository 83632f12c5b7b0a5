// The barrier protocol of the BF16 decode kernel, played on the host: every warp's waits, arrivals, loads and
// reads, in the order of bf16_kernel.cuh, run in random order by one thread. Nothing may hang, and every
// buffer must hold what its reader expects, from the issue of a product to its end.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/decode/bf16_config.h"

namespace snapmla::cuda_ops::bf16 {
namespace {

using Random = std::mt19937;

/// An mbarrier: a phase ends when all arrivals and all expected loads have come.
struct PhaseBarrier {
  int count = 0;
  int missing = 0;
  int loads = 0;
  std::uint32_t phase = 0;

  void settle() {
    if (missing > 0 || loads > 0) return;
    missing = count;
    ++phase;
  }
  void arrive() {
    --missing;
    settle();
  }
  void load_done() {
    --loads;
    settle();
  }
  [[nodiscard]] bool passed(std::uint32_t parity) const { return (phase & 1) != parity; }
};

/// What a step does; false: it must wait. Steps change nothing when they return false.
using Step = std::function<bool()>;

struct Machine {
  std::array<PhaseBarrier, kNumBarriers> barriers;
  std::map<std::uint32_t, std::int64_t> buffers;  ///< shared-memory offset -> tag of its content
  std::vector<Step> in_flight;                    ///< loads that may end at any time
  std::vector<std::string> faults;
};

constexpr std::int64_t kUndefined = -1;

// Tags of contents: all different.
std::int64_t query_tag(std::uint32_t query, int part) {
  return 1'000'000 + 10 * query + part;
}
std::int64_t page_tag(std::uint32_t page, int part) {
  return 2'000'000 + 10 * page + part;
}
std::int64_t weights_tag(std::uint32_t page) {
  return 3'000'000 + page;
}
std::int64_t sums_tag(int item) {
  return 4'000'000 + item;
}

std::uint32_t half_at(std::uint32_t use) {
  return Shared::kHalves + HalfRing(use).slot * kHalfBytes;
}
std::uint32_t rope_at(std::uint32_t use) {
  return Shared::kRopes + RopeRing(use).slot * kChunkBytes;
}
/// A warp writes its own quarter of a P tile (and of the factors beside it).
std::uint32_t weights_at(std::uint32_t page, int warp) {
  return Shared::kWeights + WeightsRing(page).slot * kChunkBytes +
         static_cast<std::uint32_t>(warp) * kChunkBytes / 4;
}
std::uint32_t sums_at(int warp) {
  return Shared::kInverses + static_cast<std::uint32_t>(warp);
}

/// The steps of one role, as its code writes them down.
class Script {
 public:
  explicit Script(Machine& machine) : machine_(machine) {}

  void wait(std::uint32_t barrier, std::uint32_t parity) {
    steps_.push_back([&m = machine_, barrier, parity] { return m.barriers.at(barrier).passed(parity); });
  }
  void arrive(std::uint32_t barrier) {
    steps_.push_back([&m = machine_, barrier] { return m.barriers.at(barrier).arrive(), true; });
  }
  void load(std::uint32_t buffer, std::int64_t tag, std::uint32_t barrier) {
    steps_.push_back([&m = machine_, buffer, tag, barrier] {
      m.buffers[buffer] = kUndefined;
      ++m.barriers.at(barrier).loads;
      m.barriers.at(barrier).arrive();
      m.in_flight.push_back([&m, buffer, tag, barrier] {
        m.buffers[buffer] = tag;
        return m.barriers.at(barrier).load_done(), true;
      });
      return true;
    });
  }
  void write(std::uint32_t buffer, std::int64_t tag) {
    steps_.push_back([&m = machine_, buffer, tag] { return m.buffers[buffer] = tag, true; });
  }
  void read(std::uint32_t buffer, std::int64_t tag) {
    steps_.push_back([&m = machine_, buffer, tag] {
      if (m.buffers[buffer] != tag)
        m.faults.push_back("buffer " + std::to_string(buffer) + " holds " +
                           std::to_string(m.buffers[buffer]) + ", not " + std::to_string(tag));
      return true;
    });
  }

  /// One step, if there is one that need not wait.
  bool advance() {
    if (next_ == steps_.size() || !steps_[next_]()) return false;
    ++next_;
    return true;
  }
  [[nodiscard]] bool done() const { return next_ == steps_.size(); }

 private:
  Machine& machine_;
  std::vector<Step> steps_;
  std::size_t next_ = 0;
};

void init_barriers(Machine& machine) {
  const auto init = [&](std::uint32_t first, int number, int count) {
    for (int i = 0; i < number; ++i) {
      machine.barriers.at(first + static_cast<std::uint32_t>(i)).count = count;
      machine.barriers.at(first + static_cast<std::uint32_t>(i)).missing = count;
    }
  };
  init(kHalfFull, kNumHalves, 1);
  init(kHalfEmpty, kNumHalves, 4);
  init(kRopeFull, kNumRopes, 1);
  init(kRopeEmpty, kNumRopes, kScoreWarps);
  init(kQueryFull, 1, 1);
  init(kWeightsFull, kNumWeights, kScoreWarps);
  init(kWeightsEmpty, kNumWeights, kValueWarps);
  init(kSecondTurn, kNumWeights, kValueWarps / 2);
  init(kSumsFull, 1, kScoreWarps);
  init(kSumsEmpty, 1, kValueWarps);
}

void write_loads(Script& script, const std::vector<int>& items) {
  Count count;
  const auto ring_half = [&](std::uint32_t use, std::int64_t tag) {
    const HalfRing ring(use);
    script.wait(kHalfEmpty + ring.slot, ring.freed);
    script.load(half_at(use), tag, kHalfFull + ring.slot);
  };
  const auto ring_rope = [&](std::uint32_t use, std::int64_t tag) {
    const RopeRing ring(use);
    script.wait(kRopeEmpty + ring.slot, ring.freed);
    script.load(rope_at(use), tag, kRopeFull + ring.slot);
  };
  for (const int pages : items) {
    for (int i = 0; i < pages; ++i, ++count.pages) {
      if (i == 0) ring_half(count.query_half(), query_tag(count.queries, 0));
      ring_half(count.half(0), page_tag(count.pages, 0));
      if (i == 0) ring_rope(count.query_rope(), query_tag(count.queries, 2));
      ring_rope(count.rope(), page_tag(count.pages, 2));
      if (i == 0) script.load(Shared::kQuery, query_tag(count.queries, 1), kQueryFull);
      ring_half(count.half(1), page_tag(count.pages, 1));
    }
    if (pages > 0) ++count.queries;
  }
}

void write_page_scores(Script& script, const Count& count, bool first, bool loaded, int warp) {
  const RopeRing rope(count.rope());
  const HalfRing halves[2] = {HalfRing(count.half(0)), HalfRing(count.half(1))};
  const WeightsRing weights(count.pages);
  if (!first && !loaded) script.arrive(kWeightsFull + (weights.slot ^ 1));
  const auto read_keys = [&](int part) {
    script.read(part == 2 ? rope_at(count.rope()) : half_at(count.half(part)), page_tag(count.pages, part));
  };
  script.wait(kHalfFull + halves[0].slot, halves[0].full);
  if (first) script.read(half_at(count.query_half()), query_tag(count.queries, 0));
  read_keys(0);
  script.wait(kRopeFull + rope.slot, rope.full);
  if (first) script.read(rope_at(count.query_rope()), query_tag(count.queries, 2));
  read_keys(2);
  script.wait(kHalfFull + halves[1].slot, halves[1].full);
  read_keys(1);
  script.read(Shared::kQuery, query_tag(count.queries, 1));
  if (first) {
    script.arrive(kHalfEmpty + HalfRing(count.query_half()).slot);
    script.arrive(kRopeEmpty + RopeRing(count.query_rope()).slot);
  }
  if (!first && loaded) script.arrive(kWeightsFull + (weights.slot ^ 1));
  script.wait(kWeightsEmpty + weights.slot, weights.freed);
  for (const int part : {0, 1, 2}) read_keys(part);  // mma_wait<0>: the products end here
  script.read(Shared::kQuery, query_tag(count.queries, 1));
  script.arrive(kRopeEmpty + rope.slot);
  script.write(weights_at(count.pages, warp), weights_tag(count.pages));
}

/// `random` stands for how far the loads happen to be; the warps may see that differently.
void write_scores(Script& script, const std::vector<int>& items, int warp, Random& random) {
  Count count;
  for (std::size_t item = 0; item < items.size(); ++item) {
    const int pages = items[item];
    if (pages > 0) {
      const HalfRing half(count.query_half());
      const RopeRing rope(count.query_rope());
      script.wait(kHalfFull + half.slot, half.full);
      script.wait(kRopeFull + rope.slot, rope.full);
      script.wait(kQueryFull, count.queries & 1);
    }
    Count start = count;
    for (int i = 0; i < pages; ++i, ++count.pages)
      write_page_scores(script, count, i == 0, random() % 2 == 0, warp);
    if (pages > 0) {
      script.arrive(kWeightsFull + WeightsRing(count.pages - 1).slot);
      ++count.queries;
    }
    EXPECT_EQ(count.pages - start.pages, static_cast<std::uint32_t>(pages));
    script.wait(kSumsEmpty, (item & 1) ^ 1);
    script.write(sums_at(warp), sums_tag(static_cast<int>(item)));
    script.arrive(kSumsFull);
  }
}

void write_values(Script& script, const std::vector<int>& items, int which, int warp) {
  Count count;
  for (std::size_t item = 0; item < items.size(); ++item) {
    for (int i = 0; i < items[item]; ++i, ++count.pages) {
      const WeightsRing weights(count.pages);
      const std::uint32_t use = count.half(which);
      script.wait(kWeightsFull + weights.slot, weights.full);
      if (which == 1) script.wait(kSecondTurn + weights.slot, weights.full);
      for (int end = 0; end < 2; ++end) {  // issue, and mma_wait<0>
        script.read(half_at(use), page_tag(count.pages, which));
        for (int part = 0; part < kScoreWarps; ++part)
          script.read(weights_at(count.pages, part), weights_tag(count.pages));
        if (end == 0 && which == 0) script.arrive(kSecondTurn + weights.slot);
      }
      script.arrive(kHalfEmpty + HalfRing(use).slot);
      script.arrive(kWeightsEmpty + weights.slot);
    }
    if (items[item] > 0) ++count.queries;
    script.wait(kSumsFull, item & 1);
    script.read(sums_at(warp), sums_tag(static_cast<int>(item)));
    script.arrive(kSumsEmpty);
  }
}

/// Runs all roles over items of so many pages each, in an order drawn from the seed.
void play(const std::vector<int>& items, std::uint32_t seed) {
  Random random(seed);
  Machine machine;
  init_barriers(machine);
  std::vector<Script> roles(1, Script(machine));
  write_loads(roles[0], items);
  for (int warp = 0; warp < kScoreWarps; ++warp)
    write_scores(roles.emplace_back(machine), items, warp, random);
  for (int warp = 0; warp < kValueWarps; ++warp)
    write_values(roles.emplace_back(machine), items, warp / 4, warp % 4);

  const auto all_done = [&] {
    for (const Script& role : roles)
      if (!role.done()) return false;
    return true;
  };
  // Some seeds let loads lag, others one role: long bursts of the same choice find races that even steps
  // hide.
  int stuck = 0;
  while (!all_done() && machine.faults.empty()) {
    const std::size_t pick = random() % (roles.size() + 1);
    bool moved = false;
    if (pick < roles.size()) {
      const std::size_t burst = 1 + random() % 40;
      for (std::size_t i = 0; i < burst && roles[pick].advance(); ++i) moved = true;
    } else if (!machine.in_flight.empty() && random() % (1 + seed % 4) == 0) {
      const std::size_t at = random() % machine.in_flight.size();
      const Step landing = machine.in_flight[at];
      machine.in_flight.erase(machine.in_flight.begin() + static_cast<std::ptrdiff_t>(at));
      moved = landing();
    }
    stuck = moved ? 0 : stuck + 1;
    ASSERT_LT(stuck, 5000) << "hangs, seed " << seed;
  }
  ASSERT_TRUE(machine.faults.empty()) << machine.faults.front() << ", seed " << seed;
  EXPECT_TRUE(machine.in_flight.empty());
}

TEST(Bf16Schedule, RingsAreUsedInTheOrderOfLoading) {
  std::uint32_t half = 0;
  std::uint32_t rope = 0;
  Count count;
  for (const int pages : {3, 1, 4}) {
    EXPECT_EQ(count.query_half(), half++);
    EXPECT_EQ(count.query_rope(), rope++);
    for (int i = 0; i < pages; ++i, ++count.pages) {
      EXPECT_EQ(count.half(0), half++);
      EXPECT_EQ(count.half(1), half++);
      EXPECT_EQ(count.rope(), rope++);
    }
    ++count.queries;
  }
}

TEST(Bf16Schedule, OneItem) {
  for (int pages = 0; pages < 12; ++pages) {
    for (std::uint32_t seed = 0; seed < 20; ++seed) play({pages}, seed);
  }
}

TEST(Bf16Schedule, ManyItems) {
  Random random(1);
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    std::vector<int> items(1 + random() % 8);
    for (int& pages : items) pages = static_cast<int>(random() % 7);
    play(items, seed);
  }
}

}  // namespace
}  // namespace snapmla::cuda_ops::bf16
