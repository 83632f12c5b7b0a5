// snapmla bench kernel: how long the attention ops take, beside what the chip can do and how exact they are.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <array>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "bench/device/device.h"
#include "bench/points.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "bench/workload.h"
#include "cli.h"
#include "common.h"
#include "output_file.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "snapmla/version.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

struct KernelOptions {
  CommonOptions common{};
  BenchLists lists{};
  std::vector<std::string> batch;
  std::vector<std::string> seq_len;
  std::vector<std::string> heads;
  std::vector<std::string> s;
  int repeat = 30;
  int pause_ms = 100;
  double max_cache_bytes = 60.0 * 1024 * 1024 * 1024;
  bool check = false;
  bool sustained = false;
  bool no_limits = false;
  std::string json;
  std::string csv;
};

/// "auto" is CUDA where it runs: unlike the engine, a benchmark of the ops needs no whole model.
Backend& choose_backend(const std::string& name) {
  if (name == "auto") return cuda().supported().ok ? cuda() : reference();
  return backend_by_name(name);
}

class OwnStream {
 public:
  explicit OwnStream(Backend& backend) : backend_(backend), stream_(backend.create_stream()) {}
  ~OwnStream() { backend_.destroy_stream(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  [[nodiscard]] Stream get() const { return stream_; }

 private:
  Backend& backend_;
  Stream stream_;
};

/// Why a point is left out; empty: it is not.
std::string reason_to_skip(const Backend& backend, const BenchPoint& point, std::int64_t l2,
                           double max_cache_bytes) {
  const Footprint size = footprint(point, l2);
  if (static_cast<double>(size.cache_bytes) > max_cache_bytes) {
    return fmt::format("its cache of {:.2f} GiB is beyond --max-cache-bytes",
                       static_cast<double>(size.cache_bytes) / kGibBytes);
  }
  constexpr double kUsable = 0.95;
  const std::int64_t all = size.cache_bytes + size.other_bytes;
  if (static_cast<double>(all) > kUsable * static_cast<double>(backend.free_memory())) {
    return fmt::format("its tensors of {:.2f} GiB do not fit into the memory that is free",
                       static_cast<double>(all) / kGibBytes);
  }
  return "";
}

/// One process's measurements: the device's limits first, then point after point, each written as it is known.
class KernelBench {
 public:
  explicit KernelBench(const KernelOptions& options)
      : options_(options),
        backend_(choose_backend(options.common.backend)),
        json_("--json", options.json),
        csv_("--csv", options.csv),
        stream_(backend_) {}

  void run(const std::vector<BenchPoint>& points) {
    start();
    for (const BenchPoint& point : points) {
      stop_if_asked();
      measure_or_skip(point);
    }
  }

 private:
  void start() {
    document_ = {{"version", SNAPMLA_VERSION},
                 {"backend", backend_.name()},
                 {"device", backend_.device_name()},
                 {"repeat", options_.repeat},
                 {"pause_ms", options_.pause_ms},
                 {"limits", nullptr},
                 {"results", nlohmann::ordered_json::array()},
                 {"skipped", nlohmann::ordered_json::array()}};
    write_stdout(
        fmt::format("snapmla " SNAPMLA_VERSION ", {} ({})\n", backend_.name(), backend_.device_name()));
    if (backend_.name() == "cuda") {
      l2_ = l2_bytes();
      if (!options_.no_limits) limits_ = measure_limits();
    }
    if (limits_) {
      document_["limits"] = limits_json(*limits_);
      write_stdout(limits_text(*limits_));
    }
    write_stdout(line_header());
    csv_text_ = csv_header();
    write_files();
  }

  void measure_or_skip(const BenchPoint& point) {
    std::string reason = reason_to_skip(backend_, point, l2_, options_.max_cache_bytes);
    if (reason.empty()) {
      try {
        measure_point(point);
        return;
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kUnsupported && error.code() != ErrorCode::kOutOfMemory) throw;
        reason = error.what();
      }
    }
    write_stdout(fmt::format("{}: skipped: {}\n", title(point), reason));
    document_["skipped"].push_back({{"point", title(point)}, {"reason", reason}});
    write_files();
  }

  void measure_point(const BenchPoint& point) {
    const Stream stream = stream_.get();
    const std::unique_ptr<Workload> workload = make_workload(backend_, point, l2_, stream);
    BenchResult result{.point = point,
                       .bytes = workload->bytes(),
                       .flops = workload->flops(),
                       .num_sets = workload->num_sets()};
    if (limits_) result.limit_us = limit_us(*limits_, point, result.bytes, result.flops);
    if (options_.check) result.errors = workload->check(stream);
    for (const bool sustained : {false, true}) {
      if (sustained && !options_.sustained) continue;
      TimingParams params{.call = [&](int set, Stream on) { workload->call(set, on); },
                          .num_sets = workload->num_sets(),
                          .repeat = options_.repeat,
                          .pause = std::chrono::milliseconds(options_.pause_ms),
                          .sustained = sustained};
      result.sustained = sustained;
      result.timing = measure(backend_, params, stream);
      if (workload->has_quantize()) {
        params.call = [&](int set, Stream on) { workload->call_with_quantize(set, on); };
        result.us_with_quant = measure(backend_, params, stream).us;
      }
      write(result);
    }
  }

  void write(const BenchResult& result) {
    write_stdout(line_text(result));
    csv_text_ += csv_row(result);
    document_["results"].push_back(result_json(result));
    write_files();
  }

  /// What was measured so far: it stays if the next point is stopped.
  void write_files() const {
    json_.replace(document_.dump(2) + "\n");
    csv_.replace(csv_text_);
  }

  const KernelOptions& options_;
  Backend& backend_;
  OutputFile json_;
  OutputFile csv_;
  OwnStream stream_;
  std::int64_t l2_ = 0;
  std::optional<DeviceLimits> limits_;
  nlohmann::ordered_json document_;
  std::string csv_text_;
};

std::vector<int> parse_sizes(const char* flag, const std::vector<std::string>& texts, int most) {
  std::vector<int> sizes;
  sizes.reserve(texts.size());
  for (const std::string& text : texts) sizes.push_back(parse_size(flag, text, most));
  return sizes;
}

int bench_kernel(const KernelOptions& options) {
  apply(options.common);
  KernelOptions read = options;
  constexpr int kMaxBatch = 4096;
  read.lists.batch = parse_sizes("--batch", options.batch, kMaxBatch);
  read.lists.seq_len = parse_sizes("--seq-len", options.seq_len, kMaxSeqLen);
  read.lists.heads = parse_sizes("--heads", options.heads, kMaxHeads);
  read.lists.s = parse_sizes("--s", options.s, kMaxRows);
  const std::vector<BenchPoint> points = make_points(read.lists);
  KernelBench(read).run(points);
  return 0;
}

CLI::Option* add_list(CLI::App& app, const char* name, std::vector<std::string>& list, const char* text) {
  return app.add_option(name, list, text)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->option_text(std::string(name) == "--shape" || std::string(name) == "--ragged" ? "SHAPE,..."
                                                                                      : "N,N,...");
}

void add_shape_options(CLI::App& app, KernelOptions& options) {
  app.add_option("--op", options.lists.ops, "ops to time: decode, quantize_q, append_kv, fetch_kv, plan")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"decode", "quantize_q", "append_kv", "fetch_kv", "plan"}))
      ->option_text("OP,OP,...")
      ->default_str("decode");
  add_list(app, "--batch", options.batch, "requests in a call")->default_str("128");
  add_list(app, "--seq-len", options.seq_len, "cached tokens of each request, as 4096 or 4k")
      ->default_str("16k");
  add_list(app, "--heads", options.heads, "query heads")->default_str("128");
  add_list(app, "--s", options.s, "query tokens of each request")->default_str("1");
  add_list(app, "--shape", options.lists.shapes,
           "single shapes beside or instead of the grid: BATCHxSEQ_LENxHEADS or BATCHxSEQ_LENxHEADSxS");
  add_list(app, "--ragged", options.lists.ragged,
           "batches of unlike lengths, REQUESTSxSEQ_LEN+..., as 1x128k+127x1k; with each of --heads and --s");
  app.add_option("--kv-cache-dtype", options.lists.dtypes, "cache formats: fp8, bf16")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"fp8", "bf16"}))
      ->option_text("DTYPE,...")
      ->default_str("fp8,bf16");
}

void add_run_options(CLI::App& app, KernelOptions& options) {
  app.add_option("--backend", options.common.backend,
                 "where it runs: auto (cuda if there), reference or cuda")
      ->check(CLI::IsMember({"auto", "reference", "cuda"}))
      ->option_text("NAME")
      ->capture_default_str();
  constexpr int kMostRepeats = 100000;
  app.add_option("--repeat", options.repeat, "timed replays of each point")
      ->check(CLI::Range(1, kMostRepeats))
      ->option_text("N")
      ->capture_default_str();
  constexpr int kMostPause = 10000;
  app.add_option("--pause-ms", options.pause_ms,
                 "milliseconds of rest before a point's replays; less gives a warmer chip")
      ->check(CLI::Range(0, kMostPause))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--max-cache-bytes", options.max_cache_bytes,
                 "points whose pages take more than this are skipped")
      ->transform(CLI::AsSizeValue(false))
      ->option_text("BYTES")
      ->default_str("60G");
  app.add_flag("--check", options.check, "compare eight output rows of each decode with exact attention");
  app.add_flag("--sustained", options.sustained,
               "time each point a second time, after a second of running it");
  app.add_flag("--no-limits", options.no_limits, "do not measure the device's own limits first");
  // Not SNAPMLA_JSON: that is the other commands' flag, and SNAPMLA_JSON=1 would name a file.
  app.add_option("--json", options.json, "write the results to this file as JSON")
      ->option_text("FILE")
      ->envname("SNAPMLA_JSON_FILE");
  app.add_option("--csv", options.csv, "write the results to this file as CSV, whole after every point")
      ->option_text("FILE")
      ->envname("SNAPMLA_CSV_FILE");
}

}  // namespace

Command add_bench_kernel(CLI::App& bench) {
  const auto options = std::make_shared<KernelOptions>();
  CLI::App* app = bench.add_subcommand("kernel", "Time the attention ops beside the limits of the device");
  add_shape_options(*app, *options);
  add_run_options(*app, *options);
  add_log_options(*app, options->common);
  app->footer(
      "Microseconds a call: median and 10th and 90th percentile over replays of a graph of calls, caches "
      "cold.\n"
      "GB/s count the cache's own bytes, TFLOPS 2 * (576 + 512) a query row and token, limits the device's\n"
      "sustained rates. The reference backend is a specification, not fast: give it small shapes.\n\n"
      "Examples:\n"
      "  snapmla bench kernel --check                              128 x 16k x 128, both caches\n"
      "  snapmla bench kernel --batch 1,16,128 --seq-len 1k,16k    a grid\n"
      "  snapmla bench kernel --ragged 1x128k+127x1k --json r.json --csv r.csv\n"
      "  snapmla bench kernel --op fetch_kv --batch 1 --seq-len 1M");
  return {.app = app, .run = [options] { return bench_kernel(*options); }};
}

}  // namespace snapmla::apps
