#include "cli.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace snapmla::apps {
namespace {

constexpr int kLeftColumn = 30;
constexpr int kHelpWidth = 88;
constexpr int kMaxThreads = 1024;

double size_unit(char suffix) {
  switch (suffix) {
    case 'k':
    case 'K':
      return 1024;
    case 'm':
    case 'M':
      return 1024.0 * 1024;
    default:
      return 0;
  }
}

std::string environment_name(const std::string& long_name) {
  std::string name = "SNAPMLA_";
  for (const char c : long_name) name += c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return name;
}

/// Two columns: `left`, then `text` wrapped beside it.
std::string two_columns(const std::string& left, const std::string& text) {
  std::string out = "  " + left;
  auto column = static_cast<int>(out.size());
  if (column >= kLeftColumn) {
    out += "\n";
    column = 0;
  }
  out.append(static_cast<std::size_t>(kLeftColumn - column), ' ');
  column = kLeftColumn;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const auto length = static_cast<int>(end - at);
    if (column > kLeftColumn && column + 1 + length > kHelpWidth) {
      out += "\n" + std::string(kLeftColumn, ' ');
      column = kLeftColumn;
    }
    if (column > kLeftColumn) {
      out += ' ';
      ++column;
    }
    out += text.substr(at, end - at);
    column += length;
    at = end + 1;
  }
  return out + "\n";
}

/// "r/n" with 0 <= r < n <= 4096.
CLI::Validator rank_of_ranks() {
  return {[](const std::string& text) -> std::string {
            constexpr int kMostRanks = 4096;
            int rank = -1;
            int ranks = 0;
            int length = 0;
            const bool read = std::sscanf(text.c_str(), "%4d/%4d%n", &rank, &ranks, &length) == 2 &&
                              length == static_cast<int>(text.size());
            if (read && rank >= 0 && rank < ranks && ranks <= kMostRanks) return {};
            return fmt::format("must be a rank and the number of ranks, as 0/32; got '{}'", text);
          },
          "", ""};
}

}  // namespace

CLI::Validator human_size(std::int64_t least) {
  return {[least](std::string& text) -> std::string {
            char* end = nullptr;
            const double number = std::strtod(text.c_str(), &end);
            const std::string suffix = end;
            const double unit = suffix.empty() ? 1 : suffix.size() == 1 ? size_unit(suffix[0]) : 0;
            const double size = std::floor(number * unit);
            const bool digits = !text.empty() && std::isdigit(static_cast<unsigned char>(text[0])) != 0;
            constexpr double kMost = std::numeric_limits<std::int32_t>::max();
            if (!digits || unit == 0 || !(size >= static_cast<double>(least)) || size > kMost ||
                (suffix.empty() && size != number)) {
              return fmt::format("must be a whole number from {} up, as 512, 4k or 1M; got '{}'", least,
                                 text);
            }
            text = fmt::format("{}", static_cast<std::int64_t>(size));
            return {};
          },
          "", ""};
}

CLI::Validator finite_number(double least, bool or_equal, double most) {
  return {[=](std::string& text) -> std::string {
            char* end = nullptr;
            const double x = std::strtod(text.c_str(), &end);
            const bool whole = !text.empty() && *end == '\0';
            if (whole && std::isfinite(x) && (or_equal ? x >= least : x > least) && x <= most) return {};
            const std::string upper = std::isfinite(most) ? fmt::format(" and at most {}", most) : "";
            return fmt::format("must be a finite number {} {}{}; got '{}'",
                               or_equal ? "of at least" : "greater than", least, upper, text);
          },
          "", ""};
}

CLI::Validator seed_number() {
  return {[](std::string& text) -> std::string {
            const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
            errno = 0;
            std::strtoull(text.c_str(), nullptr, 10);
            if (digits && errno == 0) return {};
            return fmt::format("must be a whole number from 0 to 2^64 - 1; got '{}'", text);
          },
          "", ""};
}

void add_model_option(CLI::App& app, CommonOptions& options) {
  app.add_option("MODEL,-m,--model", options.model,
                 "Hugging Face folder of the model; without it the bundled models/tiny-mla is used")
      ->option_text("DIR");
}

void add_engine_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--backend", options.backend, "where it runs: auto, reference (CPU) or cuda")
      ->check(CLI::IsMember({"auto", "reference", "cuda"}))
      ->option_text("NAME")
      ->capture_default_str();
  app.add_option("--scale-rule", options.scale_rule,
                 "scale of an FP8 row: pow2 (exact restoring) or amax (the paper's)")
      ->check(CLI::IsMember({"pow2", "amax"}))
      ->option_text("RULE")
      ->capture_default_str();
  app.add_flag("--deterministic", options.deterministic,
               "a request's result depends on itself alone, bit for bit; slower on cuda, always so on the "
               "reference backend");
}

void add_load_options(CLI::App& app, CommonOptions& options) {
  app.add_option(
         "--load-format", options.load_format,
         "weights: auto (the folder's) or dummy (random, for a folder with a config.json only, as those in "
         "models/configs)")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->option_text("FORMAT")
      ->capture_default_str();
  app.add_option("--num-layers", options.num_layers,
                 "keep so many layers of a dummy model, its leading dense ones in proportion, at least one "
                 "(default: all)")
      ->transform(human_size(1))
      ->option_text("N");
  app.add_option(
         "--expert-parallel-slice", options.expert_parallel_slice,
         "of a dummy model, what GPU r of n holds in expert parallelism: 1/n of the routed experts and all "
         "else; each token chooses among them, which is a rank's load when all n decode such a batch. "
         "Communication between the n is not part of it")
      ->check(rank_of_ranks())
      ->option_text("R/N")
      ->capture_default_str();
}

void add_size_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--max-model-len", options.max_model_len,
                 "prompt and generated tokens of a request at most, as 4096 or 4k (default: the model's own)")
      ->transform(human_size(1))
      ->option_text("N");
  app.add_option("--num-pages", options.num_pages,
                 "cache pages of 64 tokens in the pool (default: enough for --max-model-len)")
      ->transform(human_size(1))
      ->option_text("N");
}

void add_memory_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--gpu-memory-utilization", options.gpu_memory_utilization,
                 "share of the device memory free at the start that weights, buffers and cache take together")
      ->check(finite_number(0, false, 1))
      ->option_text("X")
      ->capture_default_str();
  app.add_option("--kv-cache-memory-bytes", options.kv_cache_memory_bytes,
                 "bytes of the cache, as 20G, in place of what the share leaves")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::PositiveNumber)
      ->option_text("BYTES");
}

void add_scheduler_options(CLI::App& app, CommonOptions& options) {
  constexpr int kMostSeqs = 4096;
  app.add_option("--max-num-seqs", options.max_num_seqs,
                 "requests that run together; changes speed, never results")
      ->check(CLI::Range(1, kMostSeqs))
      ->option_text("N")
      ->capture_default_str();
  add_chunk_option(app, options);
  add_prefix_caching_option(app, options);
}

void add_prefix_caching_option(CLI::App& app, CommonOptions& options) {
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", options.enable_prefix_caching,
               "share the cache pages of prompts that begin alike; changes speed, never results")
      ->default_str("true");
}

void add_chunk_option(CLI::App& app, CommonOptions& options) {
  app.add_option("--max-num-batched-tokens", options.max_num_batched_tokens,
                 "prompt tokens of a step, beside one token of every decoding request; changes speed, never "
                 "results")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
}

void add_output_options(CLI::App& app, CommonOptions& options) {
  app.add_flag("--json", options.json, "print one JSON object to standard output instead of text");
  add_log_options(app, options);
}

void add_log_options(CLI::App& app, CommonOptions& options) {
  app.add_option("--color", options.color, "auto (a terminal without NO_COLOR), always or never")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->option_text("WHEN")
      ->capture_default_str();
  app.add_option("--log-level", options.log_level, "debug, info, warning or error, to standard error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->option_text("LEVEL")
      ->capture_default_str();
  app.add_option("--num-threads", options.num_threads, "CPU threads (default: one a hardware thread)")
      ->check(CLI::Range(1, kMaxThreads))
      ->option_text("N");
}

void apply(const CommonOptions& options) {
  spdlog::set_default_logger(spdlog::stderr_logger_st("snapmla"));
  spdlog::set_pattern("snapmla: %l: %v");
  spdlog::set_level(spdlog::level::from_str(options.log_level));
  if (options.num_threads > 0) {
    setenv("SNAPMLA_NUM_THREADS", std::to_string(options.num_threads).c_str(), 1);
  }
}

void name_environment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::vector<std::string>& names = option->get_lnames();
    if (names.empty() || names[0] == "help" || names[0] == "version") continue;
    if (!option->get_envname().empty()) continue;  // it has its own
    option->envname(environment_name(names[0]));
  }
  for (CLI::App* sub : app.get_subcommands({})) name_environment(*sub);
}

void check_environment(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_envname().empty() || option->count() > 0) continue;
    const char* value = std::getenv(option->get_envname().c_str());
    if (value != nullptr && *value != '\0') {
      throw CLI::ValidationError(option->get_envname(), fmt::format("the value '{}' is not valid for {}",
                                                                    value, option->get_name()));
    }
  }
}

HelpFormatter::HelpFormatter() {
  label("SUBCOMMAND", "COMMAND");
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  const std::string& value = option->get_option_text();
  std::string left = is_positional ? option->get_name(true) : option->get_name(false, true);
  if (const auto comma = left.find(','); comma != std::string::npos) left.insert(comma + 1, " ");
  if (!is_positional && !value.empty()) left += " " + value;
  std::string text = option->get_description();
  std::string notes;
  if (!is_positional) {
    if (!option->get_default_str().empty()) notes = "default " + option->get_default_str();
    if (!option->get_envname().empty()) notes += (notes.empty() ? "" : "; ") + option->get_envname();
  }
  if (!notes.empty()) text += " [" + notes + "]";
  return two_columns(left, text);
}

std::string HelpFormatter::make_subcommand(const CLI::App* sub) const {
  return two_columns(sub->get_name(), sub->get_description());
}

}  // namespace snapmla::apps
