#include "reference/weight_rows.h"

#include "core/bf16.h"
#include "core/e4m3.h"
#include "reference/linear.h"

namespace snapmla::reference_ops {

WeightRows::WeightRows(const WeightView& weight, std::int64_t index, std::int64_t first, std::int64_t count) {
  const ConstTensorView& values = weight.values;
  const int row_dim = values.rank() - 2;
  const std::int64_t matrix = row_dim == 0 ? 0 : index * values.stride(0);
  stride_ = values.stride(row_dim);
  if (!weight.is_e4m3()) {
    data_ = values.as<Bf16>() + matrix + first * stride_;
    return;
  }
  const ConstTensorView& scales = weight.scales;
  const std::int64_t scale_matrix = index * scales.dim(row_dim) * scales.dim(row_dim + 1);
  decoded_.resize(static_cast<std::size_t>(count * stride_));
  decode(values.as<E4m3>() + matrix, scales.as<float>() + scale_matrix, first, count);
  data_ = decoded_.data();
}

void WeightRows::decode(const E4m3* codes, const float* scales, std::int64_t first, std::int64_t count) {
  const std::int64_t in = stride_;
  for (std::int64_t row = first; row < first + count; ++row) {
    const float* scale = scales + row / kWeightBlock * (in / kWeightBlock);
    Bf16* to = decoded_.data() + (row - first) * in;
    for (std::int64_t k = 0; k < in; ++k) {
      to[k] = to_bf16(to_float(codes[row * in + k]) * scale[k / kWeightBlock]);
    }
  }
}

bool is_weight(const WeightView& weight, int rank) {
  if (!weight.is_e4m3()) return is_tensor(weight.values, DType::kBF16, rank);
  const ConstTensorView& values = weight.values;
  const ConstTensorView& scales = weight.scales;
  if (!is_tensor(values, DType::kE4M3, rank) || !is_tensor(scales, DType::kF32, rank)) return false;
  const std::int64_t out = values.dim(rank - 2);
  const std::int64_t in = values.dim(rank - 1);
  return values.stride(rank - 2) == in && in % kWeightBlock == 0 && scales.is_contiguous() &&
         (rank == 2 || scales.dim(0) == values.dim(0)) && scales.dim(rank - 2) == num_weight_blocks(out) &&
         scales.dim(rank - 1) == in / kWeightBlock;
}

}  // namespace snapmla::reference_ops
