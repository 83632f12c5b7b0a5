// The CUDA backend where it is not built: supported() says why, everything else throws with that reason.
#include "core/check.h"
#include "snapmla/backend.h"

namespace snapmla {
namespace {

constexpr const char* kReason =
    "this build has no CUDA backend (CPU only); for Hopper (sm_90a) build with nvcc: cmake --preset cuda";

class NoCuda final : public Backend {
 public:
  [[nodiscard]] std::string_view name() const override { return "cuda"; }
  [[nodiscard]] std::string device_name() const override { return "none"; }
  [[nodiscard]] Support supported() const override { return {.ok = false, .reason = kReason}; }
  [[nodiscard]] Support supports_models() const override { return supported(); }
  [[nodiscard]] int num_workers(int /*rows*/) const override { unsupported(); }
  [[nodiscard]] std::int64_t free_memory() const override { unsupported(); }
  [[nodiscard]] void* allocate(std::int64_t /*bytes*/) override { unsupported(); }
  void deallocate(void* /*pointer*/) noexcept override {}
  [[nodiscard]] void* allocate_host(std::int64_t /*bytes*/) override { unsupported(); }
  void deallocate_host(void* /*pointer*/) noexcept override {}
  void copy(void* /*dst*/, const void* /*src*/, std::int64_t /*bytes*/, CopyKind /*kind*/,
            Stream /*stream*/) override {
    unsupported();
  }
  Stream create_stream() override { unsupported(); }
  void destroy_stream(Stream /*stream*/) noexcept override {}
  void synchronize(Stream /*stream*/) override { unsupported(); }
  [[nodiscard]] bool supports_graphs() const override { return false; }
  void begin_capture(Stream /*stream*/) override { unsupported(); }
  Graph end_capture(Stream /*stream*/) override { unsupported(); }
  void launch(Graph /*graph*/, Stream /*stream*/) override { unsupported(); }
  void destroy_graph(Graph /*graph*/) noexcept override {}
  Event create_event() override { unsupported(); }
  void destroy_event(Event /*event*/) noexcept override {}
  void record(Event /*event*/, Stream /*stream*/) override { unsupported(); }
  void wait(Event /*event*/) override { unsupported(); }
  double elapsed_us(Event /*begin*/, Event /*end*/) override { unsupported(); }
  [[nodiscard]] const PlainOps& plain_ops() const override { unsupported(); }
  std::int64_t do_decode_workspace_bytes(const PlanShape& /*shape*/, int /*s*/,
                                         int /*heads*/) const override {
    unsupported();
  }
  void do_quantize_q(const QuantizeQParams& /*params*/, Stream /*stream*/) override { unsupported(); }
  void do_append_kv(const AppendKvParams& /*params*/, Stream /*stream*/) override { unsupported(); }
  void do_fetch_kv(const FetchKvParams& /*params*/, Stream /*stream*/) override { unsupported(); }
  void do_plan(const PlanParams& /*params*/, Stream /*stream*/) override { unsupported(); }
  void do_decode(const DecodeParams& /*params*/, Stream /*stream*/) override { unsupported(); }
  void do_combine(const CombineParams& /*params*/, Stream /*stream*/) override { unsupported(); }

 private:
  [[noreturn]] static void unsupported() { fail(ErrorCode::kUnsupported, "cuda", kReason); }
};

}  // namespace

Backend& cuda() {
  static NoCuda backend;
  return backend;
}

}  // namespace snapmla
