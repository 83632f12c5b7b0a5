// A backend whose BF16 cache holds what another format would restore: every row is appended as it is, quantized and
// restored in that format, and written back. Everything else, the model included, stays as it is, so that
// perplexity and retrieval over it show the format alone.
//
// The rows of one append_kv are the tensor of the dynamic formats and are cut into blocks from the first on: a
// decode step has one row a request, so there these formats have a scale of their own for each step.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "bench/forwarding_backend.h"
#include "study/formats.h"

namespace snapmla::apps {

class FakeCacheBackend final : public ForwardingBackend {
 public:
  /// `calibration`: one a layer, in their order.
  FakeCacheBackend(Backend& inner, KeyFormat format, std::vector<Calibration> calibration)
      : ForwardingBackend(inner), format_(format), calibration_(std::move(calibration)) {}

  /// Rows pass through the host, so calls must run as they are made.
  [[nodiscard]] bool supports_graphs() const override { return false; }
  void do_append_kv(const AppendKvParams& params, Stream stream) override;

 private:
  [[nodiscard]] std::vector<std::int64_t> slots_of(const AppendKvParams& params, Stream stream);

  KeyFormat format_;
  std::vector<Calibration> calibration_;
  std::size_t calls_ = 0;  ///< of do_append_kv: one a layer and forward pass, in order
};

}  // namespace snapmla::apps
