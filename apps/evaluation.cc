#include "evaluation.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

/// Longest run of scored tokens in a window: short enough for many independent windows, long enough that
/// prefilling long prefixes does not eat the time.
int scored_run(const Bucket& bucket) {
  return std::min(bucket.high >= 1024 ? 256 : 128, std::max(1, (bucket.high - std::max(bucket.low, 2)) / 2));
}

/// One engine working through all sequences; hands out the logits of scored tokens.
class Scorer {
 public:
  Scorer(Engine& engine, const std::vector<Sequence>& sequences) : engine_(&engine) {
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& sequence = sequences[i];
      const auto split = sequence.tokens.begin() + sequence.prefix;
      const RequestId id = engine.submit({.prompt_tokens = {sequence.tokens.begin(), split},
                                          .max_tokens = sequence.num_scored() + 1,
                                          .ignore_eos = true,
                                          .forced_tokens = {split, sequence.tokens.end()},
                                          .return_logits = true});
      progress_[id] = {.sequence = static_cast<int>(i)};
    }
  }

  [[nodiscard]] bool idle() const { return engine_->idle(); }

  /// One engine step: sink(sequence, index of the scored token, its logits).
  template <class Sink>
  void step(const ScoreHooks& hooks, const Sink& sink) {
    for (TokenEvent& event : engine_->step()) {
      if (event.token < 0) continue;
      Progress& at = progress_.at(event.request);
      const int index = at.events++;
      if (index > 0) sink(at.sequence, index - 1, std::move(event.logits));
    }
    if (hooks.after_step) hooks.after_step(*engine_);
  }

 private:
  struct Progress {
    int sequence = 0;
    int events = 0;
  };
  Engine* engine_;
  std::unordered_map<RequestId, Progress> progress_;
};

std::int64_t score_with_one(Engine& engine, bool is_fp8, const std::vector<Sequence>& sequences,
                            const ScoreHooks& hooks) {
  Scorer scorer(engine, sequences);
  std::int64_t scored = 0;
  while (!scorer.idle()) {
    stop_if_asked();
    scorer.step(hooks, [&](int sequence, int index, const std::vector<float>& logits) {
      const Sequence& from = sequences[static_cast<std::size_t>(sequence)];
      const int context = from.prefix + 1 + index;
      const double nll = negative_log_likelihood(logits, from.tokens[static_cast<std::size_t>(context)]);
      TokenScore score{.sequence = sequence, .context = context};
      (is_fp8 ? score.nll_fp8 : score.nll_bf16) = nll;
      hooks.on_score(score);
      ++scored;
    });
  }
  return scored;
}

}  // namespace

std::int64_t score_sequences(const Caches& caches, const std::vector<Sequence>& sequences,
                             const ScoreHooks& hooks) {
  for (const Sequence& sequence : sequences)
    SNAPMLA_ASSERT(sequence.prefix >= 1 && sequence.num_scored() >= 1);
  if (caches.bf16 == nullptr || caches.fp8 == nullptr) {
    const bool is_fp8 = caches.bf16 == nullptr;
    return score_with_one(is_fp8 ? *caches.fp8 : *caches.bf16, is_fp8, sequences, hooks);
  }
  using Key = std::pair<int, int>;
  std::map<Key, std::vector<float>> waiting_bf16;
  std::map<Key, std::vector<float>> waiting_fp8;
  std::int64_t scored = 0;
  const auto pair_up = [&](const Key& key, const std::vector<float>& bf16, const std::vector<float>& fp8) {
    const Sequence& from = sequences[static_cast<std::size_t>(key.first)];
    const int context = from.prefix + 1 + key.second;
    TokenScore score = score_both(bf16, fp8, from.tokens[static_cast<std::size_t>(context)]);
    score.sequence = key.first;
    score.context = context;
    hooks.on_score(score);
    ++scored;
  };
  Scorer bf16(*caches.bf16, sequences);
  Scorer fp8(*caches.fp8, sequences);
  while (!bf16.idle() || !fp8.idle()) {
    stop_if_asked();
    bf16.step(hooks, [&](int sequence, int index, std::vector<float> logits) {
      const Key key{sequence, index};
      if (const auto other = waiting_fp8.extract(key); !other.empty()) {
        pair_up(key, logits, other.mapped());
      } else {
        waiting_bf16.emplace(key, std::move(logits));
      }
    });
    fp8.step(hooks, [&](int sequence, int index, std::vector<float> logits) {
      const Key key{sequence, index};
      if (const auto other = waiting_bf16.extract(key); !other.empty()) {
        pair_up(key, other.mapped(), logits);
      } else {
        waiting_fp8.emplace(key, std::move(logits));
      }
    });
  }
  SNAPMLA_ASSERT(waiting_bf16.empty() && waiting_fp8.empty());
  return scored;
}

std::vector<Sequence> make_windows(const std::vector<std::vector<std::int32_t>>& documents,
                                   const WindowOptions& options) {
  std::vector<std::int32_t> stream;
  std::vector<std::size_t> heads;
  for (const auto& document : documents) {
    heads.push_back(stream.size());
    stream.insert(stream.end(), document.begin(), document.end());
  }
  const auto longest = static_cast<std::size_t>(options.max_context) + 1;
  SNAPMLA_REQUIRE(stream.size() >= longest, "eval", "the text must have at least ", longest,
                  " tokens for a context of ", options.max_context, "; got ", stream.size());
  std::erase_if(heads, [&](std::size_t head) { return head + longest > stream.size(); });
  if (heads.empty()) heads.push_back(0);

  Random random(options.seed);
  random.shuffle(heads);
  std::size_t next_head = 0;
  std::vector<Sequence> windows;
  const std::vector<Bucket> buckets = context_buckets(options.max_context);
  const auto num_buckets = static_cast<std::int64_t>(buckets.size());
  const std::int64_t share = (options.num_tokens + num_buckets - 1) / num_buckets;
  for (const Bucket& bucket : buckets) {
    const int run = scored_run(bucket);
    const int shortest_prefix = std::max(1, bucket.low - 1);
    const int longest_prefix = std::max(shortest_prefix, bucket.high - 1 - run);
    for (std::int64_t left = share; left > 0; left -= run) {
      const int prefix = shortest_prefix + random.below(longest_prefix - shortest_prefix + 1);
      const auto head = stream.begin() + static_cast<std::ptrdiff_t>(heads[next_head++ % heads.size()]);
      windows.push_back({.tokens = {head, head + prefix + 1 + run}, .prefix = prefix});
    }
  }
  return windows;
}

std::vector<std::string> split_documents(const std::string& text) {
  std::vector<std::string> documents;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find("\n\n", at), text.size());
    std::string document = text.substr(at, end - at);
    document.erase(0, std::min(document.find_first_not_of('\n'), document.size()));
    document.erase(document.find_last_not_of('\n') + 1);
    if (!document.empty()) documents.push_back(std::move(document));
    at = end + 2;
  }
  return documents;
}

}  // namespace snapmla::apps
