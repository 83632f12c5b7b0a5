// Ways in which the pages of a pool can lie in memory, all allowed by format.h: every op must take them all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>

#include "snapmla/format.h"

namespace snapmla::test {

enum class PageLayout {
  kRecords,  ///< one dense record a page
  kPadded,   ///< records with a gap between pages; for FP8 the 41,984 bytes of vLLM's pages
  kPlanes,   ///< three pools, rows of latent and rope apart, page strides with a gap
  kSparse,   ///< the same, and scales 8 bytes apart
};

inline std::ostream& operator<<(std::ostream& out, PageLayout layout) {
  constexpr const char* kNames[] = {"records", "padded", "planes", "sparse"};
  return out << kNames[static_cast<int>(layout)];
}

/// Bytes from one record to the next.
inline std::int64_t record_stride(PageLayout layout, CacheFormat format) {
  if (layout == PageLayout::kRecords) return page_bytes(format);
  return format == CacheFormat::kFp8 ? 656 * kPageTokens : page_bytes(format) + 4096;
}

/// The view of a pool of `num_pages` pages at `base`, and how many bytes it takes.
struct PoolView {
  CacheView cache{};
  std::int64_t bytes = 0;
};

inline PoolView pool_view(PageLayout layout, CacheFormat format, void* base, std::int64_t num_pages) {
  if (layout == PageLayout::kRecords || layout == PageLayout::kPadded) {
    const std::int64_t stride = record_stride(layout, format);
    PoolView pool{.bytes = num_pages * stride};
    if (base != nullptr) pool.cache = make_cache_view(format, base, num_pages, stride);
    return pool;
  }
  constexpr std::int64_t kGap = 16;
  PoolView pool{.cache = {.format = format, .num_pages = num_pages}};
  const auto place = [&](CachePlane& plane, std::int64_t row_stride) {
    plane = {.data = base == nullptr ? nullptr : static_cast<std::byte*>(base) + pool.bytes,
             .page_stride = kPageTokens * row_stride + kGap,
             .row_stride = row_stride};
    pool.bytes += num_pages * plane.page_stride;
  };
  place(pool.cache.latent, kLatentDim * (format == CacheFormat::kFp8 ? 1 : 2) + kGap);
  place(pool.cache.rope, 2 * kRopeDim + kGap);
  if (format == CacheFormat::kFp8) place(pool.cache.scale, layout == PageLayout::kSparse ? 8 : 4);
  return pool;
}

}  // namespace snapmla::test
