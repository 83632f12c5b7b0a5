// The parts of the study that look at whole attention: cache formats, the scale rule, splits. Errors are those of the
// attention output against fp64 attention over the same rows in BF16.
#pragma once

#include <vector>

#include "study/attention_rows.h"
#include "study/formats.h"
#include "study/table.h"

namespace snapmla {
class Backend;
}

namespace snapmla::apps {

/// Every cache format, then the whole FP8 path of the backend ("decode": query and P quantized too).
std::vector<StudyLine> study_formats(Backend& backend, const AttentionRows& rows,
                                     const Calibration& calibration);

/// Power of two against amax / 448 for query and key, the rope rounded to bf16 behind the division or not. P is
/// exact.
std::vector<StudyLine> study_scale_rule(const AttentionRows& rows);

/// The backend's results for other plans and for larger batches, against its own for one split and batch 1. Not
/// errors: differences; "batch" lines use fixed splits and must be 0.
std::vector<StudyLine> study_splits(Backend& backend, const AttentionRows& rows);

}  // namespace snapmla::apps
