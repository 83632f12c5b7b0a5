#include "common.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "snapmla/backend.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

constexpr const char* kBundledModel = "models/tiny-mla";

class File {
 public:
  explicit File(const std::string& path)
      : owned_(path != "-"), fd_(owned_ ? open(path.c_str(), O_RDONLY | O_CLOEXEC) : STDIN_FILENO) {}
  ~File() {
    if (owned_ && fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] int fd() const { return fd_; }

 private:
  bool owned_;
  int fd_;
};

}  // namespace

std::string find_model(const std::string& given) {
  if (!given.empty()) return given;
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(fs::path(kBundledModel) / "config.json", error)) return kBundledModel;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path installed = program.parent_path().parent_path() / "share/snapmla" / kBundledModel;
  if (fs::exists(installed / "config.json", error)) return installed.string();
  fail(ErrorCode::kNotFound, "model", "no model named and the bundled one is neither in ", kBundledModel,
       " (from ", fs::current_path(error).string(), ") nor in ", installed.string(),
       "; give a Hugging Face folder as MODEL");
}

std::string base_name(const std::string& path) {
  const std::filesystem::path full = std::filesystem::path(path).lexically_normal();
  const std::string name = full.has_filename() ? full.filename() : full.parent_path().filename();
  return name.empty() || name == "." ? path : name;
}

ScaleRule parse_scale_rule(std::string_view name) {
  return name == "amax" ? ScaleRule::kAmax : ScaleRule::kPowerOfTwo;
}

LoadFormat parse_load_format(std::string_view name) {
  return name == "dummy" ? LoadFormat::kDummy : LoadFormat::kAuto;
}

ModelSlice model_slice(const CommonOptions& options) {
  const std::string& ranks = options.expert_parallel_slice;
  return {.num_layers = options.num_layers,
          .expert_rank = std::stoi(ranks),
          .expert_ranks = std::stoi(ranks.substr(ranks.find('/') + 1))};
}

EngineOptions engine_options(const CommonOptions& options, CacheFormat format) {
  EngineOptions engine{};
  engine.model_dir = find_model(options.model);
  engine.load_format = parse_load_format(options.load_format);
  engine.slice = model_slice(options);
  engine.backend = &backend_by_name(options.backend);
  engine.cache_format = format;
  engine.scale_rule = parse_scale_rule(options.scale_rule);
  engine.max_seq_len = options.max_model_len;
  engine.num_pages = options.num_pages;
  engine.max_batch = options.max_num_seqs;
  engine.prefill_chunk = options.max_num_batched_tokens;
  engine.enable_prefix_caching = options.enable_prefix_caching;
  engine.deterministic = options.deterministic;
  return engine;
}

std::string weights_text(std::int64_t parameters, std::int64_t fp8_parameters, std::int64_t bytes) {
  const std::string fp8 =
      fp8_parameters > 0 ? fmt::format(" ({} in FP8)", short_count(fp8_parameters)) : std::string();
  return fmt::format("{} parameters{}, {:.2f} GiB of weights", short_count(parameters), fp8,
                     static_cast<double>(bytes) / kGibBytes);
}

std::string startup_text(const Engine& engine) {
  const EngineOptions& options = engine.options();
  const EngineStats stats = engine.stats();
  const std::int64_t request_pages = (options.max_seq_len + kPageTokens - 1) / kPageTokens;
  return fmt::format("{} on {} ({}): {}; {} cache of {} tokens, {} requests of {}",
                     base_name(options.model_dir), options.backend->name(), options.backend->device_name(),
                     weights_text(stats.parameters, stats.fp8_parameters, stats.weight_bytes),
                     label(options.cache_format), with_commas(stats.pages_total * kPageTokens),
                     with_commas(stats.pages_total / request_pages), with_commas(options.max_seq_len));
}

std::int64_t tokens_that_fit(CacheFormat format, int layers, double gib) {
  const double page = static_cast<double>(page_bytes(format)) * layers;
  return static_cast<std::int64_t>(std::floor(gib * kGibBytes / page)) * kPageTokens;
}

std::string with_commas(std::int64_t number) {
  const std::string digits = fmt::format("{}", number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    const std::size_t left = digits.size() - i;
    if (i > 0 && left % 3 == 0 && digits[i - 1] != '-') text += ',';
    text += digits[i];
  }
  return text;
}

std::string short_count(std::int64_t number) {
  constexpr std::array kUnits{"", "K", "M", "B", "T"};
  auto value = static_cast<double>(number);
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{}", number) : fmt::format("{:.3g}{}", value, kUnits[unit]);
}

std::string_view label(CacheFormat format) {
  return format == CacheFormat::kFp8 ? "FP8" : "BF16";
}

std::string read_text(const std::string& path) {
  const File file(path);
  const std::string name = path == "-" ? "standard input" : path;
  if (file.fd() < 0) {
    const ErrorCode code = errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo;
    fail(code, "file", "cannot open ", name, ": ", std::strerror(errno));
  }
  std::string text;
  std::array<char, 1 << 16> buffer{};
  while (true) {
    const ssize_t count = read(file.fd(), buffer.data(), buffer.size());
    stop_if_asked();
    if (count == 0) return text;
    if (count > 0) {
      text.append(buffer.data(), static_cast<std::size_t>(count));
    } else if (errno != EINTR) {
      fail(ErrorCode::kIo, "file", "cannot read ", name, ": ", std::strerror(errno));
    }
  }
}

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    if (c == '\n' || c == '\r' || c == '\t') {
      line += ' ';
    } else if (static_cast<unsigned char>(c) >= 0x20U && c != '\x7f') {
      line += c;
    }
  }
  return line;
}

}  // namespace snapmla::apps
