// Each rule of attention.h broken once: the message names op, argument, rule and what came, and nothing else
// happens.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "snapmla/backend.h"
#include "snapmla/error.h"

namespace snapmla {
namespace {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << "one line";
    return e.what();
  }
  return "no error";
}

/// Valid params of every op over shared zeroed memory; a test breaks one field.
class Attention : public ::testing::Test {
 protected:
  ConstTensorView in(DType dtype, std::initializer_list<std::int64_t> shape) {
    return {memory_.data(), dtype, shape};
  }
  TensorView to(DType dtype, std::initializer_list<std::int64_t> shape) {
    return {memory_.data(), dtype, shape};
  }

  CacheView cache(CacheFormat format = CacheFormat::kFp8) {
    return make_cache_view(format, memory_.data(), 4);
  }

  PlanView plan_view(int batch = 2) {
    const PlanShape shape =
        make_plan_shape(reference(), {.batch = batch, .max_seq_len = 256, .num_workers = 3});
    return {.shape = shape,
            .work_items = to(DType::kI32, {shape.max_items, 4}),
            .worker_offsets = to(DType::kI32, {4}),
            .split_offsets = to(DType::kI32, {batch + 1})};
  }

  QuantizeQParams quantize_params() {
    return {.q_latent = in(DType::kBF16, {2, 1, 4, 512}),
            .q_rope = in(DType::kBF16, {2, 1, 4, 64}),
            .q_latent_out = to(DType::kE4M3, {2, 1, 4, 512}),
            .q_rope_out = to(DType::kBF16, {2, 1, 4, 64}),
            .q_scale_out = to(DType::kF32, {2, 1, 4})};
  }

  AppendKvParams append_params() {
    return {.kv = in(DType::kBF16, {8, 576}), .slot_mapping = in(DType::kI32, {8}), .cache = cache()};
  }

  FetchKvParams fetch_params() {
    return {.cache = cache(),
            .block_table = in(DType::kI32, {2, 4}),
            .starts = in(DType::kI32, {2}),
            .offsets = in(DType::kI32, {3}),
            .latent_out = to(DType::kBF16, {8, 512}),
            .rope_out = to(DType::kBF16, {8, 64})};
  }

  DecodeParams decode_params() {
    return {.q_latent = in(DType::kE4M3, {2, 1, 4, 512}),
            .q_rope = in(DType::kBF16, {2, 1, 4, 64}),
            .q_scale = in(DType::kF32, {2, 1, 4}),
            .cache = cache(),
            .block_table = in(DType::kI32, {2, 4}),
            .seq_lens = in(DType::kI32, {2}),
            .softmax_scale = 0.1F,
            .plan = plan_view(),
            .out = to(DType::kBF16, {2, 1, 4, 512}),
            .lse = to(DType::kF32, {2, 1, 4}),
            .workspace = to(DType::kU8, {1 << 20})};
  }

 private:
  std::vector<std::uint8_t> memory_ = std::vector<std::uint8_t>(1 << 21);
};

TEST_F(Attention, QuantizeQ) {
  auto params = quantize_params();
  params.q_latent = in(DType::kF32, {2, 1, 4, 512});
  EXPECT_EQ(message_of([&] { quantize_q(reference(), params, {}); }),
            "[quantize_q] q_latent must be bf16 [batch, s, heads, 512]; got f32 [2, 1, 4, 512]");
  params = quantize_params();
  params.q_latent = in(DType::kBF16, {2, 1, 129, 512});
  EXPECT_EQ(message_of([&] { quantize_q(reference(), params, {}); }),
            "[quantize_q] heads must be 1 to 128; got 129");
  params.q_latent = in(DType::kBF16, {1, 9, 128, 512});
  EXPECT_EQ(message_of([&] { quantize_q(reference(), params, {}); }),
            "[quantize_q] s must be at least 1 and s * heads at most 1024; got s 9, heads 128");
  params = quantize_params();
  params.q_rope = in(DType::kBF16, {2, 1, 5, 64});
  EXPECT_EQ(message_of([&] { quantize_q(reference(), params, {}); }),
            "[quantize_q] q_rope must be bf16 [batch=2, s=1, heads=4, 64]; got bf16 [2, 1, 5, 64]");
  params = quantize_params();
  params.rope.cos_sin = in(DType::kF32, {10, 64});
  EXPECT_EQ(message_of([&] { quantize_q(reference(), params, {}); }),
            "[quantize_q] rope.positions must be int32 [batch=2, s=1]; got absent");
  params = quantize_params();
  params.q_scale_out = {};
  EXPECT_EQ(message_of([&] { quantize_q(reference(), params, {}); }),
            "[quantize_q] q_scale_out must be f32 [batch=2, s=1, heads=4]; got absent");
}

TEST_F(Attention, AppendKv) {
  auto params = append_params();
  params.kv = in(DType::kBF16, {8, 512});
  EXPECT_EQ(message_of([&] { append_kv(reference(), params, {}); }),
            "[append_kv] kv must be bf16 [tokens, 576]; got bf16 [8, 512]");
  params = append_params();
  params.slot_mapping = in(DType::kI32, {7});
  EXPECT_EQ(message_of([&] { append_kv(reference(), params, {}); }),
            "[append_kv] slot_mapping must be int32 or int64 [tokens=8]; got int32 [7]");
  params = append_params();
  params.norm_weight = in(DType::kBF16, {512});
  params.norm_eps = NAN;
  EXPECT_EQ(message_of([&] { append_kv(reference(), params, {}); }),
            "[append_kv] norm_eps must be finite and not negative; got nan");
  params = append_params();
  params.cache.scale.data = nullptr;
  EXPECT_EQ(message_of([&] { append_kv(reference(), params, {}); }),
            "[append_kv] cache.scale must not be null");
  params = append_params();
  params.cache.latent.page_stride = 1024;
  EXPECT_EQ(message_of([&] { append_kv(reference(), params, {}); }),
            "[append_kv] cache.latent must have a page_stride that holds 64 rows of 512 bytes; got 1024");
}

TEST_F(Attention, FetchKv) {
  auto params = fetch_params();
  params.block_table = in(DType::kI64, {2, 4});
  EXPECT_EQ(message_of([&] { fetch_kv(reference(), params, {}); }),
            "[fetch_kv] block_table must be int32 [ranges=2, max_pages]; got int64 [2, 4]");
  params = fetch_params();
  params.rope_out = to(DType::kBF16, {7, 64});
  EXPECT_EQ(message_of([&] { fetch_kv(reference(), params, {}); }),
            "[fetch_kv] rope_out must be bf16 [total=8, 64]; got bf16 [7, 64]");
}

TEST_F(Attention, Plan) {
  EXPECT_EQ(message_of([] { make_plan_shape(reference(), {.batch = 0, .max_seq_len = 1}); }),
            "[plan] batch must be 1 to 4096; got 0");
  EXPECT_EQ(message_of([] { make_plan_shape(reference(), {.batch = 1, .max_seq_len = 0}); }),
            "[plan] max_seq_len must be 1 to 1048576; got 0");
  EXPECT_EQ(message_of([] { make_plan_shape(reference(), {.batch = 1, .max_seq_len = 1, .rows = 1025}); }),
            "[plan] rows (s * heads) must be 0 to 1024; got 1025");
  EXPECT_EQ(make_plan_shape(reference(), {.batch = 2, .max_seq_len = 9, .fixed_split_tokens = 0x7fffffc0})
                .max_items,
            2)
      << "a split longer than any request is no split";
  EXPECT_EQ(message_of([] {
              make_plan_shape(reference(), {.batch = 1, .max_seq_len = 1, .fixed_split_tokens = 65});
            }),
            "[plan] fixed_split_tokens must be 0 or a positive multiple of 64; got 65");
  EXPECT_EQ(
      message_of([&] { plan(reference(), {.seq_lens = in(DType::kI32, {3}), .plan = plan_view(2)}, {}); }),
      "[plan] plan must be made for batch 3; got 2");
}

TEST_F(Attention, Decode) {
  const auto message = [&](const DecodeParams& params) {
    return message_of([&] { decode(reference(), params, {}); });
  };
  auto params = decode_params();
  params.block_table = in(DType::kI64, {4, 12});
  EXPECT_EQ(message(params), "[decode] block_table must be int32 [batch=2, max_pages]; got int64 [4, 12]");
  params = decode_params();
  params.q_latent = in(DType::kBF16, {2, 1, 4, 512});
  EXPECT_EQ(message(params),
            "[decode] q_latent must be e4m3 [batch, s, heads, 512]; got bf16 [2, 1, 4, 512]");
  params = decode_params();
  params.cache = cache(CacheFormat::kBf16);
  EXPECT_EQ(message(params),
            "[decode] q_latent must be bf16 [batch, s, heads, 512]; got e4m3 [2, 1, 4, 512]");
  params = decode_params();
  params.q_rope = {params.q_rope.data(), DType::kBF16, {2, 1, 4, 64}, {512, 512, 128, 2}};
  EXPECT_EQ(message(params),
            "[decode] q_rope must be dense in its last dimension; got bf16 [2, 1, 4, 64] with strides "
            "[512, 512, 128, 2]");
  params.q_latent = {params.q_latent.data(), DType::kE4M3, {1, 2, 4, 512}, {4096, 512, 1024, 1}};
  EXPECT_EQ(message(params),
            "[decode] q_latent must have evenly spaced rows (s, heads) in a request; got e4m3 [1, 2, 4, 512] "
            "with strides [4096, 512, 1024, 1]");
  params = decode_params();
  params.q_scale = {};
  EXPECT_EQ(message(params), "[decode] q_scale must be f32 [batch=2, s=1, heads=4]; got absent");
  params = decode_params();
  params.softmax_scale = INFINITY;
  EXPECT_EQ(message(params), "[decode] softmax_scale must be finite; got inf");
  params = decode_params();
  params.plan = plan_view(1);
  EXPECT_EQ(message(params), "[decode] plan must be made for batch 2; got 1");
  params = decode_params();
  params.out = to(DType::kF16, {2, 1, 4, 512});
  EXPECT_EQ(message(params),
            "[decode] out must be dense bf16 or f32 [batch=2, s=1, heads=4, 512]; got f16 [2, 1, 4, 512]");
  params = decode_params();
  params.workspace = to(DType::kU8, {16});
  EXPECT_EQ(
      message(params),
      "[decode] workspace must be dense u8 of at least 32832 bytes (decode_workspace_bytes); got u8 [16]");
  params = decode_params();
  EXPECT_EQ(message(params),
            "[decode] plan must have been filled by plan(); its last split offset is 0 of at most 4");
}

TEST_F(Attention, Combine) {
  CombineParams params{.partial_out = in(DType::kF32, {3, 4, 512}),
                       .partial_lse = in(DType::kF32, {3, 5}),
                       .split_offsets = in(DType::kI32, {3}),
                       .out = to(DType::kBF16, {2, 1, 4, 512}),
                       .lse = to(DType::kF32, {2, 1, 4})};
  EXPECT_EQ(message_of([&] { combine(reference(), params, {}); }),
            "[combine] partial_lse must be f32 [partials=3, rows=4]; got f32 [3, 5]");
}

TEST(Backend, ReferenceTimesWithTheClock) {
  const Event begin = reference().create_event();
  const Event end = reference().create_event();
  reference().record(begin, {});
  reference().record(end, {});
  EXPECT_GE(reference().elapsed_us(begin, end), 0);
  reference().record(begin, {});  // again: now it is the later one
  EXPECT_LE(reference().elapsed_us(begin, end), 0);
  reference().destroy_event(begin);
  reference().destroy_event(end);
  EXPECT_EQ(message_of([] { reference().record({}, {}); }), "[event] the event must come from create_event");
}

TEST(Backend, IsChosenByName) {
  EXPECT_EQ(backend_by_name("reference").name(), "reference");
  EXPECT_TRUE(backend_by_name("auto").supports_models().ok);
  EXPECT_EQ(message_of([] { backend_by_name("gpu"); }),
            "[backend] name must be auto, reference or cuda; got 'gpu'");
  const Support support = cuda().supported();
  if (support.ok) return;
  EXPECT_FALSE(support.reason.empty());
  try {
    backend_by_name("cuda");
    FAIL() << "a backend that cannot run here must throw";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(e.what()).find(support.reason), std::string::npos) << e.what();
  }
  EXPECT_THROW((void)cuda().allocate(1), Error);
}

}  // namespace
}  // namespace snapmla
