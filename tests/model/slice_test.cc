// slice_config: which layers and experts a part of a model keeps, and what is refused.
#include "model/slice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "config_files.h"

namespace snapmla {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::tiny_config;

ModelConfig config_of(int layers, int dense) {
  nlohmann::json config = tiny_config();
  config["num_hidden_layers"] = layers;
  config["first_k_dense_replace"] = dense;
  return testing::load(config);
}

int num_dense(const ModelConfig& config) {
  return static_cast<int>(std::count(config.expert_layers.begin(), config.expert_layers.end(), false));
}

TEST(Slice, KeepsLeadingDenseLayersInProportionAndAtLeastOne) {
  const ModelConfig whole = config_of(61, 3);
  for (const auto& [layers, dense] : {std::pair{61, 3}, {60, 3}, {50, 2}, {31, 2}, {30, 1}, {8, 1}, {1, 1}}) {
    const ModelConfig slice = slice_config(whole, {.num_layers = layers});
    EXPECT_EQ(slice.num_layers, layers);
    ASSERT_EQ(slice.expert_layers.size(), static_cast<std::size_t>(layers));
    EXPECT_EQ(num_dense(slice), dense) << layers;
    EXPECT_TRUE(std::is_sorted(slice.expert_layers.begin(), slice.expert_layers.end())) << layers;
    EXPECT_EQ(slice.num_experts, whole.num_experts);
  }
  EXPECT_EQ(num_dense(slice_config(config_of(10, 0), {.num_layers = 4})), 0);
  EXPECT_EQ(num_dense(slice_config(config_of(10, 10), {.num_layers = 4})), 4);
}

TEST(Slice, KeepsTheOrderOfLayersThatAlternate) {
  nlohmann::json config = tiny_config();
  config["num_hidden_layers"] = 9;
  config["first_k_dense_replace"] = 2;
  config["moe_layer_freq"] = 2;  // experts in 2, 4, 6, 8
  const ModelConfig slice = slice_config(testing::load(config), {.num_layers = 5});
  EXPECT_EQ(slice.expert_layers, (std::vector<bool>{false, true, false, true, false}));
}

TEST(Slice, KeepsLongcatsLayersInPairs) {
  const ModelConfig whole = load_config(SNAPMLA_SOURCE_DIR "/models/configs/longcat-flash");
  const ModelConfig slice = slice_config(whole, {.num_layers = 4, .expert_rank = 1, .expert_ranks = 32});
  EXPECT_EQ(slice.expert_layers, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(slice.num_experts, 16);
  EXPECT_EQ(slice.num_zero_experts, 8);
  const Error error = error_of([&] { (void)slice_config(whole, {.num_layers = 5}); });
  EXPECT_STREQ(error.what(),
               "[slice] num_layers of longcat_flash must be even: its attention layers come in pairs; got 5");
}

TEST(Slice, KeepsARanksExpertsAndRoutesAmongThem) {
  const ModelConfig whole = config_of(2, 1);  // 8 experts in 2 groups, 2 a token
  const ModelConfig slice = slice_config(whole, {.expert_rank = 3, .expert_ranks = 4});
  EXPECT_EQ(slice.num_experts, 2);
  EXPECT_EQ(slice.first_expert, 6);
  EXPECT_EQ(slice.num_groups, 1);
  EXPECT_EQ(slice.top_groups, 1);
  EXPECT_EQ(slice.top_k, whole.top_k);
  EXPECT_EQ(slice.num_shared_experts, whole.num_shared_experts);
  EXPECT_EQ(slice.num_layers, 2);
}

TEST(Slice, RefusesPartsThatThereAreNot) {
  const ModelConfig whole = config_of(2, 1);
  const auto refusal = [](const ModelConfig& config, const ModelSlice& slice) {
    const Error error = error_of([&] { (void)slice_config(config, slice); });
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return std::string(error.what());
  };
  EXPECT_EQ(refusal(whole, {.num_layers = 3}),
            "[slice] num_layers must be from 1 to the model's own 2; got 3");
  EXPECT_THAT(refusal(whole, {.num_layers = -1}), HasSubstr("num_layers"));
  EXPECT_EQ(refusal(whole, {.expert_rank = 2, .expert_ranks = 2}),
            "[slice] expert_rank must be from 0 to below expert_ranks; got rank 2 of 2");
  EXPECT_EQ(refusal(whole, {.expert_ranks = 3}), "[slice] expert_ranks must divide the 8 experts; got 3");
  EXPECT_EQ(
      refusal(whole, {.expert_ranks = 8}),
      "[slice] expert_ranks must leave a rank the 2 experts that a token chooses; got 8, which leave 1");
  ModelConfig dense = whole;
  dense.num_experts = 0;
  EXPECT_THAT(refusal(dense, {.expert_ranks = 2}), HasSubstr("without experts"));
}

TEST(Slice, IsForDummyWeightsOnly) {
  const testing::TempDir dir;
  testing::write_file(dir.file("config.json"), tiny_config().dump());
  for (const ModelSlice& slice : {ModelSlice{.num_layers = 1}, ModelSlice{.expert_ranks = 2}}) {
    const Error error = error_of([&] { (void)load_config(dir.path(), LoadFormat::kAuto, slice); });
    EXPECT_THAT(error.what(), HasSubstr("for dummy weights only (load_format)"));
    EXPECT_NO_THROW((void)load_config(dir.path(), LoadFormat::kDummy, slice));
  }
  EXPECT_EQ(load_config(dir.path(), LoadFormat::kAuto, {}).num_layers, 2);
}

}  // namespace
}  // namespace snapmla
