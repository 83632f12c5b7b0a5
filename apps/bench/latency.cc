// snapmla bench latency: how long one batch of requests takes from submission to its last token, again and again.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "bench/bench_model.h"
#include "bench/serving.h"
#include "bench/throughput_report.h"
#include "cli.h"
#include "common.h"
#include "core/check.h"
#include "generation.h"
#include "output_file.h"
#include "snapmla/backend.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

struct LatencyOptions {
  CommonOptions common{};
  std::vector<std::string> kv_cache_dtype{"fp8"};
  int input_len = 32;
  int output_len = 128;
  int batch_size = 8;
  int warmup = 10;
  int iterations = 30;
  std::uint64_t seed = 0;
  std::string commit;
  std::string json;
};

/// What the iterations gave, in milliseconds.
struct Latencies {
  std::vector<double> whole;
  std::vector<double> first_token;
  std::vector<double> output_token;
  std::vector<double> step;
};

void append(std::vector<double>& all, const std::vector<double>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

Latencies measure(EngineLoop& engine, const LatencyOptions& options) {
  constexpr double kMilliseconds = 1000;  // in a second
  Latencies latencies;
  for (int i = 0; i < options.warmup + options.iterations; ++i) {
    const Load load{.num_prompts = options.batch_size,
                    .input_len = options.input_len,
                    .output_len = options.output_len,
                    .seed = options.seed + static_cast<std::uint64_t>(i)};
    const Served served = serve(engine, make_requests(load, engine.config().vocab));
    if (i < options.warmup) continue;
    latencies.whole.push_back(kMilliseconds * served.seconds);
    append(latencies.first_token, served.first_token_ms);
    append(latencies.output_token, served.output_token_ms);
    append(latencies.step, served.step_ms);
  }
  return latencies;
}

nlohmann::ordered_json spread_json(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  const Spread spread = spread_of(values);
  return {{"mean", spread.mean}, {"p50", spread.p50}, {"p99", spread.p99}};
}

nlohmann::ordered_json result_json(const LatencyOptions& options, CacheFormat format,
                                   const Latencies& latencies, std::int64_t peak_bytes) {
  return {{"kv_dtype", to_string(format)},
          {"input_len", options.input_len},
          {"output_len", options.output_len},
          {"batch_size", options.batch_size},
          {"iterations", options.iterations},
          {"latency_ms", spread_json(latencies.whole)},
          {"ttft_ms", spread_json(latencies.first_token)},
          {"tpot_ms", spread_json(latencies.output_token)},
          {"step_ms", spread_json(latencies.step)},
          {"peak_bytes", peak_bytes}};
}

std::string result_text(CacheFormat format, const Latencies& latencies) {
  std::string text = fmt::format("{} cache\n", label(format));
  const auto line = [&text](const char* name, const std::vector<double>& values) {
    if (values.empty()) return;
    const Spread spread = spread_of(values);
    text += fmt::format("  {:<22} mean {:.3f} ms, median {:.3f} ms, P99 {:.3f} ms\n", name, spread.mean,
                        spread.p50, spread.p99);
  };
  line("latency", latencies.whole);
  line("time to first token", latencies.first_token);
  line("time per output token", latencies.output_token);
  line("step", latencies.step);
  return text;
}

int bench_latency(const LatencyOptions& options) {
  apply(options.common);
  const OutputFile json("--json", options.json);
  Backend& backend = backend_by_name(options.common.backend);
  BenchModel model(options.common, backend);
  const std::int64_t tokens = std::int64_t{options.input_len} + options.output_len;
  SNAPMLA_REQUIRE(tokens <= model.config().max_position, "bench",
                  "--input-len and --output-len must be at most ", model.config().max_position,
                  " together, the model's own maximum; got ", tokens);
  CommonOptions common = options.common;
  common.max_num_seqs = options.batch_size;
  common.max_model_len = static_cast<int>(tokens);
  nlohmann::ordered_json document = record_json(make_record(backend.device_name(), options.commit));
  write_stdout(model.load(document));
  document["results"] = nlohmann::ordered_json::array();
  for (const std::string& dtype : options.kv_cache_dtype) {
    const CacheFormat format = parse_cache_format(dtype);
    const std::unique_ptr<EngineLoop> engine = model.make_engine(common, format);
    const Latencies latencies = measure(*engine, options);
    write_stdout(result_text(format, latencies));
    document["results"].push_back(result_json(options, format, latencies, model.memory().peak()));
    json.replace(document.dump(2) + "\n");
  }
  return 0;
}

void add_latency_options(CLI::App& app, LatencyOptions& options) {
  const auto add_count = [&app](const char* name, int& value, const char* text, int least) {
    app.add_option(name, value, text)->transform(human_size(least))->option_text("N")->capture_default_str();
  };
  add_count("--input-len", options.input_len, "random prompt tokens of each request", 1);
  add_count("--output-len", options.output_len, "generated tokens of each request", 1);
  add_count("--num-iters", options.iterations, "batches timed, one after the other", 1);
  add_count("--num-iters-warmup", options.warmup, "batches before them", 0);
  constexpr int kMostSeqs = 4096;
  app.add_option("--batch-size", options.batch_size, "requests submitted together")
      ->check(CLI::Range(1, kMostSeqs))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--kv-cache-dtype", options.kv_cache_dtype,
                 "caches to measure: fp8 (644 bytes a token a layer), bf16 (1,152)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"fp8", "bf16"}))
      ->option_text("DTYPE,...")
      ->default_str("fp8");
  app.add_option("--seed", options.seed, "of the random tokens")
      ->check(seed_number())
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--json", options.json, "write the figures to this file as JSON")
      ->envname("SNAPMLA_JSON_FILE")
      ->option_text("FILE");
  app.add_option("--commit", options.commit, "what was built, for the file")->option_text("TEXT");
}

}  // namespace

Command add_bench_latency(CLI::App& bench) {
  const auto options = std::make_shared<LatencyOptions>();
  options->common.enable_prefix_caching = false;  // iterations must not find each other's prompts
  CLI::App* app =
      bench.add_subcommand("latency", "Time one batch of requests from start to end, again and again");
  add_model_option(*app, options->common);
  add_latency_options(*app, *options);
  add_load_options(*app, options->common);
  add_engine_options(*app, options->common);
  add_chunk_option(*app, options->common);
  add_log_options(*app, options->common);
  app->footer(
      "Examples:\n"
      "  snapmla bench latency --batch-size 1 --output-len 256\n"
      "  snapmla bench latency DIR --input-len 4k --kv-cache-dtype fp8,bf16");
  return {.app = app, .run = [options] { return bench_latency(*options); }};
}

}  // namespace snapmla::apps
