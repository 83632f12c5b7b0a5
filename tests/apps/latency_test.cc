// snapmla bench latency: the built program, and that its figures hang together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "run_program.h"
#include "support/checkpoint.h"

namespace snapmla::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class BenchLatency : public ::testing::Test {
 protected:
  BenchLatency() {
    std::filesystem::create_directory(model_);
    write_file(model_ + "/config.json", tiny_config().dump());
  }
  ProgramResult run(std::vector<std::string> args) {
    args.insert(args.begin(), {"bench", "latency", model_, "--load-format", "dummy", "--json", json_});
    return run_program({.args = std::move(args)});
  }

  TempDir folder_;
  std::string model_ = folder_.file("model");
  std::string json_ = folder_.file("out.json");
};

TEST_F(BenchLatency, TimesBatchesWithBothCaches) {
  const ProgramResult result = run({"--kv-cache-dtype", "fp8,bf16", "--num-iters", "3", "--num-iters-warmup",
                                    "1", "--batch-size", "2", "--input-len", "20", "--output-len", "6"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("FP8 cache"), HasSubstr("BF16 cache"), HasSubstr("time to first token")));
  const nlohmann::json document = nlohmann::json::parse(read_file(json_));
  for (const char* key : {"command", "machine", "date", "commit", "weight_bytes"})
    EXPECT_TRUE(document.contains(key));
  ASSERT_EQ(document.at("results").size(), 2U);
  EXPECT_EQ(document.at("results")[0].at("kv_dtype"), "fp8");
  EXPECT_EQ(document.at("results")[1].at("kv_dtype"), "bf16");
  for (const nlohmann::json& row : document.at("results")) {
    EXPECT_EQ(row.at("iterations"), 3);
    for (const char* name : {"latency_ms", "ttft_ms", "tpot_ms", "step_ms"}) {
      EXPECT_GT(row.at(name).at("mean"), 0) << name;
      EXPECT_LE(row.at(name).at("p50"), row.at(name).at("p99")) << name;
    }
    // A batch ends with the last token of its last request, whose first came earlier.
    EXPECT_GT(row.at("latency_ms").at("mean"), row.at("ttft_ms").at("mean"));
    EXPECT_GT(row.at("latency_ms").at("mean").get<double>(), 5 * row.at("tpot_ms").at("mean").get<double>());
  }
}

TEST_F(BenchLatency, OneTokenHasNoTimeBetweenTokens) {
  const ProgramResult result =
      run({"--num-iters", "1", "--num-iters-warmup", "0", "--batch-size", "1", "--output-len", "1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json row = nlohmann::json::parse(read_file(json_)).at("results")[0];
  EXPECT_TRUE(row.at("tpot_ms").is_null());
  EXPECT_TRUE(row.at("step_ms").is_null());
  EXPECT_GT(row.at("ttft_ms").at("mean"), 0);
}

TEST_F(BenchLatency, RefusesWhatCannotRun) {
  EXPECT_EQ(run({"--batch-size", "0"}).exit_code, 2);
  EXPECT_EQ(run({"--num-iters", "0"}).exit_code, 2);
  EXPECT_EQ(run({"--kv-cache-dtype", "fp4"}).exit_code, 2);
  const ProgramResult result = run({"--input-len", "4000", "--output-len", "97"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("must be at most 4096 together, the model's own maximum; got 4097"));
}

}  // namespace
}  // namespace snapmla::testing
