// The engine around a model whose text betrays every mistake of bookkeeping (see fake_model.h).
#include "engine/engine_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/fake_model.h"
#include "snapmla/error.h"
#include "support/log_probability.h"

namespace snapmla {
namespace {

using ::testing::ElementsAre;
using testing::fake_engine;
using testing::fake_logits;
using testing::FakeLog;
using ::testing::IsEmpty;
using testing::kEos;
using testing::kFakeVocab;
using testing::log_probability;

/// All that came for a request.
struct Outcome {
  std::vector<std::int32_t> tokens;
  std::vector<double> logprobs;
  std::string text;
  FinishReason finish = FinishReason::kNone;
};

void collect(std::vector<TokenEvent> events, std::map<RequestId, Outcome>& outcomes) {
  RequestId last = 0;
  for (const TokenEvent& event : events) {
    EXPECT_GT(event.request, last) << "one event a request and step, in request order";
    last = event.request;
    Outcome& outcome = outcomes[event.request];
    EXPECT_EQ(outcome.finish, FinishReason::kNone) << "an event after the last";
    EXPECT_EQ(event.token < 0, event.finish == FinishReason::kCancelled);
    if (event.token >= 0) {
      outcome.tokens.push_back(event.token);
      outcome.logprobs.push_back(event.logprob);
    }
    outcome.text += event.text;
    outcome.finish = event.finish;
  }
}

Outcome run_alone(EngineLoop& engine, const Request& request) {
  std::map<RequestId, Outcome> outcomes;
  const RequestId id = engine.submit(request);
  while (!engine.idle()) collect(engine.step(), outcomes);
  EXPECT_EQ(outcomes.size(), 1U);
  return outcomes[id];
}

std::vector<std::int32_t> make_prompt(int length, int first = 3) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(length));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = (first + static_cast<int>(i) * 7) % 256;
  return tokens;
}

std::vector<std::int32_t> bytes_of(const std::string& text) {
  std::vector<std::int32_t> tokens;
  for (const char byte : text) tokens.push_back(static_cast<std::uint8_t>(byte));
  return tokens;
}

/// Greedy decoding by the fake model's formula, after a prompt and num_forced tokens behind it.
std::vector<std::int32_t> formula(std::vector<std::int32_t> tokens, int num_tokens,
                                  std::size_t num_forced = 0) {
  std::vector<std::int32_t> generated;
  const std::size_t num_prompt = tokens.size() - num_forced;
  for (int i = 0; i < num_tokens; ++i) {
    const std::vector<float> logits = fake_logits(tokens, num_prompt);
    tokens.push_back(
        static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    generated.push_back(tokens.back());
  }
  return generated;
}

TEST(EngineLoop, FollowsTheModelWhateverTheChunk) {
  for (const int chunk : {1, 7, 64, 512}) {
    EngineLoop engine = fake_engine({.max_batch = 2, .prefill_chunk = chunk});
    for (const int length : {1, 63, 64, 65, 200}) {
      const Outcome outcome =
          run_alone(engine, {.prompt_tokens = make_prompt(length), .max_tokens = 70, .ignore_eos = true});
      EXPECT_EQ(outcome.tokens, formula(make_prompt(length), 70))
          << "chunk " << chunk << " length " << length;
      EXPECT_EQ(outcome.finish, FinishReason::kLength);
    }
    EXPECT_EQ(engine.stats().pages_in_use, 0);
  }
}

TEST(EngineLoop, PrefillsInChunksAndDecodesBeside) {
  const auto log = std::make_shared<FakeLog>();
  EngineLoop engine = fake_engine({.max_batch = 4, .prefill_chunk = 10}, log);
  engine.submit({.prompt_tokens = make_prompt(25), .max_tokens = 5, .ignore_eos = true});
  engine.submit({.prompt_tokens = make_prompt(4, 9), .max_tokens = 3, .ignore_eos = true});
  std::vector<std::size_t> events_in_step;
  while (!engine.idle()) events_in_step.push_back(engine.step().size());
  EXPECT_THAT(log->chunks, ElementsAre(10, 10, 5, 4));
  EXPECT_THAT(log->batches, ElementsAre(2, 2, 1, 1));
  EXPECT_THAT(events_in_step, ElementsAre(0, 0, 2, 2, 2, 1, 1));
}

// A request's text must not depend on what else runs, waits or is cancelled.
struct Crowd {
  std::vector<Request> requests;
  std::vector<Outcome> alone;
};

Crowd make_crowd(std::mt19937& random, int count) {
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  EngineLoop engine = fake_engine({.max_batch = 1, .enable_prefix_caching = false});
  Crowd crowd;
  for (int i = 0; i < count; ++i) {
    Request request{.prompt_tokens = make_prompt(pick(1, 200), pick(0, 5)), .max_tokens = pick(1, 60)};
    request.ignore_eos = pick(0, 3) == 0;
    if (pick(0, 1) == 0) {
      request.sampling = {.temperature = 1,
                          .top_k = pick(0, 40),
                          .top_p = pick(0, 1) == 0 ? 0.9F : 1,
                          .seed = static_cast<std::uint64_t>(pick(0, 1 << 30))};
    }
    if (pick(0, 2) == 0) request.stop = {std::string(1, static_cast<char>(pick(32, 126))), "zz"};
    if (pick(0, 4) == 0) request.forced_tokens = bytes_of("forced \xe2\x82\xac");
    crowd.alone.push_back(run_alone(engine, request));
    crowd.requests.push_back(std::move(request));
  }
  return crowd;
}

bool starts_with(const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& start) {
  return start.size() <= tokens.size() && std::equal(start.begin(), start.end(), tokens.begin());
}

class EngineLoopCrowd : public ::testing::TestWithParam<int> {};

TEST_P(EngineLoopCrowd, GivesEachRequestWhatItGetsAlone) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const Crowd crowd = make_crowd(random, 60);

  // At most 5 pages a request, so a small pool makes requests wait.
  EngineLoop engine = fake_engine(
      {.max_seq_len = 260, .max_batch = pick(2, 6), .num_pages = pick(5, 12), .prefill_chunk = pick(1, 90)});
  std::map<RequestId, Outcome> outcomes;
  std::map<RequestId, std::size_t> index;
  std::vector<RequestId> cancelled;
  int most_waiting = 0;
  std::size_t num_submitted = 0;
  while (num_submitted < crowd.requests.size() || !engine.idle()) {
    for (int i = pick(0, 3); i > 0 && num_submitted < crowd.requests.size(); --i) {
      index[engine.submit(crowd.requests[num_submitted])] = num_submitted;
      ++num_submitted;
    }
    for (int i = pick(1, 4); i > 0; --i) collect(engine.step(), outcomes);
    const EngineStats stats = engine.stats();
    most_waiting = std::max(most_waiting, stats.waiting);
    EXPECT_LE(stats.pages_in_use, stats.pages_total);
    if (!index.empty() && pick(0, 9) == 0) {
      const RequestId id = pick(1, static_cast<int>(index.size()));
      const bool finished = outcomes[id].finish != FinishReason::kNone ||
                            std::find(cancelled.begin(), cancelled.end(), id) != cancelled.end();
      EXPECT_EQ(engine.cancel(id), !finished);
      if (!finished) cancelled.push_back(id);
    }
  }

  ASSERT_EQ(outcomes.size(), crowd.requests.size());
  for (const auto& [id, outcome] : outcomes) {
    const Outcome& alone = crowd.alone[index.at(id)];
    if (std::find(cancelled.begin(), cancelled.end(), id) != cancelled.end()) {
      EXPECT_EQ(outcome.finish, FinishReason::kCancelled);
      EXPECT_TRUE(starts_with(alone.tokens, outcome.tokens)) << "request " << id;
    } else {
      EXPECT_EQ(outcome.finish, alone.finish) << "request " << id;
      EXPECT_EQ(outcome.tokens, alone.tokens) << "request " << id;
      EXPECT_EQ(outcome.logprobs, alone.logprobs) << "request " << id;
      EXPECT_EQ(outcome.text, alone.text) << "request " << id;
    }
  }
  EXPECT_GT(most_waiting, 3);
  EXPECT_FALSE(cancelled.empty());
  EXPECT_EQ(engine.stats().pages_in_use, 0);
  EXPECT_EQ(engine.stats().running, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EngineLoopCrowd, ::testing::Range(1, 9));

// 6 requests that need 4 pages each to their ends, in 4 pages.
TEST(EngineLoop, PreemptedRequestsGoOnWhereTheyWere) {
  const auto log = std::make_shared<FakeLog>();
  EngineLoop engine =
      fake_engine({.max_batch = 6, .num_pages = 4, .prefill_chunk = 50, .enable_prefix_caching = false}, log);
  for (int i = 0; i < 6; ++i)
    engine.submit({.prompt_tokens = make_prompt(30, i), .max_tokens = 200, .ignore_eos = true});
  std::map<RequestId, Outcome> outcomes;
  while (!engine.idle()) collect(engine.step(), outcomes);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(outcomes[i + 1].tokens, formula(make_prompt(30, i), 200)) << i;
  const EngineStats stats = engine.stats();
  EXPECT_GE(stats.preemptions, 5);
  EXPECT_GT(stats.replayed_tokens, 100);
  EXPECT_EQ(stats.generated_tokens, 6 * 200);
  EXPECT_EQ(stats.pages_in_use, 0);
  EXPECT_EQ(std::accumulate(log->batches.begin(), log->batches.end(), 0),
            6 * 199 + static_cast<int>(stats.replayed_tokens));
}

TEST(EngineLoop, PromptsThatBeginAlikeArePrefilledOnce) {
  const auto log = std::make_shared<FakeLog>();
  EngineLoop engine = fake_engine({.max_batch = 4, .num_pages = 40, .prefill_chunk = 256}, log);
  std::vector<std::vector<std::int32_t>> prompts;
  for (int i = 0; i < 4; ++i) {
    prompts.push_back(make_prompt(200));
    prompts.back().insert(prompts.back().end(), {i, 1, 2, 3, 4, 5, 6, 7, 8, 9});
    engine.submit({.prompt_tokens = prompts.back(), .max_tokens = 60, .ignore_eos = true});
  }
  std::map<RequestId, Outcome> outcomes;
  while (!engine.idle()) collect(engine.step(), outcomes);
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(outcomes[i + 1].tokens, formula(prompts[static_cast<std::size_t>(i)], 60)) << i;
  EXPECT_THAT(log->chunks, ElementsAre(210, 10, 10, 10));
  EXPECT_EQ(engine.stats().prompt_tokens, 240);
  EXPECT_EQ(engine.stats().prefix_tokens, 600);
  EXPECT_EQ(engine.stats().pages_in_use, 0);
  EXPECT_EQ(engine.stats().pages_kept, 3 + 4);

  // The same prompt once more, all of it known: one token is prefilled, and what it writes harms nobody.
  EXPECT_EQ(run_alone(engine, {.prompt_tokens = prompts[0], .max_tokens = 60, .ignore_eos = true}).tokens,
            formula(prompts[0], 60));
  EXPECT_EQ(log->chunks.back(), 1);
}

TEST(EngineLoop, StopTokensEndARequestUnlessIgnored) {
  EngineLoop engine = fake_engine({});
  Request request{.prompt_tokens = make_prompt(5), .max_tokens = 6};
  request.forced_tokens = {'a', 'b', kEos, 'c', 'd', 'e'};
  Outcome outcome = run_alone(engine, request);
  EXPECT_THAT(outcome.tokens, ElementsAre('a', 'b', kEos));
  EXPECT_EQ(outcome.text, "ab");
  EXPECT_EQ(outcome.finish, FinishReason::kStop);

  request.ignore_eos = true;
  outcome = run_alone(engine, request);
  EXPECT_EQ(outcome.tokens, request.forced_tokens);
  EXPECT_EQ(outcome.text, "abcde");
  EXPECT_EQ(outcome.finish, FinishReason::kLength);
}

TEST(EngineLoop, StopStringsEndTheTextAcrossTokens) {
  EngineLoop engine = fake_engine({});
  Request request{.prompt_tokens = make_prompt(5), .max_tokens = 40, .stop = {"END", "\xe2\x82\xac"}};
  request.forced_tokens = bytes_of("an ENd, an EEND and more");
  Outcome outcome = run_alone(engine, request);
  EXPECT_EQ(outcome.text, "an ENd, an E");
  EXPECT_EQ(outcome.tokens.size(), 15U);
  EXPECT_EQ(outcome.finish, FinishReason::kStop);

  request.forced_tokens = bytes_of("10 \xe2\x82\xac");
  outcome = run_alone(engine, request);
  EXPECT_EQ(outcome.text, "10 ");
  EXPECT_EQ(outcome.finish, FinishReason::kStop);
}

TEST(EngineLoop, WhatIsHeldBackComesWithTheLastEvent) {
  EngineLoop engine = fake_engine({});
  Request request{.prompt_tokens = make_prompt(5), .max_tokens = 4, .stop = {"END"}};
  request.forced_tokens = bytes_of("x EN");
  EXPECT_EQ(run_alone(engine, request).text, "x EN");

  request.stop = {};
  request.forced_tokens = bytes_of("abc\xe2");
  EXPECT_EQ(run_alone(engine, request).text, "abc\xef\xbf\xbd");
}

// Where the backend works on its own, step n + 1 is enqueued before the tokens of step n are looked at.
TEST(EngineLoop, KeepsAStepAhead) {
  const auto log = std::make_shared<FakeLog>();
  const Request request{.prompt_tokens = make_prompt(20), .max_tokens = 6, .ignore_eos = true};
  EngineLoop behind = fake_engine({});
  const std::vector<std::int32_t> want = run_alone(behind, request).tokens;
  EngineLoop engine = fake_engine({.backend = &testing::ahead()}, log);
  engine.submit(request);
  std::vector<std::int32_t> tokens;
  std::vector<std::size_t> events;
  std::vector<std::size_t> batches;
  while (!engine.idle()) {
    const std::vector<TokenEvent> of_step = engine.step();
    for (const TokenEvent& event : of_step) tokens.push_back(event.token);
    events.push_back(of_step.size());
    batches.push_back(log->batches.size());
  }
  EXPECT_EQ(tokens, want);
  EXPECT_THAT(events, ElementsAre(1, 0, 1, 1, 1, 1, 1));  // the prompt's token, then each a step late
  EXPECT_THAT(batches,
              ElementsAre(0, 1, 2, 3, 4, 5, 5));  // five decode steps, the last token known to be the last
}

// A stop token is seen when the next step is under way: what that one gives is dropped, and the pages are free.
TEST(EngineLoop, DropsTheStepAheadOfARequestThatStopped) {
  const auto log = std::make_shared<FakeLog>();
  EngineLoop engine = fake_engine({.backend = &testing::ahead()}, log);
  Request request{.prompt_tokens = make_prompt(20), .max_tokens = 50};
  request.forced_tokens = {1, 2, testing::kEos, 3, 4};
  const Outcome outcome = run_alone(engine, request);
  EXPECT_THAT(outcome.tokens, ElementsAre(1, 2, testing::kEos));
  EXPECT_EQ(outcome.finish, FinishReason::kStop);
  EXPECT_EQ(log->batches.size(), 3U);
  EXPECT_EQ(engine.stats().pages_in_use, 0);
}

TEST(EngineLoop, SamplesOnAfterTheForcedTokens) {
  EngineLoop engine = fake_engine({});
  const std::vector<std::int32_t> prompt = make_prompt(70);
  Request request{.prompt_tokens = prompt, .max_tokens = 10, .ignore_eos = true};
  request.forced_tokens = {9, 8, 7};
  std::vector<std::int32_t> forced = prompt;
  forced.insert(forced.end(), {9, 8, 7});
  std::vector<std::int32_t> want = formula(forced, 7, 3);
  want.insert(want.begin(), {9, 8, 7});
  EXPECT_EQ(run_alone(engine, request).tokens, want);
}

TEST(EngineLoop, SamplesWithTheSeedAndTheIndexOfTheToken) {
  EngineLoop engine = fake_engine({});
  const SamplingParams sampling{.temperature = 1.5F, .top_k = 100, .top_p = 0.95F, .seed = 77};
  std::vector<std::int32_t> tokens = make_prompt(10);
  const Outcome outcome = run_alone(
      engine, {.prompt_tokens = tokens, .max_tokens = 20, .sampling = sampling, .ignore_eos = true});
  Sampler sampler(reference(), 1);
  for (int i = 0; i < 20; ++i) {
    const std::vector<float> logits = fake_logits(tokens, 10);
    const std::vector<Chosen> chosen =
        sampler.choose(ConstTensorView(logits.data(), DType::kF32, {1, kFakeVocab}),
                       {{.sampling = sampling, .token_idx = i}}, {});
    tokens.push_back(chosen[0].token);
    EXPECT_EQ(outcome.tokens[static_cast<std::size_t>(i)], chosen[0].token);
  }
}

TEST(EngineLoop, EventsCarryLogitsAndTheirProbability) {
  EngineLoop engine = fake_engine({});
  Request request{
      .prompt_tokens = make_prompt(3), .max_tokens = 3, .ignore_eos = true, .return_logits = true};
  request.forced_tokens = {11, 12, 13};
  engine.submit(request);
  std::vector<std::int32_t> tokens = request.prompt_tokens;
  while (!engine.idle()) {
    for (const TokenEvent& event : engine.step()) {
      EXPECT_EQ(event.logits, fake_logits(tokens, 3));
      EXPECT_FLOAT_EQ(static_cast<float>(event.logprob),
                      static_cast<float>(log_probability(event.logits, event.token)));
      tokens.push_back(event.token);
    }
  }
  EXPECT_EQ(tokens.size(), 6U);
}

TEST(EngineLoop, EncodesThePromptText) {
  EngineLoop engine = fake_engine({});
  const Outcome outcome = run_alone(engine, {.prompt = "hello", .max_tokens = 5, .ignore_eos = true});
  EXPECT_EQ(outcome.tokens, formula(bytes_of("hello"), 5));
}

TEST(EngineLoop, MaxSeqLenEndsARequestAndEveryTokenOfItIsUsed) {
  EngineLoop engine = fake_engine({.max_seq_len = 66, .num_pages = 2});
  Request request{.prompt_tokens = make_prompt(60), .max_tokens = 1000, .ignore_eos = true};
  const Outcome outcome = run_alone(engine, request);
  EXPECT_EQ(outcome.tokens, formula(request.prompt_tokens, 6));
  EXPECT_EQ(outcome.finish, FinishReason::kLength);
  EXPECT_EQ(run_alone(engine, {.prompt_tokens = make_prompt(65), .max_tokens = 9}).tokens.size(), 1U);
}

TEST(EngineLoop, CancelsInEveryState) {
  EngineLoop engine = fake_engine({.max_batch = 2, .prefill_chunk = 8});
  const RequestId running = engine.submit({.prompt_tokens = make_prompt(4), .ignore_eos = true});
  (void)engine.step();
  (void)engine.step();
  const RequestId prefilling = engine.submit({.prompt_tokens = make_prompt(40)});
  const RequestId waiting = engine.submit({.prompt_tokens = make_prompt(4)});
  (void)engine.step();
  EXPECT_EQ(engine.stats().running, 2);
  EXPECT_EQ(engine.stats().waiting, 1);

  for (const RequestId id : {waiting, running, prefilling}) {
    EXPECT_TRUE(engine.cancel(id));
    EXPECT_FALSE(engine.cancel(id));
  }
  EXPECT_FALSE(engine.cancel(1000));
  EXPECT_EQ(engine.stats().pages_in_use, 0);
  EXPECT_FALSE(engine.idle());
  const std::vector<TokenEvent> events = engine.step();
  ASSERT_EQ(events.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(events[i].request, (std::vector<RequestId>{running, prefilling, waiting})[i]);
    EXPECT_EQ(events[i].token, -1);
    EXPECT_EQ(events[i].finish, FinishReason::kCancelled);
  }
  EXPECT_TRUE(engine.idle());
  EXPECT_THAT(engine.step(), IsEmpty());
}

TEST(EngineLoop, CancelGivesTheTextHeldBack) {
  EngineLoop engine = fake_engine({});
  Request request{.prompt_tokens = make_prompt(4), .stop = {"END"}};
  request.forced_tokens = bytes_of("EN");
  const RequestId id = engine.submit(request);
  EXPECT_EQ(engine.step().at(0).text, "");
  EXPECT_EQ(engine.step().at(0).text, "");
  engine.cancel(id);
  EXPECT_EQ(engine.step().at(0).text, "EN");
}

TEST(EngineLoop, AFailedStepIsRepeated) {
  const auto log = std::make_shared<FakeLog>();
  const std::vector<Request> requests = {
      {.prompt_tokens = make_prompt(90), .max_tokens = 20, .ignore_eos = true},
      {.prompt_tokens = make_prompt(30, 9), .max_tokens = 20, .ignore_eos = true}};
  for (const int fail_in : {0, 5, 63, 70, 100, 122, 130, 131, 150}) {
    EngineLoop engine = fake_engine({.prefill_chunk = 32}, log);
    for (const Request& request : requests) engine.submit(request);
    log->fail_in = fail_in;
    int num_failures = 0;
    std::map<RequestId, Outcome> outcomes;
    while (!engine.idle()) {
      std::vector<TokenEvent> events;
      try {
        events = engine.step();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kDevice);
        ASSERT_EQ(++num_failures, 1) << fail_in;
        continue;
      }
      for (TokenEvent& event : events) collect({std::move(event)}, outcomes);
    }
    EXPECT_EQ(num_failures, 1) << fail_in;
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(outcomes[static_cast<RequestId>(i) + 1].tokens, formula(requests[i].prompt_tokens, 20))
          << fail_in;
    }
    EXPECT_EQ(engine.stats().pages_in_use, 0);
  }
}

TEST(EngineLoop, CountsWhatItDid) {
  EngineLoop engine = fake_engine({.max_batch = 2, .num_pages = 7, .prefill_chunk = 16});
  EXPECT_EQ(engine.stats().pages_total, 7);
  for (int i = 0; i < 3; ++i)
    engine.submit({.prompt_tokens = make_prompt(20, i), .max_tokens = 50, .ignore_eos = true});
  EXPECT_EQ(engine.stats().waiting, 3);
  (void)engine.step();
  EXPECT_EQ(engine.stats().running, 1);
  EXPECT_EQ(engine.stats().pages_in_use, 1);
  EXPECT_EQ(engine.stats().prompt_tokens, 16);
  while (!engine.idle()) (void)engine.step();
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.prompt_tokens, 60);
  EXPECT_EQ(stats.generated_tokens, 150);
  EXPECT_GE(stats.decode_steps, 98);
  EXPECT_GT(stats.prefill_seconds, 0);
  EXPECT_GT(stats.decode_seconds, 0);
  EXPECT_EQ(stats.running + stats.waiting, 0);
}

TEST(EngineLoop, ShowsTheCacheOfALayer) {
  EngineLoop engine = fake_engine({.cache_format = CacheFormat::kBf16, .num_pages = 3});
  EXPECT_EQ(engine.cache(0).format, CacheFormat::kBf16);
  EXPECT_EQ(engine.cache(1).num_pages, 3);
  EXPECT_NE(engine.cache(0).latent.data, engine.cache(1).latent.data);
  EXPECT_THROW((void)engine.cache(2), Error);
  EXPECT_THROW((void)engine.cache(-1), Error);
}

std::string refusal(EngineLoop& engine, const Request& request,
                    ErrorCode code = ErrorCode::kInvalidArgument) {
  try {
    engine.submit(request);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "accepted";
}

TEST(EngineLoop, RefusesWhatItCannotAnswer) {
  EngineLoop engine = fake_engine({.max_seq_len = 300, .num_pages = 3});
  EXPECT_EQ(refusal(engine, {}), "[submit] prompt must have at least one token; got none");
  EXPECT_EQ(refusal(engine, {.prompt = "a", .max_tokens = 0}),
            "[submit] max_tokens must be at least 1; got 0");
  EXPECT_EQ(refusal(engine, {.prompt = "a", .sampling = {.temperature = -1}}),
            "[submit] temperature must be finite and at least 0; got -1");
  EXPECT_EQ(refusal(engine, {.prompt = "a", .stop = {"x", ""}}),
            "[submit] stop[1] must be UTF-8 text that is not empty; got 0 bytes");
  EXPECT_EQ(refusal(engine, {.prompt = "a", .stop = {"\x82\xac"}}),
            "[submit] stop[0] must be UTF-8 text that is not empty; got 2 bytes");
  EXPECT_EQ(refusal(engine, {.prompt_tokens = {1, 260}}),
            "[submit] prompt_tokens must be ids from 0 to below the vocabulary's 260; got 260 at 1");
  EXPECT_EQ(refusal(engine, {.prompt_tokens = {-1}}),
            "[submit] prompt_tokens must be ids from 0 to below the vocabulary's 260; got -1 at 0");
  EXPECT_EQ(refusal(engine, {.prompt = "a", .forced_tokens = {0, 1, 999}}),
            "[submit] forced_tokens must be ids from 0 to below the vocabulary's 260; got 999 at 2");
  EXPECT_EQ(refusal(engine, {.prompt_tokens = make_prompt(300)}),
            "[submit] prompt must leave room for one token in max_seq_len of 300; got 300 tokens");
  EXPECT_EQ(
      refusal(engine, {.prompt_tokens = make_prompt(150), .max_tokens = 60}, ErrorCode::kOutOfMemory),
      "[submit] a request must fit in the cache of 3 pages of 64 tokens; got 150 prompt and 60 generated "
      "tokens at most, which take 4 pages");
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.stats().waiting, 0);
  // One token less and it fits; refusals left nothing behind.
  EXPECT_EQ(
      run_alone(engine, {.prompt_tokens = make_prompt(150), .max_tokens = 43, .ignore_eos = true}).tokens,
      formula(make_prompt(150), 43));
}

}  // namespace
}  // namespace snapmla
