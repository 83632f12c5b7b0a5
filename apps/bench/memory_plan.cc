#include "bench/memory_plan.h"

#include <algorithm>

#include "bench/forwarding_backend.h"
#include "engine/page_pool.h"

namespace snapmla::apps {
namespace {

constexpr int kMostRequests = 4096;

/// Counts allocations, which get an address that nobody may follow; copies go nowhere. Rounded as cudaMalloc does:
/// small ones to 512 bytes, others to whole 2 MiB.
class DryRun final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

  [[nodiscard]] void* allocate(std::int64_t bytes) override {
    if (bytes == 0) return nullptr;
    constexpr std::int64_t kSmall = std::int64_t{1} << 20;
    const std::int64_t unit = bytes < kSmall ? 512 : 2 * kSmall;
    bytes_ += (bytes + unit - 1) / unit * unit;
    return &address_;
  }
  void deallocate(void* /*pointer*/) noexcept override {}
  void copy(void* /*dst*/, const void* /*src*/, std::int64_t /*bytes*/, CopyKind /*kind*/,
            Stream /*stream*/) override {}
  void synchronize(Stream /*stream*/) override {}

 private:
  alignas(256) char address_ = 0;
  std::int64_t bytes_ = 0;
};

}  // namespace

std::int64_t cache_bytes(const ModelConfig& config, CacheFormat format, int requests, int tokens) {
  return requests * pages_for(tokens) * page_bytes(format) * config.num_layers;
}

std::int64_t model_buffer_bytes(Backend& backend, const ModelConfig& config,
                                const std::shared_ptr<const ModelWeights>& weights,
                                const ModelLimits& limits) {
  DryRun dry_run(backend);
  (void)Model::make(dry_run, config, weights, limits);
  return dry_run.bytes();
}

int largest_batch(Backend& backend, const ModelConfig& config,
                  const std::shared_ptr<const ModelWeights>& weights, const ModelLimits& limits, int tokens,
                  std::int64_t bytes) {
  const auto needed = [&](int batch) {
    ModelLimits with = limits;
    with.max_batch = batch;
    return model_buffer_bytes(backend, config, weights, with) +
           cache_bytes(config, limits.cache_format, batch, tokens);
  };
  // Bytes grow almost evenly with the batch: two points give a guess that a step or two correct.
  const std::int64_t one = needed(1);
  const std::int64_t most = needed(kMostRequests);
  if (one > bytes) return 0;
  const double each = static_cast<double>(most - one) / (kMostRequests - 1);
  const double guess = 1 + static_cast<double>(bytes - one) / each;
  int batch = std::clamp(static_cast<int>(std::min<double>(guess, kMostRequests)), 1, kMostRequests);
  while (batch > 1 && needed(batch) > bytes) --batch;
  while (batch < kMostRequests && needed(batch + 1) <= bytes) ++batch;
  return batch;
}

}  // namespace snapmla::apps
