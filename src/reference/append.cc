// append_kv: norm, RoPE, quantize, scatter; a row at a time, in that order.
#include <algorithm>
#include <array>

#include "core/bf16.h"
#include "core/parallel.h"
#include "reference/norm_rope.h"
#include "reference/ops.h"
#include "reference/page.h"
#include "reference/quantize.h"

namespace snapmla::reference_ops {
namespace {

std::int64_t slot_of(const ConstTensorView& slot_mapping, std::int64_t token, std::int64_t num_pages) {
  const std::int64_t slot = slot_mapping.dtype() == DType::kI64 ? slot_mapping.as<std::int64_t>()[token]
                                                                : slot_mapping.as<std::int32_t>()[token];
  SNAPMLA_REQUIRE(slot >= -1 && slot < num_pages * kPageTokens, "append_kv",
                  "slot_mapping must hold -1 or slots in [0, ", num_pages * kPageTokens, "); got ", slot,
                  " at ", token);
  return slot;
}

}  // namespace

void append_kv(const AppendKvParams& params) {
  const CacheView& cache = params.cache;
  const std::int64_t tokens = params.kv.dim(0);
  // All slots are checked before the first byte is written: a bad one leaves the cache as it was.
  for (std::int64_t token = 0; token < tokens; ++token) slot_of(params.slot_mapping, token, cache.num_pages);

  constexpr std::int64_t kGrain = 16;  // tokens; a token is about a microsecond
  parallel_for(tokens, kGrain, [&](std::int64_t token) {
    const std::int64_t slot = slot_of(params.slot_mapping, token, cache.num_pages);
    if (slot < 0) return;
    std::array<Bf16, kTokenDim> row;
    std::copy_n(params.kv.as<Bf16>() + token * params.kv.stride(0), kTokenDim, row.begin());
    Bf16* latent = row.data();
    Bf16* rope = row.data() + kLatentDim;
    if (params.norm_weight.present()) {
      rms_norm_row(latent, params.norm_weight.as<Bf16>(), params.norm_eps, kLatentDim, latent);
    }
    if (params.rope.cos_sin.present()) {
      rotate_row(rope, cos_sin_row("append_kv", params.rope, token), params.rope.interleaved, rope);
    }
    const std::int64_t page = slot / kPageTokens;
    const std::int64_t offset = slot % kPageTokens;
    if (cache.format == CacheFormat::kFp8) {
      *page_row<float>(cache.scale, page, offset) =
          quantize_row(latent, rope, params.scale_rule, page_row<E4m3>(cache.latent, page, offset),
                       page_row<Bf16>(cache.rope, page, offset));
    } else {
      std::copy_n(latent, kLatentDim, page_row<Bf16>(cache.latent, page, offset));
      std::copy_n(rope, kRopeDim, page_row<Bf16>(cache.rope, page, offset));
    }
  });
}

}  // namespace snapmla::reference_ops
