// fill_random on the GPU against the reference, bit for bit, at the counts where vectors of 16 bytes end.
#include <vector>

#include "core/plain_ops.h"
#include "cuda/plain_ops.h"
#include "gpu_test.h"

namespace snapmla::test {
namespace {

class FillRandom : public GpuCases<std::int64_t> {};

template <class T>
void expect_reference_bits(DType dtype, std::int64_t count, const RandomFill& fill) {
  constexpr std::int64_t kBehind = 16;  // not to be touched
  std::vector<T> expected = poison<T>(count + kBehind);
  reference().plain_ops().fill_random({expected.data(), dtype, {count}}, fill, {});
  const OnDevice<T> device(cuda(), poison<T>(count + kBehind));
  cuda_ops::fill_random({device.data(), dtype, {count}}, fill, nullptr);
  EXPECT_EQ(first_difference(device.host(), expected), -1) << to_string(dtype) << ' ' << count;
}

TEST_P(FillRandom, GivesTheReferencesBits) {
  const RandomFill fill{
      .seed = 0x123456789abcdefU, .first = (std::uint64_t{1} << 40) + 3, .deviation = 0.037F};
  expect_reference_bits<Bf16>(DType::kBF16, GetParam(), fill);
  expect_reference_bits<float>(DType::kF32, GetParam(), fill);
  for (const float deviation :
       {0.037F, 64.0F, 1000.0F}) {  // subnormal codes, those of dummy weights, saturated ones
    const RandomFill codes{.seed = fill.seed, .first = fill.first, .deviation = deviation};
    expect_reference_bits<E4m3>(DType::kE4M3, GetParam(), codes);
  }
}

// The last is more than one turn of all blocks.
INSTANTIATE_TEST_SUITE_P(, FillRandom, ::testing::Values(1, 7, 8, 9, 2047, 2048, 2049, 100'003, 20'000'003));

}  // namespace
}  // namespace snapmla::test
