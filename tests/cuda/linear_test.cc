// linear and head_linear by cuBLASLt against the reference.
//
// Both sum bf16 products, exact in fp32, in an order of their own. A sum of n terms of standard normal factors walks to about sqrt(n);
// each addition rounds by at most 2^-24 of the partial sum, at random, so n of them by sqrt(n) 2^-24 of the largest partial sum, which
// is the result or some sqrt(n): four times that bounds the difference of two orders. Then both round: to bf16 by half of 2^-8 of the
// result each, so two results may lie one step apart.
#include "cuda/linear.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/plain_ops.h"
#include "gpu_test.h"
#include "support/random_tensors.h"

namespace snapmla {
namespace {

using test::GpuTest;
using test::OnDevice;

class CudaLinear : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    if (const Support support = cuda().supports_models(); !support.ok) GTEST_SKIP() << support.reason;
  }
};

struct LinearCase {
  std::int64_t rows;
  std::int64_t inner;
  std::int64_t outs;
  bool bias = false;
  bool f32 = false;
  std::int64_t x_stride = 0;    ///< 0: dense
  std::int64_t out_stride = 0;  ///< 0: dense
};

/// out as floats; what lies between rows stays poisoned.
std::vector<float> run_linear(Backend& backend, const PlainOps& ops, const LinearCase& c) {
  const std::int64_t x_stride = c.x_stride != 0 ? c.x_stride : c.inner;
  const std::int64_t out_stride = c.out_stride != 0 ? c.out_stride : c.outs;
  const OnDevice<Bf16> x(backend, testing::random_bf16(c.rows * x_stride, 1));
  const OnDevice<Bf16> weight(backend, testing::random_bf16(c.outs * c.inner, 2));
  const OnDevice<Bf16> bias(backend, testing::random_bf16(c.outs, 3));
  const DType dtype = c.f32 ? DType::kF32 : DType::kBF16;
  const OnDevice<std::uint8_t> out(backend, test::poison<std::uint8_t>(c.rows * out_stride * size_of(dtype)));
  ops.linear({x.data(), DType::kBF16, {c.rows, c.inner}, {x_stride, 1}},
             ConstTensorView(weight.data(), DType::kBF16, {c.outs, c.inner}),
             c.bias ? ConstTensorView(bias.data(), DType::kBF16, {c.outs}) : ConstTensorView{},
             TensorView(out.data(), dtype, {c.rows, c.outs}, {out_stride, 1}), {});
  const std::vector<std::uint8_t> bytes = out.host();
  std::vector<float> values;
  for (std::int64_t i = 0; i < c.rows * out_stride; ++i) {
    if (c.f32) {
      float value = 0;
      std::memcpy(&value, bytes.data() + 4 * i, sizeof value);
      values.push_back(value);
    } else {
      Bf16 value{};
      std::memcpy(&value, bytes.data() + 2 * i, sizeof value);
      values.push_back(to_float(value));
    }
  }
  return values;
}

void expect_close(const std::vector<float>& got, const std::vector<float>& want, std::int64_t inner,
                  bool f32) {
  ASSERT_EQ(got.size(), want.size());
  const double walk = std::sqrt(static_cast<double>(inner));
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::isnan(got[i]), std::isnan(want[i])) << "at " << i;
    if (std::isnan(want[i])) continue;
    const double rounding = f32 ? 0 : std::ldexp(std::abs(want[i]), -7);
    const double order = std::ldexp(walk * std::max<double>(walk, std::abs(want[i])), -22);
    ASSERT_LE(std::abs(got[i] - want[i]), order + rounding)
        << "at " << i << ": " << got[i] << ", " << want[i];
  }
}

TEST_F(CudaLinear, MatchesTheReference) {
  for (const LinearCase& c :
       {LinearCase{.rows = 1, .inner = 64, .outs = 128}, LinearCase{.rows = 7, .inner = 2048, .outs = 576},
        LinearCase{.rows = 64, .inner = 512, .outs = 3072},
        LinearCase{.rows = 100, .inner = 256, .outs = 2048}, LinearCase{.rows = 3, .inner = 48, .outs = 24},
        LinearCase{.rows = 5, .inner = 40, .outs = 72, .bias = true},
        LinearCase{.rows = 33, .inner = 256, .outs = 96, .bias = true},
        LinearCase{.rows = 4, .inner = 256, .outs = 2048, .f32 = true},
        LinearCase{.rows = 9, .inner = 128, .outs = 64, .x_stride = 192, .out_stride = 80},
        LinearCase{.rows = 1, .inner = 128, .outs = 64, .x_stride = 192, .out_stride = 80}}) {
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.inner << " x " << c.outs);
    const std::vector<float> want = run_linear(reference(), reference().plain_ops(), c);
    expect_close(run_linear(cuda(), cuda().plain_ops(), c), want, c.inner, c.f32);
    expect_close(run_linear(cuda(), cuda().plain_ops().deterministic(), c), want, c.inner, c.f32);
  }
}

TEST_F(CudaLinear, OfNoRowsDoesNothing) {
  EXPECT_TRUE(run_linear(cuda(), cuda().plain_ops(), {.rows = 0, .inner = 64, .outs = 64}).empty());
}

struct HeadCase {
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t inner;
  std::int64_t outs;
  bool transposed;
  bool shared_x = false;  ///< every head projects the same row
};

std::vector<float> run_heads(Backend& backend, const PlainOps& ops, const HeadCase& c) {
  const std::int64_t row = c.heads * (c.inner + 64);  // as q: the rope part lies between the heads
  const OnDevice<Bf16> x(backend, testing::random_bf16(c.rows * row, 4));
  const OnDevice<Bf16> weight(backend, testing::random_bf16(c.heads * c.inner * c.outs, 5));
  const OnDevice<Bf16> out(backend, test::poison<Bf16>(c.rows * c.heads * c.outs));
  ops.head_linear(
      {x.data(), DType::kBF16, {c.rows, c.heads, c.inner}, {row, c.shared_x ? 0 : c.inner + 64, 1}},
      c.transposed ? ConstTensorView(weight.data(), DType::kBF16, {c.heads, c.inner, c.outs})
                   : ConstTensorView(weight.data(), DType::kBF16, {c.heads, c.outs, c.inner}),
      c.transposed, TensorView(out.data(), DType::kBF16, {c.rows, c.heads, c.outs}), {});
  std::vector<float> values;
  for (const Bf16 value : out.host()) values.push_back(to_float(value));
  return values;
}

TEST_F(CudaLinear, OfHeadsMatchesTheReference) {
  for (const HeadCase& c :
       {HeadCase{1, 16, 128, 512, true}, HeadCase{40, 16, 128, 512, true}, HeadCase{40, 16, 512, 128, false},
        HeadCase{3, 4, 32, 512, true}, HeadCase{65, 4, 512, 64, false},
        HeadCase{200, 8, 512, 128, false, true}, HeadCase{2, 5, 24, 512, true}}) {
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.heads << " x " << c.inner << " x " << c.outs);
    const std::vector<float> want = run_heads(reference(), reference().plain_ops(), c);
    expect_close(run_heads(cuda(), cuda().plain_ops(), c), want, c.inner, false);
    expect_close(run_heads(cuda(), cuda().plain_ops().deterministic(), c), want, c.inner, false);
  }
}

// What deterministic() promises: the first rows of a large call have the bits they have alone.
TEST_F(CudaLinear, DeterministicRowsDoNotDependOnTheirNumber) {
  const PlainOps& ops = cuda().plain_ops().deterministic();
  for (const auto& [inner, outs] :
       {std::pair<std::int64_t, std::int64_t>{2048, 576}, {7168, 2048}, {256, 2048}}) {
    const std::vector<float> all = run_linear(cuda(), ops, {.rows = 512, .inner = inner, .outs = outs});
    for (const std::int64_t rows : {1, 2, 17, 64, 200}) {
      const std::vector<float> some = run_linear(cuda(), ops, {.rows = rows, .inner = inner, .outs = outs});
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin()))
          << rows << " rows of " << inner << " x " << outs;
    }
  }
  const std::vector<float> all = run_heads(cuda(), ops, {300, 16, 128, 512, true});
  for (const std::int64_t rows : {1, 5, 64}) {
    const std::vector<float> some = run_heads(cuda(), ops, {rows, 16, 128, 512, true});
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << rows << " rows of heads";
  }
}

}  // namespace
}  // namespace snapmla
