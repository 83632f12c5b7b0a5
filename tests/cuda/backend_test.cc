// The CUDA backend object: what it says of itself, memory, copies, graphs, events, and its errors.
#include "core/plain_ops.h"
#include "gpu_test.h"

namespace snapmla::test {
namespace {

TEST(CudaBackendAnywhere, SaysWhatItCanDo) {
  const Support support = cuda().supported();
  EXPECT_EQ(support.ok, support.reason.empty());
  const Support models = cuda().supports_models();
  EXPECT_EQ(models.ok, models.reason.empty());
  if (!support.ok) {
    EXPECT_EQ(models.reason, support.reason);
  }
  EXPECT_EQ(backend_by_name("auto").name(), models.ok ? "cuda" : "reference") << "auto runs whole models";
  if (support.ok) return;
  EXPECT_EQ(message_of([] { (void)cuda().allocate(16); }), "[cuda] " + support.reason);
  EXPECT_EQ(message_of([] { (void)cuda().num_workers(1); }), "[cuda] " + support.reason);
  EXPECT_EQ(message_of([] { (void)cuda().create_event(); }), "[cuda] " + support.reason);
}

class CudaBackend : public GpuTest {};

TEST_F(CudaBackend, HasPlainOpsWhereItSaysThatModelsRun) {
  if (const Support models = cuda().supports_models(); models.ok) {
    EXPECT_NE(&cuda().plain_ops(), &cuda().plain_ops().deterministic());
  } else {
    EXPECT_EQ(message_of([] { (void)cuda().plain_ops(); }), "[cuda] " + models.reason);
  }
  EXPECT_EQ(&backend_by_name("cuda"), &cuda());
}

TEST_F(CudaBackend, GivesAWorkerToEverySmOrGroupOfSms) {
  const int sms = cuda().num_workers(1);
  EXPECT_GE(sms, 64);
  EXPECT_EQ(cuda().num_workers(64), sms);
  EXPECT_EQ(cuda().num_workers(65), sms / 2);
  EXPECT_EQ(cuda().num_workers(128), sms / 2);
  EXPECT_EQ(cuda().num_workers(kMaxRows), sms / 16);
}

TEST_F(CudaBackend, AllocatesAlignedMemoryAndCopiesItBack) {
  std::vector<std::int32_t> numbers(1000);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<std::int32_t>(i * i);
  const OnDevice<std::int32_t> first(cuda(), numbers);
  const OnDevice<std::int32_t> second(cuda(), poison<std::int32_t>(1000));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first.data()) % 256, 0U);
  cuda().copy(second.data(), first.data(), 4000, CopyKind::kDeviceToDevice, {});
  EXPECT_EQ(second.host(), numbers);
  EXPECT_GT(cuda().free_memory(), 0);
  EXPECT_EQ(cuda().allocate(0), nullptr);
  cuda().deallocate(nullptr);
}

TEST_F(CudaBackend, ReportsFullMemoryAndStaysUsable) {
  try {
    (void)cuda().allocate(std::int64_t{1} << 50);
    FAIL() << "a petabyte must not fit";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory) << error.what();
  }
  void* pointer = cuda().allocate(1);
  EXPECT_NE(pointer, nullptr);
  cuda().deallocate(pointer);
}

TEST_F(CudaBackend, ReplaysAGraphOverChangedContents) {
  const Stream stream = cuda().create_stream();
  const OnDevice<std::int32_t> from(cuda(), {1, 2, 3});
  const OnDevice<std::int32_t> to(cuda(), {0, 0, 0});
  cuda().begin_capture(stream);
  cuda().copy(to.data(), from.data(), 12, CopyKind::kDeviceToDevice, stream);
  const Graph graph = cuda().end_capture(stream);
  EXPECT_EQ(to.host(), (std::vector<std::int32_t>{0, 0, 0})) << "recorded, not run";
  for (const std::int32_t value : {5, 6}) {
    const std::vector<std::int32_t> changed(3, value);
    cuda().copy(from.data(), changed.data(), 12, CopyKind::kHostToDevice, stream);
    cuda().launch(graph, stream);
    cuda().synchronize(stream);
    EXPECT_EQ(to.host(), changed);
  }
  cuda().destroy_graph(graph);
  cuda().destroy_stream(stream);
  EXPECT_EQ(message_of([] { cuda().begin_capture({}); }),
            "[graph] the stream to capture must come from create_stream; got the default stream");
  EXPECT_EQ(message_of([] { cuda().launch({}, {}); }), "[graph] the graph must come from end_capture");
}

TEST_F(CudaBackend, TimesWorkOnAStream) {
  const Stream stream = cuda().create_stream();
  constexpr std::int64_t kBytes = std::int64_t{64} << 20;
  void* from = cuda().allocate(kBytes);
  void* to = cuda().allocate(kBytes);
  const Event begin = cuda().create_event();
  const Event end = cuda().create_event();
  cuda().record(begin, stream);
  cuda().copy(to, from, kBytes, CopyKind::kDeviceToDevice, stream);
  cuda().record(end, stream);
  const double microseconds = cuda().elapsed_us(begin, end);
  EXPECT_GT(microseconds, 5) << "128 MiB of traffic cannot take less at 25 TB/s";
  EXPECT_LT(microseconds, 1e5);
  cuda().destroy_event(begin);
  cuda().destroy_event(end);
  cuda().deallocate(from);
  cuda().deallocate(to);
  cuda().destroy_stream(stream);
}

}  // namespace
}  // namespace snapmla::test
