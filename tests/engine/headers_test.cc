// The examples at the head of engine.h, compiled and run with the bundled model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>
#include <string>

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

TEST(HeaderExamples, EngineUnderPressure) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(SNAPMLA_SOURCE_DIR);
  ::testing::internal::CaptureStdout();
  // engine.h
  snapmla::Engine small({.model_dir = "models/tiny-mla",
                         .max_seq_len = 256,
                         .max_batch = 2,
                         .num_pages = 5,
                         .prefill_chunk = 64,
                         .enable_prefix_caching = true});
  const std::string start = "And it came to pass in those days, that there went out a decree";
  small.submit({.prompt = start + " from", .max_tokens = 150, .ignore_eos = true});
  small.submit({.prompt = start + " that", .max_tokens = 150, .ignore_eos = true});
  while (!small.idle()) small.step();
  std::cout << small.stats().prefix_tokens << " tokens shared, " << small.stats().preemptions << " preempted";
  // end
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), ::testing::EndsWith(" tokens shared, 1 preempted"));
  std::filesystem::current_path(before);
  EXPECT_GE(small.stats().prefix_tokens, 10);
  EXPECT_GT(small.stats().replayed_tokens, 0);
  EXPECT_EQ(small.stats().generated_tokens, 300);
  EXPECT_EQ(small.stats().pages_in_use, 0);
}

}  // namespace
