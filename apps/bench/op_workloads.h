// The ops beside decode, ready to be timed: as an engine calls them, rope and norm fused in.
#pragma once

#include <cstdint>

#include "bench/tensors.h"
#include "bench/workload.h"

namespace snapmla::apps {

inline constexpr int kAppendSets = 64;

/// Pages of append_kv's pool: a page for each token where that is at most 8,192, as in a decode step.
std::int64_t append_pages(std::int64_t tokens, int num_sets);

/// Query rows in bf16 and what quantize_q makes of them. Queries were just computed, so they lie in the cache: one
/// set.
class Queries {
 public:
  Queries(Backend& backend, const BenchShape& shape, float deviation, Stream stream);
  [[nodiscard]] QuantizeQParams params() const;

 private:
  std::int64_t batch_;
  std::int64_t s_;
  std::int64_t heads_;
  DeviceBuffer latent_;
  DeviceBuffer rope_;
  RopeTable table_;
  DeviceBuffer latent8_;
  DeviceBuffer rope_scaled_;
  DeviceBuffer scale_;
};

/// A plan's tensors for the lengths of a shape.
class OwnPlan {
 public:
  OwnPlan(Backend& backend, const BenchShape& shape, Stream stream);
  [[nodiscard]] const PlanParams& params() const { return params_; }

 private:
  DeviceBuffer seq_lens_;
  DeviceBuffer work_items_;
  DeviceBuffer worker_offsets_;
  DeviceBuffer split_offsets_;
  PlanParams params_{};
};

/// Block tables of all sets: each takes its pages from one random order of the pool.
class BlockTables {
 public:
  BlockTables(Backend& backend, const BenchShape& shape, int num_sets, Stream stream);
  [[nodiscard]] ConstTensorView view(int set) const;  ///< [batch, max_pages]

 private:
  std::int64_t batch_;
  std::int64_t max_pages_;
  DeviceBuffer tables_;
};

class QuantizeWorkload final : public Workload {
 public:
  QuantizeWorkload(Backend& backend, const BenchShape& shape, Stream stream);
  void call(int set, Stream stream) override;

 private:
  Backend& backend_;
  Queries queries_;
};

class AppendWorkload final : public Workload {
 public:
  AppendWorkload(Backend& backend, const BenchPoint& point, int num_sets, Stream stream);
  void call(int set, Stream stream) override;

 private:
  Backend& backend_;
  std::int64_t tokens_;
  std::int64_t num_pages_;
  CacheFormat format_;
  RopeTable table_;
  DeviceBuffer kv_;
  DeviceBuffer norm_weight_;
  DeviceBuffer slots_;
  DeviceBuffer pages_;
};

class FetchWorkload final : public Workload {
 public:
  FetchWorkload(Backend& backend, const BenchPoint& point, int num_sets, Stream stream);
  void call(int set, Stream stream) override;

 private:
  Backend& backend_;
  std::int64_t batch_;
  std::int64_t tokens_;
  FilledPool pool_;
  BlockTables tables_;
  DeviceBuffer starts_;
  DeviceBuffer offsets_;
  DeviceBuffer latent_;
  DeviceBuffer rope_;
};

class PlanWorkload final : public Workload {
 public:
  PlanWorkload(Backend& backend, const BenchShape& shape, Stream stream);
  void call(int set, Stream stream) override;

 private:
  Backend& backend_;
  OwnPlan plan_;
};

}  // namespace snapmla::apps
