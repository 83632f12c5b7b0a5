#include "generation.h"

#include <unistd.h>

#include <limits>

#include "cli.h"
#include "model/config.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

EngineStats difference(const EngineStats& after, const EngineStats& before) {
  EngineStats stats = after;
  stats.prompt_tokens -= before.prompt_tokens;
  stats.generated_tokens -= before.generated_tokens;
  stats.prefill_seconds -= before.prefill_seconds;
  stats.decode_seconds -= before.decode_seconds;
  stats.decode_steps -= before.decode_steps;
  return stats;
}

}  // namespace

void add_generation_options(CLI::App& app, GenerationOptions& options) {
  constexpr double kAny = std::numeric_limits<double>::infinity();
  app.add_option("-n,--max-tokens", options.max_tokens, "generated tokens at most")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--stop", options.stop, "end the text before this string; may be given several times")
      ->allow_extra_args(false)
      ->option_text("TEXT");
  app.add_flag("--ignore-eos", options.ignore_eos, "go on past the model's stop tokens");
  app.add_option("--temperature", options.temperature,
                 "0: the most likely token, always (default: the model's generation_config.json, else 0)")
      ->check(finite_number(0, true, kAny))
      ->option_text("X");
  app.add_option("--top-k", options.top_k,
                 "sample from the K most likely tokens; 0: all (default: the model's)")
      ->check(CLI::Range(0, std::numeric_limits<int>::max()))
      ->option_text("K");
  app.add_option("--top-p", options.top_p,
                 "sample from the most likely tokens of total probability P (default: the model's, else 1)")
      ->check(finite_number(0, false, 1))
      ->option_text("P");
  app.add_option("--seed", options.seed, "same seed, same text")
      ->check(seed_number())
      ->option_text("N")
      ->capture_default_str();
}

CLI::Option* add_cache_option(CLI::App& app, std::string& dtype) {
  return app.add_option("--kv-cache-dtype", dtype, "fp8 (644 bytes a token a layer) or bf16 (1,152)")
      ->check(CLI::IsMember({"fp8", "bf16"}))
      ->option_text("DTYPE")
      ->capture_default_str();
}

CacheFormat parse_cache_format(std::string_view name) {
  return name == "bf16" ? CacheFormat::kBf16 : CacheFormat::kFp8;
}

Request make_request(const GenerationOptions& options, const std::vector<std::int32_t>& prompt,
                     const ModelConfig& config) {
  return {.prompt_tokens = prompt,
          .max_tokens = options.max_tokens,
          .sampling = {.temperature = options.temperature.value_or(config.default_temperature),
                       .top_k = options.top_k.value_or(config.default_top_k),
                       .top_p = options.top_p.value_or(config.default_top_p),
                       .seed = options.seed},
          .stop = options.stop,
          .ignore_eos = options.ignore_eos,
          .forced_tokens = {}};
}

Generation generate(Engine& engine, const Request& request,
                    const std::function<void(std::string_view)>& emit) {
  Generation result{.format = engine.options().cache_format, .layers = engine.config().num_layers};
  const EngineStats before = engine.stats();
  const RequestId id = engine.submit(request);
  while (!engine.idle()) {
    if (pending_signal() != 0) engine.cancel(id);
    for (const TokenEvent& event : engine.step()) {
      if (event.token >= 0) result.tokens.push_back(event.token);
      if (!event.text.empty()) emit(event.text);
      result.text += event.text;
      if (event.finish != FinishReason::kNone) result.finish = event.finish;
    }
  }
  result.stats = difference(engine.stats(), before);
  return result;
}

void show_model_text(std::string_view text) {
  write_stdout(isatty(STDOUT_FILENO) == 1 ? without_controls(text) : std::string(text));
}

}  // namespace snapmla::apps
