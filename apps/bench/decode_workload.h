// decode, ready to be timed: main kernel and combine over a filled cache, the plan made beforehand.
#pragma once

#include "bench/op_workloads.h"
#include "bench/tensors.h"
#include "bench/workload.h"

namespace snapmla::apps {

class DecodeWorkload final : public Workload {
 public:
  DecodeWorkload(Backend& backend, const BenchPoint& point, int num_sets, Stream stream);
  void call(int set, Stream stream) override;
  void call_with_quantize(int set, Stream stream) override;
  [[nodiscard]] bool has_quantize() const override { return fp8_; }
  std::optional<RowErrors> check(Stream stream) override;

 private:
  [[nodiscard]] DecodeParams params(int set) const;

  Backend& backend_;
  BenchShape shape_;
  bool fp8_;
  std::int64_t num_rows_;  ///< of the batch
  FilledPool pool_;
  BlockTables tables_;
  Queries queries_;
  OwnPlan plan_;
  DeviceBuffer out_;
  DeviceBuffer lse_;
  DeviceBuffer workspace_;
};

}  // namespace snapmla::apps
