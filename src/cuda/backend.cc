// The CUDA backend: device memory, streams, graphs and events of the CUDA runtime, the ops of ops.h.
#include "snapmla/backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>

#include "core/check.h"
#include "core/plan_rule.h"
#include "cuda/cublas_lt.h"
#include "cuda/linear.h"
#include "cuda/ops.h"

namespace snapmla {
namespace {

// Hopper: the kernels are built for sm_90a, and code for an "a" architecture runs on no other.
constexpr int kMajor = 9;
constexpr int kMinor = 0;

Support find_support() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return {.ok = false, .reason = "no CUDA device: there is no NVIDIA driver"};
  int num_devices = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&num_devices);
      status != cudaSuccess || num_devices == 0) {
    (void)
        cudaGetLastError();  // the runtime keeps a failure for the next call to find; this one is dealt with
    return {.ok = false,
            .reason = std::string("no CUDA device: ") +
                      (status != cudaSuccess ? cudaGetErrorString(status) : "the driver lists none")};
  }
  int device = 0;
  int major = 0;
  int minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return {
        .ok = false,
        .reason = std::string("the CUDA device does not answer: ") + cudaGetErrorString(cudaGetLastError())};
  }
  if (major != kMajor || minor != kMinor) {
    return {.ok = false,
            .reason = "no device of compute capability 9.0 (Hopper): device " + std::to_string(device) +
                      " has " + std::to_string(major) + "." + std::to_string(minor)};
  }
  return {.ok = true, .reason = ""};
}

/// Asked once: devices do not come and go while a process runs.
const Support& support() {
  static const Support found = find_support();
  return found;
}

void require_device() {
  if (!support().ok) fail(ErrorCode::kUnsupported, "cuda", support().reason);
}

int current_device() {
  int device = 0;
  SNAPMLA_CUDA(cudaGetDevice(&device));
  return device;
}

cudaStream_t stream_of(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

cudaEvent_t event_of(Event event) {
  SNAPMLA_REQUIRE(event.handle != nullptr, "event", "the event must come from create_event");
  return static_cast<cudaEvent_t>(event.handle);
}

class CudaBackend final : public Backend {
 public:
  [[nodiscard]] std::string_view name() const override { return "cuda"; }
  [[nodiscard]] std::string device_name() const override {
    if (!support().ok) return "none";
    cudaDeviceProp properties{};
    SNAPMLA_CUDA(cudaGetDeviceProperties(&properties, current_device()));
    return properties.name;
  }
  [[nodiscard]] Support supported() const override { return support(); }
  [[nodiscard]] Support supports_models() const override {
    return support().ok ? cuda_ops::cublas_lt_support() : support();
  }
  [[nodiscard]] int num_workers(int rows) const override {
    require_device();
    int num_sms = 0;
    SNAPMLA_CUDA(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, current_device()));
    return std::max(1, num_sms / ceil_div(rows, cuda_ops::kTileRows));
  }
  [[nodiscard]] std::int64_t free_memory() const override {
    require_device();
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    SNAPMLA_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    return static_cast<std::int64_t>(free_bytes);
  }

  [[nodiscard]] void* allocate(std::int64_t bytes) override {
    require_device();
    SNAPMLA_REQUIRE(bytes >= 0, "allocate", "bytes must not be negative; got ", bytes);
    if (bytes == 0) return nullptr;
    void* pointer = nullptr;
    const cudaError_t status = cudaMalloc(&pointer, static_cast<std::size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      fail(ErrorCode::kOutOfMemory, "allocate", "the device has no ", bytes, " bytes left; ", free_memory(),
           " are free");
    }
    SNAPMLA_CUDA(status);
    return pointer;
  }
  void deallocate(void* pointer) noexcept override { (void)cudaFree(pointer); }

  [[nodiscard]] void* allocate_host(std::int64_t bytes) override {
    require_device();
    SNAPMLA_REQUIRE(bytes >= 0, "allocate", "bytes must not be negative; got ", bytes);
    if (bytes == 0) return nullptr;
    void* pointer = nullptr;
    const cudaError_t status = cudaMallocHost(&pointer, static_cast<std::size_t>(bytes));
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      fail(ErrorCode::kOutOfMemory, "allocate", "the host has no ", bytes,
           " bytes left that can be page-locked");
    }
    SNAPMLA_CUDA(status);
    return pointer;
  }
  void deallocate_host(void* pointer) noexcept override { (void)cudaFreeHost(pointer); }

  void copy(void* dst, const void* src, std::int64_t bytes, CopyKind kind, Stream stream) override {
    require_device();
    if (bytes <= 0) return;
    const cudaMemcpyKind direction = kind == CopyKind::kHostToDevice   ? cudaMemcpyHostToDevice
                                     : kind == CopyKind::kDeviceToHost ? cudaMemcpyDeviceToHost
                                                                       : cudaMemcpyDeviceToDevice;
    SNAPMLA_CUDA(cudaMemcpyAsync(dst, src, static_cast<std::size_t>(bytes), direction, stream_of(stream)));
  }

  // Non-blocking: no hidden waits for the legacy default stream.
  Stream create_stream() override {
    require_device();
    cudaStream_t stream = nullptr;
    SNAPMLA_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return {.handle = stream};
  }
  void destroy_stream(Stream stream) noexcept override {
    if (stream.handle == nullptr) return;
    cuda_ops::forget_stream(stream_of(stream));
    (void)cudaStreamDestroy(stream_of(stream));
  }
  void synchronize(Stream stream) override {
    require_device();
    SNAPMLA_CUDA(cudaStreamSynchronize(stream_of(stream)));
  }

  [[nodiscard]] bool supports_graphs() const override { return support().ok; }
  // Relaxed: the first launch of a kernel may have to load its module, which the stricter modes forbid.
  void begin_capture(Stream stream) override {
    require_device();
    SNAPMLA_REQUIRE(stream.handle != nullptr, "graph",
                    "the stream to capture must come from create_stream; got the default stream");
    SNAPMLA_CUDA(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeRelaxed));
  }
  Graph end_capture(Stream stream) override {
    require_device();
    cudaGraph_t graph = nullptr;
    SNAPMLA_CUDA(cudaStreamEndCapture(stream_of(stream), &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    (void)cudaGraphDestroy(graph);
    SNAPMLA_CUDA(status);
    return {.handle = executable};
  }
  void launch(Graph graph, Stream stream) override {
    require_device();
    SNAPMLA_REQUIRE(graph.handle != nullptr, "graph", "the graph must come from end_capture");
    SNAPMLA_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle), stream_of(stream)));
  }
  void destroy_graph(Graph graph) noexcept override {
    if (graph.handle != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph.handle));
  }

  Event create_event() override {
    require_device();
    cudaEvent_t event = nullptr;
    SNAPMLA_CUDA(cudaEventCreate(&event));
    return {.handle = event};
  }
  void destroy_event(Event event) noexcept override {
    if (event.handle != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(event.handle));
  }
  void record(Event event, Stream stream) override {
    require_device();
    SNAPMLA_CUDA(cudaEventRecord(event_of(event), stream_of(stream)));
  }
  void wait(Event event) override {
    require_device();
    SNAPMLA_CUDA(cudaEventSynchronize(event_of(event)));
  }
  double elapsed_us(Event begin, Event end) override {
    require_device();
    constexpr double kMicroseconds = 1000;  // in a millisecond
    float milliseconds = 0;
    SNAPMLA_CUDA(cudaEventSynchronize(event_of(end)));
    SNAPMLA_CUDA(cudaEventElapsedTime(&milliseconds, event_of(begin), event_of(end)));
    return kMicroseconds * milliseconds;
  }

  [[nodiscard]] const PlainOps& plain_ops() const override {
    if (const Support models = supports_models(); !models.ok)
      fail(ErrorCode::kUnsupported, "cuda", models.reason);
    return cuda_ops::plain_ops();
  }

  std::int64_t do_decode_workspace_bytes(const PlanShape& shape, int s, int heads) const override {
    require_device();
    return cuda_ops::decode_workspace_bytes(shape, s, heads);
  }
  void do_quantize_q(const QuantizeQParams& params, Stream stream) override {
    require_device();
    cuda_ops::quantize_q(params, stream_of(stream));
  }
  void do_append_kv(const AppendKvParams& params, Stream stream) override {
    require_device();
    cuda_ops::append_kv(params, stream_of(stream));
  }
  void do_fetch_kv(const FetchKvParams& params, Stream stream) override {
    require_device();
    cuda_ops::fetch_kv(params, stream_of(stream));
  }
  void do_plan(const PlanParams& params, Stream stream) override {
    require_device();
    cuda_ops::plan(params, stream_of(stream));
  }
  void do_decode(const DecodeParams& params, Stream stream) override {
    require_device();
    cuda_ops::decode(params, stream_of(stream));
  }
  void do_combine(const CombineParams& params, Stream stream) override {
    require_device();
    cuda_ops::combine(params, stream_of(stream));
  }
};

}  // namespace

Backend& cuda() {
  static CudaBackend backend;
  return backend;
}

}  // namespace snapmla
