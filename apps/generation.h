// What `snapmla run` and `snapmla chat` share: the flags of a generation, the request they make, and the loop that runs it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "run_report.h"
#include "snapmla/engine.h"

namespace snapmla::apps {

struct GenerationOptions {
  int max_tokens = 128;
  std::optional<float> temperature{};
  std::optional<int> top_k{};
  std::optional<float> top_p{};
  std::uint64_t seed = 0;
  std::vector<std::string> stop{};
  bool ignore_eos = false;
};

void add_generation_options(CLI::App& app, GenerationOptions& options);

/// --kv-cache-dtype, as its own option because not every command has one cache.
CLI::Option* add_cache_option(CLI::App& app, std::string& dtype);
/// "bf16" or "fp8".
CacheFormat parse_cache_format(std::string_view name);

/// What is not on the command line comes from the model's generation_config.json.
Request make_request(const GenerationOptions& options, const std::vector<std::int32_t>& prompt,
                     const ModelConfig& config);

/// Runs one request to its end, handing text to `emit` as it comes; a signal cancels it, and what came so far is returned.
Generation generate(Engine& engine, const Request& request,
                    const std::function<void(std::string_view)>& emit);

/// Shows text of the model as it comes: bytes as they are, but on a terminal.
void show_model_text(std::string_view text);

}  // namespace snapmla::apps
