// EngineLoop: what an Engine does once its model is loaded. Ties the scheduler, the model, the sampler and
// the text streams together; knows no files and no kind of model, so that tests drive it with a model of
// their own.
//
// A step runs on copies of the bookkeeping's answers, and each call of the model counts when it has returned:
// if an op throws, its work has not moved and the next step repeats it (writing the same tokens to the same
// slots).
//
// Where the backend works on its own (supports_graphs()), a decode step is enqueued before the host knows the tokens of the step
// ahead: the scheduler needs only their number, and the device puts them in place (DecodeBatch::sampled). The host reads the tokens
// of step n, makes text of them and hands out the events while step n + 1 runs. A request that step n turns out to end then has a
// row in step n + 1 for nothing; what that row gives is dropped, and its pages go only to work further behind on the stream.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/device_buffer.h"
#include "core/owned_stream.h"
#include "engine/sampling.h"
#include "engine/scheduler.h"
#include "engine/text_stream.h"
#include "engine/tokenizer.h"
#include "model/model.h"
#include "snapmla/engine.h"

namespace snapmla {

/// Checks the options against the model's config and fills in what was left to us (backend included), but for
/// num_pages where it follows from memory that is free only once the model is there: 0 then. Throws
/// Error(kInvalidArgument). Host only, before anything is loaded.
[[nodiscard]] EngineOptions complete_options(const EngineOptions& options, const ModelConfig& config);

/// The completed options with num_pages filled in, now that the model has taken its part of the memory, of which
/// `free_before` bytes were free before. Throws Error(kOutOfMemory) if there is no room for a page.
[[nodiscard]] EngineOptions with_pages(const EngineOptions& options, const ModelConfig& config,
                                       std::int64_t free_before);

/// What the model must be able to hold for these (completed) options.
[[nodiscard]] ModelLimits model_limits(const EngineOptions& options);

class EngineLoop {
 public:
  /// `options` as complete_options() and with_pages() gave them, `model` made with model_limits() of them.
  EngineLoop(const EngineOptions& options, std::unique_ptr<Model> model, Tokenizer tokenizer);

  // As in engine.h.
  RequestId submit(const Request& request);
  std::vector<TokenEvent> step();
  bool cancel(RequestId request);
  [[nodiscard]] bool idle() const { return sequences_.empty() && events_.empty() && flights_.empty(); }
  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] CacheView cache(int layer) const;

  [[nodiscard]] const ModelConfig& config() const { return model_->config(); }
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }
  [[nodiscard]] const EngineOptions& options() const { return options_; }

 private:
  /// A request from submit() to its last event.
  struct Sequence {
    Request request;  // prompt_tokens filled in, max_tokens cut to what max_seq_len leaves
    TextStream text;
    std::vector<std::int32_t> generated{};
    std::size_t num_in_flight = 0;  // tokens that enqueued steps choose
    int flight_row = -1;            // where the newest of these steps chooses one
    bool scheduled = true;          // the scheduler knows it; no longer once its last token is in flight

    [[nodiscard]] std::size_t num_chosen() const { return generated.size() + num_in_flight; }
  };

  /// A decode step that was enqueued.
  struct Flight {
    std::vector<DecodeRow> rows;
    bool wants_tokens = false;
  };

  void prefill(const PrefillStep& step);
  void launch(std::vector<DecodeRow> rows);
  void land();
  [[nodiscard]] DecodeBatch make_batch(const std::vector<DecodeRow>& rows) const;
  void copy_page(std::int32_t from, std::int32_t to);
  [[nodiscard]] Choice next_choice(const Sequence& sequence) const;
  void record(RequestId request, Chosen chosen);

  EngineOptions options_;
  Tokenizer tokenizer_;
  OwnedStream stream_;
  std::unique_ptr<Model> model_;
  std::vector<DeviceBuffer> pools_;  // one a layer
  std::vector<CacheView> caches_;    // one a layer
  Sampler sampler_;                  // of decode steps
  Sampler prompt_sampler_;           // of prompts' first tokens
  Scheduler scheduler_;
  std::deque<Flight> flights_;  // at most two: one lands while the next is under way
  RequestId newest_ = 0;
  std::map<RequestId, Sequence> sequences_;
  std::vector<TokenEvent> events_;  // not yet handed out
  EngineStats stats_{};
};

}  // namespace snapmla
