// What only CUDA asks of a tensor: alignment, for vector accesses and the copy engine. And the last step of a
// launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "snapmla/tensor.h"

namespace snapmla::cuda_ops {

inline constexpr std::int64_t kVectorBytes = 16;

inline bool is_aligned(const void* pointer, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0;
}

/// A tensor of this dtype and rank whose last dimension is dense; one without elements may have no data.
inline bool is_tensor(const ConstTensorView& view, DType dtype, int rank) {
  return view.dtype() == dtype && view.rank() == rank &&
         (view.stride(rank - 1) == 1 || view.dim(rank - 1) <= 1) &&
         (view.present() || view.num_elements() == 0);
}

/// Whether every row of a view (its last dimension) starts at a multiple of `bytes`.
inline bool rows_aligned(const ConstTensorView& view, std::int64_t bytes) {
  if (!is_aligned(view.data(), bytes)) return false;
  for (int i = 0; i + 1 < view.rank(); ++i) {
    if (view.dim(i) > 1 && view.stride(i) * size_of(view.dtype()) % bytes != 0) return false;
  }
  return true;
}

inline void require_aligned(std::string_view op, const char* argument, const ConstTensorView& view,
                            std::int64_t bytes = kVectorBytes) {
  SNAPMLA_REQUIRE(is_aligned(view.data(), bytes), op, argument, " must be ", bytes,
                  "-byte aligned on the cuda backend; got address ", view.data());
}

/// At the elements' own size: what a GPU can read at all.
inline void require_natural(std::string_view op, const char* argument, const ConstTensorView& view) {
  if (view.present()) require_aligned(op, argument, view, size_of(view.dtype()));
}

}  // namespace snapmla::cuda_ops
