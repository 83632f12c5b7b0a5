// Configs given as JSON, written to a folder and loaded from there.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "model/config.h"
#include "snapmla/error.h"
#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla::testing {

inline ModelConfig load(const nlohmann::json& config, const nlohmann::json& generation = {}) {
  const TempDir dir;
  write_file(dir.file("config.json"), config.dump());
  if (!generation.is_null()) write_file(dir.file("generation_config.json"), generation.dump());
  return load_config(dir.path());
}

/// The Error that `call` throws; a failure of the test if it throws none or one of several lines.
inline Error error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e;
  }
  ADD_FAILURE() << "no Error was thrown";
  return {ErrorCode::kInternal, "none"};
}

}  // namespace snapmla::testing
