#include "bench/lockstep.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "bench/tensors.h"
#include "core/mix_bits.h"
#include "core/plain_ops.h"
#include "engine/page_pool.h"
#include "terminal.h"

namespace snapmla::apps {

Lockstep::Lockstep(Backend& backend, std::unique_ptr<Model> model, const LockstepShape& shape,
                   std::uint64_t seed)
    : backend_(backend),
      model_(std::move(model)),
      shape_(shape),
      num_pages_(shape.batch * pages_for(std::int64_t{shape.context} + shape.output)),
      stream_(backend),
      sampler_(backend, shape.batch) {
  const CacheFormat format = model_->limits().cache_format;
  for (int layer = 0; layer < model_->config().num_layers; ++layer) {
    pools_.emplace_back(backend, num_pages_ * page_bytes(format));
    caches_.push_back(make_cache_view(format, pools_.back().data(), num_pages_));
    fill(layer, seed);
  }
  make_tables(seed);
}

// The tokens of whole pages, one after the other: which request a page belongs to is the tables' matter.
void Lockstep::fill(int layer, std::uint64_t seed) {
  constexpr std::int64_t kChunkPages = 256;
  const CacheView& cache = caches_[static_cast<std::size_t>(layer)];
  const std::int64_t most_tokens = std::min(num_pages_, kChunkPages) * kPageTokens;
  std::vector<std::int32_t> slots(static_cast<std::size_t>(most_tokens));
  std::iota(slots.begin(), slots.end(), 0);
  const DeviceBuffer slot_mapping = to_device(backend_, slots, stream_.get());
  const DeviceBuffer kv(backend_, most_tokens * kTokenDim * size_of(DType::kBF16));
  for (std::int64_t first = 0; first < num_pages_; first += kChunkPages) {
    const std::int64_t pages = std::min(num_pages_ - first, kChunkPages);
    const TensorView tokens(kv.data(), DType::kBF16, {pages * kPageTokens, kTokenDim});
    const auto begin = static_cast<std::uint64_t>((layer * num_pages_ + first) * kPageTokens * kTokenDim);
    backend_.plain_ops().fill_random(tokens, {.seed = mix_bits(seed), .first = begin}, stream_.get());
    // The same slots every time, of a pool that begins at the next page.
    auto* const base = static_cast<std::byte*>(cache.latent.data) + first * page_bytes(cache.format);
    append_kv(backend_,
              {.kv = tokens,
               .slot_mapping = {slot_mapping.data(), DType::kI32, {pages * kPageTokens}},
               .scale_rule = model_->limits().scale_rule,
               .cache = make_cache_view(cache.format, base, pages)},
              stream_.get());
  }
  backend_.synchronize(stream_.get());
}

void Lockstep::make_tables(std::uint64_t seed) {
  batch_.max_pages = static_cast<int>(num_pages_ / shape_.batch);
  batch_.block_table = random_order(num_pages_, seed);
  choices_.resize(static_cast<std::size_t>(shape_.batch));
  const auto vocab = static_cast<std::uint64_t>(model_->config().vocab);
  for (int request = 0; request < shape_.batch; ++request) {
    const std::uint64_t drawn = mix_bits(mix_bits(seed) + static_cast<std::uint64_t>(request));
    batch_.tokens.push_back(static_cast<std::int32_t>(drawn % vocab));
  }
}

std::vector<double> Lockstep::run(int steps) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds;
  Clock::time_point last = Clock::now();
  const auto stamp = [&] {
    const Clock::time_point now = Clock::now();
    seconds.push_back(std::chrono::duration<double>(now - last).count());
    last = now;
  };
  batch_.sampled = {};
  for (int i = 0; i < steps; ++i) {
    stop_if_asked();
    enqueue(i % shape_.output);
    if (i > 0) {
      collect();
      stamp();
    }
    // From now on the tokens are those that the step just enqueued will choose.
    batch_.sampled = sampler_.tokens();
    for (int request = 0; request < shape_.batch; ++request) {
      batch_.tokens[static_cast<std::size_t>(request)] = -1 - request;
    }
  }
  collect();
  stamp();
  return seconds;
}

void Lockstep::enqueue(int done) {
  batch_.seq_lens.assign(static_cast<std::size_t>(shape_.batch), shape_.context + done + 1);
  model_->decode(batch_, caches_, stream_.get());
  sampler_.enqueue(model_->logits(), choices_, stream_.get());
}

void Lockstep::collect() {
  const std::vector<Chosen> chosen = sampler_.collect();
  std::transform(chosen.begin(), chosen.end(), batch_.tokens.begin(),
                 [](const Chosen& choice) { return choice.token; });
}

}  // namespace snapmla::apps
