// What `snapmla bench throughput` and `snapmla bench latency` print: a row for each measured point, as text, as CSV
// and as JSON, under a record of where they come from.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "snapmla/format.h"

namespace snapmla::apps {

/// Mean, median and 99th percentile.
struct Spread {
  double mean = 0;
  double p50 = 0;
  double p99 = 0;
};

/// Of at least one value. Percentiles are interpolated.
Spread spread_of(std::vector<double> values);

struct ThroughputRow {
  std::string model{};
  int context = 0;  ///< prompt or synthetic tokens of a request
  int output = 0;   ///< generated tokens of a request
  std::string
      batch_asked{};  ///< as on the command line: rows of the two caches are compared where it is the same
  int batch = 0;      ///< requests that run together
  CacheFormat format = CacheFormat::kFp8;
  std::string prefill{};  ///< "synthetic" or "real"
  double tokens_per_s = 0;
  Spread step_ms{};                  ///< a decode step of the batch
  std::optional<double> floor_ms{};  ///< step_floor.h
  std::int64_t cache_tokens = 0;     ///< that the cache holds: batch * context, or the pages of the engine
  std::int64_t peak_bytes = 0;
  std::optional<Spread> ttft_ms{};  ///< time to first token of a request
  std::optional<Spread> tpot_ms{};  ///< time per output token after the first
  int layers = 0;
  std::string expert_slice{};        ///< "0/32"; "0/1": all experts
  nlohmann::ordered_json details{};  ///< object, behind the rest in JSON
};

/// Where figures come from: the form of the files in bench/results.
struct Record {
  std::string command{};
  std::string machine{};
  std::string date{};
  std::string commit{};
};

/// This process's command line (the program by its name alone), today's date in UTC.
Record make_record(const std::string& machine, const std::string& commit);
nlohmann::ordered_json record_json(const Record& record);

/// A row, and how its rate compares with the BF16 row of the same context and asked batch among `rows`.
nlohmann::ordered_json row_json(const ThroughputRow& row, const std::vector<ThroughputRow>& rows);

/// "# {record}", the columns, and the rows.
std::string csv_text(const Record& record, const std::vector<ThroughputRow>& rows);

std::string row_header();
std::string row_text(const ThroughputRow& row, const std::vector<ThroughputRow>& rows);

}  // namespace snapmla::apps
