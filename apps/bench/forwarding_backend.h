// A backend in front of another: every call goes through, and what a class derived from this overrides does not.
#pragma once

#include <string>
#include <string_view>

#include "snapmla/backend.h"

namespace snapmla::apps {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  [[nodiscard]] std::string_view name() const override { return inner_.name(); }
  [[nodiscard]] std::string device_name() const override { return inner_.device_name(); }
  [[nodiscard]] Support supported() const override { return inner_.supported(); }
  [[nodiscard]] Support supports_models() const override { return inner_.supports_models(); }
  [[nodiscard]] int num_workers(int rows) const override { return inner_.num_workers(rows); }
  [[nodiscard]] std::int64_t free_memory() const override { return inner_.free_memory(); }
  [[nodiscard]] void* allocate(std::int64_t bytes) override { return inner_.allocate(bytes); }
  void deallocate(void* pointer) noexcept override { inner_.deallocate(pointer); }
  [[nodiscard]] void* allocate_host(std::int64_t bytes) override { return inner_.allocate_host(bytes); }
  void deallocate_host(void* pointer) noexcept override { inner_.deallocate_host(pointer); }
  void copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) override {
    inner_.copy(dst, src, bytes, kind, stream);
  }
  Stream create_stream() override { return inner_.create_stream(); }
  void destroy_stream(Stream stream) noexcept override { inner_.destroy_stream(stream); }
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
  Backend& inner_;
};

}  // namespace snapmla::apps
