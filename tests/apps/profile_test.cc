// The profiler: what it counts of a step agrees with the floor's own counting, and what it times is every op of it.
#include "bench/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>

#include "bench/lockstep.h"
#include "bench/step_floor.h"
#include "model/dummy_weights.h"
#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla::apps {
namespace {

using ::testing::HasSubstr;

constexpr int kBatch = 3;
constexpr int kContext = 100;

class ProfilerTest : public ::testing::TestWithParam<CacheFormat> {
 protected:
  ProfilerTest() {
    const testing::TempDir dir;
    testing::write_file(dir.file("config.json"), testing::tiny_config().dump());
    config_ = load_config(dir.path());
    weights_ = std::make_shared<const ModelWeights>(make_dummy_weights(reference(), config_));
    profiler_.name_weights(*weights_);
    requests_.emplace(
        profiler_,
        Model::make(
            profiler_, config_, weights_,
            {.max_batch = kBatch, .max_chunk = 0, .max_seq_len = kContext + 1, .cache_format = GetParam()}),
        LockstepShape{.batch = kBatch, .context = kContext, .output = 1}, 1);
  }

  std::vector<OpProfile> profile(const DeviceLimits* limits = nullptr) {
    profiler_.set_mode(Profiler::Mode::kCount);
    requests_->run(1);
    profiler_.set_mode(Profiler::Mode::kTime);
    for (int i = 0; i < 2; ++i) requests_->run(1);
    profiler_.set_mode(Profiler::Mode::kOff);
    return profiler_.profile(limits);
  }
  static const OpProfile& find(const std::vector<OpProfile>& ops, const std::string& name) {
    const auto found =
        std::find_if(ops.begin(), ops.end(), [&](const OpProfile& op) { return op.name == name; });
    if (found == ops.end()) throw std::runtime_error("no op " + name);
    return *found;
  }

  ModelConfig config_;
  std::shared_ptr<const ModelWeights> weights_;
  Profiler profiler_{reference()};
  std::optional<Lockstep> requests_;
};

TEST_P(ProfilerTest, CountsWhatTheFloorCounts) {
  const std::vector<OpProfile> ops = profile();
  for (const StepPart& part :
       step_parts(config_, reference().plain_ops(), GetParam(), kBatch, kContext + 1)) {
    const OpProfile& op = find(ops, part.name);
    EXPECT_DOUBLE_EQ(op.cost.bf16_flops, part.times * part.bf16_flops) << part.name;
    EXPECT_DOUBLE_EQ(op.cost.fp8_flops, part.times * part.fp8_flops) << part.name;
    if (part.name == "experts") continue;  // the floor expects, the profiler looks
    // The profiler also counts activations: rows of at most this many numbers, in and out of up to three products.
    constexpr double kWidestRow = 2 * 576;
    EXPECT_GE(op.cost.bytes, part.times * part.bytes) << part.name;
    EXPECT_LE(op.cost.bytes, part.times * part.bytes + op.calls * kBatch * 4 * 2 * kWidestRow) << part.name;
  }
}

TEST_P(ProfilerTest, CountsTheExpertsThatWereChosen) {
  const std::vector<OpProfile> ops = profile();
  const double expert = 2.0 * 3 * 64 * 32;
  const double activations = 2.0 * kBatch * 2 * 64;
  const double used = (find(ops, "experts").cost.bytes - activations) / expert;
  EXPECT_DOUBLE_EQ(used, std::round(used));
  EXPECT_GE(used, 2);
  EXPECT_LE(used, 2 * kBatch);
}

TEST_P(ProfilerTest, TimesEveryOpOfAStep) {
  const std::vector<OpProfile> ops = profile();
  EXPECT_EQ(find(ops, "kv_a").calls, 2);
  EXPECT_EQ(find(ops, "shared experts").calls, 3);
  EXPECT_EQ(find(ops, "attention").calls, 2);
  EXPECT_EQ(find(ops, "append_kv").calls, 2);
  EXPECT_EQ(find(ops, "plan").calls, 1);
  EXPECT_EQ(find(ops, "sample").calls, 1);
  const auto quantizes =
      std::count_if(ops.begin(), ops.end(), [](const OpProfile& op) { return op.name == "quantize_q"; });
  EXPECT_EQ(quantizes, GetParam() == CacheFormat::kFp8 ? 1 : 0);
  EXPECT_TRUE(std::is_sorted(ops.begin(), ops.end(),
                             [](const OpProfile& a, const OpProfile& b) { return a.us > b.us; }));
  for (const OpProfile& op : ops) EXPECT_GT(op.us, 0) << op.name;
  EXPECT_THAT(profile_text(ops), HasSubstr("\n          all "));
  EXPECT_EQ(profile_json(ops).size(), ops.size());
}

TEST_P(ProfilerTest, LimitsAreTheLargerOfBytesAndFlopsACall) {
  DeviceLimits limits{};
  limits.read_gbps.sustained = 1000;
  limits.bf16_tflops.sustained = 1e-3;
  limits.fp8_tflops.sustained = 2e-3;
  const std::vector<OpProfile> ops = profile(&limits);
  const OpProfile& product = find(ops, "kv_a");
  EXPECT_DOUBLE_EQ(product.limit_us, product.cost.bf16_flops / 1e3);
  const OpProfile& norms = find(ops, "rms_norm");
  EXPECT_DOUBLE_EQ(norms.limit_us, norms.cost.bytes / 1e6);
  const OpProfile& attention = find(ops, "attention");
  EXPECT_DOUBLE_EQ(attention.limit_us, attention.cost.bf16_flops / 1e3 + attention.cost.fp8_flops / 2e3);
}

TEST_P(ProfilerTest, ChangesNoResult) {
  Lockstep plain(
      reference(),
      Model::make(
          reference(), config_, weights_,
          {.max_batch = kBatch, .max_chunk = 0, .max_seq_len = kContext + 1, .cache_format = GetParam()}),
      {.batch = kBatch, .context = kContext, .output = 1}, 1);
  (void)profile();
  for (int i = 0; i < 3; ++i) plain.run(1);
  EXPECT_EQ(requests_->tokens(), plain.tokens());
}

INSTANTIATE_TEST_SUITE_P(, ProfilerTest, ::testing::Values(CacheFormat::kFp8, CacheFormat::kBf16),
                         [](const ::testing::TestParamInfo<CacheFormat>& format) {
                           return to_string(format.param);
                         });

}  // namespace
}  // namespace snapmla::apps
