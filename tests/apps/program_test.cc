// The built program with real command lines: what it prints, and how it refuses wrong input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>

#include "model_folder.h"
#include "run_program.h"
#include "snapmla/version.h"

namespace snapmla::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

ProgramResult snapmla(std::vector<std::string> args) {
  return run_program({.args = std::move(args)});
}

class Program : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_.emplace();
    model_ = make_model_folder(folder_->file("model"));
  }
  static void TearDownTestSuite() { folder_.reset(); }

  /// One line on standard error that starts as ours do and holds `part`; nothing on standard output.
  static void expect_error(const ProgramResult& result, int exit_code, const std::string& part) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_THAT(result.out, IsEmpty());
    EXPECT_THAT(result.err, AllOf(StartsWith("snapmla: error: ["), HasSubstr(part)));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.err.back(), '\n');
  }

  /// A copy of the model folder to spoil.
  static std::string copy_model(const std::string& name) {
    const std::string copy = folder_->file(name);
    std::filesystem::copy(model_, copy);
    return copy;
  }

  static std::optional<TempDir> folder_;
  static std::string model_;
};

std::optional<TempDir> Program::folder_;
std::string Program::model_;

TEST_F(Program, SaysItsVersion) {
  const ProgramResult result = snapmla({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "snapmla " SNAPMLA_VERSION "\n");
}

TEST_F(Program, HelpNamesEveryCommandAndEveryVariable) {
  const ProgramResult top = snapmla({"--help"});
  EXPECT_EQ(top.exit_code, 0);
  for (const std::string command : {"run", "eval", "inspect", "doctor"}) {
    EXPECT_THAT(top.out, HasSubstr("\n  " + command + " "));
    const ProgramResult help = snapmla({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, AllOf(HasSubstr("SNAPMLA_LOG_LEVEL"), HasSubstr("default auto")));
    EXPECT_THAT(help.err, IsEmpty());
  }
  EXPECT_THAT(snapmla({"run", "--help"}).out,
              AllOf(HasSubstr("--max-tokens N"), HasSubstr("SNAPMLA_MAX_TOKENS")));
}

TEST_F(Program, RunWritesTextToStdoutAndFiguresToStderr) {
  const ProgramResult a = snapmla({"run", model_, "-p", "In the beginning", "-n", "8"});
  EXPECT_EQ(a.exit_code, 0) << a.err;
  EXPECT_GT(a.out.size(), 1U);
  EXPECT_EQ(a.out.back(), '\n');
  EXPECT_THAT(a.out, Not(HasSubstr("\x1b[")));
  EXPECT_THAT(a.err, AllOf(HasSubstr("tokens/s"), HasSubstr("644 bytes a token a layer"),
                           HasSubstr("1,288 in 2 layers")));
  const ProgramResult b = run_program(
      {.args = {"run", model_, "--kv-cache-dtype", "bf16", "-n", "8"}, .input = "In the beginning\n"});
  EXPECT_EQ(b.exit_code, 0) << b.err;
  EXPECT_THAT(b.err, HasSubstr("1,152 bytes a token a layer"));
}

TEST_F(Program, PromptComesFromFlagFileStdinOrVariable) {
  const std::string file = folder_->file("prompt.txt");
  write_file(file, "In the beginning\n");
  const std::vector<std::string> base{"run", model_, "-n", "6"};
  const auto text = [&](std::vector<std::string> more, ProgramRun run) {
    run.args = base;
    run.args.insert(run.args.end(), more.begin(), more.end());
    return run_program(run).out;
  };
  const std::string expected = text({"--prompt", "In the beginning"}, {.args = {}});
  EXPECT_EQ(text({"--prompt-file", file}, {.args = {}}), expected);
  EXPECT_EQ(text({"--prompt-file", "-"}, {.args = {}, .input = "In the beginning"}), expected);
  EXPECT_EQ(text({}, {.args = {}, .input = "In the beginning\n"}), expected);
  EXPECT_EQ(text({}, {.args = {}, .environment = {"SNAPMLA_PROMPT=In the beginning"}}), expected);
  EXPECT_NE(text({"--prompt", "Another text"}, {.args = {}}), expected);
}

TEST_F(Program, RunTakesEverySamplingFlagAndVariable) {
  const std::vector<std::string> args{"run",    model_,          "-p",    "x",       "-n", "12",
                                      "--json", "--temperature", "1.5",   "--top-k", "50", "--top-p",
                                      "0.9",    "--ignore-eos",  "--seed"};
  const auto with_seed = [&](const char* seed) {
    std::vector<std::string> all = args;
    all.emplace_back(seed);
    return nlohmann::json::parse(snapmla(all).out);
  };
  const nlohmann::json one = with_seed("1");
  EXPECT_EQ(one["tokens"].size(), 12U);
  EXPECT_EQ(one["finish"], "length");
  EXPECT_EQ(one["tokens"], with_seed("1")["tokens"]);
  EXPECT_NE(one["tokens"], with_seed("2")["tokens"]);
  const ProgramResult by_variables =
      run_program({.args = {"run", "-p", "x", "--seed", "1"},
                   .environment = {"SNAPMLA_MODEL=" + model_, "SNAPMLA_MAX_TOKENS=12", "SNAPMLA_JSON=1",
                                   "SNAPMLA_TEMPERATURE=1.5", "SNAPMLA_TOP_K=50", "SNAPMLA_TOP_P=0.9",
                                   "SNAPMLA_IGNORE_EOS=1"}});
  EXPECT_EQ(nlohmann::json::parse(by_variables.out)["tokens"], one["tokens"]) << by_variables.err;
}

TEST_F(Program, StopStringEndsTheText) {
  const std::vector<std::string> args{"run", model_, "-p", "x", "-n", "40", "--json", "--ignore-eos"};
  const std::string text = nlohmann::json::parse(snapmla(args).out)["text"];
  std::size_t at = text.size() / 2;
  while (at < text.size() && (text[at] & 0x80) != 0) ++at;
  ASSERT_LT(at, text.size());
  const std::string stop = text.substr(at, 1);
  std::vector<std::string> stopped = args;
  stopped.insert(stopped.end(), {"--stop", "never in there", "--stop", stop});
  const nlohmann::json json = nlohmann::json::parse(snapmla(stopped).out);
  EXPECT_EQ(json["finish"], "stop");
  EXPECT_EQ(json["text"], text.substr(0, text.find(stop)));
}

TEST_F(Program, CompareShowsBothCaches) {
  const std::vector<std::string> args{"run", model_, "--compare",   "-p", "In the beginning",
                                      "-n",  "10",   "--ignore-eos"};
  const ProgramResult text = snapmla(args);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("FP8 cache"), HasSubstr("BF16 cache"), HasSubstr("tokens that fit in one GiB"),
                    HasSubstr("1.79x"), HasSubstr("Along the BF16 text, 9 decode steps: mean KL")));
  std::vector<std::string> with_json = args;
  with_json.emplace_back("--json");
  const nlohmann::json json = nlohmann::json::parse(snapmla(with_json).out);
  EXPECT_EQ(json["difference"]["decode_steps_compared"], 9);
  EXPECT_GT(json["difference"]["mean_kl"], 0);
  EXPECT_EQ(json["fp8"]["cache_bytes_per_token_per_layer"], 644);
  EXPECT_EQ(json["bf16"]["cache_bytes_per_token_per_layer"], 1152);
}

TEST_F(Program, EvalMeasuresTextAndRetrieval) {
  const std::string output = folder_->file("eval.json");
  const std::vector<std::string> args{"eval",    model_,      "--tokens", "100",      "--max-context",
                                      "200",     "--passkey", "--pairs",  "4",        "--lengths",
                                      "128,256", "--samples", "2",        "--output", output};
  const ProgramResult result = snapmla(args);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("[0, 128)"), HasSubstr("[128, 200)"), HasSubstr("passkey"),
                                HasSubstr("4 pairs")));
  EXPECT_THAT(result.err, IsEmpty()) << "no progress bar without a terminal";
  const nlohmann::json json = nlohmann::json::parse(read_file(output));
  EXPECT_GE(json["text"]["tokens"], 100);
  EXPECT_GT(json["text"]["kl_bf16_fp8"]["value"], 0);
  EXPECT_EQ(json["retrieval"].size(), 2U);
  EXPECT_EQ(json["retrieval"][0]["lengths"][1]["prompts"], 2);

  std::vector<std::string> fp8 = args;
  fp8.insert(fp8.end(), {"--json", "--kv-cache-dtype", "fp8"});
  const nlohmann::json alone = nlohmann::json::parse(snapmla(fp8).out);
  EXPECT_EQ(alone["text"]["perplexity_fp8"]["value"], json["text"]["perplexity_fp8"]["value"]);
  EXPECT_FALSE(alone["text"].contains("perplexity_bf16"));
}

TEST_F(Program, InspectReadsHeadersOrAConfigAlone) {
  const nlohmann::json full = nlohmann::json::parse(snapmla({"inspect", model_, "--gib", "2", "--json"}).out);
  EXPECT_EQ(full["model_type"], "deepseek_v3");
  EXPECT_EQ(full["cache"]["fp8"]["bytes_per_token"], 2 * 644);
  EXPECT_EQ(full["zero_experts"], 0);
  EXPECT_TRUE(full["fp8_block"].is_null());
  std::int64_t parameters = 0;
  for (const NamedTensor& tensor :
       make_tensors(nlohmann::json::parse(read_file(model_ + "/config.json")), 1)) {
    parameters += static_cast<std::int64_t>(tensor.values.size());
  }
  EXPECT_EQ(full["parameters"], parameters);
  // 2^31 bytes / (2 layers * 41,216) = 26,051.5 pages of 64.
  EXPECT_EQ(full["cache"]["fp8"]["tokens_that_fit"], 26051 * 64);

  const std::string bare = folder_->file("bare");
  std::filesystem::create_directory(bare);
  std::filesystem::copy_file(model_ + "/config.json", bare + "/config.json");
  const ProgramResult text = snapmla({"inspect", bare});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("unknown"), HasSubstr("1,152"), HasSubstr("8 routed")));

  nlohmann::json fp8 = nlohmann::json::parse(read_file(model_ + "/config.json"));
  fp8["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 64}}};
  write_file(bare + "/config.json", fp8.dump());
  EXPECT_THAT(snapmla({"inspect", bare}).out, HasSubstr("FP8 with a scale for 128 x 64 weights"));
}

TEST_F(Program, DoctorTestsTheReference) {
  const ProgramResult text = snapmla({"doctor"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("reference"), HasSubstr("cuda"), HasSubstr("OK"), Not(HasSubstr("FAILED"))));
  const nlohmann::json json = nlohmann::json::parse(snapmla({"doctor", "--json", "--num-threads", "1"}).out);
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["threads"], 1);
  EXPECT_EQ(json["backends"][0]["self_test"].size(), 2U);
}

TEST_F(Program, FindsTheBundledModelFromTheRepository) {
  const ProgramResult found = run_program({.args = {"inspect", "--json"}, .directory = SNAPMLA_SOURCE_DIR});
  EXPECT_EQ(nlohmann::json::parse(found.out)["model"], "models/tiny-mla") << found.err;
  const ProgramResult lost = run_program({.args = {"inspect"}, .directory = folder_->path()});
  expect_error(lost, 1, "models/tiny-mla");
}

TEST_F(Program, WrongUsageGivesExitCode2) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{}, "COMMAND"},
      {{"fly"}, "fly"},
      {{"run", model_, "-p", "x", "--no-such-flag"}, "--no-such-flag"},
      {{"run", model_, "-p", "x", "--kv-cache-dtype", "fp4"}, "--kv-cache-dtype"},
      {{"run", model_, "-p", "x", "--backend", "tpu"}, "--backend"},
      {{"run", model_, "-p", "x", "--scale-rule", "none"}, "--scale-rule"},
      {{"run", model_, "-p", "x", "--temperature", "nan"}, "--temperature"},
      {{"run", model_, "-p", "x", "--temperature", "-1"}, "--temperature"},
      {{"run", model_, "-p", "x", "--temperature", "inf"}, "--temperature"},
      {{"run", model_, "-p", "x", "--temperature", "hot"}, "--temperature"},
      {{"run", model_, "-p", "x", "--top-p", "0"}, "--top-p"},
      {{"run", model_, "-p", "x", "--top-p", "1.5"}, "--top-p"},
      {{"run", model_, "-p", "x", "--top-p", "nan"}, "--top-p"},
      {{"run", model_, "-p", "x", "--top-k", "-3"}, "--top-k"},
      {{"run", model_, "-p", "x", "--max-tokens", "0"}, "--max-tokens"},
      {{"run", model_, "-p", "x", "--max-tokens", "many"}, "--max-tokens"},
      {{"run", model_, "-p", "x", "--max-model-len", "1q"}, "--max-model-len"},
      {{"run", model_, "-p", "x", "--seed", "-1"}, "--seed"},
      {{"run", model_, "-p", "x", "--prompt-file", "y"}, "--prompt"},
      {{"run", model_, "-p", "x", "--compare", "--kv-cache-dtype", "fp8"}, "--compare"},
      {{"run", model_, "-p", "x", "--log-level", "loud"}, "--log-level"},
      {{"run", model_, "-p"}, "--prompt"},
      {{"run", model_, "-p", "x", "second"}, "second"},
      {{"eval", model_, "--pairs", "0"}, "--pairs"},
      {{"eval", model_, "--pairs", "4097"}, "--pairs"},
      {{"eval", model_, "--lengths", "512,none"}, "--lengths"},
      {{"eval", model_, "--samples", "0"}, "--samples"},
      {{"inspect", model_, "--gib", "-1"}, "--gib"},
      {{"inspect", model_, "--gib", "nan"}, "--gib"},
  };
  for (const auto& [args, part] : cases) {
    SCOPED_TRACE(::testing::PrintToString(args));
    expect_error(snapmla(args), 2, part);
  }
}

TEST_F(Program, WrongVariableGivesExitCode2) {
  for (const std::string entry :
       {"SNAPMLA_TEMPERATURE=nan", "SNAPMLA_KV_CACHE_DTYPE=fp4", "SNAPMLA_MAX_TOKENS=-4"}) {
    SCOPED_TRACE(entry);
    const ProgramResult result = run_program({.args = {"run", model_, "-p", "x"}, .environment = {entry}});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_THAT(result.err, StartsWith("snapmla: error: [usage] "));
  }
}

TEST_F(Program, WrongModelFoldersGiveExitCode1) {
  expect_error(snapmla({"run", folder_->file("nowhere"), "-p", "x"}), 1, "nowhere");
  expect_error(snapmla({"inspect", folder_->file("nowhere")}), 1, "nowhere");
  expect_error(snapmla({"eval", folder_->file("nowhere")}), 1, "nowhere");

  const std::string bad_config = copy_model("bad_config");
  write_file(bad_config + "/config.json", "{\"model_type\": \"deepseek_v3\",\n\n \"hidden_size\": }");
  expect_error(snapmla({"run", bad_config, "-p", "x"}), 1, "config.json");
  write_file(bad_config + "/config.json", "{\"model_type\": \"llama\"}");
  expect_error(snapmla({"inspect", bad_config}), 1, "llama");

  const std::string cut = copy_model("cut");
  std::filesystem::resize_file(cut + "/model.safetensors",
                               std::filesystem::file_size(cut + "/model.safetensors") - 10);
  expect_error(snapmla({"run", cut, "-p", "x"}), 1, "model.safetensors");
  expect_error(snapmla({"inspect", cut}), 1, "model.safetensors");
  write_file(cut + "/model.safetensors", "not a checkpoint at all");
  expect_error(snapmla({"run", cut, "-p", "x"}), 1, "model.safetensors");

  const std::string no_tokenizer = copy_model("no_tokenizer");
  std::filesystem::remove(no_tokenizer + "/tokenizer.json");
  expect_error(snapmla({"run", no_tokenizer, "-p", "x"}), 1, "tokenizer.json");
  write_file(no_tokenizer + "/tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}");
  expect_error(snapmla({"run", no_tokenizer, "-p", "x"}), 1, "tokenizer.json");
}

TEST_F(Program, WhatDoesNotFitGivesExitCode1) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += "word ";
  expect_error(run_program({.args = {"run", model_, "--max-model-len", "64"}, .input = text}), 1, "64");
  expect_error(run_program({.args = {"run", model_, "--num-pages", "1"}, .input = text}), 1,
               "cache of 1 pages");
  expect_error(snapmla({"run", model_, "-p", "x", "--max-model-len", "1M"}), 1, "4096");
  expect_error(snapmla({"eval", model_, "--max-context", "1M"}), 1, "4096");
  const std::string brief = folder_->file("brief.txt");
  write_file(brief, "Too short.");
  expect_error(snapmla({"eval", model_, "--text", brief}), 1, "the text must have at least");
  expect_error(snapmla({"eval", model_, "--tokens", "0", "--passkey", "--text", brief}), 1, "sentence");
  expect_error(snapmla({"eval", model_, "--tokens", "0", "--pairs", "200", "--lengths", "512"}), 1,
               "got length 512");
  expect_error(snapmla({"eval", model_, "--output", folder_->file("no/such/folder")}), 1, "--output");
  expect_error(snapmla({"run", model_, "--prompt-file", folder_->file("no_prompt")}), 1, "no_prompt");
  expect_error(snapmla({"run", model_, "-p", "x", "--stop", ""}), 1, "stop");
}

TEST_F(Program, ClosedPipeEndsQuietly) {
  const ProgramResult result =
      run_program({.args = {"run", model_, "-p", "x", "-n", "50"}, .closed_stdout = true});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, IsEmpty());
}

TEST_F(Program, SignalsEndCleanly) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const ProgramResult result =
        run_program({.args = {"run", model_, "-p", "x", "-n", "4000", "--ignore-eos"},
                     .signal_after_ms = 700,
                     .signal = signal});
    EXPECT_EQ(result.exit_code, 128 + signal);
    EXPECT_THAT(result.err, AllOf(HasSubstr("ended by cancelled"), HasSubstr("stopped by signal")));
    EXPECT_GT(result.out.size(), 1U);
  }
}

}  // namespace
}  // namespace snapmla::testing
