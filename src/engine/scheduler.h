// Scheduler: which requests run, on which pages, and what one step does. Pure bookkeeping: no model, no
// memory, no text.
//
//     waiting --(a place, and pages for the tokens it has)--> prefilling --> decoding --> removed
//        ^                                                        |              |
//        +---- preempted: the pool is dry, and it came last ------+--------------+
//
// The order of arrival is the only priority. Every running request came before every waiting one; requests
// are admitted in that order, one that does not fit yet holds back those behind it, and prompts are prefilled
// one at a time. A request takes pages for the tokens it has (prompt, and what it generated before it was
// preempted) when it is admitted, and one more whenever it needs it. If none is left then, the youngest
// running request gives all of its pages back and waits again. So the oldest request is never pushed out, and
// each one becomes the oldest: none starves. A request is admitted only if a page is left over for each one
// that runs already, lest it be pushed out at once.
//
// A preempted request starts over: its prompt is prefilled, then the tokens it had generated are fed again,
// one decode row each, because a prefill does not give a decode step's bits. Rows of the batch that nobody
// needs are used to replay several of them in one step.
//
// With prefix caching, a prompt's pages are published once they are prefilled (never pages with generated
// tokens). A later prompt holds the whole pages it shares, and gets a copy of the page it shares in part. The
// last token of a prompt is always prefilled, for its logits.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "engine/page_pool.h"
#include "snapmla/engine.h"

namespace snapmla {

struct SchedulerLimits {
  std::int64_t num_pages = 0;
  int max_batch = 1;  ///< requests running at once, and rows of a decode batch
  bool prefix_caching = true;
};

/// The part of a prompt that a step prefills.
struct PrefillStep {
  RequestId request = 0;
  int start = 0;
  int num_tokens = 0;
  std::int32_t copy_from = PagePool::kNoPage;  ///< copy this page onto that of `start` first
  bool wants_token = false;                    ///< the next token is chosen from the last row's logits
};

/// One token of a request's that goes through the model.
struct DecodeRow {
  RequestId request = 0;
  int position = 0;          ///< from 0, the prompt included
  bool wants_token = false;  ///< the next token is chosen from its logits; else it is a replay
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Whether a request with so many tokens in the cache would fit into an empty pool.
  [[nodiscard]] bool can_ever_run(int max_cached) const { return pages_for(max_cached) <= pool_.num_total(); }

  /// Queues a request that can_ever_run: its prompt, at least 1 token, which must stay where it is until the
  /// request is removed, and the tokens it has in the cache at most. Ids must ascend: their order is the order
  /// of arrival.
  void add(RequestId request, std::span<const std::int32_t> prompt, int max_cached);

  // A step asks for the rows to decode, then for chunks to prefill, and tells what was done. What is not told
  // did not happen: asking again gives the same answer.

  /// Every request whose prompt is complete, rows that want a token first and a request's replays by
  /// position. Takes the pages they need, preempting where there are none.
  [[nodiscard]] std::vector<DecodeRow> next_decode();
  void decoded(const DecodeRow& row);

  /// At most `most` >= 1 tokens of the next prompt, whose request is admitted if it fits.
  [[nodiscard]] std::optional<PrefillStep> next_prefill(int most);
  void prefilled(const PrefillStep& step);

  /// Takes a request out, wherever it is; its pages are let go at once.
  void remove(RequestId request);

  /// The pages a running request holds, in the order of its tokens.
  [[nodiscard]] const std::vector<std::int32_t>& pages(RequestId request) const;

  [[nodiscard]] const PagePool& pool() const { return pool_; }
  [[nodiscard]] int num_running() const { return static_cast<int>(running_.size()); }
  [[nodiscard]] int num_waiting() const { return static_cast<int>(waiting_.size()); }
  [[nodiscard]] std::int64_t num_preemptions() const { return num_preemptions_; }
  [[nodiscard]] std::int64_t num_tokens_found() const { return num_tokens_found_; }  ///< in the prefix cache

 private:
  struct State {
    std::span<const std::int32_t> prompt;
    int generated = 0;  // tokens chosen so far
    int cached = 0;     // tokens on its pages
    std::vector<std::int32_t> pages{};
    std::int32_t copy_from = PagePool::kNoPage;  // held until the first chunk is prefilled

    [[nodiscard]] int num_prompt() const { return static_cast<int>(prompt.size()); }
    [[nodiscard]] int num_tokens() const { return num_prompt() + generated; }
    [[nodiscard]] bool is_prefilling() const { return cached < num_prompt(); }
  };
  using States = std::map<RequestId, State>;

  [[nodiscard]] bool admit_oldest();
  void preempt_youngest();
  void publish_prompt(State& state, int first);
  void let_go(State& state);

  SchedulerLimits limits_;
  PagePool pool_;
  RequestId newest_ = 0;
  std::int64_t num_preemptions_ = 0;
  std::int64_t num_tokens_found_ = 0;
  States waiting_;
  States running_;  // at most the last is prefilling
};

}  // namespace snapmla
