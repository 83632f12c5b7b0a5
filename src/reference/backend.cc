// The reference backend: host memory, no streams, no graphs, the ops of ops.h.
#include "snapmla/backend.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/check.h"
#include "core/parallel.h"
#include "reference/ops.h"

namespace snapmla {
namespace {

class ReferenceBackend final : public Backend {
 public:
  [[nodiscard]] std::string_view name() const override { return "reference"; }
  [[nodiscard]] std::string device_name() const override {
    return "CPU, " + std::to_string(num_threads()) + " threads";
  }
  [[nodiscard]] Support supported() const override { return {.ok = true, .reason = ""}; }
  [[nodiscard]] Support supports_models() const override { return {.ok = true, .reason = ""}; }
  [[nodiscard]] int num_workers(int /*rows*/) const override { return num_threads(); }
  [[nodiscard]] std::int64_t free_memory() const override {
    return std::int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  }

  [[nodiscard]] void* allocate(std::int64_t bytes) override {
    SNAPMLA_REQUIRE(bytes >= 0, "allocate", "bytes must not be negative; got ", bytes);
    if (bytes == 0) return nullptr;
    constexpr std::int64_t kAlignment = 256;
    void* pointer = nullptr;
    if (bytes <= INT64_MAX - kAlignment) {
      pointer = std::aligned_alloc(
          kAlignment, static_cast<std::size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment));
    }
    if (pointer == nullptr)
      fail(ErrorCode::kOutOfMemory, "allocate", "the host has no ", bytes, " bytes left");
    return pointer;
  }
  void deallocate(void* pointer) noexcept override { std::free(pointer); }

  [[nodiscard]] void* allocate_host(std::int64_t bytes) override { return allocate(bytes); }
  void deallocate_host(void* pointer) noexcept override { deallocate(pointer); }

  void copy(void* dst, const void* src, std::int64_t bytes, CopyKind /*kind*/, Stream /*stream*/) override {
    // By all threads: what it takes to fill new memory is its page faults.
    constexpr std::int64_t kPiece = 1 << 18;
    parallel_for((bytes + kPiece - 1) / kPiece, 1, [&](std::int64_t piece) {
      const std::int64_t begin = piece * kPiece;
      std::memcpy(static_cast<std::byte*>(dst) + begin, static_cast<const std::byte*>(src) + begin,
                  static_cast<std::size_t>(std::min(kPiece, bytes - begin)));
    });
  }

  Stream create_stream() override { return {}; }
  void destroy_stream(Stream /*stream*/) noexcept override {}
  void synchronize(Stream /*stream*/) override {}

  [[nodiscard]] bool supports_graphs() const override { return false; }
  void begin_capture(Stream /*stream*/) override { no_graphs(); }
  Graph end_capture(Stream /*stream*/) override { no_graphs(); }
  void launch(Graph /*graph*/, Stream /*stream*/) override { no_graphs(); }
  void destroy_graph(Graph /*graph*/) noexcept override {}

  // Every call has finished its work when it returns, so an event is the time at which it was recorded.
  Event create_event() override { return {.handle = new Clock::time_point}; }
  void destroy_event(Event event) noexcept override { delete static_cast<Clock::time_point*>(event.handle); }
  void record(Event event, Stream /*stream*/) override { stamp(event) = Clock::now(); }
  void wait(Event event) override { (void)stamp(event); }
  double elapsed_us(Event begin, Event end) override {
    return std::chrono::duration<double, std::micro>(stamp(end) - stamp(begin)).count();
  }

  [[nodiscard]] const PlainOps& plain_ops() const override { return reference_ops::plain_ops(); }

  std::int64_t do_decode_workspace_bytes(const PlanShape& shape, int s, int heads) const override {
    return reference_ops::decode_workspace_bytes(shape, s, heads);
  }
  void do_quantize_q(const QuantizeQParams& params, Stream /*stream*/) override {
    reference_ops::quantize_q(params);
  }
  void do_append_kv(const AppendKvParams& params, Stream /*stream*/) override {
    reference_ops::append_kv(params);
  }
  void do_fetch_kv(const FetchKvParams& params, Stream /*stream*/) override {
    reference_ops::fetch_kv(params);
  }
  void do_plan(const PlanParams& params, Stream /*stream*/) override { reference_ops::plan(params); }
  void do_decode(const DecodeParams& params, Stream /*stream*/) override { reference_ops::decode(params); }
  void do_combine(const CombineParams& params, Stream /*stream*/) override { reference_ops::combine(params); }

 private:
  using Clock = std::chrono::steady_clock;

  static Clock::time_point& stamp(Event event) {
    SNAPMLA_REQUIRE(event.handle != nullptr, "event", "the event must come from create_event");
    return *static_cast<Clock::time_point*>(event.handle);
  }
  [[noreturn]] static void no_graphs() {
    fail(ErrorCode::kUnsupported, "graph",
         "the reference backend has no graphs (supports_graphs() is false)");
  }
};

}  // namespace

Backend& reference() {
  static ReferenceBackend backend;
  return backend;
}

}  // namespace snapmla
