// snapmla bench kernel: the points its lists make, its files, and how it refuses lists that make no sense.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <sstream>
#include <string>
#include <vector>

#include "bench/device/device.h"
#include "bench/exact.h"
#include "bench/points.h"
#include "bench/report.h"
#include "bench/workload.h"
#include "core/bf16.h"
#include "run_program.h"

namespace snapmla::testing {
namespace {

using apps::BenchOp;
using apps::BenchPoint;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

ProgramResult bench(std::vector<std::string> args) {
  args.insert(args.begin(), {"bench", "kernel", "--backend", "reference"});
  return run_program({.args = std::move(args)});
}

std::vector<std::vector<std::string>> read_csv(const std::string& path) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream file(read_file(path));
  for (std::string line; std::getline(file, line);) {
    rows.emplace_back();
    std::istringstream cells(line + ",");
    for (std::string cell; std::getline(cells, cell, ',');) rows.back().push_back(cell);
  }
  return rows;
}

TEST(BenchPoints, ShapesComeFromGridShapesAndRaggedBatches) {
  const std::vector<BenchPoint> points = apps::make_points({.dtypes = {"fp8"},
                                                            .batch = {1, 2},
                                                            .heads = {16, 128},
                                                            .shapes = {"3x4kx7x2"},
                                                            .ragged = {"1x1k+2x64"}});
  std::vector<std::string> titles;
  for (const BenchPoint& point : points) titles.push_back(apps::title(point));
  EXPECT_THAT(titles, ElementsAre("decode batch 3, seq_len 4096, heads 7, s 2, fp8",
                                  "decode batch 1, seq_len 16384, heads 16, s 1, fp8",
                                  "decode batch 1, seq_len 16384, heads 128, s 1, fp8",
                                  "decode batch 2, seq_len 16384, heads 16, s 1, fp8",
                                  "decode batch 2, seq_len 16384, heads 128, s 1, fp8",
                                  "decode batch 3, seq_len 1x1024+2x64, heads 16, s 1, fp8",
                                  "decode batch 3, seq_len 1x1024+2x64, heads 128, s 1, fp8"));
  EXPECT_EQ(points.back().shape.num_tokens(), 1024 + 2 * 64);
  EXPECT_EQ(points.back().shape.num_pages(), 16 + 2);
  EXPECT_THAT(points.back().shape.seq_lens(), ElementsAre(1024, 64, 64));
}

TEST(BenchPoints, WhatAnOpDoesNotSeeMakesNoPoint) {
  const apps::BenchLists lists{
      .ops = {"quantize_q", "append_kv"}, .batch = {4}, .seq_len = {64, 128}, .heads = {8, 16}};
  const std::vector<BenchPoint> points = apps::make_points(lists);
  EXPECT_EQ(std::count_if(points.begin(), points.end(),
                          [](const BenchPoint& point) { return point.op == BenchOp::kQuantizeQ; }),
            2)
      << "heads differ; seq_len and dtype are not its own";
  EXPECT_EQ(std::count_if(points.begin(), points.end(),
                          [](const BenchPoint& point) { return point.op == BenchOp::kAppendKv; }),
            2)
      << "dtypes differ";
}

TEST(BenchFootprint, SetsFillTheCacheFourTimesOrAreOne) {
  constexpr std::int64_t kL2 = 50 << 20;
  const auto of = [](const std::string& shape) {
    return apps::footprint(apps::make_points({.dtypes = {"fp8"}, .shapes = {shape}})[0], kL2);
  };
  EXPECT_EQ(of("128x16kx128").num_sets, 1);
  EXPECT_EQ(of("128x16kx128").cache_bytes, std::int64_t{128} * 256 * 41216);
  const apps::Footprint small = of("1x4kx128");
  EXPECT_GE(small.cache_bytes, 4 * kL2);
  EXPECT_EQ(small.num_sets, 80);  // ceil(4 * 50 MiB / (64 pages of 41,216 B))
  EXPECT_EQ(of("1x1x1").num_sets, 1024);
}

// The rates are round numbers, so that the limit can be worked out by hand: 1,000 tokens, 64 rows.
TEST(BenchReport, LimitIsTheLargerOfMemoryAndTensorTime) {
  apps::DeviceLimits limits;
  limits.read_gbps.sustained = 1000;
  limits.fp8_tflops.sustained = 1;
  limits.bf16_tflops.sustained = 0.5;
  const double flops = 2.0 * 64 * 1000 * 1088;
  BenchPoint point{.op = BenchOp::kDecode, .format = CacheFormat::kFp8};
  EXPECT_NEAR(apps::limit_us(limits, point, 644e3, flops).value(), 64 * 1000 * (2048 + 256) * 1e-6, 1e-9);
  EXPECT_NEAR(apps::limit_us(limits, point, 644e6, flops).value(), 644, 1e-9);
  point.format = CacheFormat::kBf16;
  EXPECT_NEAR(apps::limit_us(limits, point, 1152e3, flops).value(), 64 * 1000 * 2176 / 0.5 * 1e-6, 1e-9);
  point.op = BenchOp::kFetchKv;
  EXPECT_NEAR(apps::limit_us(limits, point, 1152e3, flops).value(), 1.152, 1e-9);
  point.op = BenchOp::kPlan;
  EXPECT_FALSE(apps::limit_us(limits, point, 0, 0).has_value());
}

// Two tokens, latents e_0 and e_1, a query that sees only their ropes: logits ln 3 and 0, so 3/4 and 1/4.
TEST(BenchExact, RowIsSoftmaxAttention) {
  std::vector<Bf16> page(static_cast<std::size_t>(kPageTokens) * kTokenDim, to_bf16(NAN));
  std::fill_n(page.begin(), 2 * kTokenDim, to_bf16(0));
  page[0] = page[kTokenDim + 1] = to_bf16(1);
  page[kLatentDim] = to_bf16(1);
  std::vector<Bf16> q_latent(kLatentDim, to_bf16(0));
  std::vector<Bf16> q_rope(kRopeDim, to_bf16(0));
  q_rope[0] = to_bf16(1);
  const std::int32_t block_table = 0;
  DecodeParams params;
  params.q_latent = {q_latent.data(), DType::kBF16, {1, 1, 1, kLatentDim}};
  params.q_rope = {q_rope.data(), DType::kBF16, {1, 1, 1, kRopeDim}};
  params.cache = make_cache_view(CacheFormat::kBf16, page.data(), 1);
  params.block_table = {&block_table, DType::kI32, {1, 1}};
  params.softmax_scale = static_cast<float>(std::log(3.0));
  const auto rows = apps::exact_rows_on_host(params, {{.tokens = 2}, {.tokens = 0}});
  constexpr double kFloatScale = 1e-7;  // softmax_scale is an fp32 number
  EXPECT_NEAR(rows[0].out[0], 0.75, kFloatScale);
  EXPECT_NEAR(rows[0].out[1], 0.25, kFloatScale);
  EXPECT_EQ(rows[0].out[2], 0);
  EXPECT_NEAR(rows[0].lse, 2 * std::numbers::ln2, kFloatScale);
  EXPECT_EQ(rows[1].out[0], 0);
  EXPECT_EQ(rows[1].lse, -INFINITY);
}

TEST(BenchKernel, WritesTextCsvAndJsonOfTheSameNumbers) {
  const TempDir folder;
  const std::string json_path = folder.file("r.json");
  const std::string csv_path = folder.file("r.csv");
  const ProgramResult result =
      bench({"--shape", "2x100x4,1x65x3x2", "--ragged", "1x130+2x1", "--heads", "8", "--check", "--repeat",
             "2", "--pause-ms", "15", "--json", json_path, "--csv", csv_path});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, IsEmpty());
  EXPECT_THAT(result.out, AllOf(StartsWith("snapmla "), HasSubstr("TFLOPS"), HasSubstr("1x130+2x1")));

  const auto csv = read_csv(csv_path);
  ASSERT_EQ(csv.size(), 1U + 3 * 2);
  EXPECT_THAT(csv[0], ElementsAre("batch", "seq_q", "heads", "seq_len", "dtype", "us", "us_p10", "us_p90",
                                  "us_with_quant", "gbps", "tflops", "clock_mhz", "limit_us", "pct_limit",
                                  "rel_err", "op", "mode", "gain", "lse_err", "calls", "sets"));
  const nlohmann::json json = nlohmann::json::parse(read_file(json_path));
  EXPECT_EQ(json["backend"], "reference");
  EXPECT_EQ(json["repeat"], 2);
  EXPECT_EQ(json["pause_ms"], 15);
  EXPECT_TRUE(json["limits"].is_null());
  EXPECT_THAT(json["skipped"], IsEmpty());
  ASSERT_EQ(json["results"].size(), csv.size() - 1);
  for (std::size_t i = 1; i < csv.size(); ++i) {
    SCOPED_TRACE(i);
    const nlohmann::json& row = json["results"][i - 1];
    ASSERT_EQ(csv[i].size(), csv[0].size());
    for (std::size_t column = 0; column < csv[0].size(); ++column) {
      const nlohmann::json& value = row[csv[0][column]];
      const std::string text = value.is_null()     ? ""
                               : value.is_string() ? value.get<std::string>()
                                                   : value.dump();
      EXPECT_EQ(csv[i][column], text);
    }
    EXPECT_GT(row["us"], 0);
    EXPECT_LE(row["us_p10"], row["us"]);
    EXPECT_GE(row["us_p90"], row["us"]);
    EXPECT_EQ(row["us_with_quant"].is_null(), row["dtype"] == "bf16");
    // P is rounded to e4m3 (steps of 2^-3) or bf16, the output to bf16 (2^-8): a few tokens average less out.
    EXPECT_LT(row["rel_err"], row["dtype"] == "fp8" ? 0x1p-4 : 0x1p-7);
    EXPECT_GT(row["rel_err"], 0);
    EXPECT_NEAR(row["gain"], 1, 0x1p-5);
    EXPECT_LT(row["lse_err"], 1e-5);
  }
  EXPECT_EQ(json["results"][2]["seq_q"], 2);
  EXPECT_EQ(json["results"][4]["seq_len"], "1x130+2x1");
}

TEST(BenchKernel, TimesEveryOp) {
  const TempDir folder;
  const std::string csv_path = folder.file("r.csv");
  const ProgramResult result =
      bench({"--op", "quantize_q,append_kv,fetch_kv,plan,decode", "--shape", "2x65x4", "--kv-cache-dtype",
             "fp8", "--repeat", "1", "--csv", csv_path});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::vector<std::string> ops;
  for (const auto& row : read_csv(csv_path)) ops.push_back(row[15]);
  EXPECT_THAT(ops, ElementsAre("op", "decode", "quantize_q", "append_kv", "fetch_kv", "plan"));
}

TEST(BenchKernel, SkipsWhatDoesNotFitAndSaysSo) {
  const TempDir folder;
  const std::string json_path = folder.file("r.json");
  const ProgramResult result = bench({"--shape", "1x64x1,1x128x1", "--kv-cache-dtype", "fp8", "--repeat", "1",
                                      "--max-cache-bytes", "50k", "--json", json_path});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("seq_len 128, heads 1, s 1, fp8: skipped: its cache"));
  const nlohmann::json json = nlohmann::json::parse(read_file(json_path));
  EXPECT_EQ(json["results"].size(), 1U);
  EXPECT_EQ(json["skipped"].size(), 1U);
}

TEST(BenchKernel, RefusesListsThatMakeNoSense) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{"--batch", "0"}, "--batch"},
      {{"--batch", "1,2x"}, "--batch"},
      {{"--batch", "4097"}, "at most 4096"},
      {{"--seq-len", "many"}, "--seq-len"},
      {{"--seq-len", "2M"}, "--seq-len"},
      {{"--heads", "129"}, "--heads"},
      {{"--heads", "-1"}, "--heads"},
      {{"--s", "9", "--heads", "128"}, "s * heads"},
      {{"--s", "2147483647"}, "--s"},
      {{"--op", "fly"}, "--op"},
      {{"--kv-cache-dtype", "fp4"}, "--kv-cache-dtype"},
      {{"--backend", "tpu"}, "--backend"},
      {{"--shape", "128x16k"}, "--shape"},
      {{"--shape", "1x1x1x1x1"}, "--shape"},
      {{"--shape", "1xx1"}, "--shape"},
      {{"--ragged", "1x"}, "--ragged"},
      {{"--ragged", "5"}, "--ragged"},
      {{"--ragged", "4096x1+1x1"}, "4096 requests"},
      {{"--repeat", "0"}, "--repeat"},
      {{"--pause-ms", "-1"}, "--pause-ms"},
      {{"--pause-ms", "10001"}, "--pause-ms"},
      {{"--pause-ms", "long"}, "--pause-ms"},
      {{"--max-cache-bytes", "lots"}, "--max-cache-bytes"},
      {{"--no-such-flag"}, "--no-such-flag"},
  };
  for (const auto& [args, part] : cases) {
    SCOPED_TRACE(::testing::PrintToString(args));
    const ProgramResult result = bench(args);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, AllOf(StartsWith("snapmla: error: [usage] "), HasSubstr(part)));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
  std::string many = "1";
  for (int i = 2; i <= 128; ++i) many += "," + std::to_string(i);
  const ProgramResult result = bench({"--batch", many, "--heads", many});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("at most 10000 points"));
}

TEST(BenchKernel, NeedsACommandAndWritableFiles) {
  const ProgramResult none = run_program({.args = {"bench"}});
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_THAT(none.err, AllOf(StartsWith("snapmla: error: [usage] "), HasSubstr("see snapmla bench --help")));
  EXPECT_THAT(bench({"--repeat", "x"}).err, HasSubstr("see snapmla bench kernel --help"));
  for (const std::string flag : {"--json", "--csv"}) {
    const ProgramResult result = bench({"--shape", "1x1x1", flag, "/nowhere/at/all"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err,
                AllOf(StartsWith("snapmla: error: [file] " + flag), HasSubstr("/nowhere/at/all")));
  }
  const ProgramResult help = run_program({.args = {"bench", "kernel", "--help"}});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, AllOf(HasSubstr("--ragged"), HasSubstr("SNAPMLA_MAX_CACHE_BYTES")));
}

}  // namespace
}  // namespace snapmla::testing
