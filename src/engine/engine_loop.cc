#include "engine/engine_loop.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "core/check.h"
#include "engine/utf8.h"
#include "snapmla/attention.h"

namespace snapmla {
namespace {

constexpr int kMaxBatch = 4096;
/// Slots (page * 64 + offset) must fit in an int32.
constexpr std::int64_t kMaxPages = std::numeric_limits<std::int32_t>::max() / kPageTokens;
constexpr int kDefaultRequestTokens = 4096;

/// Adds the time from its making to its end to `total`.
class Timer {
 public:
  explicit Timer(double& total) : total_(&total), start_(std::chrono::steady_clock::now()) {}
  ~Timer() { *total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  double* total_;
  std::chrono::steady_clock::time_point start_;
};

std::vector<DeviceBuffer> allocate_pools(const EngineOptions& options, int num_layers) {
  const std::int64_t layer_bytes = options.num_pages * page_bytes(options.cache_format);
  std::vector<DeviceBuffer> pools;
  try {
    for (int layer = 0; layer < num_layers; ++layer) pools.emplace_back(*options.backend, layer_bytes);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    fail(ErrorCode::kOutOfMemory, "engine", "a cache of ", options.num_pages, " pages in ", num_layers,
         " layers takes ", layer_bytes, " bytes a layer, and layer ", pools.size(),
         " found no room; set num_pages or max_seq_len lower (", error.what(), ')');
  }
  return pools;
}

std::vector<CacheView> view_pools(const EngineOptions& options, const std::vector<DeviceBuffer>& pools) {
  std::vector<CacheView> views;
  views.reserve(pools.size());
  for (const DeviceBuffer& pool : pools) {
    views.push_back(make_cache_view(options.cache_format, pool.data(), options.num_pages));
  }
  return views;
}

void check_ids(const char* field, const std::vector<std::int32_t>& ids, int vocab) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    SNAPMLA_REQUIRE(ids[i] >= 0 && ids[i] < vocab, "submit", field,
                    " must be ids from 0 to below the vocabulary's ", vocab, "; got ", ids[i], " at ", i);
  }
}

}  // namespace

EngineOptions complete_options(const EngineOptions& options, const ModelConfig& config) {
  EngineOptions result = options;
  SNAPMLA_REQUIRE(
      options.max_seq_len == 0 || (options.max_seq_len >= 2 && options.max_seq_len <= config.max_position),
      "engine", "max_seq_len must be 0 or from 2 to the model's own maximum of ", config.max_position,
      "; got ", options.max_seq_len);
  SNAPMLA_REQUIRE(options.max_batch >= 1 && options.max_batch <= kMaxBatch, "engine",
                  "max_batch must be from 1 to ", kMaxBatch, "; got ", options.max_batch);
  SNAPMLA_REQUIRE(options.num_pages >= 0 && options.num_pages <= kMaxPages, "engine",
                  "num_pages must be from 0 to ", kMaxPages, "; got ", options.num_pages);
  SNAPMLA_REQUIRE(options.gpu_memory_utilization >= 0 && options.gpu_memory_utilization <= 1, "engine",
                  "gpu_memory_utilization must be from 0 to 1; got ", options.gpu_memory_utilization);
  SNAPMLA_REQUIRE(options.kv_cache_memory_bytes >= 0, "engine",
                  "kv_cache_memory_bytes must not be negative; got ", options.kv_cache_memory_bytes);
  SNAPMLA_REQUIRE(options.prefill_chunk >= 1, "engine", "prefill_chunk must be at least 1; got ",
                  options.prefill_chunk);
  if (result.backend == nullptr) result.backend = &backend_by_name("auto");
  if (const Support support = result.backend->supports_models(); !support.ok) {
    fail(ErrorCode::kUnsupported, "engine", "the ", result.backend->name(),
         " backend cannot run a whole model: ", support.reason);
  }
  if (result.backend->name() == reference().name()) result.deterministic = true;
  if (result.max_seq_len == 0) result.max_seq_len = config.max_position;
  if (result.num_pages != 0) return result;
  if (result.kv_cache_memory_bytes > 0) {
    const std::int64_t page = page_bytes(result.cache_format) * config.num_layers;
    result.num_pages = std::min(result.kv_cache_memory_bytes / page, kMaxPages);
    SNAPMLA_REQUIRE(result.num_pages >= 1, "engine", "kv_cache_memory_bytes must hold a page in each layer, ",
                    page, " bytes; got ", result.kv_cache_memory_bytes);
  } else if (result.gpu_memory_utilization == 0 || result.backend->name() != cuda().name()) {
    const int usual = std::min(result.max_seq_len, kDefaultRequestTokens);
    result.num_pages = std::max(pages_for(result.max_seq_len), result.max_batch * pages_for(usual));
  }
  return result;
}

EngineOptions with_pages(const EngineOptions& options, const ModelConfig& config, std::int64_t free_before) {
  EngineOptions result = options;
  if (result.num_pages != 0) return result;
  const std::int64_t taken = free_before - result.backend->free_memory();
  const auto usable =
      static_cast<std::int64_t>(result.gpu_memory_utilization * static_cast<double>(free_before));
  const std::int64_t page = page_bytes(result.cache_format) * config.num_layers;
  result.num_pages = std::min((usable - taken) / page, kMaxPages);
  if (result.num_pages < 1) {
    fail(ErrorCode::kOutOfMemory, "engine", "no page of the cache, ", page,
         " bytes, fits beside the model: ", free_before, " bytes were free, of which gpu_memory_utilization ",
         result.gpu_memory_utilization, " allows ", usable, ", and it took ", taken);
  }
  return result;
}

ModelLimits model_limits(const EngineOptions& options) {
  return {.max_batch = options.max_batch,
          .max_chunk = std::min(options.prefill_chunk, options.max_seq_len),
          .max_seq_len = options.max_seq_len,
          .cache_format = options.cache_format,
          .scale_rule = options.scale_rule,
          .deterministic = options.deterministic};
}

EngineLoop::EngineLoop(const EngineOptions& options, std::unique_ptr<Model> model, Tokenizer tokenizer)
    : options_(options),
      tokenizer_(std::move(tokenizer)),
      stream_(*options.backend),
      model_(std::move(model)),
      pools_(allocate_pools(options, model_->config().num_layers)),
      caches_(view_pools(options, pools_)),
      sampler_(*options.backend, options.max_batch),
      prompt_sampler_(*options.backend, 1),
      scheduler_({.num_pages = options.num_pages,
                  .max_batch = options.max_batch,
                  .prefix_caching = options.enable_prefix_caching}) {}

RequestId EngineLoop::submit(const Request& given) {
  Request request = given;
  SNAPMLA_REQUIRE(request.max_tokens >= 1, "submit", "max_tokens must be at least 1; got ",
                  request.max_tokens);
  check_sampling(request.sampling);
  for (std::size_t i = 0; i < request.stop.size(); ++i) {
    SNAPMLA_REQUIRE(!request.stop[i].empty() && replace_invalid_utf8(request.stop[i]) == request.stop[i],
                    "submit", "stop[", i, "] must be UTF-8 text that is not empty; got ",
                    request.stop[i].size(), " bytes");
  }
  if (request.prompt_tokens.empty()) request.prompt_tokens = tokenizer_.encode(request.prompt);
  SNAPMLA_REQUIRE(!request.prompt_tokens.empty(), "submit", "prompt must have at least one token; got none");
  check_ids("prompt_tokens", request.prompt_tokens, config().vocab);
  check_ids("forced_tokens", request.forced_tokens, config().vocab);
  SNAPMLA_REQUIRE(request.prompt_tokens.size() < static_cast<std::size_t>(options_.max_seq_len), "submit",
                  "prompt must leave room for one token in max_seq_len of ", options_.max_seq_len, "; got ",
                  request.prompt_tokens.size(), " tokens");

  const auto num_prompt = static_cast<int>(request.prompt_tokens.size());
  request.max_tokens = std::min(request.max_tokens, options_.max_seq_len - num_prompt);
  // The last generated token is never fed back, so it takes no room in the cache.
  const int max_cached = num_prompt + request.max_tokens - 1;
  if (!scheduler_.can_ever_run(max_cached)) {
    fail(ErrorCode::kOutOfMemory, "submit", "a request must fit in the cache of ", options_.num_pages,
         " pages of ", kPageTokens, " tokens; got ", num_prompt, " prompt and ", request.max_tokens,
         " generated tokens at most, which take ", pages_for(max_cached), " pages");
  }
  TextStream text(tokenizer_, request.stop);
  const RequestId id = ++newest_;
  const Sequence& sequence =
      sequences_.emplace(id, Sequence{.request = std::move(request), .text = std::move(text)}).first->second;
  scheduler_.add(id, sequence.request.prompt_tokens, max_cached);
  return id;
}

bool EngineLoop::cancel(RequestId request) {
  const auto it = sequences_.find(request);
  if (it == sequences_.end()) return false;
  events_.push_back(
      {.request = request, .text = it->second.text.finish(), .finish = FinishReason::kCancelled});
  if (it->second.scheduled) scheduler_.remove(request);
  sequences_.erase(it);
  return true;
}

std::vector<TokenEvent> EngineLoop::step() {
  const bool overlap = options_.backend->supports_graphs();
  // What an earlier step failed to land comes first.
  while (flights_.size() > 1) land();
  std::vector<DecodeRow> rows = scheduler_.next_decode();
  const bool launches = !rows.empty();
  if (launches) launch(std::move(rows));
  while (flights_.size() > (overlap && launches ? 1U : 0U)) land();
  for (int left = model_limits(options_).max_chunk; left > 0;) {
    const std::optional<PrefillStep> chunk = scheduler_.next_prefill(left);
    if (!chunk) break;
    prefill(*chunk);
    left -= chunk->num_tokens;
  }
  std::stable_sort(events_.begin(), events_.end(),
                   [](const TokenEvent& a, const TokenEvent& b) { return a.request < b.request; });
  return std::exchange(events_, {});
}

void EngineLoop::prefill(const PrefillStep& step) {
  const Timer timer(stats_.prefill_seconds);
  const Sequence& sequence = sequences_.at(step.request);
  const std::vector<std::int32_t>& pages = scheduler_.pages(step.request);
  if (step.copy_from != PagePool::kNoPage) {
    copy_page(step.copy_from, pages[static_cast<std::size_t>(step.start / kPageTokens)]);
  }
  const auto first = sequence.request.prompt_tokens.begin() + step.start;
  model_->prefill({.tokens = {first, first + step.num_tokens}, .start = step.start, .pages = pages}, caches_,
                  step.wants_token, stream_.get());
  std::vector<Chosen> chosen;
  if (step.wants_token)
    chosen = prompt_sampler_.choose(model_->logits(), {next_choice(sequence)}, stream_.get());
  scheduler_.prefilled(step);
  stats_.prompt_tokens += step.num_tokens;
  if (step.wants_token) record(step.request, std::move(chosen.front()));
}

void EngineLoop::copy_page(std::int32_t from, std::int32_t to) {
  const std::int64_t bytes = page_bytes(options_.cache_format);
  for (const DeviceBuffer& pool : pools_) {
    options_.backend->copy(static_cast<std::byte*>(pool.data()) + to * bytes,
                           static_cast<const std::byte*>(pool.data()) + from * bytes, bytes,
                           CopyKind::kDeviceToDevice, stream_.get());
  }
}

void EngineLoop::launch(std::vector<DecodeRow> rows) {
  const Timer timer(stats_.decode_seconds);
  std::vector<Choice> choices;
  for (const DecodeRow& row : rows) {  // those that want a token come first
    if (row.wants_token) choices.push_back(next_choice(sequences_.at(row.request)));
  }
  model_->decode(make_batch(rows), caches_, stream_.get());
  if (!choices.empty()) sampler_.enqueue(model_->logits(), choices, stream_.get());

  ++stats_.decode_steps;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    scheduler_.decoded(rows[i]);
    if (!rows[i].wants_token) {
      ++stats_.replayed_tokens;
      continue;
    }
    Sequence& sequence = sequences_.at(rows[i].request);
    sequence.flight_row = static_cast<int>(i);
    ++sequence.num_in_flight;
    if (static_cast<int>(sequence.num_chosen()) == sequence.request.max_tokens) {
      scheduler_.remove(rows[i].request);
      sequence.scheduled = false;
    }
  }
  flights_.push_back({.rows = std::move(rows), .wants_tokens = !choices.empty()});
}

void EngineLoop::land() {
  const Timer timer(stats_.decode_seconds);
  std::vector<Chosen> chosen;
  if (flights_.front().wants_tokens) chosen = sampler_.collect();
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const auto it = sequences_.find(flight.rows[i].request);
    if (it == sequences_.end()) continue;  // cancelled, or ended by the step ahead
    --it->second.num_in_flight;
    record(flight.rows[i].request, std::move(chosen[i]));
  }
}

DecodeBatch EngineLoop::make_batch(const std::vector<DecodeRow>& rows) const {
  DecodeBatch batch;
  for (const DecodeRow& row : rows) {
    const Sequence& sequence = sequences_.at(row.request);
    const std::size_t generated_idx =
        static_cast<std::size_t>(row.position) - sequence.request.prompt_tokens.size();
    const bool known = generated_idx < sequence.generated.size();
    SNAPMLA_ASSERT(known || (generated_idx == sequence.generated.size() && sequence.num_in_flight == 1));
    batch.tokens.push_back(known ? sequence.generated[generated_idx] : -1 - sequence.flight_row);
    if (!known) batch.sampled = sampler_.tokens();
    batch.seq_lens.push_back(row.position + 1);
    batch.max_pages = std::max(batch.max_pages, static_cast<int>(pages_for(row.position + 1)));
  }
  batch.block_table.assign(rows.size() * static_cast<std::size_t>(batch.max_pages), -1);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::vector<std::int32_t>& pages = scheduler_.pages(rows[i].request);
    const std::int64_t num_pages = pages_for(batch.seq_lens[i]);
    SNAPMLA_ASSERT(num_pages <= static_cast<std::int64_t>(pages.size()));
    std::copy_n(pages.begin(), num_pages,
                batch.block_table.begin() + static_cast<std::ptrdiff_t>(i) * batch.max_pages);
  }
  return batch;
}

Choice EngineLoop::next_choice(const Sequence& sequence) const {
  const std::vector<std::int32_t>& forced = sequence.request.forced_tokens;
  const std::size_t token_idx = sequence.num_chosen();
  return {.sampling = sequence.request.sampling,
          .token_idx = static_cast<std::int64_t>(token_idx),
          .forced = token_idx < forced.size() ? forced[token_idx] : -1,
          .return_logits = sequence.request.return_logits};
}

void EngineLoop::record(RequestId request, Chosen chosen) {
  SNAPMLA_ASSERT(chosen.token >= 0 && chosen.token < config().vocab);
  Sequence& sequence = sequences_.at(request);
  sequence.generated.push_back(chosen.token);
  ++stats_.generated_tokens;

  const std::vector<std::int32_t>& stops = config().stop_tokens;
  const bool is_stop_token =
      !sequence.request.ignore_eos && std::find(stops.begin(), stops.end(), chosen.token) != stops.end();
  TokenEvent event{.request = request,
                   .token = chosen.token,
                   .logprob = chosen.logprob,
                   .logits = std::move(chosen.logits)};
  if (!is_stop_token) event.text = sequence.text.push(chosen.token);
  if (is_stop_token || sequence.text.stopped()) {
    event.finish = FinishReason::kStop;
  } else if (std::ssize(sequence.generated) == sequence.request.max_tokens) {
    event.finish = FinishReason::kLength;
  }
  if (event.finish != FinishReason::kNone) {
    event.text += sequence.text.finish();
    if (sequence.scheduled) scheduler_.remove(request);
    sequences_.erase(request);
  }
  events_.push_back(std::move(event));
}

EngineStats EngineLoop::stats() const {
  EngineStats stats = stats_;
  stats.parameters = model_->num_parameters();
  stats.fp8_parameters = model_->num_fp8_parameters();
  stats.weight_bytes = model_->weight_bytes();
  stats.pages_total = scheduler_.pool().num_total();
  stats.pages_in_use = scheduler_.pool().num_held();
  stats.pages_kept = scheduler_.pool().num_kept();
  stats.prefix_tokens = scheduler_.num_tokens_found();
  stats.preemptions = scheduler_.num_preemptions();
  stats.running = scheduler_.num_running();
  stats.waiting = scheduler_.num_waiting();
  return stats;
}

CacheView EngineLoop::cache(int layer) const {
  SNAPMLA_REQUIRE(layer >= 0 && layer < config().num_layers, "engine", "layer must be from 0 to ",
                  config().num_layers - 1, "; got ", layer);
  return caches_[static_cast<std::size_t>(layer)];
}

}  // namespace snapmla
