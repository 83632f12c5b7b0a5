// A benchmark point made ready to run: tensors on the backend, and calls on them.
//
// A call of set i touches other memory than one of set i + 1, so that a run over the sets finds a cold last-level
// cache: there are as many sets as four caches hold, or one where a single set is that large. The cache is filled
// by append_kv from a few thousand random tokens (a per-dim mean plus unit noise: zero-mean latents would hide
// accumulation errors), pages in random order; queries give logits a standard deviation of about 1.2.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "bench/points.h"
#include "snapmla/backend.h"

namespace snapmla::apps {

/// How far output rows lie from exact ones (exact.h).
struct RowErrors {
  double rel_err = 0;  ///< largest |out - exact| / |exact| of the rows looked at (Euclidean)
  double gain = 1;     ///< <out, exact> / <exact, exact> over all of them
  double lse_err = 0;  ///< largest |lse - exact lse|
};

class Workload {
 public:
  Workload() = default;
  virtual ~Workload() = default;
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  /// One call of the op on set `set`, 0 .. num_sets() - 1.
  virtual void call(int set, Stream stream) = 0;
  /// The same behind a quantize_q of its queries; only where has_quantize().
  virtual void call_with_quantize(int set, Stream stream);
  [[nodiscard]] virtual bool has_quantize() const { return false; }
  /// Runs a call and compares it with the formula.
  virtual std::optional<RowErrors> check(Stream stream);

  [[nodiscard]] int num_sets() const { return num_sets_; }
  [[nodiscard]] double bytes() const { return bytes_; }  ///< a call has to read and write at least
  [[nodiscard]] double flops() const {
    return flops_;
  }  ///< 2 * rows * tokens * (576 + 512); 0: none to speak of

 protected:
  int num_sets_ = 1;
  double bytes_ = 0;
  double flops_ = 0;
};

/// Sets a point would have beside a last-level cache of `l2_bytes` (0: one), and device bytes of its tensors.
struct Footprint {
  int num_sets = 1;
  std::int64_t cache_bytes = 0;  ///< pages of all sets
  std::int64_t other_bytes = 0;
};
Footprint footprint(const BenchPoint& point, std::int64_t l2_bytes);

std::unique_ptr<Workload> make_workload(Backend& backend, const BenchPoint& point, std::int64_t l2_bytes,
                                        Stream stream);

}  // namespace snapmla::apps
