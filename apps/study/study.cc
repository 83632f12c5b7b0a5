// snapmla study: what each choice of an FP8 latent cache does to attention, as one table. docs/numerics.md shows it.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "cli.h"
#include "common.h"
#include "core/check.h"
#include "model/config.h"
#include "output_file.h"
#include "snapmla/backend.h"
#include "study/long_context.h"
#include "study/parts.h"
#include "study/record.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

struct StudyOptions {
  CommonOptions common{};
  std::vector<std::string> parts{"formats", "scale-rule", "weights", "accumulation", "splits"};
  std::vector<int> lengths{1024, 8192, 32768};
  int longest_sum = 1 << 20;
  int steps = 4;
  std::string text;
  std::string output;

  [[nodiscard]] bool has(const std::string& part) const {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  }
};

/// Rows to study, each with the calibration of its static formats.
struct StudySource {
  AttentionRows rows{};
  Calibration calibration{};
};

std::vector<StudySource> model_sources(const StudyOptions& options, Backend& backend) {
  const std::string dir = find_model(options.common.model);
  const int longest = *std::max_element(options.lengths.begin(), options.lengths.end());
  const int most = load_config(dir).max_position;
  SNAPMLA_REQUIRE(longest < most, "study", "--lengths must be below ", most,
                  ", the model's own maximum; got ", longest);
  const std::string text =
      options.text.empty() ? (std::filesystem::path(dir) / "held_out.txt").string() : options.text;
  spdlog::info("recording {} at {} lengths up to {}", dir, options.lengths.size(), longest);
  Recording recording = record_activations({.model_dir = dir,
                                            .backend = &backend,
                                            .text = read_text(text),
                                            .lengths = options.lengths,
                                            .steps = options.steps});
  std::vector<StudySource> sources;
  for (AttentionRows& rows : recording.rows) {
    rows.source = base_name(dir);
    const Calibration calibration = recording.calibration[static_cast<std::size_t>(rows.layer)];
    sources.push_back({std::move(rows), calibration});
  }
  return sources;
}

std::vector<StudySource> synthetic_sources(const StudyOptions& options) {
  constexpr int kCalibrationTokens = 1024;
  constexpr std::uint64_t kOtherSeed = 2;
  std::vector<StudySource> sources;
  for (const int length : options.lengths) {
    for (const Shape shape : {Shape::kTails, Shape::kSink, Shape::kUniform, Shape::kOutlier}) {
      const AttentionRows other =
          make_synthetic({.shape = shape, .tokens = kCalibrationTokens, .seed = kOtherSeed});
      sources.push_back({make_synthetic({.shape = shape, .tokens = length, .steps = options.steps}),
                         calibrate(widen(other.keys).data(), static_cast<std::size_t>(other.num_tokens()))});
    }
  }
  return sources;
}

/// 1K, 2K, 4K ... up to `longest`.
std::vector<int> doublings(int longest) {
  std::vector<int> lengths;
  for (int length = 1024; length <= longest; length *= 2) lengths.push_back(length);
  return lengths;
}

int run_study(const StudyOptions& options) {
  apply(options.common);
  const OutputFile file("--output", options.output);
  Backend& backend = backend_by_name(options.common.backend);
  std::vector<StudyLine> lines;
  const auto add = [&](std::vector<StudyLine> more) {
    std::move(more.begin(), more.end(), std::back_inserter(lines));
  };
  if (options.has("formats") || options.has("scale-rule") || options.has("splits")) {
    std::vector<StudySource> sources = model_sources(options, backend);
    for (StudySource& source : synthetic_sources(options)) sources.push_back(std::move(source));
    for (const StudySource& source : sources) {
      stop_if_asked();
      spdlog::info("{} layer {} at {} tokens", source.rows.source, source.rows.layer,
                   source.rows.num_tokens());
      if (options.has("formats")) add(study_formats(backend, source.rows, source.calibration));
      if (options.has("scale-rule")) add(study_scale_rule(source.rows));
      if (options.has("splits")) add(study_splits(backend, source.rows));
    }
  }
  using enum LogitKind;
  if (options.has("weights")) {
    constexpr int kLongest = 1 << 17;
    add(study_long_context({.part = "weights",
                            .kinds = {kUniform, kFlat, kPeaked, kSink8, kSink12},
                            .rules = weight_rules(),
                            .lengths = doublings(std::min(options.longest_sum, kLongest))}));
  }
  if (options.has("accumulation")) {
    add(study_long_context({.part = "accumulation",
                            .kinds = {kUniform, kFlat, kPeaked, kSink8},
                            .rules = accumulation_rules(),
                            .lengths = doublings(options.longest_sum)}));
  }
  std::stable_sort(lines.begin(), lines.end(),
                   [](const StudyLine& a, const StudyLine& b) { return a.part < b.part; });
  const std::string csv = study_csv(lines);
  file.replace(csv);
  if (options.output.empty()) write_stdout(csv);
  return 0;
}

}  // namespace

Command add_study(CLI::App& program) {
  const auto options = std::make_shared<StudyOptions>();
  CLI::App* app =
      program.add_subcommand("study", "Measure what each choice of the FP8 format does to attention");
  add_model_option(*app, options->common);
  app->add_option("--parts", options->parts, "formats, scale-rule, weights, accumulation, splits")
      ->check(CLI::IsMember(options->parts))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->option_text("NAME,NAME,...")
      ->default_str("all");
  constexpr int kLeastTokens = 64;
  app->add_option("--lengths", options->lengths, "cached tokens of the parts that look at whole attention")
      ->transform(human_size(kLeastTokens))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->option_text("N,N,...")
      ->default_str("1k,8k,32k");
  app->add_option("--longest-sum", options->longest_sum,
                  "tokens of the longest sum in weights and accumulation, from 1k up in doublings")
      ->transform(human_size(1024))
      ->option_text("N")
      ->default_str("1M");
  app->add_option("--steps", options->steps, "decode steps recorded a length")
      ->check(CLI::Range(1, kLeastTokens - 1))
      ->option_text("N")
      ->capture_default_str();
  app->add_option("--text", options->text, "text to record over (default: held_out.txt of the model)")
      ->option_text("FILE");
  app->add_option("--backend", options->common.backend, "where it runs: auto, reference (CPU) or cuda")
      ->check(CLI::IsMember({"auto", "reference", "cuda"}))
      ->option_text("NAME")
      ->capture_default_str();
  add_log_options(*app, options->common);
  app->add_option("--output", options->output,
                  "write the table to this file, as CSV, and not to standard output")
      ->option_text("FILE");
  app->footer(
      "One table as CSV: part, source, layer, tokens, variant, and the error of the attention output.\n"
      "docs/numerics.md explains the parts and shows the results.\n\nExamples:\n"
      "  snapmla study --parts formats --lengths 1k     cache formats on the bundled model's activations\n"
      "  snapmla study --parts accumulation             long sums in Hopper's FP8 accumulator");
  return {.app = app, .run = [options] { return run_study(*options); }};
}

}  // namespace snapmla::apps
