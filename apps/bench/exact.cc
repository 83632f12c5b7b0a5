#include "bench/exact.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/parallel.h"

namespace snapmla::apps {
namespace {

template <class Code>
void read_codes(const void* from, double scale, int count, double* to) {
  const auto* codes = static_cast<const Code*>(from);
  for (int d = 0; d < count; ++d) to[d] = scale * static_cast<double>(to_float(codes[d]));
}

const std::byte* plane_row(const CachePlane& plane, std::int64_t page, std::int64_t offset) {
  return static_cast<const std::byte*>(plane.data) + page * plane.page_stride + offset * plane.row_stride;
}

using Row = std::array<double, kTokenDim>;

Row query_row(const DecodeParams& params, const RowAt& at) {
  const std::int64_t rows = params.q_latent.dim(1) * params.q_latent.dim(2);
  const std::int64_t index = at.request * rows + at.row;
  Row q{};
  double scale = 1;
  if (params.cache.format == CacheFormat::kFp8) {
    scale = static_cast<double>(params.q_scale.as<float>()[index]);
    read_codes<E4m3>(params.q_latent.as<E4m3>() + index * kLatentDim, scale, kLatentDim, q.data());
  } else {
    read_codes<Bf16>(params.q_latent.as<Bf16>() + index * kLatentDim, scale, kLatentDim, q.data());
  }
  read_codes<Bf16>(params.q_rope.as<Bf16>() + index * kRopeDim, scale, kRopeDim, q.data() + kLatentDim);
  return q;
}

Row cached_row(const DecodeParams& params, int request, int token) {
  const CacheView& cache = params.cache;
  const std::int64_t page =
      params.block_table.as<std::int32_t>()[request * params.block_table.stride(0) + token / kPageTokens];
  const int offset = token % kPageTokens;
  Row k{};
  double scale = 1;
  if (cache.format == CacheFormat::kFp8) {
    scale = static_cast<double>(*reinterpret_cast<const float*>(plane_row(cache.scale, page, offset)));
    read_codes<E4m3>(plane_row(cache.latent, page, offset), scale, kLatentDim, k.data());
  } else {
    read_codes<Bf16>(plane_row(cache.latent, page, offset), scale, kLatentDim, k.data());
  }
  read_codes<Bf16>(plane_row(cache.rope, page, offset), scale, kRopeDim, k.data() + kLatentDim);
  return k;
}

ExactRow exact_row(const DecodeParams& params, const RowAt& at) {
  const Row q = query_row(params, at);
  std::vector<double> logit(static_cast<std::size_t>(at.tokens));
  for (int t = 0; t < at.tokens; ++t) {
    const Row k = cached_row(params, at.request, t);
    double sum = 0;
    for (std::size_t d = 0; d < kTokenDim; ++d) sum += q[d] * k[d];
    logit[static_cast<std::size_t>(t)] = static_cast<double>(params.softmax_scale) * sum;
  }
  ExactRow row{.lse = -std::numeric_limits<double>::infinity()};
  if (at.tokens <= 0) return row;
  const double most = *std::max_element(logit.begin(), logit.end());
  double sum = 0;
  for (const double x : logit) sum += std::exp(x - most);
  row.lse = most + std::log(sum);
  for (int t = 0; t < at.tokens; ++t) {
    const double p = std::exp(logit[static_cast<std::size_t>(t)] - row.lse);
    const Row k = cached_row(params, at.request, t);
    for (std::size_t d = 0; d < kLatentDim; ++d) row.out[d] += p * k[d];
  }
  return row;
}

}  // namespace

std::vector<ExactRow> exact_rows_on_host(const DecodeParams& params, const std::vector<RowAt>& rows) {
  std::vector<ExactRow> exact(rows.size());
  parallel_for(std::ssize(rows), 1, [&](std::int64_t i) {
    exact[static_cast<std::size_t>(i)] = exact_row(params, rows[static_cast<std::size_t>(i)]);
  });
  return exact;
}

}  // namespace snapmla::apps
