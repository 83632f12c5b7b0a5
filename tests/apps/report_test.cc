// How results read: numbers, tables, Markdown, JSON, the progress bar, and values on the command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "common.h"
#include "eval_report.h"
#include "progress.h"
#include "run_report.h"
#include "selftest.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Numbers, ReadWell) {
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(with_commas(1152), "1,152");
  EXPECT_EQ(with_commas(1234567), "1,234,567");
  EXPECT_EQ(with_commas(-123456), "-123,456");
  EXPECT_EQ(short_count(950), "950");
  EXPECT_EQ(short_count(5313024), "5.31M");
  EXPECT_EQ(short_count(671000000000), "671B");
  EXPECT_EQ(short_count(999999), "1M");
}

TEST(Numbers, TokensThatFitAreWholePages) {
  // 2^30 / (4 * 41,216) = 6,512.9 pages and 2^30 / (4 * 73,728) = 3,640.9.
  EXPECT_EQ(tokens_that_fit(CacheFormat::kFp8, 4, 1), 6512 * 64);
  EXPECT_EQ(tokens_that_fit(CacheFormat::kBf16, 4, 1), 3640 * 64);
  EXPECT_EQ(tokens_that_fit(CacheFormat::kFp8, 4, 0.0001), 0);
}

TEST(Numbers, OneLineHoldsNoControlCharacters) {
  EXPECT_EQ(one_line("a\nb\tc\x1b[0m\x01"), "a b c[0m");
}

TEST(Values, SizesTakeUnits) {
  const auto read = [](std::string text) {
    const std::string error = human_size(1)(text);
    return error.empty() ? text : "error";
  };
  EXPECT_EQ(read("512"), "512");
  EXPECT_EQ(read("1k"), "1024");
  EXPECT_EQ(read("4K"), "4096");
  EXPECT_EQ(read("25.6k"), "26214");
  EXPECT_EQ(read("1M"), "1048576");
  for (const char* bad : {"", "0", "-1", "k", "1.5", "nan", "inf", "1kk", "4x", "1e99", "3000M", " 5"}) {
    EXPECT_EQ(read(bad), "error") << bad;
  }
}

TEST(Values, NumbersMustBeFiniteAndInRange) {
  const auto good = [](const CLI::Validator& check, std::string text) { return check(text).empty(); };
  const CLI::Validator temperature = finite_number(0, true, std::numeric_limits<double>::infinity());
  const CLI::Validator top_p = finite_number(0, false, 1);
  for (const char* text : {"0", "0.7", "100"}) EXPECT_TRUE(good(temperature, text)) << text;
  for (const char* text : {"-0.1", "nan", "inf", "-inf", "", "warm", "1x"}) {
    EXPECT_FALSE(good(temperature, text)) << text;
  }
  EXPECT_TRUE(good(top_p, "1"));
  EXPECT_FALSE(good(top_p, "0"));
  EXPECT_FALSE(good(top_p, "1.01"));
}

TEST(TableText, AlignsAndColours) {
  Table table({"a", "bb"});
  table.add_row({"long name", "1"});
  EXPECT_EQ(table.text(Style(false, false)), "a          bb\n-------------\nlong name   1\n");
  EXPECT_THAT(table.text(Style(true, true)), ::testing::AllOf(HasSubstr("\x1b[1m"), HasSubstr("─")));
  EXPECT_EQ(table.markdown(), "| a | bb |\n|---|---:|\n| long name | 1 |\n");
}

TEST(TerminalText, LetsNoEscapeSequenceThrough) {
  EXPECT_EQ(without_controls("a\x1b[2Jb\tc\nd\x07\x7f\u00e9"), "a[2Jb\tc\nd\u00e9");
}

TEST(Values, SeedsAreWholeNumbers) {
  for (std::string text : {"0", "18446744073709551615"}) EXPECT_EQ(seed_number()(text), "") << text;
  for (std::string text : {"", "-1", "1.5", "0x1", "18446744073709551616", "nan"}) {
    EXPECT_NE(seed_number()(text), "") << text;
  }
}

TEST(StyleChoice, PlainUnlessATerminalOrAsked) {
  EXPECT_TRUE(make_style(-1, "always").color());
  EXPECT_FALSE(make_style(-1, "auto").color());
  EXPECT_FALSE(make_style(-1, "never").color());
}

TEST(ProgressLine, ShowsShareAndTimeLeft) {
  EXPECT_EQ(progress_line("x", 0, 10, "tokens", 5), "x [........................] 0/10 tokens");
  EXPECT_EQ(progress_line("x", 5, 10, "tokens", 65), "x [############............] 5/10 tokens, 1:05 left");
  EXPECT_EQ(progress_line("x", 12, 10, "tokens", 1), "x [########################] 10/10 tokens, 0:00 left");
}

EvalResult sample_result() {
  EvalResult result{
      .model = "models/x", .backend = "reference", .scale_rule = "pow2", .has_bf16 = true, .has_fp8 = true};
  TextFigures text;
  text.buckets.emplace_back(Bucket{.low = 0, .high = 128}, Figures{});
  for (int sequence = 0; sequence < 2; ++sequence) {
    const TokenScore score{.sequence = sequence,
                           .context = 5,
                           .nll_bf16 = std::log(8.0),
                           .nll_fp8 = std::log(10.0),
                           .kl = 0.002,
                           .same_top1 = sequence == 0};
    text.all.add(score);
    text.buckets[0].second.add(score);
  }
  result.text = text;
  RetrievalFigures passkey{.task = "passkey", .depth_buckets = 2};
  passkey.outcomes = {{.length = 512, .depth = 0.1, .bf16 = true, .fp8 = true},
                      {.length = 512, .depth = 1.0, .bf16 = true, .fp8 = false},
                      {.length = 512, .depth = 0.4, .bf16 = false, .fp8 = true},
                      {.length = 512, .depth = 0.6, .bf16 = false, .fp8 = false},
                      {.length = 1024, .depth = 0.6, .bf16 = true, .fp8 = true}};
  result.retrieval.push_back(passkey);
  return result;
}

TEST(EvalReport, MarkdownHasTheFigures) {
  const std::string markdown = eval_markdown(sample_result());
  EXPECT_THAT(markdown,
              HasSubstr("| [0, 128) | 2 | 8.000 ± 0.000 | 10.000 ± 0.000 | 1.25000 ± 0.00000 | 2.000 ± "
                        "0.000 | 50.00 ± 50.00 |"));
  EXPECT_THAT(markdown, HasSubstr("| 512 | 4 | 2 | 2 | 1 | 1 | 1 | 1 |"));
  EXPECT_THAT(markdown, HasSubstr("| 1K | 1 | 1 | 1 | 1 | 0 | 0 | 0 |"));
  EXPECT_THAT(markdown, HasSubstr("| 512 | 1/2 of 2 | 1/0 of 2 |"));
}

TEST(EvalReport, JsonHasTheFigures) {
  const nlohmann::ordered_json json = eval_json(sample_result());
  EXPECT_DOUBLE_EQ(json["text"]["perplexity_ratio"]["value"], 1.25);
  EXPECT_DOUBLE_EQ(json["text"]["by_context"][0]["top1_agreement"]["value"], 0.5);
  EXPECT_EQ(json["retrieval"][0]["lengths"][0]["only_bf16"], 1);
  EXPECT_EQ(json["retrieval"][0]["prompts"].size(), 5U);
}

TEST(EvalReport, OneCacheAloneHasNoPairs) {
  EvalResult result = sample_result();
  result.has_bf16 = false;
  const std::string text = eval_text(result, Style());
  EXPECT_THAT(text, HasSubstr("perplexity FP8"));
  EXPECT_THAT(text, Not(HasSubstr("BF16")));
  EXPECT_FALSE(eval_json(result)["text"].contains("kl_bf16_fp8"));
}

TEST(RunReport, FindsTheFirstDifference) {
  EXPECT_EQ(first_difference({1, 2, 3}, {1, 2, 3}), std::nullopt);
  EXPECT_EQ(first_difference({1, 2, 3}, {1, 5, 3}), 1);
  EXPECT_EQ(first_difference({1, 2}, {1, 2, 3}), 2);
  EXPECT_EQ(first_difference({}, {}), std::nullopt);
}

TEST(RunReport, RatesCountTheirOwnPhase) {
  const Generation generation{.tokens = {1, 2, 3},
                              .stats = {.prompt_tokens = 100,
                                        .generated_tokens = 3,
                                        .prefill_seconds = 0.5,
                                        .decode_seconds = 0.01,
                                        .decode_steps = 2}};
  EXPECT_DOUBLE_EQ(generation.prefill_rate(), 200);
  EXPECT_DOUBLE_EQ(generation.decode_rate(), 200);
  EXPECT_EQ(Generation{}.decode_rate(), 0);
}

TEST(SelfTesting, PassesOnTheReferenceAndSeesQuantization) {
  const SelfTest fp8 = run_self_test(reference(), CacheFormat::kFp8);
  const SelfTest bf16 = run_self_test(reference(), CacheFormat::kBf16);
  EXPECT_TRUE(fp8.ok()) << fp8.max_relative_error;
  EXPECT_TRUE(bf16.ok()) << bf16.max_relative_error;
  EXPECT_GT(fp8.max_relative_error, 4 * bf16.max_relative_error) << "FP8 rounds more coarsely";
  EXPECT_GT(bf16.max_relative_error, 0);
  EXPECT_FALSE((SelfTest{.max_relative_error = std::nan(""), .tolerance = 1}).ok());
}

}  // namespace
}  // namespace snapmla::apps
