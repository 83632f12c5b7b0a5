// What a model takes beside its weights is what it allocates, and the largest batch is the largest that fits.
#include "bench/memory_plan.h"

#include <gtest/gtest.h>

#include "engine/metered_backend.h"
#include "model/dummy_weights.h"
#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla::apps {
namespace {

class MemoryPlan : public ::testing::Test {
 protected:
  static ModelConfig tiny() {
    const testing::TempDir dir;
    testing::write_file(dir.file("config.json"), testing::tiny_config().dump());
    return load_config(dir.path());
  }
  [[nodiscard]] std::int64_t needed(int batch, ModelLimits limits, int tokens) const {
    limits.max_batch = batch;
    return model_buffer_bytes(reference(), config_, weights_, limits) +
           cache_bytes(config_, limits.cache_format, batch, tokens);
  }

  ModelConfig config_ = tiny();
  std::shared_ptr<const ModelWeights> weights_ =
      std::make_shared<const ModelWeights>(make_dummy_weights(reference(), config_));
};

TEST_F(MemoryPlan, CountsCacheInWholePagesOfAllLayers) {
  EXPECT_EQ(cache_bytes(config_, CacheFormat::kFp8, 3, 65), 3 * 2 * 64 * 644 * 2);
  EXPECT_EQ(cache_bytes(config_, CacheFormat::kBf16, 1, 64), 64 * 1152 * 2);
}

TEST_F(MemoryPlan, BuffersAreWhatAModelAllocates) {
  for (const int chunk : {0, 64}) {
    const ModelLimits limits{.max_batch = 5, .max_chunk = chunk, .max_seq_len = 1000};
    testing::MeteredBackend metered(std::int64_t{1} << 40);
    const auto model = Model::make(metered, config_, weights_, limits);
    const std::int64_t counted = model_buffer_bytes(reference(), config_, weights_, limits);
    EXPECT_GE(counted, metered.bytes_held());
    constexpr std::int64_t kMostAllocations = 40;
    EXPECT_LE(counted, metered.bytes_held() + kMostAllocations * (2 << 20))
        << "rounding is all there is between";
  }
}

TEST_F(MemoryPlan, AModelThatOnlyDecodesHasNoBuffersOfPrefill) {
  const auto bytes = [&](int chunk) {
    return model_buffer_bytes(reference(), config_, weights_,
                              {.max_batch = 1, .max_chunk = chunk, .max_seq_len = 4096});
  };
  constexpr std::int64_t kTokenBytes = (576 + 2 * (32 + 32)) * 2;  // latent and rope; k_nope and v of 2 heads
  EXPECT_GE(bytes(1) - bytes(0), 4096 * kTokenBytes);
}

TEST_F(MemoryPlan, TheLargestBatchIsTheLargestThatFits) {
  const ModelLimits limits{.max_chunk = 0, .max_seq_len = 300, .cache_format = CacheFormat::kBf16};
  for (const int batch : {1, 2, 17, 100, 1000}) {
    const std::int64_t exact = needed(batch, limits, 300);
    EXPECT_EQ(largest_batch(reference(), config_, weights_, limits, 300, exact), batch);
    EXPECT_EQ(largest_batch(reference(), config_, weights_, limits, 300, exact - 1), batch - 1);
  }
  EXPECT_EQ(largest_batch(reference(), config_, weights_, limits, 300, -5), 0);
  EXPECT_EQ(largest_batch(reference(), config_, weights_, limits, 300, std::int64_t{1} << 50), 4096);
}

}  // namespace
}  // namespace snapmla::apps
