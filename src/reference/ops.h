// The reference attention ops: plain loops that read like the formulas of the public header. Arguments are
// checked already. They check what only the contents can show (page indices, slots, lengths) and throw.
#pragma once

#include "snapmla/attention.h"

namespace snapmla {

class PlainOps;

namespace reference_ops {

void quantize_q(const QuantizeQParams& params);
void append_kv(const AppendKvParams& params);
void fetch_kv(const FetchKvParams& params);
void plan(const PlanParams& params);
std::int64_t decode_workspace_bytes(const PlanShape& shape, int s, int heads);
void decode(const DecodeParams& params);
void combine(const CombineParams& params);

const PlainOps& plain_ops();

}  // namespace reference_ops
}  // namespace snapmla
