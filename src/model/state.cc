#include "model/state.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "model/position_tables.h"

namespace snapmla {
namespace {

// Deterministic: a request is cut every so many tokens, whatever else is in its batch. Its results then depend on itself alone.
constexpr int kSplitTokens = 512;

int pages_for(int tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

PlanShape plan_shape(const Backend& backend, const ModelLimits& limits, int batch, std::int64_t heads) {
  return make_plan_shape(backend, {.batch = batch,
                                   .max_seq_len = limits.max_seq_len,
                                   .rows = static_cast<int>(heads),
                                   .fixed_split_tokens = limits.deterministic ? kSplitTokens : 0});
}

void check_token(std::int32_t token, int vocab) {
  SNAPMLA_REQUIRE(token >= 0 && token < vocab, "model", "tokens must be in [0, vocab_size=", vocab, "); got ",
                  token);
}

void check_cache(const CacheView& cache, const ModelLimits& limits) {
  constexpr std::int64_t kMostPages = std::numeric_limits<std::int32_t>::max() / kPageTokens;
  SNAPMLA_REQUIRE(cache.format == limits.cache_format, "model", "cache must be ",
                  to_string(limits.cache_format), "; got ", to_string(cache.format));
  SNAPMLA_REQUIRE(cache.num_pages <= kMostPages, "model", "cache must have at most ", kMostPages,
                  " pages (slots are int32); got ", cache.num_pages);
}

std::int32_t slot_of(std::int32_t page, int position, const CacheView& cache) {
  SNAPMLA_REQUIRE(page >= 0 && page < cache.num_pages, "model", "pages must be in [0, ", cache.num_pages,
                  "); got ", page, " for position ", position);
  return page * kPageTokens + position % kPageTokens;
}

}  // namespace

TensorView first_rows(const TensorView& view, std::int64_t n) {
  SNAPMLA_ASSERT(n <= view.dim(0));
  switch (view.rank()) {
    case 1:
      return {view.data(), view.dtype(), {n}};
    case 2:
      return {view.data(), view.dtype(), {n, view.dim(1)}};
    case 3:
      return {view.data(), view.dtype(), {n, view.dim(1), view.dim(2)}};
    default:
      return {view.data(), view.dtype(), {n, view.dim(1), view.dim(2), view.dim(3)}};
  }
}

ModelState::ModelState(Backend& backend, const ModelConfig& config, const ModelLimits& limits)
    : backend_(&backend), limits_(limits), vocab_(config.vocab), max_pages_(pages_for(limits.max_seq_len)) {
  const std::int64_t rows = std::max(limits.max_chunk, limits.max_batch);
  x = make(DType::kBF16, {rows, config.hidden});
  normed = make(DType::kBF16, {rows, config.hidden});
  if (config.q_lora > 0) {
    q_low = make(DType::kBF16, {rows, config.q_lora});
    q_low_normed = make(DType::kBF16, {rows, config.q_lora});
  }
  q = make(DType::kBF16, {rows, config.heads, config.nope_dim + kRopeDim});
  kv = make(DType::kBF16, {rows, kTokenDim});
  attended = make(DType::kBF16, {rows, config.heads, config.v_dim});
  branch = make(DType::kBF16, {rows, config.hidden});
  const std::int64_t shared = std::int64_t{config.num_shared_experts} * config.moe_intermediate;
  const std::int64_t widest = std::max<std::int64_t>(config.intermediate, shared);
  if (widest > 0) {
    gate = make(DType::kBF16, {rows * widest});
    up = make(DType::kBF16, {rows * widest});
  }
  if (config.num_experts > 0) {
    router_logits = make(DType::kF32, {rows, config.num_experts + config.num_zero_experts});
    expert = make(DType::kI32, {rows, config.top_k});
    expert_weight = make(DType::kF32, {rows, config.top_k});
    expert_out = make(DType::kBF16, {rows, config.hidden});
    expert_workspace =
        make(DType::kU8,
             {backend.plain_ops().experts_workspace_bytes(static_cast<int>(rows), config.top_k, config.hidden,
                                                          config.moe_intermediate, config.num_experts)});
  }
  if (limits.max_chunk > 0) {
    latent = make(DType::kBF16, {limits.max_seq_len, kLatentDim});
    rope = make(DType::kBF16, {limits.max_seq_len, kRopeDim});
    k_nope = make(DType::kBF16, {limits.max_seq_len, config.heads, config.nope_dim});
    v = make(DType::kBF16, {limits.max_seq_len, config.heads, config.v_dim});
  }
  make_decode_buffers(config);

  cos_sin = make(rope_table(config, limits.max_seq_len), {limits.max_seq_len, kRopeDim});
  const std::vector<float> growth = query_growth_table(config, limits.max_seq_len);
  if (!growth.empty()) query_growth = make(growth, {limits.max_seq_len});

  at_.positions = rows;
  at_.slots = 2 * rows;
  at_.seq_lens = 3 * rows;
  at_.starts = at_.seq_lens + limits.max_batch;
  at_.offsets = at_.starts + 1;
  at_.block_table = at_.offsets + 2;
  at_.total = at_.block_table + std::int64_t{limits.max_batch} * max_pages_;
  for (auto& ints : host_ints_) ints = std::make_unique<Staging>(backend, at_.total * size_of(DType::kI32));
  device_ints_ = make(DType::kI32, {at_.total});
}

void ModelState::make_decode_buffers(const ModelConfig& config) {
  const std::int64_t batch = limits_.max_batch;
  q_latent = make(DType::kBF16, {batch, config.heads, kLatentDim});
  if (limits_.cache_format == CacheFormat::kFp8) {
    q_latent_fp8 = make(DType::kE4M3, {batch, 1, config.heads, kLatentDim});
    q_scale = make(DType::kF32, {batch, 1, config.heads});
  }
  q_rope = make(DType::kBF16, {batch, 1, config.heads, kRopeDim});
  out_latent = make(DType::kBF16, {batch, 1, config.heads, kLatentDim});
  lse = make(DType::kF32, {batch, 1, config.heads});
  logits = make(DType::kF32, {batch, config.vocab});
  const PlanShape shape = plan_shape(*backend_, limits_, limits_.max_batch, config.heads);
  work_items_ = make(DType::kI32, {shape.max_items, 4});
  worker_offsets_ = make(DType::kI32, {shape.num_workers + 1});
  split_offsets_ = make(DType::kI32, {shape.batch + 1});
  workspace = make(DType::kU8, {decode_workspace_bytes(*backend_, shape, 1, config.heads)});
}

TensorView ModelState::make(DType dtype, std::initializer_list<std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return {buffers_.emplace_back(*backend_, count * size_of(dtype)).data(), dtype, shape};
}

TensorView ModelState::make(const std::vector<float>& table, std::initializer_list<std::int64_t> shape) {
  const TensorView view = make(DType::kF32, shape);
  backend_->copy(view.data(), table.data(), static_cast<std::int64_t>(table.size() * sizeof(float)),
                 CopyKind::kHostToDevice, Stream{});
  backend_->synchronize(Stream{});
  return view;
}

TensorView ModelState::device(std::int64_t offset, std::int64_t n) const {
  return {device_ints_.as<std::int32_t>() + offset, DType::kI32, {n}};
}

void ModelState::begin_ints() {
  turn_ = 1 - turn_;
  host_ints_[turn_]->wait();
}

void ModelState::copy_ints(int block_table_rows, Stream stream) {
  const std::int64_t used = at_.block_table + std::int64_t{block_table_rows} * max_pages_;
  host_ints_[turn_]->to_device(device_ints_.data(), used * size_of(DType::kI32), stream);
}

PlanView ModelState::plan_view(const Backend& backend, int batch) const {
  const PlanShape shape = plan_shape(backend, limits_, batch, q_latent.dim(1));
  return {.shape = shape,
          .work_items = first_rows(work_items_, shape.max_items),
          .worker_offsets = worker_offsets_,
          .split_offsets = first_rows(split_offsets_, batch + 1)};
}

Step ModelState::upload(const PrefillChunk& chunk, const CacheView& cache, Stream stream) {
  check_cache(cache, limits_);
  SNAPMLA_REQUIRE(
      !chunk.tokens.empty() && static_cast<std::int64_t>(chunk.tokens.size()) <= limits_.max_chunk, "prefill",
      "a chunk must have 1 to max_chunk=", limits_.max_chunk, " tokens; got ", chunk.tokens.size());
  const auto rows = static_cast<int>(chunk.tokens.size());
  SNAPMLA_REQUIRE(chunk.start >= 0 && chunk.start <= limits_.max_seq_len - rows, "prefill",
                  "a chunk must end within max_seq_len=", limits_.max_seq_len, "; got start ", chunk.start,
                  " and ", rows, " tokens");
  begin_ints();
  const int context = chunk.start + rows;
  const int pages = pages_for(context);
  SNAPMLA_REQUIRE(chunk.pages.size() >= static_cast<std::size_t>(pages), "prefill", "pages must hold ",
                  context, " tokens, ", pages, " pages; got ", chunk.pages.size());
  for (int i = 0; i < rows; ++i) {
    const int position = chunk.start + i;
    const std::int32_t token = chunk.tokens[static_cast<std::size_t>(i)];
    check_token(token, vocab_);
    host(at_.tokens)[i] = token;
    host(at_.positions)[i] = position;
    host(at_.slots)[i] =
        slot_of(chunk.pages[static_cast<std::size_t>(position / kPageTokens)], position, cache);
  }
  host(at_.starts)[0] = 0;
  host(at_.offsets)[0] = 0;
  host(at_.offsets)[1] = context;
  std::copy_n(chunk.pages.begin(), pages, host(at_.block_table));
  copy_ints(1, stream);
  const auto* table = device_ints_.as<std::int32_t>() + at_.block_table;
  return {.rows = rows,
          .context = context,
          .tokens = device(at_.tokens, rows),
          .positions = device(at_.positions, rows),
          .slots = device(at_.slots, rows),
          .block_table = ConstTensorView(table, DType::kI32, {1, max_pages_}),
          .seq_lens = {},
          .starts = device(at_.starts, 1),
          .offsets = device(at_.offsets, 2)};
}

Step ModelState::upload(const DecodeBatch& batch, const CacheView& cache, int rows, Stream stream) {
  check_cache(cache, limits_);
  SNAPMLA_REQUIRE(
      !batch.tokens.empty() && static_cast<std::int64_t>(batch.tokens.size()) <= limits_.max_batch, "decode",
      "a batch must have 1 to max_batch=", limits_.max_batch, " requests; got ", batch.tokens.size());
  const auto used = static_cast<int>(batch.tokens.size());
  SNAPMLA_ASSERT(rows >= used && rows <= limits_.max_batch);
  SNAPMLA_REQUIRE(
      batch.seq_lens.size() == batch.tokens.size() && batch.max_pages >= 0 &&
          batch.block_table.size() == batch.tokens.size() * static_cast<std::size_t>(batch.max_pages),
      "decode", "seq_lens must be [", used, "] and block_table [", used, ", max_pages=", batch.max_pages,
      "]; got ", batch.seq_lens.size(), " and ", batch.block_table.size(), " entries");
  begin_ints();
  const std::int64_t num_sampled = batch.sampled.present() ? batch.sampled.dim(0) : 0;
  for (int i = 0; i < used; ++i) {
    const std::int32_t token = batch.tokens[static_cast<std::size_t>(i)];
    const int seq_len = batch.seq_lens[static_cast<std::size_t>(i)];
    if (token >= 0 || -1 - std::int64_t{token} >= num_sampled) check_token(token, vocab_);
    SNAPMLA_REQUIRE(seq_len >= 1 && seq_len <= limits_.max_seq_len, "decode",
                    "seq_lens must be 1 to max_seq_len=", limits_.max_seq_len, "; got ", seq_len);
    const int pages = pages_for(seq_len);
    SNAPMLA_REQUIRE(pages <= batch.max_pages, "decode", "block_table must have ", pages,
                    " pages a request for seq_len ", seq_len, "; got ", batch.max_pages);
    const auto row = batch.block_table.begin() + std::int64_t{i} * batch.max_pages;
    host(at_.tokens)[i] = token;
    host(at_.positions)[i] = seq_len - 1;
    host(at_.slots)[i] = slot_of(row[pages - 1], seq_len - 1, cache);
    host(at_.seq_lens)[i] = seq_len;
    std::copy_n(row, pages, host(at_.block_table + std::int64_t{i} * max_pages_));
  }
  for (int i = used; i < rows; ++i) {  // no request: nothing is cached and nothing attended to
    host(at_.tokens)[i] = 0;
    host(at_.positions)[i] = 0;
    host(at_.slots)[i] = -1;
    host(at_.seq_lens)[i] = 0;
  }
  copy_ints(used, stream);
  const auto* table = device_ints_.as<std::int32_t>() + at_.block_table;
  return {.rows = rows,
          .context = 0,
          .tokens = device(at_.tokens, rows),
          .positions = device(at_.positions, rows),
          .slots = device(at_.slots, rows),
          .block_table = ConstTensorView(table, DType::kI32, {rows, max_pages_}),
          .seq_lens = device(at_.seq_lens, rows),
          .starts = {},
          .offsets = {}};
}

}  // namespace snapmla
