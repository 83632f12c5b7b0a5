// rms_norm and rope on the GPU against the reference: the same bits.
#include <array>
#include <cstdint>
#include <vector>

#include "bf16_rows.h"
#include "core/plain_ops.h"
#include "cuda/plain_ops.h"

namespace snapmla::test {
namespace {

struct NormCase {
  std::int64_t rows;
  std::int64_t d;
  Spacing spacing{};
  float eps = 1e-6F;
  bool in_place = false;
};

std::vector<Bf16> run_norm(Backend& backend, const NormCase& c, const std::vector<Bf16>& values) {
  const Bf16Rows x(backend, c.rows, c.d, c.spacing, values);
  const Bf16Rows own(backend, c.rows, c.d, c.spacing);
  const Bf16Rows& out = c.in_place ? x : own;
  std::vector<Bf16> weights = rows_of_all_sizes(1, c.d, 9);
  for (Bf16& weight : weights) weight = to_bf16(1 + 100 * to_float(weight));
  // As the rows: unaligned where they are.
  const Bf16Rows weight_rows(backend, 1, c.d, c.spacing, weights);
  const ConstTensorView weight(weight_rows.view().data(), DType::kBF16, {c.d});
  if (&backend == &reference()) {
    reference().plain_ops().rms_norm(x.view(), weight, c.eps, out.view(), {});
  } else {
    cuda_ops::rms_norm(x.view(), weight, c.eps, out.view(), nullptr);
  }
  return out.host();
}

void expect_same_norm(const NormCase& c, const std::vector<Bf16>& values) {
  SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.d << ' ' << c.spacing << " eps " << c.eps
                                    << (c.in_place ? " in place" : ""));
  EXPECT_EQ(first_difference_but_nan(run_norm(cuda(), c, values), run_norm(reference(), c, values)), -1);
}

class CudaRmsNorm : public GpuTest {};

TEST_F(CudaRmsNorm, EqualsTheReferenceBitForBit) {
  for (const Spacing& spacing : all_spacings()) {
    for (const std::int64_t d : {1, 7, 8, 9, 100, 512, 513, 1536, 2048, 7168, 16384}) {
      for (const bool in_place : {false, true}) {
        expect_same_norm({.rows = 9, .d = d, .spacing = spacing, .in_place = in_place},
                         rows_of_all_sizes(9, d, static_cast<std::uint64_t>(d)));
      }
    }
  }
}

// Rows so long that a thread takes more of them.
TEST_F(CudaRmsNorm, TakesLongRows) {
  for (const std::int64_t d : {16385, 20480, 32768}) {
    expect_same_norm({.rows = 3, .d = d}, rows_of_all_sizes(3, d, 5));
  }
}

TEST_F(CudaRmsNorm, TakesAnyNumberOfRows) {
  for (const std::int64_t rows : {1, 2, 133, 5000}) {
    expect_same_norm({.rows = rows, .d = 520}, rows_of_all_sizes(rows, 520, 6));
  }
  EXPECT_TRUE(run_norm(cuda(), {.rows = 0, .d = 64}, {}).empty());
}

TEST_F(CudaRmsNorm, AddsEpsAsTheReference) {
  for (const float eps : {0.0F, 1e-12F, 1e-5F, 1.0F}) {
    expect_same_norm({.rows = 14, .d = 512, .eps = eps}, rows_of_all_sizes(14, 512, 7));
  }
}

TEST_F(CudaRmsNorm, TreatsSpecialNumbersAlike) {
  const std::vector<Bf16>& special = special_numbers();
  const auto count = static_cast<std::int64_t>(special.size());
  constexpr std::int64_t kDim = 256;
  std::vector<Bf16> values = rows_of_all_sizes(2 * count, kDim, 8);
  for (std::int64_t i = 0; i < count; ++i) {
    values[i * kDim + 17 * i] = special[i];                              // beside ordinary ones
    std::fill_n(values.begin() + (count + i) * kDim, kDim, special[i]);  // alone
  }
  expect_same_norm({.rows = 2 * count, .d = kDim}, values);
}

constexpr std::int64_t kNumPositions = 300;

enum class HeadRows {
  kDense,
  kBehindNope,  ///< as in q: [tokens, heads, nope + 64], rows at multiples of 16 bytes
  kHeadsFirst,  ///< memory is [heads, tokens, 64]
  kOdd          ///< rows 67 apart, the first one element in
};

struct RopeCase {
  std::int64_t tokens;
  std::int64_t heads;
  HeadRows rows = HeadRows::kDense;
  bool interleaved = true;
  bool in_place = false;
};

std::vector<Bf16> run_rope(Backend& backend, const RopeCase& c) {
  constexpr std::int64_t kNope = 128;
  const std::int64_t offset = c.rows == HeadRows::kBehindNope ? kNope : c.rows == HeadRows::kOdd ? 1 : 0;
  const std::int64_t step = c.rows == HeadRows::kBehindNope ? kNope + kRopeDim
                            : c.rows == HeadRows::kOdd      ? kRopeDim + 3
                                                            : kRopeDim;
  const bool heads_first = c.rows == HeadRows::kHeadsFirst;
  const std::int64_t token_stride = heads_first ? step : step * c.heads;
  const std::int64_t head_stride = heads_first ? step * c.tokens : step;
  const auto view = [&](Bf16* data) {
    return TensorView(data + offset, DType::kBF16, {c.tokens, c.heads, kRopeDim},
                      {token_stride, head_stride, 1});
  };
  const std::int64_t count = c.tokens * c.heads;
  const OnDevice<Bf16> x(backend, rows_of_all_sizes(count + 1, step, 10));  // one more: for the offset
  const OnDevice<Bf16> own(backend, poison<Bf16>((count + 1) * step));
  const OnDevice<Bf16>& out = c.in_place ? x : own;
  const OnDevice<float> table(backend, cos_sin_table(kNumPositions));
  std::mt19937_64 random(11);
  std::vector<std::int32_t> positions;
  for (std::int64_t i = 0; i < c.tokens; ++i)
    positions.push_back(i == 0 ? kNumPositions - 1 : static_cast<std::int32_t>(random() % kNumPositions));
  const OnDevice<std::int32_t> position(backend, positions);
  const RopeParams params{.cos_sin = {table.data(), DType::kF32, {kNumPositions, kRopeDim}},
                          .positions = {position.data(), DType::kI32, {c.tokens}},
                          .interleaved = c.interleaved};
  if (&backend == &reference()) {
    reference().plain_ops().rope(view(x.data()), params, view(out.data()), {});
  } else {
    cuda_ops::rope(view(x.data()), params, view(out.data()), nullptr);
  }
  return out.host();
}

void expect_same_rope(const RopeCase& c) {
  SCOPED_TRACE(::testing::Message() << c.tokens << " x " << c.heads << " rows " << static_cast<int>(c.rows)
                                    << (c.interleaved ? " interleaved" : " halves")
                                    << (c.in_place ? " in place" : ""));
  EXPECT_EQ(first_difference(run_rope(cuda(), c), run_rope(reference(), c)), -1);
}

class CudaRope : public GpuTest {};

TEST_F(CudaRope, EqualsTheReferenceBitForBit) {
  for (const HeadRows rows :
       {HeadRows::kDense, HeadRows::kBehindNope, HeadRows::kHeadsFirst, HeadRows::kOdd}) {
    for (const bool interleaved : {false, true}) {
      for (const bool in_place : {false, true}) {
        expect_same_rope(
            {.tokens = 7, .heads = 5, .rows = rows, .interleaved = interleaved, .in_place = in_place});
      }
    }
  }
}

TEST_F(CudaRope, TakesAnyShape) {
  for (const auto& [tokens, heads] :
       std::vector<std::array<std::int64_t, 2>>{{1, 1}, {1, 128}, {33, 20}, {64, 128}, {5000, 3}, {0, 8}}) {
    expect_same_rope({.tokens = tokens, .heads = heads, .interleaved = heads % 2 == 0});
  }
}

}  // namespace
}  // namespace snapmla::test
