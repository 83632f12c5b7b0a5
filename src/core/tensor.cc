#include "snapmla/tensor.h"

#include <ostream>
#include <sstream>

#include "core/check.h"

namespace snapmla {

const char* to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::kU8:
      return "u8";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kE4M3:
      return "e4m3";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kF32:
      return "f32";
    case DType::kF64:
      return "f64";
  }
  return "unknown";
}

template <class Pointer>
BasicTensorView<Pointer>::BasicTensorView(Pointer data, DType dtype,
                                          std::initializer_list<std::int64_t> shape)
    : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
  SNAPMLA_REQUIRE(shape.size() <= kMaxRank, "tensor", "a view has at most ", kMaxRank, " dimensions; got ",
                  shape.size());
  std::size_t i = 0;
  for (const std::int64_t extent : shape) shape_[i++] = extent;
  std::int64_t stride = 1;
  while (i-- > 0) {
    stride_[i] = stride;
    stride *= shape_[i];
  }
}

template <class Pointer>
BasicTensorView<Pointer>::BasicTensorView(Pointer data, DType dtype,
                                          std::initializer_list<std::int64_t> shape,
                                          std::initializer_list<std::int64_t> stride)
    : BasicTensorView(data, dtype, shape) {
  SNAPMLA_REQUIRE(stride.size() == shape.size(), "tensor", "a view needs a stride per dimension; got ",
                  stride.size(), " strides for ", shape.size(), " dimensions");
  std::size_t i = 0;
  for (const std::int64_t step : stride) stride_[i++] = step;
}

template <class Pointer>
std::int64_t BasicTensorView<Pointer>::num_elements() const {
  std::int64_t count = 1;
  for (int i = 0; i < rank_; ++i) count *= dim(i);
  return count;
}

template <class Pointer>
bool BasicTensorView<Pointer>::is_contiguous() const {
  std::int64_t expected = 1;
  for (int i = rank_ - 1; i >= 0; --i) {
    if (dim(i) != 1 && stride(i) != expected) return false;
    expected *= dim(i);
  }
  return true;
}

template class BasicTensorView<void*>;
template class BasicTensorView<const void*>;

std::ostream& operator<<(std::ostream& out, DType dtype) {
  return out << to_string(dtype);
}

std::ostream& operator<<(std::ostream& out, const ConstTensorView& view) {
  if (!view.present()) return out << "absent";
  out << view.dtype() << " [";
  for (int i = 0; i < view.rank(); ++i) out << (i == 0 ? "" : ", ") << view.dim(i);
  out << ']';
  if (view.is_contiguous()) return out;
  out << " with strides [";
  for (int i = 0; i < view.rank(); ++i) out << (i == 0 ? "" : ", ") << view.stride(i);
  return out << ']';
}

std::string to_string(const ConstTensorView& view) {
  std::ostringstream text;
  text << view;
  return text.str();
}

}  // namespace snapmla
