#include "study/record.h"

#include <algorithm>
#include <cstring>

#include "bench/forwarding_backend.h"
#include "core/check.h"
#include "engine/tokenizer.h"
#include "model/config.h"
#include "snapmla/engine.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

/// Copies what decode() reads: the queries of every step, the cached tokens of the last one. Batch 1, one
/// query token, BF16 pages.
class RecordingBackend final : public ForwardingBackend {
 public:
  explicit RecordingBackend(Backend& inner) : ForwardingBackend(inner) {}

  /// Forgets what was recorded; the next `num_steps` decode steps are.
  void start(int num_steps) {
    layers_.clear();
    num_steps_ = num_steps;
    step_ = -1;
  }
  [[nodiscard]] std::vector<AttentionRows> take() { return std::move(layers_); }

  /// Recorded calls must run as they are made.
  [[nodiscard]] bool supports_graphs() const override { return false; }

  void do_plan(const PlanParams& params, Stream stream) override {
    ForwardingBackend::do_plan(params, stream);
    ++step_;
    layer_ = 0;
  }

  void do_decode(const DecodeParams& params, Stream stream) override {
    ForwardingBackend::do_decode(params, stream);
    SNAPMLA_ASSERT(params.q_latent.dim(0) == 1 && params.q_latent.dim(1) == 1 &&
                   params.cache.format == CacheFormat::kBf16);
    if (layer_ == layers_.size()) {
      layers_.push_back({.layer = static_cast<int>(layer_),
                         .softmax_scale = params.softmax_scale,
                         .heads = static_cast<int>(params.q_latent.dim(2))});
    }
    AttentionRows& rows = layers_[layer_++];
    std::int32_t tokens = 0;
    copy(&tokens, params.seq_lens.data(), sizeof tokens, CopyKind::kDeviceToHost, stream);
    for (std::int64_t head = 0; head < rows.heads; ++head) {
      append(params.q_latent, head, kLatentDim, stream, rows.queries);
      append(params.q_rope, head, kRopeDim, stream, rows.queries);
    }
    synchronize(stream);
    rows.sees.push_back(tokens);
    if (step_ + 1 == num_steps_) rows.keys = keys(params, tokens, stream);
  }

 private:
  /// Head `head` of a query [1, 1, heads, width].
  void append(const ConstTensorView& query, std::int64_t head, std::int64_t width, Stream stream,
              std::vector<Bf16>& to) {
    std::vector<Bf16> row(static_cast<std::size_t>(width));
    copy(row.data(), query.as<Bf16>() + head * query.stride(2), width * 2, CopyKind::kDeviceToHost, stream);
    synchronize(stream);
    to.insert(to.end(), row.begin(), row.end());
  }

  /// Tokens 0 .. tokens - 1, [tokens, 576]. A row of a BF16 page is latent, then rope.
  std::vector<Bf16> keys(const DecodeParams& params, std::int32_t tokens, Stream stream) {
    const CachePlane& plane = params.cache.latent;
    SNAPMLA_ASSERT(plane.row_stride == token_bytes(CacheFormat::kBf16));
    const std::int32_t pages = (tokens + kPageTokens - 1) / kPageTokens;
    std::vector<std::int32_t> table(static_cast<std::size_t>(pages));
    copy(table.data(), params.block_table.data(), std::int64_t{4} * pages, CopyKind::kDeviceToHost, stream);
    synchronize(stream);
    std::vector<Bf16> rows(static_cast<std::size_t>(pages) * kPageTokens * kTokenDim);
    for (std::size_t page = 0; page < table.size(); ++page) {
      copy(rows.data() + page * kPageTokens * kTokenDim,
           static_cast<std::byte*>(plane.data) + table[page] * plane.page_stride,
           kPageTokens * plane.row_stride, CopyKind::kDeviceToHost, stream);
    }
    synchronize(stream);
    rows.resize(static_cast<std::size_t>(tokens) * kTokenDim);
    return rows;
  }

  std::vector<AttentionRows> layers_;
  std::size_t layer_ = 0;
  int num_steps_ = 0;
  int step_ = -1;
};

/// Decodes the last `steps` of `tokens`, teacher-forced, and returns what the layers saw.
std::vector<AttentionRows> record(Engine& engine, RecordingBackend& backend,
                                  const std::vector<std::int32_t>& tokens, int steps) {
  const auto split = tokens.end() - steps;
  backend.start(steps);
  engine.submit({.prompt_tokens = {tokens.begin(), split},
                 .max_tokens = steps + 1,
                 .ignore_eos = true,
                 .forced_tokens = {split, tokens.end()}});
  while (!engine.idle()) {
    stop_if_asked();
    engine.step();
  }
  return backend.take();
}

}  // namespace

Recording record_activations(const RecordOptions& options) {
  constexpr int kCalibrationTokens = 1024;
  const int longest = *std::max_element(options.lengths.begin(), options.lengths.end());
  RecordingBackend backend(*options.backend);
  Engine engine({.model_dir = options.model_dir,
                 .backend = &backend,
                 .cache_format = CacheFormat::kBf16,
                 .max_seq_len = std::max(longest, kCalibrationTokens) + 1,
                 .max_batch = 1});
  const std::vector<std::int32_t> tokens = engine.tokenizer().encode(options.text);
  const auto needed = static_cast<std::size_t>(longest) + kCalibrationTokens;
  SNAPMLA_REQUIRE(tokens.size() >= needed, "study", "the text must have at least ", needed,
                  " tokens for a length of ", longest, "; got ", tokens.size());

  Recording recording;
  for (const AttentionRows& layer :
       record(engine, backend, {tokens.end() - kCalibrationTokens, tokens.end()}, 1)) {
    const std::vector<float> keys = widen(layer.keys);
    recording.calibration.push_back(calibrate(keys.data(), static_cast<std::size_t>(layer.num_tokens())));
  }
  for (const int length : options.lengths) {
    for (AttentionRows& layer :
         record(engine, backend, {tokens.begin(), tokens.begin() + length}, options.steps)) {
      layer.source = "model";
      recording.rows.push_back(std::move(layer));
    }
  }
  return recording;
}

}  // namespace snapmla::apps
