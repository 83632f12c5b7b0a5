// DecodeGraphs: decode steps as captured graphs, where the backend has them. A step of a model is some hundred small kernels;
// launched one by one, the host is slower than they are.
//
// A graph is for a number of rows, so batches are padded to a few numbers (padded_rows) with empty requests. It is captured at its
// first use and holds as long as the cache stays where it was.
#pragma once

#include <algorithm>
#include <exception>
#include <functional>
#include <map>
#include <vector>

#include "snapmla/backend.h"

namespace snapmla {

/// The rows that a batch is decoded with, at most max_batch. Small batches are not padded: an empty row costs what any row costs in
/// the products, and its tokens choose experts like any other. From 8 on the steps keep that below an eighth of the rows, and the
/// number of graphs below 100 for batches to 1,024.
[[nodiscard]] inline int padded_rows(int batch, int max_batch) {
  const int step = batch <= 8 ? 1 : batch <= 256 ? 8 : batch <= 1024 ? 32 : 128;
  return std::min((batch + step - 1) / step * step, max_batch);
}

class DecodeGraphs {
 public:
  explicit DecodeGraphs(Backend& backend) : backend_(&backend) {}
  ~DecodeGraphs() { clear(); }
  DecodeGraphs(const DecodeGraphs&) = delete;
  DecodeGraphs& operator=(const DecodeGraphs&) = delete;

  /// Whether steps on this stream can be captured: the legacy default stream cannot.
  [[nodiscard]] bool usable(Stream stream) const {
    return backend_->supports_graphs() && stream.handle != nullptr;
  }

  /// Runs `step` as a graph. It must do the same for the same rows and cache, only reading other values at the same addresses.
  void run(int rows, const std::vector<CacheView>& cache, Stream stream, const std::function<void()>& step) {
    if (!std::equal(cache.begin(), cache.end(), cache_.begin(), cache_.end(), same_place)) {
      clear();
      cache_ = cache;
    }
    const auto found = graphs_.find(rows);
    backend_->launch(found != graphs_.end() ? found->second : capture(rows, stream, step), stream);
  }

 private:
  static bool same_place(const CacheView& a, const CacheView& b) {
    return a.latent.data == b.latent.data && a.latent.page_stride == b.latent.page_stride &&
           a.num_pages == b.num_pages;
  }

  Graph capture(int rows, Stream stream, const std::function<void()>& step) {
    backend_->begin_capture(stream);
    try {
      step();
    } catch (...) {
      // The capture must end, or the stream is lost; what was thrown says more than what ending it can.
      try {
        backend_->destroy_graph(backend_->end_capture(stream));
      } catch (const std::exception&) {
      }
      throw;
    }
    return graphs_.emplace(rows, backend_->end_capture(stream)).first->second;
  }

  void clear() noexcept {
    for (const auto& [rows, graph] : graphs_) backend_->destroy_graph(graph);
    graphs_.clear();
  }

  Backend* backend_;
  std::vector<CacheView> cache_;  // what the graphs were captured with, a layer
  std::map<int, Graph> graphs_;
};

}  // namespace snapmla
