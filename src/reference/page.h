// Addresses inside a paged cache, and the checks of contents that only the reference backend can make.
#pragma once

#include <cstddef>

#include "core/check.h"
#include "snapmla/attention.h"

namespace snapmla::reference_ops {

/// The row of token `offset` (0 .. 63) in page `page` of a plane.
template <class T>
T* page_row(const CachePlane& plane, std::int64_t page, std::int64_t offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(plane.data) + page * plane.page_stride +
                              offset * plane.row_stride);
}

/// The page of `token` of the request in row `row` of a block table, checked.
inline std::int64_t page_of(const char* op, const ConstTensorView& block_table, std::int64_t row,
                            std::int64_t token, std::int64_t num_pages) {
  const std::int64_t column = token / kPageTokens;
  SNAPMLA_REQUIRE(column < block_table.dim(1), op, "block_table must have a page for token ", token,
                  " of request ", row, "; got ", block_table);
  const std::int64_t page = block_table.as<std::int32_t>()[row * block_table.stride(0) + column];
  SNAPMLA_REQUIRE(page >= 0 && page < num_pages, op, "block_table must hold pages in [0, ", num_pages,
                  "); got ", page, " at [", row, ", ", column, "]");
  return page;
}

/// seq_lens[request], checked.
inline int seq_len_of(const char* op, const ConstTensorView& seq_lens, std::int64_t request) {
  const int seq_len = seq_lens.as<std::int32_t>()[request];
  SNAPMLA_REQUIRE(seq_len >= 0 && seq_len <= kMaxSeqLen, op, "seq_lens must lie in [0, ", kMaxSeqLen,
                  "]; got ", seq_len, " for request ", request);
  return seq_len;
}

}  // namespace snapmla::reference_ops
