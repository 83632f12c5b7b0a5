// snapmla run: a prompt in, text streaming out; --compare runs both caches and shows how far they differ.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "checkpoint.h"
#include "cli.h"
#include "common.h"
#include "engine/tokenizer.h"
#include "evaluation.h"
#include "generation.h"
#include "model/config.h"
#include "run_report.h"
#include "snapmla/backend.h"
#include "snapmla/version.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

struct RunOptions {
  CommonOptions common{};
  std::optional<std::string> prompt;
  std::string prompt_file;
  GenerationOptions generation{};
  std::string kv_cache_dtype = "fp8";
  bool compare = false;
};

std::string read_prompt(const RunOptions& options) {
  if (options.prompt) return *options.prompt;
  const bool from_stdin = options.prompt_file.empty() || options.prompt_file == "-";
  if (options.prompt_file.empty() && isatty(STDIN_FILENO) == 1) {
    throw CLI::RequiredError(
        "a prompt is needed: --prompt TEXT, --prompt-file FILE, or text on standard input");
  }
  std::string text = read_text(from_stdin ? "-" : options.prompt_file);
  if (!text.empty() && text.back() == '\n') text.pop_back();  // the editor's or echo's, not the prompt's
  return text;
}

Engine make_engine(const RunOptions& options, CacheFormat format) {
  EngineOptions engine = engine_options(options.common, format);
  engine.max_batch = 1;
  engine.enable_prefix_caching = false;  // the prompt's prefill is timed, and the warm-up begins like it
  Engine made(engine);
  spdlog::info(startup_text(made));
  return made;
}

/// Two tokens that nobody sees, so that threads and memory are awake when two caches are timed.
void warm_up(Engine& engine, const std::vector<std::int32_t>& prompt) {
  engine.submit(
      {.prompt_tokens = {prompt.front()}, .max_tokens = 2, .ignore_eos = true, .forced_tokens = {}});
  while (!engine.idle()) engine.step();
}

int run_one(const RunOptions& options) {
  const std::string prompt = read_prompt(options);
  const auto start = std::chrono::steady_clock::now();
  Engine engine = make_engine(options, parse_cache_format(options.kv_cache_dtype));
  const std::chrono::duration<double> load_time = std::chrono::steady_clock::now() - start;
  const Style style = make_style(STDOUT_FILENO, options.common.color);
  const bool json = options.common.json;
  const Request request =
      make_request(options.generation, engine.tokenizer().encode(prompt), engine.config());
  if (!json && isatty(STDOUT_FILENO) == 1) write_stdout(style.bold(without_controls(prompt)));
  const Generation generation = generate(engine, request, [json](std::string_view text) {
    if (!json) show_model_text(text);
  });
  if (json) {
    nlohmann::ordered_json out{
        {"model", engine.options().model_dir}, {"load_seconds", load_time.count()}, {"prompt", prompt}};
    out.update(run_json(generation));
    write_stdout(out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    if (generation.text.empty() || generation.text.back() != '\n') write_stdout("\n");
    const std::string report = run_text(generation, make_style(STDERR_FILENO, options.common.color));
    std::fputs(("\n" + report).c_str(), stderr);
  }
  stop_if_asked();
  return 0;
}

std::string title(const Engine& engine, const Backend& backend, const Style& style) {
  const std::string dir = engine.options().model_dir;
  const CheckpointSummary summary = summarize_checkpoint(dir);
  const std::string dot{style.dot()};
  return style.accent("snapmla " SNAPMLA_VERSION) + dot + base_name(dir) + dot + summary.config.model_type +
         dot + fmt::format("{} parameters", short_count(summary.parameters.value_or(0))) + dot +
         std::string(backend.name()) + dot + backend.device_name() + "\n";
}

/// Both caches, over the same tokens: the prompt and the BF16 text.
Difference compare_outputs(Engine& fp8_engine, Engine& bf16_engine, const std::vector<std::int32_t>& prompt,
                           const Generation& fp8, const Generation& bf16) {
  Difference difference{.first = first_difference(fp8.tokens, bf16.tokens)};
  Sequence sequence{.tokens = prompt, .prefix = static_cast<int>(prompt.size())};
  sequence.tokens.insert(sequence.tokens.end(), bf16.tokens.begin(), bf16.tokens.end());
  if (sequence.num_scored() < 1) return difference;
  score_sequences(
      {.bf16 = &bf16_engine, .fp8 = &fp8_engine}, {sequence},
      {.on_score = [&](const TokenScore& score) { difference.along.add(score); }, .after_step = {}});
  return difference;
}

int run_compare(const RunOptions& options) {
  const std::string prompt = read_prompt(options);
  Engine fp8_engine = make_engine(options, CacheFormat::kFp8);
  Engine bf16_engine = make_engine(options, CacheFormat::kBf16);
  const Style style = make_style(STDOUT_FILENO, options.common.color);
  const bool json = options.common.json;
  const auto show = [json](std::string_view text) {
    if (!json) write_stdout(text);
  };
  const std::vector<std::int32_t> tokens = fp8_engine.tokenizer().encode(prompt);
  const Request request = make_request(options.generation, tokens, fp8_engine.config());

  show(title(fp8_engine, backend_by_name(options.common.backend), style));
  show("\n" + style.bold("Prompt") + "\n" + prompt + "\n");
  const auto run_cache = [&](Engine& engine) {
    const CacheFormat format = engine.options().cache_format;
    show("\n" + style.bold(fmt::format("{} cache", label(format))) +
         style.dim(fmt::format("  {} bytes a token a layer", with_commas(token_bytes(format)))) + "\n");
    if (!tokens.empty()) warm_up(engine, tokens);
    Generation generation = generate(engine, request, [json](std::string_view text) {
      if (!json) show_model_text(text);
    });
    show("\n" +
         style.dim(
             fmt::format("{} tokens, {:.1f} tokens/s", generation.tokens.size(), generation.decode_rate())) +
         "\n");
    stop_if_asked();
    return generation;
  };
  const Generation fp8 = run_cache(fp8_engine);
  const Generation bf16 = run_cache(bf16_engine);
  const Difference difference = compare_outputs(fp8_engine, bf16_engine, tokens, fp8, bf16);
  if (json) {
    const nlohmann::ordered_json out{{"model", fp8_engine.options().model_dir},
                                     {"prompt", prompt},
                                     {"fp8", run_json(fp8)},
                                     {"bf16", run_json(bf16)},
                                     {"difference", difference_json(difference)}};
    write_stdout(out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    write_stdout("\n" + compare_text(fp8, bf16, difference, style));
  }
  return 0;
}

void add_prompt_options(CLI::App& app, RunOptions& options) {
  CLI::Option* prompt = app.add_option("-p,--prompt", options.prompt, "the prompt")->option_text("TEXT");
  app.add_option("--prompt-file", options.prompt_file,
                 "read the prompt from a file, '-' for standard input (which is also the default); one line "
                 "break at its end is dropped")
      ->excludes(prompt)
      ->option_text("FILE");
}

}  // namespace

Command add_run(CLI::App& program) {
  const auto options = std::make_shared<RunOptions>();
  CLI::App* app = program.add_subcommand("run", "Stream text from a prompt");
  add_model_option(*app, options->common);
  add_prompt_options(*app, *options);
  add_generation_options(*app, options->generation);
  CLI::Option* dtype = add_cache_option(*app, options->kv_cache_dtype);
  app->add_flag("--compare", options->compare, "run both caches and show how far their outputs differ")
      ->excludes(dtype);
  add_engine_options(*app, options->common);
  add_size_options(*app, options->common);
  add_chunk_option(*app, options->common);
  add_output_options(*app, options->common);
  app->footer(
      "The text goes to standard output as it comes, the figures to standard error afterwards.\n\n"
      "Examples:\n"
      "  snapmla run -p \"In the beginning\" -n 200\n"
      "  snapmla run --compare -p \"In the beginning\"\n"
      "  echo \"In the beginning\" | snapmla run --temperature 0.8 --top-p 0.95 --seed 7\n"
      "  snapmla run DIR --prompt-file prompt.txt --kv-cache-dtype bf16 --max-model-len 8k");
  return {.app = app, .run = [options] {
            apply(options->common);
            return options->compare ? run_compare(*options) : run_one(*options);
          }};
}

}  // namespace snapmla::apps
