// The plain ops that take a model's time on the CPU: a projection of 256 to 1,024 at 1, 8 and 512 rows, and
// prefill attention of the last 512 queries of a context. FLOPS counts a multiplication and an addition as
// two.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "core/bf16.h"
#include "core/plain_ops.h"
#include "snapmla/backend.h"

namespace snapmla {
namespace {

// Numbers between -0.5 and 0.5, cheaply: the values do not matter, but denormals and infinities would.
std::vector<Bf16> numbers(std::int64_t n) {
  std::vector<Bf16> values;
  for (std::int64_t i = 0; i < n; ++i)
    values.push_back(to_bf16(static_cast<float>(i * 7919 % 1000) / 1000 - 0.5F));
  return values;
}

void set_flops(benchmark::State& state, double flops_per_iteration) {
  state.counters["FLOPS"] =
      benchmark::Counter(flops_per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

void linear(benchmark::State& state) {
  constexpr std::int64_t kIn = 256;
  constexpr std::int64_t kOut = 1024;
  const std::int64_t rows = state.range(0);
  const std::vector<Bf16> x = numbers(rows * kIn);
  const std::vector<Bf16> weight = numbers(kOut * kIn);
  std::vector<Bf16> out(static_cast<std::size_t>(rows * kOut));
  for ([[maybe_unused]] auto iteration : state) {
    reference().plain_ops().linear(ConstTensorView(x.data(), DType::kBF16, {rows, kIn}),
                                   ConstTensorView(weight.data(), DType::kBF16, {kOut, kIn}), {},
                                   TensorView(out.data(), DType::kBF16, {rows, kOut}), {});
  }
  set_flops(state, 2.0 * static_cast<double>(rows * kIn * kOut));
  state.SetBytesProcessed(state.iterations() * kIn * kOut * 2);
}
BENCHMARK(linear)->Arg(1)->Arg(8)->Arg(512)->UseRealTime();

void prefill_attention(benchmark::State& state) {
  constexpr std::int64_t kTokens = 512;
  constexpr std::int64_t kHeads = 4;
  constexpr std::int64_t kNope = 64;
  constexpr std::int64_t kV = 64;
  const std::int64_t seq_len = state.range(0);
  const std::vector<Bf16> q = numbers(kTokens * kHeads * (kNope + kRopeDim));
  const std::vector<Bf16> k_nope = numbers(seq_len * kHeads * kNope);
  const std::vector<Bf16> k_rope = numbers(seq_len * kRopeDim);
  const std::vector<Bf16> v = numbers(seq_len * kHeads * kV);
  std::vector<Bf16> out(static_cast<std::size_t>(kTokens * kHeads * kV));
  for ([[maybe_unused]] auto iteration : state) {
    reference().plain_ops().prefill_attention(
        {.q = ConstTensorView(q.data(), DType::kBF16, {kTokens, kHeads, kNope + kRopeDim}),
         .k_nope = ConstTensorView(k_nope.data(), DType::kBF16, {seq_len, kHeads, kNope}),
         .k_rope = ConstTensorView(k_rope.data(), DType::kBF16, {seq_len, kRopeDim}),
         .v = ConstTensorView(v.data(), DType::kBF16, {seq_len, kHeads, kV}),
         .softmax_scale = 0.1F,
         .out = TensorView(out.data(), DType::kBF16, {kTokens, kHeads, kV})},
        {});
  }
  const std::int64_t pairs = kTokens * (seq_len - kTokens) + kTokens * (kTokens + 1) / 2;
  set_flops(state, 2.0 * static_cast<double>(pairs * kHeads * (kNope + kRopeDim + kV)));
}
BENCHMARK(prefill_attention)->Arg(512)->Arg(4096)->Arg(16384)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace snapmla
