// Seeded random weights for a config alone, made on the backend by fill_random: for measurements where a checkpoint
// is too large to have. What they say is noise; how long it takes to say it is not.
//
// Activations stay of the size that a trained model has, to any depth: embeddings are of deviation 1, projections of
// 1 / sqrt(inputs), norms 1 (times the factors some families put on them), and what a branch adds to the residual
// stream (W_O, down projections) of 1 / sqrt(inputs * 2 layers), so that all branches together add about as much as
// the embedding brought. Routers spread tokens evenly, as trained ones are balanced to; their biases are 0.
//
// Where the config says FP8 in blocks of 128 x 128, the matrices that such checkpoints have in FP8 are e4m3 where a
// checkpoint's would stay so (fp8_weights.h), their scales all equal.
//
// A weight is a function of (seed, what it is, its layer, its place in the tensor of the whole model). So the experts
// of an expert-parallel slice (model/slice.h) are those that the whole model has at their places.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "model/weights.h"
#include "snapmla/backend.h"

namespace snapmla {

/// Enqueued on a stream of its own, and done on return. Throws Error(kOutOfMemory).
ModelWeights make_dummy_weights(Backend& backend, const ModelConfig& config, std::uint64_t seed = 0);

}  // namespace snapmla
