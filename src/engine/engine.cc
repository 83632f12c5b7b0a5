#include "snapmla/engine.h"

#include <utility>

#include "engine/engine_loop.h"
#include "model/config.h"
#include "model/slice.h"

namespace snapmla {

class Engine::Impl : public EngineLoop {
 public:
  using EngineLoop::EngineLoop;
};

Engine::Engine(const EngineOptions& options) {
  // What is quick to refuse comes first: config and options, then the tokenizer, then the weights.
  const ModelConfig config = load_config(options.model_dir, options.load_format, options.slice);
  const EngineOptions completed = complete_options(options, config);
  const bool may_lack_tokenizer = options.load_format == LoadFormat::kDummy;
  Tokenizer tokenizer = may_lack_tokenizer && !Tokenizer::is_in(options.model_dir)
                            ? Tokenizer::none()
                            : Tokenizer::load(options.model_dir);
  Backend& backend = *completed.backend;
  const std::int64_t free_before = backend.free_memory();
  std::unique_ptr<Model> model = Model::make(
      backend, config, Model::load_weights(backend, options.model_dir, config, options.load_format),
      model_limits(completed));
  impl_ = std::make_unique<Impl>(with_pages(completed, config, free_before), std::move(model),
                                 std::move(tokenizer));
}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

RequestId Engine::submit(const Request& request) {
  return impl_->submit(request);
}
std::vector<TokenEvent> Engine::step() {
  return impl_->step();
}
bool Engine::cancel(RequestId request) {
  return impl_->cancel(request);
}
bool Engine::idle() const {
  return impl_->idle();
}
EngineStats Engine::stats() const {
  return impl_->stats();
}
const ModelConfig& Engine::config() const {
  return impl_->config();
}
const Tokenizer& Engine::tokenizer() const {
  return impl_->tokenizer();
}
const EngineOptions& Engine::options() const {
  return impl_->options();
}
CacheView Engine::cache(int layer) const {
  return impl_->cache(layer);
}

const char* to_string(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace snapmla
