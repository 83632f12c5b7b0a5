// An engine with dummy weights: a folder with a config.json is enough, tokens go in and out, text does not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/tokenizer.h"
#include "model/config.h"
#include "snapmla/engine.h"
#include "snapmla/error.h"
#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using ::testing::HasSubstr;

class DummyEngine : public ::testing::Test {
 protected:
  DummyEngine() { testing::write_file(dir_.file("config.json"), testing::tiny_config().dump()); }

  [[nodiscard]] EngineOptions options() const {
    return {.model_dir = dir_.path(), .load_format = LoadFormat::kDummy, .max_seq_len = 100, .max_batch = 2};
  }
  static std::vector<std::int32_t> generate(Engine& engine) {
    engine.submit({.prompt_tokens = {5, 6, 7}, .max_tokens = 20, .ignore_eos = true});
    std::vector<std::int32_t> tokens;
    while (!engine.idle()) {
      for (const TokenEvent& event : engine.step()) {
        tokens.push_back(event.token);
        EXPECT_EQ(event.text, "");
      }
    }
    return tokens;
  }

  testing::TempDir dir_;
};

TEST_F(DummyEngine, DecodesTokensTheSameEveryTime) {
  Engine engine(options());
  Engine again(options());
  const std::vector<std::int32_t> tokens = generate(engine);
  EXPECT_EQ(tokens.size(), 20U);
  EXPECT_EQ(tokens, generate(again));
  EXPECT_EQ(engine.tokenizer().vocab_size(), 0);
}

TEST_F(DummyEngine, RunsAPartOfTheModel) {
  EngineOptions part = options();
  part.slice = {.num_layers = 1};
  Engine engine(part);
  EXPECT_EQ(engine.config().num_layers, 1);
  EXPECT_EQ(generate(engine).size(), 20U);
}

TEST_F(DummyEngine, RefusesText) {
  Engine engine(options());
  try {
    engine.submit({.prompt = "In the beginning"});
    FAIL() << "there is no tokenizer";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(
        error.what(),
        "[tokenizer] text needs a tokenizer, and the model's folder has none; give prompts as token ids");
  }
  EXPECT_TRUE(engine.idle());
}

TEST_F(DummyEngine, TakesTextWhereTheFolderHasATokenizer) {
  std::filesystem::copy_file(SNAPMLA_SOURCE_DIR "/models/tiny-mla/tokenizer.json",
                             dir_.file("tokenizer.json"));
  nlohmann::json config = testing::tiny_config();
  config["vocab_size"] = 2048;
  testing::write_file(dir_.file("config.json"), config.dump());
  Engine engine(options());
  engine.submit({.prompt = "In the beginning", .max_tokens = 3, .ignore_eos = true});
  while (!engine.idle()) engine.step();
  EXPECT_EQ(engine.stats().generated_tokens, 3);
}

TEST_F(DummyEngine, OnlyDummyWeightsDoWithoutFiles) {
  EngineOptions read = options();
  read.load_format = LoadFormat::kAuto;
  EXPECT_THROW(Engine{read}, Error);
}

}  // namespace
}  // namespace snapmla
