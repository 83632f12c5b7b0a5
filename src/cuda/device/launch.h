// Launches that overlap with the kernel ahead of them on the stream (programmatic dependent launch).
//
// A kernel launched so may start once every block of the one ahead has called launch_next_grid() or ended, and
// calls wait_for_previous_grid() itself, in each block, before it reads what that one writes or writes what it
// reads: launch latency and ramp-up then lie behind that kernel's last work. In a captured graph the attribute
// becomes a programmatic edge.
//
// A block that touches nothing of either kind may end without waiting. Every kernel of this project waits in at least
// one block, so a grid that has ended has all grids before it behind it.
// plan_kernel neither starts early nor lets others: what follows it on a stream may read a plan without waiting.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstddef>

#include "core/check.h"

namespace snapmla::cuda_ops {

/// Lets a kernel have kBytes of dynamic shared memory on the current device: more than 48 KB, static shared memory
/// included, must be asked for. That costs the host time, so each device is asked once, and its cudaDeviceReset is not
/// survived.
template <auto kKernel, int kBytes>
void allow_shared_memory() {
  constexpr int kMaxDevices = 64;  // further ones are asked each time
  static std::array<std::atomic<bool>, kMaxDevices> allowed{};
  int device = 0;
  SNAPMLA_CUDA(cudaGetDevice(&device));
  if (device < kMaxDevices && allowed[static_cast<std::size_t>(device)]) return;
  SNAPMLA_CUDA(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  if (device < kMaxDevices) allowed[static_cast<std::size_t>(device)] = true;
}

template <class... Params>
void launch_overlapped(void (*kernel)(Params...), dim3 grid, unsigned threads, std::size_t shared_bytes,
                       cudaStream_t stream, const Params&... params) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  SNAPMLA_CUDA(cudaLaunchKernelEx(&config, kernel, params...));
}

}  // namespace snapmla::cuda_ops
