// What the benchmark asks of the GPU itself, beside the ops: its limits, its clock, and exact attention rows.
//
// limits.cu, exact.cu and clock.cu where CUDA is built, none.cc elsewhere: there is nothing to measure then, and
// callers need no #ifdef.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bench/exact.h"
#include "snapmla/attention.h"
#include "snapmla/backend.h"

namespace snapmla::apps {

/// A rate as first met by a cool chip (a few milliseconds after a pause) and as held after a second of work.
struct Rate {
  double burst = 0;
  double sustained = 0;
  double clock_mhz = 0;  ///< of the SMs, at the end of the sustained run
};

/// What no kernel of this shape of work can beat, measured on this device.
struct DeviceLimits {
  Rate read_gbps;     ///< DRAM read by bulk copies into shared memory on all SMs
  Rate fp8_tflops;    ///< e4m3 wgmma m64n128k32, both operands in shared memory
  Rate bf16_tflops;   ///< bf16 wgmma m64n128k16, likewise
  Rate mixed_tflops;  ///< e4m3 wgmma while the same SMs read DRAM
  Rate mixed_gbps;    ///< what is read meanwhile
};

/// Measures; takes about five seconds and up to 4 GB of device memory. Empty where there is no CUDA.
std::optional<DeviceLimits> measure_limits();

/// Bytes of the last cache in front of DRAM; 0 where there is no CUDA.
std::int64_t l2_bytes();

/// The SM clock at the end of the work now on the stream, from 200 us of counting both clocks; empty without CUDA.
std::optional<double> sm_clock_mhz(Stream stream);

/// Exact rows (exact.h) of a decode call whose tensors lie in device memory. Waits for the stream.
std::vector<ExactRow> exact_rows_on_device(const DecodeParams& params, const std::vector<RowAt>& rows,
                                           Stream stream);

}  // namespace snapmla::apps
