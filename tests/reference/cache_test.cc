// append_kv and fetch_kv: what is written where, fused against unfused, page strides, skipped and bad slots,
// round trips.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

constexpr std::int64_t kTokens = 150;
constexpr std::int64_t kPages = 4;

std::vector<Bf16> random_kv(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Bf16> kv;
  for (std::int64_t i = 0; i < kTokens * kTokenDim; ++i) {
    kv.push_back(to_bf16(i % kTokenDim < kLatentDim ? 3 * normal(random) : 100 * normal(random)));
  }
  return kv;
}

// Token t goes to slot (7 t) mod 256: all different, pages mixed.
std::vector<std::int64_t> scattered_slots() {
  std::vector<std::int64_t> slots;
  for (std::int64_t t = 0; t < kTokens; ++t) slots.push_back(7 * t % (kPages * kPageTokens));
  return slots;
}

struct Pool {
  explicit Pool(CacheFormat format, std::int64_t page_stride = 0)
      : bytes(static_cast<std::size_t>(kPages * (page_stride == 0 ? page_bytes(format) : page_stride)), 0xff),
        view(make_cache_view(format, bytes.data(), kPages, page_stride)) {}
  std::vector<std::uint8_t> bytes;
  CacheView view;
};

void append(const std::vector<Bf16>& kv, const std::vector<std::int64_t>& slots, const CacheView& cache,
            ScaleRule rule) {
  append_kv(reference(),
            {.kv = ConstTensorView(kv.data(), DType::kBF16, {kTokens, kTokenDim}),
             .slot_mapping = ConstTensorView(slots.data(), DType::kI64, {kTokens}),
             .scale_rule = rule,
             .cache = cache},
            {});
}

/// The token in `slot`, restored.
std::vector<double> restored(const CacheView& cache, std::int64_t slot) {
  const auto at = [&](const CachePlane& plane) {
    return static_cast<std::uint8_t*>(plane.data) + slot / kPageTokens * plane.page_stride +
           slot % kPageTokens * plane.row_stride;
  };
  std::vector<double> row;
  const bool fp8 = cache.format == CacheFormat::kFp8;
  float scale = 1;
  if (fp8) std::memcpy(&scale, at(cache.scale), sizeof scale);
  for (int d = 0; d < kLatentDim; ++d) {
    Bf16 wide;
    std::memcpy(&wide, at(cache.latent) + (fp8 ? 0 : 2 * d), sizeof wide);
    row.push_back(fp8 ? static_cast<double>(to_float(E4m3{at(cache.latent)[d]})) * scale : to_float(wide));
  }
  for (int d = 0; d < kRopeDim; ++d) {
    Bf16 wide;
    std::memcpy(&wide, at(cache.rope) + 2 * d, sizeof wide);
    row.push_back(static_cast<double>(to_float(wide)) * scale);
  }
  return row;
}

TEST(AppendKv, WritesEachTokenToItsSlotAndNothingElse) {
  const auto kv = random_kv(1);
  auto slots = scattered_slots();
  slots[3] = -1;
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    Pool pool(format);
    append(kv, slots, pool.view, ScaleRule::kPowerOfTwo);
    std::vector<bool> written(kPages * kPageTokens);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      if (slots[t] < 0) continue;
      written[slots[t]] = true;
      const auto row = restored(pool.view, slots[t]);
      for (std::int64_t d = 0; d < kTokenDim; ++d) {
        const double real = to_float(kv[t * kTokenDim + d]);
        const bool exact = format == CacheFormat::kBf16 || d >= kLatentDim;
        EXPECT_NEAR(row[d], real, exact ? 0 : std::max(std::abs(real) / 16, 0.001))
            << "token " << t << " dim " << d;
      }
    }
    for (std::int64_t slot = 0; slot < kPages * kPageTokens; ++slot) {
      if (written[slot]) continue;
      EXPECT_TRUE(std::isnan(restored(pool.view, slot)[0])) << "slot " << slot << " must stay as it was";
    }
  }
}

TEST(AppendKv, NormAndRopeFusedEqualTheUnfusedPathAndTheFormula) {
  const auto kv = random_kv(2);
  const auto slots = scattered_slots();
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  std::vector<Bf16> weight;
  for (int d = 0; d < kLatentDim; ++d) weight.push_back(to_bf16(1 + 0.3F * normal(random)));
  constexpr float kEps = 1e-6F;
  std::vector<float> table;
  std::vector<std::int32_t> positions;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    positions.push_back(static_cast<std::int32_t>(kTokens - 1 - t));
    for (int i = 0; i < 32; ++i)
      table.push_back(static_cast<float>(std::cos(static_cast<double>(t) / (i + 1))));
    for (int i = 0; i < 32; ++i)
      table.push_back(static_cast<float>(std::sin(static_cast<double>(t) / (i + 1))));
  }

  // The formula in fp64, rounded to bf16, one rounding's distance allowed: that is what a plain append of it
  // should store.
  std::vector<Bf16> prepared(kv.size());
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const Bf16* row = &kv[t * kTokenDim];
    double squares = 0;
    for (int d = 0; d < kLatentDim; ++d) squares += std::pow(static_cast<double>(to_float(row[d])), 2);
    const double inverse = 1 / std::sqrt(squares / kLatentDim + kEps);
    for (int d = 0; d < kLatentDim; ++d)
      prepared[t * kTokenDim + d] =
          to_bf16(static_cast<float>(to_float(row[d]) * inverse * to_float(weight[d])));
    for (int i = 0; i < 32; ++i) {
      const double a = to_float(row[kLatentDim + 2 * i]);
      const double b = to_float(row[kLatentDim + 2 * i + 1]);
      const double cosine = table[static_cast<std::size_t>(positions[t]) * kRopeDim + i];
      const double sine = table[static_cast<std::size_t>(positions[t]) * kRopeDim + 32 + i];
      prepared[t * kTokenDim + kLatentDim + 2 * i] = to_bf16(static_cast<float>(a * cosine - b * sine));
      prepared[t * kTokenDim + kLatentDim + 2 * i + 1] = to_bf16(static_cast<float>(b * cosine + a * sine));
    }
  }
  const auto append_fused = [&](const CacheView& cache) {
    append_kv(reference(),
              {.kv = ConstTensorView(kv.data(), DType::kBF16, {kTokens, kTokenDim}),
               .norm_weight = ConstTensorView(weight.data(), DType::kBF16, {kLatentDim}),
               .norm_eps = kEps,
               .rope = {.cos_sin = ConstTensorView(table.data(), DType::kF32, {kTokens, kRopeDim}),
                        .positions = ConstTensorView(positions.data(), DType::kI32, {kTokens})},
               .slot_mapping = ConstTensorView(slots.data(), DType::kI64, {kTokens}),
               .cache = cache},
              {});
  };
  Pool bf16(CacheFormat::kBf16);
  append_fused(bf16.view);
  std::vector<Bf16> unfused(kv.size());  // what the fused pass rounded to bf16, read back
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const auto row = restored(bf16.view, slots[t]);
    for (std::int64_t d = 0; d < kTokenDim; ++d) {
      const double expected = to_float(prepared[t * kTokenDim + d]);
      EXPECT_NEAR(row[d], expected, std::abs(expected) / 128 + 1e-4) << "token " << t << " dim " << d;
      unfused[t * kTokenDim + d] = to_bf16(static_cast<float>(row[d]));
    }
  }
  Pool fused(CacheFormat::kFp8);
  append_fused(fused.view);
  Pool plain(CacheFormat::kFp8);
  append(unfused, slots, plain.view, ScaleRule::kPowerOfTwo);
  EXPECT_EQ(fused.bytes, plain.bytes);
}

TEST(AppendKv, AnyPageStrideAndSeparatePoolsHoldTheSame) {
  const auto kv = random_kv(4);
  const auto slots = scattered_slots();
  Pool dense(CacheFormat::kFp8);
  Pool padded(CacheFormat::kFp8, 656 * kPageTokens);  // pages of vLLM's fp8_ds_mla size
  append(kv, slots, dense.view, ScaleRule::kPowerOfTwo);
  append(kv, slots, padded.view, ScaleRule::kPowerOfTwo);
  std::vector<std::uint8_t> latent(kPages * kPageTokens * kLatentDim);
  std::vector<std::uint8_t> rope(kPages * kPageTokens * kRopeDim * 2);
  std::vector<std::uint8_t> scale(kPages * kPageTokens * 4);
  const CacheView apart{.format = CacheFormat::kFp8,
                        .num_pages = kPages,
                        .latent = {latent.data(), kPageTokens * kLatentDim, kLatentDim},
                        .rope = {rope.data(), kPageTokens * kRopeDim * 2, kRopeDim * 2},
                        .scale = {scale.data(), kPageTokens * 4, 4}};
  append(kv, slots, apart, ScaleRule::kPowerOfTwo);
  for (const std::int64_t slot : slots) {
    EXPECT_EQ(restored(padded.view, slot), restored(dense.view, slot));
    EXPECT_EQ(restored(apart, slot), restored(dense.view, slot));
  }
}

TEST(AppendKv, ABadSlotThrowsAndWritesNothing) {
  const auto kv = random_kv(5);
  for (const std::int64_t bad : {std::int64_t{-2}, kPages * kPageTokens, std::int64_t{1} << 40}) {
    auto slots = scattered_slots();
    slots.back() = bad;
    Pool pool(CacheFormat::kFp8);
    const auto before = pool.bytes;
    try {
      append(kv, slots, pool.view, ScaleRule::kPowerOfTwo);
      FAIL() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()), "[append_kv] slot_mapping must hold -1 or slots in [0, 256); got " +
                                           std::to_string(bad) + " at 149");
    }
    EXPECT_EQ(pool.bytes, before);
  }
}

TEST(FetchKv, ReturnsRangesOfSeveralRequestsAsTheyWereStored) {
  const auto kv = random_kv(6);
  // Two requests: tokens 0..99 on pages 2, 0; tokens 100..149 on page 3.
  std::vector<std::int64_t> slots;
  for (std::int64_t t = 0; t < kTokens; ++t)
    slots.push_back(t < 64 ? 128 + t : t < 100 ? t - 64 : 192 + t - 100);
  const std::vector<std::int32_t> table = {2, 0, 3, -5};
  const std::vector<std::int32_t> starts = {60, 0};
  const std::vector<std::int32_t> offsets = {0, 40, 90};
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const ScaleRule rule : {ScaleRule::kPowerOfTwo, ScaleRule::kAmax}) {
      Pool pool(format);
      append(kv, slots, pool.view, rule);
      std::vector<Bf16> out(90 * kTokenDim, Bf16{0x7fff});  // latent and rope as slices of rows of 576
      fetch_kv(
          reference(),
          {.cache = pool.view,
           .block_table = ConstTensorView(table.data(), DType::kI32, {2, 2}),
           .starts = ConstTensorView(starts.data(), DType::kI32, {2}),
           .offsets = ConstTensorView(offsets.data(), DType::kI32, {3}),
           .latent_out = TensorView(out.data(), DType::kBF16, {90, kLatentDim}, {kTokenDim, 1}),
           .rope_out = TensorView(out.data() + kLatentDim, DType::kBF16, {90, kRopeDim}, {kTokenDim, 1})},
          {});
      for (std::int64_t i = 0; i < 90; ++i) {
        const std::int64_t token = 60 + i;  // the second range starts at token 100 = 60 + 40
        const auto row = restored(pool.view, slots[token]);
        for (std::int64_t d = 0; d < kTokenDim; ++d) {
          ASSERT_EQ(out[i * kTokenDim + d].bits, to_bf16(static_cast<float>(row[d])).bits)
              << "token " << token << " dim " << d;
        }
      }
    }
  }
}

TEST(FetchKv, NamesABadRange) {
  Pool pool(CacheFormat::kFp8);
  std::vector<Bf16> latent(10 * kLatentDim);
  std::vector<Bf16> rope(10 * kRopeDim);
  const auto fetch = [&](std::int32_t page, std::int32_t start, std::vector<std::int32_t> offsets) {
    fetch_kv(reference(),
             {.cache = pool.view,
              .block_table = ConstTensorView(&page, DType::kI32, {1, 1}),
              .starts = ConstTensorView(&start, DType::kI32, {1}),
              .offsets = ConstTensorView(offsets.data(), DType::kI32, {2}),
              .latent_out = TensorView(latent.data(), DType::kBF16, {10, kLatentDim}),
              .rope_out = TensorView(rope.data(), DType::kBF16, {10, kRopeDim})},
             {});
  };
  EXPECT_NO_THROW(fetch(3, 54, {0, 10}));
  EXPECT_THROW(fetch(4, 54, {0, 10}), Error);  // no such page
  EXPECT_THROW(fetch(3, 55, {0, 10}), Error);  // runs into a second page that the table does not have
  EXPECT_THROW(fetch(3, -1, {0, 10}), Error);
  EXPECT_THROW(fetch(3, 0, {0, 11}), Error);  // more than the output holds
  EXPECT_THROW(fetch(3, 0, {5, 4}), Error);
}

}  // namespace
}  // namespace snapmla
