// The backends that tests of whole models run on: the same cases on each, skipped with the reason where one cannot run.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "snapmla/backend.h"

namespace snapmla::testing {

enum class On { kReference, kCuda };

inline Backend& backend(On on) {
  return on == On::kCuda ? cuda() : reference();
}

/// Empty where whole models run.
inline std::string why_not(On on) {
  const Support support = backend(on).supports_models();
  return support.ok ? "" : support.reason;
}

inline std::string name_of(On on) {
  return std::string(backend(on).name());
}

}  // namespace snapmla::testing
