// snapmla bench throughput --prefill synthetic: the built program on a dummy model, and what its rows say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "run_program.h"
#include "support/checkpoint.h"

namespace snapmla::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class BenchSynthetic : public ::testing::Test {
 protected:
  BenchSynthetic() {
    std::filesystem::create_directory(model_);
    write_file(model_ + "/config.json", tiny_config().dump());
  }

  ProgramResult run(std::vector<std::string> args) {
    args.insert(args.begin(), {"bench", "throughput", model_, "--load-format", "dummy", "--prefill",
                               "synthetic", "--json", json_, "--csv", csv_});
    return run_program({.args = std::move(args)});
  }
  nlohmann::json results(std::vector<std::string> args) {
    const ProgramResult result = run(std::move(args));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    out_ = result.out;
    document_ = nlohmann::json::parse(read_file(json_));
    return document_.at("results");
  }
  std::string refusal(std::vector<std::string> args, int exit_code) {
    const ProgramResult result = run(std::move(args));
    EXPECT_EQ(result.exit_code, exit_code);
    return result.err;
  }

  TempDir folder_;
  std::string model_ = folder_.file("model");
  std::string json_ = folder_.file("out.json");
  std::string csv_ = folder_.file("out.csv");
  std::string out_;
  nlohmann::json document_;
};

TEST_F(BenchSynthetic, MeasuresEveryContextAndBothCaches) {
  const nlohmann::json rows = results({"--input-len", "64,0.2k", "--max-num-seqs", "2,3", "--kv-cache-dtype",
                                       "fp8,bf16", "--output-len", "4", "--commit", "abc123"});
  ASSERT_EQ(rows.size(), 8U);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const nlohmann::json& row = rows[i];
    const int context = i < 4 ? 64 : 204;
    const int batch = i % 4 < 2 ? 2 : 3;
    EXPECT_EQ(row.at("model"), "model");
    EXPECT_EQ(row.at("context"), context);
    EXPECT_EQ(row.at("batch"), batch);
    EXPECT_EQ(row.at("kv_dtype"), i % 2 == 0 ? "bf16" : "fp8");
    EXPECT_EQ(row.at("cache_tokens"), batch * context);
    EXPECT_EQ(row.at("output"), 4);
    EXPECT_TRUE(row.at("floor_ms").is_null()) << "limits are measured on cuda only";
    EXPECT_TRUE(row.at("ttft_ms_mean").is_null());
    EXPECT_NEAR(row.at("tokens_per_s").get<double>(), 1000 * batch / row.at("step_ms").get<double>(),
                0.001 * row.at("tokens_per_s").get<double>());
    const double bf16_rate = rows[i - i % 2].at("tokens_per_s");
    EXPECT_NEAR(row.at("ratio_vs_bf16").get<double>(), row.at("tokens_per_s").get<double>() / bf16_rate,
                0.001);
    EXPECT_GT(row.at("peak_bytes"), 1 << 20);
    EXPECT_LE(row.at("step_ms_p50"), row.at("step_ms_p99"));
  }
  EXPECT_EQ(document_.at("commit"), "abc123");
  EXPECT_THAT(document_.at("command").get<std::string>(),
              AllOf(HasSubstr("snapmla bench throughput "), HasSubstr("--input-len 64,0.2k")));
  EXPECT_THAT(document_.at("date").get<std::string>(),
              ::testing::MatchesRegex("20[0-9][0-9]-[0-9][0-9]-[0-9][0-9]"));
}

TEST_F(BenchSynthetic, WritesARecordAndColumnsAsCsv) {
  const nlohmann::json rows = results({"--input-len", "70", "--output-len", "2", "--max-num-seqs", "1"});
  std::istringstream csv(read_file(csv_));
  std::string record;
  std::string header;
  std::string row;
  std::string rest;
  std::getline(csv, record);
  std::getline(csv, header);
  std::getline(csv, row);
  EXPECT_FALSE(std::getline(csv, rest)) << rest;
  ASSERT_THAT(record, ::testing::StartsWith("# {"));
  const nlohmann::json about = nlohmann::json::parse(record.substr(2));
  for (const char* key : {"command", "machine", "date", "commit"}) EXPECT_TRUE(about.contains(key)) << key;
  EXPECT_THAT(header, ::testing::StartsWith(
                          "model,context,output,batch,kv_dtype,prefill,tokens_per_s,step_ms,floor_ms,"
                          "cache_tokens,ratio_vs_bf16,peak_bytes,"));
  EXPECT_THAT(row, ::testing::StartsWith("model,70,2,1,fp8,synthetic," + rows[0].at("tokens_per_s").dump() +
                                         "," + rows[0].at("step_ms").dump() + ",,70,,"));
  EXPECT_EQ(std::count(row.begin(), row.end(), ','), std::count(header.begin(), header.end(), ','));
}

TEST_F(BenchSynthetic, TakesAsManyRequestsAsTheMemoryHolds) {
  // A page holds 64 * 644 * 2 layers; a request of 100 + 2 tokens takes two.
  const std::int64_t request = 2 * 64 * 644 * 2;
  const auto batch_with = [&](std::int64_t bytes) {
    return results({"--input-len", "100", "--output-len", "2", "--max-num-seqs", "max",
                    "--kv-cache-memory-bytes", std::to_string(bytes)})[0]
        .at("batch");
  };
  EXPECT_EQ(batch_with(7 * request), 7);
  EXPECT_EQ(batch_with(7 * request - 1), 6);
  const nlohmann::json both =
      results({"--input-len", "100", "--output-len", "2", "--max-num-seqs", "max", "--kv-cache-memory-bytes",
               std::to_string(18 * request), "--kv-cache-dtype", "bf16,fp8"});
  EXPECT_EQ(both[0].at("batch"), 10) << "1,152 bytes a token";
  EXPECT_EQ(both[1].at("batch"), 18);
  EXPECT_FALSE(both[1].at("ratio_vs_bf16").is_null()) << "at its own largest batch";
  const nlohmann::json one = results({"--input-len", "100,10", "--output-len", "2", "--max-num-seqs", "max",
                                      "--kv-cache-memory-bytes", std::to_string(request - 1)});
  EXPECT_EQ(one.size(), 1U);
  EXPECT_THAT(out_, HasSubstr("context 100, batch max, fp8: skipped: not even one request fits"));
  EXPECT_EQ(document_.at("skipped").size(), 1U);
  EXPECT_THAT(refusal({"--max-num-seqs", "max", "--kv-cache-memory-bytes", "1"}, 1),
              HasSubstr("nothing was measured"));
}

TEST_F(BenchSynthetic, MeasuresAPartOfAModel) {
  const nlohmann::json rows =
      results({"--input-len", "10", "--output-len", "1", "--num-layers", "1", "--max-num-seqs", "1"});
  EXPECT_EQ(rows[0].at("layers"), 1);
  const nlohmann::json slice = results(
      {"--input-len", "10", "--output-len", "1", "--expert-parallel-slice", "1/4", "--max-num-seqs", "1"});
  EXPECT_EQ(slice[0].at("expert_slice"), "1/4");
  EXPECT_EQ(slice[0].at("layers"), 2);
  EXPECT_THAT(out_, HasSubstr("communication between ranks is not part of these times"));
}

TEST_F(BenchSynthetic, ShowsWhereTheTimeGoes) {
  const nlohmann::json rows =
      results({"--input-len", "70", "--output-len", "2", "--max-num-seqs", "2", "--profile"});
  double us = 0;
  for (const nlohmann::json& op : rows[0].at("profile")) us += op.at("us").get<double>();
  EXPECT_GT(us, 0);
  EXPECT_THAT(out_, AllOf(HasSubstr("attention"), HasSubstr("lm_head"), HasSubstr("% limit")));
  EXPECT_EQ(read_file(csv_).find("profile,"), std::string::npos);
  EXPECT_FALSE(
      results({"--input-len", "70", "--output-len", "2", "--max-num-seqs", "2"})[0].contains("profile"));
}

TEST_F(BenchSynthetic, RefusesWhatHasNoMeaning) {
  EXPECT_THAT(refusal({"--num-prompts", "3"}, 2),
              HasSubstr("--num-prompts: is for requests that go through"));
  EXPECT_THAT(refusal({"--prefix-len", "3"}, 2), HasSubstr("--prefix-len"));
  EXPECT_THAT(refusal({"--num-pages", "3"}, 2), HasSubstr("--num-pages"));
  EXPECT_THAT(refusal({"--input-len", "8,0"}, 2), HasSubstr("--input-len"));
  EXPECT_THAT(refusal({"--max-num-seqs", "most"}, 2), HasSubstr("--max-num-seqs"));
  EXPECT_THAT(refusal({"--max-num-seqs", "5000"}, 2), HasSubstr("--max-num-seqs"));
  for (const char* slice : {"1", "4/4", "-1/4", "0/4x", "a/b"}) {
    EXPECT_THAT(refusal({"--expert-parallel-slice", slice}, 2),
                HasSubstr("must be a rank and the number of ranks"))
        << slice;
  }
  EXPECT_THAT(refusal({"--expert-parallel-slice", "0/8"}, 1), HasSubstr("[slice] expert_ranks must leave"));
  EXPECT_THAT(refusal({"--num-layers", "3"}, 1), HasSubstr("[slice] num_layers must be from 1"));
  EXPECT_THAT(refusal({"--input-len", "4096"}, 1), HasSubstr("got 4160"));
}

TEST_F(BenchSynthetic, PartsOfACheckpointAreRefused) {
  write_checkpoint(model_, tiny_config());
  const ProgramResult result = run_program({.args = {"bench", "throughput", model_, "--num-layers", "1"}});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("for dummy weights only"));
}

}  // namespace
}  // namespace snapmla::testing
