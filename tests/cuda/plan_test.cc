// plan on the GPU gives the reference's items, every one of them, and writes nothing else.
#include <algorithm>

#include "gpu_test.h"

namespace snapmla::test {
namespace {

struct PlanCase {
  std::vector<std::int32_t> seq_lens{};
  int num_workers = 1;
  int fixed_split_tokens = 0;
};

struct Planned {
  std::vector<std::int32_t> work_items;
  std::vector<std::int32_t> worker_offsets;
  std::vector<std::int32_t> split_offsets;
};

Planned run_plan(Backend& backend, const PlanCase& c) {
  const auto batch = static_cast<std::int64_t>(c.seq_lens.size());
  const PlanShape shape = make_plan_shape(
      backend, {.batch = static_cast<int>(batch),
                .max_seq_len = std::max(1, *std::max_element(c.seq_lens.begin(), c.seq_lens.end())),
                .num_workers = c.num_workers,
                .fixed_split_tokens = c.fixed_split_tokens});
  const OnDevice<std::int32_t> seq_lens(backend, c.seq_lens);
  const OnDevice<std::int32_t> work_items(backend, poison<std::int32_t>(std::int64_t{4} * shape.max_items));
  const OnDevice<std::int32_t> worker_offsets(backend, poison<std::int32_t>(shape.num_workers + 1));
  const OnDevice<std::int32_t> split_offsets(backend, poison<std::int32_t>(batch + 1));
  plan(backend,
       {.seq_lens = {seq_lens.data(), DType::kI32, {batch}},
        .plan = {.shape = shape,
                 .work_items = {work_items.data(), DType::kI32, {shape.max_items, 4}},
                 .worker_offsets = {worker_offsets.data(), DType::kI32, {shape.num_workers + 1}},
                 .split_offsets = {split_offsets.data(), DType::kI32, {batch + 1}}}},
       {});
  return {.work_items = work_items.host(),
          .worker_offsets = worker_offsets.host(),
          .split_offsets = split_offsets.host()};
}

void expect_same_plan(const PlanCase& c) {
  const Planned expected = run_plan(reference(), c);
  const Planned found = run_plan(cuda(), c);
  const std::string what = "batch " + std::to_string(c.seq_lens.size()) + " workers " +
                           std::to_string(c.num_workers) + " fixed " + std::to_string(c.fixed_split_tokens);
  EXPECT_EQ(first_difference(found.split_offsets, expected.split_offsets), -1) << what;
  EXPECT_EQ(first_difference(found.worker_offsets, expected.worker_offsets), -1) << what;
  EXPECT_EQ(first_difference(found.work_items, expected.work_items), -1) << what;
}

class CudaPlan : public GpuTest {};

TEST_F(CudaPlan, EqualsTheReference) {
  std::mt19937_64 random(31);
  for (int round = 0; round < 400; ++round) {
    PlanCase c{.num_workers = 1 + static_cast<int>(random() % 300)};
    const std::size_t batch = 1 + random() % (round % 10 == 0 ? 4096 : 40);
    const std::uint64_t longest = round % 3 == 0 ? 200 : round % 3 == 1 ? 5000 : 100000;
    for (std::size_t b = 0; b < batch; ++b)
      c.seq_lens.push_back(random() % 6 == 0 ? 0 : static_cast<std::int32_t>(random() % longest));
    if (round % 7 == 0) c.seq_lens[random() % batch] = kMaxSeqLen;
    if (round % 11 == 0) std::fill(c.seq_lens.begin(), c.seq_lens.end(), c.seq_lens[0]);
    if (round % 4 == 3 && batch < 100) c.fixed_split_tokens = 64 * static_cast<int>(1 + random() % 40);
    expect_same_plan(c);
    if (HasFailure()) return;
  }
}

TEST_F(CudaPlan, EqualsTheReferenceAtTheEdges) {
  for (const int workers : {1, 2, 66, 132}) {
    for (const int fixed : {0, 64, 128, 1 << 20, 0x7fffffc0}) {
      for (const std::vector<std::int32_t>& seq_lens :
           std::vector<std::vector<std::int32_t>>{{0},
                                                  {1},
                                                  {64},
                                                  {65},
                                                  {128},
                                                  {129},
                                                  {0, 0, 0},
                                                  {kMaxSeqLen},
                                                  {0, 700, 0},
                                                  {127, 128, 129, 0}}) {
        expect_same_plan({.seq_lens = seq_lens, .num_workers = workers, .fixed_split_tokens = fixed});
      }
    }
  }
  expect_same_plan({.seq_lens = std::vector<std::int32_t>(4096, kMaxSeqLen), .num_workers = 132});
  expect_same_plan({.seq_lens = std::vector<std::int32_t>(4096, 0), .num_workers = 132});
  expect_same_plan({.seq_lens = std::vector<std::int32_t>(128, 4096), .num_workers = 66});
  for (const int batch : {3, 16, 32, 64, 130}) {  // even parts, and where they just fail to pay
    for (const int tokens : {1024, 4096, 16384, 131072}) {
      std::vector<std::int32_t> alike(batch, tokens);
      for (const int workers : {66, 132}) expect_same_plan({.seq_lens = alike, .num_workers = workers});
      for (int b = 0; b < batch; b += 3) alike[b] -= 97 * b % 1000;
      alike[batch / 2] = 0;
      for (const int workers : {66, 132}) expect_same_plan({.seq_lens = alike, .num_workers = workers});
    }
  }
}

}  // namespace
}  // namespace snapmla::test
