// Prefill and decode: results do not depend on chunks, cached prefixes or the rest of the batch, bit for bit;
// both forms agree; wrong arguments are named.
#include "model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/metered_backend.h"
#include "model/state.h"
#include "model_runner.h"
#include "snapmla/error.h"
#include "support/backends.h"
#include "support/checkpoint.h"

namespace snapmla {
namespace {

using ::testing::HasSubstr;
using testing::ModelRunner;
using testing::On;
using testing::Sequence;
using testing::TempDir;
using Tokens = std::vector<std::int32_t>;
using Logits = ModelRunner::Logits;

Tokens some_tokens(int count, std::uint64_t seed) {
  Tokens tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(
        static_cast<std::int32_t>(testing::splitmix64(seed, static_cast<std::uint64_t>(i)) % 300));
  }
  return tokens;
}

/// A model with every part: low-rank queries, YaRN, groups, shared experts.
nlohmann::json test_config() {
  nlohmann::json config = testing::tiny_config();
  config["q_lora_rank"] = 24;
  config["num_attention_heads"] = 3;
  config["rope_scaling"] = {{"type", "yarn"},
                            {"factor", 8},
                            {"original_max_position_embeddings", 64},
                            {"mscale", 1.0},
                            {"mscale_all_dim", 1.0}};
  return config;
}

class ModelTest : public ::testing::TestWithParam<std::tuple<On, CacheFormat>> {
 protected:
  void SetUp() override {
    if (const std::string reason = testing::why_not(std::get<0>(GetParam())); !reason.empty())
      GTEST_SKIP() << reason;
  }
  static CacheFormat format() { return std::get<1>(GetParam()); }
  static Backend& backend() { return testing::backend(std::get<0>(GetParam())); }
  static ModelRunner make_runner(ModelLimits limits = {
                                     .max_batch = 3, .max_chunk = 200, .max_seq_len = 700}) {
    static const TempDir dir;
    static const std::string path = testing::write_checkpoint(dir.path(), test_config(), 11);
    limits.cache_format = format();
    return {Model::load(backend(), path, limits), 32, backend()};
  }
};

INSTANTIATE_TEST_SUITE_P(Caches, ModelTest,
                         ::testing::Combine(::testing::Values(On::kReference, On::kCuda),
                                            ::testing::Values(CacheFormat::kFp8, CacheFormat::kBf16)),
                         [](const auto& test) {
                           return testing::name_of(std::get<0>(test.param)) + '_' +
                                  to_string(std::get<1>(test.param));
                         });

double relative_rms(const Logits& a, const Logits& b) {
  double squares = 0;
  double all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += std::pow(static_cast<double>(a[i]) - b[i], 2);
    all += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(squares / all);
}

TEST_P(ModelTest, ChunksChangeNothing) {
  const Tokens prompt = some_tokens(150, 1);
  Sequence whole;
  ModelRunner runner = make_runner();
  const Logits expected = runner.prefill(whole, prompt, 150);
  const Logits expected_next = runner.decode(whole, 5);
  for (const int chunk : {1, 7, 64, 100}) {
    Sequence sequence;
    ModelRunner other = make_runner();
    EXPECT_EQ(other.prefill(sequence, prompt, chunk), expected) << "chunks of " << chunk;
    EXPECT_EQ(other.decode(sequence, 5), expected_next) << "chunks of " << chunk;
  }
}

TEST_P(ModelTest, ACachedPrefixChangesNothing) {
  const Tokens prompt = some_tokens(150, 2);
  ModelRunner runner = make_runner();
  Sequence first;
  const Logits expected = runner.prefill(first, prompt, 150);
  Sequence second{.pages = {first.pages[0], first.pages[1]}, .length = 128};
  EXPECT_EQ(runner.prefill(second, Tokens(prompt.begin() + 128, prompt.end()), 150), expected);
  EXPECT_NE(second.pages[2], first.pages[2]);
}

// Lengths on both sides of a page border and of a split of the plan.
TEST_P(ModelTest, TheBatchChangesNothing) {
  const std::vector<int> lengths = {5, 63, 600};
  const std::vector<Tokens> next = {{7, 8}, {9, 10}, {11, 12}};
  std::vector<std::vector<Logits>> alone;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    ModelRunner runner = make_runner();
    Sequence sequence;
    runner.prefill(sequence, some_tokens(lengths[i], 3 + i), 200);
    alone.push_back({runner.decode(sequence, next[i][0]), runner.decode(sequence, next[i][1])});
  }
  ModelRunner runner = make_runner();
  std::vector<Sequence> sequences(3);
  for (std::size_t i = 0; i < 3; ++i) runner.prefill(sequences[i], some_tokens(lengths[i], 3 + i), 200);
  const std::vector<Logits> first =
      runner.decode({&sequences[0], &sequences[1], &sequences[2]}, {next[0][0], next[1][0], next[2][0]});
  const std::vector<Logits> second =
      runner.decode({&sequences[2], &sequences[0], &sequences[1]}, {next[2][1], next[0][1], next[1][1]});
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(first[i], alone[i][0]) << "request " << i;
    EXPECT_EQ(second[(i + 1) % 3], alone[i][1]) << "request " << i;
  }
}

// The same mathematics in another order: what differs is rounding, and with FP8 pages that of queries and P.
TEST_P(ModelTest, PrefillAndDecodeAgree) {
  ModelRunner runner = make_runner();
  for (const int length : {2, 65, 150}) {
    const Tokens tokens = some_tokens(length, 20 + static_cast<std::uint64_t>(length));
    Sequence prefilled;
    Sequence decoded;
    const Logits expected = runner.prefill(prefilled, tokens, 200);
    runner.prefill(decoded, Tokens(tokens.begin(), tokens.end() - 1), 200);
    const double tolerance = format() == CacheFormat::kFp8 ? 0.15 : 0.04;
    EXPECT_LT(relative_rms(runner.decode(decoded, tokens.back()), expected), tolerance) << length;
  }
}

TEST_P(ModelTest, Repeats) {
  ModelRunner runner = make_runner();
  Sequence first;
  Sequence second;
  EXPECT_EQ(runner.prefill(first, some_tokens(70, 9), 33), runner.prefill(second, some_tokens(70, 9), 33));
  EXPECT_EQ(runner.decode(first, 3), runner.decode(second, 3));
}

TEST_P(ModelTest, AllocatesWhenLoadingOnly) {
  const TempDir dir;
  testing::write_checkpoint(dir.path(), test_config(), 11);
  const ModelLimits limits{.max_batch = 2, .max_chunk = 16, .max_seq_len = 100, .cache_format = format()};
  testing::MeteredBackend ample(std::int64_t{1} << 30);
  const std::unique_ptr<Model> measured = Model::load(ample, dir.path(), limits);
  testing::MeteredBackend exact(ample.bytes_held());
  {
    ModelRunner runner(Model::load(exact, dir.path(), limits), 4);
    EXPECT_EQ(exact.free_memory(), 0);
    Sequence first;
    Sequence second;
    runner.prefill(first, some_tokens(70, 9), 16);
    runner.prefill(second, some_tokens(3, 9), 16);
    runner.decode({&first, &second}, {3, 4});
    EXPECT_EQ(runner.model().logits().dim(0), 2);
  }
  EXPECT_EQ(exact.bytes_held(), 0);
  testing::MeteredBackend small(ample.bytes_held() - 1);
  try {
    static_cast<void>(Model::load(small, dir.path(), limits));
    ADD_FAILURE() << "no Error was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kOutOfMemory) << e.what();
  }
  EXPECT_EQ(small.bytes_held(), 0);
}

// Equal results alone would not show it: the merge of splits differs in bits that bf16 rarely keeps.
TEST_P(ModelTest, RequestsAreSplitAlikeInAnyBatch) {
  const TempDir dir;
  testing::write_checkpoint(dir.path(), test_config(), 11);
  const ModelConfig config = load_config(dir.path());
  const ModelState state(reference(), config,
                         {.max_batch = 4, .max_seq_len = 2000, .cache_format = format()});
  const int alone = state.plan_view(reference(), 1).shape.fixed_split_tokens;
  EXPECT_GT(alone, 0);
  EXPECT_EQ(state.plan_view(reference(), 4).shape.fixed_split_tokens, alone);
}

TEST_P(ModelTest, CountsItsWeights) {
  ModelRunner runner = make_runner();
  std::int64_t parameters = 0;
  for (const testing::NamedTensor& tensor : testing::make_tensors(test_config(), 1)) {
    parameters += static_cast<std::int64_t>(tensor.values.size());
  }
  EXPECT_EQ(runner.model().num_parameters(), parameters);
  const std::int64_t f32_parameters = 8 * 64 + 8;  // the router and its bias
  EXPECT_EQ(runner.model().weight_bytes(), 2 * parameters + 2 * f32_parameters);
}

/// The text of the Error that `call` must throw as the caller's mistake.
template <class Call>
std::string refused(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return {};
}

TEST_P(ModelTest, NamesWrongChunks) {
  ModelRunner runner = make_runner({.max_batch = 2, .max_chunk = 8, .max_seq_len = 100});
  const auto prefill = [&](const PrefillChunk& chunk) {
    return refused([&] { runner.model().prefill(chunk, runner.cache(), true, Stream{}); });
  };
  EXPECT_THAT(prefill({.tokens = {}, .start = 0, .pages = {0}}), HasSubstr("1 to max_chunk=8 tokens; got 0"));
  EXPECT_THAT(prefill({.tokens = Tokens(9, 1), .start = 0, .pages = {0}}),
              HasSubstr("max_chunk=8 tokens; got 9"));
  EXPECT_THAT(prefill({.tokens = {300}, .start = 0, .pages = {0}}),
              HasSubstr("[0, vocab_size=300); got 300"));
  EXPECT_THAT(prefill({.tokens = {-1}, .start = 0, .pages = {0}}), HasSubstr("got -1"));
  EXPECT_THAT(prefill({.tokens = {1, 2}, .start = 99, .pages = {0, 1}}),
              HasSubstr("within max_seq_len=100; got start 99 and 2 tokens"));
  EXPECT_THAT(prefill({.tokens = {1}, .start = -1, .pages = {0}}), HasSubstr("start -1"));
  EXPECT_THAT(prefill({.tokens = {1}, .start = std::numeric_limits<int>::max(), .pages = {0}}),
              HasSubstr("within max_seq_len"));
  EXPECT_THAT(prefill({.tokens = {1, 2}, .start = 63, .pages = {0}}),
              HasSubstr("pages must hold 65 tokens, 2 pages; got 1"));
  EXPECT_THAT(prefill({.tokens = {1}, .start = 0, .pages = {32}}),
              HasSubstr("pages must be in [0, 32); got 32"));
  EXPECT_THAT(prefill({.tokens = {1}, .start = 0, .pages = {-1}}), HasSubstr("got -1"));
}

TEST_P(ModelTest, NamesWrongBatches) {
  ModelRunner runner = make_runner({.max_batch = 2, .max_chunk = 8, .max_seq_len = 100});
  const auto decode = [&](const DecodeBatch& batch) {
    return refused([&] { runner.model().decode(batch, runner.cache(), Stream{}); });
  };
  EXPECT_THAT(decode({}), HasSubstr("1 to max_batch=2 requests; got 0"));
  EXPECT_THAT(decode({.tokens = {1, 1, 1}, .seq_lens = {1, 1, 1}, .block_table = {0, 1, 2}, .max_pages = 1}),
              HasSubstr("max_batch=2 requests; got 3"));
  EXPECT_THAT(decode({.tokens = {1}, .seq_lens = {1, 2}, .block_table = {0}, .max_pages = 1}),
              HasSubstr("seq_lens must be [1]"));
  EXPECT_THAT(decode({.tokens = {1}, .seq_lens = {1}, .block_table = {0}, .max_pages = 2}),
              HasSubstr("block_table [1, max_pages=2]"));
  EXPECT_THAT(decode({.tokens = {300}, .seq_lens = {1}, .block_table = {0}, .max_pages = 1}),
              HasSubstr("vocab_size=300"));
  EXPECT_THAT(decode({.tokens = {1}, .seq_lens = {0}, .block_table = {0}, .max_pages = 1}),
              HasSubstr("seq_lens must be 1 to max_seq_len=100; got 0"));
  EXPECT_THAT(decode({.tokens = {1}, .seq_lens = {101}, .block_table = {0, 1}, .max_pages = 2}),
              HasSubstr("got 101"));
  EXPECT_THAT(decode({.tokens = {1}, .seq_lens = {65}, .block_table = {0}, .max_pages = 1}),
              HasSubstr("must have 2 pages a request for seq_len 65; got 1"));
  EXPECT_THAT(decode({.tokens = {1}, .seq_lens = {1}, .block_table = {40}, .max_pages = 1}),
              HasSubstr("pages must be in [0, 32); got 40"));
}

TEST_P(ModelTest, NamesAWrongCache) {
  ModelRunner runner = make_runner();
  const PrefillChunk chunk{.tokens = {1}, .start = 0, .pages = {0}};
  std::vector<CacheView> views = runner.cache();
  views.pop_back();
  EXPECT_THAT(refused([&] { runner.model().prefill(chunk, views, true, Stream{}); }),
              HasSubstr("a view for each of 2 layers; got 1"));
  views = runner.cache();
  for (CacheView& view : views) {
    view.format = format() == CacheFormat::kFp8 ? CacheFormat::kBf16 : CacheFormat::kFp8;
  }
  EXPECT_THAT(refused([&] { runner.model().prefill(chunk, views, true, Stream{}); }),
              HasSubstr("cache must be"));
}

TEST_P(ModelTest, NamesWrongLimits) {
  EXPECT_THAT(refused([] { make_runner({.max_batch = 0}); }),
              HasSubstr("max_batch must be 1 to 4096; got 0"));
  EXPECT_THAT(refused([] { make_runner({.max_batch = 5000}); }), HasSubstr("max_batch"));
  EXPECT_THAT(refused([] { make_runner({.max_chunk = -1}); }), HasSubstr("max_chunk"));
  EXPECT_THAT(refused([] { make_runner({.max_seq_len = 4097}); }),
              HasSubstr("max_position_embeddings, 4096; got 4097"));
  EXPECT_THAT(refused([] { make_runner({.max_seq_len = 0}); }), HasSubstr("max_seq_len"));
}

}  // namespace
}  // namespace snapmla
