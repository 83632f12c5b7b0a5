// Where the time of a model's step goes: a backend in front of another that counts what each op has to move and to
// multiply, and puts an event before and behind it.
//
// Counting waits for the device, to see how many tokens an attention op attends to and how many experts a batch chose;
// timing must not wait. So a step is run once to be counted and then again to be timed, op by op in the same order. Ops
// are launched one by one for both, not as a graph: each then waits for the one before it to end, and what a graph gains by
// overlapping them is in no figure of the table.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "bench/device/device.h"
#include "bench/forwarding_backend.h"
#include "core/plain_ops.h"
#include "model/weights.h"

namespace snapmla::apps {

/// What a call has to read and write at least, and to multiply.
struct OpCost {
  double bytes = 0;
  double bf16_flops = 0;
  double fp8_flops = 0;
};

/// All calls of one name in a step.
struct OpProfile {
  std::string name;
  int calls = 0;
  double us = 0;
  OpCost cost{};
  double limit_us = 0;  ///< the sum of the calls' limits, at sustained rates
};

class Profiler final : public ForwardingBackend {
 public:
  enum class Mode : std::uint8_t { kOff, kCount, kTime };

  explicit Profiler(Backend& inner);
  ~Profiler() override;

  /// Products are called by what their weights are ("q_a", "experts"), not by the op.
  void name_weights(const ModelWeights& weights);

  /// kCount forgets what was counted and timed before; kTime follows it with the same step, any number of times.
  void set_mode(Mode mode);

  /// By falling time, each the mean over the timed steps. Without limits, limit_us is 0.
  [[nodiscard]] std::vector<OpProfile> profile(const DeviceLimits* limits);

  [[nodiscard]] bool supports_graphs() const override {
    return mode_ == Mode::kOff && ForwardingBackend::supports_graphs();
  }
  [[nodiscard]] const PlainOps& plain_ops() const override;
  void copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) override;
  void do_quantize_q(const QuantizeQParams& params, Stream stream) override;
  void do_append_kv(const AppendKvParams& params, Stream stream) override;
  void do_fetch_kv(const FetchKvParams& params, Stream stream) override;
  void do_plan(const PlanParams& params, Stream stream) override;
  void do_decode(const DecodeParams& params, Stream stream) override;
  void do_combine(const CombineParams& params, Stream stream) override;

 private:
  class Ops;
  struct Call {
    std::string name;
    OpCost cost;
  };
  struct Stamps {
    Event begin;
    Event end;
  };

  void measure(const std::string& name, Stream stream, const std::function<OpCost()>& cost,
               const std::function<void()>& call);
  [[nodiscard]] std::string name_of(const ConstTensorView& weight, const char* op) const;
  [[nodiscard]] std::vector<std::int32_t> read_ints(const ConstTensorView& view, Stream stream);
  void forget_times();

  Mode mode_ = Mode::kOff;
  std::map<const void*, std::string> weight_names_;
  std::vector<Call> calls_;     // of the counted step
  std::vector<Stamps> stamps_;  // of the timed steps, one behind the other
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> deterministic_ops_;
};

std::string profile_text(const std::vector<OpProfile>& profile);
nlohmann::ordered_json profile_json(const std::vector<OpProfile>& profile);

}  // namespace snapmla::apps
