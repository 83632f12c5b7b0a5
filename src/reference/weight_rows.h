// Rows of a weight in bf16, as dot_rows takes them: those of a bf16 weight where they lie, those of an e4m3 weight
// decoded,
//
//     w[o, k] = bf16(fp32(e4m3[o, k] * scale[o / 128, k / 128])),
//
// so that both go through the same products. What is decoded lives as long as the object.
#pragma once

#include <cstdint>
#include <vector>

#include "core/plain_ops.h"

namespace snapmla::reference_ops {

class WeightRows {
 public:
  /// Rows [first, first + count) of a weight [out, in].
  WeightRows(const WeightView& weight, std::int64_t first, std::int64_t count)
      : WeightRows(weight, 0, first, count) {}

  /// The same of matrix `index` of a stack [n, out, in]; index 0 of a weight that is no stack.
  WeightRows(const WeightView& weight, std::int64_t index, std::int64_t first, std::int64_t count);

  WeightRows(const WeightRows&) = delete;
  WeightRows& operator=(const WeightRows&) = delete;

  [[nodiscard]] const Bf16* data() const { return data_; }
  [[nodiscard]] std::int64_t stride() const { return stride_; }

 private:
  void decode(const E4m3* codes, const float* scales, std::int64_t first, std::int64_t count);

  std::vector<Bf16> decoded_;
  const Bf16* data_;
  std::int64_t stride_;
};

/// True for a weight of this rank as WeightView states it, of either type.
bool is_weight(const WeightView& weight, int rank);

}  // namespace snapmla::reference_ops
