#include "evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>

#include "model_folder.h"
#include "snapmla/error.h"

namespace snapmla::apps {
namespace {

std::vector<std::vector<std::int32_t>> counting_documents(int count, int tokens) {
  std::vector<std::vector<std::int32_t>> documents;
  std::int32_t next = 0;
  for (int i = 0; i < count; ++i) {
    std::vector<std::int32_t> document(static_cast<std::size_t>(tokens));
    std::iota(document.begin(), document.end(), next);
    next += tokens;
    documents.push_back(std::move(document));
  }
  return documents;
}

TEST(MakeWindows, GivesEveryBucketItsShare) {
  const auto documents = counting_documents(100, 100);
  for (const int most : {16, 128, 300, 4096}) {
    const auto windows = make_windows(documents, {.num_tokens = 5000, .max_context = most, .seed = 3});
    std::map<int, int> by_bucket;
    const std::vector<Bucket> buckets = context_buckets(most);
    for (const Sequence& window : windows) {
      ASSERT_GE(window.prefix, 1);
      ASSERT_LE(static_cast<int>(window.tokens.size()), most);
      EXPECT_EQ(window.tokens.front() % 100, 0) << "windows start at documents";
      for (std::size_t i = 1; i < window.tokens.size(); ++i) {
        ASSERT_EQ(window.tokens[i], window.tokens[i - 1] + 1) << "windows are contiguous";
      }
      for (int i = 0; i < window.num_scored(); ++i) {
        const int context = window.prefix + 1 + i;
        const auto in = std::find_if(buckets.begin(), buckets.end(), [context](const Bucket& bucket) {
          return context >= bucket.low && context < bucket.high;
        });
        ASSERT_NE(in, buckets.end());
        ++by_bucket[in->low];
      }
    }
    for (const Bucket& bucket : buckets) {
      EXPECT_GE(by_bucket[bucket.low], 5000 / static_cast<int>(buckets.size())) << to_string(bucket);
    }
  }
}

TEST(MakeWindows, FollowsTheSeed) {
  const auto documents = counting_documents(50, 100);
  const auto prefixes = [&](std::uint64_t seed) {
    std::vector<int> all;
    for (const Sequence& window :
         make_windows(documents, {.num_tokens = 2000, .max_context = 512, .seed = seed})) {
      all.push_back(window.prefix);
    }
    return all;
  };
  EXPECT_EQ(prefixes(1), prefixes(1));
  EXPECT_NE(prefixes(1), prefixes(2));
}

TEST(MakeWindows, RefusesATextThatIsTooShort) {
  try {
    make_windows(counting_documents(2, 50), {.num_tokens = 100, .max_context = 512});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), ::testing::AllOf(::testing::HasSubstr("512"), ::testing::HasSubstr("got 100")));
  }
}

TEST(SplitDocuments, CutsAtBlankLines) {
  EXPECT_THAT(split_documents("\n\na\nb\n\n\n\nc\n\nd\n"), ::testing::ElementsAre("a\nb", "c", "d"));
  EXPECT_THAT(split_documents(""), ::testing::IsEmpty());
  EXPECT_THAT(split_documents("\n\n\n"), ::testing::IsEmpty());
}

/// Engines over one random model, and texts of random tokens.
class Scoring : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_.emplace();
    dir_ = testing::make_model_folder(folder_->file("model"));
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static Engine make_engine(CacheFormat format, int max_batch = 4) {
    return Engine({.model_dir = dir_, .cache_format = format, .max_seq_len = 256, .max_batch = max_batch});
  }

  static std::vector<Sequence> texts(int count, int prefix, int scored) {
    Random random(5);
    std::vector<Sequence> all;
    for (int i = 0; i < count; ++i) {
      Sequence text{.tokens = {}, .prefix = prefix};
      for (int t = 0; t < prefix + 1 + scored; ++t) text.tokens.push_back(random.below(2048));
      all.push_back(std::move(text));
    }
    return all;
  }

  static std::vector<TokenScore> score(const Caches& caches, const std::vector<Sequence>& sequences,
                                       const std::function<void(Engine&)>& after_step = {}) {
    std::vector<TokenScore> scores;
    score_sequences(
        caches, sequences,
        {.on_score = [&](const TokenScore& s) { scores.push_back(s); }, .after_step = after_step});
    std::sort(scores.begin(), scores.end(), [](const TokenScore& a, const TokenScore& b) {
      return std::pair(a.sequence, a.context) < std::pair(b.sequence, b.context);
    });
    return scores;
  }

  static Figures figures(const std::vector<TokenScore>& scores) {
    Figures all;
    for (const TokenScore& s : scores) all.add(s);
    return all;
  }

  static std::optional<testing::TempDir> folder_;
  static std::string dir_;
};

std::optional<testing::TempDir> Scoring::folder_;
std::string Scoring::dir_;

TEST_F(Scoring, ScoresEveryTokenBehindThePrefixButTheFirst) {
  Engine fp8 = make_engine(CacheFormat::kFp8);
  Engine bf16 = make_engine(CacheFormat::kBf16);
  const std::vector<Sequence> sequences = texts(6, 70, 5);
  const std::vector<TokenScore> scores = score({.bf16 = &bf16, .fp8 = &fp8}, sequences);
  ASSERT_EQ(scores.size(), 30U);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    EXPECT_EQ(scores[i].sequence, static_cast<int>(i / 5));
    EXPECT_EQ(scores[i].context, 71 + static_cast<int>(i % 5));
    EXPECT_GE(scores[i].kl, 0);
  }
}

TEST_F(Scoring, AgreesWithTheEnginesOwnLogProbabilities) {
  Engine engine = make_engine(CacheFormat::kBf16);
  const Sequence text = texts(1, 40, 6).front();
  const std::vector<TokenScore> scores = score({.bf16 = &engine}, {text});
  const auto split = text.tokens.begin() + text.prefix;
  engine.submit({.prompt_tokens = {text.tokens.begin(), split},
                 .max_tokens = 7,
                 .ignore_eos = true,
                 .forced_tokens = {split, text.tokens.end()}});
  std::vector<double> logprobs;
  while (!engine.idle()) {
    for (const TokenEvent& event : engine.step()) logprobs.push_back(event.logprob);
  }
  ASSERT_EQ(logprobs.size(), 7U);
  ASSERT_EQ(scores.size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(*scores[i].nll_bf16, -logprobs[i + 1], 1e-4);
    EXPECT_FALSE(scores[i].nll_fp8.has_value());
  }
}

TEST_F(Scoring, DependsNeitherOnTheBatchNorOnTheOtherCache) {
  Engine one_fp8 = make_engine(CacheFormat::kFp8, 1);
  Engine four_fp8 = make_engine(CacheFormat::kFp8, 4);
  Engine four_bf16 = make_engine(CacheFormat::kBf16, 4);
  const std::vector<Sequence> sequences = texts(5, 65, 4);
  const std::vector<TokenScore> alone = score({.fp8 = &one_fp8}, sequences);
  const std::vector<TokenScore> paired = score({.bf16 = &four_bf16, .fp8 = &four_fp8}, sequences);
  ASSERT_EQ(alone.size(), paired.size());
  for (std::size_t i = 0; i < alone.size(); ++i) EXPECT_EQ(alone[i].nll_fp8, paired[i].nll_fp8);
}

TEST_F(Scoring, FindsEqualCachesEqual) {
  Engine a = make_engine(CacheFormat::kBf16);
  Engine b = make_engine(CacheFormat::kBf16);
  const Figures same = figures(score({.bf16 = &a, .fp8 = &b}, texts(3, 80, 6)));
  EXPECT_EQ(same.kl().value, 0);
  EXPECT_EQ(same.top1_agreement().value, 1);
  EXPECT_EQ(same.perplexity_ratio().value, 1);
}

/// Multiplies the first FP8 scale that was written since `before` was taken by 16, in layer 0.
bool corrupt_one_scale(Engine& engine, const std::vector<float>& before) {
  const CacheView cache = engine.cache(0);
  auto* scales = static_cast<std::byte*>(cache.scale.data);
  for (std::int64_t page = 0; page < cache.num_pages; ++page) {
    for (int token = 0; token < kPageTokens; ++token) {
      std::byte* at = scales + page * cache.scale.page_stride + token * cache.scale.row_stride;
      float scale = 0;
      std::memcpy(&scale, at, sizeof scale);
      float old = 0;
      std::memcpy(&old, &before[static_cast<std::size_t>(page * kPageTokens + token)], sizeof old);
      if (std::memcmp(&scale, &old, sizeof scale) == 0) continue;
      scale *= 16;
      std::memcpy(at, &scale, sizeof scale);
      return true;
    }
  }
  return false;
}

std::vector<float> all_scales(const Engine& engine) {
  const CacheView cache = engine.cache(0);
  std::vector<float> all;
  for (std::int64_t page = 0; page < cache.num_pages; ++page) {
    for (int token = 0; token < kPageTokens; ++token) {
      float scale = 0;
      std::memcpy(&scale,
                  static_cast<const std::byte*>(cache.scale.data) + page * cache.scale.page_stride +
                      token * cache.scale.row_stride,
                  sizeof scale);
      all.push_back(scale);
    }
  }
  return all;
}

TEST_F(Scoring, OneCorruptScaleMovesTheFigures) {
  const std::vector<Sequence> sequences = texts(1, 100, 40);
  Engine bf16 = make_engine(CacheFormat::kBf16);
  Engine sound = make_engine(CacheFormat::kFp8);
  const Figures good = figures(score({.bf16 = &bf16, .fp8 = &sound}, sequences));

  Engine damaged = make_engine(CacheFormat::kFp8);
  const std::vector<float> before = all_scales(damaged);
  int corrupted = 0;
  const Figures bad = figures(score({.bf16 = &bf16, .fp8 = &damaged}, sequences, [&](Engine& engine) {
    if (&engine == &damaged && corrupted == 0 && corrupt_one_scale(engine, before)) ++corrupted;
  }));
  ASSERT_EQ(corrupted, 1);
  EXPECT_EQ(bad.tokens(), good.tokens());
  EXPECT_GT(bad.kl().value, 3 * good.kl().value);
  EXPECT_LT(bad.top1_agreement().value, good.top1_agreement().value);
  EXPECT_GT(bad.max_logprob_difference(), 2 * good.max_logprob_difference());
  EXPECT_GT(std::abs(std::log(bad.perplexity_ratio().value)),
            2 * std::abs(std::log(good.perplexity_ratio().value)));
}

}  // namespace
}  // namespace snapmla::apps
