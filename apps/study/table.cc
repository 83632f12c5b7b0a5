#include "study/table.h"

#include <fmt/format.h>

#include <cmath>

#include "core/check.h"

namespace snapmla::apps {

OutputError output_error(const std::vector<double>& out, const std::vector<double>& reference,
                         std::size_t width) {
  SNAPMLA_ASSERT(!out.empty() && out.size() == reference.size() && out.size() % width == 0);
  double off = 0;
  double norm = 0;
  double product = 0;
  double distances = 0;
  const std::size_t rows = out.size() / width;
  for (std::size_t begin = 0; begin < out.size(); begin += width) {
    double row_product = 0;
    double row_out = 0;
    double row_reference = 0;
    for (std::size_t i = begin; i < begin + width; ++i) {
      off += (out[i] - reference[i]) * (out[i] - reference[i]);
      row_product += out[i] * reference[i];
      row_out += out[i] * out[i];
      row_reference += reference[i] * reference[i];
    }
    distances += 1 - row_product / std::sqrt(row_out * row_reference);
    product += row_product;
    norm += row_reference;
  }
  return {.rmse = std::sqrt(off / static_cast<double>(out.size())),
          .cosine_distance = distances / static_cast<double>(rows),
          .relative_l2 = std::sqrt(off / norm),
          .gain = product / norm};
}

std::string study_csv(const std::vector<StudyLine>& lines) {
  std::string text = "part,source,layer,tokens,variant,rmse,cosine_distance,relative_l2,gain\n";
  for (const StudyLine& line : lines) {
    text += fmt::format("{},{},{},{},{},{:.6g},{:.6g},{:.6g},{:.6f}\n", line.part, line.source,
                        line.layer < 0 ? "" : fmt::format("{}", line.layer), line.tokens, line.variant,
                        line.error.rmse, line.error.cosine_distance, line.error.relative_l2, line.error.gain);
  }
  return text;
}

}  // namespace snapmla::apps
