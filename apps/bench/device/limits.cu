// The limits of this chip: what its DRAM delivers and what its tensor cores multiply, alone and together.
//
// One kernel, one CTA an SM: two warpgroups multiply the same tiles again and again (m64n128k32 or k16, A and B
// in shared memory, accumulators in registers), and one more warp copies DRAM into a ring that nobody reads.
// Each part can be left out. Rates come from events around launches of a few milliseconds: the first after a
// pause is the burst, the median of the last ones after a second without a pause is the sustained rate.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "bench/device/device.h"
#include "core/check.h"
#include "core/device_buffer.h"
#include "cuda/device/ptx.cuh"
#include "cuda/device/wgmma.cuh"

namespace snapmla::apps {
namespace {

using namespace cuda_ops;  // NOLINT(google-build-using-namespace): the PTX wrappers

constexpr int kMathThreads = 256;
constexpr int kThreads = kMathThreads + 32;
constexpr int kChunkBytes = 32 * 1024;  // a copy; 16 to 73 KB read alike
constexpr int kStages = 4;              // 128 KB on the way a SM: latency times bandwidth is about 50 KB
constexpr int kTileRowBytes = 128;
constexpr int kATileBytes = 64 * kTileRowBytes;
constexpr int kBTileBytes = 128 * kTileRowBytes;
constexpr int kTiles = 4;       // 128-byte slices along K
constexpr int kStepsATile = 4;  // instructions of 32 bytes of K
constexpr int kOperandBytes = kTiles * (kATileBytes + kBTileBytes);
constexpr int kSharedBytes = 1024 + kOperandBytes + kStages * kChunkBytes + 256;
constexpr double kFp8Flops = 2.0 * 64 * 128 * 32;
constexpr double kBf16Flops = kFp8Flops / 2;
constexpr int kPasses = 4;  // over the data, where only DRAM is measured: about 4 ms
constexpr int kProductsALoop = kTiles * kStepsATile;

enum class Math { kNone, kFp8, kBf16 };

struct Args {
  int loops = 0;  ///< of kProductsALoop products, each warpgroup
  const unsigned char* data = nullptr;
  std::int64_t num_chunks = 0;  ///< 0: no stream
  unsigned long long* bytes_read = nullptr;
};

/// Random bytes +-0x30 .. 0x3F: e4m3 of 0.5 to 1.875, bf16 of 2^-31 to 2. Never NaN, and sums stay finite.
__device__ std::uint32_t operand_word(std::uint32_t i) {
  std::uint32_t x = i * 2654435761U;
  x ^= x >> 15;
  x *= 2246822519U;
  x ^= x >> 13;
  return (x & 0x8F8F8F8FU) | 0x30303030U;
}

/// Products over and over; returns a sum of what came out: ptxas deletes products whose results are not used.
template <Math kMath>
__device__ float multiply(std::uint32_t s_operands, int loops) {
  float sum[64] = {};
  for (int loop = 0; loop < loops; ++loop) {
    mma_fence();
#pragma unroll
    for (int i = 0; i < kProductsALoop; ++i) {
      const std::uint32_t a = s_operands + (i / kStepsATile) * kATileBytes;
      const std::uint32_t b = s_operands + kTiles * kATileBytes + (i / kStepsATile) * kBTileBytes;
      const std::uint32_t k = (i % kStepsATile) * (kTileRowBytes / kStepsATile);
      const Descriptor da = k_major(a, 1024, Swizzle::k128B).advance(k);
      const Descriptor db = k_major(b, 1024, Swizzle::k128B).advance(k);
      if constexpr (kMath == Math::kFp8) mma_e4m3(sum, da, db, true);
      if constexpr (kMath == Math::kBf16) mma_bf16(sum, da, db, true);
    }
    mma_commit();
    mma_wait<0>();
    pin(sum);
  }
  float total = 0;
  for (const float x : sum) total += x;
  return total;
}

/// Copies this CTA's share of the chunks into the ring: kPasses times, or until *s_done if `endless`.
__device__ std::int64_t read_dram(const Args& args, std::uint32_t s_ring, std::uint32_t s_full,
                                  const volatile int* s_done, bool endless) {
  const std::int64_t own = (args.num_chunks - blockIdx.x + gridDim.x - 1) / gridDim.x;
  std::int64_t issued = 0;
  std::int64_t arrived = 0;
  while (true) {
    const bool more = endless ? *s_done == 0 : issued < own * kPasses;
    if (more && issued - arrived < kStages) {
      const auto stage = static_cast<std::uint32_t>(issued % kStages);
      const std::int64_t chunk = blockIdx.x + issued % own * gridDim.x;
      arrive_expect(s_full + 8 * stage, kChunkBytes);
      copy_bulk(s_ring + stage * kChunkBytes, args.data + chunk * kChunkBytes, kChunkBytes,
                s_full + 8 * stage);
      ++issued;
      continue;
    }
    if (arrived == issued) return issued * kChunkBytes;
    wait(s_full + 8 * static_cast<std::uint32_t>(arrived % kStages),
         static_cast<std::uint32_t>(arrived / kStages) & 1U);
    ++arrived;
  }
}

/// Grid: SMs. Warpgroups 0, 1: products. Warp 8: one thread reads DRAM.
template <Math kMath>
__global__ void __launch_bounds__(kThreads, 1) work(const Args args) {
  extern __shared__ unsigned char s_raw[];
  __shared__ int s_working;
  __shared__ int s_done;
  const std::uint32_t s_operands = (shared_address(s_raw) + 1023U) & ~1023U;
  const std::uint32_t s_ring = s_operands + kOperandBytes;
  const std::uint32_t s_full = s_ring + kStages * kChunkBytes;
  unsigned char* operands = s_raw + (s_operands - shared_address(s_raw));
  if constexpr (kMath != Math::kNone) {
    for (int i = static_cast<int>(threadIdx.x); i < kOperandBytes / 4; i += kThreads) {
      reinterpret_cast<std::uint32_t*>(operands)[i] = operand_word(static_cast<std::uint32_t>(i));
    }
  }
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) barrier_init(s_full + 8 * stage, 1);
    fence_barrier_init();
    s_working = kMathThreads;
    s_done = 0;
  }
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x < kMathThreads) {
    if constexpr (kMath != Math::kNone) {
      const float total = multiply<kMath>(s_operands, args.loops);
      if (atomicSub(&s_working, 1) == 1) atomicExch(&s_done, 1);
      constexpr float kNever = 0x1p127F;  // sums stay below 2^40
      if (total == kNever) atomicAdd(args.bytes_read, 1ULL);
    }
  } else if (threadIdx.x == kMathThreads && args.num_chunks > 0) {
    const std::int64_t bytes = read_dram(args, s_ring, s_full, &s_done, kMath != Math::kNone);
    atomicAdd(args.bytes_read, static_cast<unsigned long long>(bytes));
  }
}

__global__ void fill(uint4* data, std::int64_t count) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const auto word = static_cast<std::uint32_t>(4 * i);
    data[i] = {operand_word(word), operand_word(word + 1), operand_word(word + 2), operand_word(word + 3)};
  }
}

/// Counts SM cycles against the wall clock (1 GHz counter) for 200 us.
__global__ void count_cycles(double* clock_mhz) {
  constexpr unsigned long long kNanoseconds = 200'000;
  unsigned long long begin = 0;
  unsigned long long now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  const long long first = clock64();
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < kNanoseconds);
  *clock_mhz = 1e3 * static_cast<double>(clock64() - first) / static_cast<double>(now - begin);
}

int device_attribute(cudaDeviceAttr which) {
  int device = 0;
  int value = 0;
  SNAPMLA_CUDA(cudaGetDevice(&device));
  SNAPMLA_CUDA(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

struct Work {
  double tflops = 0;
  double gbps = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// What the launches of one kind share: the data, the counter, a stream and its events.
class Meter {
 public:
  Meter()
      : data_(cuda(), data_bytes()),
        bytes_read_(cuda(), 8),
        stream_(cuda().create_stream()),
        begin_(cuda().create_event()),
        end_(cuda().create_event()) {
    fill<<<1024, 256, 0, on()>>>(static_cast<uint4*>(data_.data()), data_.bytes() / 16);
    SNAPMLA_CUDA(cudaGetLastError());
  }
  ~Meter() {
    cuda().destroy_event(begin_);
    cuda().destroy_event(end_);
    cuda().destroy_stream(stream_);
  }
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  /// One launch; rates from the time it took.
  template <Math kMath>
  Work once(int loops, bool stream) {
    const Args args{.loops = loops,
                    .data = static_cast<const unsigned char*>(data_.data()),
                    .num_chunks = stream ? data_.bytes() / kChunkBytes : 0,
                    .bytes_read = static_cast<unsigned long long*>(bytes_read_.data())};
    const int sms = device_attribute(cudaDevAttrMultiProcessorCount);
    SNAPMLA_CUDA(
        cudaFuncSetAttribute(work<kMath>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    SNAPMLA_CUDA(cudaMemsetAsync(bytes_read_.data(), 0, 8, on()));
    cuda().record(begin_, stream_);
    work<kMath><<<static_cast<unsigned>(sms), kThreads, kSharedBytes, on()>>>(args);
    SNAPMLA_CUDA(cudaGetLastError());
    cuda().record(end_, stream_);
    const double us = cuda().elapsed_us(begin_, end_);
    unsigned long long bytes = 0;
    SNAPMLA_CUDA(cudaMemcpyAsync(&bytes, bytes_read_.data(), 8, cudaMemcpyDeviceToHost, on()));
    SNAPMLA_CUDA(cudaStreamSynchronize(on()));
    const double flops = kMath == Math::kNone ? 0 : kMath == Math::kFp8 ? kFp8Flops : kBf16Flops;
    return {.tflops = 2.0 * loops * kProductsALoop * flops * sms / us * 1e-6,
            .gbps = static_cast<double>(bytes) / us * 1e-3};
  }

  /// Burst, then a second of launches; the last quarter of them is the sustained rate.
  template <Math kMath>
  void measure(int loops, bool stream, Rate* tflops, Rate* gbps) {
    using Clock = std::chrono::steady_clock;
    (void)once<kMath>(1, stream);  // the first launch loads the code
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::vector<Work> works;
    for (const auto start = Clock::now(); Clock::now() - start < std::chrono::seconds(1);) {
      works.push_back(once<kMath>(loops, stream));
    }
    const double clock_mhz = sm_clock_mhz(stream_).value_or(0);
    const auto summarize = [&](double Work::*part) {
      std::vector<double> last;
      for (std::size_t i = works.size() * 3 / 4; i < works.size(); ++i) last.push_back(works[i].*part);
      return Rate{.burst = works[0].*part, .sustained = median(last), .clock_mhz = clock_mhz};
    };
    if (tflops != nullptr) *tflops = summarize(&Work::tflops);
    if (gbps != nullptr) *gbps = summarize(&Work::gbps);
  }

 private:
  static std::int64_t data_bytes() {
    constexpr std::int64_t kMost = std::int64_t{4} << 30;
    return std::min(kMost, cuda().free_memory() / 2) / kChunkBytes * kChunkBytes;
  }
  [[nodiscard]] cudaStream_t on() const { return static_cast<cudaStream_t>(stream_.handle); }

  DeviceBuffer data_;
  DeviceBuffer bytes_read_;
  Stream stream_;
  Event begin_;
  Event end_;
};

}  // namespace

std::optional<DeviceLimits> measure_limits() {
  Meter meter;
  DeviceLimits limits;
  // About 4 ms a launch: 16 products (32 bytes of K: 64 cycles each) of two warpgroups take 2,048 cycles.
  constexpr int kLoops = 3000;
  meter.measure<Math::kNone>(0, true, nullptr, &limits.read_gbps);
  meter.measure<Math::kFp8>(kLoops, false, &limits.fp8_tflops, nullptr);
  meter.measure<Math::kBf16>(kLoops, false, &limits.bf16_tflops, nullptr);
  meter.measure<Math::kFp8>(kLoops, true, &limits.mixed_tflops, &limits.mixed_gbps);
  return limits;
}

std::int64_t l2_bytes() {
  return cuda().supported().ok ? device_attribute(cudaDevAttrL2CacheSize) : 0;
}

std::optional<double> sm_clock_mhz(Stream stream) {
  if (!cuda().supported().ok) return std::nullopt;
  auto* const on = static_cast<cudaStream_t>(stream.handle);
  const DeviceBuffer result(cuda(), 8);
  double clock_mhz = 0;
  count_cycles<<<1, 1, 0, on>>>(static_cast<double*>(result.data()));
  SNAPMLA_CUDA(cudaGetLastError());
  SNAPMLA_CUDA(cudaMemcpyAsync(&clock_mhz, result.data(), 8, cudaMemcpyDeviceToHost, on));
  SNAPMLA_CUDA(cudaStreamSynchronize(on));
  return clock_mhz;
}

}  // namespace snapmla::apps
