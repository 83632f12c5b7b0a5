#include "eval_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "common.h"

namespace snapmla::apps {
namespace {

std::string with_error(const Mean& mean, const char* format, double unit, std::string_view plus_minus) {
  std::string text = fmt::format(fmt::runtime(format), mean.value * unit);
  if (std::isfinite(mean.standard_error)) {
    text += fmt::format(" {} {}", plus_minus, fmt::format(fmt::runtime(format), mean.standard_error * unit));
  }
  return text;
}

Table text_table(const EvalResult& result, std::string_view plus_minus) {
  std::vector<std::string> header{"context", "tokens"};
  const bool both = result.has_bf16 && result.has_fp8;
  if (result.has_bf16) header.emplace_back("perplexity BF16");
  if (result.has_fp8) header.emplace_back("perplexity FP8");
  if (both) header.insert(header.end(), {"FP8 / BF16", "KL, 1e-3 nats", "same top-1, %"});
  Table table(header);
  const auto row = [&](const std::string& name, const Figures& figures) {
    std::vector<std::string> cells{name, with_commas(figures.tokens())};
    if (result.has_bf16) cells.push_back(with_error(figures.perplexity_bf16(), "{:.3f}", 1, plus_minus));
    if (result.has_fp8) cells.push_back(with_error(figures.perplexity_fp8(), "{:.3f}", 1, plus_minus));
    if (both) {
      cells.push_back(with_error(figures.perplexity_ratio(), "{:.5f}", 1, plus_minus));
      cells.push_back(with_error(figures.kl(), "{:.3f}", 1e3, plus_minus));
      cells.push_back(with_error(figures.top1_agreement(), "{:.2f}", 100, plus_minus));
    }
    table.add_row(std::move(cells));
  };
  for (const auto& [bucket, figures] : result.text->buckets) row(to_string(bucket), figures);
  row("all", result.text->all);
  return table;
}

std::map<int, RetrievalCounts> by_length(const RetrievalFigures& figures) {
  std::map<int, RetrievalCounts> counts;
  for (const RetrievalOutcome& outcome : figures.outcomes) counts[outcome.length].add(outcome);
  return counts;
}

Table retrieval_table(const EvalResult& result, const RetrievalFigures& figures) {
  std::vector<std::string> header{figures.task, "prompts"};
  const bool both = result.has_bf16 && result.has_fp8;
  if (result.has_bf16) header.emplace_back("BF16 right");
  if (result.has_fp8) header.emplace_back("FP8 right");
  if (both) header.insert(header.end(), {"both", "only BF16", "only FP8", "neither"});
  Table table(header);
  for (const auto& [length, c] : by_length(figures)) {
    std::vector<std::string> cells{short_length(length), fmt::format("{}", c.prompts)};
    if (result.has_bf16) cells.push_back(fmt::format("{}", c.bf16));
    if (result.has_fp8) cells.push_back(fmt::format("{}", c.fp8));
    if (both) {
      for (const int n : {c.both, c.only_bf16, c.only_fp8, c.prompts - c.both - c.only_bf16 - c.only_fp8}) {
        cells.push_back(fmt::format("{}", n));
      }
    }
    table.add_row(std::move(cells));
  }
  return table;
}

int depth_bucket(const RetrievalFigures& figures, double depth) {
  return std::min(static_cast<int>(depth * figures.depth_buckets), figures.depth_buckets - 1);
}

/// Right answers by depth: "BF16/FP8 of prompts", or of the one cache that ran.
Table depth_table(const EvalResult& result, const RetrievalFigures& figures) {
  const char* caches = result.has_bf16 && result.has_fp8 ? "BF16/FP8" : result.has_fp8 ? "FP8" : "BF16";
  std::vector<std::string> header{fmt::format("depth ({} of prompts)", caches)};
  for (int i = 0; i < figures.depth_buckets; ++i) {
    header.push_back(
        fmt::format("{}-{} %", 100 * i / figures.depth_buckets, 100 * (i + 1) / figures.depth_buckets));
  }
  std::map<int, std::vector<RetrievalCounts>> counts;
  for (const RetrievalOutcome& outcome : figures.outcomes) {
    auto& row = counts[outcome.length];
    row.resize(static_cast<std::size_t>(figures.depth_buckets));
    row[static_cast<std::size_t>(depth_bucket(figures, outcome.depth))].add(outcome);
  }
  Table table(header);
  for (const auto& [length, row] : counts) {
    std::vector<std::string> cells{short_length(length)};
    for (const RetrievalCounts& c : row) {
      std::string cell = result.has_bf16 ? fmt::format("{}", c.bf16) : "";
      if (result.has_fp8) cell += fmt::format("{}{}", cell.empty() ? "" : "/", c.fp8);
      cells.push_back(fmt::format("{} of {}", cell, c.prompts));
    }
    table.add_row(std::move(cells));
  }
  return table;
}

Table greedy_table(const std::vector<GreedyComparison>& greedy) {
  const GreedySummary summary = summarize(greedy);
  Table table({"greedy texts", "tokens each", "same to the end", "gap where they part, median", "largest",
               "margin of first choices, median"});
  table.add_row({fmt::format("{}", summary.texts), fmt::format("{}", greedy.front().tokens),
                 fmt::format("{}", summary.same), fmt::format("{:.3f} nats", summary.median_gap),
                 fmt::format("{:.3f} nats", summary.largest_gap),
                 fmt::format("{:.3f} nats", summary.median_margin)});
  return table;
}

Table question_table(const EvalResult& result, const TaskFigures& tasks) {
  Table table({"multiple choice", "questions", "right", "right, normed"});
  const auto row = [&](const char* cache, const TaskCounts& counts) {
    table.add_row({cache, fmt::format("{}", tasks.questions), fmt::format("{}", counts.right),
                   fmt::format("{}", counts.right_normed)});
  };
  if (result.has_bf16) row("BF16", tasks.bf16);
  if (result.has_fp8) row("FP8", tasks.fp8);
  return table;
}

double bits_per_byte(const TaskFigures& tasks, const Mean& perplexity) {
  return std::log2(perplexity.value) * static_cast<double>(tasks.texts.tokens()) /
         static_cast<double>(tasks.text_bytes);
}

Table task_text_table(const EvalResult& result, const TaskFigures& tasks, std::string_view plus_minus) {
  Table table({"texts", "tokens", "perplexity", "bits per byte"});
  const auto row = [&](const char* cache, const Mean& perplexity) {
    table.add_row({cache, with_commas(tasks.texts.tokens()), with_error(perplexity, "{:.3f}", 1, plus_minus),
                   fmt::format("{:.4f}", bits_per_byte(tasks, perplexity))});
  };
  if (result.has_bf16) row("BF16", tasks.texts.perplexity_bf16());
  if (result.has_fp8) row("FP8", tasks.texts.perplexity_fp8());
  return table;
}

/// All tables of a result, in the order they are shown.
std::vector<Table> result_tables(const EvalResult& result, std::string_view plus_minus) {
  std::vector<Table> tables;
  if (result.text) tables.push_back(text_table(result, plus_minus));
  for (const RetrievalFigures& figures : result.retrieval) {
    tables.push_back(retrieval_table(result, figures));
    if (figures.depth_buckets > 1) tables.push_back(depth_table(result, figures));
  }
  if (result.greedy) tables.push_back(greedy_table(*result.greedy));
  if (result.tasks && result.tasks->questions > 0) tables.push_back(question_table(result, *result.tasks));
  if (result.tasks && result.tasks->texts.tokens() > 0)
    tables.push_back(task_text_table(result, *result.tasks, plus_minus));
  return tables;
}

nlohmann::ordered_json mean_json(const Mean& mean) {
  return {{"value", mean.value}, {"standard_error", mean.standard_error}};
}

nlohmann::ordered_json figures_json(const EvalResult& result, const Figures& figures) {
  nlohmann::ordered_json json{{"tokens", figures.tokens()}};
  if (result.has_bf16) json["perplexity_bf16"] = mean_json(figures.perplexity_bf16());
  if (result.has_fp8) json["perplexity_fp8"] = mean_json(figures.perplexity_fp8());
  if (result.has_bf16 && result.has_fp8) {
    json["perplexity_ratio"] = mean_json(figures.perplexity_ratio());
    json["kl_bf16_fp8"] = mean_json(figures.kl());
    json["top1_agreement"] = mean_json(figures.top1_agreement());
    json["max_logprob_difference"] = figures.max_logprob_difference();
  }
  return json;
}

nlohmann::ordered_json retrieval_json(const EvalResult& result, const RetrievalFigures& figures) {
  nlohmann::ordered_json json{{"task", figures.task}, {"lengths", nlohmann::ordered_json::array()}};
  for (const auto& [length, c] : by_length(figures)) {
    nlohmann::ordered_json row{{"length", length}, {"prompts", c.prompts}};
    if (result.has_bf16) row["bf16"] = c.bf16;
    if (result.has_fp8) row["fp8"] = c.fp8;
    if (result.has_bf16 && result.has_fp8) {
      row.update({{"both", c.both}, {"only_bf16", c.only_bf16}, {"only_fp8", c.only_fp8}});
    }
    json["lengths"].push_back(std::move(row));
  }
  for (const RetrievalOutcome& outcome : figures.outcomes) {
    nlohmann::ordered_json row{{"length", outcome.length}, {"depth", outcome.depth}};
    if (outcome.bf16) row["bf16"] = *outcome.bf16;
    if (outcome.fp8) row["fp8"] = *outcome.fp8;
    json["prompts"].push_back(std::move(row));
  }
  return json;
}

nlohmann::ordered_json greedy_json(const std::vector<GreedyComparison>& greedy) {
  const GreedySummary summary = summarize(greedy);
  nlohmann::ordered_json json{{"texts", summary.texts},
                              {"tokens", greedy.front().tokens},
                              {"same", summary.same},
                              {"median_gap", summary.median_gap},
                              {"largest_gap", summary.largest_gap},
                              {"median_margin", summary.median_margin},
                              {"margins_below_largest_gap", summary.margins_below}};
  for (const GreedyComparison& comparison : greedy) {
    if (!comparison.first_difference) continue;
    json["differences"].push_back({{"at", *comparison.first_difference}, {"gap", comparison.gap}});
  }
  return json;
}

nlohmann::ordered_json tasks_json(const EvalResult& result, const TaskFigures& tasks) {
  nlohmann::ordered_json json;
  if (tasks.questions > 0) {
    nlohmann::ordered_json& choices = json["choices"] = {{"questions", tasks.questions}};
    const auto add = [&](const char* cache, const TaskCounts& counts) {
      choices[cache] = {{"right", counts.right}, {"right_normed", counts.right_normed}};
    };
    if (result.has_bf16) add("bf16", tasks.bf16);
    if (result.has_fp8) add("fp8", tasks.fp8);
    if (result.has_bf16 && result.has_fp8) {
      choices["only_bf16"] = tasks.only_bf16;
      choices["only_fp8"] = tasks.only_fp8;
    }
  }
  if (tasks.texts.tokens() > 0) {
    json["texts"] = figures_json(result, tasks.texts);
    if (result.has_bf16)
      json["texts"]["bits_per_byte_bf16"] = bits_per_byte(tasks, tasks.texts.perplexity_bf16());
    if (result.has_fp8)
      json["texts"]["bits_per_byte_fp8"] = bits_per_byte(tasks, tasks.texts.perplexity_fp8());
  }
  return json;
}

}  // namespace

void RetrievalCounts::add(const RetrievalOutcome& outcome) {
  const bool in_bf16 = outcome.bf16.value_or(false);
  const bool in_fp8 = outcome.fp8.value_or(false);
  ++prompts;
  bf16 += in_bf16 ? 1 : 0;
  fp8 += in_fp8 ? 1 : 0;
  both += in_bf16 && in_fp8 ? 1 : 0;
  only_bf16 += in_bf16 && !in_fp8 ? 1 : 0;
  only_fp8 += in_fp8 && !in_bf16 ? 1 : 0;
}

std::string eval_text(const EvalResult& result, const Style& style) {
  std::string out = style.accent("snapmla eval") + "  " + base_name(result.model) + std::string(style.dot()) +
                    result.backend + std::string(style.dot()) + "scale rule " + result.scale_rule + "\n";
  if (!result.fake_format.empty())
    out += fmt::format("FP8 stands for a BF16 cache, quantized and restored as {}\n", result.fake_format);
  for (const Table& table : result_tables(result, style.unicode() ? "±" : "+-"))
    out += "\n" + table.text(style);
  return out + "\n" + style.dim(fmt::format("{:.1f} s, seed {}", result.seconds, result.seed)) + "\n";
}

std::string eval_markdown(const EvalResult& result) {
  std::string out;
  for (const Table& table : result_tables(result, "±")) out += (out.empty() ? "" : "\n") + table.markdown();
  return out;
}

nlohmann::ordered_json eval_json(const EvalResult& result) {
  nlohmann::ordered_json json{{"model", result.model},
                              {"backend", result.backend},
                              {"scale_rule", result.scale_rule},
                              {"seed", result.seed},
                              {"seconds", result.seconds}};
  if (!result.fake_format.empty()) json["fake_format"] = result.fake_format;
  if (result.text) {
    json["text"] = figures_json(result, result.text->all);
    for (const auto& [bucket, figures] : result.text->buckets) {
      nlohmann::ordered_json row{{"from", bucket.low}, {"to", bucket.high}};
      row.update(figures_json(result, figures));
      json["text"]["by_context"].push_back(std::move(row));
    }
  }
  for (const RetrievalFigures& figures : result.retrieval) {
    json["retrieval"].push_back(retrieval_json(result, figures));
  }
  if (result.greedy) json["greedy"] = greedy_json(*result.greedy);
  if (result.tasks) json["tasks"] = tasks_json(result, *result.tasks);
  return json;
}

}  // namespace snapmla::apps
