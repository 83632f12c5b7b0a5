// What the commands share beside the command line: where the model is, what a cache costs, how numbers read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "snapmla/engine.h"

namespace snapmla::apps {

inline constexpr double kGibBytes = 1024.0 * 1024 * 1024;

/// Options that most commands share.
struct CommonOptions {
  std::string model;  ///< as given; empty: the bundled one
  std::string load_format = "auto";
  int num_layers = 0;
  std::string expert_parallel_slice = "0/1";
  std::string backend = "auto";
  std::string scale_rule = "pow2";
  int max_model_len = 0;
  std::int64_t num_pages = 0;
  double gpu_memory_utilization = 0.9;
  std::int64_t kv_cache_memory_bytes = 0;
  int max_num_seqs = 8;
  int max_num_batched_tokens = 512;
  bool enable_prefix_caching = true;
  bool deterministic = false;
  bool json = false;
  std::string color = "auto";
  std::string log_level = "warning";
  int num_threads = 0;
};

/// `given`, or the bundled model: ./models/tiny-mla, else <prefix>/share/snapmla/models/tiny-mla beside the
/// program. Throws Error(kNotFound) naming the places looked at.
std::string find_model(const std::string& given);

/// The last part of a path, for titles.
std::string base_name(const std::string& path);

ScaleRule parse_scale_rule(std::string_view name);
LoadFormat parse_load_format(std::string_view name);
/// The part of the model that the options name. "r/n" is checked already.
ModelSlice model_slice(const CommonOptions& options);

/// Engine options from the common ones; throws where the backend cannot run.
EngineOptions engine_options(const CommonOptions& options, CacheFormat format);

/// What was loaded and what the cache holds, in a line.
std::string startup_text(const Engine& engine);

/// Tokens that fit in `gib` GiB of whole pages, each page serving all layers.
std::int64_t tokens_that_fit(CacheFormat format, int layers, double gib);

/// 1234567 as "1,234,567".
std::string with_commas(std::int64_t number);
/// Parameters as "5.31M", "671B".
std::string short_count(std::int64_t number);

/// "671B parameters (653B in FP8), 641.20 GiB of weights".
std::string weights_text(std::int64_t parameters, std::int64_t fp8_parameters, std::int64_t bytes);

/// "FP8" or "BF16".
std::string_view label(CacheFormat format);

/// Reads a text file (or standard input for "-"). Throws Error kNotFound or kIo; a signal ends it (Stop).
std::string read_text(const std::string& path);

/// One line of any text: line breaks become spaces, other control characters are dropped.
std::string one_line(std::string_view text);

}  // namespace snapmla::apps
