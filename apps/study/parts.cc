#include "study/parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "snapmla/backend.h"
#include "study/decode_with_ops.h"

namespace snapmla::apps {
namespace {

constexpr std::size_t kLatent = kLatentDim;
constexpr std::size_t kRow = kTokenDim;

StudyLine make_line(const char* part, const AttentionRows& rows, std::string variant,
                    const std::vector<double>& out, const std::vector<double>& reference) {
  return {.part = part,
          .source = rows.source,
          .layer = rows.layer,
          .tokens = rows.num_tokens(),
          .variant = std::move(variant),
          .error = output_error(out, reference, kLatent)};
}

/// Rows of 576 as an FP8 cache or an FP8 query restores them.
std::vector<float> restored(const std::vector<Bf16>& values, ScaleRule rule, bool round_rope) {
  std::vector<float> rows = widen(values);
  for (std::size_t begin = 0; begin < rows.size(); begin += kRow) {
    float* row = rows.data() + begin;
    float amax = 0;
    for (std::size_t d = 0; d < kLatent; ++d) amax = std::fmax(amax, std::fabs(row[d]));
    const float scale = quantization_scale(amax, rule);
    for (std::size_t d = 0; d < kLatent; ++d) row[d] = to_float(to_e4m3(row[d] / scale)) * scale;
    for (std::size_t d = kLatent; round_rope && d < kRow; ++d) row[d] = round_to_bf16(row[d] / scale) * scale;
  }
  return rows;
}

}  // namespace

std::vector<StudyLine> study_formats(Backend& backend, const AttentionRows& rows,
                                     const Calibration& calibration) {
  const std::vector<float> queries = widen(rows.queries);
  const std::vector<float> keys = widen(rows.keys);
  const std::vector<double> reference = attend(rows, queries, keys);
  std::vector<StudyLine> lines;
  for (const KeyFormat format : kQuantizedFormats) {
    std::vector<float> quantized = keys;
    fake_quantize(format, calibration, quantized.data(), quantized.size() / kRow);
    lines.push_back(
        make_line("formats", rows, to_string(format), attend(rows, queries, quantized), reference));
  }
  lines.push_back(make_line("formats", rows, "decode", decode_with_ops(backend, rows, {}), reference));
  return lines;
}

std::vector<StudyLine> study_scale_rule(const AttentionRows& rows) {
  const std::vector<double> reference = attend(rows, widen(rows.queries), widen(rows.keys));
  std::vector<StudyLine> lines;
  for (const ScaleRule rule : {ScaleRule::kPowerOfTwo, ScaleRule::kAmax}) {
    for (const bool round_rope : {true, false}) {
      const std::vector<double> out =
          attend(rows, restored(rows.queries, rule, round_rope), restored(rows.keys, rule, round_rope));
      const std::string variant = fmt::format("{}{}", to_string(rule), round_rope ? "" : "-wide-rope");
      lines.push_back(make_line("scale-rule", rows, variant, out, reference));
    }
  }
  return lines;
}

std::vector<StudyLine> study_splits(Backend& backend, const AttentionRows& rows) {
  constexpr int kCopies = 8;
  constexpr int kFixedTokens = 256;
  const std::vector<double> whole = decode_with_ops(backend, rows, {.num_workers = 1});
  std::vector<StudyLine> lines;
  for (const int tokens : {64, 128, 512, 2048, 8192}) {
    const std::vector<double> out = decode_with_ops(backend, rows, {.fixed_split_tokens = tokens});
    lines.push_back(make_line("splits", rows, fmt::format("every-{}", tokens), out, whole));
  }
  for (const int workers : {2, 7, 64}) {
    const std::vector<double> out = decode_with_ops(backend, rows, {.num_workers = workers});
    lines.push_back(make_line("splits", rows, fmt::format("workers-{}", workers), out, whole));
  }
  const std::vector<double> alone = decode_with_ops(backend, rows, {.fixed_split_tokens = kFixedTokens});
  const std::vector<double> crowd =
      decode_with_ops(backend, rows, {.fixed_split_tokens = kFixedTokens, .copies = kCopies});
  const auto last = crowd.end() - static_cast<std::ptrdiff_t>(alone.size());
  lines.push_back(make_line("splits", rows, fmt::format("batch-{}", kCopies), {last, crowd.end()}, alone));
  return lines;
}

}  // namespace snapmla::apps
