// The attention ops: quantize_q, append_kv, fetch_kv, plan, decode, combine.
//
// Glossary (one word a thing, everywhere in this project)
//   batch        number of requests in a call, B
//   s            query tokens a request in a decode call (1, or more with speculative decoding), S
//   heads        query heads, H; all share the one latent KV head
//   rows         S * H query rows of a request
//   latent       the 512-wide compressed key/value (after its RMSNorm), and the query absorbed into its space
//   rope         the 64-wide positional part of query and key
//   page         64 cached tokens of one layer (format.h); a slot is page * 64 + offset
//   seq_len      cached tokens of a request, T; it counts the S tokens being decoded
//   block_table  page of each run of 64 tokens, a row a request
//   plan         which worker attends to which tokens; a split is one contiguous part of a request's tokens
//   lse          natural logarithm of the softmax denominator, including the softmax scale
//   scale        the multiplier that restores: real = stored * scale
//
// Decode, absorbed form (DeepSeek-V2, arXiv 2405.04434, section 2.1; quantized after SnapMLA, 2602.10718):
//     logit[t] = softmax_scale * (q_latent . latent[t] + q_rope . rope[t])      out = softmax(logit) . latent
// softmax_scale comes from the un-absorbed head dim, e.g. (128 + 64)^-0.5 times YaRN's mscale^2; not from 576.
//
// All functions: check their arguments on the host and throw Error(kInvalidArgument) before any work; enqueue
// on `stream` and return (reference: work is done on return); allocate nothing, never synchronise, and are
// safe inside graph capture (CUDA backend). Tensor contents are read when the work runs, so they must stay
// alive and unchanged until the stream has passed it. Outputs may not alias inputs. Thread safety: calls on
// different streams may run on different host threads. Results are bitwise repeatable: same inputs, plan and
// backend, same bits. "device" below means memory the backend can reach: plain host memory for the reference
// backend.
//
// Contents that only the device can see (block_table, slots, seq_lens) are checked by the reference backend,
// which throws; the CUDA backend does not read them on the host, so there they are the caller's promise. A build without
// NDEBUG asserts on the device that decode's pages lie in the pool.
//
// Example: tests/core/headers_test.cc appends 100 tokens and decodes one step over them with these six ops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "snapmla/format.h"
#include "snapmla/tensor.h"

namespace snapmla {

class Backend;
struct Stream;

inline constexpr int kMaxHeads = 128;       ///< heads in a call: 1 .. 128, any number
inline constexpr int kMaxRows = 1024;       ///< s * heads in a call
inline constexpr int kMaxSeqLen = 1 << 20;  ///< cached tokens of a request

/// RoPE as an op needs it. Each pair (a, b) of a row turns to (a cos - b sin, b cos + a sin), in fp32,
/// rounded to bf16 once. Pairs are (2i, 2i+1) if interleaved, else (i, i + 32), i = 0..31; the result stays
/// in the input's layout.
struct RopeParams {
  ConstTensorView
      cos_sin;  ///< [num_positions, 64] f32 device: 32 cosines, then 32 sines; absent: no rotation
  ConstTensorView
      positions;  ///< int32 device, a position per token, each in [0, num_positions); shape: see the op
  bool interleaved = true;  ///< DeepSeek checkpoints: true
};

struct QuantizeQParams {
  ConstTensorView q_latent{};  ///< [batch, s, heads, 512] bf16 device, any strides but the last
  ConstTensorView q_rope{};    ///< [batch, s, heads, 64] bf16 device, any strides but the last
  RopeParams rope{};           ///< optional; positions [batch, s]
  ScaleRule scale_rule = ScaleRule::kPowerOfTwo;
  TensorView q_latent_out{};  ///< [batch, s, heads, 512] e4m3 device, dense: e4m3(q_latent / scale)
  TensorView q_rope_out{};   ///< [batch, s, heads, 64] bf16 device, dense: bf16(bf16(rotated q_rope) / scale)
  TensorView q_scale_out{};  ///< [batch, s, heads] f32 device, dense: quantization_scale(max |q_latent|)
};

/// Quantizes query rows, one scale a (token, head), rotating the rope part first if asked.
/// Error bound: |stored * scale - real| <= 2^-4 |real| for |real| >= 2^-6 scale, <= 2^-10 scale below; held
/// by tests/reference/quantize_test.cc.
void quantize_q(Backend& backend, const QuantizeQParams& params, Stream stream);

struct AppendKvParams {
  ConstTensorView kv{};  ///< [tokens, 576] bf16 device, any row stride: latent before its norm, then rope
  ConstTensorView norm_weight{};  ///< [512] bf16 device; absent: the latent is already normed
  float norm_eps = 1e-6F;  ///< RMSNorm: x / sqrt(mean(x^2) + eps) * weight in fp32, rounded to bf16 once
  RopeParams rope{};       ///< optional; positions [tokens]
  ConstTensorView slot_mapping{};  ///< [tokens] int32 or int64 device: page * 64 + offset; -1 skips the token
  ScaleRule scale_rule = ScaleRule::kPowerOfTwo;
  CacheView cache{};  ///< written; two tokens of one call must not share a slot
};

/// Norm, RoPE, quantize (for FP8 pages) and scatter into the cache in one pass. The normed latent and the
/// rotated rope are rounded to bf16 first and quantized then, so a fused kernel equals the unfused path bit
/// for bit.
void append_kv(Backend& backend, const AppendKvParams& params, Stream stream);

struct FetchKvParams {
  CacheView cache{};
  ConstTensorView
      block_table;  ///< [ranges, max_pages] int32 device: the pages of the request each range lies in
  ConstTensorView starts{};  ///< [ranges] int32 device: first token of each range
  ConstTensorView
      offsets;  ///< [ranges + 1] int32 device, ascending: range i fills output rows offsets[i] .. [i+1]
  TensorView latent_out{};  ///< [total, 512] bf16 device, any row stride
  TensorView rope_out{};    ///< [total, 64] bf16 device, any row stride
};

/// Gathers and dequantizes token ranges (prefix-cache hits, chunked prefill): out = bf16(stored * scale),
/// which is exact with power-of-two scales (but for bf16's own range).
void fetch_kv(Backend& backend, const FetchKvParams& params, Stream stream);

/// How plan() splits, and the sizes that follow from it; made by make_plan_shape, the same for every step of
/// a graph.
struct PlanShape {
  int batch = 0;
  int num_workers = 0;         ///< work lists; on CUDA one for each SM, or group of SMs where rows > 64
  int fixed_split_tokens = 0;  ///< 0: balanced over workers; else every request is cut each so many tokens
  int max_items = 0;           ///< capacity of the work list
};

/// The plan's tensors. Filled by plan(), read by decode(); a plan serves all layers of a step.
struct PlanView {
  PlanShape shape{};
  TensorView work_items{};  ///< [max_items, 4] int32 device: request, first token, end token, partial (below)
  TensorView worker_offsets{};  ///< [num_workers + 1] int32 device: worker w does items [w] .. [w+1]
  TensorView
      split_offsets;  ///< [batch + 1] int32 device: request b owns partials [b] .. [b+1]; at least one each
};

struct PlanOptions {
  int batch = 0;        ///< 1 .. 4096
  int max_seq_len = 0;  ///< an upper bound of every seq_len this plan will see, 1 .. kMaxSeqLen
  int rows = 0;         ///< s * heads that the plan will serve, for the backend's own number; 0: at most 64
  int num_workers = 0;  ///< 0: the backend's own number for these rows
  int fixed_split_tokens =
      0;  ///< 0, or a multiple of 64: results of a request then do not depend on the rest of the batch
};

/// The sizes of a plan. Host only, cheap, no side effects.
PlanShape make_plan_shape(const Backend& backend, const PlanOptions& options);

struct PlanParams {
  ConstTensorView seq_lens{};  ///< [batch] int32 device, each 0 .. kMaxSeqLen
  PlanView plan{};             ///< tensors written
};

/// Cuts the batch into work items. Balanced: what the slowest worker does is kept small, and a second item on a
/// worker counts as 384 tokens; requests are cut at multiples of 128 tokens, into at most num_workers + batch - 1
/// items in all, and not at all where whole requests balance almost as well; short items may leave half of the
/// workers without work (the rule: src/core/plan_rule.h). Fixed: every request is cut each fixed_split_tokens. Every request has at least one
/// item, an empty one (first = end) where its seq_len is 0, so that its output is written. Both backends give
/// the same items. Runs on the device; no host sync.
void plan(Backend& backend, const PlanParams& params, Stream stream);

struct DecodeParams {
  // Query rows: q_latent and q_rope may be slices of one tensor, or have heads and requests swapped, as batched
  // products leave them: any stride of batch, and any of a row where the s * heads rows of a request are evenly
  // spaced. The cuda backend wants each row to begin at a multiple of 16 bytes.
  ConstTensorView q_latent{};  ///< [batch, s, heads, 512]: e4m3 for FP8 pages, bf16 for BF16 pages; device
  ConstTensorView q_rope{};    ///< [batch, s, heads, 64] bf16 device; divided by q_scale for FP8 pages
  ConstTensorView q_scale{};   ///< [batch, s, heads] f32 device, dense; FP8 pages only
  CacheView cache{};           ///< on the cuda backend, scale must be dense within a page (row_stride 4)
  ConstTensorView
      block_table;  ///< [batch, max_pages] int32 device; entries past ceil(seq_len / 64) are never read
  ConstTensorView seq_lens{};  ///< [batch] int32 device
  float softmax_scale = 0;     ///< finite; see above
  bool causal = true;          ///< query i of S sees the first seq_len - S + i + 1 tokens; else all
  PlanView plan{};             ///< as filled by plan() for these seq_lens
  TensorView out{};            ///< [batch, s, heads, 512] bf16 (or f32: no final rounding) device, dense
  TensorView lse{};            ///< [batch, s, heads] f32 device, dense
  TensorView workspace{};  ///< [decode_workspace_bytes()] u8 device, 256-byte aligned; contents are scratch
};

/// Bytes of DecodeParams::workspace for a plan and s * heads rows. Host only.
std::int64_t decode_workspace_bytes(const Backend& backend, const PlanShape& shape, int s, int heads);

/// Attention of S*H query rows a request over its cached tokens, splits combined: out and lse complete.
/// A row that sees no token gets out = 0 and lse = -inf. Slots past seq_len are never used: any bytes, NaN
/// codes included, may lie there. FP8 pages: P is quantized per row and block against the block's own range
/// after the value scale is folded in; partial sums of PV are promoted to fp32 each block, so the error does
/// not grow with seq_len. A block is a page (reference) or two (CUDA). Bounds: docs/numerics.md, held by
/// tests/reference/decode_test.cc and tests/cuda/decode_test.cc. BF16 pages: P is rounded to bf16.
void decode(Backend& backend, const DecodeParams& params, Stream stream);

struct CombineParams {
  ConstTensorView partial_out{};  ///< [partials, rows, 512] f32 device, dense: each normalised by its own lse
  ConstTensorView partial_lse{};  ///< [partials, rows] f32 device, dense; -inf marks an empty partial
  ConstTensorView split_offsets{};  ///< [batch + 1] int32 device: request b merges partials [b] .. [b+1]
  TensorView out{};                 ///< [batch, s, heads, 512] bf16 or f32 device, dense; rows = s * heads
  TensorView lse{};                 ///< [batch, s, heads] f32 device, dense
};

/// Merges partial attention results: lse = ln sum exp(lse_i), out = sum exp(lse_i - lse) out_i. decode() does
/// this itself; on its own it merges results of several devices (decode context parallelism).
void combine(Backend& backend, const CombineParams& params, Stream stream);

}  // namespace snapmla
