// combine on the GPU against the reference; the same bits whatever else is in the batch.
#include <limits>

#include "core/bf16.h"
#include "gpu_test.h"

namespace snapmla::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Partials {
  std::int64_t rows = 1;
  std::vector<std::int32_t> split_offsets{};
  std::vector<float> out{};  ///< [partials, rows, 512]
  std::vector<float> lse{};  ///< [partials, rows]
};

/// Requests with so many partials each. A tenth of the partials is empty, and NaN; row 3 is empty everywhere.
Partials make_partials(const std::vector<int>& counts, std::int64_t rows, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Partials partials{.rows = rows, .split_offsets = {0}};
  for (const int count : counts) {
    partials.split_offsets.push_back(partials.split_offsets.back() + count);
    for (std::int64_t i = 0; i < count * rows; ++i) {
      const bool empty = i % rows == 3 || random() % 10 == 0;
      partials.lse.push_back(empty ? -kInfinity : 20 + 3 * normal(random));
      for (int d = 0; d < kLatentDim; ++d) partials.out.push_back(empty ? NAN : 1 + normal(random));
    }
  }
  return partials;
}

struct Combined {
  std::vector<float> out;
  std::vector<float> lse;
};

Combined run_combine(Backend& backend, const Partials& partials, DType type) {
  const auto batch = static_cast<std::int64_t>(partials.split_offsets.size()) - 1;
  const std::int64_t count = partials.split_offsets.back();
  const OnDevice<float> partial_out(backend, partials.out);
  const OnDevice<float> partial_lse(backend, partials.lse);
  const OnDevice<std::int32_t> split_offsets(backend, partials.split_offsets);
  const std::int64_t elements = batch * partials.rows * kLatentDim;
  const OnDevice<std::uint8_t> out(backend, poison<std::uint8_t>(elements * size_of(type)));
  const OnDevice<float> lse(backend, poison<float>(batch * partials.rows));
  combine(backend,
          {.partial_out = {partial_out.data(), DType::kF32, {count, partials.rows, kLatentDim}},
           .partial_lse = {partial_lse.data(), DType::kF32, {count, partials.rows}},
           .split_offsets = {split_offsets.data(), DType::kI32, {batch + 1}},
           .out = {out.data(), type, {batch, 1, partials.rows, kLatentDim}},
           .lse = {lse.data(), DType::kF32, {batch, 1, partials.rows}}},
          {});
  Combined result{.out = {}, .lse = lse.host()};
  const std::vector<std::uint8_t> bytes = out.host();
  for (std::int64_t i = 0; i < elements; ++i) {
    Bf16 narrow;
    float wide = 0;
    std::memcpy(&narrow, &bytes[2 * i], 2);
    if (type == DType::kF32) std::memcpy(&wide, &bytes[4 * i], 4);
    result.out.push_back(type == DType::kF32 ? wide : to_float(narrow));
  }
  return result;
}

class CudaCombine : public GpuTest {};

// Weights in fp32: exp of a difference d is off by about 2^-22 + |d| 2^-24 relative, and where |d| is above 16
// the weight no longer counts: 2^-19 of the largest partial bounds it all, sums of hundreds of terms included.
TEST_F(CudaCombine, EqualsTheReferenceWithinFp32) {
  for (const std::vector<int>& counts : std::vector<std::vector<int>>{{1},
                                                                      {2},
                                                                      {7, 0, 1, 9},
                                                                      {12, 13},
                                                                      {16, 17},
                                                                      {33},
                                                                      {132},
                                                                      {300},
                                                                      std::vector<int>(40, 3),
                                                                      {1, 64, 2, 130, 1}}) {
    for (const std::int64_t rows : {1, 5, 64}) {
      if (counts.size() * rows > 2000) continue;
      const Partials partials = make_partials(counts, rows, 41);
      const Combined expected = run_combine(reference(), partials, DType::kF32);
      const Combined found = run_combine(cuda(), partials, DType::kF32);
      double worst = 0;
      for (std::size_t i = 0; i < expected.out.size(); ++i)
        worst = std::fmax(worst, std::abs(double{found.out[i]} - expected.out[i]));
      EXPECT_LE(worst, 0x1p-19 * 6) << counts.size() << " requests, " << rows << " rows";  // numbers below 6
      for (std::size_t i = 0; i < expected.lse.size(); ++i) {
        if (std::isinf(expected.lse[i])) {
          EXPECT_EQ(found.lse[i], -kInfinity) << "row " << i;
          for (std::size_t d = 0; d < kLatentDim; ++d)
            ASSERT_EQ(found.out[i * kLatentDim + d], 0) << "row " << i;
        } else {
          EXPECT_NEAR(found.lse[i], expected.lse[i], 4e-6) << "row " << i;  // two steps of fp32 near 20
        }
      }
      for (const float value : found.out) ASSERT_FALSE(std::isnan(value)) << "an empty partial was used";
      const Combined rounded = run_combine(cuda(), partials, DType::kBF16);
      for (std::size_t i = 0; i < rounded.out.size(); ++i)
        ASSERT_EQ(rounded.out[i], round_to_bf16(found.out[i])) << "element " << i;
    }
  }
}

// Few partials and many, alone and among requests that have the one or the other.
TEST_F(CudaCombine, GivesTheSameBitsInAnyBatch) {
  for (const int count : {1, 2, 8, 12, 13, 16, 24, 66, 132, 140}) {
    constexpr std::int64_t kRows = 64;
    const Partials alone = make_partials({count}, kRows, 42);
    Partials crowd = make_partials({3, 20, count, 1, 40}, kRows, 43);
    const std::int64_t first = 23 * kRows;
    std::copy(alone.out.begin(), alone.out.end(), crowd.out.begin() + first * kLatentDim);
    std::copy(alone.lse.begin(), alone.lse.end(), crowd.lse.begin() + first);
    const Combined expected = run_combine(cuda(), alone, DType::kF32);
    const Combined found = run_combine(cuda(), crowd, DType::kF32);
    const std::vector<float> out(found.out.begin() + 2 * kRows * kLatentDim,
                                 found.out.begin() + 3 * kRows * kLatentDim);
    const std::vector<float> lse(found.lse.begin() + 2 * kRows, found.lse.begin() + 3 * kRows);
    EXPECT_EQ(first_difference(out, expected.out), -1) << count << " partials";
    EXPECT_EQ(first_difference(lse, expected.lse), -1) << count << " partials";
  }
}

}  // namespace
}  // namespace snapmla::test
