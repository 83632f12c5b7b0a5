#include "study/long_context.h"

#include <algorithm>
#include <cmath>

#include "bench/tensors.h"
#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "snapmla/format.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

constexpr int kRun = 1024;

double deviation_of(LogitKind kind) {
  switch (kind) {
    case LogitKind::kUniform:
      return 0;
    case LogitKind::kPeaked:
      return 3.6;
    default:
      return 1.2;
  }
}

double sink_of(LogitKind kind) {
  return kind == LogitKind::kSink8 ? 8 : kind == LogitKind::kSink12 ? 12 : 0;
}

/// Tokens run * kRun .. + kRun - 1.
WeightedTokens make_run(LogitKind kind, std::size_t width, int run) {
  constexpr std::uint64_t kMeans = 1;
  constexpr std::uint64_t kLogits = 1000;
  constexpr std::uint64_t kLatents = 100000;
  const auto place = static_cast<std::uint64_t>(run);
  WeightedTokens tokens{.width = width};
  for (const Bf16 x : random_values(kRun, 1, kLogits + place))
    tokens.logits.push_back(deviation_of(kind) * static_cast<double>(to_float(x)));
  if (run == 0 && sink_of(kind) > 0) tokens.logits[0] = sink_of(kind);
  const std::vector<Bf16> mean = random_values(static_cast<std::int64_t>(width), 1, kMeans);
  const std::vector<Bf16> noise =
      random_values(static_cast<std::int64_t>(width) * kRun, 1,
                    kLatents + 67 * place);  // 67 * 7919 numbers on: runs hardly overlap
  tokens.latents.resize(width * kRun);
  std::vector<float> latent(width);
  for (std::size_t t = 0; t < kRun; ++t) {
    float amax = 0;
    for (std::size_t d = 0; d < width; ++d) {
      latent[d] = to_float(mean[d]) + to_float(noise[t * width + d]);
      amax = std::max(amax, std::fabs(latent[d]));
    }
    const float scale = quantization_scale(amax);
    tokens.scales.push_back(scale);
    for (std::size_t d = 0; d < width; ++d) tokens.latents[d * kRun + t] = to_e4m3(latent[d] / scale);
  }
  return tokens;
}

}  // namespace

const char* to_string(LogitKind kind) {
  switch (kind) {
    case LogitKind::kUniform:
      return "uniform";
    case LogitKind::kFlat:
      return "flat";
    case LogitKind::kPeaked:
      return "peaked";
    case LogitKind::kSink8:
      return "sink8";
    case LogitKind::kSink12:
      return "sink12";
  }
  return "unknown";
}

std::vector<StudyLine> study_long_context(const LongContextOptions& options) {
  std::vector<StudyLine> lines;
  const int longest = *std::max_element(options.lengths.begin(), options.lengths.end());
  for (const LogitKind kind : options.kinds) {
    std::vector<WeightedSum> sums;
    sums.emplace_back(WeightedSumRule{.name = "formula", .range = WeightRange::kNone, .sum = SumOf::kWide},
                      options.width);
    for (const WeightedSumRule& rule : options.rules) sums.emplace_back(rule, options.width);
    for (int run = 0; run * kRun < longest; ++run) {
      stop_if_asked();
      const WeightedTokens tokens = make_run(kind, options.width, run);
      parallel_for(static_cast<std::int64_t>(sums.size()), 1,
                   [&](std::int64_t i) { sums[static_cast<std::size_t>(i)].add(tokens); });
      const int length = (run + 1) * kRun;
      if (std::find(options.lengths.begin(), options.lengths.end(), length) == options.lengths.end())
        continue;
      const std::vector<double> formula = sums[0].output();
      for (std::size_t i = 0; i < options.rules.size(); ++i) {
        lines.push_back({.part = options.part,
                         .source = to_string(kind),
                         .tokens = length,
                         .variant = options.rules[i].name,
                         .error = output_error(sums[i + 1].output(), formula, options.width)});
      }
    }
  }
  return lines;
}

std::vector<WeightedSumRule> weight_rules() {
  return {{.name = "block", .range = WeightRange::kBlock, .sum = SumOf::kWide},
          {.name = "bound", .range = WeightRange::kBound, .sum = SumOf::kWide, .block = 128, .promote = 128},
          {.name = "running", .range = WeightRange::kRunning, .sum = SumOf::kWide},
          {.name = "block+core", .range = WeightRange::kBlock, .sum = SumOf::kTensorCore},
          {.name = "bound+core",
           .range = WeightRange::kBound,
           .sum = SumOf::kTensorCore,
           .block = 128,
           .promote = 128},
          {.name = "paper", .range = WeightRange::kBlock, .sum = SumOf::kTensorCore, .promote = 0}};
}

std::vector<WeightedSumRule> accumulation_rules() {
  return {{.name = "every-64"},
          {.name = "every-128", .promote = 128},
          {.name = "every-256", .promote = 256},
          {.name = "every-512", .promote = 512},
          {.name = "never", .promote = 0}};
}

}  // namespace snapmla::apps
