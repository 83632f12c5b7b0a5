// What an engine's options are checked for, and what is chosen where they leave it open.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "engine/engine_loop.h"
#include "engine/fake_model.h"
#include "engine/metered_backend.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

using ::testing::HasSubstr;

std::string refusal(const EngineOptions& options) {
  try {
    (void)complete_options(options, testing::fake_config());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(EngineOptionsTest, RefusesValuesOutOfRange) {
  EXPECT_EQ(refusal({.max_seq_len = 2048, .max_batch = 4096, .num_pages = 1, .prefill_chunk = 1}),
            "accepted");
  EXPECT_EQ(refusal({.max_seq_len = 1}),
            "[engine] max_seq_len must be 0 or from 2 to the model's own maximum of 2048; got 1");
  EXPECT_THAT(refusal({.max_seq_len = -1}), HasSubstr("max_seq_len"));
  EXPECT_THAT(refusal({.max_seq_len = 2049}), HasSubstr("got 2049"));
  EXPECT_EQ(refusal({.max_batch = 0}), "[engine] max_batch must be from 1 to 4096; got 0");
  EXPECT_THAT(refusal({.max_batch = 4097}), HasSubstr("max_batch"));
  EXPECT_EQ(refusal({.num_pages = -1}), "[engine] num_pages must be from 0 to 33554431; got -1");
  EXPECT_THAT(refusal({.num_pages = std::int64_t{1} << 40}), HasSubstr("num_pages"));
  EXPECT_EQ(refusal({.kv_cache_memory_bytes = -1}),
            "[engine] kv_cache_memory_bytes must not be negative; got -1");
  EXPECT_EQ(refusal({.kv_cache_memory_bytes = 2 * 64 * 644 - 1}),
            "[engine] kv_cache_memory_bytes must hold a page in each layer, 82432 bytes; got 82431");
  for (const double share : {-0.1, 1.1, std::nan("")}) {
    EXPECT_THAT(refusal({.gpu_memory_utilization = share}),
                HasSubstr("gpu_memory_utilization must be from 0 to 1"));
  }
  EXPECT_EQ(refusal({.prefill_chunk = 0}), "[engine] prefill_chunk must be at least 1; got 0");
}

TEST(EngineOptionsTest, RefusesABackendThatHasTheAttentionOpsOnly) {
  try {
    (void)complete_options({.backend = &cuda()}, testing::fake_config());
    FAIL() << "no plain ops, no engine";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_EQ(error.what(),
              "[engine] the cuda backend cannot run a whole model: " + cuda().supports_models().reason);
  }
}

TEST(EngineOptionsTest, ZerosAreChosen) {
  const ModelConfig config = testing::fake_config();
  const EngineOptions chosen = complete_options({}, config);
  EXPECT_EQ(chosen.backend->name(), "reference") << "the only backend that runs whole models";
  EXPECT_NE(chosen.backend, nullptr);
  EXPECT_EQ(chosen.max_seq_len, 2048);
  EXPECT_EQ(chosen.num_pages, 8 * 2048 / 64);
  EXPECT_EQ(complete_options({.max_batch = 1}, config).num_pages, 2048 / 64);
  EXPECT_EQ(complete_options({.max_seq_len = 65, .max_batch = 3}, config).num_pages, 6);

  ModelConfig large = config;
  large.max_position = 163840;
  EXPECT_EQ(complete_options({}, large).num_pages, 2560);
  EXPECT_EQ(complete_options({.max_batch = 64}, large).num_pages, 64 * 64);
  EXPECT_EQ(model_limits(complete_options({.max_seq_len = 100}, large)).max_chunk, 100);
}

TEST(EngineOptionsTest, PagesFollowFromBytes) {
  const ModelConfig config = testing::fake_config();  // 2 layers
  const std::int64_t page = 2 * page_bytes(CacheFormat::kFp8);
  EXPECT_EQ(complete_options({.kv_cache_memory_bytes = 10 * page}, config).num_pages, 10);
  EXPECT_EQ(complete_options({.kv_cache_memory_bytes = 10 * page - 1}, config).num_pages, 9);
  EXPECT_EQ(complete_options({.num_pages = 3, .kv_cache_memory_bytes = 10 * page}, config).num_pages, 3);
  EXPECT_EQ(complete_options({.gpu_memory_utilization = 0.5}, config).num_pages, 8 * 2048 / 64)
      << "the memory of the reference backend is not for the pool alone";
}

/// The reference backend with a limit, under the name of one whose memory is its own.
class DeviceOfOneMegabyte : public testing::MeteredBackend {
 public:
  DeviceOfOneMegabyte() : MeteredBackend(1'000'000) {}
  [[nodiscard]] std::string_view name() const override { return cuda().name(); }
};

TEST(EngineOptionsTest, PagesTakeWhatTheModelLeavesOfADevicesMemory) {
  DeviceOfOneMegabyte device;
  const ModelConfig config = testing::fake_config();
  const EngineOptions chosen = complete_options({.backend = &device, .gpu_memory_utilization = 0.9}, config);
  EXPECT_EQ(chosen.num_pages, 0) << "until the model is there";
  void* model = device.allocate(200'000);
  const std::int64_t page = 2 * page_bytes(CacheFormat::kFp8);
  EXPECT_EQ(with_pages(chosen, config, 1'000'000).num_pages, (900'000 - 200'000) / page);
  void* more = device.allocate(700'000 - page + 1);
  try {
    (void)with_pages(chosen, config, 1'000'000);
    FAIL() << "there is no room for a page";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
    EXPECT_STREQ(
        error.what(),
        "[engine] no page of the cache, 82432 bytes, fits beside the model: 1000000 bytes were free, of "
        "which gpu_memory_utilization 0.9 allows 900000, and it took 817569");
  }
  device.deallocate(model);
  device.deallocate(more);
  EXPECT_EQ(complete_options({.backend = &device}, config).num_pages, 8 * 2048 / 64) << "no share was given";
}

}  // namespace
}  // namespace snapmla
