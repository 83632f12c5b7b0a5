// The reference backend with a limit on memory and a count of what is held.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/check.h"
#include "snapmla/backend.h"

namespace snapmla::testing {

class MeteredBackend : public Backend {
 public:
  explicit MeteredBackend(std::int64_t limit) : limit_(limit) {}

  [[nodiscard]] std::int64_t bytes_held() const { return bytes_held_; }
  [[nodiscard]] int num_streams() const { return num_streams_; }

  [[nodiscard]] void* allocate(std::int64_t bytes) override {
    if (bytes > limit_ - bytes_held_) fail(ErrorCode::kOutOfMemory, "allocate", "no ", bytes, " bytes left");
    void* pointer = inner_.allocate(bytes);
    if (pointer != nullptr) sizes_[pointer] = bytes;
    bytes_held_ += bytes;
    return pointer;
  }
  void deallocate(void* pointer) noexcept override {
    if (const auto it = sizes_.find(pointer); it != sizes_.end()) {
      bytes_held_ -= it->second;
      sizes_.erase(it);
    }
    inner_.deallocate(pointer);
  }
  [[nodiscard]] void* allocate_host(std::int64_t bytes) override { return inner_.allocate_host(bytes); }
  void deallocate_host(void* pointer) noexcept override { inner_.deallocate_host(pointer); }
  Stream create_stream() override {
    ++num_streams_;
    return inner_.create_stream();
  }
  void destroy_stream(Stream stream) noexcept override {
    --num_streams_;
    inner_.destroy_stream(stream);
  }

  [[nodiscard]] std::string_view name() const override { return inner_.name(); }
  [[nodiscard]] std::string device_name() const override { return inner_.device_name(); }
  [[nodiscard]] Support supported() const override { return inner_.supported(); }
  [[nodiscard]] Support supports_models() const override { return inner_.supports_models(); }
  [[nodiscard]] int num_workers(int rows) const override { return inner_.num_workers(rows); }
  [[nodiscard]] std::int64_t free_memory() const override { return limit_ - bytes_held_; }
  void copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) override {
    inner_.copy(dst, src, bytes, kind, stream);
  }
  void synchronize(Stream stream) override { inner_.synchronize(stream); }
  [[nodiscard]] bool supports_graphs() const override { return inner_.supports_graphs(); }
  void begin_capture(Stream stream) override { inner_.begin_capture(stream); }
  Graph end_capture(Stream stream) override { return inner_.end_capture(stream); }
  void launch(Graph graph, Stream stream) override { inner_.launch(graph, stream); }
  void destroy_graph(Graph graph) noexcept override { inner_.destroy_graph(graph); }
  Event create_event() override { return inner_.create_event(); }
  void destroy_event(Event event) noexcept override { inner_.destroy_event(event); }
  void record(Event event, Stream stream) override { inner_.record(event, stream); }
  void wait(Event event) override { inner_.wait(event); }
  double elapsed_us(Event begin, Event end) override { return inner_.elapsed_us(begin, end); }
  [[nodiscard]] const PlainOps& plain_ops() const override { return inner_.plain_ops(); }
  [[nodiscard]] std::int64_t do_decode_workspace_bytes(const PlanShape& shape, int s,
                                                       int heads) const override {
    return inner_.do_decode_workspace_bytes(shape, s, heads);
  }
  void do_quantize_q(const QuantizeQParams& params, Stream stream) override {
    inner_.do_quantize_q(params, stream);
  }
  void do_append_kv(const AppendKvParams& params, Stream stream) override {
    inner_.do_append_kv(params, stream);
  }
  void do_fetch_kv(const FetchKvParams& params, Stream stream) override {
    inner_.do_fetch_kv(params, stream);
  }
  void do_plan(const PlanParams& params, Stream stream) override { inner_.do_plan(params, stream); }
  void do_decode(const DecodeParams& params, Stream stream) override { inner_.do_decode(params, stream); }
  void do_combine(const CombineParams& params, Stream stream) override { inner_.do_combine(params, stream); }

 private:
  Backend& inner_ = reference();
  std::int64_t limit_;
  std::int64_t bytes_held_ = 0;
  int num_streams_ = 0;
  std::unordered_map<void*, std::int64_t> sizes_;
};

}  // namespace snapmla::testing
