// snapmla inspect: what a checkpoint is and what its cache costs, without loading a weight.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint.h"
#include "cli.h"
#include "common.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

struct InspectOptions {
  CommonOptions common{};
  double gib = 1;
};

nlohmann::ordered_json cache_json(CacheFormat format, int layers, double gib) {
  return {{"bytes_per_token_per_layer", token_bytes(format)},
          {"bytes_per_token", token_bytes(format) * layers},
          {"gib", gib},
          {"tokens_that_fit", tokens_that_fit(format, layers, gib)}};
}

nlohmann::ordered_json to_json(const std::string& dir, const CheckpointSummary& summary, double gib) {
  const ModelConfig& c = summary.config;
  nlohmann::ordered_json json{{"model", dir},
                              {"model_type", c.model_type},
                              {"layers", c.num_layers},
                              {"hidden", c.hidden},
                              {"heads", c.heads},
                              {"latent", kLatentDim},
                              {"rope", kRopeDim},
                              {"nope", c.nope_dim},
                              {"v", c.v_dim},
                              {"q_lora", c.q_lora},
                              {"vocab", c.vocab},
                              {"experts", c.num_experts},
                              {"experts_per_token", c.top_k},
                              {"shared_experts", c.num_shared_experts},
                              {"zero_experts", c.num_zero_experts},
                              {"max_position", c.max_position}};
  json["parameters"] = summary.parameters ? nlohmann::ordered_json(*summary.parameters) : nullptr;
  json["weight_bytes"] = summary.weight_bytes ? nlohmann::ordered_json(*summary.weight_bytes) : nullptr;
  json["parameters_by_dtype"] = nlohmann::ordered_json(summary.by_dtype);
  json["fp8_block"] = nullptr;
  if (c.fp8.rows != 0) json["fp8_block"] = {c.fp8.rows, c.fp8.columns};
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    json["cache"][to_string(format)] = cache_json(format, c.num_layers, gib);
  }
  return json;
}

std::string parameters_text(const CheckpointSummary& summary) {
  if (!summary.parameters) return "unknown (no safetensors files in the folder)";
  std::string dtypes;
  for (const auto& [dtype, count] : summary.by_dtype) {
    if (!dtypes.empty()) dtypes += ", ";
    dtypes += summary.by_dtype.size() == 1 ? dtype : fmt::format("{} {}", short_count(count), dtype);
  }
  return fmt::format("{} ({}), {}, {:.1f} MiB", short_count(*summary.parameters),
                     with_commas(*summary.parameters), dtypes,
                     static_cast<double>(*summary.weight_bytes) / (1024 * 1024));
}

std::string experts_text(const ModelConfig& c) {
  if (c.num_experts == 0) return "none (every layer is dense)";
  int moe_layers = 0;
  for (int layer = 0; layer < c.num_layers; ++layer) moe_layers += c.is_moe_layer(layer) ? 1 : 0;
  const std::string zero =
      c.num_zero_experts > 0 ? fmt::format(" and {} that do nothing", c.num_zero_experts) : "";
  return fmt::format("{}{} routed, {} a token, {} shared; in {} of {} layers", c.num_experts, zero, c.top_k,
                     c.num_shared_experts, moe_layers, c.num_layers);
}

std::string layers_text(const ModelConfig& c) {
  const bool longcat = c.family == Family::kLongcatFlash;
  const std::string pairs = longcat ? fmt::format(" (two in each of {})", c.num_layers / 2) : "";
  return fmt::format("{}{}, hidden {}, vocabulary {}", c.num_layers, pairs, c.hidden, with_commas(c.vocab));
}

std::string fp8_text(const ModelConfig& c) {
  return fmt::format(
      "FP8 with a scale for {} x {} weights; loaded as such where products take it, else as BF16", c.fp8.rows,
      c.fp8.columns);
}

void print_text(const std::string& dir, const CheckpointSummary& summary, const InspectOptions& options) {
  const Style style = make_style(1, options.common.color);
  const ModelConfig& c = summary.config;
  std::string out = style.accent(base_name(dir)) + "  " + style.dim(dir) + "\n\n";
  const auto line = [&](std::string_view name, const std::string& value) {
    out += style.bold(fmt::format("{:<12}", name)) + value + "\n";
  };
  line("type", c.model_type);
  line("parameters", parameters_text(summary));
  if (c.fp8.rows != 0) line("storage", fp8_text(c));
  line("layers", layers_text(c));
  line("attention",
       fmt::format("{} heads, latent {}, rope {}, nope {}, v {}, {}", c.heads, kLatentDim, kRopeDim,
                   c.nope_dim, c.v_dim, c.q_lora > 0 ? fmt::format("q_lora {}", c.q_lora) : "no q_lora"));
  line("experts", experts_text(c));
  line("context", with_commas(c.max_position) + " tokens");
  Table table(
      {"cache", "bytes a token a layer", "bytes a token", fmt::format("tokens in {} GiB", options.gib)});
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    table.add_row({std::string(label(format)), with_commas(token_bytes(format)),
                   with_commas(token_bytes(format) * c.num_layers),
                   with_commas(tokens_that_fit(format, c.num_layers, options.gib))});
  }
  write_stdout(out + "\n" + table.text(style));
}

int inspect(const InspectOptions& options) {
  apply(options.common);
  const std::string dir = find_model(options.common.model);
  const CheckpointSummary summary = summarize_checkpoint(dir);
  if (options.common.json) {
    write_stdout(to_json(dir, summary, options.gib).dump(2) + "\n");
  } else {
    print_text(dir, summary, options);
  }
  return 0;
}

}  // namespace

Command add_inspect(CLI::App& program) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* app = program.add_subcommand("inspect", "Show what a checkpoint is and what its cache costs");
  add_model_option(*app, options->common);
  constexpr double kMostGib = 1 << 20;
  app->add_option("--gib", options->gib, "count the tokens that fit in this many GiB of cache")
      ->check(finite_number(0, false, kMostGib))
      ->option_text("N")
      ->capture_default_str();
  add_output_options(*app, options->common);
  app->footer(
      "Reads config.json and the headers of the safetensors files, never the weights; a folder with\n"
      "only a config.json works too.\n\nExample:\n  snapmla inspect models/tiny-mla --gib 16");
  return {.app = app, .run = [options] { return inspect(*options); }};
}

}  // namespace snapmla::apps
