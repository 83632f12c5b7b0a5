// sample: a token from each row of logits, and its log-probability, by the rule of src/reference/sample.h. A block a row.
//
//     sample/stats.cuh           the largest logit, its index, and the sum of the softmax; greedy and forced rows are done with it
//     sample/walk_by_index.cuh   the token of a row without cuts, which is walked by index
//     sample/walk_by_rank.cuh    the token of a row with cuts (top_k, top_p), which is walked by rank
#include <cstdint>

#include "core/sample_rule.h"
#include "cuda/device/launch.h"
#include "cuda/device/ptx.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"
#include "cuda/sample/config.cuh"
#include "cuda/sample/mass.cuh"
#include "cuda/sample/stats.cuh"
#include "cuda/sample/walk_by_index.cuh"
#include "cuda/sample/walk_by_rank.cuh"

namespace snapmla::cuda_ops {
namespace {

using namespace sampling;

struct SampleArgs {
  const float* logits;
  std::int64_t stride;
  int vocab;
  const SampleRow* rows;
  int* token;
  float* logprob;
};

template <bool kAligned>
__device__ __forceinline__ int choose(const float* g_row, int vocab, const SampleRow& row,
                                      const RowStats& stats, Shared& shared) {
  if (row.forced >= 0) return row.forced;
  if (row.temperature == 0) return stats.argmax;
  const double uniform = uniform_at(row.seed, row.position);
  const bool cuts = (row.top_k > 0 && row.top_k < vocab) || row.top_p < 1;
  if (cuts) return RankedRow<kAligned>{g_row, vocab, &shared}.choose(row, stats, uniform);
  const Mass mass{.largest = stats.largest, .inverse = 1.0 / row.temperature};
  return walk_by_index(
      vocab, [&](int i) { return mass(__ldg(g_row + i)); }, [uniform](double sum) { return uniform * sum; },
      shared.real);
}

/// Grid: a block a row. kAligned: rows of logits start at multiples of 16 bytes.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs args) {
  __shared__ Shared shared;
  launch_next_grid();
  wait_for_previous_grid();
  const float* g_row = args.logits + blockIdx.x * args.stride;
  const SampleRow row = args.rows[blockIdx.x];
  const RowStats stats = find_stats<kAligned>(g_row, args.vocab, shared);
  const int token = stats.argmax < 0 ? -1 : choose<kAligned>(g_row, args.vocab, row, stats, shared);
  if (threadIdx.x > 0) return;
  args.token[blockIdx.x] = token;
  args.logprob[blockIdx.x] =
      token < 0 ? NAN
                : static_cast<float>(static_cast<double>(g_row[token]) - stats.largest - log(stats.sum));
}

}  // namespace

void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
            const TensorView& logprob, cudaStream_t stream) {
  const std::int64_t n = rows.dim(0);
  constexpr std::int64_t kMaxVocab = 1 << 18;  // RankedRow::choose: halves that rounding may add
  SNAPMLA_ASSERT(is_tensor(logits, DType::kF32, 2) && logits.dim(0) >= n && logits.dim(1) >= 1 &&
                 logits.dim(1) <= kMaxVocab);
  SNAPMLA_ASSERT(is_tensor(rows, DType::kU8, 2) && rows.dim(1) == kSampleRowBytes && rows.is_contiguous() &&
                 is_aligned(rows.data(), kVectorBytes) && n <= INT32_MAX);
  SNAPMLA_ASSERT(is_tensor(token, DType::kI32, 1) && token.dim(0) >= n);
  SNAPMLA_ASSERT(is_tensor(logprob, DType::kF32, 1) && logprob.dim(0) >= n);
  if (n == 0) return;
  const SampleArgs args{.logits = logits.as<float>(),
                        .stride = logits.stride(0),
                        .vocab = static_cast<int>(logits.dim(1)),
                        .rows = rows.as<SampleRow>(),
                        .token = token.as<std::int32_t>(),
                        .logprob = logprob.as<float>()};
  const auto kernel = rows_aligned(logits, kVectorBytes) ? sample_kernel<true> : sample_kernel<false>;
  launch_overlapped(kernel, dim3(static_cast<unsigned>(n)), kThreads, 0, stream, args);
}

}  // namespace snapmla::cuda_ops
