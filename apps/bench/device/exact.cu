// Exact rows on the GPU, the sums of exact.cc in parallel: logits (a warp a token), softmax (a block a row), and
// the weighted sum of latents (a block a run of tokens, a thread a dim), whose runs the host adds up.
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>

#include "bench/device/device.h"
#include "core/bf16.h"
#include "core/check.h"
#include "core/device_buffer.h"
#include "core/e4m3.h"

namespace snapmla::apps {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kRunTokens = 1024;  // tokens a block of weigh() adds up

struct Args {
  const void* q_latent;
  const Bf16* q_rope;
  const float* q_scale;
  CacheView cache;
  const std::int32_t* block_table;
  std::int64_t block_table_stride;
  double softmax_scale;
  int rows_a_request;
  int max_tokens;
  const RowAt* at;  // [rows]
  double* weight;   // [rows, max_tokens]: logits, then probabilities
  double* lse;      // [rows]
  double* sum;      // [rows, runs, 512]
};

__device__ bool is_fp8(const Args& args) {
  return args.cache.format == CacheFormat::kFp8;
}

/// The stored number at `index` of a latent row, without its scale.
__device__ float latent_code(const Args& args, const void* row, int index) {
  return is_fp8(args) ? to_float(static_cast<const E4m3*>(row)[index])
                      : to_float(static_cast<const Bf16*>(row)[index]);
}

__device__ const std::byte* plane_row(const CachePlane& plane, std::int64_t page, int offset) {
  return static_cast<const std::byte*>(plane.data) + page * plane.page_stride + offset * plane.row_stride;
}

struct Token {
  const void* latent;
  const Bf16* rope;
  double scale;
};

__device__ Token token_at(const Args& args, int request, int token) {
  const std::int64_t page = args.block_table[request * args.block_table_stride + token / kPageTokens];
  const int offset = token % kPageTokens;
  const CacheView& cache = args.cache;
  return {
      .latent = plane_row(cache.latent, page, offset),
      .rope = reinterpret_cast<const Bf16*>(plane_row(cache.rope, page, offset)),
      .scale = is_fp8(args) ? *reinterpret_cast<const float*>(plane_row(cache.scale, page, offset)) : 1.0};
}

/// Grid: (tokens / warps, rows).
__global__ void find_logits(const Args args) {
  const RowAt at = args.at[blockIdx.y];
  const int token = static_cast<int>((blockIdx.x * kThreads + threadIdx.x) / kWarp);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  if (token >= at.tokens) return;
  const Token k = token_at(args, at.request, token);
  const std::int64_t row = static_cast<std::int64_t>(at.request) * args.rows_a_request + at.row;
  const int code_bytes = is_fp8(args) ? 1 : 2;
  const auto* q_latent = static_cast<const std::byte*>(args.q_latent) + row * kLatentDim * code_bytes;
  double sum = 0;
  for (int d = lane; d < kLatentDim; d += kWarp) {
    sum += latent_code(args, q_latent, d) * latent_code(args, k.latent, d);
  }
  for (int d = lane; d < kRopeDim; d += kWarp) {
    sum += to_float(args.q_rope[row * kRopeDim + d]) * to_float(k.rope[d]);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0U, sum, step);
  const double q_scale = is_fp8(args) ? args.q_scale[row] : 1.0;
  if (lane == 0) {
    args.weight[static_cast<std::int64_t>(blockIdx.y) * args.max_tokens + token] =
        args.softmax_scale * q_scale * k.scale * sum;
  }
}

template <class Combine>
__device__ double over_block(double x, Combine combine) {
  __shared__ double s_values[kThreads];
  s_values[threadIdx.x] = x;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) {
      s_values[threadIdx.x] = combine(s_values[threadIdx.x], s_values[threadIdx.x + step]);
    }
  }
  __syncthreads();
  const double result = s_values[0];
  __syncthreads();
  return result;
}

/// Grid: rows. Logits become probabilities.
__global__ void find_softmax(const Args args) {
  const int tokens = args.at[blockIdx.x].tokens;
  double* weight = args.weight + static_cast<std::int64_t>(blockIdx.x) * args.max_tokens;
  double most = -INFINITY;
  for (int t = static_cast<int>(threadIdx.x); t < tokens; t += kThreads) most = fmax(most, weight[t]);
  most = over_block(most, [](double a, double b) { return fmax(a, b); });
  double sum = 0;
  for (int t = static_cast<int>(threadIdx.x); t < tokens; t += kThreads) sum += exp(weight[t] - most);
  sum = over_block(sum, [](double a, double b) { return a + b; });
  const double lse = tokens > 0 ? most + log(sum) : -INFINITY;
  for (int t = static_cast<int>(threadIdx.x); t < tokens; t += kThreads) weight[t] = exp(weight[t] - lse);
  if (threadIdx.x == 0) args.lse[blockIdx.x] = lse;
}

/// Grid: (runs, rows), 512 threads.
__global__ void weigh(const Args args) {
  const RowAt at = args.at[blockIdx.y];
  const int dim = static_cast<int>(threadIdx.x);
  const double* weight = args.weight + static_cast<std::int64_t>(blockIdx.y) * args.max_tokens;
  const int begin = static_cast<int>(blockIdx.x) * kRunTokens;
  const int end = min(begin + kRunTokens, at.tokens);
  double sum = 0;
  for (int t = begin; t < end; ++t) {
    const Token k = token_at(args, at.request, t);
    sum += weight[t] * k.scale * latent_code(args, k.latent, dim);
  }
  args.sum[(static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * kLatentDim + dim] = sum;
}

template <class T>
std::vector<T> download(const DeviceBuffer& from, std::size_t count, cudaStream_t stream) {
  std::vector<T> host(count);
  SNAPMLA_CUDA(cudaMemcpyAsync(host.data(), from.data(), count * sizeof(T), cudaMemcpyDeviceToHost, stream));
  SNAPMLA_CUDA(cudaStreamSynchronize(stream));
  return host;
}

}  // namespace

std::vector<ExactRow> exact_rows_on_device(const DecodeParams& params, const std::vector<RowAt>& rows,
                                           Stream stream) {
  auto* const on = static_cast<cudaStream_t>(stream.handle);
  int max_tokens = 1;
  for (const RowAt& at : rows) max_tokens = at.tokens > max_tokens ? at.tokens : max_tokens;
  const auto count = static_cast<unsigned>(rows.size());
  const auto runs = static_cast<unsigned>((max_tokens + kRunTokens - 1) / kRunTokens);
  const DeviceBuffer at(cuda(), static_cast<std::int64_t>(count * sizeof(RowAt)));
  const DeviceBuffer weight(cuda(), std::int64_t{8} * count * max_tokens);
  const DeviceBuffer lse(cuda(), std::int64_t{8} * count);
  const DeviceBuffer sum(cuda(), std::int64_t{8} * count * runs * kLatentDim);
  SNAPMLA_CUDA(cudaMemcpyAsync(at.data(), rows.data(), count * sizeof(RowAt), cudaMemcpyHostToDevice, on));
  const Args args{.q_latent = params.q_latent.data(),
                  .q_rope = params.q_rope.as<Bf16>(),
                  .q_scale = params.q_scale.as<float>(),
                  .cache = params.cache,
                  .block_table = params.block_table.as<std::int32_t>(),
                  .block_table_stride = params.block_table.stride(0),
                  .softmax_scale = params.softmax_scale,
                  .rows_a_request = static_cast<int>(params.q_latent.dim(1) * params.q_latent.dim(2)),
                  .max_tokens = max_tokens,
                  .at = static_cast<const RowAt*>(at.data()),
                  .weight = static_cast<double*>(weight.data()),
                  .lse = static_cast<double*>(lse.data()),
                  .sum = static_cast<double*>(sum.data())};
  constexpr int kTokensABlock = kThreads / kWarp;
  const auto blocks = static_cast<unsigned>((max_tokens + kTokensABlock - 1) / kTokensABlock);
  find_logits<<<dim3(blocks, count), kThreads, 0, on>>>(args);
  find_softmax<<<count, kThreads, 0, on>>>(args);
  weigh<<<dim3(runs, count), kLatentDim, 0, on>>>(args);
  SNAPMLA_CUDA(cudaGetLastError());

  const std::vector<double> lses = download<double>(lse, count, on);
  const std::vector<double> sums = download<double>(sum, std::size_t{count} * runs * kLatentDim, on);
  std::vector<ExactRow> exact(count);
  for (std::size_t i = 0; i < count; ++i) {
    exact[i].lse = lses[i];
    for (std::size_t run = 0; run < runs; ++run) {
      for (std::size_t d = 0; d < kLatentDim; ++d) {
        exact[i].out[d] += sums[(i * runs + run) * kLatentDim + d];
      }
    }
  }
  return exact;
}

}  // namespace snapmla::apps
