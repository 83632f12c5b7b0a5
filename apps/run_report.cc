#include "run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common.h"

namespace snapmla::apps {
namespace {

std::string rate_text(double rate) {
  return rate > 0 ? fmt::format("{:.1f}", rate) : "-";
}

std::string ratio_text(double a, double b) {
  return a > 0 && b > 0 ? fmt::format("{:.2f}x", a / b) : "-";
}

}  // namespace

double Generation::prefill_rate() const {
  return stats.prefill_seconds > 0 ? static_cast<double>(stats.prompt_tokens) / stats.prefill_seconds : 0;
}

double Generation::decode_rate() const {
  return stats.decode_seconds > 0 ? static_cast<double>(stats.decode_steps) / stats.decode_seconds : 0;
}

std::optional<int> first_difference(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
  const auto [in_a, in_b] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  if (in_a == a.end() && in_b == b.end()) return std::nullopt;
  return static_cast<int>(in_a - a.begin());
}

std::string run_text(const Generation& generation, const Style& style) {
  const Generation& g = generation;
  const std::int64_t bytes = token_bytes(g.format);
  std::string out;
  const auto line = [&](std::string_view name, const std::string& value) {
    out += style.dim(fmt::format("{:<9}{}", name, value)) + "\n";
  };
  line("prompt", fmt::format("{} tokens, {} tokens/s", with_commas(g.stats.prompt_tokens),
                             rate_text(g.prefill_rate())));
  line("decode", fmt::format("{} tokens, {} tokens/s, ended by {}", with_commas(std::ssize(g.tokens)),
                             rate_text(g.decode_rate()), to_string(g.finish)));
  line("cache", fmt::format("{}: {} bytes a token a layer, {} in {} layers; {} tokens fit in one GiB",
                            label(g.format), with_commas(bytes), with_commas(bytes * g.layers), g.layers,
                            with_commas(tokens_that_fit(g.format, g.layers, 1))));
  return out;
}

nlohmann::ordered_json run_json(const Generation& generation) {
  const Generation& g = generation;
  return {{"kv_cache_dtype", to_string(g.format)},
          {"text", g.text},
          {"tokens", g.tokens},
          {"finish", to_string(g.finish)},
          {"prompt_tokens", g.stats.prompt_tokens},
          {"prefill_tokens_per_second", g.prefill_rate()},
          {"decode_tokens_per_second", g.decode_rate()},
          {"cache_bytes_per_token_per_layer", token_bytes(g.format)},
          {"cache_bytes_per_token", token_bytes(g.format) * g.layers},
          {"tokens_per_gib", tokens_that_fit(g.format, g.layers, 1)}};
}

std::string compare_text(const Generation& fp8, const Generation& bf16, const Difference& difference,
                         const Style& style) {
  Table table({"", "FP8", "BF16", "FP8 / BF16"});
  const auto count_row = [&table](const std::string& name, std::int64_t a, std::int64_t b) {
    table.add_row(
        {name, with_commas(a), with_commas(b), ratio_text(static_cast<double>(a), static_cast<double>(b))});
  };
  const auto rate_row = [&table](const std::string& name, double a, double b) {
    table.add_row({name, rate_text(a), rate_text(b), ratio_text(a, b)});
  };
  const std::int64_t bytes_fp8 = token_bytes(CacheFormat::kFp8);
  const std::int64_t bytes_bf16 = token_bytes(CacheFormat::kBf16);
  const int layers = fp8.layers;
  count_row("cache bytes a token a layer", bytes_fp8, bytes_bf16);
  count_row(fmt::format("cache bytes a token, {} layers", layers), bytes_fp8 * layers, bytes_bf16 * layers);
  count_row("tokens that fit in one GiB", tokens_that_fit(CacheFormat::kFp8, layers, 1),
            tokens_that_fit(CacheFormat::kBf16, layers, 1));
  rate_row("prefill, tokens/s", fp8.prefill_rate(), bf16.prefill_rate());
  rate_row("decode, tokens/s", fp8.decode_rate(), bf16.decode_rate());

  std::string out = table.text(style) + "\n";
  if (!difference.first) {
    out += style.green(fmt::format("Both texts are the same {} tokens.", bf16.tokens.size())) + "\n";
  } else {
    out += fmt::format("The texts part at token {} (counted from 0) of {}.\n", *difference.first,
                       std::max(fp8.tokens.size(), bf16.tokens.size()));
  }
  const Figures& along = difference.along;
  if (along.tokens() > 0) {
    const Mean agreement = along.top1_agreement();
    const auto same = std::llround(agreement.value * static_cast<double>(along.tokens()));
    out += fmt::format(
        "Along the BF16 text, {} decode steps: mean KL {:.2g} nats, log-probability of the token\n"
        "off by at most {:.2g}, same most likely token in {} of {} steps ({:.1f} %).\n",
        along.tokens(), along.kl().value, along.max_logprob_difference(), same, along.tokens(),
        100 * agreement.value);
  }
  return out;
}

nlohmann::ordered_json difference_json(const Difference& difference) {
  const Figures& along = difference.along;
  nlohmann::ordered_json json;
  json["first_differing_token"] =
      difference.first ? nlohmann::ordered_json(*difference.first) : nlohmann::ordered_json(nullptr);
  json["decode_steps_compared"] = along.tokens();
  if (along.tokens() > 0) {
    json["mean_kl"] = along.kl().value;
    json["max_logprob_difference"] = along.max_logprob_difference();
    json["top1_agreement"] = along.top1_agreement().value;
  }
  return json;
}

}  // namespace snapmla::apps
