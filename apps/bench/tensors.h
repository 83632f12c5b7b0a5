// Random tensors on a backend, made quickly: the host draws a million normal numbers once, and every tensor is
// cut from that tape; a page pool is filled by append_kv with the same 4,096 tokens a call.
#pragma once

#include <cstdint>
#include <vector>

#include "core/device_buffer.h"
#include "snapmla/attention.h"
#include "snapmla/backend.h"

namespace snapmla::apps {

/// Copies a host vector to the backend and waits.
template <class T>
DeviceBuffer to_device(Backend& backend, const std::vector<T>& host, Stream stream) {
  const auto bytes = static_cast<std::int64_t>(host.size() * sizeof(T));
  DeviceBuffer buffer(backend, bytes);
  backend.copy(buffer.data(), host.data(), bytes, CopyKind::kHostToDevice, stream);
  backend.synchronize(stream);
  return buffer;
}

template <class T>
std::vector<T> to_host(Backend& backend, const void* from, std::int64_t count, Stream stream) {
  std::vector<T> host(static_cast<std::size_t>(count));
  backend.copy(host.data(), from, count * static_cast<std::int64_t>(sizeof(T)), CopyKind::kDeviceToHost,
               stream);
  backend.synchronize(stream);
  return host;
}

/// `count` normal numbers times `deviation`; another `place` gives others.
std::vector<Bf16> random_values(std::int64_t count, float deviation, std::uint64_t place);

/// Rows of append_kv's input, [tokens, 576]: latents with a mean of N(0, 1) a dim and unit noise, unit rope.
std::vector<Bf16> random_tokens(std::int64_t tokens);

/// 0 .. count - 1 in random order.
std::vector<std::int32_t> random_order(std::int64_t count, std::uint64_t seed);

/// A pool of `num_pages` pages, every slot filled.
class FilledPool {
 public:
  FilledPool(Backend& backend, CacheFormat format, std::int64_t num_pages, Stream stream);
  [[nodiscard]] const CacheView& view() const { return view_; }

 private:
  DeviceBuffer pages_;
  CacheView view_{};
};

/// cos and sin of positions 0 .. 1,023, and a position for each of `tokens` tokens.
class RopeTable {
 public:
  static constexpr int kPositions = 1024;
  RopeTable(Backend& backend, std::int64_t tokens, Stream stream);
  /// Positions shaped [batch, s], or [batch] for s = 0.
  [[nodiscard]] RopeParams params(std::int64_t batch, std::int64_t s) const;

 private:
  DeviceBuffer cos_sin_;
  DeviceBuffer positions_;
};

}  // namespace snapmla::apps
