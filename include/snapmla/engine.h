// Engine: decodes whole MLA models with continuous batching over a paged latent cache.
//
// A request is submitted, joins the running batch at the next step when pages are free, yields one event a
// generated token, and leaves on a stop token, a stop string, its length limit, or cancel. Out of pages, a
// request waits; it is never lost and never answered wrongly. One thread drives an Engine at a time (no call
// is thread-safe); several engines may live side by side.
//
// Requests join in the order they came, each when the pages of its prompt are free, and take further pages as
// they grow. When the pool is dry, the request that came last is preempted: it gives its pages back, waits,
// and starts over, its generated tokens replayed as they were. It is not seen from outside but in the time it
// takes. The oldest request is never preempted, so none starves.
//
// Prompts that begin alike share pages (enable_prefix_caching). Pages of prompts stay in the pool after their
// request until the room is needed, the longest unused given up first; no other memory is taken for them.
//
// What a request gets depends on itself alone, bit for bit on the reference backend and with `deterministic`: not on its batch, its
// wait, prefill_chunk, the number of pages, preemption, or what is found in the prefix cache. Only pages of
// prompts are shared, prefill attends to what the cache returns, and generated tokens are replayed as decode
// steps (tests/engine/engine_test.cc).
//
// Example (compiled and run by tests/engine/headers_test.cc with the bundled model):
//
//     snapmla::Engine engine({.model_dir = "models/tiny-mla"});
//     engine.submit({.prompt = "In the beginning", .max_tokens = 32});
//     while (!engine.idle())
//       for (const snapmla::TokenEvent& event : engine.step()) std::cout << event.text;
//
// Two requests that begin alike, in a pool that holds little more than one of them (same test):
//
//     snapmla::Engine small({.model_dir = "models/tiny-mla", .max_seq_len = 256, .max_batch = 2,
//                            .num_pages = 5, .prefill_chunk = 64, .enable_prefix_caching = true});
//     const std::string start = "And it came to pass in those days, that there went out a decree";
//     small.submit({.prompt = start + " from", .max_tokens = 150, .ignore_eos = true});
//     small.submit({.prompt = start + " that", .max_tokens = 150, .ignore_eos = true});
//     while (!small.idle()) small.step();
//     std::cout << small.stats().prefix_tokens << " tokens shared, " << small.stats().preemptions << " preempted";
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "snapmla/format.h"

namespace snapmla {

class Backend;
class Tokenizer;     // src/engine/tokenizer.h
struct ModelConfig;  // src/model/config.h

/// Where weights come from.
enum class LoadFormat : std::uint8_t {
  kAuto,   ///< the folder's checkpoint
  kDummy,  ///< a seeded random generator; the folder needs a config.json only. For measuring speed
};

/// A part of a model with dummy weights, to measure on one GPU what a whole model would need several for.
struct ModelSlice {
  int num_layers = 0;  ///< attention layers kept, leading dense ones in proportion (at least one); 0: all
  int expert_rank =
      0;  ///< of expert_ranks GPUs, each of which has its share of the routed experts and all else:
  int expert_ranks = 1;  ///< every token goes to the rank's own experts, as if the load were balanced
};

struct EngineOptions {
  std::string model_dir{};  ///< a folder in Hugging Face or Mistral layout: config, safetensors, tokenizer
  LoadFormat load_format = LoadFormat::kAuto;
  ModelSlice slice{};          ///< other than the whole only with LoadFormat::kDummy
  Backend* backend = nullptr;  ///< null: backend_by_name("auto"); must run whole models
  CacheFormat cache_format = CacheFormat::kFp8;
  ScaleRule scale_rule = ScaleRule::kPowerOfTwo;
  int max_seq_len = 0;  ///< prompt + generated tokens of one request; 0: the model's own maximum
  int max_batch = 8;    ///< requests that run together, at most 4096
  std::int64_t num_pages =
      0;  ///< pages in the pool (each serves all layers); 0: what the next two give, else
          ///< enough for one request of max_seq_len or for max_batch requests of 4,096
          ///< tokens (max_seq_len if less), whichever is more
  std::int64_t kv_cache_memory_bytes = 0;  ///< bytes of pages; 0: not given
  double gpu_memory_utilization =
      0;                    ///< cuda(): share of the memory that is free when the engine is made for
                            ///< weights, buffers and pages together, up to 1; 0: not given
  int prefill_chunk = 512;  ///< prompt tokens a step at most, at least 1; they come beside the decoding of
                            ///< all other requests, so a small chunk keeps their tokens coming
  bool enable_prefix_caching = true;  ///< share the pages of prompts that begin alike
  bool deterministic =
      false;  ///< what a request gets depends on itself alone, bit for bit, on any backend; costs speed on
              ///< cuda(), where else the order of fp32 sums depends on the batch. reference() always is
};

struct SamplingParams {
  float temperature = 0;   ///< 0: greedy; else logits / temperature; finite, >= 0
  int top_k = 0;           ///< keep the k most likely; 0: all
  float top_p = 1;         ///< keep the smallest set whose probability reaches top_p; in (0, 1]
  std::uint64_t seed = 0;  ///< same seed, same request, same text, whatever else is in the batch
};

struct Request {
  std::string prompt{};  ///< text, encoded with the model's tokenizer; or give `prompt_tokens`
  std::vector<std::int32_t> prompt_tokens{};  ///< token ids; wins over `prompt` if not empty
  int max_tokens = 128;  ///< generated tokens at most, at least 1; cut to what max_seq_len leaves
  SamplingParams sampling{};
  std::vector<std::string> stop{};  ///< the text ends before the first of these that is complete; UTF-8
  bool ignore_eos = false;          ///< go on past the model's stop tokens
  /// Teacher forcing: generated token i is forced_tokens[i], not a sample; sampling goes on after the last.
  std::vector<std::int32_t> forced_tokens{};
  bool return_logits = false;  ///< events carry the full logits row the token was chosen from
};

using RequestId = std::int64_t;

enum class FinishReason : std::uint8_t { kNone, kStop, kLength, kCancelled };

/// "none", "stop", "length", "cancelled".
const char* to_string(FinishReason reason) noexcept;

struct TokenEvent {
  RequestId request = 0;
  std::int32_t token = -1;      ///< the generated token; -1 in an event that only finishes (cancel)
  std::string text{};           ///< complete UTF-8 text that became final with this token; may be empty
  double logprob = 0;           ///< ln probability of `token` under the model (before temperature and cuts)
  std::vector<float> logits{};  ///< [vocab] if asked for
  FinishReason finish = FinishReason::kNone;  ///< not kNone in the request's last event
};

struct EngineStats {
  std::int64_t prompt_tokens = 0;     ///< tokens prefilled so far, again after a preemption included
  std::int64_t prefix_tokens = 0;     ///< prompt tokens found in the prefix cache instead
  std::int64_t generated_tokens = 0;  ///< tokens emitted so far
  std::int64_t replayed_tokens = 0;   ///< generated tokens decoded again after a preemption
  std::int64_t preemptions = 0;
  double prefill_seconds = 0;  ///< wall time in prefill
  double decode_seconds = 0;   ///< wall time in decode steps
  std::int64_t decode_steps = 0;
  std::int64_t parameters = 0;      ///< of the model, as stored
  std::int64_t fp8_parameters = 0;  ///< of these, weights that are FP8 on the device too
  std::int64_t weight_bytes = 0;    ///< on the device
  std::int64_t pages_total = 0;
  std::int64_t pages_in_use = 0;  ///< held by running requests, each counted once
  std::int64_t pages_kept = 0;    ///< held by none, kept for prompts that begin alike
  int running = 0;
  int waiting = 0;
};

class Engine {
 public:
  /// Loads the model onto the backend. Throws Error: kNotFound, kCorruptFile, kUnsupported for the folder's
  /// files, kInvalidArgument for the options, kOutOfMemory.
  explicit Engine(const EngineOptions& options);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Queues a request. Throws Error(kInvalidArgument) for an empty prompt, a prompt that does not leave room
  /// for one token in max_seq_len, token ids outside the vocabulary, sampling values out of range, an empty
  /// stop string, and Error(kOutOfMemory) for a request that even the whole pool could not hold. A prompt
  /// longer than the room for it is refused, not cut. A refused request leaves nothing behind.
  RequestId submit(const Request& request);

  /// One step: decodes every running request by one token, then admits what fits and prefills up to
  /// prefill_chunk tokens of prompts, one after the other. On cuda() the decoding goes on behind the caller's back: its events come
  /// with the next step, while the one after runs. Returns the events in request order, one a request
  /// at most. A prompt's last token yields the request's first. If it throws, nothing is lost: the next step
  /// does the work again.
  std::vector<TokenEvent> step();

  /// Ends a request, whatever it is at; its pages return at once. Its last event (kCancelled, no token) comes with the next
  /// step, along with text that was held back. False if the request is unknown or already finished.
  bool cancel(RequestId request);

  [[nodiscard]] bool idle() const;  ///< nothing queued, running, or left to report
  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] const ModelConfig& config() const;
  [[nodiscard]] const Tokenizer& tokenizer() const;
  [[nodiscard]] const EngineOptions& options() const;  ///< as given, zeros replaced by what was chosen

  /// The cache of one layer, for inspection and fault injection in tests; valid while the engine lives.
  [[nodiscard]] CacheView cache(int layer) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace snapmla
