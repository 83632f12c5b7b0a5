// Chaos: random requests (lengths, shared beginnings, sampling, stop strings, forced tokens), cancelled at
// random steps, in a pool far too small for them, with a model that throws now and then. Each must get what it
// gets alone, none may be lost, and at the end all pages and all memory must be back.
//
// The long forms (label slow) print what they did; docs/hardness.md keeps those figures.
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/fake_model.h"
#include "snapmla/backend.h"
#include "snapmla/engine.h"
#include "snapmla/error.h"
#include "support/backends.h"
#include "support/checkpoint.h"

namespace snapmla {
namespace {

using testing::FakeLog;
using testing::On;
using Tokens = std::vector<std::int32_t>;

struct Outcome {
  Tokens tokens;
  std::vector<double> logprobs;
  std::string text;
  FinishReason finish = FinishReason::kNone;
  bool cancelled = false;  // asked for
};

void add_event(const TokenEvent& event, Outcome& outcome) {
  ASSERT_EQ(outcome.finish, FinishReason::kNone) << "an event after the last";
  if (event.token >= 0) {
    outcome.tokens.push_back(event.token);
    outcome.logprobs.push_back(event.logprob);
  }
  outcome.text += event.text;
  outcome.finish = event.finish;
}

template <class T>
bool starts_with(const T& whole, const T& start) {
  return start.size() <= whole.size() && std::equal(start.begin(), start.end(), whole.begin());
}

struct ChaosParams {
  int num_requests = 0;
  int vocab = 0;
  int most_prompt = 120;  ///< prompt tokens, shared ones included
  int most_generated = 180;
  unsigned seed = 1;
  std::int64_t most_growth =
      std::int64_t{64} * 1024;  ///< of the heap, in bytes, after a quarter of the requests
};

/// Bytes the process holds from malloc; 0 under a sanitizer, which has its own.
std::size_t heap_in_use() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// EngineType: Engine, or the EngineLoop around a FakeModel.
template <class EngineType>
class Chaos {
 public:
  /// `log`: of the crowd's FakeModel, to make it throw; may be null.
  Chaos(const ChaosParams& params, EngineType& crowd, EngineType& single, FakeLog* log = nullptr)
      : params_(params), crowd_(crowd), single_(single), log_(log), random_(params.seed) {
    for (int i = 0; i < 6; ++i) beginnings_.push_back(random_tokens(pick(1, params_.most_prompt * 3 / 4)));
  }

  void run() {
    run_until(params_.num_requests / 4);
    const std::size_t heap = heap_in_use();
    run_until(params_.num_requests);
    // The texts of kept pages differ from moment to moment; nothing may grow with the number of requests.
    const std::int64_t grown = static_cast<std::int64_t>(heap_in_use()) - static_cast<std::int64_t>(heap);
    EXPECT_LT(grown, params_.most_growth);
    EXPECT_EQ(num_finished_, params_.num_requests);
    EXPECT_GT(num_cancelled_, params_.num_requests / 50);
    const EngineStats stats = crowd_.stats();
    EXPECT_GT(stats.preemptions, params_.num_requests / 50);
    EXPECT_GT(stats.prefix_tokens, params_.num_requests * 5);
    EXPECT_EQ(num_failures_ > 0, log_ != nullptr);
    std::cout << num_finished_ << " requests: " << num_cancelled_ << " cancelled, " << stats.preemptions
              << " preemptions, " << num_failures_ << " steps made to fail; tokens: " << stats.prompt_tokens
              << " prefilled, " << stats.prefix_tokens << " found in the prefix cache, "
              << stats.generated_tokens << " generated, " << stats.replayed_tokens << " replayed; "
              << stats.pages_total << " pages, heap grown by " << grown << " bytes\n";
  }

 private:
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(int one_in) { return pick(1, one_in) == 1; }

  Tokens random_tokens(int length) {
    Tokens tokens(static_cast<std::size_t>(length));
    for (std::int32_t& token : tokens) token = pick(0, params_.vocab - 1);
    return tokens;
  }

  Request random_request() {
    Request request{.max_tokens = pick(1, params_.most_generated), .ignore_eos = chance(2)};
    if (!chance(4)) {
      const Tokens& beginning = beginnings_[static_cast<std::size_t>(pick(0, 5))];
      // Sometimes all of it, sometimes a part, so that prompts part on and between page borders.
      const int length =
          chance(2) ? static_cast<int>(beginning.size()) : pick(1, static_cast<int>(beginning.size()));
      request.prompt_tokens.assign(beginning.begin(), beginning.begin() + length);
    }
    const int left = params_.most_prompt - static_cast<int>(request.prompt_tokens.size());
    const Tokens own =
        random_tokens(pick(request.prompt_tokens.empty() ? 1 : 0, chance(3) ? left : left / 4 + 1));
    request.prompt_tokens.insert(request.prompt_tokens.end(), own.begin(), own.end());
    if (chance(2)) {
      request.sampling = {.temperature = static_cast<float>(pick(1, 20)) / 10,
                          .top_k = pick(0, 40),
                          .top_p = chance(2) ? 0.9F : 1,
                          .seed = static_cast<std::uint64_t>(pick(0, 1 << 30))};
    }
    if (chance(4)) request.stop = {std::string(1, static_cast<char>(pick(32, 126))), "zz"};
    if (chance(8)) request.forced_tokens = random_tokens(pick(1, 20));
    return request;
  }

  /// Submits until `count` requests were, then steps until all are done.
  void run_until(int count) {
    while (num_submitted_ < count || !crowd_.idle()) {
      for (int i = pick(0, 3); i > 0 && num_submitted_ < count && std::ssize(alive_) < 40; --i) {
        const Request request = random_request();
        alive_[crowd_.submit(request)] = {request, {}};
        ++num_submitted_;
      }
      if (!alive_.empty() && chance(60)) {
        const auto it = std::next(alive_.begin(), pick(0, static_cast<int>(alive_.size()) - 1));
        // False if its last event is on the way.
        if (crowd_.cancel(it->first)) it->second.second.cancelled = true;
      }
      step();
      if (::testing::Test::HasFailure()) return;
    }
    ASSERT_TRUE(alive_.empty()) << alive_.size() << " requests are lost";
    const EngineStats stats = crowd_.stats();
    ASSERT_EQ(stats.pages_in_use, 0);
    ASSERT_EQ(stats.running + stats.waiting, 0);
  }

  void step() {
    if (log_ != nullptr && log_->fail_in < 0 && chance(200)) log_->fail_in = pick(0, 60);
    std::vector<TokenEvent> events;
    try {
      events = crowd_.step();
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kDevice) << error.what();
      ++num_failures_;
    }
    ASSERT_LE(crowd_.stats().pages_in_use + crowd_.stats().pages_kept, crowd_.stats().pages_total);
    for (const TokenEvent& event : events) {
      const auto it = alive_.find(event.request);
      ASSERT_NE(it, alive_.end()) << "an event of nobody";
      add_event(event, it->second.second);
      if (event.finish == FinishReason::kNone) continue;
      compare(it->second.first, it->second.second);
      ++num_finished_;
      alive_.erase(it);
    }
  }

  void compare(const Request& request, const Outcome& outcome) {
    Outcome alone;
    single_.submit(request);
    while (!single_.idle()) {
      for (const TokenEvent& event : single_.step()) add_event(event, alone);
    }
    if (outcome.finish == FinishReason::kCancelled) {
      ++num_cancelled_;
      ASSERT_TRUE(outcome.cancelled);
      ASSERT_TRUE(starts_with(alone.tokens, outcome.tokens));
      ASSERT_TRUE(starts_with(alone.logprobs, outcome.logprobs));
    } else {
      ASSERT_EQ(outcome.finish, alone.finish);
      ASSERT_EQ(outcome.tokens, alone.tokens);
      ASSERT_EQ(outcome.logprobs, alone.logprobs);
      ASSERT_EQ(outcome.text, alone.text);
    }
  }

  ChaosParams params_;
  EngineType& crowd_;
  EngineType& single_;
  FakeLog* log_;
  std::mt19937 random_;
  std::vector<Tokens> beginnings_;
  std::map<RequestId, std::pair<Request, Outcome>> alive_;
  int num_submitted_ = 0;
  int num_finished_ = 0;
  int num_cancelled_ = 0;
  int num_failures_ = 0;
};

// The longest request needs 5 of the 8 pages.
void run_fake(const ChaosParams& params, Backend& backend = reference()) {
  const auto log = std::make_shared<FakeLog>(FakeLog{.record = false});
  EngineLoop crowd = testing::fake_engine(
      {.backend = &backend, .max_seq_len = 300, .max_batch = 8, .num_pages = 8, .prefill_chunk = 50}, log);
  EngineLoop single =
      testing::fake_engine({.max_seq_len = 300, .max_batch = 1, .enable_prefix_caching = false},
                           std::make_shared<FakeLog>(FakeLog{.record = false}));
  Chaos(params, crowd, single, log.get()).run();
}

void run_model(const ChaosParams& params, const std::string& model, CacheFormat format, On on) {
  if (const std::string reason = testing::why_not(on); !reason.empty()) GTEST_SKIP() << reason;
  EngineOptions options{.model_dir = model,
                        .backend = &testing::backend(on),
                        .cache_format = format,
                        .max_seq_len = 300,
                        .max_batch = 8,
                        .num_pages = 8,
                        .prefill_chunk = 50,
                        .deterministic = true};
  Engine crowd(options);
  options.max_batch = 1;
  options.enable_prefix_caching = false;
  Engine single(options);
  Chaos(params, crowd, single).run();
}

void run_real(const ChaosParams& params, CacheFormat format, On on = On::kReference) {
  const testing::TempDir dir;
  testing::write_checkpoint(dir.path(), testing::tiny_config(), 5);
  testing::write_file(dir.file("tokenizer.json"), testing::byte_tokenizer_json());
  run_model(params, dir.path(), format, on);
}

TEST(Chaos, FakeModel) {
  run_fake({.num_requests = 400, .vocab = testing::kFakeVocab});
}
TEST(Chaos, FakeModelAStepAhead) {
  run_fake({.num_requests = 400, .vocab = testing::kFakeVocab}, testing::ahead());
}
TEST(Chaos, RandomModel) {
  run_real({.num_requests = 60, .vocab = 300}, CacheFormat::kFp8);
}

TEST(Chaos, RandomModelOnCuda) {
  // A graph and its products are made at the first batch of their size, and so few requests do not meet every size early.
  run_real({.num_requests = 60, .vocab = 300, .most_growth = std::int64_t{4} << 20}, CacheFormat::kFp8,
           On::kCuda);
}

TEST(ChaosSlow, FakeModel) {
  run_fake({.num_requests = 10000, .vocab = testing::kFakeVocab, .seed = 2});
}
TEST(ChaosSlow, FakeModelAStepAhead) {
  run_fake({.num_requests = 10000, .vocab = testing::kFakeVocab, .seed = 2}, testing::ahead());
}
TEST(ChaosSlow, RandomModelFp8) {
  run_real({.num_requests = 1000, .vocab = 300, .seed = 3}, CacheFormat::kFp8);
}
TEST(ChaosSlow, RandomModelBf16) {
  run_real({.num_requests = 1000, .vocab = 300, .seed = 4}, CacheFormat::kBf16);
}
TEST(ChaosSlow, RandomModelFp8OnCuda) {
  run_real({.num_requests = 10000, .vocab = 300, .seed = 5}, CacheFormat::kFp8, On::kCuda);
}
TEST(ChaosSlow, BundledModelOnCuda) {
  run_model({.num_requests = 10000, .vocab = 2048, .seed = 7},
            std::string(SNAPMLA_SOURCE_DIR) + "/models/tiny-mla", CacheFormat::kFp8, On::kCuda);
}
TEST(ChaosSlow, RandomModelBf16OnCuda) {
  run_real({.num_requests = 1000, .vocab = 300, .seed = 6}, CacheFormat::kBf16, On::kCuda);
}

}  // namespace
}  // namespace snapmla
