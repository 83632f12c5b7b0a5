// A model without weights for tests of the engine: its logits are a hash of the token ids and positions it
// finds in the cache, which it alone writes, and of which pass wrote them, prefill or decode. So a page of
// someone else's, a token at a wrong place, a chunk that was left out, or a generated token that was
// prefilled changes the text. Runs on host memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "engine/byte_bpe.h"
#include "engine/engine_loop.h"
#include "engine/metered_backend.h"
#include "engine/tokenizer.h"
#include "model/model.h"
#include "support/temp_dir.h"

namespace snapmla::testing {

inline constexpr int kBos = 256;
inline constexpr int kEos = 257;
inline constexpr int kFakeVocab = 260;  ///< 256 bytes, BOS, EOS, and two ids the tokenizer does not know

/// A tokenizer with one token a byte, id = byte. BOS and EOS are special; no post-processor.
inline std::string byte_tokenizer_json() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[bytes_token(std::string(1, static_cast<char>(byte)))] = byte;
  const auto special = [](int id, const char* content) {
    return nlohmann::json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                          {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  const nlohmann::json file = {
      {"version", "1.0"},
      {"added_tokens", {special(kBos, "<bos>"), special(kEos, "<eos>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  return file.dump();
}

inline Tokenizer byte_tokenizer() {
  const TempDir dir;
  write_file(dir.file("tokenizer.json"), byte_tokenizer_json());
  return Tokenizer::load(dir.path());
}

inline ModelConfig fake_config() {
  ModelConfig config;
  config.num_layers = 2;
  config.vocab = kFakeVocab;
  config.max_position = 2048;
  config.stop_tokens = {kEos};
  return config;
}

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15U;
  return hash ^ (hash >> 29U);
}

/// The logits after these marks, one a token: its id, and kDecoded more if a decode step wrote it.
inline constexpr std::int32_t kDecoded = 1 << 20;
inline std::vector<float> logits_of_marks(const std::vector<std::int32_t>& marks) {
  std::uint64_t hash = 1;
  for (const std::int32_t mark : marks) hash = mix(hash, static_cast<std::uint64_t>(mark));
  std::vector<float> logits(kFakeVocab);
  for (std::size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>(mix(hash, i + 1) >> 40U) * 0x1p-21F;  // [0, 8)
  return logits;
}

/// The logits after these tokens, of which the first num_prompt are the prompt.
inline std::vector<float> fake_logits(std::vector<std::int32_t> tokens, std::size_t num_prompt) {
  for (std::size_t i = num_prompt; i < tokens.size(); ++i) tokens[i] += kDecoded;
  return logits_of_marks(tokens);
}

/// What the engine asked of a FakeModel; outlives it.
struct FakeLog {
  int fail_in = -1;  ///< calls from now until one throws; -1: none does
  bool record = true;
  std::vector<int> chunks{};
  std::vector<int> batches{};
};

class FakeModel : public Model {
 public:
  FakeModel(const ModelLimits& limits, std::shared_ptr<FakeLog> log)
      : config_(fake_config()),
        limits_(limits),
        log_(std::move(log)),
        logits_(static_cast<std::size_t>(limits.max_batch) * kFakeVocab) {}

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] const ModelLimits& limits() const override { return limits_; }
  [[nodiscard]] std::int64_t num_parameters() const override { return 0; }
  [[nodiscard]] std::int64_t num_fp8_parameters() const override { return 0; }
  [[nodiscard]] std::int64_t weight_bytes() const override { return 0; }
  [[nodiscard]] TensorView logits() const override {
    return {logits_.data(), DType::kF32, {limits_.max_batch, kFakeVocab}};
  }

  void prefill(const PrefillChunk& chunk, const std::vector<CacheView>& cache, bool want_logits,
               Stream) override {
    const auto num_tokens = static_cast<int>(chunk.tokens.size());
    SNAPMLA_ASSERT(num_tokens >= 1 && num_tokens <= limits_.max_chunk);
    if (log_->record) log_->chunks.push_back(num_tokens);
    for (int i = 0; i < num_tokens; ++i) {
      write(cache, chunk.pages, {chunk.tokens[static_cast<std::size_t>(i)], chunk.start + i});
      maybe_fail();
    }
    if (want_logits) answer(cache, chunk.pages, chunk.start + num_tokens, 0);
  }

  void decode(const DecodeBatch& batch, const std::vector<CacheView>& cache, Stream) override {
    const std::size_t rows = batch.tokens.size();
    SNAPMLA_ASSERT(rows >= 1 && rows <= static_cast<std::size_t>(limits_.max_batch));
    SNAPMLA_ASSERT(batch.seq_lens.size() == rows);
    SNAPMLA_ASSERT(batch.block_table.size() == rows * static_cast<std::size_t>(batch.max_pages));
    if (log_->record) log_->batches.push_back(static_cast<int>(rows));
    for (std::size_t i = 0; i < rows; ++i) {
      const auto row = batch.block_table.begin() + static_cast<std::ptrdiff_t>(i) * batch.max_pages;
      const std::vector<std::int32_t> pages(row, row + batch.max_pages);
      const std::int32_t token = batch.tokens[i];
      const std::int32_t known = token >= 0 ? token : batch.sampled.as<std::int32_t>()[-1 - token];
      write(cache, pages, {known + kDecoded, batch.seq_lens[i] - 1});
      maybe_fail();
      answer(cache, pages, batch.seq_lens[i], i);
    }
  }

 private:
  struct Cell {
    std::int32_t mark = 0;
    std::int32_t position = 0;
  };

  static std::byte* cell_of(const CacheView& view, const std::vector<std::int32_t>& pages, int position) {
    const std::int32_t page = pages.at(static_cast<std::size_t>(position / kPageTokens));
    SNAPMLA_ASSERT(page >= 0 && page < view.num_pages);
    return static_cast<std::byte*>(view.latent.data) + page * view.latent.page_stride +
           position % kPageTokens * view.latent.row_stride;
  }

  static void write(const std::vector<CacheView>& cache, const std::vector<std::int32_t>& pages,
                    const Cell& cell) {
    for (const CacheView& view : cache) std::memcpy(cell_of(view, pages, cell.position), &cell, sizeof cell);
  }

  void answer(const std::vector<CacheView>& cache, const std::vector<std::int32_t>& pages, int seq_len,
              std::size_t row) {
    std::vector<std::int32_t> marks;
    for (int position = 0; position < seq_len; ++position) {
      Cell cell;
      std::memcpy(&cell, cell_of(cache.front(), pages, position), sizeof cell);
      Cell last;
      std::memcpy(&last, cell_of(cache.back(), pages, position), sizeof last);
      const bool right = cell.position == position && last.position == position && last.mark == cell.mark;
      marks.push_back(right ? cell.mark : -1000 - position);
    }
    const std::vector<float> result = logits_of_marks(marks);
    std::copy(result.begin(), result.end(), logits_.begin() + static_cast<std::ptrdiff_t>(row) * kFakeVocab);
  }

  void maybe_fail() {
    if (log_->fail_in >= 0 && log_->fail_in-- == 0) fail(ErrorCode::kDevice, "fake", "made to fail");
  }

  ModelConfig config_;
  ModelLimits limits_;
  std::shared_ptr<FakeLog> log_;
  mutable std::vector<float> logits_;
};

/// The reference backend under the pretence that it works on its own, so that the engine enqueues a step ahead.
class AheadBackend final : public MeteredBackend {
 public:
  AheadBackend() : MeteredBackend(std::int64_t{1} << 40) {}
  [[nodiscard]] bool supports_graphs() const override { return true; }
};

inline Backend& ahead() {
  static AheadBackend backend;
  return backend;
}

inline EngineLoop fake_engine(EngineOptions options, std::shared_ptr<FakeLog> log = nullptr) {
  if (options.backend == nullptr) options.backend = &reference();
  const EngineOptions completed = complete_options(options, fake_config());
  if (log == nullptr) log = std::make_shared<FakeLog>();
  return {completed, std::make_unique<FakeModel>(model_limits(completed), std::move(log)), byte_tokenizer()};
}

}  // namespace snapmla::testing
