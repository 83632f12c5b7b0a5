// Scheduler: which requests run, on which pages, and what one step does. Pure bookkeeping: no model, no
// memory, no text.
//
//     waiting --(a place in the batch, and all pages it can ever need)--> prefilling --> decoding --> removed
//
// A request is admitted only when the pages of its prompt AND of every token it may generate are free, and it
// holds them until it is removed. So a running request can never run out of pages and none is ever pushed out
// again; the price is a smaller batch when requests stop long before their limit. Requests are admitted
// strictly in the order they came: one that does not fit yet holds back those behind it, so none starves.
// Prompts are prefilled one at a time, in the same order, at most `prefill_chunk` tokens a step; every
// request whose prompt was complete when the step began is decoded by one token in it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "engine/page_pool.h"
#include "snapmla/engine.h"

namespace snapmla {

struct SchedulerLimits {
  std::int64_t num_pages = 0;
  int max_batch = 1;  ///< requests running at once
  int prefill_chunk = 512;
};

/// What the scheduler needs to know of a request.
struct Demand {
  int prompt_tokens = 0;  ///< at least 1
  int max_cached = 0;     ///< tokens in the cache at most; at least prompt_tokens
};

/// The part of a prompt that a step prefills.
struct PrefillStep {
  RequestId request = 0;
  int start = 0;
  int num_tokens = 0;
  bool completes_prompt = false;
};

struct StepPlan {
  std::optional<PrefillStep> prefill;
  std::vector<RequestId> decode;  ///< in the order they came
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Whether the request would fit into an empty pool.
  [[nodiscard]] bool can_ever_run(const Demand& demand) const {
    return pages_for(demand.max_cached) <= pool_.num_total();
  }

  /// Queues a request that can_ever_run. Ids must ascend: their order is the order of arrival.
  void add(RequestId request, const Demand& demand);

  /// Admits what fits and says what this step does. Changes nothing else: the step counts when prefilled() is
  /// told of it, and asking again gives the same answer.
  [[nodiscard]] StepPlan next_step();

  void prefilled(const PrefillStep& step);

  /// Takes a request out, wherever it is; its pages are free at once.
  void remove(RequestId request);

  /// The pages a running request holds, in the order of its tokens.
  [[nodiscard]] const std::vector<std::int32_t>& pages(RequestId request) const;

  [[nodiscard]] const PagePool& pool() const { return pool_; }
  [[nodiscard]] int num_running() const { return static_cast<int>(running_.size()); }
  [[nodiscard]] int num_waiting() const { return static_cast<int>(waiting_.size()); }

 private:
  struct Running {
    int prompt_tokens = 0;
    int prefilled = 0;
    std::vector<std::int32_t> pages;
  };

  void admit();

  SchedulerLimits limits_;
  PagePool pool_;
  RequestId newest_ = 0;
  std::map<RequestId, Demand> waiting_;
  std::map<RequestId, Running> running_;
};

}  // namespace snapmla
