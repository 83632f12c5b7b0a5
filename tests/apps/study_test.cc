// The parts of `snapmla study`, and a fast form of each of its findings (docs/numerics.md).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "core/bf16.h"
#include "model_folder.h"
#include "run_program.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "study/decode_with_ops.h"
#include "study/long_context.h"
#include "study/parts.h"
#include "study/record.h"

namespace snapmla::apps {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

/// Errors by variant, at the greatest length there is.
std::map<std::string, OutputError> by_variant(const std::vector<StudyLine>& lines) {
  std::map<std::string, OutputError> errors;
  int longest = 0;
  for (const StudyLine& line : lines) longest = std::max(longest, line.tokens);
  for (const StudyLine& line : lines) {
    if (line.tokens == longest) errors[line.variant] = line.error;
  }
  return errors;
}

Calibration calibration_of(Shape shape) {
  const AttentionRows other = make_synthetic({.shape = shape, .tokens = 256, .seed = 2});
  return calibrate(widen(other.keys).data(), 256);
}

TEST(OutputErrors, FollowTheirFormulas) {
  const OutputError error = output_error({2, 0, 0, 3}, {1, 0, 0, 4}, 2);
  EXPECT_DOUBLE_EQ(error.rmse, std::sqrt(2.0 / 4));
  EXPECT_DOUBLE_EQ(error.relative_l2, std::sqrt(2.0 / 17));
  EXPECT_DOUBLE_EQ(error.gain, 14.0 / 17);
  EXPECT_DOUBLE_EQ(error.cosine_distance, 0);
  EXPECT_DOUBLE_EQ(output_error({0, 1, 1, 0}, {1, 0, 1, 0}, 2).cosine_distance, 0.5);
  EXPECT_TRUE(std::isnan(output_error({std::nan("")}, {1}, 1).rmse));
}

TEST(Synthetic, HasTheShapesItsHeadStates) {
  const AttentionRows rows = make_synthetic({.shape = Shape::kTails, .tokens = 512, .heads = 3, .steps = 2});
  ASSERT_EQ(rows.num_tokens(), 512);
  ASSERT_EQ(rows.num_rows(), 6U);
  EXPECT_EQ(rows.sees, (std::vector<int>{511, 512}));
  const Calibration range = calibrate(widen(rows.keys).data(), 512);
  EXPECT_GT(range.latent, 8);
  EXPECT_LT(range.latent, 16);
  EXPECT_GT(range.rope, 950);
  EXPECT_LT(range.rope, 1100);
}

TEST(FakeQuantization, GivesWhatTheCacheStores) {
  const AttentionRows rows = make_synthetic({.tokens = 130});
  for (const auto& [format, rule] : {std::pair(KeyFormat::kToken, ScaleRule::kPowerOfTwo),
                                     std::pair(KeyFormat::kTokenAmax, ScaleRule::kAmax)}) {
    std::vector<float> faked = widen(rows.keys);
    fake_quantize(format, {}, faked.data(), 130);
    // One query that picks a token out of the cache: what decode returns is what is stored.
    AttentionRows one{.softmax_scale = 1, .keys = rows.keys, .sees = {1}};
    one.keys.resize(kTokenDim);
    one.queries.resize(kTokenDim);
    const std::vector<double> stored = decode_with_ops(reference(), one, {.scale_rule = rule});
    for (std::size_t d = 0; d < kLatentDim; ++d)
      ASSERT_FLOAT_EQ(static_cast<float>(stored[d]), faked[d]) << to_string(format) << " " << d;
  }
}

TEST(FakeQuantization, TouchesWhatItsNameSays) {
  const AttentionRows rows = make_synthetic({.tokens = 130});
  const std::vector<float> before = widen(rows.keys);
  const Calibration calibration = calibration_of(Shape::kTails);
  for (const KeyFormat format : kQuantizedFormats) {
    std::vector<float> after = before;
    fake_quantize(format, calibration, after.data(), 130);
    bool latent = false;
    bool rope = false;
    for (std::size_t i = 0; i < after.size(); ++i) {
      if (after[i] == before[i]) continue;
      (i % kTokenDim < kLatentDim ? latent : rope) = true;
      // A scale of 1 clips what lies beyond e4m3's largest number; all others only round.
      const float reach =
          format == KeyFormat::kTensor1Rope ? std::min(std::abs(before[i]), kE4m3Max) : std::abs(before[i]);
      ASSERT_NEAR(std::abs(after[i]), reach, reach / 8 + 1) << to_string(format);
    }
    const std::string name = to_string(format);
    EXPECT_TRUE(latent) << name;
    EXPECT_EQ(rope, name.find("rope") != std::string::npos || name == "token-amax") << name;
  }
}

// The paper's first point: rope keys of 10^3 in e4m3 cost an order of magnitude, whatever their scale.
TEST(StudyFindings, QuantizedRopeCostsAnOrderOfMagnitude) {
  const auto errors =
      by_variant(study_formats(reference(), make_synthetic({.tokens = 1024}), calibration_of(Shape::kTails)));
  for (const char* with_rope :
       {"token-rope", "token-rope-shared", "tensor-static-rope", "tensor-dynamic-rope"})
    EXPECT_GT(errors.at(with_rope).relative_l2, 5 * errors.at("token").relative_l2) << with_rope;
  EXPECT_LT(errors.at("token").relative_l2, 0.04);
  EXPECT_LT(errors.at("decode").relative_l2, 0.05);
}

// Its second point does not hold for e4m3: coarser scales of a normed latent cost next to nothing.
TEST(StudyFindings, CoarseScalesOfTheLatentCostLittle) {
  const auto errors =
      by_variant(study_formats(reference(), make_synthetic({.tokens = 1024}), calibration_of(Shape::kTails)));
  for (const char* coarse : {"tensor-static", "tensor-dynamic", "block"})
    EXPECT_LT(errors.at(coarse).relative_l2, 1.5 * errors.at("token").relative_l2) << coarse;
}

TEST(StudyFindings, APowerOfTwoKeepsTheRopeAsItIs) {
  const auto errors = by_variant(study_scale_rule(make_synthetic({.tokens = 1024})));
  EXPECT_EQ(errors.at("pow2").relative_l2, errors.at("pow2-wide-rope").relative_l2);
  EXPECT_GT(errors.at("amax").relative_l2, 1.2 * errors.at("amax-wide-rope").relative_l2);
  EXPECT_LT(errors.at("pow2").relative_l2, errors.at("amax").relative_l2);
}

// Sums that stay in the tensor core's accumulator shrink with the context; promoted ones do not.
TEST(StudyFindings, OnlyPromotedSumsKeepTheirSize) {
  const auto lines = study_long_context({.part = "accumulation",
                                         .kinds = {LogitKind::kUniform},
                                         .rules = accumulation_rules(),
                                         .lengths = {1024, 32768},
                                         .width = 64});
  const auto errors = by_variant(lines);
  EXPECT_LT(errors.at("never").gain, 0.65);
  EXPECT_LT(errors.at("every-512").gain, 0.998);  // on its way
  EXPECT_NEAR(errors.at("every-128").gain, 1, 0.0005);
  EXPECT_NEAR(errors.at("every-64").gain, 1, 0.0001);
  for (const StudyLine& line : lines) {
    if (line.variant == "every-128") {
      EXPECT_NEAR(line.error.relative_l2, errors.at("every-128").relative_l2, 2e-5) << line.tokens;
    }
  }
}

// Behind a sink a running range leaves the rest of the tokens too few bits; a block's own range does not.
TEST(StudyFindings, BlocksBehindASinkKeepTheirPrecision) {
  const auto errors = by_variant(study_long_context({.part = "weights",
                                                     .kinds = {LogitKind::kSink12},
                                                     .rules = weight_rules(),
                                                     .lengths = {32768},
                                                     .width = 64}));
  EXPECT_GT(errors.at("running").relative_l2, 20 * errors.at("block").relative_l2);
  EXPECT_GT(errors.at("running").relative_l2, 20 * errors.at("bound").relative_l2);
  EXPECT_LT(errors.at("paper").gain, 0.9);
  EXPECT_NEAR(errors.at("block+core").gain, 1, 0.001);
  EXPECT_NEAR(errors.at("bound+core").gain, 1, 0.002);
}

TEST(StudyFindings, SplitsAndBatchChangeNothing) {
  for (const StudyLine& line :
       study_splits(reference(), make_synthetic({.shape = Shape::kSink, .tokens = 700}))) {
    EXPECT_LT(line.error.relative_l2, line.variant == "batch-8" ? 0x1p-60 : 1e-5) << line.variant;
  }
}

TEST(RecordActivations, ReadsWhatDecodeReads) {
  const testing::TempDir folder;
  const std::string model = testing::make_model_folder(folder.file("model"));
  std::string text;
  for (int i = 0; text.size() < 20000; ++i) text += "word " + std::to_string(i) + ". ";
  const Recording recording = record_activations(
      {.model_dir = model, .backend = &reference(), .text = text, .lengths = {100, 130}, .steps = 3});
  ASSERT_FALSE(recording.calibration.empty());
  const std::size_t layers = recording.calibration.size();
  ASSERT_EQ(recording.rows.size(), 2 * layers);
  for (std::size_t i = 0; i < recording.rows.size(); ++i) {
    const AttentionRows& rows = recording.rows[i];
    const int length = i < layers ? 100 : 130;
    EXPECT_EQ(rows.layer, static_cast<int>(i % layers));
    EXPECT_EQ(rows.num_tokens(), length);
    EXPECT_EQ(rows.sees, (std::vector<int>{length - 2, length - 1, length}));
    EXPECT_EQ(rows.num_rows(), 3U * static_cast<std::size_t>(rows.heads));
  }
  // The longer text begins with the shorter one, and a prefilled token's row does not depend on those behind it.
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const std::vector<Bf16>& near = recording.rows[layer].keys;
    const std::vector<Bf16>& far = recording.rows[layers + layer].keys;
    for (std::size_t i = 0; i < std::size_t{97} * kTokenDim; ++i)
      ASSERT_EQ(near[i].bits, far[i].bits) << layer << " " << i;
    EXPECT_GT(recording.calibration[layer].latent, 0);
  }
}

TEST(StudyProgram, WritesOneTable) {
  const auto result = testing::run_program({.args = {"study", "--parts", "weights", "--longest-sum", "2k"}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(StartsWith("part,source,layer,tokens,variant,rmse,cosine_distance,relative_l2,gain\n"),
                    HasSubstr("\nweights,uniform,,1024,block,0,0,0,1.000000\n"),
                    HasSubstr("\nweights,sink12,,2048,paper,")));
}

TEST(StudyProgram, RefusesWhatItCannotDo) {
  EXPECT_EQ(testing::run_program({.args = {"study", "--parts", "magic"}}).exit_code, 2);
  EXPECT_EQ(testing::run_program({.args = {"study", "--longest-sum", "100"}}).exit_code, 2);
}

}  // namespace
}  // namespace snapmla::apps
