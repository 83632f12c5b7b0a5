// Drives a Model over a paged cache of its own, on any backend: pages in a scattered order, every unused byte NaN.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device_buffer.h"
#include "core/owned_stream.h"
#include "model/model.h"

namespace snapmla::testing {

/// One request: its pages and how many tokens are cached.
struct Sequence {
  std::vector<std::int32_t> pages;
  int length = 0;
};

class ModelRunner {
 public:
  using Logits = std::vector<float>;

  /// `backend`: the model's.
  ModelRunner(std::unique_ptr<Model> model, int num_pages, Backend& backend = reference())
      : backend_(backend), stream_(backend), model_(std::move(model)) {
    const CacheFormat format = model_->limits().cache_format;
    const std::int64_t bytes = num_pages * page_bytes(format);
    for (int layer = 0; layer < model_->config().num_layers; ++layer) {
      DeviceBuffer& pool = pools_.emplace_back(backend_, bytes);
      const std::vector<std::uint8_t> nan(static_cast<std::size_t>(bytes), 0xff);
      backend_.copy(pool.data(), nan.data(), bytes, CopyKind::kHostToDevice, stream_.get());
      backend_.synchronize(stream_.get());
      views_.push_back(make_cache_view(format, pool.data(), num_pages));
    }
    // Every second page from the last down, then the others: neighbours in a request are not in memory.
    for (int page = num_pages - 1; page >= 0; page -= 2) free_.push_back(page);
    for (int page = num_pages - 2; page >= 0; page -= 2) free_.push_back(page);
  }

  [[nodiscard]] Model& model() { return *model_; }
  [[nodiscard]] std::vector<CacheView>& cache() { return views_; }

  /// Writes `tokens` behind what the sequence has, `chunk` at a time; the last token's logits.
  Logits prefill(Sequence& sequence, const std::vector<std::int32_t>& tokens, int chunk) {
    for (std::size_t begin = 0; begin < tokens.size(); begin += static_cast<std::size_t>(chunk)) {
      const std::size_t end = std::min(tokens.size(), begin + static_cast<std::size_t>(chunk));
      const int start = sequence.length;
      grow(sequence, start + static_cast<int>(end - begin));
      model_->prefill({.tokens = {tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                  tokens.begin() + static_cast<std::ptrdiff_t>(end)},
                       .start = start,
                       .pages = sequence.pages},
                      views_, end == tokens.size(), stream_.get());
    }
    return row(0);
  }

  /// One token of each sequence.
  std::vector<Logits> decode(const std::vector<Sequence*>& sequences,
                             const std::vector<std::int32_t>& tokens) {
    DecodeBatch batch{.tokens = tokens, .seq_lens = {}, .block_table = {}, .max_pages = 0};
    for (Sequence* sequence : sequences) {
      grow(*sequence, sequence->length + 1);
      batch.seq_lens.push_back(sequence->length);
      batch.max_pages = std::max(batch.max_pages, static_cast<int>(sequence->pages.size()));
    }
    for (const Sequence* sequence : sequences) {
      std::vector<std::int32_t> pages = sequence->pages;
      pages.resize(static_cast<std::size_t>(batch.max_pages), -12345);
      batch.block_table.insert(batch.block_table.end(), pages.begin(), pages.end());
    }
    model_->decode(batch, views_, stream_.get());
    std::vector<Logits> rows;
    for (std::size_t i = 0; i < sequences.size(); ++i) rows.push_back(row(static_cast<std::int64_t>(i)));
    return rows;
  }

  Logits decode(Sequence& sequence, std::int32_t token) { return decode({&sequence}, {token}).front(); }

 private:
  void grow(Sequence& sequence, int length) {
    while (static_cast<int>(sequence.pages.size()) * kPageTokens < length) {
      sequence.pages.push_back(free_.at(next_free_++));
    }
    sequence.length = length;
  }

  Logits row(std::int64_t i) {
    const std::int64_t vocab = model_->config().vocab;
    Logits logits(static_cast<std::size_t>(vocab));
    backend_.copy(logits.data(), model_->logits().as<float>() + i * vocab, vocab * size_of(DType::kF32),
                  CopyKind::kDeviceToHost, stream_.get());
    backend_.synchronize(stream_.get());
    return logits;
  }

  Backend& backend_;
  OwnedStream stream_;
  std::unique_ptr<Model> model_;
  std::vector<DeviceBuffer> pools_;
  std::vector<CacheView> views_;
  std::vector<std::int32_t> free_;
  std::size_t next_free_ = 0;
};

}  // namespace snapmla::testing
