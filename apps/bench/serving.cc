#include "bench/serving.h"

#include <chrono>
#include <map>
#include <utility>

#include "eval_stats.h"
#include "terminal.h"

namespace snapmla::apps {
namespace {

constexpr double kMilliseconds = 1000;  // in a second

struct Times {
  double first = 0;
  double last = 0;
  int tokens = 0;
};

}  // namespace

std::vector<Request> make_requests(const Load& load, int vocab) {
  Random random(load.seed);
  const auto tokens = [&](int count) {
    std::vector<std::int32_t> result(static_cast<std::size_t>(count));
    for (std::int32_t& token : result) token = random.below(vocab);
    return result;
  };
  const std::vector<std::int32_t> prefix = tokens(load.prefix_len);
  std::vector<Request> requests;
  for (int i = 0; i < load.num_prompts; ++i) {
    std::vector<std::int32_t> prompt = prefix;
    const std::vector<std::int32_t> own = tokens(load.input_len);
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back({.prompt_tokens = std::move(prompt),
                        .max_tokens = load.output_len,
                        .ignore_eos = true,
                        .forced_tokens = {}});
  }
  return requests;
}

Served serve(EngineLoop& engine, const std::vector<Request>& requests) {
  using Clock = std::chrono::steady_clock;
  Served served;
  const Clock::time_point start = Clock::now();
  const auto elapsed_ms = [&] {
    return kMilliseconds * std::chrono::duration<double>(Clock::now() - start).count();
  };
  std::map<RequestId, Times> times;
  for (const Request& request : requests) engine.submit(request);
  while (!engine.idle()) {
    stop_if_asked();
    const EngineStats at = engine.stats();
    const double began = elapsed_ms();
    const std::vector<TokenEvent> events = engine.step();
    const double now = elapsed_ms();
    const EngineStats then = engine.stats();
    if (then.decode_steps > at.decode_steps && then.prompt_tokens == at.prompt_tokens) {
      served.step_ms.push_back(now - began);
    }
    for (const TokenEvent& event : events) {
      Times& request = times.try_emplace(event.request, Times{.first = now}).first->second;
      request.last = now;
      ++request.tokens;
    }
  }
  served.seconds = elapsed_ms() / kMilliseconds;
  for (const auto& [id, request] : times) {
    served.first_token_ms.push_back(request.first);
    if (request.tokens > 1) {
      served.output_token_ms.push_back((request.last - request.first) / (request.tokens - 1));
    }
  }
  served.stats = engine.stats();
  return served;
}

}  // namespace snapmla::apps
