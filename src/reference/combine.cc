// combine: lse = ln sum exp(lse_i), out = sum exp(lse_i - lse) out_i, in fp64.
#include <array>
#include <cmath>
#include <limits>

#include "core/bf16.h"
#include "core/parallel.h"
#include "reference/ops.h"
#include "reference/page.h"

namespace snapmla::reference_ops {
namespace {

void store(const TensorView& out, std::int64_t row, const std::array<double, kLatentDim>& values) {
  for (int d = 0; d < kLatentDim; ++d) {
    const auto value = static_cast<float>(values[static_cast<std::size_t>(d)]);
    if (out.dtype() == DType::kBF16) {
      out.as<Bf16>()[row * kLatentDim + d] = to_bf16(value);
    } else {
      out.as<float>()[row * kLatentDim + d] = value;
    }
  }
}

}  // namespace

void combine(const CombineParams& params) {
  const std::int64_t rows = params.partial_out.dim(1);
  const auto* split_offsets = params.split_offsets.as<std::int32_t>();
  const auto* partial_out = params.partial_out.as<float>();
  const auto* partial_lse = params.partial_lse.as<float>();
  for (std::int64_t b = 0; b < params.out.dim(0); ++b) {
    const std::int64_t begin = split_offsets[b];
    const std::int64_t end = split_offsets[b + 1];
    SNAPMLA_REQUIRE(begin >= 0 && begin <= end && end <= params.partial_out.dim(0), "combine",
                    "split_offsets must ascend within [0, ", params.partial_out.dim(0), "]; got ", begin,
                    " and ", end, " for request ", b);
    constexpr std::int64_t kGrain = 8;  // rows; a row is a microsecond a partial
    parallel_for(rows, kGrain, [&](std::int64_t row) {
      double max = -std::numeric_limits<double>::infinity();
      for (std::int64_t i = begin; i < end; ++i) max = std::fmax(max, partial_lse[i * rows + row]);
      std::array<double, kLatentDim> out{};
      double sum = 0;
      for (std::int64_t i = begin; i < end; ++i) {
        const double lse = partial_lse[i * rows + row];
        if (std::isinf(lse) && lse < 0) continue;  // an empty partial; its out may hold anything
        const double weight = std::exp(lse - max);
        sum += weight;
        const float* partial = partial_out + (i * rows + row) * kLatentDim;
        for (int d = 0; d < kLatentDim; ++d) out[static_cast<std::size_t>(d)] += weight * partial[d];
      }
      if (sum != 0) {
        for (double& value : out) value /= sum;
      }
      store(params.out, b * rows + row, out);
      params.lse.as<float>()[b * rows + row] = static_cast<float>(max + std::log(sum));
    });
  }
}

}  // namespace snapmla::reference_ops
