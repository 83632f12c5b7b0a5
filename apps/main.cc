// snapmla: the program. Parses, calls, prints; exit code 0, 1 (an error), 2 (wrong usage), 128 + a signal.
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cli.h"
#include "common.h"
#include "snapmla/error.h"
#include "snapmla/version.h"
#include "terminal.h"

namespace {

using snapmla::apps::Command;

constexpr int kUsageError = 2;

int report(const std::string& text, int exit_code) {
  fmt::print(stderr, "snapmla: error: {}\n", snapmla::apps::one_line(text));
  return exit_code;
}

int usage_error(const CLI::App& program, const CLI::ParseError& error) {
  const auto subs = program.get_subcommands();
  if (subs.empty() && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    const std::vector<std::string> words = program.remaining();
    return report(
        fmt::format("[usage] a COMMAND is needed: run, chat, eval, study, bench, inspect or doctor; got "
                    "{}; see snapmla --help",
                    words.empty() ? "none" : "'" + words.front() + "'"),
        kUsageError);
  }
  std::string command = "snapmla";
  for (const CLI::App* app = &program; !app->get_subcommands().empty();) {
    app = app->get_subcommands().front();
    command += " " + app->get_name();
  }
  return report(fmt::format("[usage] {}; see {} --help", error.what(), command), kUsageError);
}

int run(int argc, const char* const* argv) {
  CLI::App program("Decode Multi-head Latent Attention models from a paged FP8 latent cache.", "snapmla");
  program.formatter(std::make_shared<snapmla::apps::HelpFormatter>());
  program.set_version_flag("--version", "snapmla " SNAPMLA_VERSION, "print the version and exit");
  program.set_help_flag("-h,--help", "print this help and exit");
  program.require_subcommand(1);
  program.footer(
      "Every flag of a command can also be set by its environment variable; 'snapmla COMMAND --help'\n"
      "shows both.\n\nExamples:\n"
      "  snapmla run -p \"In the beginning\"              stream text from the bundled model\n"
      "  snapmla run --compare -p \"In the beginning\"    FP8 cache beside BF16 cache\n"
      "  snapmla chat DIR                               talk with a model through its chat template\n"
      "  snapmla eval --passkey                         what FP8 costs in quality\n"
      "  snapmla study --parts formats                  what each choice of the format costs\n"
      "  snapmla bench kernel --check                   how fast the attention ops are\n"
      "  snapmla bench throughput --prefix-len 512      how fast the engine gets through many requests\n"
      "  snapmla inspect models/tiny-mla --gib 16       what fits\n"
      "  snapmla doctor                                 what this machine can run");
  const Command run = snapmla::apps::add_run(program);
  const Command chat = snapmla::apps::add_chat(program);
  const Command eval = snapmla::apps::add_eval(program);
  const Command study = snapmla::apps::add_study(program);
  CLI::App& bench = *program.add_subcommand("bench", "Measure the attention ops, or the engine");
  bench.require_subcommand(1);
  const std::array commands{run,
                            chat,
                            eval,
                            study,
                            snapmla::apps::add_bench_kernel(bench),
                            snapmla::apps::add_bench_throughput(bench),
                            snapmla::apps::add_bench_latency(bench),
                            snapmla::apps::add_inspect(program),
                            snapmla::apps::add_doctor(program)};
  snapmla::apps::name_environment(program);
  try {
    program.parse(argc, argv);
    for (const Command& command : commands) {
      if (command.app->parsed()) snapmla::apps::check_environment(*command.app);
    }
  } catch (const CLI::Success& asked) {  // --help, --version
    return program.exit(asked);
  } catch (const CLI::ParseError& error) {
    return usage_error(program, error);
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  return kUsageError;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    snapmla::apps::install_signal_handlers();
    return run(argc, argv);
  } catch (const snapmla::apps::Stop& stop) {
    if (const int signal = snapmla::apps::pending_signal(); signal != 0) {
      fmt::print(stderr, "snapmla: stopped by signal {}\n", signal);
    }
    return stop.exit_code;
  } catch (const CLI::ParseError& error) {  // rules between options, found once they are all read
    return report(fmt::format("[usage] {}", error.what()), kUsageError);
  } catch (const std::bad_alloc&) {
    return report("[memory] not enough memory; try a smaller --max-model-len", 1);
  } catch (const std::exception& error) {
    return report(error.what(), 1);
  }
}
