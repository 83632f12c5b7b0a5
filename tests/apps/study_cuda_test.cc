// The findings of `snapmla study` that the CUDA backend can break. The sums themselves: tests/cuda/accumulator_test.cu.
#include <gtest/gtest.h>

#include "model_folder.h"
#include "snapmla/backend.h"
#include "snapmla/engine.h"
#include "study/decode_with_ops.h"
#include "study/fake_cache_backend.h"
#include "study/parts.h"
#include "study/record.h"

namespace snapmla::apps {
namespace {

class StudyFindingsOnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Support support = cuda().supports_models(); !support.ok) GTEST_SKIP() << support.reason;
  }
};

/// Synthetic rows of a shape, 1,024 tokens.
AttentionRows rows_of(Shape shape) {
  return make_synthetic({.shape = shape, .tokens = 1024});
}

/// The error of decode, queries and P quantized, on a backend.
double decode_error(Backend& backend, const AttentionRows& rows) {
  const std::vector<StudyLine> lines = study_formats(backend, rows, calibrate(widen(rows.keys).data(), 1024));
  for (const StudyLine& line : lines) {
    if (line.variant == "decode") return line.error.relative_l2;
  }
  ADD_FAILURE() << "no line for decode";
  return 0;
}

// The kernel quantizes what the specification quantizes; what its truncating sums lose on top is a gain of at most 0.2 %.
TEST_F(StudyFindingsOnCuda, DecodeErrsLittleMoreThanTheReference) {
  for (const Shape shape : {Shape::kTails, Shape::kSink, Shape::kUniform, Shape::kOutlier}) {
    const AttentionRows rows = rows_of(shape);
    const double specified = decode_error(reference(), rows);
    EXPECT_GT(specified, 0) << to_string(shape);
    EXPECT_LT(decode_error(cuda(), rows), specified + 0.002) << to_string(shape);
  }
}

// Partials of an FP8 cache are half in units of the item's largest scale: 2^-11 a rounding. Splits of 64 tokens cut blocks of
// 128, whose halves of P have ranges of their own. Fixed splits make a request's bits its own.
TEST_F(StudyFindingsOnCuda, SplitsAndBatchChangeNothing) {
  for (const StudyLine& line : study_splits(cuda(), rows_of(Shape::kSink))) {
    const double most = line.variant == "batch-8" ? 0 : line.variant == "every-64" ? 0x1p-8 : 0x1p-10;
    EXPECT_LE(line.error.relative_l2, most) << line.variant;
  }
}

// What a token format restores is what the FP8 cache restores; prefill reads the cache alone.
TEST_F(StudyFindingsOnCuda, AFakeCacheHoldsWhatTheFp8CacheHolds) {
  const testing::TempDir folder;
  const std::string model = testing::make_model_folder(folder.file("model"));
  std::vector<std::int32_t> prompt(100);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(7 * i % 2000);
  const auto logits = [&](Backend& backend, CacheFormat format) {
    Engine engine({.model_dir = model, .backend = &backend, .cache_format = format, .max_seq_len = 512});
    engine.submit({.prompt_tokens = prompt, .max_tokens = 1, .forced_tokens = {}, .return_logits = true});
    std::vector<float> row;
    while (!engine.idle()) {
      for (TokenEvent& event : engine.step()) row = std::move(event.logits);
    }
    return row;
  };
  FakeCacheBackend fake(cuda(), KeyFormat::kToken, {{.latent = 1, .rope = 1}});
  const std::vector<float> expected = logits(cuda(), CacheFormat::kFp8);
  ASSERT_FALSE(expected.empty());
  EXPECT_EQ(logits(fake, CacheFormat::kBf16), expected);
}

// Recorded through device memory: a later length begins with the tokens of an earlier one.
TEST_F(StudyFindingsOnCuda, RecordsTheModelsOwnRows) {
  const testing::TempDir folder;
  std::string text;
  for (int i = 0; text.size() < 20000; ++i) text += "word " + std::to_string(i) + ". ";
  const Recording recording =
      record_activations({.model_dir = testing::make_model_folder(folder.file("model")),
                          .backend = &cuda(),
                          .text = text,
                          .lengths = {100, 130},
                          .steps = 3});
  const std::size_t layers = recording.calibration.size();
  ASSERT_EQ(recording.rows.size(), 2 * layers);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const AttentionRows& near = recording.rows[layer];
    const AttentionRows& far = recording.rows[layers + layer];
    ASSERT_EQ(near.num_tokens(), 100);
    ASSERT_EQ(far.sees, (std::vector<int>{128, 129, 130}));
    for (std::size_t i = 0; i < std::size_t{97} * kTokenDim; ++i)
      ASSERT_EQ(near.keys[i].bits, far.keys[i].bits) << layer << " " << i;
    EXPECT_LT(study_formats(cuda(), near, recording.calibration[layer]).back().error.relative_l2, 0.2);
  }
}

}  // namespace
}  // namespace snapmla::apps
