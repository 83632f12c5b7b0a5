// snapmla bench throughput: how fast the engine gets through many requests, and what the prefix cache and
// preemption do to it.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>

#include "cli.h"
#include "common.h"
#include "core/check.h"
#include "eval_stats.h"
#include "generation.h"
#include "model/config.h"
#include "output_file.h"
#include "snapmla/backend.h"
#include "snapmla/version.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct ThroughputOptions {
  CommonOptions common{};
  std::string kv_cache_dtype = "fp8";
  int num_prompts = 32;
  int input_len = 256;
  int output_len = 64;
  int prefix_len = 0;
  std::uint64_t seed = 0;
  std::string json;
};

struct ThroughputResult {
  double seconds = 0;
  std::vector<double> first_token_seconds;  ///< a request, from the start
  EngineStats stats{};
};

/// prefix_len tokens that all share, then input_len tokens of its own for each.
std::vector<Request> make_requests(const ThroughputOptions& options, int vocab) {
  Random random(options.seed);
  const auto tokens = [&](int count) {
    std::vector<std::int32_t> result(static_cast<std::size_t>(count));
    for (std::int32_t& token : result) token = random.below(vocab);
    return result;
  };
  const std::vector<std::int32_t> prefix = tokens(options.prefix_len);
  std::vector<Request> requests;
  for (int i = 0; i < options.num_prompts; ++i) {
    std::vector<std::int32_t> prompt = prefix;
    const std::vector<std::int32_t> own = tokens(options.input_len);
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back({.prompt_tokens = std::move(prompt),
                        .max_tokens = options.output_len,
                        .ignore_eos = true,
                        .forced_tokens = {}});
  }
  return requests;
}

ThroughputResult run_all(Engine& engine, const std::vector<Request>& requests) {
  ThroughputResult result;
  const Clock::time_point start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::map<RequestId, double> first_token;
  for (const Request& request : requests) engine.submit(request);
  while (!engine.idle()) {
    stop_if_asked();
    for (const TokenEvent& event : engine.step()) first_token.try_emplace(event.request, elapsed());
  }
  result.seconds = elapsed();
  for (const auto& [request, seconds] : first_token) result.first_token_seconds.push_back(seconds);
  std::sort(result.first_token_seconds.begin(), result.first_token_seconds.end());
  result.stats = engine.stats();
  return result;
}

double percentile(const std::vector<double>& sorted, double share) {
  return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
}

nlohmann::ordered_json result_json(const ThroughputOptions& options, const Engine& engine,
                                   const ThroughputResult& result) {
  const EngineOptions& chosen = engine.options();
  const EngineStats& stats = result.stats;
  return {{"version", SNAPMLA_VERSION},
          {"model", chosen.model_dir},
          {"device", chosen.backend->device_name()},
          {"kv_cache_dtype", to_string(chosen.cache_format)},
          {"num_prompts", options.num_prompts},
          {"input_len", options.input_len},
          {"prefix_len", options.prefix_len},
          {"output_len", options.output_len},
          {"max_num_seqs", chosen.max_batch},
          {"max_num_batched_tokens", chosen.prefill_chunk},
          {"num_pages", chosen.num_pages},
          {"enable_prefix_caching", chosen.enable_prefix_caching},
          {"seconds", result.seconds},
          {"generated_tokens_per_second", static_cast<double>(stats.generated_tokens) / result.seconds},
          {"first_token_seconds_p50", percentile(result.first_token_seconds, 0.5)},
          {"first_token_seconds_p99", percentile(result.first_token_seconds, 0.99)},
          {"prefilled_tokens", stats.prompt_tokens},
          {"prefix_cache_tokens", stats.prefix_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"replayed_tokens", stats.replayed_tokens},
          {"preemptions", stats.preemptions}};
}

std::string result_text(const ThroughputResult& result) {
  const EngineStats& stats = result.stats;
  const auto requests = static_cast<double>(result.first_token_seconds.size());
  std::string out;
  const auto line = [&out](std::string_view name, const std::string& value) {
    out += fmt::format("{:<13}{}\n", name, value);
  };
  line("time",
       fmt::format("{:.2f} s, {:.2f} requests/s, {:.1f} generated tokens/s", result.seconds,
                   requests / result.seconds, static_cast<double>(stats.generated_tokens) / result.seconds));
  line("first token", fmt::format("after {:.3f} s (median), {:.3f} s (99th percentile)",
                                  percentile(result.first_token_seconds, 0.5),
                                  percentile(result.first_token_seconds, 0.99)));
  line("prompts", fmt::format("{} tokens prefilled, {} found in the prefix cache",
                              with_commas(stats.prompt_tokens), with_commas(stats.prefix_tokens)));
  line("generated",
       fmt::format("{} tokens; {} preemptions, {} tokens replayed", with_commas(stats.generated_tokens),
                   with_commas(stats.preemptions), with_commas(stats.replayed_tokens)));
  return out;
}

int bench_throughput(const ThroughputOptions& options) {
  apply(options.common);
  const OutputFile json("--json", options.json);
  CommonOptions common = options.common;
  const std::int64_t needed = std::int64_t{options.prefix_len} + options.input_len + options.output_len;
  if (common.max_model_len == 0) {
    const int longest = load_config(find_model(common.model)).max_position;
    SNAPMLA_REQUIRE(needed <= longest, "bench", "--prefix-len, --input-len and --output-len must be at most ",
                    longest, " together, the model's own maximum; got ", needed);
    common.max_model_len = static_cast<int>(needed);
  }
  Engine engine(engine_options(common, parse_cache_format(options.kv_cache_dtype)));
  const ThroughputResult result = run_all(engine, make_requests(options, engine.config().vocab));
  json.replace(result_json(options, engine, result).dump(2) + "\n");
  write_stdout(result_text(result));
  return 0;
}

void add_load_options(CLI::App& app, ThroughputOptions& options) {
  app.add_option("--num-prompts", options.num_prompts, "requests, all submitted at the start")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--input-len", options.input_len, "random prompt tokens of each request's own")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--prefix-len", options.prefix_len, "random tokens before them, the same for all requests")
      ->transform(human_size(0))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--output-len", options.output_len, "generated tokens of each request")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the random tokens")
      ->check(seed_number())
      ->option_text("N")
      ->capture_default_str();
  add_cache_option(app, options.kv_cache_dtype);
}

}  // namespace

Command add_bench_throughput(CLI::App& bench) {
  const auto options = std::make_shared<ThroughputOptions>();
  CLI::App* app = bench.add_subcommand("throughput", "Time the engine with many requests at once");
  add_model_option(*app, options->common);
  add_load_options(*app, *options);
  add_engine_options(*app, options->common);
  add_size_options(*app, options->common);
  add_scheduler_options(*app, options->common);
  add_log_options(*app, options->common);
  app->add_option("--json", options->json, "write the figures to this file as JSON")
      ->envname("SNAPMLA_JSON_FILE")
      ->option_text("FILE");
  app->footer(
      "Examples:\n"
      "  snapmla bench throughput --num-prompts 64 --prefix-len 512 --input-len 32\n"
      "  snapmla bench throughput --num-prompts 64 --prefix-len 512 --input-len 32 "
      "--no-enable-prefix-caching\n"
      "  snapmla bench throughput --num-prompts 16 --output-len 512 --num-pages 24    a pool far too small");
  return {.app = app, .run = [options] { return bench_throughput(*options); }};
}

}  // namespace snapmla::apps
