// decode on the GPU: the shared list of cases against the formula and against the reference, repeatability,
// graphs, splits, errors.
#include <thread>

#include "gpu_test.h"
#include "support/decode_cases.h"

namespace snapmla::test {
namespace {

/// What the tensor cores may be off by, as bounds. FP8 products add to an accumulator with about 14
/// significant bits, truncating: 2^-14 of the largest partial sum for each of 16 steps over 512 dims, and of
/// 8 over the 256 tokens at most that are summed before they are promoted to fp32. BF16 products add in fp32,
/// 36 steps over 576 dims.
Arithmetic arithmetic_of(CacheFormat format) {
  return format == CacheFormat::kFp8 ? Arithmetic{.logits = 16 * 0x1p-14, .outputs = 8 * 0x1p-14}
                                     : Arithmetic{.logits = 36 * 0x1p-24, .outputs = 8 * 0x1p-24};
}

bool same_solution(const Solution& a, const Solution& b) {
  return first_difference(a.out, b.out) < 0 && first_difference(a.lse, b.lse) < 0;
}

class CudaDecodeCase : public GpuCases<AttentionCase> {};

TEST_P(CudaDecodeCase, StaysWithinTheErrorOfTheFormats) {
  const Problem problem = make_problem(GetParam());
  expect_within_format_error(problem, solve(cuda(), problem), arithmetic_of(problem.spec.format));
}

// Both backends start from the same stored bits, so they differ by how they round P, and by their arithmetic:
// two roundings, each within four deviations.
TEST_P(CudaDecodeCase, AgreesWithTheReference) {
  const Problem problem = make_problem(GetParam());
  const Solution expected = solve(reference(), problem);
  const Solution found = solve(cuda(), problem);
  const Arithmetic arithmetic = arithmetic_of(problem.spec.format);
  compare(problem, found, [&](std::size_t row, const FormulaRow& formula, double) {
    if (std::isinf(expected.lse[row])) {
      EXPECT_EQ(found.lse[row], expected.lse[row]) << "row " << row;
      return;
    }
    double squared = 0;
    double size = 0;
    for (std::size_t i = row * kLatentDim; i < (row + 1) * kLatentDim; ++i) {
      squared += std::pow(double{found.out[i]} - expected.out[i], 2);
      size += std::pow(double{expected.out[i]}, 2);
    }
    const double logit_error = arithmetic.logits * formula.magnitude;
    EXPECT_LE(std::sqrt(squared), 8 * formula.weight_error + 1e-6 * std::sqrt(size) +
                                      logit_error * formula.spread + arithmetic.outputs * formula.weight)
        << problem.spec << " row " << row;
    EXPECT_NEAR(found.lse[row], expected.lse[row], 2e-6 * (1 + std::abs(expected.lse[row])) + logit_error)
        << problem.spec << " row " << row;
  });
}

INSTANTIATE_TEST_SUITE_P(Sampled, CudaDecodeCase, ::testing::ValuesIn(sampled_cases()),
                         [](const auto& test) { return std::to_string(test.index); });

class CudaDecode : public GpuTest {};

// Where code changes its mind: the ends of pages and of pairs of pages, causal rows that see less than the
// rest, rows that fill a tile of 64 or just miss it.
TEST_F(CudaDecode, HandlesEveryEdge) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const auto& [s, heads] :
         std::vector<std::pair<int, int>>{{1, 1}, {1, 63}, {1, 65}, {3, 43}, {8, 8}}) {
      for (const int fixed : {0, 64, 192}) {
        const Problem problem =
            make_problem({.seq_lens = {0, 1, 2, 7, 8, 63, 64, 65, 127, 128, 129, 191, 192, 257},
                          .s = s,
                          .heads = heads,
                          .format = format,
                          .fixed_split_tokens = fixed,
                          .seed = 90});
        expect_within_format_error(problem, solve(cuda(), problem), arithmetic_of(format));
      }
    }
  }
}

TEST_F(CudaDecode, TakesEveryNumberOfRows) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const auto& [s, heads] : std::vector<std::pair<int, int>>{{8, 128}, {16, 20}, {2, 64}, {5, 33}}) {
      const Problem problem =
          make_problem({.seq_lens = {150}, .s = s, .heads = heads, .format = format, .seed = 91});
      expect_within_format_error(problem, solve(cuda(), problem), arithmetic_of(format));
    }
  }
}

TEST_F(CudaDecode, AnySplitGivesTheSameAnswer) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const auto& [workers, fixed] : std::vector<std::pair<int, int>>{
             {0, 0}, {1, 0}, {2, 0}, {7, 0}, {64, 0}, {3, 64}, {2, 128}, {1, 1024}}) {
      const Problem problem = make_problem({.seq_lens = {2000, 65, 0, 129},
                                            .s = 2,
                                            .heads = 5,
                                            .format = format,
                                            .logits = Logits::kSink,
                                            .num_workers = workers,
                                            .fixed_split_tokens = fixed});
      expect_within_format_error(problem, solve(cuda(), problem), arithmetic_of(format));
    }
  }
}

TEST_F(CudaDecode, RoundsTheSameResultToBf16) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const int fixed : {0, 128}) {  // straight from the main kernel, and through combine
      const Problem problem = make_problem({.seq_lens = {300, 0, 64},
                                            .heads = 20,
                                            .format = format,
                                            .num_workers = 1,
                                            .fixed_split_tokens = fixed});
      Solution wide = solve(cuda(), problem, DType::kF32);
      const Solution narrow = solve(cuda(), problem, DType::kBF16);
      for (float& value : wide.out) value = round_to_bf16(value);
      EXPECT_TRUE(same_solution(wide, narrow)) << problem.spec;
    }
  }
}

TEST_F(CudaDecode, ReadsQueryRowsWhereTheyLie) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    for (const auto& [s, heads] : std::vector<std::pair<int, int>>{{1, 1}, {1, 128}, {3, 43}})
      expect_the_same_from_strided_rows(
          cuda(), make_problem({.seq_lens = {100, 7, 64}, .s = s, .heads = heads, .format = format}));
  }
}

TEST_F(CudaDecode, RepeatsBitForBit) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    const Problem problem =
        make_problem({.seq_lens = {3000, 40, 1029, 640}, .s = 2, .heads = 64, .format = format});
    Decoder decoder(cuda(), problem);
    decoder.enqueue({});
    const Solution first = decoder.solution();
    constexpr int kRepeats = 100;
    for (int i = 0; i < kRepeats; ++i) {
      decoder.poison_outputs({});
      decoder.enqueue({});
      ASSERT_TRUE(same_solution(decoder.solution(), first)) << problem.spec << " repeat " << i;
    }
  }
}

// FP8: a large batch is merged by whole rows, a small one by half rows. 700 tokens are few partials and 2,000 many.
TEST_F(CudaDecode, FixedSplitsDoNotDependOnTheRestOfTheBatch) {
  struct Case {
    int seq_len;
    int heads;
    int fixed_split_tokens;
    std::vector<int> others;
  };
  for (const Case& c : {Case{700, 16, 128, {2000, 3}}, Case{700, 128, 64, std::vector<int>(30, 200)},
                        Case{2000, 128, 64, std::vector<int>(30, 200)}}) {
    for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
      AttentionCase spec{.seq_lens = {c.seq_len},
                         .heads = c.heads,
                         .format = format,
                         .fixed_split_tokens = c.fixed_split_tokens};
      const Problem alone = make_problem(spec);
      const Solution expected = solve(cuda(), alone);
      spec.seq_lens.insert(spec.seq_lens.end(), c.others.begin(), c.others.end());
      spec.seed = 9;
      Problem crowd = make_problem(spec);
      std::copy(alone.q_latent.begin(), alone.q_latent.end(), crowd.q_latent.begin());
      std::copy(alone.q_rope.begin(), alone.q_rope.end(), crowd.q_rope.begin());
      crowd.kv[0] = alone.kv[0];
      Solution found = solve(cuda(), crowd);
      found.out.resize(expected.out.size());
      found.lse.resize(expected.lse.size());
      EXPECT_TRUE(same_solution(found, expected))
          << to_string(format) << ' ' << c.seq_len << " x " << c.heads;
    }
  }
}

// One capture serves every step: lengths, and with them the plan, change between replays.
TEST_F(CudaDecode, ReplaysAGraphWhileLengthsChange) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    const Problem problem =
        make_problem({.seq_lens = {2000, 300, 1}, .s = 2, .heads = 64, .format = format, .seed = 92});
    const Stream stream = cuda().create_stream();
    Decoder decoder(cuda(), problem);
    cuda().begin_capture(stream);
    decoder.enqueue(stream);
    const Graph graph = cuda().end_capture(stream);
    for (const std::vector<std::int32_t>& seq_lens :
         std::vector<std::vector<std::int32_t>>{{2000, 300, 1}, {5, 300, 0}, {1999, 128, 1}, {0, 0, 0}}) {
      decoder.set_seq_lens(seq_lens, stream);
      decoder.poison_outputs(stream);
      decoder.enqueue(stream);
      cuda().synchronize(stream);
      const Solution expected = decoder.solution();
      for (int replay = 0; replay < 3; ++replay) {
        decoder.poison_outputs(stream);
        cuda().launch(graph, stream);
        cuda().synchronize(stream);
        EXPECT_TRUE(same_solution(decoder.solution(), expected))
            << to_string(format) << ' ' << seq_lens[0] << " replay " << replay;
      }
    }
    cuda().destroy_graph(graph);
    cuda().destroy_stream(stream);
  }
}

// Steps back to back on one stream, nothing between them: each waits for the one before, whose workspace and
// outputs it overwrites.
TEST_F(CudaDecode, StepsMayFollowEachOtherAtOnce) {
  const Problem problem = make_problem({.seq_lens = {4000, 100}, .heads = 128, .seed = 93});
  const Stream stream = cuda().create_stream();
  Decoder decoder(cuda(), problem);
  decoder.enqueue(stream);
  cuda().synchronize(stream);
  const Solution expected = decoder.solution();
  constexpr int kSteps = 50;
  for (int i = 0; i < kSteps; ++i) decoder.enqueue(stream);
  cuda().synchronize(stream);
  EXPECT_TRUE(same_solution(decoder.solution(), expected));
  cuda().destroy_stream(stream);
}

// What the host keeps from an earlier call (shared memory allowed) a new thread shares; the device's context it
// must find by itself.
TEST_F(CudaDecode, MayBeTheFirstCallOfAThread) {
  for (const CacheFormat format : {CacheFormat::kFp8, CacheFormat::kBf16}) {
    const Problem problem = make_problem({.seq_lens = {700, 65}, .heads = 16, .format = format, .seed = 94});
    Decoder decoder(cuda(), problem);
    decoder.enqueue({});
    const Solution expected = decoder.solution();
    decoder.poison_outputs({});
    cuda().synchronize({});
    std::string message;
    std::thread([&] { message = message_of([&] { decode(cuda(), decoder.decode_params(), {}); }); }).join();
    cuda().synchronize({});
    EXPECT_EQ(message, "nothing was thrown") << to_string(format);
    EXPECT_TRUE(same_solution(decoder.solution(), expected)) << to_string(format);
  }
}

TEST_F(CudaDecode, RefusesWhatItCannotRunBeforeAnyWork) {
  const Problem problem = make_problem({.seq_lens = {100}, .heads = 2});
  Decoder decoder(cuda(), problem);
  decoder.enqueue({});
  const Solution before = decoder.solution();
  DecodeParams params = decoder.decode_params();
  const std::int64_t bytes = params.workspace.num_elements();
  params.workspace = {params.workspace.data(), DType::kU8, {bytes - 1}};
  EXPECT_NE(
      message_of([&] { decode(cuda(), params, {}); }).find("[decode] workspace must be dense u8 of at least"),
      std::string::npos);
  params = decoder.decode_params();
  params.workspace = {static_cast<std::uint8_t*>(params.workspace.data()) + 16, DType::kU8, {bytes}};
  EXPECT_NE(
      message_of([&] { decode(cuda(), params, {}); }).find("[decode] workspace must be 256-byte aligned"),
      std::string::npos);
  params = decoder.decode_params();
  params.q_latent = {
      static_cast<const std::uint8_t*>(params.q_latent.data()) + 8, DType::kE4M3, {1, 1, 2, kLatentDim}};
  EXPECT_NE(message_of([&] { decode(cuda(), params, {}); }).find("[decode] q_latent must be 16-byte aligned"),
            std::string::npos);
  EXPECT_TRUE(same_solution(decoder.solution(), before));
}

class CudaLongContext : public GpuCases<Logits> {};

// As on the reference (LongContext there): the error at 32K tokens is at most 1.1 times that at 1K, or 0.2 %
// if that is more, and the output does not shrink.
TEST_P(CudaLongContext, ErrorDoesNotGrowWithLength) {
  const Accuracy near = accuracy_at(cuda(), 1024, GetParam(), 16);
  const Accuracy far = accuracy_at(cuda(), 32 * 1024, GetParam(), 16);
  EXPECT_LE(far.relative_error, std::max(1.1 * near.relative_error, 0.002));
  EXPECT_NEAR(near.gain, 1, 0.002);
  EXPECT_NEAR(far.gain, 1, 0.002);
}

// The same at 128K, the length of the promise; the time goes into the formula.
TEST_P(CudaLongContext, SlowErrorDoesNotGrowTo128K) {
  const Accuracy near = accuracy_at(cuda(), 1024, GetParam(), 16);
  const Accuracy far = accuracy_at(cuda(), 128 * 1024, GetParam(), 16);
  EXPECT_LE(far.relative_error, std::max(1.1 * near.relative_error, 0.002));
  EXPECT_NEAR(far.gain, 1, 0.002);
}

INSTANTIATE_TEST_SUITE_P(EveryKind, CudaLongContext, ::testing::ValuesIn(kLogits),
                         [](const auto& test) { return std::to_string(test.index); });

}  // namespace
}  // namespace snapmla::test
