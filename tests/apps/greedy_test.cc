// Greedy texts of two caches, and caches that hold what another format restores.
#include "greedy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/config.h"
#include "model_folder.h"
#include "run_program.h"
#include "snapmla/backend.h"
#include "study/fake_cache_backend.h"

namespace snapmla::apps {
namespace {

TEST(GreedySummaries, CountAndRank) {
  const GreedySummary summary = summarize({{.tokens = 4, .margins = {1, 2, 3, 4}},
                                           {.tokens = 4, .first_difference = 1, .gap = 2.5, .margins = {5}}});
  EXPECT_EQ(summary.texts, 2);
  EXPECT_EQ(summary.same, 1);
  EXPECT_EQ(summary.median_margin, 3);
  EXPECT_EQ(summary.median_gap, 2.5);
  EXPECT_EQ(summary.largest_gap, 2.5);
  EXPECT_DOUBLE_EQ(summary.margins_below, 0.4);
  EXPECT_TRUE(std::isnan(summarize({{.tokens = 1, .margins = {1}}}).largest_gap));
}

class FakeCaches : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_.emplace();
    model_ = testing::make_model_folder(folder_->file("model"));
  }
  static void TearDownTestSuite() { folder_.reset(); }
  static Engine engine(Backend& backend, CacheFormat format) {
    return Engine({.model_dir = model_, .backend = &backend, .cache_format = format, .max_seq_len = 512});
  }
  static std::vector<Calibration> calibration(const Engine& engine) {
    return std::vector<Calibration>(static_cast<std::size_t>(engine.config().num_layers),
                                    {.latent = 10, .rope = 10});
  }
  static std::vector<std::vector<std::int32_t>> prompts() {
    return {{5, 6, 7, 8}, {100, 200, 300}, {9, 8, 7, 6, 5}};
  }

  static std::optional<testing::TempDir> folder_;
  static std::string model_;
};
std::optional<testing::TempDir> FakeCaches::folder_;
std::string FakeCaches::model_;

TEST_F(FakeCaches, WithNothingQuantizedNothingChanges) {
  Engine plain = engine(reference(), CacheFormat::kBf16);
  FakeCacheBackend backend(reference(), KeyFormat::kBf16, calibration(plain));
  Engine fake = engine(backend, CacheFormat::kBf16);
  int done = 0;
  for (const GreedyComparison& comparison :
       compare_greedy({.bf16 = &plain, .fp8 = &fake}, prompts(), 40, [&] { ++done; })) {
    EXPECT_FALSE(comparison.first_difference.has_value());
    EXPECT_EQ(comparison.tokens, 40);
    EXPECT_EQ(comparison.margins.size(), 40U);
  }
  EXPECT_EQ(done, 6);
}

// What a token format restores is what the FP8 cache restores: prefill, which reads the cache alone, agrees bit for bit.
TEST_F(FakeCaches, HoldWhatTheFp8CacheHolds) {
  Engine real = engine(reference(), CacheFormat::kFp8);
  FakeCacheBackend backend(reference(), KeyFormat::kToken, calibration(real));
  Engine fake = engine(backend, CacheFormat::kBf16);
  std::vector<std::int32_t> prompt(100);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(7 * i % 2000);
  std::vector<std::vector<float>> logits;
  for (Engine* one : {&real, &fake}) {
    one->submit({.prompt_tokens = prompt, .max_tokens = 1, .forced_tokens = {}, .return_logits = true});
    while (!one->idle()) {
      for (TokenEvent& event : one->step()) logits.push_back(std::move(event.logits));
    }
  }
  ASSERT_EQ(logits.size(), 2U);
  EXPECT_EQ(logits[0], logits[1]);
}

// The texts part where two tokens are almost equally likely, and the gap says so: it is what the BF16 cache's own
// logits give.
TEST_F(FakeCaches, PartWithAGap) {
  Engine plain = engine(reference(), CacheFormat::kBf16);
  FakeCacheBackend backend(reference(), KeyFormat::kTensor1Rope, calibration(plain));
  Engine fake = engine(backend, CacheFormat::kBf16);
  const auto comparisons = compare_greedy({.bf16 = &plain, .fp8 = &fake}, prompts(), 200, {});
  int parted = 0;
  for (const GreedyComparison& comparison : comparisons) {
    EXPECT_EQ(comparison.tokens, 200);
    if (!comparison.first_difference) continue;
    ++parted;
    EXPECT_EQ(comparison.margins.size(), static_cast<std::size_t>(*comparison.first_difference));
    EXPECT_GT(comparison.gap, 0);
  }
  EXPECT_GT(parted, 0);
}

TEST_F(FakeCaches, TheProgramComparesThem) {
  const auto result =
      testing::run_program({.args = {"eval", model_, "--tokens", "0", "--greedy", "2", "--greedy-tokens", "8",
                                     "--fake-format", "tensor-static", "--json"}});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["fake_format"], "tensor-static");
  EXPECT_EQ(json["greedy"]["texts"], 2);
  EXPECT_EQ(json["greedy"]["tokens"], 8);
  for (const std::vector<std::string>& more :
       {std::vector<std::string>{"--greedy", "1", "--kv-cache-dtype", "fp8"},
        {"--fake-format", "magic"},
        {"--fake-format", "token", "--kv-cache-dtype", "bf16"}}) {
    std::vector<std::string> args{"eval", model_, "--tokens", "0"};
    args.insert(args.end(), more.begin(), more.end());
    EXPECT_EQ(testing::run_program({.args = args}).exit_code, 2) << more[0];
  }
}

}  // namespace
}  // namespace snapmla::apps
