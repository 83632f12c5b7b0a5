// How the command line is read: one Command a subcommand, checks for values, help a person can read, and an
// environment variable for every flag.
//
// A flag --max-tokens is also SNAPMLA_MAX_TOKENS; what is typed wins. Values are checked here as far as they
// make sense without a model (a NaN temperature is a usage error, exit 2); the rest is the library's to
// refuse.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "common.h"

namespace snapmla::apps {

/// A subcommand: its options, and what it does once they are read. Returns the exit code.
struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;
};

Command add_run(CLI::App& program);
Command add_chat(CLI::App& program);
Command add_eval(CLI::App& program);
Command add_study(CLI::App& program);
Command add_bench_kernel(CLI::App& bench);
Command add_bench_throughput(CLI::App& bench);
Command add_bench_latency(CLI::App& bench);
Command add_inspect(CLI::App& program);
Command add_doctor(CLI::App& program);

void add_model_option(CLI::App& app, CommonOptions& options);
void add_load_options(CLI::App& app,
                      CommonOptions& options);  ///< dummy weights, and a part of a model with them
void add_engine_options(CLI::App& app, CommonOptions& options);  ///< backend, scale rule
void add_size_options(CLI::App& app, CommonOptions& options);    ///< longest request, pages
void add_memory_options(CLI::App& app, CommonOptions& options);  ///< what weights, buffers and cache may take
/// Requests together, prompt tokens a step, prefix caching.
void add_scheduler_options(CLI::App& app, CommonOptions& options);
void add_prefix_caching_option(CLI::App& app, CommonOptions& options);
/// Prompt tokens a step: what one request alone can use of them.
void add_chunk_option(CLI::App& app, CommonOptions& options);
void add_output_options(CLI::App& app, CommonOptions& options);  ///< json, color, log level, threads
void add_log_options(CLI::App& app, CommonOptions& options);     ///< the same without json
/// Log level and threads take effect.
void apply(const CommonOptions& options);

/// Rewrites 4096, 4k, 25.6K, 1M (1024-based) to a plain integer of at least `least`.
CLI::Validator human_size(std::int64_t least);
/// A finite number x with least < x (or <= if `or_equal`) and x <= most.
CLI::Validator finite_number(double least, bool or_equal, double most);

/// A whole number from 0 to 2^64 - 1.
CLI::Validator seed_number();

/// Gives every named option of `app` and its subcommands its environment variable.
void name_environment(CLI::App& app);
/// Throws CLI::ValidationError for a variable whose value was not taken (CLI11 drops bad ones from 2.4 on).
void check_environment(const CLI::App& app);

/// Help in two columns, wrapped at 88 characters, with default and variable behind each text.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* sub) const override;
};

}  // namespace snapmla::apps
