#include "study/decode_with_ops.h"

#include <algorithm>
#include <numeric>

#include "bench/tensors.h"
#include "core/device_buffer.h"

namespace snapmla::apps {
namespace {

/// All tokens of `rows` on pages 0, 1, 2 ..., in a pool of their own.
class Pool {
 public:
  Pool(Backend& backend, const AttentionRows& rows, ScaleRule rule)
      : num_pages_((rows.num_tokens() + kPageTokens - 1) / kPageTokens),
        pages_(backend, num_pages_ * page_bytes(CacheFormat::kFp8)),
        view_(make_cache_view(CacheFormat::kFp8, pages_.data(), num_pages_)) {
    const std::int64_t tokens = rows.num_tokens();
    std::vector<std::int32_t> slots(static_cast<std::size_t>(tokens));
    std::iota(slots.begin(), slots.end(), 0);
    const DeviceBuffer kv = to_device(backend, rows.keys, {});
    const DeviceBuffer slot_mapping = to_device(backend, slots, {});
    append_kv(backend,
              {.kv = {kv.data(), DType::kBF16, {tokens, kTokenDim}},
               .slot_mapping = {slot_mapping.data(), DType::kI32, {tokens}},
               .scale_rule = rule,
               .cache = view_},
              {});
    backend.synchronize({});
  }
  [[nodiscard]] const CacheView& view() const { return view_; }
  [[nodiscard]] std::int64_t num_pages() const { return num_pages_; }

 private:
  std::int64_t num_pages_;
  DeviceBuffer pages_;
  CacheView view_;
};

template <class T>
std::vector<T> repeated(const std::vector<T>& once, int copies) {
  std::vector<T> all;
  for (int copy = 0; copy < copies; ++copy) all.insert(all.end(), once.begin(), once.end());
  return all;
}

}  // namespace

std::vector<double> decode_with_ops(Backend& backend, const AttentionRows& rows, const OpsOptions& options) {
  const Pool pool(backend, rows, options.scale_rule);
  const auto batch = static_cast<std::int64_t>(rows.sees.size()) * options.copies;
  const std::int64_t heads = rows.heads;
  const std::int64_t num_rows = batch * heads;

  std::vector<std::int32_t> table(static_cast<std::size_t>(pool.num_pages()));
  std::iota(table.begin(), table.end(), 0);
  const std::vector<std::int32_t> lens = repeated(rows.sees, options.copies);
  const DeviceBuffer block_table = to_device(backend, repeated(table, static_cast<int>(batch)), {});
  const DeviceBuffer seq_lens = to_device(backend, lens, {});
  const DeviceBuffer q = to_device(backend, repeated(rows.queries, options.copies), {});
  const auto* q_data = static_cast<const Bf16*>(q.data());

  const DeviceBuffer q_latent(backend, num_rows * kLatentDim);
  const DeviceBuffer q_rope(backend, num_rows * kRopeDim * 2);
  const DeviceBuffer q_scale(backend, num_rows * 4);
  const QuantizeQParams quantize{
      .q_latent = {q_data,
                   DType::kBF16,
                   {batch, 1, heads, kLatentDim},
                   {heads * kTokenDim, heads * kTokenDim, kTokenDim, 1}},
      .q_rope = {q_data + kLatentDim,
                 DType::kBF16,
                 {batch, 1, heads, kRopeDim},
                 {heads * kTokenDim, heads * kTokenDim, kTokenDim, 1}},
      .scale_rule = options.scale_rule,
      .q_latent_out = {q_latent.data(), DType::kE4M3, {batch, 1, heads, kLatentDim}},
      .q_rope_out = {q_rope.data(), DType::kBF16, {batch, 1, heads, kRopeDim}},
      .q_scale_out = {q_scale.data(), DType::kF32, {batch, 1, heads}}};
  quantize_q(backend, quantize, {});

  const PlanShape shape =
      make_plan_shape(backend, {.batch = static_cast<int>(batch),
                                .max_seq_len = *std::max_element(lens.begin(), lens.end()),
                                .rows = rows.heads,
                                .num_workers = options.num_workers,
                                .fixed_split_tokens = options.fixed_split_tokens});
  const DeviceBuffer work_items(backend, std::int64_t{16} * shape.max_items);
  const DeviceBuffer worker_offsets(backend, std::int64_t{4} * (shape.num_workers + 1));
  const DeviceBuffer split_offsets(backend, 4 * (batch + 1));
  const PlanView plan_view{.shape = shape,
                           .work_items = {work_items.data(), DType::kI32, {shape.max_items, 4}},
                           .worker_offsets = {worker_offsets.data(), DType::kI32, {shape.num_workers + 1}},
                           .split_offsets = {split_offsets.data(), DType::kI32, {batch + 1}}};
  const ConstTensorView lens_view(seq_lens.data(), DType::kI32, {batch});
  plan(backend, {.seq_lens = lens_view, .plan = plan_view}, {});

  const DeviceBuffer out(backend, num_rows * kLatentDim * 4);
  const DeviceBuffer lse(backend, num_rows * 4);
  const DeviceBuffer workspace(
      backend, std::max<std::int64_t>(1, decode_workspace_bytes(backend, shape, 1, rows.heads)));
  decode(backend,
         {.q_latent = quantize.q_latent_out,
          .q_rope = quantize.q_rope_out,
          .q_scale = quantize.q_scale_out,
          .cache = pool.view(),
          .block_table = {block_table.data(), DType::kI32, {batch, pool.num_pages()}},
          .seq_lens = lens_view,
          .softmax_scale = rows.softmax_scale,
          .plan = plan_view,
          .out = {out.data(), DType::kF32, {batch, 1, heads, kLatentDim}},
          .lse = {lse.data(), DType::kF32, {batch, 1, heads}},
          .workspace = {workspace.data(), DType::kU8, {workspace.bytes()}}},
         {});
  const std::vector<float> host = to_host<float>(backend, out.data(), num_rows * kLatentDim, {});
  return {host.begin(), host.end()};
}

}  // namespace snapmla::apps
