// snapmla eval: what the FP8 cache costs in quality, beside a BF16 cache of the same model.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cli.h"
#include "common.h"
#include "core/check.h"
#include "engine/tokenizer.h"
#include "eval_report.h"
#include "evaluation.h"
#include "greedy.h"
#include "model/config.h"
#include "output_file.h"
#include "progress.h"
#include "retrieval.h"
#include "snapmla/backend.h"
#include "study/fake_cache_backend.h"
#include "study/record.h"
#include "task_file.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

constexpr int kDefaultContext = 4096;

struct EvalOptions {
  CommonOptions common{};
  std::string kv_cache_dtype = "both";
  std::string text;
  std::int64_t tokens = 10240;
  int max_context = 0;
  std::string fake_format;
  std::string tasks;
  int greedy = 0;
  int greedy_tokens = 512;
  bool passkey = false;
  int pairs = 0;
  std::vector<int> lengths{512, 1024, 2048, 4096};
  int samples = 20;
  int depth_buckets = 4;
  std::uint64_t seed = 0;
  bool markdown = false;
  std::string output;
};

/// What one evaluation works with.
struct Session {
  std::unique_ptr<FakeCacheBackend> fake;  ///< of the engine called fp8, if it is not
  std::optional<Engine> bf16;
  std::optional<Engine> fp8;
  std::string text;
  int max_context = 0;

  [[nodiscard]] const Engine& any() const { return bf16 ? *bf16 : *fp8; }
  [[nodiscard]] Caches caches() { return {.bf16 = bf16 ? &*bf16 : nullptr, .fp8 = fp8 ? &*fp8 : nullptr}; }
};

constexpr int kGreedyPrompt = 256;

/// A BF16 cache that holds what `name` would restore, calibrated over the end of the text.
std::unique_ptr<FakeCacheBackend> make_fake(const std::string& name, const std::string& dir, Backend& backend,
                                            const std::string& text) {
  constexpr int kLength = 64;  // what is recorded at this length is not used: the calibration is
  const auto* format = std::find_if(kQuantizedFormats.begin(), kQuantizedFormats.end(),
                                    [&](KeyFormat x) { return to_string(x) == name; });
  Recording recording = record_activations(
      {.model_dir = dir, .backend = &backend, .text = text, .lengths = {kLength}, .steps = 1});
  return std::make_unique<FakeCacheBackend>(backend, *format, std::move(recording.calibration));
}

Session open_session(const EvalOptions& options) {
  const std::string dir = find_model(options.common.model);
  const ModelConfig config = load_config(dir);
  Session session;
  session.max_context =
      options.max_context > 0 ? options.max_context : std::min(kDefaultContext, config.max_position);
  const bool retrieval = options.passkey || options.pairs > 0;
  int longest = options.tokens > 0 ? session.max_context : 1;
  if (retrieval)
    longest = std::max(longest, *std::max_element(options.lengths.begin(), options.lengths.end()));
  if (options.greedy > 0) longest = std::max(longest, kGreedyPrompt + options.greedy_tokens);
  if (!options.tasks.empty()) longest = std::max(longest, session.max_context);
  SNAPMLA_REQUIRE(longest <= config.max_position, "eval", "--max-context and --lengths must be at most ",
                  config.max_position, ", the model's own maximum; got ", longest);
  const std::string text_file =
      options.text.empty() ? (std::filesystem::path(dir) / "held_out.txt").string() : options.text;
  session.text = read_text(text_file);

  CommonOptions common = options.common;
  common.model = dir;
  common.max_model_len = longest;
  for (const CacheFormat format : {CacheFormat::kBf16, CacheFormat::kFp8}) {
    if (options.kv_cache_dtype != "both" && options.kv_cache_dtype != to_string(format)) continue;
    EngineOptions engine = engine_options(common, format);
    if (format == CacheFormat::kFp8 && !options.fake_format.empty()) {
      session.fake = make_fake(options.fake_format, dir, *engine.backend, session.text);
      engine.backend = session.fake.get();
      engine.cache_format = CacheFormat::kBf16;
    }
    (format == CacheFormat::kFp8 ? session.fp8 : session.bf16).emplace(engine);
  }
  spdlog::info("model {}, text {} ({} bytes), contexts up to {}", dir, text_file, session.text.size(),
               longest);
  return session;
}

std::vector<std::vector<std::int32_t>> tokenize_documents(const Session& session) {
  const ModelConfig& config = session.any().config();
  std::vector<std::vector<std::int32_t>> documents;
  for (const std::string& document : split_documents(session.text)) {
    documents.push_back(session.any().tokenizer().encode(document));
    if (!config.stop_tokens.empty()) documents.back().push_back(config.stop_tokens.front());
  }
  return documents;
}

TextFigures evaluate_text(Session& session, const EvalOptions& options) {
  const std::vector<Sequence> windows =
      make_windows(tokenize_documents(session),
                   {.num_tokens = options.tokens, .max_context = session.max_context, .seed = options.seed});
  std::int64_t total = 0;
  for (const Sequence& window : windows) total += window.num_scored();

  TextFigures figures;
  for (const Bucket& bucket : context_buckets(session.max_context))
    figures.buckets.emplace_back(bucket, Figures{});
  Progress progress("perplexity", total, "tokens");
  const auto on_score = [&](const TokenScore& score) {
    figures.all.add(score);
    for (auto& [bucket, in_bucket] : figures.buckets) {
      if (score.context >= bucket.low && score.context < bucket.high) in_bucket.add(score);
    }
    progress.update(figures.all.tokens());
  };
  score_sequences(session.caches(), windows, {.on_score = on_score, .after_step = {}});
  return figures;
}

/// Prompts of 256 tokens, spread evenly over the text.
std::vector<GreedyComparison> evaluate_greedy(Session& session, const EvalOptions& options) {
  std::vector<std::int32_t> stream;
  for (const std::vector<std::int32_t>& document : tokenize_documents(session))
    stream.insert(stream.end(), document.begin(), document.end());
  SNAPMLA_REQUIRE(stream.size() >= kGreedyPrompt, "eval", "the text must have at least ", kGreedyPrompt,
                  " tokens; got ", stream.size());
  std::vector<std::vector<std::int32_t>> prompts;
  const std::size_t room = stream.size() - kGreedyPrompt;
  for (int i = 0; i < options.greedy; ++i) {
    const auto begin = stream.begin() + static_cast<std::ptrdiff_t>(room * static_cast<std::size_t>(i) /
                                                                    static_cast<std::size_t>(options.greedy));
    prompts.emplace_back(begin, begin + kGreedyPrompt);
  }
  Progress progress("greedy texts", 2 * std::int64_t{options.greedy}, "texts");
  std::int64_t done = 0;
  return compare_greedy(session.caches(), prompts, options.greedy_tokens, [&] { progress.update(++done); });
}

TaskFigures evaluate_tasks(Session& session, const TaskSequences& tasks) {
  Progress progress("tasks", tasks.num_scored(), "tokens");
  std::int64_t done = 0;
  return tasks.score(session.caches(), [&] { progress.update(++done); });
}

RetrievalFigures evaluate_retrieval(Session& session, const EvalOptions& options, int pairs) {
  const Tokenizer& tokenizer = session.any().tokenizer();
  const Filler filler(session.text, tokenizer);
  Random random(options.seed + static_cast<std::uint64_t>(pairs));
  std::vector<RetrievalPrompt> prompts;
  for (const int length : options.lengths) {
    for (int i = 0; i < options.samples; ++i) {
      prompts.push_back(make_retrieval_prompt(
          {.length = length, .pairs = pairs, .bos_token = session.any().config().bos_token}, filler,
          tokenizer, random));
    }
  }
  RetrievalFigures figures{.task = pairs == 0 ? "passkey" : fmt::format("{} pairs", pairs),
                           .depth_buckets = options.depth_buckets};
  for (const RetrievalPrompt& prompt : prompts) {
    figures.outcomes.push_back({.length = prompt.length, .depth = prompt.depth});
  }
  const int num_caches = (session.bf16 ? 1 : 0) + (session.fp8 ? 1 : 0);
  Progress progress(figures.task, static_cast<std::int64_t>(prompts.size()) * num_caches, "prompts");
  std::int64_t done = 0;
  const auto on_answer = [&] { progress.update(++done); };
  if (session.bf16) {
    const std::vector<bool> right = answer_prompts(*session.bf16, prompts, on_answer);
    for (std::size_t i = 0; i < right.size(); ++i) figures.outcomes[i].bf16 = right[i];
  }
  if (session.fp8) {
    const std::vector<bool> right = answer_prompts(*session.fp8, prompts, on_answer);
    for (std::size_t i = 0; i < right.size(); ++i) figures.outcomes[i].fp8 = right[i];
  }
  return figures;
}

/// What options ask of each other.
void check(const EvalOptions& options) {
  if (options.greedy > 0 && options.kv_cache_dtype != "both")
    throw CLI::ValidationError("--greedy", "compares two caches: it needs --kv-cache-dtype both");
  if (!options.fake_format.empty() && options.kv_cache_dtype == "bf16")
    throw CLI::ValidationError("--fake-format",
                               "replaces the FP8 cache: it needs --kv-cache-dtype fp8 or both");
}

int evaluate(const EvalOptions& options) {
  check(options);
  apply(options.common);
  const OutputFile file("--output", options.output);
  const auto start = std::chrono::steady_clock::now();
  // What is wrong with the tasks is said before anything is scored.
  std::optional<TaskFile> task_file;
  if (!options.tasks.empty()) task_file = parse_task_file(read_text(options.tasks));
  Session session = open_session(options);
  std::optional<TaskSequences> tasks;
  if (task_file) tasks.emplace(*std::move(task_file), session.any().tokenizer(), session.max_context);
  const Backend& backend = backend_by_name(options.common.backend);
  EvalResult result{.model = session.any().options().model_dir,
                    .backend = fmt::format("{} ({})", backend.name(), backend.device_name()),
                    .scale_rule = options.common.scale_rule,
                    .seed = options.seed,
                    .has_bf16 = session.bf16.has_value(),
                    .has_fp8 = session.fp8.has_value(),
                    .fake_format = options.fake_format};
  if (options.tokens > 0) result.text = evaluate_text(session, options);
  if (options.passkey) result.retrieval.push_back(evaluate_retrieval(session, options, 0));
  if (options.pairs > 0) result.retrieval.push_back(evaluate_retrieval(session, options, options.pairs));
  if (options.greedy > 0) result.greedy = evaluate_greedy(session, options);
  if (tasks) result.tasks = evaluate_tasks(session, *tasks);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const std::string json = eval_json(result).dump(2) + "\n";
  file.replace(json);
  if (options.common.json) {
    write_stdout(json);
  } else if (options.markdown) {
    write_stdout(eval_markdown(result));
  } else {
    write_stdout(eval_text(result, make_style(1, options.common.color)));
  }
  return 0;
}

void add_text_options(CLI::App& app, EvalOptions& options) {
  app.add_option("--kv-cache-dtype", options.kv_cache_dtype, "caches to run: both, fp8 or bf16")
      ->check(CLI::IsMember({"both", "fp8", "bf16"}))
      ->option_text("DTYPE")
      ->capture_default_str();
  app.add_option("--text", options.text,
                 "held-out text; documents are separated by blank lines (default: held_out.txt of the model)")
      ->option_text("FILE");
  app.add_option("--tokens", options.tokens, "tokens scored at least; 0: no perplexity, retrieval only")
      ->transform(human_size(0))
      ->option_text("N")
      ->capture_default_str();
  constexpr int kLeastContext = 16;
  app.add_option("--max-context", options.max_context,
                 "longest context scored (default: 4k, or the model's maximum if that is less)")
      ->transform(human_size(kLeastContext))
      ->option_text("N");
}

void add_task_options(CLI::App& app, EvalOptions& options) {
  app.add_option("--tasks", options.tasks,
                 "also score a file of JSON lines, {\"context\", \"choices\", \"answer\"} or {\"text\"}")
      ->option_text("FILE");
  constexpr int kMostTexts = 10000;
  app.add_option("--greedy", options.greedy, "also compare N greedy texts of both caches, token by token")
      ->check(CLI::Range(1, kMostTexts))
      ->option_text("N");
  app.add_option("--greedy-tokens", options.greedy_tokens, "tokens of each of them")
      ->transform(human_size(1))
      ->option_text("N")
      ->capture_default_str();
  std::vector<std::string> formats(kQuantizedFormats.size());
  std::transform(kQuantizedFormats.begin(), kQuantizedFormats.end(), formats.begin(),
                 [](KeyFormat format) { return to_string(format); });
  app.add_option(
         "--fake-format", options.fake_format,
         "in place of the FP8 cache a BF16 cache that is quantized and restored like this, as token-rope "
         "(the formats of snapmla study)")
      ->check(CLI::IsMember(formats))
      ->option_text("NAME");
}

void add_retrieval_options(CLI::App& app, EvalOptions& options) {
  app.add_flag("--passkey", options.passkey, "also test finding a five-digit passkey in the text");
  app.add_option("--pairs", options.pairs, "also test finding one of N look-alike key-value pairs")
      ->check(CLI::Range(1, kMaxPairs))
      ->option_text("N");
  app.add_option("--lengths", options.lengths, "prompt lengths of the retrieval tests, in tokens")
      ->transform(human_size(1))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->option_text("N,N,...")
      ->default_str("512,1k,2k,4k");
  constexpr int kMostSamples = 100000;
  app.add_option("--samples", options.samples, "retrieval prompts a length")
      ->check(CLI::Range(1, kMostSamples))
      ->option_text("N")
      ->capture_default_str();
  constexpr int kMostDepthBuckets = 20;
  app.add_option("--depth-buckets", options.depth_buckets, "columns of the table by depth; 1: no such table")
      ->check(CLI::Range(1, kMostDepthBuckets))
      ->option_text("N")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the choice of windows, prefixes and prompts")
      ->check(seed_number())
      ->option_text("N")
      ->capture_default_str();
}

}  // namespace

Command add_eval(CLI::App& program) {
  const auto options = std::make_shared<EvalOptions>();
  CLI::App* app = program.add_subcommand("eval", "Measure what the FP8 cache costs in quality");
  add_model_option(*app, options->common);
  add_text_options(*app, *options);
  add_retrieval_options(*app, *options);
  add_task_options(*app, *options);
  add_engine_options(*app, options->common);
  add_scheduler_options(*app, options->common);
  add_output_options(*app, options->common);
  app->add_flag("--markdown", options->markdown, "print Markdown tables instead of text");
  app->add_option("--output", options->output, "also write the results to this file, as JSON")
      ->option_text("FILE");
  app->footer(
      "Perplexity, KL divergence and top-1 agreement by context length, with standard errors over\n"
      "texts. Every scored token comes from a decode step over the cache; both caches see the same\n"
      "tokens.\n\nExamples:\n"
      "  snapmla eval --passkey                            all figures of the bundled model\n"
      "  snapmla eval --tokens 0 --pairs 64 --lengths 8k   a hard retrieval test alone\n"
      "  snapmla eval DIR --text book.txt --json           another model, another text\n"
      "  snapmla eval DIR --tokens 0 --tasks quiz.jsonl    multiple choice and perplexity of a file of your "
      "own\n"
      "  snapmla eval --greedy 16                          where long texts of the two caches part");
  return {.app = app, .run = [options] { return evaluate(*options); }};
}

}  // namespace snapmla::apps
