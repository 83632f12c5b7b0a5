// What every part of `snapmla study` gives: lines of one table, how far an attention output lies from a formula.
#pragma once

#include <string>
#include <vector>

namespace snapmla::apps {

/// How far outputs lie from their references, over all rows.
struct OutputError {
  double rmse = 0;             ///< over all elements
  double cosine_distance = 0;  ///< 1 - cosine of the angle, mean over rows
  double relative_l2 = 0;      ///< |out - reference| / |reference|, all rows as one vector
  double gain = 1;             ///< <out, reference> / <reference, reference>: below 1 an output has shrunk
};

/// `out` and `reference` are [rows, width]. NaN where an output is.
OutputError output_error(const std::vector<double>& out, const std::vector<double>& reference,
                         std::size_t width);

struct StudyLine {
  std::string part{};     ///< "ablation"
  std::string source{};   ///< where keys and queries are from: the model's name, "tails"
  int layer = -1;         ///< -1: not of a model
  int tokens = 0;         ///< cached
  std::string variant{};  ///< what was done to them
  OutputError error{};
};

/// Lines as CSV, with a header.
std::string study_csv(const std::vector<StudyLine>& lines);

}  // namespace snapmla::apps
