// The functions of attention.h: every rule of the contracts, checked once for all backends, then the
// backend's own work.
#include "snapmla/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/check.h"
#include "snapmla/backend.h"

namespace snapmla {
namespace {

constexpr int kMaxBatch = 4096;
constexpr std::int64_t kAny = -1;  // in an expected shape: any extent

bool has_shape(const ConstTensorView& view, std::initializer_list<std::int64_t> shape) {
  if (view.rank() != static_cast<int>(shape.size())) return false;
  int i = 0;
  for (const std::int64_t extent : shape) {
    if (extent != kAny && view.dim(i) != extent) return false;
    ++i;
  }
  return true;
}

std::string shape_text(std::initializer_list<std::int64_t> shape, std::string_view names) {
  std::string text = "[";
  std::size_t begin = 0;
  for (const std::int64_t extent : shape) {
    const std::size_t end = std::min(names.find(',', begin), names.size());
    const std::string_view name = names.substr(begin, end - begin);
    if (begin != 0) text += ", ";
    text += name;
    if (extent != kAny && std::to_string(extent) != name) text += '=' + std::to_string(extent);
    begin = end + 1;
  }
  return text + ']';
}

enum class Layout { kDense, kStrided };

// `names` are the dimensions' names for the message: "batch,s,heads,512".
void require_tensor(std::string_view op, const char* argument, const ConstTensorView& view, DType dtype,
                    std::initializer_list<std::int64_t> shape, std::string_view names,
                    Layout layout = Layout::kDense) {
  SNAPMLA_REQUIRE(view.present() && view.dtype() == dtype && has_shape(view, shape), op, argument,
                  " must be ", dtype, ' ', shape_text(shape, names), "; got ", view);
  if (layout == Layout::kDense) {
    SNAPMLA_REQUIRE(view.is_contiguous(), op, argument, " must be dense; got ", view);
  } else {
    SNAPMLA_REQUIRE(view.stride(view.rank() - 1) == 1, op, argument,
                    " must be dense in its last dimension; got ", view);
  }
}

void require_plane(std::string_view op, const char* name, const CachePlane& plane, std::int64_t row_bytes,
                   std::int64_t alignment) {
  SNAPMLA_REQUIRE(plane.data != nullptr, op, "cache.", name, " must not be null");
  SNAPMLA_REQUIRE(reinterpret_cast<std::uintptr_t>(plane.data) % 16 == 0 && plane.page_stride % 16 == 0, op,
                  "cache.", name, " must have a 16-byte aligned pointer and page_stride; got page_stride ",
                  plane.page_stride);
  SNAPMLA_REQUIRE(plane.row_stride >= row_bytes && plane.row_stride % alignment == 0, op, "cache.", name,
                  " must have a row_stride that is a multiple of ", alignment, " and at least ", row_bytes,
                  "; got ", plane.row_stride);
  SNAPMLA_REQUIRE(plane.page_stride >= plane.row_stride * (kPageTokens - 1) + row_bytes, op, "cache.", name,
                  " must have a page_stride that holds 64 rows of ", plane.row_stride, " bytes; got ",
                  plane.page_stride);
}

void require_cache(std::string_view op, const CacheView& cache) {
  SNAPMLA_REQUIRE(cache.num_pages >= 0, op, "cache.num_pages must not be negative; got ", cache.num_pages);
  if (cache.num_pages == 0) return;
  if (cache.format == CacheFormat::kFp8) {
    require_plane(op, "latent", cache.latent, kLatentDim, 16);
    require_plane(op, "rope", cache.rope, std::int64_t{2} * kRopeDim, 16);
    require_plane(op, "scale", cache.scale, 4, 4);
  } else {
    require_plane(op, "latent", cache.latent, std::int64_t{2} * kLatentDim, 16);
    require_plane(op, "rope", cache.rope, std::int64_t{2} * kRopeDim, 16);
  }
}

void require_rope(std::string_view op, const RopeParams& rope, std::initializer_list<std::int64_t> positions,
                  std::string_view names) {
  if (!rope.cos_sin.present()) return;
  require_tensor(op, "rope.cos_sin", rope.cos_sin, DType::kF32, {kAny, kRopeDim}, "num_positions,64");
  require_tensor(op, "rope.positions", rope.positions, DType::kI32, positions, names);
}

void require_rows(std::string_view op, std::int64_t batch, std::int64_t s, std::int64_t heads) {
  SNAPMLA_REQUIRE(batch >= 1 && batch <= kMaxBatch, op, "batch must be 1 to ", kMaxBatch, "; got ", batch);
  SNAPMLA_REQUIRE(heads >= 1 && heads <= kMaxHeads, op, "heads must be 1 to ", kMaxHeads, "; got ", heads);
  SNAPMLA_REQUIRE(s >= 1 && s * heads <= kMaxRows, op, "s must be at least 1 and s * heads at most ",
                  kMaxRows, "; got s ", s, ", heads ", heads);
}

/// Query rows [batch, s, heads, width] that a kernel can walk as [batch, s * heads, width].
void require_query(std::string_view op, const char* argument, const ConstTensorView& view, DType dtype,
                   std::initializer_list<std::int64_t> shape, std::string_view names) {
  require_tensor(op, argument, view, dtype, shape, names, Layout::kStrided);
  const bool even = view.dim(1) <= 1 || view.dim(2) <= 1 || view.stride(1) == view.dim(2) * view.stride(2);
  SNAPMLA_REQUIRE(even, op, argument, " must have evenly spaced rows (s, heads) in a request; got ", view);
}

void require_plan(std::string_view op, const PlanView& plan, std::int64_t batch) {
  const PlanShape& shape = plan.shape;
  SNAPMLA_REQUIRE(shape.batch == batch, op, "plan must be made for batch ", batch, "; got ", shape.batch);
  SNAPMLA_REQUIRE(shape.num_workers >= 1 && shape.max_items >= shape.batch, op,
                  "plan.shape must come from make_plan_shape; got num_workers ", shape.num_workers,
                  ", max_items ", shape.max_items);
  require_tensor(op, "plan.work_items", plan.work_items, DType::kI32, {shape.max_items, 4}, "max_items,4");
  require_tensor(op, "plan.worker_offsets", plan.worker_offsets, DType::kI32, {shape.num_workers + 1},
                 "num_workers+1");
  require_tensor(op, "plan.split_offsets", plan.split_offsets, DType::kI32, {shape.batch + 1}, "batch+1");
}

void require_out(std::string_view op, const TensorView& out, const TensorView& lse, std::int64_t batch,
                 std::int64_t s, std::int64_t heads) {
  SNAPMLA_REQUIRE(out.present() && (out.dtype() == DType::kBF16 || out.dtype() == DType::kF32) &&
                      has_shape(out, {batch, s, heads, kLatentDim}) && out.is_contiguous(),
                  op, "out must be dense bf16 or f32 ",
                  shape_text({batch, s, heads, kLatentDim}, "batch,s,heads,512"), "; got ",
                  ConstTensorView(out));
  require_tensor(op, "lse", lse, DType::kF32, {batch, s, heads}, "batch,s,heads");
}

}  // namespace

void quantize_q(Backend& backend, const QuantizeQParams& params, Stream stream) {
  constexpr std::string_view kOp = "quantize_q";
  require_tensor(kOp, "q_latent", params.q_latent, DType::kBF16, {kAny, kAny, kAny, kLatentDim},
                 "batch,s,heads,512", Layout::kStrided);
  const std::int64_t batch = params.q_latent.dim(0);
  const std::int64_t s = params.q_latent.dim(1);
  const std::int64_t heads = params.q_latent.dim(2);
  require_rows(kOp, batch, s, heads);
  require_tensor(kOp, "q_rope", params.q_rope, DType::kBF16, {batch, s, heads, kRopeDim}, "batch,s,heads,64",
                 Layout::kStrided);
  require_rope(kOp, params.rope, {batch, s}, "batch,s");
  require_tensor(kOp, "q_latent_out", params.q_latent_out, DType::kE4M3, {batch, s, heads, kLatentDim},
                 "batch,s,heads,512");
  require_tensor(kOp, "q_rope_out", params.q_rope_out, DType::kBF16, {batch, s, heads, kRopeDim},
                 "batch,s,heads,64");
  require_tensor(kOp, "q_scale_out", params.q_scale_out, DType::kF32, {batch, s, heads}, "batch,s,heads");
  backend.do_quantize_q(params, stream);
}

void append_kv(Backend& backend, const AppendKvParams& params, Stream stream) {
  constexpr std::string_view kOp = "append_kv";
  require_tensor(kOp, "kv", params.kv, DType::kBF16, {kAny, kTokenDim}, "tokens,576", Layout::kStrided);
  const std::int64_t tokens = params.kv.dim(0);
  if (params.norm_weight.present()) {
    require_tensor(kOp, "norm_weight", params.norm_weight, DType::kBF16, {kLatentDim}, "512");
    SNAPMLA_REQUIRE(std::isfinite(params.norm_eps) && params.norm_eps >= 0, kOp,
                    "norm_eps must be finite and not negative; got ", params.norm_eps);
  }
  require_rope(kOp, params.rope, {tokens}, "tokens");
  const ConstTensorView& slots = params.slot_mapping;
  SNAPMLA_REQUIRE(slots.present() && (slots.dtype() == DType::kI32 || slots.dtype() == DType::kI64) &&
                      has_shape(slots, {tokens}) && slots.is_contiguous(),
                  kOp, "slot_mapping must be int32 or int64 ", shape_text({tokens}, "tokens"), "; got ",
                  slots);
  require_cache(kOp, params.cache);
  backend.do_append_kv(params, stream);
}

void fetch_kv(Backend& backend, const FetchKvParams& params, Stream stream) {
  constexpr std::string_view kOp = "fetch_kv";
  require_cache(kOp, params.cache);
  require_tensor(kOp, "starts", params.starts, DType::kI32, {kAny}, "ranges");
  const std::int64_t ranges = params.starts.dim(0);
  require_tensor(kOp, "block_table", params.block_table, DType::kI32, {ranges, kAny}, "ranges,max_pages",
                 Layout::kStrided);
  require_tensor(kOp, "offsets", params.offsets, DType::kI32, {ranges + 1}, "ranges+1");
  require_tensor(kOp, "latent_out", params.latent_out, DType::kBF16, {kAny, kLatentDim}, "total,512",
                 Layout::kStrided);
  require_tensor(kOp, "rope_out", params.rope_out, DType::kBF16, {params.latent_out.dim(0), kRopeDim},
                 "total,64", Layout::kStrided);
  backend.do_fetch_kv(params, stream);
}

PlanShape make_plan_shape(const Backend& backend, const PlanOptions& options) {
  constexpr std::string_view kOp = "plan";
  SNAPMLA_REQUIRE(options.batch >= 1 && options.batch <= kMaxBatch, kOp, "batch must be 1 to ", kMaxBatch,
                  "; got ", options.batch);
  SNAPMLA_REQUIRE(options.max_seq_len >= 1 && options.max_seq_len <= kMaxSeqLen, kOp,
                  "max_seq_len must be 1 to ", kMaxSeqLen, "; got ", options.max_seq_len);
  SNAPMLA_REQUIRE(options.rows >= 0 && options.rows <= kMaxRows, kOp, "rows (s * heads) must be 0 to ",
                  kMaxRows, "; got ", options.rows);
  SNAPMLA_REQUIRE(options.num_workers >= 0, kOp, "num_workers must not be negative; got ",
                  options.num_workers);
  SNAPMLA_REQUIRE(options.fixed_split_tokens >= 0 && options.fixed_split_tokens % kPageTokens == 0, kOp,
                  "fixed_split_tokens must be 0 or a positive multiple of 64; got ",
                  options.fixed_split_tokens);
  PlanShape shape{.batch = options.batch,
                  .num_workers = options.num_workers > 0 ? options.num_workers
                                                         : backend.num_workers(std::max(1, options.rows)),
                  .fixed_split_tokens = std::min(options.fixed_split_tokens, kMaxSeqLen)};
  if (shape.fixed_split_tokens > 0) {
    const int splits = (options.max_seq_len + shape.fixed_split_tokens - 1) / shape.fixed_split_tokens;
    shape.max_items = options.batch * splits;
  } else {
    shape.max_items =
        options.batch + shape.num_workers - 1;  // a border between workers cuts at most one request
  }
  return shape;
}

void plan(Backend& backend, const PlanParams& params, Stream stream) {
  constexpr std::string_view kOp = "plan";
  require_tensor(kOp, "seq_lens", params.seq_lens, DType::kI32, {kAny}, "batch");
  require_plan(kOp, params.plan, params.seq_lens.dim(0));
  backend.do_plan(params, stream);
}

std::int64_t decode_workspace_bytes(const Backend& backend, const PlanShape& shape, int s, int heads) {
  require_rows("decode", shape.batch, s, heads);
  return backend.do_decode_workspace_bytes(shape, s, heads);
}

void decode(Backend& backend, const DecodeParams& params, Stream stream) {
  constexpr std::string_view kOp = "decode";
  require_cache(kOp, params.cache);
  const bool fp8 = params.cache.format == CacheFormat::kFp8;
  require_query(kOp, "q_latent", params.q_latent, fp8 ? DType::kE4M3 : DType::kBF16,
                {kAny, kAny, kAny, kLatentDim}, "batch,s,heads,512");
  const std::int64_t batch = params.q_latent.dim(0);
  const std::int64_t s = params.q_latent.dim(1);
  const std::int64_t heads = params.q_latent.dim(2);
  require_rows(kOp, batch, s, heads);
  require_query(kOp, "q_rope", params.q_rope, DType::kBF16, {batch, s, heads, kRopeDim}, "batch,s,heads,64");
  if (fp8) require_tensor(kOp, "q_scale", params.q_scale, DType::kF32, {batch, s, heads}, "batch,s,heads");
  require_tensor(kOp, "block_table", params.block_table, DType::kI32, {batch, kAny}, "batch,max_pages",
                 Layout::kStrided);
  require_tensor(kOp, "seq_lens", params.seq_lens, DType::kI32, {batch}, "batch");
  SNAPMLA_REQUIRE(std::isfinite(params.softmax_scale), kOp, "softmax_scale must be finite; got ",
                  params.softmax_scale);
  require_plan(kOp, params.plan, batch);
  require_out(kOp, params.out, params.lse, batch, s, heads);
  const std::int64_t bytes =
      backend.do_decode_workspace_bytes(params.plan.shape, static_cast<int>(s), static_cast<int>(heads));
  SNAPMLA_REQUIRE(
      bytes == 0 || (params.workspace.present() && params.workspace.dtype() == DType::kU8 &&
                     params.workspace.is_contiguous() && params.workspace.num_elements() >= bytes),
      kOp, "workspace must be dense u8 of at least ", bytes, " bytes (decode_workspace_bytes); got ",
      ConstTensorView(params.workspace));
  backend.do_decode(params, stream);
}

void combine(Backend& backend, const CombineParams& params, Stream stream) {
  constexpr std::string_view kOp = "combine";
  const TensorView& out = params.out;
  SNAPMLA_REQUIRE(out.present() && out.rank() == 4, kOp,
                  "out must be bf16 or f32 [batch, s, heads, 512]; got ", ConstTensorView(out));
  require_rows(kOp, out.dim(0), out.dim(1), out.dim(2));
  require_out(kOp, out, params.lse, out.dim(0), out.dim(1), out.dim(2));
  const std::int64_t rows = out.dim(1) * out.dim(2);
  require_tensor(kOp, "partial_out", params.partial_out, DType::kF32, {kAny, rows, kLatentDim},
                 "partials,rows,512");
  require_tensor(kOp, "partial_lse", params.partial_lse, DType::kF32, {params.partial_out.dim(0), rows},
                 "partials,rows");
  require_tensor(kOp, "split_offsets", params.split_offsets, DType::kI32, {out.dim(0) + 1}, "batch+1");
  backend.do_combine(params, stream);
}

}  // namespace snapmla
