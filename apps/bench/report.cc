#include "bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace snapmla::apps {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kPercent = 100;

bool has_dtype(BenchOp op) {
  return op != BenchOp::kPlan;
}

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json positive_or_null(double value) {
  return value > 0 ? Json(value) : Json(nullptr);
}

/// A number rounded to `digits` significant digits, so that files stay readable.
Json rounded(double value, int digits = 5) {
  if (!std::isfinite(value)) return nullptr;
  return std::stod(fmt::format("{:.{}g}", value, digits));
}

Json seq_len_json(const BenchShape& shape) {
  if (shape.groups.size() > 1) return shape.seq_len_text();
  return shape.longest() > 0 ? Json(shape.longest()) : Json(nullptr);
}

std::string csv_value(const Json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Json rate_json(const Rate& rate) {
  return {{"burst", rounded(rate.burst)},
          {"sustained", rounded(rate.sustained)},
          {"clock_mhz", rounded(rate.clock_mhz)}};
}

/// A column of the text: its key in result_json, and how wide and with how many decimals it is shown.
struct Column {
  const char* key;
  const char* head;
  int width;
  int decimals;
};

constexpr Column kColumns[] = {
    {"op", "op", -10, 0},
    {"batch", "batch", 5, 0},
    {"seq_q", "s", 3, 0},
    {"heads", "heads", 5, 0},
    {"seq_len", "seq_len", 8, 0},
    {"dtype", "dtype", 5, 0},
    {"mode", "mode", -9, 0},
    {"us", "us", 9, 2},
    {"us_p10", "p10", 9, 2},
    {"us_p90", "p90", 9, 2},
    {"us_with_quant", "+quant", 9, 2},
    {"gbps", "GB/s", 7, 0},
    {"tflops", "TFLOPS", 7, 1},
    {"clock_mhz", "MHz", 5, 0},
    {"limit_us", "limit", 9, 2},
    {"pct_limit", "%limit", 6, 1},
    {"rel_err", "rel_err", 8, 5},
};

std::string cell(const Column& column, const std::string& text) {
  return column.width < 0 ? fmt::format("{:<{}} ", text, -column.width)
                          : fmt::format("{:>{}} ", text, column.width);
}

}  // namespace

std::optional<double> limit_us(const DeviceLimits& limits, const BenchPoint& point, double bytes,
                               double flops) {
  if (bytes <= 0) return std::nullopt;
  constexpr double kFlopsATflopUs = 1e6;  // 1 TFLOPS for 1 us
  constexpr double kBytesAGbUs = 1e3;
  const double memory = bytes / (limits.read_gbps.sustained * kBytesAGbUs);
  if (point.op != BenchOp::kDecode) return memory;
  constexpr double kTokenFlops = 2.0 * (kTokenDim + kLatentDim);
  const double fp8 = 4.0 * kLatentDim / (limits.fp8_tflops.sustained * kFlopsATflopUs);
  const double rope = 2.0 * kRopeDim / (limits.bf16_tflops.sustained * kFlopsATflopUs);
  const double bf16 = kTokenFlops / (limits.bf16_tflops.sustained * kFlopsATflopUs);
  const double pairs = flops / kTokenFlops;
  return std::max(memory, pairs * (point.format == CacheFormat::kFp8 ? fp8 + rope : bf16));
}

nlohmann::ordered_json result_json(const BenchResult& result) {
  const BenchShape& shape = result.point.shape;
  const double us = result.timing.us;
  Json json;
  json["batch"] = shape.batch();
  json["seq_q"] = shape.s;
  json["heads"] = shape.heads > 0 ? Json(shape.heads) : Json(nullptr);
  json["seq_len"] = seq_len_json(shape);
  json["dtype"] = has_dtype(result.point.op) ? Json(to_string(result.point.format)) : Json(nullptr);
  json["us"] = rounded(us);
  json["us_p10"] = rounded(result.timing.us_p10);
  json["us_p90"] = rounded(result.timing.us_p90);
  json["us_with_quant"] = result.us_with_quant ? rounded(*result.us_with_quant) : Json(nullptr);
  constexpr double kBytesUsAGbps = 1e-3;
  constexpr double kFlopsUsATflops = 1e-6;
  json["gbps"] = positive_or_null(result.bytes / us * kBytesUsAGbps);
  json["tflops"] = positive_or_null(result.flops / us * kFlopsUsATflops);
  for (const char* key : {"gbps", "tflops"}) {
    if (!json[key].is_null()) json[key] = rounded(json[key].get<double>());
  }
  json["clock_mhz"] = result.timing.clock_mhz ? rounded(*result.timing.clock_mhz, 4) : Json(nullptr);
  json["limit_us"] = result.limit_us ? rounded(*result.limit_us) : Json(nullptr);
  json["pct_limit"] = result.limit_us ? rounded(kPercent * *result.limit_us / us, 4) : Json(nullptr);
  // A NaN has no number in JSON: it is told apart from "not checked" by its name.
  const auto error = [](double value, int digits) {
    return std::isfinite(value) ? rounded(value, digits) : Json(std::isnan(value) ? "nan" : "inf");
  };
  json["rel_err"] = result.errors ? error(result.errors->rel_err, 4) : Json(nullptr);
  json["op"] = to_string(result.point.op);
  json["mode"] = result.sustained ? "sustained" : "burst";
  json["gain"] = result.errors ? error(result.errors->gain, 6) : Json(nullptr);
  json["lse_err"] = result.errors ? error(result.errors->lse_err, 4) : Json(nullptr);
  json["calls"] = result.timing.calls;
  json["sets"] = result.num_sets;
  return json;
}

nlohmann::ordered_json limits_json(const DeviceLimits& limits) {
  return {{"read_gbps", rate_json(limits.read_gbps)},
          {"fp8_tflops", rate_json(limits.fp8_tflops)},
          {"bf16_tflops", rate_json(limits.bf16_tflops)},
          {"fp8_tflops_beside_read", rate_json(limits.mixed_tflops)},
          {"read_gbps_beside_fp8", rate_json(limits.mixed_gbps)}};
}

std::string csv_header() {
  const Json json = result_json({.timing = {.us = 1}});
  std::string text;
  for (const auto& [key, value] : json.items()) text += (text.empty() ? "" : ",") + key;
  return text + "\n";
}

std::string csv_row(const BenchResult& result) {
  const Json json = result_json(result);
  std::string text;
  for (const auto& [key, value] : json.items()) text += csv_value(value) + ",";
  text.back() = '\n';
  return text;
}

std::string line_header() {
  std::string text;
  for (const Column& column : kColumns) text += cell(column, column.head);
  return text + "\n";
}

std::string line_text(const BenchResult& result) {
  const Json json = result_json(result);
  std::string text;
  for (const Column& column : kColumns) {
    const Json& value = json[column.key];
    text += cell(column, value.is_number() ? fmt::format("{:.{}f}", value.get<double>(), column.decimals)
                                           : csv_value(value));
  }
  return text + "\n";
}

std::string limits_text(const DeviceLimits& limits) {
  std::string text = "limits of this device (burst / sustained, at MHz):\n";
  const auto line = [&text](const char* name, const Rate& rate, const char* unit) {
    text += fmt::format("  {:<36} {:>7.0f} / {:>7.0f} {:<6} {:>5.0f} MHz\n", name, rate.burst, rate.sustained,
                        unit, rate.clock_mhz);
  };
  line("DRAM read, bulk copies", limits.read_gbps, "GB/s");
  line("e4m3 wgmma", limits.fp8_tflops, "TFLOPS");
  line("bf16 wgmma", limits.bf16_tflops, "TFLOPS");
  line("e4m3 wgmma beside a DRAM read", limits.mixed_tflops, "TFLOPS");
  line("DRAM read beside e4m3 wgmma", limits.mixed_gbps, "GB/s");
  return text;
}

std::string title(const BenchPoint& point) {
  const BenchShape& shape = point.shape;
  return fmt::format("{} batch {}, seq_len {}, heads {}, s {}, {}", to_string(point.op), shape.batch(),
                     shape.seq_len_text(), shape.heads, shape.s, to_string(point.format));
}

}  // namespace snapmla::apps
