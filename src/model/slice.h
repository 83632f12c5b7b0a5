// A part of a model, as a config: what one GPU of several would hold, or fewer layers. For dummy weights only, since
// the weights of a checkpoint are those of its whole model.
//
// Layers: N of the L there are. Where the first D are dense and experts follow, a slice that simply kept the first N
// would have too many dense ones; it keeps round(D N / L) of them, at least 1, and the layers right behind the D. So
// its time a step stands for N / L of the whole model's. LongCat-Flash's layers are kept in pairs.
//
// Experts: rank r of n has experts [r E / n, (r + 1) E / n) and the router's rows for them, all other weights whole,
// as in data-parallel attention with expert-parallel FFNs. Each of its tokens chooses its top_k among them, without
// groups. In a balanced load over n ranks with B tokens each, a rank's experts get n B top_k / n pairs of token and
// expert, evenly: what they get here. Sending tokens between ranks is not part of it.
#pragma once

#include <string>

#include "model/config.h"
#include "snapmla/engine.h"

namespace snapmla {

/// Throws Error(kInvalidArgument) where there is no such part, naming the rule.
ModelConfig slice_config(const ModelConfig& whole, const ModelSlice& slice);

/// The config of a folder's model, or of a part of it. Throws as load_config does, and Error(kInvalidArgument) for a
/// part of a model whose weights are not dummy.
ModelConfig load_config(const std::string& dir, LoadFormat format, const ModelSlice& slice);

}  // namespace snapmla
