// The example at the head of engine.h, compiled and run with the bundled model.
#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>

#include "engine/tokenizer.h"
#include "snapmla/engine.h"

namespace {

TEST(HeaderExamples, Engine) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(SNAPMLA_SOURCE_DIR);
  ::testing::internal::CaptureStdout();
  // engine.h
  snapmla::Engine engine({.model_dir = "models/tiny-mla"});
  engine.submit({.prompt = "In the beginning", .max_tokens = 32});
  while (!engine.idle())
    for (const snapmla::TokenEvent& event : engine.step()) std::cout << event.text;
  // end
  const std::string text = ::testing::internal::GetCapturedStdout();
  std::filesystem::current_path(before);
  EXPECT_EQ(engine.stats().prompt_tokens,
            static_cast<std::int64_t>(engine.tokenizer().encode("In the beginning").size()));
  EXPECT_GE(engine.stats().generated_tokens, 1);
  EXPECT_LE(engine.stats().generated_tokens, 32);
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(engine.stats().pages_in_use, 0);
}

}  // namespace
