// embed, scale_rows, silu_mul and add: a thread takes eight elements of a row. As the reference, bit for bit, but for
// the exponential in silu: expf of CUDA errs by up to 1 ulp of fp32 where the C library's errs by half of one, so a
// quotient can differ by two, and the result in bf16 by its last bit where it was that close to the middle between two.
//
// Bound by memory, and at decode sizes by latency: small blocks, so that one row spreads over several SMs.
#include <cstdint>

#include "cuda/device/elements.cuh"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

constexpr int kThreads = 128;

struct InRows {
  const Bf16* data;
  std::int64_t stride;

  template <bool kAligned>
  __device__ __forceinline__ Eight load(std::int64_t row, int first, int d) const {
    return load_eight<kAligned>(data + row * stride, first, d);
  }
};

/// f of two elements each, in fp32, rounded to bf16 once.
template <class F>
__device__ __forceinline__ Eight map_eight(const Eight& a, const Eight& b, const F& f) {
  Eight result;
#pragma unroll
  for (int i = 0; i < kRun / 2; ++i) {
    result.word[i] =
        pack_bf16(f(low_bf16(a.word[i]), low_bf16(b.word[i])), f(high_bf16(a.word[i]), high_bf16(b.word[i])));
  }
  return result;
}

// The ops: eight elements of a row of the result.

struct Embed {
  const int* token;
  InRows table;

  template <bool kAligned>
  __device__ __forceinline__ Eight at(std::int64_t row, int first, int d) const {
    return table.load<kAligned>(__ldg(token + row), first, d);
  }
};

struct ScaleRows {
  InRows x;
  const int* positions;
  const float* factor;

  template <bool kAligned>
  __device__ __forceinline__ Eight at(std::int64_t row, int first, int d) const {
    const Eight values = x.load<kAligned>(row, first, d);
    const float by = __ldg(factor + __ldg(positions + row));
    return map_eight(values, values, [by](float value, float) { return __fmul_rn(value, by); });
  }
};

struct SiluMul {
  InRows gate;
  InRows up;

  template <bool kAligned>
  __device__ __forceinline__ Eight at(std::int64_t row, int first, int d) const {
    return map_eight(gate.load<kAligned>(row, first, d), up.load<kAligned>(row, first, d),
                     [](float g, float u) {
                       const float silu = __fdiv_rn(g, __fadd_rn(1, expf(-g)));
                       return __fmul_rn(silu, u);
                     });
  }
};

struct Add {
  InRows a;
  InRows b;

  template <bool kAligned>
  __device__ __forceinline__ Eight at(std::int64_t row, int first, int d) const {
    return map_eight(a.load<kAligned>(row, first, d), b.load<kAligned>(row, first, d),
                     [](float x, float y) { return __fadd_rn(x, y); });
  }
};

struct OutRows {
  Bf16* data;
  std::int64_t stride;
  std::uint32_t rows;
  int d;
  std::uint32_t runs;  ///< of eight, a row
};

/// Grid: a thread for eight elements of the result. kAligned: all rows start at multiples of 16 bytes.
template <bool kAligned, class Op>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(const Op op, const OutRows out) {
  launch_next_grid();
  wait_for_previous_grid();
  const std::uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  const std::uint32_t row = index / out.runs;
  if (row >= out.rows) return;
  const int first = static_cast<int>(index - row * out.runs) * kRun;
  store_eight<kAligned>(out.data + row * out.stride, first, out.d,
                        op.template at<kAligned>(row, first, out.d));
}

InRows in_rows(const ConstTensorView& view) {
  return {.data = view.as<Bf16>(), .stride = view.stride(0)};
}

/// `aligned`: of all inputs; the output's rows are looked at here.
template <class Op>
void launch(const Op& op, bool aligned, const TensorView& out, cudaStream_t stream) {
  const std::int64_t runs = runs_of(out.dim(1));
  const std::int64_t num_blocks = (out.dim(0) * runs + kThreads - 1) / kThreads;
  if (num_blocks == 0) return;
  SNAPMLA_ASSERT(num_blocks * kThreads <= INT32_MAX);
  const OutRows rows{.data = out.as<Bf16>(),
                     .stride = out.stride(0),
                     .rows = static_cast<std::uint32_t>(out.dim(0)),
                     .d = static_cast<int>(out.dim(1)),
                     .runs = static_cast<std::uint32_t>(runs)};
  const auto kernel = aligned && rows_aligned(out, kVectorBytes) ? elementwise_kernel<true, Op>
                                                                 : elementwise_kernel<false, Op>;
  launch_overlapped(kernel, dim3(static_cast<unsigned>(num_blocks)), kThreads, 0, stream, op, rows);
}

void require_same_rows(const ConstTensorView& a, const ConstTensorView& b) {
  SNAPMLA_ASSERT(is_tensor(a, DType::kBF16, 2) && is_tensor(b, DType::kBF16, 2));
  SNAPMLA_ASSERT(a.dim(0) == b.dim(0) && a.dim(1) == b.dim(1));
}

}  // namespace

void embed(const ConstTensorView& token, const ConstTensorView& table, const TensorView& out,
           cudaStream_t stream) {
  SNAPMLA_ASSERT(is_tensor(token, DType::kI32, 1) && is_tensor(table, DType::kBF16, 2) &&
                 is_tensor(out, DType::kBF16, 2));
  SNAPMLA_ASSERT(out.dim(0) == token.dim(0) && out.dim(1) == table.dim(1));
  launch(Embed{.token = token.as<std::int32_t>(), .table = in_rows(table)}, rows_aligned(table, kVectorBytes),
         out, stream);
}

void scale_rows(const ConstTensorView& x, const ConstTensorView& positions, const ConstTensorView& factor,
                const TensorView& out, cudaStream_t stream) {
  require_same_rows(x, out);
  SNAPMLA_ASSERT(is_tensor(positions, DType::kI32, 1) && positions.dim(0) == x.dim(0));
  SNAPMLA_ASSERT(is_tensor(factor, DType::kF32, 1));
  launch(ScaleRows{.x = in_rows(x), .positions = positions.as<std::int32_t>(), .factor = factor.as<float>()},
         rows_aligned(x, kVectorBytes), out, stream);
}

void silu_mul(const ConstTensorView& gate, const ConstTensorView& up, const TensorView& out,
              cudaStream_t stream) {
  require_same_rows(gate, up);
  require_same_rows(gate, out);
  launch(SiluMul{.gate = in_rows(gate), .up = in_rows(up)},
         rows_aligned(gate, kVectorBytes) && rows_aligned(up, kVectorBytes), out, stream);
}

void add(const ConstTensorView& a, const ConstTensorView& b, const TensorView& out, cudaStream_t stream) {
  require_same_rows(a, b);
  require_same_rows(a, out);
  launch(Add{.a = in_rows(a), .b = in_rows(b)},
         rows_aligned(a, kVectorBytes) && rows_aligned(b, kVectorBytes), out, stream);
}

}  // namespace snapmla::cuda_ops
