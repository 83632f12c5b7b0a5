// snapmla bench throughput: the built program, and what its flags change.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model_folder.h"
#include "run_program.h"

namespace snapmla::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class BenchThroughput : public ::testing::Test {
 protected:
  ProgramResult run(std::vector<std::string> args, std::vector<std::string> environment = {}) {
    args.insert(args.begin(), {"bench", "throughput", model_, "--json", json_});
    return run_program({.args = std::move(args), .environment = std::move(environment)});
  }

  /// The one result there is.
  nlohmann::json figures(std::vector<std::string> args, std::vector<std::string> environment = {}) {
    const ProgramResult result = run(std::move(args), std::move(environment));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, AllOf(HasSubstr("requests/s"), HasSubstr("found in the prefix cache")));
    const nlohmann::json document = nlohmann::json::parse(read_file(json_));
    EXPECT_EQ(document.at("results").size(), 1U);
    return document.at("results").at(0);
  }

  TempDir folder_;
  std::string model_ = make_model_folder(folder_.file("model"));
  std::string json_ = folder_.file("out.json");
};

TEST_F(BenchThroughput, CountsWhatTheEngineDid) {
  const std::vector<std::string> load{"--num-prompts", "6",  "--prefix-len", "100",
                                      "--input-len",   "10", "--output-len", "5"};
  const nlohmann::json shared = figures(load);
  EXPECT_EQ(shared.at("generated_tokens"), 30);
  EXPECT_EQ(shared.at("prefix_cache_tokens"), 500);
  EXPECT_EQ(shared.at("prefilled_tokens"), 160);
  EXPECT_EQ(shared.at("max_num_seqs"), 8);
  EXPECT_GT(shared.at("tokens_per_s"), 0);
  for (const std::string name : {"ttft_ms", "tpot_ms"}) {
    EXPECT_GT(shared.at(name + "_mean"), 0);
    EXPECT_LE(shared.at(name + "_p50"), shared.at(name + "_p99"));
  }
  EXPECT_EQ(shared.at("prefill"), "real");

  std::vector<std::string> alone = load;
  alone.insert(alone.end(),
               {"--no-enable-prefix-caching", "--max-num-seqs", "2", "--max-num-batched-tokens", "64"});
  const nlohmann::json apart = figures(alone);
  EXPECT_EQ(apart.at("prefix_cache_tokens"), 0);
  EXPECT_EQ(apart.at("prefilled_tokens"), 660);
  EXPECT_EQ(apart.at("max_num_seqs"), 2);
  EXPECT_EQ(apart.at("max_num_batched_tokens"), 64);
  EXPECT_EQ(figures(load, {"SNAPMLA_ENABLE_PREFIX_CACHING=false"}).at("prefix_cache_tokens"), 0);
}

TEST_F(BenchThroughput, GetsThroughWithAPoolFarTooSmall) {
  const nlohmann::json json = figures({"--num-prompts", "6", "--input-len", "20", "--output-len", "150",
                                       "--num-pages", "3", "--kv-cache-dtype", "bf16"});
  EXPECT_EQ(json.at("generated_tokens"), 900);
  EXPECT_GT(json.at("preemptions"), 0);
  EXPECT_GT(json.at("replayed_tokens"), 0);
  EXPECT_EQ(json.at("kv_dtype"), "bf16");
}

TEST_F(BenchThroughput, RefusesWhatCannotRun) {
  ProgramResult result = run({"--input-len", "5000"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err,
              AllOf(StartsWith("snapmla: error: [bench] --prefix-len, --input-len and --output-len"),
                    HasSubstr("got 5064")));
  result = run({"--num-pages", "2"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, HasSubstr("skipped: [submit] a request must fit in the cache of 2 pages"));
  EXPECT_THAT(result.err, HasSubstr("[bench] nothing was measured"));
  result = run({"--profile"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--profile: takes decode steps apart"));
  EXPECT_EQ(run({"--num-prompts", "0"}).exit_code, 2);
  EXPECT_EQ(run({"--max-num-seqs", "0"}).exit_code, 2);
  EXPECT_EQ(run({"--max-num-batched-tokens", "-1"}).exit_code, 2);
}

}  // namespace
}  // namespace snapmla::testing
