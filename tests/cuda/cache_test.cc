// quantize_q, append_kv and fetch_kv on the GPU against the reference: the same bits, whatever the strides,
// the options and the way the pages lie.
#include <optional>

#include "gpu_test.h"
#include "support/page_layout.h"

namespace snapmla::test {
namespace {

constexpr std::int64_t kNumPositions = 500;

/// How rows lie in memory.
enum class Rows {
  kDense,
  kAligned,  ///< a gap of 8 elements behind each, so that 16-byte loads work
  kOdd,      ///< a gap of 3, and the first row one element in: only 2-byte loads do
};

std::int64_t gap_of(Rows rows) {
  return rows == Rows::kDense ? 0 : rows == Rows::kAligned ? 8 : 3;
}
std::int64_t offset_of(Rows rows) {
  return rows == Rows::kOdd ? 1 : 0;
}

/// Rows of `width`, spread as asked, NaN between them.
std::vector<Bf16> spread(const std::vector<Bf16>& dense, std::int64_t width, Rows rows) {
  const std::int64_t count = static_cast<std::int64_t>(dense.size()) / width;
  std::vector<Bf16> result = poison<Bf16>(offset_of(rows) + count * (width + gap_of(rows)));
  for (std::int64_t row = 0; row < count; ++row) {
    std::copy_n(dense.begin() + row * width, width,
                result.begin() + offset_of(rows) + row * (width + gap_of(rows)));
  }
  return result;
}

std::vector<std::int32_t> random_positions(std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> positions;
  for (std::int64_t i = 0; i < count; ++i)
    positions.push_back(static_cast<std::int32_t>(random() % kNumPositions));
  return positions;
}

/// cos_sin and positions on a backend.
struct RopeTables {
  RopeTables(Backend& backend, std::int64_t tokens)
      : cos_sin(backend, cos_sin_table(kNumPositions)), positions(backend, random_positions(tokens, 11)) {}
  [[nodiscard]] RopeParams params(Rotation rotation, const ConstTensorView& positions_view) const {
    if (rotation == Rotation::kNone) return {};
    return {.cos_sin = {cos_sin.data(), DType::kF32, {kNumPositions, kRopeDim}},
            .positions = positions_view,
            .interleaved = rotation == Rotation::kInterleaved};
  }
  OnDevice<float> cos_sin;
  OnDevice<std::int32_t> positions;
};

struct QuantizeCase {
  std::int64_t batch = 1;
  std::int64_t s = 1;
  std::int64_t heads = 1;
  Rows rows = Rows::kDense;
  Rotation rotation = Rotation::kNone;
  ScaleRule rule = ScaleRule::kPowerOfTwo;
  bool heads_first = false;  ///< memory is [heads, batch, s, ...]
};

std::ostream& operator<<(std::ostream& out, const QuantizeCase& c) {
  return out << c.batch << " x " << c.s << " x " << c.heads << " rows " << static_cast<int>(c.rows)
             << " rotation " << static_cast<int>(c.rotation) << ' ' << to_string(c.rule)
             << (c.heads_first ? " heads first" : "");
}

struct Quantized {
  std::vector<E4m3> latent;
  std::vector<Bf16> rope;
  std::vector<float> scale;
};

Quantized run_quantize(Backend& backend, const QuantizeCase& c, const std::vector<Bf16>& latents,
                       const std::vector<Bf16>& ropes) {
  const std::int64_t rows = c.batch * c.s * c.heads;
  const OnDevice<Bf16> latent(backend, spread(latents, kLatentDim, c.rows));
  const OnDevice<Bf16> rope(backend, spread(ropes, kRopeDim, c.rows));
  const RopeTables tables(backend, c.batch * c.s);
  const OnDevice<E4m3> latent_out(backend, poison<E4m3>(rows * kLatentDim));
  const OnDevice<Bf16> rope_out(backend, poison<Bf16>(rows * kRopeDim));
  const OnDevice<float> scale_out(backend, poison<float>(rows));
  const auto view = [&](const Bf16* data, std::int64_t width) {
    const std::int64_t step = width + gap_of(c.rows);
    const std::int64_t token = c.heads_first ? step : step * c.heads;
    const std::int64_t head = c.heads_first ? step * c.batch * c.s : step;
    return ConstTensorView(data + offset_of(c.rows), DType::kBF16, {c.batch, c.s, c.heads, width},
                           {c.s * token, token, head, 1});
  };
  quantize_q(backend,
             {.q_latent = view(latent.data(), kLatentDim),
              .q_rope = view(rope.data(), kRopeDim),
              .rope = tables.params(c.rotation, {tables.positions.data(), DType::kI32, {c.batch, c.s}}),
              .scale_rule = c.rule,
              .q_latent_out = {latent_out.data(), DType::kE4M3, {c.batch, c.s, c.heads, kLatentDim}},
              .q_rope_out = {rope_out.data(), DType::kBF16, {c.batch, c.s, c.heads, kRopeDim}},
              .q_scale_out = {scale_out.data(), DType::kF32, {c.batch, c.s, c.heads}}},
             {});
  return {.latent = latent_out.host(), .rope = rope_out.host(), .scale = scale_out.host()};
}

void expect_same_quantized(const QuantizeCase& c, const std::vector<Bf16>& latents,
                           const std::vector<Bf16>& ropes) {
  SCOPED_TRACE(::testing::PrintToString(c));
  const Quantized expected = run_quantize(reference(), c, latents, ropes);
  const Quantized found = run_quantize(cuda(), c, latents, ropes);
  EXPECT_EQ(first_difference(found.latent, expected.latent), -1) << "latent";
  EXPECT_EQ(first_difference_but_nan(found.rope, expected.rope), -1) << "rope";
  EXPECT_EQ(first_difference(found.scale, expected.scale), -1) << "scale";
}

class CudaQuantizeQ : public GpuTest {};

TEST_F(CudaQuantizeQ, EqualsTheReferenceBitForBit) {
  for (const Rows rows : {Rows::kDense, Rows::kAligned, Rows::kOdd}) {
    for (const Rotation rotation : {Rotation::kNone, Rotation::kInterleaved, Rotation::kHalves}) {
      for (const ScaleRule rule : {ScaleRule::kPowerOfTwo, ScaleRule::kAmax}) {
        for (const bool heads_first : {false, true}) {
          const QuantizeCase c{.batch = 3,
                               .s = 2,
                               .heads = 5,
                               .rows = rows,
                               .rotation = rotation,
                               .rule = rule,
                               .heads_first = heads_first};
          expect_same_quantized(c, rows_of_all_sizes(30, kLatentDim, 1), rows_of_all_sizes(30, kRopeDim, 2));
        }
      }
    }
  }
}

TEST_F(CudaQuantizeQ, TakesAnyShape) {
  for (const auto& [batch, s, heads] : std::vector<std::array<std::int64_t, 3>>{
           {1, 1, 1}, {1, 1, 128}, {1, 8, 128}, {300, 1, 3}, {7, 4, 20}}) {
    const QuantizeCase c{.batch = batch, .s = s, .heads = heads, .rotation = Rotation::kInterleaved};
    const std::int64_t rows = batch * s * heads;
    expect_same_quantized(c, rows_of_all_sizes(rows, kLatentDim, 3), rows_of_all_sizes(rows, kRopeDim, 4));
  }
}

// Infinity, NaN, signed zero, subnormals and the largest numbers, alone in a row and beside ordinary ones.
TEST_F(CudaQuantizeQ, TreatsSpecialNumbersAlike) {
  const std::vector<std::uint16_t> special = {0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x8000, 0x0001,
                                              0x807f, 0x0080, 0x7f7f, 0xff7f, 0x43e0, 0x43e1};
  const auto count = static_cast<std::int64_t>(special.size());
  for (const ScaleRule rule : {ScaleRule::kPowerOfTwo, ScaleRule::kAmax}) {
    std::vector<Bf16> latents(2 * count * kLatentDim);
    std::vector<Bf16> ropes = rows_of_all_sizes(2 * count, kRopeDim, 5);
    const std::vector<Bf16> ordinary = rows_of_all_sizes(count, kLatentDim, 6);
    std::copy(ordinary.begin(), ordinary.end(), latents.begin() + count * kLatentDim);
    for (std::int64_t i = 0; i < count; ++i) {
      latents[i * kLatentDim + 37 * i].bits = special[i];
      latents[(count + i) * kLatentDim + 511 - i].bits = special[i];
      ropes[i * kRopeDim + i].bits = special[i];
    }
    expect_same_quantized({.batch = 2 * count, .rule = rule}, latents, ropes);
  }
}

TEST_F(CudaQuantizeQ, RefusesOutputsThatAreNotAligned) {
  const OnDevice<Bf16> in(cuda(), std::vector<Bf16>(kLatentDim));
  const OnDevice<std::uint8_t> out(cuda(), poison<std::uint8_t>(4096));
  const std::string message = message_of([&] {
    quantize_q(cuda(),
               {.q_latent = {in.data(), DType::kBF16, {1, 1, 1, kLatentDim}},
                .q_rope = {in.data(), DType::kBF16, {1, 1, 1, kRopeDim}},
                .q_latent_out = {out.data() + 8, DType::kE4M3, {1, 1, 1, kLatentDim}},
                .q_rope_out = {out.data() + 1024, DType::kBF16, {1, 1, 1, kRopeDim}},
                .q_scale_out = {out.data() + 2048, DType::kF32, {1, 1, 1}}},
               {});
  });
  EXPECT_NE(message.find("[quantize_q] q_latent_out must be 16-byte aligned"), std::string::npos) << message;
  EXPECT_EQ(out.host(), poison<std::uint8_t>(4096)) << "nothing was launched";
}

struct AppendCase {
  std::int64_t tokens = 1;
  CacheFormat format = CacheFormat::kFp8;
  PageLayout layout = PageLayout::kRecords;
  Rows rows = Rows::kDense;
  Rotation rotation = Rotation::kNone;
  bool norm = false;
  ScaleRule rule = ScaleRule::kPowerOfTwo;
  bool wide_slots = false;
};

std::ostream& operator<<(std::ostream& out, const AppendCase& c) {
  return out << c.tokens << " tokens " << to_string(c.format) << ' ' << c.layout << " rows "
             << static_cast<int>(c.rows) << " rotation " << static_cast<int>(c.rotation)
             << (c.norm ? " norm" : "") << ' ' << to_string(c.rule) << (c.wide_slots ? " int64" : "");
}

/// Token t goes to slot (7 t) mod (64 pages): all different, pages mixed. Every ninth is skipped.
std::vector<std::int64_t> slots_for(std::int64_t tokens, std::int64_t num_pages) {
  std::vector<std::int64_t> slots;
  for (std::int64_t t = 0; t < tokens; ++t)
    slots.push_back(t % 9 == 5 ? -1 : 7 * t % (num_pages * kPageTokens));
  return slots;
}

/// The pool after the append: every byte, the poison around the tokens included.
std::vector<std::uint8_t> run_append(Backend& backend, const AppendCase& c, const std::vector<Bf16>& tokens) {
  const std::int64_t num_pages = c.tokens / kPageTokens + 2;
  const OnDevice<std::uint8_t> pool(
      backend, poison<std::uint8_t>(pool_view(c.layout, c.format, nullptr, num_pages).bytes));
  const OnDevice<Bf16> kv(backend, spread(tokens, kTokenDim, c.rows));
  const RopeTables tables(backend, c.tokens);
  std::vector<Bf16> weights = rows_of_all_sizes(1, kLatentDim, 9);
  for (Bf16& weight : weights) weight = to_bf16(1 + 100 * to_float(weight));
  const OnDevice<Bf16> weight(backend, weights);
  const std::vector<std::int64_t> slots = slots_for(c.tokens, num_pages);
  const OnDevice<std::int64_t> wide(backend, slots);
  const OnDevice<std::int32_t> narrow(backend, std::vector<std::int32_t>(slots.begin(), slots.end()));
  append_kv(
      backend,
      {.kv = ConstTensorView(kv.data() + offset_of(c.rows), DType::kBF16, {c.tokens, kTokenDim},
                             {kTokenDim + gap_of(c.rows), 1}),
       .norm_weight = c.norm ? ConstTensorView(weight.data(), DType::kBF16, {kLatentDim}) : ConstTensorView(),
       .rope = tables.params(c.rotation, {tables.positions.data(), DType::kI32, {c.tokens}}),
       .slot_mapping = c.wide_slots ? ConstTensorView(wide.data(), DType::kI64, {c.tokens})
                                    : ConstTensorView(narrow.data(), DType::kI32, {c.tokens}),
       .scale_rule = c.rule,
       .cache = pool_view(c.layout, c.format, pool.data(), num_pages).cache},
      {});
  return pool.host();
}

void expect_same_append(const AppendCase& c) {
  SCOPED_TRACE(::testing::PrintToString(c));
  const std::vector<Bf16> tokens = rows_of_all_sizes(c.tokens, kTokenDim, 7);
  EXPECT_EQ(first_difference(run_append(cuda(), c, tokens), run_append(reference(), c, tokens)), -1);
}

class CudaAppendKv : public GpuTest {};

TEST_F(CudaAppendKv, EqualsTheReferenceBitForBit) {
  std::uint64_t i = 0;
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const PageLayout layout :
         {PageLayout::kRecords, PageLayout::kPadded, PageLayout::kPlanes, PageLayout::kSparse}) {
      for (const Rotation rotation : {Rotation::kNone, Rotation::kInterleaved, Rotation::kHalves}) {
        for (const bool norm : {false, true}) {
          for (const ScaleRule rule : {ScaleRule::kPowerOfTwo, ScaleRule::kAmax}) {
            ++i;
            expect_same_append({.tokens = 75,
                                .format = format,
                                .layout = layout,
                                .rows = static_cast<Rows>(i % 3),
                                .rotation = rotation,
                                .norm = norm,
                                .rule = rule,
                                .wide_slots = i % 2 == 0});
          }
        }
      }
    }
  }
}

TEST_F(CudaAppendKv, TakesAnyNumberOfTokens) {
  for (const std::int64_t tokens : {1, 2, 3, 4, 5, 63, 64, 65, 300}) {
    expect_same_append({.tokens = tokens, .rotation = Rotation::kInterleaved, .norm = true});
  }
}

struct FetchCase {
  CacheFormat format = CacheFormat::kFp8;
  PageLayout layout = PageLayout::kRecords;
  Rows rows = Rows::kDense;
  std::vector<std::int32_t> starts{};   ///< a range
  std::vector<std::int32_t> offsets{};  ///< ranges + 1
  std::int64_t total = 0;
};

std::ostream& operator<<(std::ostream& out, const FetchCase& c) {
  out << to_string(c.format) << ' ' << c.layout << " rows " << static_cast<int>(c.rows) << " total "
      << c.total << " offsets";
  for (const std::int32_t offset : c.offsets) out << ' ' << offset;
  return out;
}

constexpr std::int64_t kFetchPages = 40;

/// A pool of finite numbers: scales of every size, not only powers of two.
std::vector<std::uint8_t> random_pool(const FetchCase& c) {
  std::mt19937_64 random(21);
  std::normal_distribution<float> normal;
  std::vector<std::uint8_t> bytes(
      static_cast<std::size_t>(pool_view(c.layout, c.format, nullptr, kFetchPages).bytes), 0xff);
  const CacheView cache = pool_view(c.layout, c.format, bytes.data(), kFetchPages).cache;
  const auto row = [](const CachePlane& plane, std::int64_t slot) {
    return static_cast<std::uint8_t*>(plane.data) + slot / kPageTokens * plane.page_stride +
           slot % kPageTokens * plane.row_stride;
  };
  for (std::int64_t slot = 0; slot < kFetchPages * kPageTokens; ++slot) {
    const auto put_bf16 = [&](std::uint8_t* to, int count) {
      for (int d = 0; d < count; ++d) {
        const Bf16 value = to_bf16(100 * normal(random));
        std::memcpy(to + 2 * d, &value, 2);
      }
    };
    if (c.format == CacheFormat::kFp8) {
      for (int d = 0; d < kLatentDim; ++d) {
        const auto code = static_cast<std::uint8_t>(random());
        row(cache.latent, slot)[d] = (code & 0x7f) == 0x7f ? 0 : code;
      }
      const float scale = std::exp(4 * normal(random));
      std::memcpy(row(cache.scale, slot), &scale, 4);
    } else {
      put_bf16(row(cache.latent, slot), kLatentDim);
    }
    put_bf16(row(cache.rope, slot), kRopeDim);
  }
  return bytes;
}

struct Fetched {
  std::vector<Bf16> latent;
  std::vector<Bf16> rope;
};

Fetched run_fetch(Backend& backend, const FetchCase& c, const std::vector<std::uint8_t>& bytes) {
  const auto ranges = static_cast<std::int64_t>(c.starts.size());
  constexpr std::int64_t kMaxPages = 20;
  std::mt19937_64 random(22);
  std::vector<std::int32_t> table;
  for (std::int64_t i = 0; i < ranges * (kMaxPages + 3); ++i)
    table.push_back(i % (kMaxPages + 3) < kMaxPages ? static_cast<std::int32_t>(random() % kFetchPages)
                                                    : 1 << 30);
  const OnDevice<std::uint8_t> pool(backend, bytes);
  const OnDevice<std::int32_t> block_table(backend, table);
  const OnDevice<std::int32_t> starts(backend, c.starts);
  const OnDevice<std::int32_t> offsets(backend, c.offsets);
  const auto out_elements = [&](std::int64_t width) {
    return offset_of(c.rows) + c.total * (width + gap_of(c.rows));
  };
  const OnDevice<Bf16> latent(backend, poison<Bf16>(out_elements(kLatentDim)));
  const OnDevice<Bf16> rope(backend, poison<Bf16>(out_elements(kRopeDim)));
  const auto out = [&](Bf16* data, std::int64_t width) {
    return TensorView(data + offset_of(c.rows), DType::kBF16, {c.total, width}, {width + gap_of(c.rows), 1});
  };
  fetch_kv(backend,
           {.cache = pool_view(c.layout, c.format, pool.data(), kFetchPages).cache,
            .block_table =
                ConstTensorView(block_table.data(), DType::kI32, {ranges, kMaxPages}, {kMaxPages + 3, 1}),
            .starts = {starts.data(), DType::kI32, {ranges}},
            .offsets = {offsets.data(), DType::kI32, {ranges + 1}},
            .latent_out = out(latent.data(), kLatentDim),
            .rope_out = out(rope.data(), kRopeDim)},
           {});
  return {.latent = latent.host(), .rope = rope.host()};
}

void expect_same_fetch(const FetchCase& c) {
  SCOPED_TRACE(::testing::PrintToString(c));
  const std::vector<std::uint8_t> bytes = random_pool(c);
  const Fetched expected = run_fetch(reference(), c, bytes);
  const Fetched found = run_fetch(cuda(), c, bytes);
  EXPECT_EQ(first_difference(found.latent, expected.latent), -1) << "latent";
  EXPECT_EQ(first_difference(found.rope, expected.rope), -1) << "rope";
}

class CudaFetchKv : public GpuTest {};

TEST_F(CudaFetchKv, EqualsTheReferenceBitForBit) {
  std::uint64_t i = 0;
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const PageLayout layout :
         {PageLayout::kRecords, PageLayout::kPadded, PageLayout::kPlanes, PageLayout::kSparse}) {
      for (const Rows rows : {Rows::kDense, Rows::kAligned, Rows::kOdd}) {
        // Ranges of 1, 0, 63, 65 and 700 tokens; the first rows of the output and the last belong to none.
        expect_same_fetch({.format = format,
                           .layout = layout,
                           .rows = rows,
                           .starts = {100, 5, 64, 1, 300},
                           .offsets = {3, 4, 4, 67, 132, 832},
                           .total = static_cast<std::int64_t>(835 + i++ % 4)});
      }
    }
  }
}

TEST_F(CudaFetchKv, FindsItsRangeAmongMany) {
  FetchCase c;
  std::mt19937_64 random(23);
  c.offsets.push_back(0);
  for (int range = 0; range < 1000; ++range) {
    c.starts.push_back(static_cast<std::int32_t>(random() % 1000));
    c.offsets.push_back(c.offsets.back() + static_cast<std::int32_t>(random() % 4));  // a quarter is empty
  }
  c.total = c.offsets.back();
  expect_same_fetch(c);
  expect_same_fetch({.starts = {0}, .offsets = {0, 1}, .total = 1});
  expect_same_fetch({.starts = {0, 0}, .offsets = {0, 0, 0}, .total = 9});  // nothing to do
}

}  // namespace
}  // namespace snapmla::test
