#include "bench/op_workloads.h"

#include <algorithm>
#include <vector>

#include "core/bf16.h"

namespace snapmla::apps {
namespace {

constexpr std::int64_t kMostAppendPages = 8192;

}  // namespace

std::int64_t append_pages(std::int64_t tokens, int num_sets) {
  const std::int64_t slots = tokens * num_sets;
  return std::max((slots + kPageTokens - 1) / kPageTokens, std::min(slots, kMostAppendPages));
}

Queries::Queries(Backend& backend, const BenchShape& shape, float deviation, Stream stream)
    : batch_(shape.batch()),
      s_(shape.s),
      heads_(shape.heads),
      latent_(to_device(backend, random_values(batch_ * s_ * heads_ * kLatentDim, deviation, 1), stream)),
      rope_(to_device(backend, random_values(batch_ * s_ * heads_ * kRopeDim, deviation, 2), stream)),
      table_(backend, batch_ * s_, stream),
      latent8_(backend, batch_ * s_ * heads_ * kLatentDim),
      rope_scaled_(backend, batch_ * s_ * heads_ * kRopeDim * 2),
      scale_(backend, batch_ * s_ * heads_ * 4) {}

QuantizeQParams Queries::params() const {
  return {.q_latent = {latent_.data(), DType::kBF16, {batch_, s_, heads_, kLatentDim}},
          .q_rope = {rope_.data(), DType::kBF16, {batch_, s_, heads_, kRopeDim}},
          .rope = table_.params(batch_, s_),
          .q_latent_out = {latent8_.data(), DType::kE4M3, {batch_, s_, heads_, kLatentDim}},
          .q_rope_out = {rope_scaled_.data(), DType::kBF16, {batch_, s_, heads_, kRopeDim}},
          .q_scale_out = {scale_.data(), DType::kF32, {batch_, s_, heads_}}};
}

OwnPlan::OwnPlan(Backend& backend, const BenchShape& shape, Stream stream)
    : seq_lens_(to_device(backend, shape.seq_lens(), stream)) {
  const std::int64_t batch = shape.batch();
  const PlanShape sizes = make_plan_shape(
      backend,
      {.batch = static_cast<int>(batch), .max_seq_len = shape.longest(), .rows = shape.s * shape.heads});
  work_items_ = DeviceBuffer(backend, std::int64_t{16} * sizes.max_items);
  worker_offsets_ = DeviceBuffer(backend, std::int64_t{4} * (sizes.num_workers + 1));
  split_offsets_ = DeviceBuffer(backend, 4 * (batch + 1));
  params_ = {.seq_lens = {seq_lens_.data(), DType::kI32, {batch}},
             .plan = {.shape = sizes,
                      .work_items = {work_items_.data(), DType::kI32, {sizes.max_items, 4}},
                      .worker_offsets = {worker_offsets_.data(), DType::kI32, {sizes.num_workers + 1}},
                      .split_offsets = {split_offsets_.data(), DType::kI32, {batch + 1}}}};
  plan(backend, params_, stream);
}

BlockTables::BlockTables(Backend& backend, const BenchShape& shape, int num_sets, Stream stream)
    : batch_(shape.batch()), max_pages_((shape.longest() + kPageTokens - 1) / kPageTokens) {
  const std::vector<std::int32_t> pages = random_order(shape.num_pages() * num_sets, 2);
  const std::vector<std::int32_t> lens = shape.seq_lens();
  std::vector<std::int32_t> tables(static_cast<std::size_t>(num_sets * batch_ * max_pages_), -1);
  std::size_t next = 0;
  for (int set = 0; set < num_sets; ++set) {
    for (std::int64_t b = 0; b < batch_; ++b) {
      auto row = tables.begin() + (set * batch_ + b) * max_pages_;
      for (int t = 0; t < lens[static_cast<std::size_t>(b)]; t += kPageTokens) *row++ = pages[next++];
    }
  }
  tables_ = to_device(backend, tables, stream);
}

ConstTensorView BlockTables::view(int set) const {
  const auto* const first = static_cast<const std::int32_t*>(tables_.data()) + set * batch_ * max_pages_;
  return {first, DType::kI32, {batch_, max_pages_}};
}

QuantizeWorkload::QuantizeWorkload(Backend& backend, const BenchShape& shape, Stream stream)
    : backend_(backend), queries_(backend, shape, 1, stream) {
  const double rows = static_cast<double>(shape.batch()) * shape.s * shape.heads;
  bytes_ = rows * static_cast<double>(token_bytes(CacheFormat::kBf16) + token_bytes(CacheFormat::kFp8));
}

void QuantizeWorkload::call(int /*set*/, Stream stream) {
  quantize_q(backend_, queries_.params(), stream);
}

AppendWorkload::AppendWorkload(Backend& backend, const BenchPoint& point, int num_sets, Stream stream)
    : backend_(backend),
      tokens_(static_cast<std::int64_t>(point.shape.batch()) * point.shape.s),
      num_pages_(append_pages(tokens_, num_sets)),
      format_(point.format),
      table_(backend, tokens_, stream),
      kv_(to_device(backend, random_tokens(tokens_), stream)),
      norm_weight_(to_device(backend, std::vector<Bf16>(kLatentDim, to_bf16(1)), stream)),
      pages_(backend, num_pages_ * page_bytes(format_)) {
  num_sets_ = num_sets;
  bytes_ = static_cast<double>(tokens_ * (token_bytes(CacheFormat::kBf16) + token_bytes(format_)));
  const std::vector<std::int32_t> order = random_order(num_pages_, 3);
  std::vector<std::int32_t> slots;
  for (std::int64_t i = 0; i < tokens_ * num_sets; ++i) {
    slots.push_back(order[static_cast<std::size_t>(i % num_pages_)] * kPageTokens +
                    static_cast<std::int32_t>(i / num_pages_));
  }
  slots_ = to_device(backend, slots, stream);
}

void AppendWorkload::call(int set, Stream stream) {
  const auto* const slots = static_cast<const std::int32_t*>(slots_.data()) + set * tokens_;
  append_kv(backend_,
            {.kv = {kv_.data(), DType::kBF16, {tokens_, kTokenDim}},
             .norm_weight = {norm_weight_.data(), DType::kBF16, {kLatentDim}},
             .rope = table_.params(tokens_, 0),
             .slot_mapping = {slots, DType::kI32, {tokens_}},
             .cache = make_cache_view(format_, pages_.data(), num_pages_)},
            stream);
}

FetchWorkload::FetchWorkload(Backend& backend, const BenchPoint& point, int num_sets, Stream stream)
    : backend_(backend),
      batch_(point.shape.batch()),
      tokens_(point.shape.num_tokens()),
      pool_(backend, point.format, point.shape.num_pages() * num_sets, stream),
      tables_(backend, point.shape, num_sets, stream),
      latent_(backend, tokens_ * kLatentDim * 2),
      rope_(backend, tokens_ * kRopeDim * 2) {
  num_sets_ = num_sets;
  bytes_ = static_cast<double>(tokens_ * (token_bytes(point.format) + token_bytes(CacheFormat::kBf16)));
  starts_ = to_device(backend, std::vector<std::int32_t>(static_cast<std::size_t>(batch_)), stream);
  std::vector<std::int32_t> offsets{0};
  for (const std::int32_t len : point.shape.seq_lens()) offsets.push_back(offsets.back() + len);
  offsets_ = to_device(backend, offsets, stream);
}

void FetchWorkload::call(int set, Stream stream) {
  fetch_kv(backend_,
           {.cache = pool_.view(),
            .block_table = tables_.view(set),
            .starts = {starts_.data(), DType::kI32, {batch_}},
            .offsets = {offsets_.data(), DType::kI32, {batch_ + 1}},
            .latent_out = {latent_.data(), DType::kBF16, {tokens_, kLatentDim}},
            .rope_out = {rope_.data(), DType::kBF16, {tokens_, kRopeDim}}},
           stream);
}

PlanWorkload::PlanWorkload(Backend& backend, const BenchShape& shape, Stream stream)
    : backend_(backend), plan_(backend, shape, stream) {}

void PlanWorkload::call(int /*set*/, Stream stream) {
  plan(backend_, plan_.params(), stream);
}

}  // namespace snapmla::apps
