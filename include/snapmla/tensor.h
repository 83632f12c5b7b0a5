// TensorView: a pointer with dtype, shape and strides. Owns nothing, allocates nothing, knows no device.
//
// Every op takes its tensors as views, so that one check can name the rule and what came, and so that strided
// inputs (slices of a larger projection, a transposed batch) need no copy. Strides are counted in elements.
// The last dimension must be dense (stride 1) wherever an op does not say otherwise.
//
// Example (compiled and run by tests/core/headers_test.cc):
//
//     std::vector<float> lse(2 * 8);
//     snapmla::TensorView view(lse.data(), snapmla::DType::kF32, {2, 8});
//     // view.dim(1) == 8, view.stride(0) == 8, snapmla::to_string(view) == "f32 [2, 8]"
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <string>

namespace snapmla {

/// Element types. Names as users write them: see to_string.
enum class DType : std::uint8_t { kU8, kI32, kI64, kE4M3, kBF16, kF16, kF32, kF64 };

/// A bfloat16 number by its bits. Conversions: src/core/bf16.h; a value is the upper half of an fp32.
struct Bf16 {
  std::uint16_t bits = 0;
};

/// An FP8 e4m3 number ("e4m3fn": no infinity, 0x7f and 0xff are NaN, largest 448) by its bits. See format.h.
struct E4m3 {
  std::uint8_t bits = 0;
};

/// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kU8:
    case DType::kE4M3:
      return 1;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kI32:
    case DType::kF32:
      return 4;
    case DType::kI64:
    case DType::kF64:
      return 8;
  }
  return 0;
}

/// "u8", "int32", "int64", "e4m3", "bf16", "f16", "f32", "f64".
const char* to_string(DType dtype) noexcept;

inline constexpr int kMaxRank = 4;

/// A view over `Pointer` = `void*` (TensorView) or `const void*` (ConstTensorView). A default-made view is
/// absent: optional arguments are left so. Invariant: rank() <= kMaxRank; unused dimensions are 1.
template <class Pointer>
class BasicTensorView {
 public:
  BasicTensorView() = default;

  /// A dense row-major view. `shape` has at most kMaxRank entries (more are a compile-time mistake of the
  /// caller and throw Error(kInvalidArgument)).
  BasicTensorView(Pointer data, DType dtype, std::initializer_list<std::int64_t> shape);

  /// A strided view; `stride` in elements, as many as `shape`.
  BasicTensorView(Pointer data, DType dtype, std::initializer_list<std::int64_t> shape,
                  std::initializer_list<std::int64_t> stride);

  [[nodiscard]] Pointer data() const { return data_; }
  [[nodiscard]] bool present() const { return data_ != nullptr; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] std::int64_t dim(int i) const { return shape_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] std::int64_t stride(int i) const { return stride_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] std::int64_t num_elements() const;
  [[nodiscard]] bool is_contiguous() const;

  /// The typed pointer. The caller has checked the dtype.
  template <class T>
  [[nodiscard]] auto as() const {
    if constexpr (std::is_const_v<std::remove_pointer_t<Pointer>>) {
      return static_cast<const T*>(data_);
    } else {
      return static_cast<T*>(data_);
    }
  }

 protected:
  Pointer data_ = nullptr;
  DType dtype_ = DType::kU8;
  int rank_ = 0;
  std::array<std::int64_t, kMaxRank> shape_{1, 1, 1, 1};
  std::array<std::int64_t, kMaxRank> stride_{1, 1, 1, 1};

  template <class Other>
  friend class BasicTensorView;
  friend class ConstTensorView;
};

/// An output, or an in/out argument.
class TensorView : public BasicTensorView<void*> {
 public:
  using BasicTensorView::BasicTensorView;
};

/// An input. Any TensorView converts to it.
class ConstTensorView : public BasicTensorView<const void*> {
 public:
  using BasicTensorView::BasicTensorView;
  /// Not explicit: an output is a valid input.
  ConstTensorView(const TensorView& other) {  // NOLINT(google-explicit-constructor)
    data_ = other.data_;
    dtype_ = other.dtype_;
    rank_ = other.rank_;
    shape_ = other.shape_;
    stride_ = other.stride_;
  }
};

/// "bf16 [4, 1, 128, 512]"; strides are added where the view is not dense; "absent" for a default-made view.
std::string to_string(const ConstTensorView& view);
std::ostream& operator<<(std::ostream& out, const ConstTensorView& view);
std::ostream& operator<<(std::ostream& out, DType dtype);

}  // namespace snapmla
