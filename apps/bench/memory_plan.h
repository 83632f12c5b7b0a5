// What fits: bytes that a model takes beside its weights, and how many requests of a length the rest can hold.
#pragma once

#include <cstdint>
#include <memory>

#include "model/config.h"
#include "model/model.h"
#include "snapmla/backend.h"

namespace snapmla::apps {

/// Bytes of cache for requests of so many tokens each, in whole pages, of all layers.
std::int64_t cache_bytes(const ModelConfig& config, CacheFormat format, int requests, int tokens);

/// Bytes that a model of these limits allocates beside its weights: counted, by making one that gets no memory.
std::int64_t model_buffer_bytes(Backend& backend, const ModelConfig& config,
                                const std::shared_ptr<const ModelWeights>& weights,
                                const ModelLimits& limits);

/// The most requests of `tokens` tokens each, at most 4,096, whose cache and whose model's buffers fit into `bytes`;
/// 0 if not even one does. limits.max_batch is not read.
int largest_batch(Backend& backend, const ModelConfig& config,
                  const std::shared_ptr<const ModelWeights>& weights, const ModelLimits& limits, int tokens,
                  std::int64_t bytes);

}  // namespace snapmla::apps
