// What `snapmla bench kernel` prints: a line, a CSV row and a JSON object for each measured point.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "bench/device/device.h"
#include "bench/points.h"
#include "bench/timing.h"
#include "bench/workload.h"

namespace snapmla::apps {

struct BenchResult {
  BenchPoint point{};
  bool sustained = false;
  Timing timing{};
  std::optional<double> us_with_quant{};  ///< decode behind quantize_q, FP8 only
  double bytes = 0;
  double flops = 0;
  int num_sets = 1;
  std::optional<double> limit_us{};
  std::optional<RowErrors> errors{};
};

/// The time below which the chip cannot do it, at sustained rates and without any launch: the larger of
/// bytes / DRAM bandwidth and the tensor cores' time, which for FP8 pages is rows * tokens * (2,048 / e4m3 rate +
/// 128 / bf16 rate): 512 dims of QK and PV in e4m3, 64 of rope in bf16. Empty for plan.
std::optional<double> limit_us(const DeviceLimits& limits, const BenchPoint& point, double bytes,
                               double flops);

/// One result; also the columns of the CSV file, in order. What is not known or does not apply is null.
nlohmann::ordered_json result_json(const BenchResult& result);
nlohmann::ordered_json limits_json(const DeviceLimits& limits);

std::string csv_header();
std::string csv_row(const BenchResult& result);

std::string line_header();
std::string line_text(const BenchResult& result);
std::string limits_text(const DeviceLimits& limits);

/// "decode 128 x 16384 x 128 x 1, fp8".
std::string title(const BenchPoint& point);

}  // namespace snapmla::apps
