#include "bench/workload.h"

#include <algorithm>

#include "bench/decode_workload.h"
#include "bench/op_workloads.h"
#include "core/check.h"

namespace snapmla::apps {
namespace {

// Replacement in the last-level cache is not least-recently-used, so twice its size would leave lines of the last
// round behind; of a single set, two sizes are taken as cold.
constexpr std::int64_t kCachesOfOneSet = 2;
constexpr std::int64_t kCachesOfAllSets = 4;
constexpr int kMaxSets = 1024;

int sets_beside(std::int64_t set_bytes, std::int64_t l2_bytes) {
  if (set_bytes >= kCachesOfOneSet * l2_bytes) return 1;
  const std::int64_t wanted = (kCachesOfAllSets * l2_bytes + set_bytes - 1) / set_bytes;
  return static_cast<int>(std::min<std::int64_t>(wanted, kMaxSets));
}

}  // namespace

void Workload::call_with_quantize(int /*set*/, Stream /*stream*/) {
  SNAPMLA_ASSERT(has_quantize());
}

std::optional<RowErrors> Workload::check(Stream /*stream*/) {
  return std::nullopt;
}

Footprint footprint(const BenchPoint& point, std::int64_t l2_bytes) {
  const BenchShape& shape = point.shape;
  const std::int64_t batch = shape.batch();
  const std::int64_t rows = batch * shape.s * shape.heads;
  Footprint size;
  switch (point.op) {
    case BenchOp::kDecode: {
      const std::int64_t set_bytes = shape.num_pages() * page_bytes(point.format);
      size.num_sets = sets_beside(set_bytes, l2_bytes);
      size.cache_bytes = size.num_sets * set_bytes;
      // Queries in both formats and the output; partials of a batch that every SM cuts once.
      constexpr std::int64_t kRowBytes = 4 * kTokenDim + 3 * kLatentDim;
      constexpr std::int64_t kMostWorkers = 256;
      size.other_bytes = rows * kRowBytes + (batch + kMostWorkers) * shape.s * shape.heads * 4 * kTokenDim;
      break;
    }
    case BenchOp::kFetchKv: {
      const std::int64_t set_bytes = shape.num_pages() * page_bytes(point.format);
      size.num_sets = sets_beside(set_bytes, l2_bytes);
      size.cache_bytes = size.num_sets * set_bytes;
      size.other_bytes = shape.num_tokens() * token_bytes(CacheFormat::kBf16);
      break;
    }
    case BenchOp::kAppendKv:
      size.num_sets = l2_bytes > 0 ? kAppendSets : 1;
      size.cache_bytes = append_pages(batch * shape.s, size.num_sets) * page_bytes(point.format);
      size.other_bytes = batch * shape.s * token_bytes(CacheFormat::kBf16);
      break;
    case BenchOp::kQuantizeQ:
      size.other_bytes = rows * (token_bytes(CacheFormat::kBf16) + token_bytes(CacheFormat::kFp8));
      break;
    case BenchOp::kPlan:
      break;
  }
  return size;
}

std::unique_ptr<Workload> make_workload(Backend& backend, const BenchPoint& point, std::int64_t l2_bytes,
                                        Stream stream) {
  const int num_sets = footprint(point, l2_bytes).num_sets;
  switch (point.op) {
    case BenchOp::kDecode:
      return std::make_unique<DecodeWorkload>(backend, point, num_sets, stream);
    case BenchOp::kQuantizeQ:
      return std::make_unique<QuantizeWorkload>(backend, point.shape, stream);
    case BenchOp::kAppendKv:
      return std::make_unique<AppendWorkload>(backend, point, num_sets, stream);
    case BenchOp::kFetchKv:
      return std::make_unique<FetchWorkload>(backend, point, num_sets, stream);
    case BenchOp::kPlan:
      return std::make_unique<PlanWorkload>(backend, point.shape, stream);
  }
  return nullptr;
}

}  // namespace snapmla::apps
