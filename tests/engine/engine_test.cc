// The engine with real models: a small random checkpoint with a tokenizer of bytes, and the bundled model.
#include "snapmla/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/fake_model.h"
#include "engine/metered_backend.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "support/backends.h"
#include "support/checkpoint.h"

namespace snapmla {
namespace {

using ::testing::HasSubstr;
using testing::MeteredBackend;
using testing::On;
using testing::TempDir;

const std::string kBundled = SNAPMLA_SOURCE_DIR "/models/tiny-mla";

/// A folder with a random model of 300 ids and a tokenizer that knows the first 258.
const std::string& random_model() {
  static const TempDir dir;
  static const std::string path = [] {
    testing::write_checkpoint(dir.path(), testing::tiny_config(), 5);
    testing::write_file(dir.file("tokenizer.json"), testing::byte_tokenizer_json());
    return dir.path();
  }();
  return path;
}

struct Outcome {
  std::vector<std::int32_t> tokens;
  std::vector<double> logprobs;
  std::vector<std::vector<float>> logits;
  std::string text;
  FinishReason finish = FinishReason::kNone;
};

/// Runs all requests together, one more submitted each step.
std::vector<Outcome> run(Engine& engine, const std::vector<Request>& requests) {
  std::map<RequestId, Outcome> outcomes;
  std::size_t num_submitted = 0;
  while (num_submitted < requests.size() || !engine.idle()) {
    if (num_submitted < requests.size()) outcomes[engine.submit(requests[num_submitted++])] = {};
    for (TokenEvent& event : engine.step()) {
      Outcome& outcome = outcomes.at(event.request);
      outcome.tokens.push_back(event.token);
      outcome.logprobs.push_back(event.logprob);
      outcome.logits.push_back(std::move(event.logits));
      outcome.text += event.text;
      outcome.finish = event.finish;
    }
  }
  EXPECT_EQ(engine.stats().pages_in_use, 0);
  std::vector<Outcome> result;
  for (auto& [id, outcome] : outcomes) result.push_back(std::move(outcome));
  return result;
}

std::vector<std::int32_t> some_tokens(int count, std::uint64_t seed, int vocab = 300) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(testing::splitmix64(seed, static_cast<std::uint64_t>(i)) %
                                               static_cast<std::uint64_t>(vocab)));
  }
  return tokens;
}

class EngineFormats : public ::testing::TestWithParam<std::tuple<On, CacheFormat>> {
 protected:
  void SetUp() override {
    if (const std::string reason = testing::why_not(std::get<0>(GetParam())); !reason.empty())
      GTEST_SKIP() << reason;
  }
  static Backend* backend() { return &testing::backend(std::get<0>(GetParam())); }
  static CacheFormat format() { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Caches, EngineFormats,
                         ::testing::Combine(::testing::Values(On::kReference, On::kCuda),
                                            ::testing::Values(CacheFormat::kFp8, CacheFormat::kBf16)),
                         [](const auto& test) {
                           return testing::name_of(std::get<0>(test.param)) + '_' +
                                  to_string(std::get<1>(test.param));
                         });

TEST_P(EngineFormats, ARequestDoesNotDependOnTheCrowd) {
  std::vector<Request> requests;
  for (int i = 0; i < 9; ++i) {
    Request request{.prompt_tokens = some_tokens(1 + 37 * i % 150, static_cast<std::uint64_t>(i)),
                    .max_tokens = 5 + 7 * i % 30,
                    .ignore_eos = i % 2 == 0,
                    .return_logits = true};
    if (i % 3 != 0)
      request.sampling = {.temperature = 1, .top_p = 0.95F, .seed = static_cast<std::uint64_t>(i)};
    requests.push_back(std::move(request));
  }
  Engine crowd({.model_dir = random_model(),
                .backend = backend(),
                .cache_format = format(),
                .max_seq_len = 200,
                .max_batch = 4,
                .num_pages = 7,
                .prefill_chunk = 23,
                .deterministic = true});
  const std::vector<Outcome> together = run(crowd, requests);
  Engine single({.model_dir = random_model(),
                 .backend = backend(),
                 .cache_format = format(),
                 .max_seq_len = 200,
                 .max_batch = 1,
                 .deterministic = true});
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const Outcome alone = run(single, {requests[i]}).at(0);
    EXPECT_EQ(together[i].tokens, alone.tokens) << "request " << i;
    EXPECT_EQ(together[i].logprobs, alone.logprobs) << "request " << i;
    EXPECT_EQ(together[i].logits, alone.logits) << "request " << i;
    EXPECT_EQ(together[i].text, alone.text) << "request " << i;
    EXPECT_EQ(together[i].finish, alone.finish) << "request " << i;
  }
}

// Requests that begin alike, in a pool that holds less than two of them to their ends: every one is preempted
// or finds a part of its prompt in the cache, and none may show it in a single bit of its logits.
TEST_P(EngineFormats, PreemptionAndCachedPrefixesChangeNoBit) {
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) {
    Request request{
        .prompt_tokens = some_tokens(90, 1), .max_tokens = 120, .ignore_eos = true, .return_logits = true};
    const std::vector<std::int32_t> own = some_tokens(1 + 11 * (i % 4), static_cast<std::uint64_t>(i % 5));
    request.prompt_tokens.insert(request.prompt_tokens.end(), own.begin(), own.end());
    requests.push_back(std::move(request));
  }
  const auto options = [](int batch, std::int64_t pages, int chunk, bool prefix_caching) {
    return EngineOptions{.model_dir = random_model(),
                         .backend = backend(),
                         .cache_format = format(),
                         .max_seq_len = 256,
                         .max_batch = batch,
                         .num_pages = pages,
                         .prefill_chunk = chunk,
                         .enable_prefix_caching = prefix_caching,
                         .deterministic = true};
  };
  Engine single(options(1, 4, 512, false));
  std::vector<Outcome> alone;
  for (const Request& request : requests) alone.push_back(run(single, {request}).at(0));
  EXPECT_EQ(single.stats().preemptions + single.stats().prefix_tokens, 0);

  for (const bool prefix_caching : {false, true}) {
    Engine crowd(options(5, 6, 37, prefix_caching));
    const std::vector<Outcome> together = run(crowd, requests);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(together[i].tokens, alone[i].tokens) << "request " << i;
      EXPECT_EQ(together[i].logits, alone[i].logits) << "request " << i;
      EXPECT_EQ(together[i].finish, alone[i].finish) << "request " << i;
    }
    EXPECT_GT(crowd.stats().preemptions, 2);
    EXPECT_GT(crowd.stats().replayed_tokens, 20);
    EXPECT_EQ(crowd.stats().prefix_tokens > 0, prefix_caching);
    // Once more, each after the others: whole prompts are found.
    if (!prefix_caching) continue;
    for (std::size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(run(crowd, {requests[i]}).at(0).logits, alone[i].logits) << "request " << i;
  }
}

TEST_P(EngineFormats, TheBundledModelContinuesText) {
  Engine engine({.model_dir = kBundled,
                 .backend = backend(),
                 .cache_format = format(),
                 .max_seq_len = 256,
                 .max_batch = 3});
  const Request request{
      .prompt = "In the beginning God created the heaven and the", .max_tokens = 24, .ignore_eos = true};
  Request seeded = request;
  seeded.sampling = {.temperature = 0.8F, .top_k = 50, .top_p = 0.9F, .seed = 7};
  const std::vector<Outcome> outcomes = run(engine, {request, seeded, seeded});
  EXPECT_EQ(outcomes[0].text, engine.tokenizer().decode(outcomes[0].tokens));

  EXPECT_TRUE(std::all_of(outcomes[0].text.begin(), outcomes[0].text.end(),
                          [](char c) { return c >= ' ' || c == '\n'; }));
  EXPECT_EQ(outcomes[1].tokens, outcomes[2].tokens);
  EXPECT_NE(outcomes[1].tokens, outcomes[0].tokens);
  for (const double logprob : outcomes[0].logprobs) EXPECT_LE(logprob, 0);
}

TEST(Engine, ADamagedScaleInTheCacheShows) {
  const Request request{
      .prompt_tokens = some_tokens(70, 3), .max_tokens = 3, .ignore_eos = true, .return_logits = true};
  Engine engine({.model_dir = random_model(), .backend = &reference(), .max_seq_len = 100, .max_batch = 1});
  const Outcome sound = run(engine, {request}).at(0);
  engine.submit(request);
  EXPECT_EQ(engine.step().at(0).logits, sound.logits[0]);
  const CachePlane& scales = engine.cache(0).scale;
  static_cast<float*>(scales.data)[10] *= 16;  // the only request holds page 0
  const std::vector<float> damaged = engine.step().at(0).logits;
  EXPECT_NE(damaged, sound.logits[1]);
}

TEST(Engine, MovesWithItsRequests) {
  Engine first({.model_dir = random_model(), .backend = &reference(), .max_seq_len = 100, .max_batch = 1});
  const Request request{.prompt_tokens = some_tokens(9, 1), .max_tokens = 4, .ignore_eos = true};
  const std::vector<std::int32_t> want = run(first, {request}).at(0).tokens;
  first.submit(request);
  Engine second = std::move(first);
  std::vector<std::int32_t> tokens;
  while (!second.idle())
    for (const TokenEvent& event : second.step()) tokens.push_back(event.token);
  EXPECT_EQ(tokens, want);
  EXPECT_EQ(second.config().vocab, 300);
  EXPECT_EQ(second.options().max_seq_len, 100);
  EXPECT_EQ(second.options().num_pages, 2);
}

ErrorCode code_of(const EngineOptions& options, const std::string& text) {
  try {
    const Engine engine(options);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(text));
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.code();
  }
  ADD_FAILURE() << "accepted";
  return ErrorCode::kInternal;
}

TEST(Engine, NamesWhatIsWrongWithAFolder) {
  EXPECT_EQ(code_of({.model_dir = "/nowhere"}, "config.json"), ErrorCode::kNotFound);
  EXPECT_EQ(code_of({.model_dir = random_model(), .max_seq_len = 5000}, "max_seq_len"),
            ErrorCode::kInvalidArgument);

  const TempDir dir;
  testing::write_checkpoint(dir.path(), testing::tiny_config(), 5);
  EXPECT_EQ(code_of({.model_dir = dir.path()}, "tokenizer.json"), ErrorCode::kNotFound);
  testing::write_file(dir.file("tokenizer.json"), testing::byte_tokenizer_json());
  const auto size = std::filesystem::file_size(dir.file("model.safetensors"));
  std::filesystem::resize_file(dir.file("model.safetensors"), size - 1000);
  EXPECT_EQ(code_of({.model_dir = dir.path()}, "model.safetensors"), ErrorCode::kCorruptFile);
}

TEST(Engine, SaysWhatTheCacheTakesWhereItDoesNotFitAndGivesAllMemoryBack) {
  const EngineOptions options{.model_dir = random_model(), .max_seq_len = 256, .max_batch = 2};
  std::int64_t needed = 0;
  {
    MeteredBackend plenty(std::int64_t{1} << 40);
    EngineOptions with = options;
    with.backend = &plenty;
    {
      const Engine engine(with);
      needed = plenty.bytes_held();
      EXPECT_EQ(plenty.num_streams(), 1);
    }
    EXPECT_EQ(plenty.bytes_held(), 0);
    EXPECT_EQ(plenty.num_streams(), 0);
  }
  MeteredBackend scarce(needed);
  EngineOptions with = options;
  with.backend = &scarce;
  with.num_pages = 100000;
  EXPECT_EQ(code_of(with,
                    "[engine] a cache of 100000 pages in 2 layers takes 4121600000 bytes a layer, and layer "
                    "0 found no room; set num_pages or max_seq_len lower"),
            ErrorCode::kOutOfMemory);
  EXPECT_EQ(scarce.bytes_held(), 0);
  EXPECT_EQ(scarce.num_streams(), 0);
}

TEST(Engine, FinishReasonsHaveNames) {
  EXPECT_STREQ(to_string(FinishReason::kNone), "none");
  EXPECT_STREQ(to_string(FinishReason::kStop), "stop");
  EXPECT_STREQ(to_string(FinishReason::kLength), "length");
  EXPECT_STREQ(to_string(FinishReason::kCancelled), "cancelled");
}

}  // namespace
}  // namespace snapmla
