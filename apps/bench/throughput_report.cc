#include "bench/throughput_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <iterator>
#include <numeric>

#include "common.h"
#include "snapmla/version.h"

namespace snapmla::apps {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kPercent = 100;

double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// To five significant digits, so that files stay readable.
Json rounded(double value) {
  return std::stod(fmt::format("{:.5g}", value));
}

Json rounded(const std::optional<double>& value) {
  return value ? rounded(*value) : Json(nullptr);
}

void add_spread(Json& json, const std::string& name, const std::optional<Spread>& spread) {
  json[name + "_mean"] = spread ? rounded(spread->mean) : Json(nullptr);
  json[name + "_p50"] = spread ? rounded(spread->p50) : Json(nullptr);
  json[name + "_p99"] = spread ? rounded(spread->p99) : Json(nullptr);
}

std::optional<double> ratio_vs_bf16(const ThroughputRow& row, const std::vector<ThroughputRow>& rows) {
  const auto other = std::find_if(rows.begin(), rows.end(), [&](const ThroughputRow& candidate) {
    return candidate.format == CacheFormat::kBf16 && candidate.context == row.context &&
           candidate.batch_asked == row.batch_asked && candidate.prefill == row.prefill;
  });
  if (other == rows.end()) return std::nullopt;
  return row.tokens_per_s / other->tokens_per_s;
}

std::string csv_value(const Json& value) {
  if (value.is_null()) return "";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

/// As a shell would take it.
std::string quoted(const std::string& word) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,=:+@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string words{std::istreambuf_iterator<char>(file), {}};
  std::string text;
  for (std::size_t at = 0; at < words.size();) {
    const std::string word = words.c_str() + at;
    at += word.size() + 1;
    text += text.empty() ? base_name(word) : " " + quoted(word);
  }
  return text;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  constexpr double kHigh = 0.99;
  return {.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
          .p50 = percentile(values, 0.5),
          .p99 = percentile(values, kHigh)};
}

Record make_record(const std::string& machine, const std::string& commit) {
  return {.command = command_line(), .machine = machine, .date = today(), .commit = commit};
}

Json record_json(const Record& record) {
  Json json{{"command", record.command}, {"machine", record.machine}, {"date", record.date}};
  json["commit"] = record.commit.empty() ? Json(nullptr) : Json(record.commit);
  json["version"] = SNAPMLA_VERSION;
  return json;
}

Json row_json(const ThroughputRow& row, const std::vector<ThroughputRow>& rows) {
  Json json{{"model", row.model},
            {"context", row.context},
            {"output", row.output},
            {"batch", row.batch},
            {"kv_dtype", to_string(row.format)},
            {"prefill", row.prefill},
            {"tokens_per_s", rounded(row.tokens_per_s)},
            {"step_ms", rounded(row.step_ms.mean)},
            {"floor_ms", rounded(row.floor_ms)},
            {"cache_tokens", row.cache_tokens},
            {"ratio_vs_bf16", rounded(ratio_vs_bf16(row, rows))},
            {"peak_bytes", row.peak_bytes},
            {"step_ms_p50", rounded(row.step_ms.p50)},
            {"step_ms_p99", rounded(row.step_ms.p99)}};
  add_spread(json, "ttft_ms", row.ttft_ms);
  add_spread(json, "tpot_ms", row.tpot_ms);
  json["batch_asked"] = row.batch_asked;
  json["layers"] = row.layers;
  json["expert_slice"] = row.expert_slice;
  if (row.details.is_object()) json.update(row.details);
  return json;
}

std::string csv_text(const Record& record, const std::vector<ThroughputRow>& rows) {
  const auto without_details = [&](ThroughputRow row) {
    row.details = nullptr;
    return row_json(row, rows);
  };
  std::string text = "# " + record_json(record).dump() + "\n";
  std::string header;
  const Json columns = without_details({});
  for (const auto& [key, value] : columns.items()) header += (header.empty() ? "" : ",") + key;
  text += header + "\n";
  for (const ThroughputRow& row : rows) {
    const Json json = without_details(row);
    for (const auto& [key, value] : json.items()) text += csv_value(value) + ",";
    text.back() = '\n';
  }
  return text;
}

std::string row_header() {
  return fmt::format("{:>9} {:>6} {:>6} {:>5} {:>12} {:>10} {:>10} {:>10} {:>7} {:>12} {:>8} {:>9}\n",
                     "context", "output", "batch", "cache", "tokens/s", "step ms", "p99 ms", "floor ms",
                     "% floor", "cache tokens", "vs bf16", "peak GiB");
}

std::string row_text(const ThroughputRow& row, const std::vector<ThroughputRow>& rows) {
  const std::optional<double> ratio = ratio_vs_bf16(row, rows);
  const auto number = [](const std::optional<double>& value, int decimals) {
    return value ? fmt::format("{:.{}f}", *value, decimals) : std::string("-");
  };
  std::optional<double> share;
  if (row.floor_ms) share = kPercent * *row.floor_ms / row.step_ms.mean;
  std::string text = fmt::format(
      "{:>9} {:>6} {:>6} {:>5} {:>12.1f} {:>10.3f} {:>10.3f} {:>10} {:>7} {:>12} {:>8} {:>9.2f}\n",
      row.context, row.output, row.batch, to_string(row.format), row.tokens_per_s, row.step_ms.mean,
      row.step_ms.p99, number(row.floor_ms, 3), number(share, 1), with_commas(row.cache_tokens),
      number(ratio, 3), static_cast<double>(row.peak_bytes) / kGibBytes);
  const auto add = [&text](const char* name, const std::optional<Spread>& spread) {
    if (!spread) return;
    text += fmt::format("          {}: mean {:.3f} ms, median {:.3f} ms, P99 {:.3f} ms\n", name, spread->mean,
                        spread->p50, spread->p99);
  };
  add("time to first token", row.ttft_ms);
  if (row.ttft_ms) add("time per output token", row.tpot_ms);  // in lock-step it is the step
  return text;
}

}  // namespace snapmla::apps
