// Backend: where the ops run. Two exist, with the same ops: reference() (CPU, the executable specification:
// plain loops) and cuda() (NVIDIA Hopper). Each is a process-wide object, made on first use, never destroyed
// early.
//
// A backend hands out device memory, streams and graphs and runs the ops of attention.h. It keeps no state
// between calls: everything an op needs is in its params, everything it writes is in its outputs or
// workspace. That is what makes ops capturable: capture once with fixed pointers, replay while the contents
// change.
//
// Example (compiled and run by tests/core/headers_test.cc):
//
//     snapmla::Backend& backend = snapmla::cuda().supported().ok ? snapmla::cuda() : snapmla::reference();
//     snapmla::Stream stream = backend.create_stream();
//     void* pages = backend.allocate(16 * snapmla::page_bytes(snapmla::CacheFormat::kFp8));
//     // ... ops of attention.h on `stream` ...
//     backend.synchronize(stream);
//     backend.deallocate(pages);
//     backend.destroy_stream(stream);
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "snapmla/attention.h"

namespace snapmla {

class PlainOps;  // the ops of a model around attention (src/core/plain_ops.h); the engine's own business

/// An opaque stream of work. For cuda() the handle is a cudaStream_t (a caller's own stream may be wrapped;
/// null is the legacy default stream, which cannot be captured); reference() ignores it and finishes every
/// call before returning.
struct Stream {
  void* handle = nullptr;
};

/// An opaque captured graph; empty if null.
struct Graph {
  void* handle = nullptr;
};

/// A stamp in a stream's work, for timing; empty if null.
struct Event {
  void* handle = nullptr;
};

/// Whether a backend can run here, and the reason if not ("built without CUDA", "no device of compute
/// capability 9.0").
struct Support {
  bool ok = false;
  std::string reason;
};

enum class CopyKind : std::uint8_t { kHostToDevice, kDeviceToHost, kDeviceToDevice };

class Backend {
 public:
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;  ///< "reference" or "cuda"
  [[nodiscard]] virtual std::string device_name()
      const = 0;                                        ///< e.g. "CPU, 2 threads", "NVIDIA H100 80GB HBM3"
  [[nodiscard]] virtual Support supported() const = 0;  ///< cheap, never throws; all else needs ok

  /// Whether plain_ops() is there, so that the engine can run whole models; else the reason.
  [[nodiscard]] virtual Support supports_models() const = 0;

  /// Default number of work lists of a plan that will serve `rows` = s * heads rows a request, at least 1.
  /// reference(): threads. cuda(): a thread block attends for 64 rows and fills an SM, so
  /// SMs / ceil(rows / 64).
  [[nodiscard]] virtual int num_workers(int rows) const = 0;
  [[nodiscard]] virtual std::int64_t free_memory() const = 0;  ///< bytes free for allocate(), an estimate

  /// Device memory, at least 256-byte aligned, uninitialised. Throws Error(kOutOfMemory). Zero bytes give
  /// null. Not for use inside an op or a capture.
  [[nodiscard]] virtual void* allocate(std::int64_t bytes) = 0;
  virtual void deallocate(void* pointer) noexcept = 0;

  /// Host memory that copies to and from without the host waiting for them (cuda(): page-locked), uninitialised. Throws
  /// Error(kOutOfMemory). Zero bytes give null.
  [[nodiscard]] virtual void* allocate_host(std::int64_t bytes) = 0;
  virtual void deallocate_host(void* pointer) noexcept = 0;

  /// Copies on the stream. Host memory must stay valid until the stream has passed the copy; cuda() may wait for that here
  /// unless it comes from allocate_host().
  virtual void copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) = 0;

  virtual Stream create_stream() = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;
  virtual void synchronize(Stream stream) = 0;  ///< waits for all work on the stream; reports its errors

  /// Graph capture. Between begin and end, ops on the stream are recorded, not run. A backend without graphs
  /// says so by supports_graphs() and throws Error(kUnsupported) here.
  [[nodiscard]] virtual bool supports_graphs() const = 0;
  virtual void begin_capture(Stream stream) = 0;
  virtual Graph end_capture(Stream stream) = 0;
  virtual void launch(Graph graph, Stream stream) = 0;
  virtual void destroy_graph(Graph graph) noexcept = 0;

  /// Timing. record() puts the event into the stream's work and returns; recording it again moves it.
  /// elapsed_us() waits until the work before `end` is done and gives the microseconds between the two, both
  /// recorded (cuda(): in steps of about half a microsecond, by the device's clock; reference(): by the
  /// steady clock). Record outside captures: around a launch(), not within a graph.
  virtual Event create_event() = 0;
  virtual void destroy_event(Event event) noexcept = 0;
  virtual void record(Event event, Stream stream) = 0;
  virtual void wait(
      Event event) = 0;  ///< the host waits until the work before the event is done; not recorded: at once
  virtual double elapsed_us(Event begin, Event end) = 0;

  /// The plain ops of a model, for the engine's model layer. Throws Error(kUnsupported) where
  /// supports_models() is not ok.
  [[nodiscard]] virtual const PlainOps& plain_ops() const = 0;

  // The attention ops. Call the functions of attention.h, which check arguments and then call these.
  virtual std::int64_t do_decode_workspace_bytes(const PlanShape& shape, int s, int heads) const = 0;
  virtual void do_quantize_q(const QuantizeQParams& params, Stream stream) = 0;
  virtual void do_append_kv(const AppendKvParams& params, Stream stream) = 0;
  virtual void do_fetch_kv(const FetchKvParams& params, Stream stream) = 0;
  virtual void do_plan(const PlanParams& params, Stream stream) = 0;
  virtual void do_decode(const DecodeParams& params, Stream stream) = 0;
  virtual void do_combine(const CombineParams& params, Stream stream) = 0;

 protected:
  Backend() = default;
};

/// The CPU backend: the specification. Always supported. Threads: SNAPMLA_NUM_THREADS, else one a hardware
/// thread.
Backend& reference();

/// The Hopper backend: runs on the calling thread's current device, which must have compute capability 9.0. Whole models also need
/// cuBLASLt, which is looked for when first asked for (supports_models()). Always callable: where it was not built or finds no device, supported() says why and every
/// other call throws Error(kUnsupported) with that reason.
Backend& cuda();

/// "reference", "cuda", or "auto": the fastest backend that runs whole models here (supports_models()): cuda where it can, else
/// reference. Throws Error(kInvalidArgument) on another name, Error(kUnsupported) if the
/// named backend cannot run here.
Backend& backend_by_name(std::string_view name);

}  // namespace snapmla
