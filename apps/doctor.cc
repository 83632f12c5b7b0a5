// snapmla doctor: what this machine can run and why not, and a one-second self-test of each backend.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "common.h"
#include "core/parallel.h"
#include "selftest.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "snapmla/version.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

/// The value behind "name :" in a file of /proc; empty if there is none.
std::string proc_value(const char* path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name, 0) != 0) continue;
    const std::size_t value = line.find_first_not_of(" \t", std::min(line.find(':') + 1, line.size()));
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

std::string cpu_name() {
  const std::string name = proc_value("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

double memory_gib(const char* what) {
  const std::string kib = proc_value("/proc/meminfo", what);
  return kib.empty() ? 0 : std::strtod(kib.c_str(), nullptr) * 1024 / kGibBytes;
}

struct BackendReport {
  std::string name;
  Support support{};
  Support models{};  ///< whether the engine runs on it
  std::string device{};
  struct Test {
    CacheFormat format = CacheFormat::kFp8;
    SelfTest result{};
    std::string error{};  ///< what the backend threw, if it did
    [[nodiscard]] bool ok() const { return error.empty() && result.ok(); }
  };
  std::vector<Test> tests{};
};

BackendReport examine(Backend& backend) {
  BackendReport report{.name = std::string(backend.name()), .support = backend.supported()};
  if (!report.support.ok) return report;
  report.models = backend.supports_models();
  report.device = backend.device_name();
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    BackendReport::Test test{.format = format};
    try {
      test.result = run_self_test(backend, format);
    } catch (const Error& error) {
      test.error = error.what();
    }
    report.tests.push_back(std::move(test));
  }
  return report;
}

std::string bundled_model() {
  try {
    return find_model("");
  } catch (const Error&) {
    return "";
  }
}

nlohmann::ordered_json to_json(const std::vector<BackendReport>& reports, bool healthy) {
  nlohmann::ordered_json json{{"version", SNAPMLA_VERSION},
                              {"cpu", cpu_name()},
                              {"threads", num_threads()},
                              {"memory_gib", memory_gib("MemTotal")},
                              {"memory_free_gib", memory_gib("MemAvailable")},
                              {"model", bundled_model()},
                              {"ok", healthy}};
  for (const BackendReport& report : reports) {
    nlohmann::ordered_json backend{{"name", report.name}, {"supported", report.support.ok}};
    backend[report.support.ok ? "device" : "reason"] =
        report.support.ok ? report.device : report.support.reason;
    if (report.support.ok) backend["models"] = report.models.ok;
    for (const auto& test : report.tests) {
      nlohmann::ordered_json entry{{"cache", to_string(test.format)}, {"ok", test.ok()}};
      if (test.error.empty()) {
        entry.update({{"max_relative_error", test.result.max_relative_error},
                      {"tolerance", test.result.tolerance},
                      {"seconds", test.result.seconds}});
      } else {
        entry["error"] = test.error;
      }
      backend["self_test"].push_back(std::move(entry));
    }
    json["backends"].push_back(std::move(backend));
  }
  return json;
}

std::string to_text(const std::vector<BackendReport>& reports, const Style& style) {
  std::string out = style.accent("snapmla " SNAPMLA_VERSION) + "\n\n";
  const auto line = [&](std::string_view name, const std::string& value) {
    out += style.bold(fmt::format("{:<11}", name)) + value + "\n";
  };
  line("cpu", cpu_name());
  line("threads", fmt::format("{}", num_threads()));
  line("memory",
       fmt::format("{:.1f} GiB, {:.1f} GiB free", memory_gib("MemTotal"), memory_gib("MemAvailable")));
  const std::string model = bundled_model();
  line("model", model.empty() ? "the bundled model was not found from here; name a folder as MODEL" : model);
  for (const BackendReport& report : reports) {
    line(report.name, report.support.ok ? style.green("supported") + ": " + report.device
                                        : style.dim("not supported: ") + report.support.reason);
    if (report.support.ok && !report.models.ok)
      line("", style.dim("attention ops only; run and eval use the reference backend"));
    for (const auto& test : report.tests) {
      const std::string verdict = test.ok() ? style.green("OK") : style.red("FAILED");
      const std::string detail = test.error.empty()
                                     ? fmt::format("max relative error {:.4f} (limit {:.4f})",
                                                   test.result.max_relative_error, test.result.tolerance)
                                     : one_line(test.error);
      line("", fmt::format("self-test {:<5}{}  {}", label(test.format), verdict, detail));
    }
  }
  return out;
}

int diagnose(const CommonOptions& options) {
  apply(options);
  const std::vector<BackendReport> reports{examine(reference()), examine(cuda())};
  bool healthy = true;
  for (const BackendReport& report : reports) {
    for (const auto& test : report.tests) healthy = healthy && test.ok();
  }
  if (options.json) {
    write_stdout(to_json(reports, healthy).dump(2) + "\n");
  } else {
    write_stdout(to_text(reports, make_style(STDOUT_FILENO, options.color)));
  }
  if (!healthy) throw Error(ErrorCode::kInternal, "[doctor] a self-test failed; its line above says which");
  return 0;
}

}  // namespace

Command add_doctor(CLI::App& program) {
  const auto options = std::make_shared<CommonOptions>();
  CLI::App* app = program.add_subcommand("doctor", "Show what this machine can run, and test it");
  add_output_options(*app, *options);
  app->footer(
      "Appends random tokens to an FP8 and a BF16 cache on every backend this machine supports, decodes\n"
      "over them and compares with attention in double precision. Exit code 1 if that fails.");
  return {.app = app, .run = [options] { return diagnose(*options); }};
}

}  // namespace snapmla::apps
