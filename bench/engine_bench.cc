// Decode speed of the engine with a real model at short context: tokens a second of wall time. Every timed
// iteration is one step of `batch` requests, each between 32 and 256 tokens long; prefill is not timed. The
// model is the folder SNAPMLA_MODEL names, or the bundled one.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "snapmla/backend.h"
#include "snapmla/engine.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

constexpr int kPromptTokens = 32;
constexpr int kMaxSeqLen = 256;

std::string model_dir() {
  const char* given = std::getenv("SNAPMLA_MODEL");
  return given != nullptr ? given : SNAPMLA_SOURCE_DIR "/models/tiny-mla";
}

/// Fills the engine with requests and takes them past their prefill.
void start_requests(Engine& engine, int batch) {
  for (int i = 0; i < batch; ++i) {
    std::vector<std::int32_t> prompt;
    for (int t = 0; t < kPromptTokens; ++t) prompt.push_back(16 + (i * kPromptTokens + t) % 128);
    engine.submit({.prompt_tokens = prompt, .max_tokens = kMaxSeqLen, .ignore_eos = true});
  }
  while (engine.stats().running < batch) engine.step();
}

void decode_tokens(benchmark::State& state, CacheFormat format, int batch) {
  try {
    Engine engine(
        {.model_dir = model_dir(), .cache_format = format, .max_seq_len = kMaxSeqLen, .max_batch = batch});
    std::int64_t num_tokens = 0;
    for ([[maybe_unused]] const auto iteration : state) {
      if (engine.stats().running < batch) {
        state.PauseTiming();
        while (!engine.idle()) engine.step();
        start_requests(engine, batch);
        state.ResumeTiming();
      }
      num_tokens += static_cast<std::int64_t>(engine.step().size());
    }
    state.counters["tokens/s"] =
        benchmark::Counter(static_cast<double>(num_tokens), benchmark::Counter::kIsRate);
    state.SetLabel(std::string(engine.options().backend->device_name()));
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
}

BENCHMARK_CAPTURE(decode_tokens, fp8_batch1, CacheFormat::kFp8, 1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(decode_tokens, bf16_batch1, CacheFormat::kBf16, 1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(decode_tokens, fp8_batch8, CacheFormat::kFp8, 8)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK_CAPTURE(decode_tokens, bf16_batch8, CacheFormat::kBf16, 8)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace snapmla
