// The model of the tensor core's FP8 sums (core/e4m3_accumulator.h) against the device's own. With
// SNAPMLA_RECORD_SUMS=FILE the sums that tests/core/e4m3_accumulator_test.cc compares with are written to FILE.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "core/check.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/wgmma.cuh"
#include "support/e4m3_sums.h"

namespace snapmla::test {
namespace {

using cuda_ops::Swizzle;
constexpr int kM = SumProblem::kM;
constexpr int kN = SumProblem::kN;
constexpr int kK = SumProblem::kK;
constexpr int kThreads = 128;
constexpr int kMostSteps = 16;

/// A warpgroup a tile: out = start + sum over steps of A[step] B[step], as a chain of instructions in one
/// accumulator. Shapes: SumProblem.
template <int kSteps>
__global__ void __launch_bounds__(kThreads)
    add_products(const std::uint8_t* a, const std::uint8_t* b, const float* start, float* out) {
  __shared__ alignas(1024) std::uint8_t s_b[kSteps][kN * kK];
  const int tile = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int g = lane / 4;
  const int c = lane % 4;
  // B K-major with the 32-byte swizzle: chunk j of 16 bytes of row n lies at n * 32 + 16 * (j ^ (n / 4)).
  for (int i = threadIdx.x; i < kSteps * kN * 2; i += kThreads) {
    const int step = i / (kN * 2);
    const int n = i / 2 % kN;
    const int j = i % 2;
    *reinterpret_cast<uint4*>(&s_b[step][n * kK + 16 * (j ^ (n / 4))]) =
        reinterpret_cast<const uint4*>(b)[((tile * kSteps + step) * kN + n) * 2 + j];
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const auto at = [&](int e) { return (tile * kM + 16 * warp + g + 8 * (e / 2)) * kN + 2 * c + e % 2; };
  float acc[4];
  for (int e = 0; e < 4; ++e) acc[e] = start[at(e)];
  std::uint32_t fragment[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const auto* rows = reinterpret_cast<const std::uint32_t*>(a + (tile * kSteps + step) * kM * kK);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      fragment[step][i] = rows[(16 * warp + g + 8 * (i % 2)) * (kK / 4) + c + 4 * (i / 2)];
  }
  cuda_ops::pin(acc);
  cuda_ops::mma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    cuda_ops::mma_e4m3(acc, fragment[step],
                       cuda_ops::k_major(cuda_ops::shared_address(&s_b[step][0]), 8 * kK, Swizzle::k32B),
                       true);
  }
  cuda_ops::mma_commit();
  cuda_ops::mma_wait<0>();
  cuda_ops::pin(acc);
  for (int e = 0; e < 4; ++e) out[at(e)] = acc[e];
}

template <class T>
T* managed(std::size_t count) {
  void* memory = nullptr;
  SNAPMLA_CUDA(cudaMallocManaged(&memory, count * sizeof(T)));
  return static_cast<T*>(memory);
}

std::vector<float> device_sums(const SumProblem& problem) {
  auto* a = managed<E4m3>(problem.a.size());
  auto* b = managed<E4m3>(problem.b.size());
  auto* start = managed<float>(problem.start.size());
  auto* out = managed<float>(problem.start.size());
  std::copy(problem.a.begin(), problem.a.end(), a);
  std::copy(problem.b.begin(), problem.b.end(), b);
  std::copy(problem.start.begin(), problem.start.end(), start);
  const auto run = problem.steps == 1   ? add_products<1>
                   : problem.steps == 2 ? add_products<2>
                   : problem.steps == 4 ? add_products<4>
                                        : add_products<kMostSteps>;
  run<<<static_cast<unsigned>(problem.tiles), kThreads>>>(
      reinterpret_cast<const std::uint8_t*>(a), reinterpret_cast<const std::uint8_t*>(b), start, out);
  SNAPMLA_CUDA(cudaGetLastError());
  SNAPMLA_CUDA(cudaDeviceSynchronize());
  std::vector<float> result(out, out + problem.start.size());
  for (void* memory :
       {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(start), static_cast<void*>(out)})
    SNAPMLA_CUDA(cudaFree(memory));
  return result;
}

std::string device_name() {
  cudaDeviceProp properties{};
  SNAPMLA_CUDA(cudaGetDeviceProperties(&properties, 0));
  return properties.name;
}

bool has_hopper() {
  int devices = 0;
  cudaDeviceProp properties{};
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0 &&
         cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 9;
}

// On the H100 that the model was found on, all sums are equal.
TEST(E4m3AccumulatorOnDevice, TheModelGivesTheSameBits) {
  if (!has_hopper()) GTEST_SKIP() << "no device of compute capability 9.0";
  const char* path = std::getenv("SNAPMLA_RECORD_SUMS");
  std::ofstream record(path != nullptr ? path : "/dev/null");
  record << device_name()
         << ": sums of tests/support/e4m3_sums.h as fp32 bits, by tests/cuda/accumulator_test.cu\n";
  SumMaker maker(kSumSeed);
  for (std::size_t kind = 0; kind < kSumKinds.size(); ++kind) {
    for (const std::size_t steps : kSumSteps) {
      const SumProblem problem = maker.make(static_cast<SumKind>(kind), steps, kSumTiles);
      const std::vector<float> found = device_sums(problem);
      std::size_t equal = 0;
      for (std::size_t i = 0; i < found.size(); ++i)
        equal += float_to_bits(found[i]) == float_to_bits(problem.modelled(i)) ? 1 : 0;
      EXPECT_EQ(equal, found.size()) << kSumKinds[kind] << ", " << steps << " steps";
      for (std::size_t i = 0; i < kRecordedSums; ++i) {
        std::array<char, 16> text{};
        std::snprintf(text.data(), text.size(), "%08x", float_to_bits(found[recorded_sum(i)]));
        record << text.data() << (i % 8 == 7 ? '\n' : ' ');
      }
    }
  }
  ASSERT_TRUE(record.flush()) << "cannot write " << (path != nullptr ? path : "");
}

}  // namespace
}  // namespace snapmla::test
