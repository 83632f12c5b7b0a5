// The number codecs as nvcc compiles them, against CUDA's own conversions: on the host everywhere, on the
// device where there is one. The claim held here is the one src/core/e4m3.h makes: equal on every input.
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include "core/bf16.h"
#include "core/check.h"
#include "core/e4m3.h"

namespace snapmla {
namespace {

constexpr std::uint64_t kAllFloats = std::uint64_t{1} << 32;
constexpr std::uint64_t kHostStride = 1021;  // prime: every exponent, sign and pattern of low bits occurs
constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

__host__ __device__ bool is_nan_bits(std::uint32_t bits) {
  return (bits & 0x7fffffffU) > 0x7f800000U;
}

/// Whether our codecs and CUDA's agree on the float with these bits, both ways. The payload of a NaN is free.
__host__ __device__ bool codecs_agree(std::uint32_t bits) {
  const float x = bits_to_float(bits);
  const std::uint8_t code = to_e4m3(x).bits;
  if (code != __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)) return false;
  const __nv_bfloat16_raw bf16 = static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x));
  if (is_nan_bits(bits)) return is_nan_bits(float_to_bits(to_float(to_bf16(x))));
  return to_bf16(x).bits == bf16.x;
}

/// Whether a code decodes to the float CUDA gives for it.
__host__ __device__ bool code_agrees(std::uint8_t code) {
  const auto half = __nv_cvt_fp8_to_halfraw(code, __NV_E4M3);
  const std::uint32_t theirs = float_to_bits(__half2float(__half(half)));
  const std::uint32_t ours = float_to_bits(to_float(E4m3{code}));
  return ours == theirs || (is_nan_bits(ours) && is_nan_bits(theirs));
}

/// Grid-stride over all 2^32 floats, then the 256 codes; `first_bad` keeps the smallest input that disagrees.
__global__ void check_all(std::uint32_t* first_bad_float, std::uint32_t* first_bad_code) {
  const std::uint64_t step = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
  const std::uint64_t begin = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::uint64_t bits = begin; bits < kAllFloats; bits += step) {
    if (!codecs_agree(static_cast<std::uint32_t>(bits)))
      atomicMin(first_bad_float, static_cast<std::uint32_t>(bits));
  }
  if (begin < 256 && !code_agrees(static_cast<std::uint8_t>(begin)))
    atomicMin(first_bad_code, static_cast<std::uint32_t>(begin));
}

TEST(CodecOnHost, AllCodes) {
  for (int code = 0; code < 256; ++code)
    ASSERT_TRUE(code_agrees(static_cast<std::uint8_t>(code))) << "code " << code;
}

TEST(CodecOnHost, SweepOfFloats) {
  for (std::uint64_t bits = 0; bits < kAllFloats; bits += kHostStride)
    ASSERT_TRUE(codecs_agree(static_cast<std::uint32_t>(bits))) << "bits " << bits;
}

TEST(CodecOnDevice, AllFloatsAndCodes) {
  int num_devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&num_devices);
  if (counted != cudaSuccess || num_devices == 0)
    GTEST_SKIP() << "no CUDA device: " << cudaGetErrorName(counted);
  std::uint32_t* first_bad = nullptr;
  SNAPMLA_CUDA(cudaMallocManaged(&first_bad, 2 * sizeof(std::uint32_t)));
  first_bad[0] = kNone;
  first_bad[1] = kNone;
  check_all<<<1024, 256>>>(first_bad, first_bad + 1);
  SNAPMLA_CUDA(cudaGetLastError());
  SNAPMLA_CUDA(cudaDeviceSynchronize());
  EXPECT_EQ(first_bad[0], kNone) << "smallest float bits where to_e4m3 or to_bf16 differs";
  EXPECT_EQ(first_bad[1], kNone) << "smallest code where to_float differs";
  SNAPMLA_CUDA(cudaFree(first_bad));
}

}  // namespace
}  // namespace snapmla
