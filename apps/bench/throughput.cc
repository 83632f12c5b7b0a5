// snapmla bench throughput: tokens a second of a whole model, over contexts, batches and both caches.
//
// --prefill real sends requests through the engine, prompts and all; --prefill synthetic fills the cache with random
// tokens and decodes in lock-step (lockstep.h), which is what long contexts allow in minutes. Weights are loaded once.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "bench/bench_model.h"
#include "bench/device/device.h"
#include "bench/lockstep.h"
#include "bench/memory_plan.h"
#include "bench/points.h"
#include "bench/profile.h"
#include "bench/report.h"
#include "bench/serving.h"
#include "bench/step_floor.h"
#include "bench/throughput_report.h"
#include "cli.h"
#include "common.h"
#include "core/check.h"
#include "engine/page_pool.h"
#include "generation.h"
#include "output_file.h"
#include "snapmla/backend.h"
#include "snapmla/version.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

constexpr const char* kMost = "max";
constexpr int kMostSeqs = 4096;

struct ThroughputOptions {
  CommonOptions common{};
  std::vector<std::string> kv_cache_dtype{"fp8"};
  std::vector<std::string> input_len{"256"};
  std::vector<std::string> max_num_seqs{"8"};
  std::optional<int> num_prompts{};
  std::optional<int> prefix_len{};
  int output_len = 64;
  int warmup = 3;
  std::string prefill = "real";
  bool profile = false;
  std::uint64_t seed = 0;
  std::string commit;
  std::string json;
  std::string csv;

  [[nodiscard]] bool synthetic() const { return prefill == "synthetic"; }
};

/// What is measured at once.
struct Point {
  CacheFormat format = CacheFormat::kFp8;
  int context = 0;
  std::string batch_asked;
};

/// The BF16 cache first where there are both, so that the FP8 row can be compared when it is shown.
std::vector<Point> make_points(const ThroughputOptions& options) {
  std::vector<std::string> dtypes = options.kv_cache_dtype;
  std::sort(dtypes.begin(), dtypes.end());
  std::vector<Point> points;
  for (const std::string& context : options.input_len) {
    for (const std::string& batch : options.max_num_seqs) {
      if (batch != kMost) static_cast<void>(parse_size("--max-num-seqs", batch, kMostSeqs));
      for (const std::string& dtype : dtypes) {
        points.push_back({.format = parse_cache_format(dtype),
                          .context = parse_size("--input-len", context, kMaxSeqLen),
                          .batch_asked = batch});
      }
    }
  }
  return points;
}

/// Rules between options.
void check_options(const ThroughputOptions& options) {
  if (options.profile && !options.synthetic()) {
    throw CLI::ValidationError("--profile", "takes decode steps apart, so it needs --prefill synthetic");
  }
  const auto refuse = [&](bool wrong, const char* flag) {
    if (wrong) {
      throw CLI::ValidationError(
          flag, "is for requests that go through the engine, so not with --prefill synthetic");
    }
  };
  if (!options.synthetic()) return;
  refuse(options.num_prompts.has_value(), "--num-prompts");
  refuse(options.prefix_len.has_value(), "--prefix-len");
  refuse(options.common.num_pages != 0, "--num-pages");
  refuse(options.common.max_model_len != 0, "--max-model-len");
}

class ThroughputBench {
 public:
  explicit ThroughputBench(const ThroughputOptions& options)
      : options_(options),
        profiler_(options.profile ? std::make_unique<Profiler>(backend_by_name(options.common.backend))
                                  : nullptr),
        backend_(profiler_ ? *profiler_ : backend_by_name(options.common.backend)),
        json_("--json", options.json),
        csv_("--csv", options.csv),
        record_(make_record(backend_.device_name(), options.commit)),
        model_(options.common, backend_) {}

  void run(const std::vector<Point>& points) {
    for (const Point& point : points) check_length(point);
    start();
    for (const Point& point : points) {
      stop_if_asked();
      measure_or_skip(point);
    }
    if (rows_.empty())
      fail(ErrorCode::kOutOfMemory, "bench", "nothing was measured: every point was skipped");
  }

 private:
  [[nodiscard]] int tokens_of(const Point& point) const {
    return options_.prefix_len.value_or(0) + point.context + options_.output_len;
  }

  void check_length(const Point& point) const {
    SNAPMLA_REQUIRE(tokens_of(point) <= config().max_position, "bench",
                    "--prefix-len, --input-len and --output-len must be at most ", config().max_position,
                    " together, the model's own maximum; got ", tokens_of(point));
  }

  void start() {
    if (options_.synthetic() && backend_.name() == cuda().name()) limits_ = measure_limits();
    if (limits_) write_stdout(limits_text(*limits_));
    document_ = record_json(record_);
    write_stdout(model_.load(document_) + row_header());
    if (profiler_) profiler_->name_weights(*model_.weights());
    document_["limits"] = limits_ ? limits_json(*limits_) : nullptr;
    document_["results"] = nlohmann::ordered_json::array();
    document_["skipped"] = nlohmann::ordered_json::array();
  }

  void measure_or_skip(const Point& point) {
    std::string reason;
    try {
      const int batch = batch_of(point);
      if (batch > 0) {
        write(options_.synthetic() ? measure_synthetic(point, batch) : measure_real(point, batch));
        return;
      }
      reason = "not even one request fits into the memory";
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory) throw;
      reason = error.what();
    }
    const std::string title =
        fmt::format("context {}, batch {}, {}", point.context, point.batch_asked, to_string(point.format));
    write_stdout(fmt::format("{}: skipped: {}\n", title, reason));
    document_["skipped"].push_back({{"point", title}, {"reason", reason}});
    write_files();
  }

  [[nodiscard]] ModelLimits limits_of(const Point& point, int batch) const {
    return {.max_batch = batch,
            .max_chunk = options_.synthetic() ? 0 : options_.common.max_num_batched_tokens,
            .max_seq_len = tokens_of(point),
            .cache_format = point.format,
            .scale_rule = parse_scale_rule(options_.common.scale_rule),
            .deterministic = options_.common.deterministic};
  }

  /// As asked, or the most that the memory holds; 0: not even one.
  [[nodiscard]] int batch_of(const Point& point) const {
    if (point.batch_asked != kMost) return std::stoi(point.batch_asked);
    const std::int64_t for_cache = options_.common.kv_cache_memory_bytes;
    if (for_cache > 0) {
      const std::int64_t each = cache_bytes(config(), point.format, 1, tokens_of(point));
      return static_cast<int>(std::min<std::int64_t>(for_cache / each, kMostSeqs));
    }
    const auto usable = static_cast<std::int64_t>(options_.common.gpu_memory_utilization *
                                                  static_cast<double>(model_.memory().free_at_start()));
    return largest_batch(backend_, config(), model_.weights(), limits_of(point, 1), tokens_of(point),
                         usable - model_.memory().taken());
  }

  [[nodiscard]] ThroughputRow row_of(const Point& point, int batch) const {
    return {.model = model_.name(),
            .context = options_.prefix_len.value_or(0) + point.context,
            .output = options_.output_len,
            .batch_asked = point.batch_asked,
            .batch = batch,
            .format = point.format,
            .prefill = options_.prefill,
            .layers = config().num_layers,
            .expert_slice = options_.common.expert_parallel_slice};
  }

  [[nodiscard]] ThroughputRow measure_synthetic(const Point& point, int batch) {
    constexpr double kMilliseconds = 1000;  // in a second
    Lockstep requests(backend_, Model::make(backend_, config(), model_.weights(), limits_of(point, batch)),
                      {.batch = batch, .context = point.context, .output = options_.output_len},
                      options_.seed);
    if (options_.warmup > 0) requests.run(options_.warmup);
    std::vector<double> steps = requests.run(options_.output_len);
    double total_ms = 0;
    for (double& step : steps) total_ms += step *= kMilliseconds;
    ThroughputRow row = row_of(point, batch);
    row.tokens_per_s = kMilliseconds * batch * options_.output_len / total_ms;
    row.step_ms = spread_of(std::move(steps));
    row.tpot_ms = row.step_ms;
    row.cache_tokens = std::int64_t{batch} * point.context;
    row.peak_bytes = model_.memory().peak();
    if (limits_) {
      const double attended = point.context + 0.5 * (options_.output_len + 1);  // a step, on average
      row.floor_ms =
          floor_us(step_parts(config(), backend_.plain_ops(), point.format, batch, attended), *limits_) /
          kMilliseconds;
    }
    if (profiler_) profile(requests, row);
    return row;
  }

  [[nodiscard]] ThroughputRow measure_real(const Point& point, int batch) {
    CommonOptions common = options_.common;
    common.max_num_seqs = batch;
    if (common.max_model_len == 0) common.max_model_len = tokens_of(point);
    if (point.batch_asked == kMost) common.num_pages = batch * pages_for(tokens_of(point));
    const std::unique_ptr<EngineLoop> engine = model_.make_engine(common, point.format);
    const EngineOptions& chosen = engine->options();
    const Load load{.num_prompts = num_prompts(),
                    .prefix_len = options_.prefix_len.value_or(0),
                    .input_len = point.context,
                    .output_len = options_.output_len,
                    .seed = options_.seed};
    const Served served = serve(*engine, make_requests(load, config().vocab));
    ThroughputRow row = row_of(point, batch);
    row.tokens_per_s = static_cast<double>(served.stats.generated_tokens) / served.seconds;
    if (!served.step_ms.empty()) row.step_ms = spread_of(served.step_ms);
    row.ttft_ms = spread_of(served.first_token_ms);
    if (!served.output_token_ms.empty()) row.tpot_ms = spread_of(served.output_token_ms);
    row.cache_tokens = chosen.num_pages * kPageTokens;
    row.peak_bytes = model_.memory().peak();
    row.details = details_json(load, chosen, served);
    return row;
  }

  /// A step is counted and then timed, op by op, after all that is measured otherwise.
  void profile(Lockstep& requests, ThroughputRow& row) {
    constexpr int kSteps = 5;
    profiler_->set_mode(Profiler::Mode::kCount);
    requests.run(1);
    profiler_->set_mode(Profiler::Mode::kTime);
    for (int i = 0; i < kSteps; ++i) requests.run(1);
    profiler_->set_mode(Profiler::Mode::kOff);
    const std::vector<OpProfile> ops = profiler_->profile(limits_ ? &*limits_ : nullptr);
    row.details["profile"] = profile_json(ops);
    profile_text_ = profile_text(ops);
  }

  [[nodiscard]] int num_prompts() const {
    constexpr int kDefaultPrompts = 32;
    return options_.num_prompts.value_or(kDefaultPrompts);
  }

  static nlohmann::ordered_json details_json(const Load& load, const EngineOptions& chosen,
                                             const Served& served) {
    const EngineStats& stats = served.stats;
    return {{"num_prompts", load.num_prompts},
            {"input_len", load.input_len},
            {"prefix_len", load.prefix_len},
            {"max_num_seqs", chosen.max_batch},
            {"max_num_batched_tokens", chosen.prefill_chunk},
            {"num_pages", chosen.num_pages},
            {"enable_prefix_caching", chosen.enable_prefix_caching},
            {"seconds", served.seconds},
            {"requests_per_s", load.num_prompts / served.seconds},
            {"prefilled_tokens", stats.prompt_tokens},
            {"prefix_cache_tokens", stats.prefix_tokens},
            {"generated_tokens", stats.generated_tokens},
            {"replayed_tokens", stats.replayed_tokens},
            {"preemptions", stats.preemptions}};
  }

  void write(ThroughputRow row) {
    rows_.push_back(std::move(row));
    write_stdout(row_text(rows_.back(), rows_) + details_text(rows_.back().details) +
                 std::exchange(profile_text_, {}));
    write_files();
  }

  static std::string details_text(const nlohmann::ordered_json& details) {
    if (!details.contains("seconds")) return "";
    const auto count = [&](const char* name) { return with_commas(details[name].get<std::int64_t>()); };
    return fmt::format(
        "          {:.2f} s, {:.2f} requests/s; {} tokens prefilled, {} found in the prefix cache, {} "
        "generated; "
        "{} preemptions, {} tokens replayed\n",
        details["seconds"].get<double>(), details["requests_per_s"].get<double>(), count("prefilled_tokens"),
        count("prefix_cache_tokens"), count("generated_tokens"), count("preemptions"),
        count("replayed_tokens"));
  }

  /// What was measured so far: it stays if the next point is stopped.
  void write_files() {
    nlohmann::ordered_json& results = document_["results"];
    results = nlohmann::ordered_json::array();
    for (const ThroughputRow& row : rows_) results.push_back(row_json(row, rows_));
    json_.replace(document_.dump(2) + "\n");
    csv_.replace(csv_text(record_, rows_));
  }

  [[nodiscard]] const ModelConfig& config() const { return model_.config(); }

  const ThroughputOptions& options_;
  std::unique_ptr<Profiler> profiler_;  // in front of the backend, with --profile
  Backend& backend_;
  OutputFile json_;
  OutputFile csv_;
  Record record_;
  BenchModel model_;
  std::optional<DeviceLimits> limits_;
  std::string profile_text_;
  std::vector<ThroughputRow> rows_;
  nlohmann::ordered_json document_;
};

int bench_throughput(const ThroughputOptions& options) {
  apply(options.common);
  check_options(options);
  const std::vector<Point> points = make_points(options);
  ThroughputBench(options).run(points);
  return 0;
}

CLI::Option* add_list(CLI::App& app, const char* name, std::vector<std::string>& list, const char* text) {
  return app.add_option(name, list, text)->delimiter(',')->allow_extra_args(false);
}

void add_request_options(CLI::App& app, ThroughputOptions& options) {
  add_list(app, "--input-len", options.input_len, "tokens of each request's context, several to measure each")
      ->option_text("N,N,...")
      ->default_str("256");
  app.add_option("--output-len", options.output_len,
                 "generated tokens of each request; with synthetic contexts, the steps measured")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
  add_list(app, "--max-num-seqs", options.max_num_seqs,
           "requests that run together, several to measure each; max: as many as the memory holds")
      ->option_text("N,max,...")
      ->default_str("8");
  add_list(app, "--kv-cache-dtype", options.kv_cache_dtype,
           "caches to measure: fp8 (644 bytes a token a layer), bf16 (1,152)")
      ->check(CLI::IsMember({"fp8", "bf16"}))
      ->option_text("DTYPE,...")
      ->default_str("fp8");
  app.add_option(
         "--prefill", options.prefill,
         "real: random prompts through the engine; synthetic: random contexts written to the cache, then "
         "decode steps only")
      ->check(CLI::IsMember({"real", "synthetic"}))
      ->option_text("HOW")
      ->capture_default_str();
  app.add_option("--num-prompts", options.num_prompts, "real: requests, all submitted at the start")
      ->transform(human_size(1))
      ->option_text("N")
      ->default_str("32");
  app.add_option("--prefix-len", options.prefix_len,
                 "real: random tokens before each request's own, the same for all")
      ->transform(human_size(0))
      ->option_text("N")
      ->default_str("0");
  constexpr int kMostWarmup = 1000;
  app.add_option("--num-iters-warmup", options.warmup, "synthetic: steps before those measured")
      ->check(CLI::Range(0, kMostWarmup))
      ->option_text("N")
      ->capture_default_str();
  app.add_flag(
      "--profile", options.profile,
      "synthetic: also show where the time of a step goes, op by op: launched one by one, so that what a "
      "graph gains by overlapping them, some microseconds each, is added to each");
  app.add_option("--seed", options.seed, "of the random tokens")
      ->check(seed_number())
      ->option_text("N")
      ->capture_default_str();
}

void add_file_options(CLI::App& app, ThroughputOptions& options) {
  app.add_option("--json", options.json, "write the figures to this file as JSON")
      ->envname("SNAPMLA_JSON_FILE")
      ->option_text("FILE");
  app.add_option("--csv", options.csv, "write the figures to this file as CSV, whole after every point")
      ->envname("SNAPMLA_CSV_FILE")
      ->option_text("FILE");
  app.add_option("--commit", options.commit, "what was built, for the files")->option_text("TEXT");
}

}  // namespace

Command add_bench_throughput(CLI::App& bench) {
  const auto options = std::make_shared<ThroughputOptions>();
  CLI::App* app = bench.add_subcommand("throughput", "Time a whole model with many requests at once");
  add_model_option(*app, options->common);
  add_request_options(*app, *options);
  add_load_options(*app, options->common);
  add_engine_options(*app, options->common);
  add_size_options(*app, options->common);
  add_memory_options(*app, options->common);
  add_chunk_option(*app, options->common);
  add_prefix_caching_option(*app, options->common);
  add_file_options(*app, *options);
  add_log_options(*app, options->common);
  app->footer(
      "The floor is the time that the chip's own limits, measured first on cuda, leave for the weights, the "
      "cache and "
      "the\nproducts of a step. vs bf16 compares tokens/s with the BF16 cache at the same context and "
      "--max-num-seqs.\n\n"
      "Examples:\n"
      "  snapmla bench throughput --num-prompts 64 --prefix-len 512 --input-len 32\n"
      "  snapmla bench throughput --num-prompts 64 --prefix-len 512 --input-len 32 "
      "--no-enable-prefix-caching\n"
      "  snapmla bench throughput --num-prompts 16 --output-len 512 --num-pages 24    a pool far too small\n"
      "  snapmla bench throughput models/configs/deepseek-v2-lite --load-format dummy --prefill synthetic "
      "\\\n"
      "      --input-len 8k,32k,128k --max-num-seqs max --kv-cache-dtype fp8,bf16 --csv r.csv");
  return {.app = app, .run = [options] { return bench_throughput(*options); }};
}

}  // namespace snapmla::apps
