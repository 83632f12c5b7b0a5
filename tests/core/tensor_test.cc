// Tensor views: shapes, strides, texts and wrong use.
#include "snapmla/tensor.h"

#include <gtest/gtest.h>

#include <array>

#include "snapmla/error.h"

namespace snapmla {
namespace {

TEST(TensorView, DenseViewsCountTheirStrides) {
  std::array<float, 24> data{};
  const TensorView view(data.data(), DType::kF32, {2, 3, 4});
  EXPECT_TRUE(view.present());
  EXPECT_EQ(view.rank(), 3);
  EXPECT_EQ(view.dim(1), 3);
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.stride(1), 4);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_EQ(view.num_elements(), 24);
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_EQ(view.as<float>(), data.data());
  EXPECT_EQ(to_string(view), "f32 [2, 3, 4]");
}

TEST(TensorView, StridedViewsSayTheirStrides) {
  std::array<std::int32_t, 24> data{};
  const ConstTensorView view(data.data(), DType::kI32, {2, 3}, {12, 2});
  EXPECT_FALSE(view.is_contiguous());
  EXPECT_EQ(view.num_elements(), 6);
  EXPECT_EQ(to_string(view), "int32 [2, 3] with strides [12, 2]");
  // The stride of a single row means nothing.
  EXPECT_TRUE(ConstTensorView(data.data(), DType::kI32, {1, 3}, {99, 1}).is_contiguous());
}

TEST(TensorView, EmptyScalarAndAbsentViews) {
  std::array<std::uint8_t, 1> data{};
  EXPECT_EQ(TensorView(data.data(), DType::kU8, {}).num_elements(), 1);
  EXPECT_EQ(to_string(TensorView(data.data(), DType::kU8, {})), "u8 []");
  EXPECT_EQ(TensorView(data.data(), DType::kU8, {4, 0}).num_elements(), 0);
  EXPECT_FALSE(TensorView().present());
  EXPECT_EQ(to_string(TensorView()), "absent");
}

TEST(TensorView, OutputsConvertToInputs) {
  std::array<std::uint16_t, 12> data{};
  const ConstTensorView view = TensorView(data.data(), DType::kBF16, {2, 3}, {6, 2});
  EXPECT_EQ(view.data(), data.data());
  EXPECT_EQ(view.dtype(), DType::kBF16);
  EXPECT_EQ(view.rank(), 2);
  EXPECT_EQ(view.dim(0), 2);
  EXPECT_EQ(view.stride(0), 6);
  EXPECT_EQ(view.stride(1), 2);
}

TEST(TensorView, RefusesTooManyDimensionsAndUnequalStrides) {
  std::array<std::uint8_t, 1> data{};
  try {
    const TensorView view(data.data(), DType::kU8, {1, 1, 1, 1, 1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "[tensor] a view has at most 4 dimensions; got 5");
  }
  try {
    const TensorView view(data.data(), DType::kU8, {1, 1}, {1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "[tensor] a view needs a stride per dimension; got 1 strides for 2 dimensions");
  }
}

TEST(DType, SizesAndNames) {
  const std::array<std::pair<const char*, std::int64_t>, 8> expected = {
      {{"u8", 1}, {"int32", 4}, {"int64", 8}, {"e4m3", 1}, {"bf16", 2}, {"f16", 2}, {"f32", 4}, {"f64", 8}}};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_STREQ(to_string(static_cast<DType>(i)), expected[i].first);
    EXPECT_EQ(size_of(static_cast<DType>(i)), expected[i].second);
  }
}

}  // namespace
}  // namespace snapmla
