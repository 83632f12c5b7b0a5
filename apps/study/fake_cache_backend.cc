#include "study/fake_cache_backend.h"

#include <algorithm>
#include <cstddef>

#include "bench/tensors.h"
#include "core/bf16.h"
#include "core/check.h"
#include "study/attention_rows.h"

namespace snapmla::apps {
namespace {

constexpr std::int64_t kRowBytes = token_bytes(CacheFormat::kBf16);

std::byte* address(const CacheView& cache, std::int64_t slot) {
  return static_cast<std::byte*>(cache.latent.data) + slot / kPageTokens * cache.latent.page_stride +
         slot % kPageTokens * cache.latent.row_stride;
}

/// Slots from `first` on that lie one behind the other.
std::size_t run_length(const std::vector<std::int64_t>& slots, std::size_t first) {
  std::size_t count = 1;
  while (first + count < slots.size() &&
         slots[first + count] == slots[first] + static_cast<std::int64_t>(count) &&
         slots[first + count] % kPageTokens != 0)
    ++count;
  return count;
}

}  // namespace

std::vector<std::int64_t> FakeCacheBackend::slots_of(const AppendKvParams& params, Stream stream) {
  const std::int64_t count = params.slot_mapping.dim(0);
  std::vector<std::int64_t> slots;
  if (params.slot_mapping.dtype() == DType::kI64) {
    slots = to_host<std::int64_t>(*this, params.slot_mapping.data(), count, stream);
  } else {
    const auto narrow = to_host<std::int32_t>(*this, params.slot_mapping.data(), count, stream);
    slots.assign(narrow.begin(), narrow.end());
  }
  std::erase(slots, -1);
  return slots;
}

void FakeCacheBackend::do_append_kv(const AppendKvParams& params, Stream stream) {
  ForwardingBackend::do_append_kv(params, stream);
  const CacheView& cache = params.cache;
  SNAPMLA_ASSERT(cache.format == CacheFormat::kBf16 && cache.latent.row_stride == kRowBytes);
  const std::vector<std::int64_t> slots = slots_of(params, stream);
  std::vector<Bf16> rows(slots.size() * kTokenDim);
  const auto transfer = [&](CopyKind kind) {
    for (std::size_t first = 0; first < slots.size();) {
      const std::size_t count = run_length(slots, first);
      const auto bytes = static_cast<std::int64_t>(count) * kRowBytes;
      Bf16* host = rows.data() + first * kTokenDim;
      if (kind == CopyKind::kDeviceToHost) {
        copy(host, address(cache, slots[first]), bytes, kind, stream);
      } else {
        copy(address(cache, slots[first]), host, bytes, kind, stream);
      }
      first += count;
    }
    synchronize(stream);
  };
  transfer(CopyKind::kDeviceToHost);
  std::vector<float> wide = widen(rows);
  fake_quantize(format_, calibration_[calls_++ % calibration_.size()], wide.data(), slots.size());
  std::transform(wide.begin(), wide.end(), rows.begin(), to_bf16);
  transfer(CopyKind::kHostToDevice);
}

}  // namespace snapmla::apps
