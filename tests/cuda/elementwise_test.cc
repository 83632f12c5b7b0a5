// embed, scale_rows, silu_mul and add on the GPU against the reference: the same bits, but for silu's exponential.
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "bf16_rows.h"
#include "core/plain_ops.h"
#include "cuda/plain_ops.h"

namespace snapmla::test {
namespace {

struct Inputs {
  ConstTensorView a;
  ConstTensorView b;
  ConstTensorView ids;     ///< [rows] int32, each in [0, rows)
  ConstTensorView factor;  ///< [rows] f32
};

struct Op {
  std::string name;
  std::function<void(const Inputs&, const TensorView&)> on_reference;
  std::function<void(const Inputs&, const TensorView&)> on_cuda;
  bool exact = true;
  bool takes_b = true;   ///< out may be b
  bool in_place = true;  ///< out may be a
};

const std::vector<Op>& all_ops() {
  static const PlainOps& ops = reference().plain_ops();
  static const std::vector<Op> all = {
      {.name = "embed",
       .on_reference = [](const Inputs& in, const TensorView& out) { ops.embed(in.ids, in.a, out, {}); },
       .on_cuda = [](const Inputs& in,
                     const TensorView& out) { cuda_ops::embed(in.ids, in.a, out, nullptr); },
       .takes_b = false,
       .in_place = false},
      {.name = "scale_rows",
       .on_reference = [](const Inputs& in,
                          const TensorView& out) { ops.scale_rows(in.a, in.ids, in.factor, out, {}); },
       .on_cuda = [](const Inputs& in,
                     const TensorView& out) { cuda_ops::scale_rows(in.a, in.ids, in.factor, out, nullptr); },
       .takes_b = false},
      {.name = "silu_mul",
       .on_reference = [](const Inputs& in, const TensorView& out) { ops.silu_mul(in.a, in.b, out, {}); },
       .on_cuda = [](const Inputs& in,
                     const TensorView& out) { cuda_ops::silu_mul(in.a, in.b, out, nullptr); },
       .exact = false},
      {.name = "add",
       .on_reference = [](const Inputs& in, const TensorView& out) { ops.add(in.a, in.b, out, {}); },
       .on_cuda = [](const Inputs& in, const TensorView& out) { cuda_ops::add(in.a, in.b, out, nullptr); }}};
  return all;
}

enum class Out { kOwn, kA, kB };

struct Case {
  std::int64_t rows;
  std::int64_t d;
  Spacing spacing{};
  Out out = Out::kOwn;
};

struct Values {
  std::vector<Bf16> a;
  std::vector<Bf16> b;
};

/// Everything of the output's memory.
std::vector<Bf16> run(Backend& backend, const std::function<void(const Inputs&, const TensorView&)>& call,
                      const Case& c, const Values& values) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  std::vector<std::int32_t> ids;
  std::vector<float> factors;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    ids.push_back(
        static_cast<std::int32_t>(i == 0 ? c.rows - 1 : static_cast<std::int64_t>(random()) & 0x7fffffff) %
        static_cast<std::int32_t>(c.rows));
    factors.push_back(1 + 0.3F * normal(random));
  }
  const OnDevice<std::int32_t> id(backend, ids);
  const OnDevice<float> factor(backend, factors);
  const Bf16Rows a(backend, c.rows, c.d, c.spacing, values.a);
  const Bf16Rows b(backend, c.rows, c.d, c.spacing, values.b);
  const Bf16Rows own(backend, c.rows, c.d, c.spacing);
  const Bf16Rows& out = c.out == Out::kA ? a : c.out == Out::kB ? b : own;
  call({.a = a.view(),
        .b = b.view(),
        .ids = {id.data(), DType::kI32, {c.rows}},
        .factor = {factor.data(), DType::kF32, {c.rows}}},
       out.view());
  return out.host();
}

/// Steps from one bf16 to another, NaN none from any NaN.
int steps_between(Bf16 a, Bf16 b) {
  if (std::isnan(to_float(a)) || std::isnan(to_float(b)))
    return std::isnan(to_float(a)) && std::isnan(to_float(b)) ? 0 : 1 << 16;
  const auto place = [](Bf16 x) { return (x.bits & 0x8000) != 0 ? -(x.bits & 0x7fff) : x.bits & 0x7fff; };
  return std::abs(place(a) - place(b));
}

// expf is off by at most 1 ulp, 2^-23 relative, where the C library's is by about half of one; the sum with 1 and the
// quotient round alike. So silu differs by at most two or three 2^-24 relative before it is rounded to bf16, whose steps
// are 2^-8: the results are at most one step apart, and are so in one of some 10,000 elements.
void expect_equal(const Op& op, const Case& c, const Values& values) {
  SCOPED_TRACE(::testing::Message() << op.name << ' ' << c.rows << " x " << c.d << ' ' << c.spacing << " out "
                                    << static_cast<int>(c.out));
  const std::vector<Bf16> want = run(reference(), op.on_reference, c, values);
  const std::vector<Bf16> got = run(cuda(), op.on_cuda, c, values);
  if (op.exact) {
    EXPECT_EQ(first_difference_but_nan(got, want), -1);
    return;
  }
  ASSERT_EQ(got.size(), want.size());
  std::size_t different = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const int steps = steps_between(got[i], want[i]);
    ASSERT_LE(steps, 1) << "at " << i << ": " << to_float(got[i]) << ", " << to_float(want[i]);
    different += steps > 0 ? 1 : 0;
  }
  EXPECT_LE(different, 2 + got.size() / 1000);
}

Values random_values(const Case& c) {
  return {.a = rows_of_all_sizes(c.rows, c.d, 1), .b = rows_of_all_sizes(c.rows, c.d, 2)};
}

class CudaElementwise : public GpuTest {};

TEST_F(CudaElementwise, EqualsTheReference) {
  for (const Op& op : all_ops()) {
    for (const Spacing& spacing : all_spacings()) {
      for (const std::int64_t d : {1, 7, 8, 9, 100, 512, 7168}) {
        const Case c{.rows = 11, .d = d, .spacing = spacing};
        expect_equal(op, c, random_values(c));
      }
    }
  }
}

TEST_F(CudaElementwise, TakesAnyNumberOfRows) {
  for (const Op& op : all_ops()) {
    for (const std::int64_t rows : {1, 2, 127, 129, 5000}) {
      for (const std::int64_t d : {72, 75}) {
        const Case c{.rows = rows, .d = d};
        expect_equal(op, c, random_values(c));
      }
    }
  }
}

TEST_F(CudaElementwise, WritesOverItsInputs) {
  for (const Op& op : all_ops()) {
    for (const Spacing& spacing : all_spacings()) {
      for (const Out out : {Out::kA, Out::kB}) {
        if (out == Out::kA ? !op.in_place : !op.takes_b) continue;
        const Case c{.rows = 9, .d = 1000, .spacing = spacing, .out = out};
        expect_equal(op, c, random_values(c));
      }
    }
  }
}

TEST_F(CudaElementwise, TreatsSpecialNumbersAlike) {
  const std::vector<Bf16>& special = special_numbers();
  const auto count = static_cast<std::int64_t>(special.size());
  Values values;  // every pair
  for (const Bf16 a : special) {
    for (const Bf16 b : special) {
      values.a.push_back(a);
      values.b.push_back(b);
    }
  }
  for (const Op& op : all_ops()) expect_equal(op, {.rows = count, .d = count}, values);
}

// Every bf16 through silu.
TEST_F(CudaElementwise, SiluOfEveryNumber) {
  Values values;
  for (std::int64_t bits = 0; bits < 1 << 16; ++bits) {
    values.a.push_back(Bf16{static_cast<std::uint16_t>(bits)});
    values.b.push_back(to_bf16(1));
  }
  for (const Op& op : all_ops()) {
    if (!op.exact) expect_equal(op, {.rows = 16, .d = 4096}, values);
  }
}

TEST_F(CudaElementwise, OfNothingDoesNothing) {
  for (const Op& op : all_ops()) {
    EXPECT_TRUE(run(cuda(), op.on_cuda, {.rows = 0, .d = 64}, {}).empty());
  }
}

}  // namespace
}  // namespace snapmla::test
