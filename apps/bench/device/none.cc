// The device side of the benchmark where CUDA is not built: no limits, no clock.
#include "bench/device/device.h"
#include "core/check.h"

namespace snapmla::apps {

std::optional<DeviceLimits> measure_limits() {
  return std::nullopt;
}

std::int64_t l2_bytes() {
  return 0;
}

std::optional<double> sm_clock_mhz(Stream /*stream*/) {
  return std::nullopt;
}

std::vector<ExactRow> exact_rows_on_device(const DecodeParams& /*params*/, const std::vector<RowAt>& /*rows*/,
                                           Stream /*stream*/) {
  fail(ErrorCode::kUnsupported, "bench", "this build has no CUDA, so no exact rows on a device");
}

}  // namespace snapmla::apps
