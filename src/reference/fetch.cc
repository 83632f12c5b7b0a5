// fetch_kv: gather and dequantize, real = stored * scale.
#include <algorithm>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "reference/ops.h"
#include "reference/page.h"

namespace snapmla::reference_ops {
namespace {

void fetch_token(const CacheView& cache, std::int64_t page, std::int64_t offset, Bf16* latent_out,
                 Bf16* rope_out) {
  const Bf16* rope = page_row<Bf16>(cache.rope, page, offset);
  if (cache.format == CacheFormat::kBf16) {
    std::copy_n(page_row<Bf16>(cache.latent, page, offset), kLatentDim, latent_out);
    std::copy_n(rope, kRopeDim, rope_out);
    return;
  }
  const float scale = *page_row<float>(cache.scale, page, offset);
  const E4m3* latent = page_row<E4m3>(cache.latent, page, offset);
  for (int d = 0; d < kLatentDim; ++d) latent_out[d] = to_bf16(to_float(latent[d]) * scale);
  for (int d = 0; d < kRopeDim; ++d) rope_out[d] = to_bf16(to_float(rope[d]) * scale);
}

}  // namespace

void fetch_kv(const FetchKvParams& params) {
  constexpr const char* kOp = "fetch_kv";
  const auto* offsets = params.offsets.as<std::int32_t>();
  const auto* starts = params.starts.as<std::int32_t>();
  const std::int64_t total = params.latent_out.dim(0);
  for (std::int64_t range = 0; range < params.starts.dim(0); ++range) {
    const std::int64_t begin = offsets[range];
    const std::int64_t end = offsets[range + 1];
    SNAPMLA_REQUIRE(begin >= 0 && begin <= end && end <= total, kOp, "offsets must ascend within [0, ", total,
                    "]; got ", begin, " and ", end, " for range ", range);
    SNAPMLA_REQUIRE(starts[range] >= 0 && starts[range] + (end - begin) <= kMaxSeqLen, kOp,
                    "starts must lie in [0, ", kMaxSeqLen, "] with their ranges; got ", starts[range],
                    " for range ", range);
    constexpr std::int64_t kGrain = 64;  // tokens; a token is a fraction of a microsecond
    parallel_for(end - begin, kGrain, [&](std::int64_t i) {
      const std::int64_t token = starts[range] + i;
      const std::int64_t page = page_of(kOp, params.block_table, range, token, params.cache.num_pages);
      fetch_token(params.cache, page, token % kPageTokens,
                  params.latent_out.as<Bf16>() + (begin + i) * params.latent_out.stride(0),
                  params.rope_out.as<Bf16>() + (begin + i) * params.rope_out.stride(0));
    });
  }
}

}  // namespace snapmla::reference_ops
