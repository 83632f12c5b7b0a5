// The floor of a decode step: its parts by hand for a small shape and against known totals for DeepSeek-V3.
#include "bench/step_floor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>

#include "model/config.h"
#include "model/slice.h"
#include "support/checkpoint.h"
#include "support/e4m3_backend.h"
#include "support/temp_dir.h"

namespace snapmla::apps {
namespace {

ModelConfig tiny() {
  const testing::TempDir dir;
  testing::write_file(dir.file("config.json"), testing::tiny_config().dump());
  return load_config(dir.path());
}

ModelConfig deepseek_v3() {
  return load_config(SNAPMLA_SOURCE_DIR "/models/configs/deepseek-v3");
}

/// Ops that prefer bf16 weights.
const PlainOps& bf16() {
  return reference().plain_ops();
}

StepPart part_of(const std::vector<StepPart>& parts, const std::string& name) {
  const auto found =
      std::find_if(parts.begin(), parts.end(), [&](const StepPart& part) { return part.name == name; });
  if (found == parts.end()) throw std::runtime_error("no part " + name);
  return *found;
}

TEST(StepParts, AreCountedByHandForASmallShape) {
  // 2 layers (1 of 8 experts, 2 a token, inter 32, 1 shared), hidden 64, 2 heads, nope = v = 32, vocab 300.
  const std::vector<StepPart> parts = step_parts(tiny(), bf16(), CacheFormat::kFp8, 3, 100.5);
  const auto expect = [&](const char* name, int times, double bytes, double bf16_flops, double fp8_flops) {
    const StepPart part = part_of(parts, name);
    EXPECT_EQ(part.times, times) << name;
    EXPECT_DOUBLE_EQ(part.bytes, bytes) << name;
    EXPECT_DOUBLE_EQ(part.bf16_flops, bf16_flops) << name;
    EXPECT_DOUBLE_EQ(part.fp8_flops, fp8_flops) << name;
  };
  expect("q", 2, 2.0 * 192 * 64, 2.0 * 3 * 192 * 64, 0);
  expect("kv_a", 2, 2.0 * 576 * 64, 2.0 * 3 * 576 * 64, 0);
  expect("W_UK", 2, 2.0 * 2 * 32 * 512, 2.0 * 3 * 2 * 32 * 512, 0);
  expect("attention", 2, 3 * 100.5 * 644, 3 * 100.5 * 2 * 128, 3 * 100.5 * 2 * 2048);
  expect("W_UV", 2, 2.0 * 2 * 32 * 512, 2.0 * 3 * 2 * 32 * 512, 0);
  expect("o", 2, 2.0 * 64 * 64, 2.0 * 3 * 64 * 64, 0);
  expect("dense FFN", 1, 2.0 * 3 * 64 * 96, 2.0 * 3 * 3 * 64 * 96, 0);
  expect("router", 1, 4.0 * 8 * 64, 0, 0);
  const double used = 8 * (1 - 0.75 * 0.75 * 0.75);
  expect("experts", 1, 2.0 * used * 3 * 64 * 32, 2.0 * 6 * 3 * 64 * 32, 0);
  expect("shared experts", 1, 2.0 * 3 * 64 * 32, 2.0 * 3 * 3 * 64 * 32, 0);
  expect("lm_head", 1, 2.0 * 300 * 64, 2.0 * 3 * 300 * 64, 0);
  EXPECT_EQ(parts.size(), 11U);
  const StepPart attention = part_of(step_parts(tiny(), bf16(), CacheFormat::kBf16, 3, 100), "attention");
  EXPECT_DOUBLE_EQ(attention.bytes, 3 * 100 * 1152);
  EXPECT_DOUBLE_EQ(attention.bf16_flops, 3.0 * 100 * 2 * 2 * 1088);
  EXPECT_EQ(attention.fp8_flops, 0);
}

TEST(StepParts, ReadEveryWeightOfDeepseekV3OnceWhenAllExpertsAreUsed) {
  double bytes = 0;
  const std::vector<StepPart> parts = step_parts(deepseek_v3(), bf16(), CacheFormat::kFp8, 4096, 0);
  for (const StepPart& part : parts) bytes += part.times * part.bytes;
  // 671.03e9 parameters, less the embedding of 0.93e9; the router's half a billion is in fp32.
  EXPECT_NEAR(bytes / 1e9, 2 * (671.03 - 0.93), 3);
}

TEST(StepParts, ReadFp8WeightsAsTheyLieOnTheDevice) {
  const testing::E4m3Backend backend;
  const ModelConfig config = deepseek_v3();
  const std::vector<StepPart> parts = step_parts(config, backend.plain_ops(), CacheFormat::kFp8, 3, 0);
  const std::vector<StepPart> wide = step_parts(config, bf16(), CacheFormat::kFp8, 3, 0);
  const auto bytes = [&](const char* name) { return part_of(parts, name).bytes; };
  EXPECT_DOUBLE_EQ(bytes("kv_a"), 576.0 * 7168 + 4 * 5 * 56);
  EXPECT_DOUBLE_EQ(bytes("o"), 7168.0 * 16384 + 4 * 56 * 128);
  EXPECT_DOUBLE_EQ(bytes("dense FFN"), 3 * (7168.0 * 18432 + 4 * 56 * 144));
  EXPECT_DOUBLE_EQ(bytes("shared experts"), 3 * (7168.0 * 2048 + 4 * 56 * 16));
  EXPECT_DOUBLE_EQ(bytes("experts"), distinct_experts(config, 3) * bytes("shared experts"));
  for (const char* name : {"W_UK", "W_UV", "router", "lm_head"}) {
    EXPECT_EQ(bytes(name), part_of(wide, name).bytes) << name;
  }
  for (const StepPart& part : wide) EXPECT_EQ(part_of(parts, part.name).bf16_flops, part.bf16_flops);
}

TEST(StepParts, SeeTheSliceOfARank) {
  const ModelConfig slice =
      slice_config(deepseek_v3(), {.num_layers = 8, .expert_rank = 0, .expert_ranks = 32});
  const std::vector<StepPart> parts = step_parts(slice, bf16(), CacheFormat::kFp8, 64, 1000);
  EXPECT_EQ(part_of(parts, "dense FFN").times, 1);
  EXPECT_EQ(part_of(parts, "experts").times, 7);
  EXPECT_DOUBLE_EQ(part_of(parts, "experts").bytes, 2.0 * 8 * 3 * 7168 * 2048);  // 8 of 8 a token
  EXPECT_DOUBLE_EQ(part_of(parts, "experts").bf16_flops, 2.0 * 64 * 8 * 3 * 7168 * 2048);
}

TEST(DistinctExperts, IsWhatDrawingGives) {
  ModelConfig config;
  config.num_experts = 64;
  config.num_zero_experts = 32;
  config.top_k = 6;
  constexpr int kBatch = 20;
  constexpr int kRounds = 400;
  std::mt19937 random(1);
  double total = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::set<int> used;
    for (int token = 0; token < kBatch; ++token) {
      std::set<int> chosen;
      while (chosen.size() < 6) chosen.insert(std::uniform_int_distribution<int>(0, 95)(random));
      used.insert(chosen.begin(), chosen.lower_bound(64));
    }
    total += static_cast<double>(used.size());
  }
  // One round's deviation is below sqrt(64 * 0.25) = 4, so that of the mean below 0.2.
  EXPECT_NEAR(distinct_experts(config, kBatch), total / kRounds, 0.6);
  EXPECT_NEAR(distinct_experts(config, 1), 4, 1e-9);
}

TEST(FloorUs, IsTheSumOfEachPartsLargerTime) {
  DeviceLimits limits{};
  limits.read_gbps.sustained = 1000;  // 1e3 bytes/ns: 1e6 bytes a us
  limits.bf16_tflops.sustained = 10;  // 1e7 FLOPs a us
  limits.fp8_tflops.sustained = 20;
  const StepPart by_memory{.name = "a", .times = 2, .bytes = 3e6, .bf16_flops = 1e7};
  const StepPart by_math{.name = "b", .times = 1, .bytes = 1e6, .bf16_flops = 2e7, .fp8_flops = 6e7};
  EXPECT_DOUBLE_EQ(floor_us({by_memory}, limits), 6);
  EXPECT_DOUBLE_EQ(floor_us({by_math}, limits), 5);
  EXPECT_DOUBLE_EQ(floor_us({by_memory, by_math}, limits), 11);
}

}  // namespace
}  // namespace snapmla::apps
