// torch.ops.snapmla: the attention ops of snapmla/attention.h on torch tensors.
//
// CPU tensors run the reference backend, CUDA tensors the CUDA backend on their device's current stream. Each op
// that makes tensors exists twice: the plain overload allocates what it returns, `.out` writes what it is given and
// returns nothing. All rules are the core's; only what the core cannot see (devices, how a pool and a plan lie in
// tensors) is checked here, in call.cc. What each argument means: python/snapmla/ops.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "call.h"
#include "core/check.h"
#include "snapmla/attention.h"
#include "snapmla/version.h"

namespace snapmla::torch_ops {
namespace {

ScaleRule scale_rule_of(const char* op, const std::string& name) {
  SNAPMLA_REQUIRE(name == to_string(ScaleRule::kPowerOfTwo) || name == to_string(ScaleRule::kAmax), op,
                  "scale_rule must be pow2 or amax; got '", name, "'");
  return name == to_string(ScaleRule::kAmax) ? ScaleRule::kAmax : ScaleRule::kPowerOfTwo;
}

RopeParams rope_of(const Call& call, const OptionalTensor& cos_sin, const OptionalTensor& positions,
                   bool interleaved) {
  return {.cos_sin = call.view("rope.cos_sin", cos_sin),
          .positions = call.view("rope.positions", positions),
          .interleaved = interleaved};
}

/// The extent of a dimension, for the shape of an output; 0 where the op will refuse the tensor anyway.
std::int64_t extent(const Tensor& tensor, std::int64_t i) {
  return i < tensor.dim() ? tensor.sizes()[i] : 0;
}

ScalarType out_dtype_or_default(const std::optional<ScalarType>& dtype) {
  return dtype.value_or(ScalarType::BFloat16);
}

// quantize_q

struct Query {
  ConstTensorView latent;
  ConstTensorView rope;
};

/// The query rows, in two tensors or side by side in one of bf16.
Query query_of(const char* op, const Call& call, const Tensor& q_latent, const OptionalTensor& q_rope) {
  const TensorView q = call.view("q_latent", q_latent);
  if (q_rope) return {q, call.view("q_rope", q_rope)};
  SNAPMLA_REQUIRE(q.dtype() == DType::kBF16 && q.rank() == kMaxRank && q.dim(3) == kTokenDim, op,
                  "q_latent without q_rope must be bf16 [batch, s, heads, 576]; got ", ConstTensorView(q));
  const auto part = [&](std::int64_t begin, std::int64_t width) {
    return ConstTensorView(q.as<Bf16>() + begin * q.stride(3), DType::kBF16,
                           {q.dim(0), q.dim(1), q.dim(2), width},
                           {q.stride(0), q.stride(1), q.stride(2), q.stride(3)});
  };
  return {part(0, kLatentDim), part(kLatentDim, kRopeDim)};
}

void quantize_q_out(const Tensor& q_latent, const OptionalTensor& q_rope, const OptionalTensor& cos_sin,
                    const OptionalTensor& positions, bool interleaved, const std::string& scale_rule,
                    const Tensor& q_latent_out, const Tensor& q_rope_out, const Tensor& q_scale_out) {
  guarded([&] {
    const Call call("quantize_q", "q_latent", q_latent);
    const Query query = query_of("quantize_q", call, q_latent, q_rope);
    quantize_q(call.backend(),
               {.q_latent = query.latent,
                .q_rope = query.rope,
                .rope = rope_of(call, cos_sin, positions, interleaved),
                .scale_rule = scale_rule_of("quantize_q", scale_rule),
                .q_latent_out = call.view("q_latent_out", q_latent_out),
                .q_rope_out = call.view("q_rope_out", q_rope_out),
                .q_scale_out = call.view("q_scale_out", q_scale_out)},
               call.stream());
  });
}

std::tuple<NewTensor, NewTensor, NewTensor> quantize_q_new(const Tensor& q_latent,
                                                           const OptionalTensor& q_rope,
                                                           const OptionalTensor& cos_sin,
                                                           const OptionalTensor& positions, bool interleaved,
                                                           const std::string& scale_rule) {
  const Call call("quantize_q", "q_latent", q_latent);
  const std::int64_t batch = extent(q_latent, 0);
  const std::int64_t s = extent(q_latent, 1);
  const std::int64_t heads = extent(q_latent, 2);
  std::tuple<NewTensor, NewTensor, NewTensor> out{
      call.empty(ScalarType::Float8_e4m3fn, {batch, s, heads, kLatentDim}),
      call.empty(ScalarType::BFloat16, {batch, s, heads, kRopeDim}),
      call.empty(ScalarType::Float, {batch, s, heads})};
  quantize_q_out(q_latent, q_rope, cos_sin, positions, interleaved, scale_rule, std::get<0>(out),
                 std::get<1>(out), std::get<2>(out));
  return out;
}

// append_kv, fetch_kv

void append_kv_op(const Tensor& kv, const Tensor& slot_mapping, const Tensor& cache,
                  const OptionalTensor& cache_rope, const OptionalTensor& cache_scale,
                  const OptionalTensor& norm_weight, double norm_eps, const OptionalTensor& cos_sin,
                  const OptionalTensor& positions, bool interleaved, const std::string& scale_rule) {
  guarded([&] {
    const Call call("append_kv", "kv", kv);
    append_kv(call.backend(),
              {.kv = call.view("kv", kv),
               .norm_weight = call.view("norm_weight", norm_weight),
               .norm_eps = static_cast<float>(norm_eps),
               .rope = rope_of(call, cos_sin, positions, interleaved),
               .slot_mapping = call.view("slot_mapping", slot_mapping),
               .scale_rule = scale_rule_of("append_kv", scale_rule),
               .cache = call.cache(cache, cache_rope, cache_scale)},
              call.stream());
  });
}

void fetch_kv_out(const Tensor& cache, const OptionalTensor& cache_rope, const OptionalTensor& cache_scale,
                  const Tensor& block_table, const Tensor& starts, const Tensor& offsets,
                  const Tensor& latent_out, const Tensor& rope_out) {
  guarded([&] {
    const Call call("fetch_kv", "cache", cache);
    fetch_kv(call.backend(),
             {.cache = call.cache(cache, cache_rope, cache_scale),
              .block_table = call.view("block_table", block_table),
              .starts = call.view("starts", starts),
              .offsets = call.view("offsets", offsets),
              .latent_out = call.view("latent_out", latent_out),
              .rope_out = call.view("rope_out", rope_out)},
             call.stream());
  });
}

std::tuple<NewTensor, NewTensor> fetch_kv_new(const Tensor& cache, const OptionalTensor& cache_rope,
                                              const OptionalTensor& cache_scale, const Tensor& block_table,
                                              const Tensor& starts, const Tensor& offsets,
                                              std::int64_t total) {
  const Call call("fetch_kv", "cache", cache);
  guarded([&] { SNAPMLA_REQUIRE(total >= 0, "fetch_kv", "total must not be negative; got ", total); });
  std::tuple<NewTensor, NewTensor> out{call.empty(ScalarType::BFloat16, {total, kLatentDim}),
                                       call.empty(ScalarType::BFloat16, {total, kRopeDim})};
  fetch_kv_out(cache, cache_rope, cache_scale, block_table, starts, offsets, std::get<0>(out),
               std::get<1>(out));
  return out;
}

// plan

int to_int(const char* op, const char* name, std::int64_t value) {
  SNAPMLA_REQUIRE(value == static_cast<int>(value), op, name, " must fit in 32 bits; got ", value);
  return static_cast<int>(value);
}

/// num_workers and max_items of make_plan_shape, for the device and the batch of `seq_lens`.
std::tuple<std::int64_t, std::int64_t> plan_shape_op(const Tensor& seq_lens, std::int64_t max_seq_len,
                                                     std::int64_t rows, std::int64_t num_workers,
                                                     std::int64_t fixed_split_tokens) {
  return guarded([&] {
    constexpr const char* kOp = "plan";
    const Call call(kOp, "seq_lens", seq_lens);
    const PlanShape shape = make_plan_shape(
        call.backend(), {.batch = to_int(kOp, "batch", extent(seq_lens, 0)),
                         .max_seq_len = to_int(kOp, "max_seq_len", max_seq_len),
                         .rows = to_int(kOp, "rows", rows),
                         .num_workers = to_int(kOp, "num_workers", num_workers),
                         .fixed_split_tokens = to_int(kOp, "fixed_split_tokens", fixed_split_tokens)});
    return std::tuple<std::int64_t, std::int64_t>{shape.num_workers, shape.max_items};
  });
}

void plan_op(const Tensor& seq_lens, std::int64_t num_workers, std::int64_t fixed_split_tokens,
             const Tensor& plan_out) {
  guarded([&] {
    const Call call("plan", "seq_lens", seq_lens);
    plan(call.backend(),
         {.seq_lens = call.view("seq_lens", seq_lens),
          .plan = call.plan(plan_out, extent(seq_lens, 0), num_workers, fixed_split_tokens)},
         call.stream());
  });
}

// decode, combine

std::int64_t decode_workspace_bytes_op(const Tensor& plan, std::int64_t batch, std::int64_t num_workers,
                                       std::int64_t s, std::int64_t heads) {
  return guarded([&] {
    const Call call("decode", "plan", plan);
    return decode_workspace_bytes(call.backend(), call.plan(plan, batch, num_workers).shape,
                                  to_int("decode", "s", s), to_int("decode", "heads", heads));
  });
}

void decode_out(const Tensor& q_latent, const OptionalTensor& q_rope, const OptionalTensor& q_scale,
                const Tensor& cache, const OptionalTensor& cache_rope, const OptionalTensor& cache_scale,
                const Tensor& block_table, const Tensor& seq_lens, const Tensor& plan,
                std::int64_t num_workers, double softmax_scale, bool causal, const Tensor& out,
                const Tensor& lse, const OptionalTensor& workspace) {
  guarded([&] {
    const Call call("decode", "q_latent", q_latent);
    const Query query = query_of("decode", call, q_latent, q_rope);
    DecodeParams params{.q_latent = query.latent,
                        .q_rope = query.rope,
                        .q_scale = call.view("q_scale", q_scale),
                        .cache = call.cache(cache, cache_rope, cache_scale),
                        .block_table = call.view("block_table", block_table),
                        .seq_lens = call.view("seq_lens", seq_lens),
                        .softmax_scale = static_cast<float>(softmax_scale),
                        .causal = causal,
                        .plan = {},
                        .out = call.view("out", out),
                        .lse = call.view("lse", lse),
                        .workspace = {}};
    std::optional<NewTensor> scratch;
    if (const ConstTensorView& q = params.q_latent; q.rank() == 4) {  // else the core refuses it
      params.plan = call.plan(plan, q.dim(0), num_workers);
      if (!workspace) {
        const std::int64_t bytes =
            decode_workspace_bytes(call.backend(), params.plan.shape, to_int("decode", "s", q.dim(1)),
                                   to_int("decode", "heads", q.dim(2)));
        scratch = call.empty(ScalarType::Byte, {bytes});
      }
    }
    if (scratch || workspace)
      params.workspace = call.view("workspace", scratch ? Tensor(*scratch) : *workspace);
    decode(call.backend(), params, call.stream());
  });
}

std::tuple<NewTensor, NewTensor> decode_new(const Tensor& q_latent, const OptionalTensor& q_rope,
                                            const OptionalTensor& q_scale, const Tensor& cache,
                                            const OptionalTensor& cache_rope,
                                            const OptionalTensor& cache_scale, const Tensor& block_table,
                                            const Tensor& seq_lens, const Tensor& plan,
                                            std::int64_t num_workers, double softmax_scale, bool causal,
                                            const std::optional<ScalarType>& out_dtype) {
  const Call call("decode", "q_latent", q_latent);
  const std::int64_t batch = extent(q_latent, 0);
  const std::int64_t s = extent(q_latent, 1);
  const std::int64_t heads = extent(q_latent, 2);
  std::tuple<NewTensor, NewTensor> out{
      call.empty(out_dtype_or_default(out_dtype), {batch, s, heads, kLatentDim}),
      call.empty(ScalarType::Float, {batch, s, heads})};
  decode_out(q_latent, q_rope, q_scale, cache, cache_rope, cache_scale, block_table, seq_lens, plan,
             num_workers, softmax_scale, causal, std::get<0>(out), std::get<1>(out), std::nullopt);
  return out;
}

// The same for pages in one tensor: two arguments less, at 0.1 us for each None that Python passes.

void decode_records_out(const Tensor& q_latent, const OptionalTensor& q_rope, const OptionalTensor& q_scale,
                        const Tensor& cache, const Tensor& block_table, const Tensor& seq_lens,
                        const Tensor& plan, std::int64_t num_workers, double softmax_scale, bool causal,
                        const Tensor& out, const Tensor& lse, const OptionalTensor& workspace) {
  decode_out(q_latent, q_rope, q_scale, cache, std::nullopt, std::nullopt, block_table, seq_lens, plan,
             num_workers, softmax_scale, causal, out, lse, workspace);
}

std::tuple<NewTensor, NewTensor> decode_records_new(const Tensor& q_latent, const OptionalTensor& q_rope,
                                                    const OptionalTensor& q_scale, const Tensor& cache,
                                                    const Tensor& block_table, const Tensor& seq_lens,
                                                    const Tensor& plan, std::int64_t num_workers,
                                                    double softmax_scale, bool causal,
                                                    const std::optional<ScalarType>& out_dtype) {
  return decode_new(q_latent, q_rope, q_scale, cache, std::nullopt, std::nullopt, block_table, seq_lens, plan,
                    num_workers, softmax_scale, causal, out_dtype);
}

void combine_out(const Tensor& partial_out, const Tensor& partial_lse, const Tensor& split_offsets,
                 const Tensor& out, const Tensor& lse) {
  guarded([&] {
    const Call call("combine", "partial_out", partial_out);
    combine(call.backend(),
            {.partial_out = call.view("partial_out", partial_out),
             .partial_lse = call.view("partial_lse", partial_lse),
             .split_offsets = call.view("split_offsets", split_offsets),
             .out = call.view("out", out),
             .lse = call.view("lse", lse)},
            call.stream());
  });
}

std::tuple<NewTensor, NewTensor> combine_new(const Tensor& partial_out, const Tensor& partial_lse,
                                             const Tensor& split_offsets, std::int64_t s,
                                             const std::optional<ScalarType>& out_dtype) {
  const Call call("combine", "partial_out", partial_out);
  const std::int64_t rows = extent(partial_out, 1);
  guarded([&] {
    SNAPMLA_REQUIRE(s >= 1 && rows % s == 0, "combine",
                    "s must divide the rows (s * heads) of partial_out; got s ", s, ", rows ", rows);
  });
  const std::int64_t batch = std::max<std::int64_t>(0, extent(split_offsets, 0) - 1);
  std::tuple<NewTensor, NewTensor> out{
      call.empty(out_dtype_or_default(out_dtype), {batch, s, rows / s, kLatentDim}),
      call.empty(ScalarType::Float, {batch, s, rows / s})};
  combine_out(partial_out, partial_lse, split_offsets, std::get<0>(out), std::get<1>(out));
  return out;
}

// What is here

std::string version_op() {
  return SNAPMLA_VERSION;
}

/// Whether a backend ("reference" or "cuda") runs on the current device, why not, and the device's name.
std::tuple<bool, std::string, std::string> backend_support_op(const std::string& name) {
  return guarded([&] {
    SNAPMLA_REQUIRE(name == "reference" || name == "cuda", "backend", "name must be reference or cuda; got '",
                    name, "'");
    const Backend& backend = name == "cuda" ? cuda() : reference();
    const Support support = backend.supported();
    return std::tuple<bool, std::string, std::string>{support.ok, support.reason, backend.device_name()};
  });
}

}  // namespace
}  // namespace snapmla::torch_ops

#define SNAPMLA_CACHE "Tensor cache, Tensor? cache_rope, Tensor? cache_scale"
#define SNAPMLA_ROPE "Tensor? cos_sin=None, Tensor? positions=None, bool interleaved=True"
#define SNAPMLA_DECODE(pages)                                \
  "Tensor q_latent, Tensor? q_rope, Tensor? q_scale, " pages \
  ", Tensor block_table, Tensor seq_lens, Tensor plan, int num_workers, float softmax_scale, bool causal"
#define SNAPMLA_NEW "=True, ScalarType? out_dtype=None) -> (Tensor, Tensor)"
#define SNAPMLA_OUT ", Tensor(a!) out, Tensor(b!) lse, Tensor(c!)? workspace) -> ()"

STABLE_TORCH_LIBRARY(snapmla, library) {
  library.def("quantize_q(Tensor q_latent, Tensor? q_rope, " SNAPMLA_ROPE
              ", str scale_rule=\"pow2\") -> (Tensor, Tensor, Tensor)");
  library.def(
      "quantize_q.out(Tensor q_latent, Tensor? q_rope, Tensor? cos_sin, Tensor? positions, bool interleaved, "
      "str scale_rule, Tensor(a!) q_latent_out, Tensor(b!) q_rope_out, Tensor(c!) q_scale_out) -> ()");
  library.def(
      "append_kv(Tensor kv, Tensor slot_mapping, Tensor(a!) cache, Tensor(b!)? cache_rope, "
      "Tensor(c!)? cache_scale, Tensor? norm_weight=None, float norm_eps=1e-06, " SNAPMLA_ROPE
      ", str scale_rule=\"pow2\") -> ()");
  library.def("fetch_kv(" SNAPMLA_CACHE
              ", Tensor block_table, Tensor starts, Tensor offsets, SymInt total) -> (Tensor, Tensor)");
  library.def(
      "fetch_kv.out(" SNAPMLA_CACHE
      ", Tensor block_table, Tensor starts, Tensor offsets, Tensor(a!) latent_out, Tensor(b!) rope_out) "
      "-> ()");
  library.def(
      "plan_shape(Tensor seq_lens, int max_seq_len, int rows, int num_workers, int fixed_split_tokens) "
      "-> (int, int)");
  library.def("plan(Tensor seq_lens, int num_workers, int fixed_split_tokens, Tensor(a!) plan) -> ()");
  library.def("decode_workspace_bytes(Tensor plan, int batch, int num_workers, int s, int heads) -> int");
  library.def("decode(" SNAPMLA_DECODE(SNAPMLA_CACHE) SNAPMLA_NEW);
  library.def("decode.out(" SNAPMLA_DECODE(SNAPMLA_CACHE) SNAPMLA_OUT);
  library.def("decode.records(" SNAPMLA_DECODE("Tensor cache") SNAPMLA_NEW);
  library.def("decode.records_out(" SNAPMLA_DECODE("Tensor cache") SNAPMLA_OUT);
  library.def(
      "combine(Tensor partial_out, Tensor partial_lse, Tensor split_offsets, int s, "
      "ScalarType? out_dtype=None) -> (Tensor, Tensor)");
  library.def(
      "combine.out(Tensor partial_out, Tensor partial_lse, Tensor split_offsets, Tensor(a!) out, "
      "Tensor(b!) lse) -> ()");
  library.def("version() -> str");
  library.def("backend_support(str name) -> (bool, str, str)");
}

namespace snapmla::torch_ops {
namespace {

void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("quantize_q", &boxed<quantize_q_new>);
  library.impl("quantize_q.out", &boxed<quantize_q_out>);
  library.impl("append_kv", &boxed<append_kv_op>);
  library.impl("fetch_kv", &boxed<fetch_kv_new>);
  library.impl("fetch_kv.out", &boxed<fetch_kv_out>);
  library.impl("plan_shape", &boxed<plan_shape_op>);
  library.impl("plan", &boxed<plan_op>);
  library.impl("decode_workspace_bytes", &boxed<decode_workspace_bytes_op>);
  library.impl("decode", &boxed<decode_new>);
  library.impl("decode.out", &boxed<decode_out>);
  library.impl("decode.records", &boxed<decode_records_new>);
  library.impl("decode.records_out", &boxed<decode_records_out>);
  library.impl("combine", &boxed<combine_new>);
  library.impl("combine.out", &boxed<combine_out>);
}

}  // namespace
}  // namespace snapmla::torch_ops

STABLE_TORCH_LIBRARY_IMPL(snapmla, CPU, library) {
  snapmla::torch_ops::implement(library);
}
STABLE_TORCH_LIBRARY_IMPL(snapmla, CUDA, library) {
  snapmla::torch_ops::implement(library);
}
STABLE_TORCH_LIBRARY_IMPL(snapmla, CompositeExplicitAutograd, library) {
  library.impl("version", &snapmla::torch_ops::boxed<snapmla::torch_ops::version_op>);
  library.impl("backend_support", &snapmla::torch_ops::boxed<snapmla::torch_ops::backend_support_op>);
}
