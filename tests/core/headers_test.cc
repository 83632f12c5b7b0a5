// The examples at the heads of the public headers, compiled and run. What stands between the marks is the
// header's text.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "snapmla/attention.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "snapmla/format.h"
#include "snapmla/tensor.h"

namespace {

TEST(HeaderExamples, Error) {
  snapmla::Backend& backend = snapmla::reference();
  const snapmla::DecodeParams params;
  ::testing::internal::CaptureStdout();
  // error.h
  try {
    snapmla::decode(backend, params, {});
  } catch (const snapmla::Error& e) {
    if (e.code() == snapmla::ErrorCode::kInvalidArgument) std::puts(e.what());
  }
  // end
  EXPECT_EQ(::testing::internal::GetCapturedStdout(),
            "[decode] q_latent must be e4m3 [batch, s, heads, 512]; got absent\n");
}

TEST(HeaderExamples, Tensor) {
  // tensor.h
  std::vector<float> lse(2 * 8);
  snapmla::TensorView view(lse.data(), snapmla::DType::kF32, {2, 8});
  // end
  EXPECT_EQ(view.dim(1), 8);
  EXPECT_EQ(view.stride(0), 8);
  EXPECT_EQ(snapmla::to_string(view), "f32 [2, 8]");
}

TEST(HeaderExamples, Format) {
  // format.h
  std::vector<std::byte> pool(16 * snapmla::page_bytes(snapmla::CacheFormat::kFp8));
  snapmla::CacheView cache = snapmla::make_cache_view(snapmla::CacheFormat::kFp8, pool.data(), 16);
  // end
  EXPECT_EQ(cache.rope.page_stride, 41216);
  EXPECT_EQ(snapmla::token_bytes(snapmla::CacheFormat::kFp8), 644);
  EXPECT_EQ(snapmla::token_bytes(snapmla::CacheFormat::kBf16), 1152);
}

TEST(HeaderExamples, Backend) {
  // backend.h
  snapmla::Backend& backend = snapmla::cuda().supported().ok ? snapmla::cuda() : snapmla::reference();
  snapmla::Stream stream = backend.create_stream();
  void* pages = backend.allocate(16 * snapmla::page_bytes(snapmla::CacheFormat::kFp8));
  // ... ops of attention.h on `stream` ...
  backend.synchronize(stream);
  backend.deallocate(pages);
  backend.destroy_stream(stream);
  // end
  EXPECT_NE(pages, nullptr);
}

// attention.h: 100 tokens of one request are appended and one query token of 4 heads is decoded over them.
TEST(HeaderExamples, Attention) {
  using namespace snapmla;  // NOLINT(google-build-using-namespace): as a user's program would
  Backend& backend = reference();
  const Stream stream = backend.create_stream();
  constexpr int kTokens = 100;
  constexpr int kHeads = 4;

  std::vector<std::byte> pool(2 * page_bytes(CacheFormat::kFp8));
  const CacheView cache = make_cache_view(CacheFormat::kFp8, pool.data(), 2);
  const std::vector<std::int32_t> block_table = {1, 0};  // tokens 0..63 on page 1, the rest on page 0
  std::vector<std::int32_t> slots;
  for (int t = 0; t < kTokens; ++t)
    slots.push_back(block_table[t / kPageTokens] * kPageTokens + t % kPageTokens);
  const std::vector<Bf16> kv(kTokens * kTokenDim, Bf16{0x3f80});  // all ones
  append_kv(backend,
            {.kv = {kv.data(), DType::kBF16, {kTokens, kTokenDim}},
             .slot_mapping = {slots.data(), DType::kI32, {kTokens}},
             .cache = cache},
            stream);

  const std::vector<Bf16> q_latent(kHeads * kLatentDim, Bf16{0x3f80});
  const std::vector<Bf16> q_rope(kHeads * kRopeDim, Bf16{0x3f80});
  std::vector<E4m3> q_latent8(q_latent.size());
  std::vector<Bf16> q_rope_scaled(q_rope.size());
  std::vector<float> q_scale(kHeads);
  quantize_q(backend,
             {.q_latent = {q_latent.data(), DType::kBF16, {1, 1, kHeads, kLatentDim}},
              .q_rope = {q_rope.data(), DType::kBF16, {1, 1, kHeads, kRopeDim}},
              .q_latent_out = {q_latent8.data(), DType::kE4M3, {1, 1, kHeads, kLatentDim}},
              .q_rope_out = {q_rope_scaled.data(), DType::kBF16, {1, 1, kHeads, kRopeDim}},
              .q_scale_out = {q_scale.data(), DType::kF32, {1, 1, kHeads}}},
             stream);

  const PlanShape shape = make_plan_shape(backend, {.batch = 1, .max_seq_len = 128});
  std::vector<std::int32_t> work_items(4 * shape.max_items);
  std::vector<std::int32_t> worker_offsets(shape.num_workers + 1);
  std::vector<std::int32_t> split_offsets(2);
  const std::vector<std::int32_t> seq_lens = {kTokens};
  const PlanView plan_view{.shape = shape,
                           .work_items = {work_items.data(), DType::kI32, {shape.max_items, 4}},
                           .worker_offsets = {worker_offsets.data(), DType::kI32, {shape.num_workers + 1}},
                           .split_offsets = {split_offsets.data(), DType::kI32, {2}}};
  plan(backend, {.seq_lens = {seq_lens.data(), DType::kI32, {1}}, .plan = plan_view}, stream);

  std::vector<Bf16> out(kHeads * kLatentDim);
  std::vector<float> lse(kHeads);
  const std::int64_t workspace_bytes = decode_workspace_bytes(backend, shape, 1, kHeads);
  void* workspace = backend.allocate(workspace_bytes);
  decode(backend,
         {.q_latent = {q_latent8.data(), DType::kE4M3, {1, 1, kHeads, kLatentDim}},
          .q_rope = {q_rope_scaled.data(), DType::kBF16, {1, 1, kHeads, kRopeDim}},
          .q_scale = {q_scale.data(), DType::kF32, {1, 1, kHeads}},
          .cache = cache,
          .block_table = {block_table.data(), DType::kI32, {1, 2}},
          .seq_lens = {seq_lens.data(), DType::kI32, {1}},
          .softmax_scale = 1 / std::sqrt(192.0F),
          .plan = plan_view,
          .out = {out.data(), DType::kBF16, {1, 1, kHeads, kLatentDim}},
          .lse = {lse.data(), DType::kF32, {1, 1, kHeads}},
          .workspace = {workspace, DType::kU8, {workspace_bytes}}},
         stream);
  backend.synchronize(stream);
  backend.deallocate(workspace);
  backend.destroy_stream(stream);

  EXPECT_EQ(out[0].bits, 0x3f80) << "the mean of ones is one";
  EXPECT_NEAR(lse[0], 576 / std::sqrt(192.0) + std::log(kTokens),
              1e-3);  // every logit is 576 * softmax_scale

  // What was stored comes back: fetch_kv; and results of several devices merge: combine.
  const std::vector<std::int32_t> starts = {0};
  const std::vector<std::int32_t> offsets = {0, kTokens};
  std::vector<Bf16> latent(kTokens * kLatentDim);
  std::vector<Bf16> rope(kTokens * kRopeDim);
  fetch_kv(backend,
           {.cache = cache,
            .block_table = {block_table.data(), DType::kI32, {1, 2}},
            .starts = {starts.data(), DType::kI32, {1}},
            .offsets = {offsets.data(), DType::kI32, {2}},
            .latent_out = {latent.data(), DType::kBF16, {kTokens, kLatentDim}},
            .rope_out = {rope.data(), DType::kBF16, {kTokens, kRopeDim}}},
           stream);
  EXPECT_EQ(latent.back().bits, 0x3f80);
  EXPECT_EQ(rope.back().bits, 0x3f80);
  const std::vector<float> halves_out(2 * kHeads * kLatentDim, 1.0F);
  const std::vector<float> halves_lse(2 * kHeads, 0.0F);
  const std::vector<std::int32_t> both = {0, 2};
  combine(backend,
          {.partial_out = {halves_out.data(), DType::kF32, {2, kHeads, kLatentDim}},
           .partial_lse = {halves_lse.data(), DType::kF32, {2, kHeads}},
           .split_offsets = {both.data(), DType::kI32, {2}},
           .out = {out.data(), DType::kBF16, {1, 1, kHeads, kLatentDim}},
           .lse = {lse.data(), DType::kF32, {1, 1, kHeads}}},
          stream);
  EXPECT_NEAR(lse[0], std::log(2.0), 1e-6);
}

}  // namespace
