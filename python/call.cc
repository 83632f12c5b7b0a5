#include "call.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/check.h"

// In torch's CUDA library, which a torch for the CPU does not have: then the reference stays null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device_index,
                                                                                   void** ret_stream);

namespace snapmla::torch_ops {
namespace {

// What an empty tensor points to: torch gives it a null pointer, which to the core means absent.
alignas(256) std::array<std::byte, 256> nothing{};

std::optional<DType> dtype_of(std::int32_t code) {
  static const std::array<std::pair<std::int32_t, DType>, 8> known = {
      {{aoti_torch_dtype_bfloat16(), DType::kBF16},
       {aoti_torch_dtype_float8_e4m3fn(), DType::kE4M3},
       {aoti_torch_dtype_float32(), DType::kF32},
       {aoti_torch_dtype_int32(), DType::kI32},
       {aoti_torch_dtype_uint8(), DType::kU8},
       {aoti_torch_dtype_int64(), DType::kI64},
       {aoti_torch_dtype_float16(), DType::kF16},
       {aoti_torch_dtype_float64(), DType::kF64}}};
  for (const auto& [torch_code, dtype] : known) {
    if (torch_code == code) return dtype;
  }
  return std::nullopt;
}

const char* dtype_text(const Tensor& tensor) {
  using torch::stable::detail::to;
  return torch::headeronly::toString(to<ScalarType>(torch::stable::detail::from(tensor.dtype())));
}

std::string device_text(bool is_cuda, std::int32_t index) {
  return is_cuda ? "cuda:" + std::to_string(index) : "cpu";
}

Stream current_stream(std::int32_t device_index) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "a CUDA tensor, but a torch without CUDA");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return {.handle = stream};
}

TensorView make_view(void* data, DType dtype, std::int64_t rank, const std::int64_t* n,
                     const std::int64_t* stride) {
  switch (rank) {
    case 0:
      return {data, dtype, {}, {}};
    case 1:
      return {data, dtype, {n[0]}, {stride[0]}};
    case 2:
      return {data, dtype, {n[0], n[1]}, {stride[0], stride[1]}};
    case 3:
      return {data, dtype, {n[0], n[1], n[2]}, {stride[0], stride[1], stride[2]}};
    default:
      return {data, dtype, {n[0], n[1], n[2], n[3]}, {stride[0], stride[1], stride[2], stride[3]}};
  }
}

bool has_shape(const TensorView& view, std::initializer_list<std::int64_t> tail) {
  if (view.rank() != static_cast<int>(tail.size()) + 1) return false;
  int i = 1;
  for (const std::int64_t extent : tail) {
    if (view.dim(i++) != extent) return false;
  }
  return view.dim(view.rank() - 1) <= 1 || view.stride(view.rank() - 1) == 1;
}

/// Page and row strides of a plane [num_pages, 64, width] or [num_pages, 64]. The stride of a dimension of one
/// page carries no meaning in torch, so there the smallest that holds a page stands in.
CachePlane plane_of(const TensorView& view, std::int64_t row_bytes) {
  const std::int64_t row_stride = view.stride(1) * size_of(view.dtype());
  std::int64_t page_stride = view.stride(0) * size_of(view.dtype());
  if (view.dim(0) <= 1) {
    page_stride = std::max(page_stride, (kPageTokens - 1) * row_stride + row_bytes);
    page_stride = (page_stride + 15) / 16 * 16;
  }
  return {.data = view.data(), .page_stride = page_stride, .row_stride = row_stride};
}

}  // namespace

Call::Call(const char* op, const char* name, const Tensor& first)
    : op_(op), first_name_(name), device_type_(first.device_type()), device_index_(first.device_index()) {
  if (is_cuda()) {
    if (torch::stable::accelerator::getCurrentDeviceIndex() != device_index_) guard_.emplace(device_index_);
    backend_ = &cuda();
    stream_ = current_stream(device_index_);
  } else {
    backend_ = &reference();
  }
}

void Call::require_device(const char* name, const Tensor& tensor) const {
  const std::int32_t type = tensor.device_type();
  SNAPMLA_REQUIRE(type == device_type_ && (!is_cuda() || tensor.device_index() == device_index_), op_, name,
                  " must be on ", device_text(is_cuda(), device_index_), " as ", first_name_, " is; got ",
                  device_text(type == aoti_torch_device_type_cuda(), tensor.device_index()));
}

TensorView Call::view(const char* name, const Tensor& tensor) const {
  require_device(name, tensor);
  const std::optional<DType> dtype = dtype_of(tensor.dtype());
  SNAPMLA_REQUIRE(dtype, op_, name, " has a dtype that no op takes; got ", dtype_text(tensor));
  const std::int64_t rank = tensor.dim();
  SNAPMLA_REQUIRE(rank <= kMaxRank, op_, name, " must have at most ", kMaxRank, " dimensions; got ", rank);
  void* data = tensor.data_ptr();
  if (data == nullptr && tensor.numel() == 0) data = nothing.data();
  return make_view(data, *dtype, rank, tensor.sizes(), tensor.strides());
}

ConstTensorView Call::view(const char* name, const OptionalTensor& tensor) const {
  return tensor ? ConstTensorView(view(name, *tensor)) : ConstTensorView();
}

NewTensor Call::empty(ScalarType dtype, std::initializer_list<std::int64_t> shape) const {
  std::array<std::int64_t, kMaxRank> stride{};
  std::int64_t elements = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    stride[i] = elements;
    elements *= std::max<std::int64_t>(1, shape.begin()[i]);
  }
  const auto code = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(shape.size()), shape.begin(),
                                                  stride.data(), code, device_type_, device_index_, &handle));
  return NewTensor(handle);
}

CacheView Call::record_cache(const Tensor& cache) const {
  const TensorView pages = view("cache", cache);
  if (pages.dtype() == DType::kU8) {
    constexpr std::int64_t kBytes = page_bytes(CacheFormat::kFp8);
    SNAPMLA_REQUIRE(pages.rank() == 2 && pages.dim(1) >= kBytes && pages.stride(1) == 1, op_,
                    "cache of FP8 records must be u8 [num_pages, at least ", kBytes,
                    "], dense in its last dimension; got ", ConstTensorView(pages));
    const std::int64_t stride = pages.dim(0) > 1 ? pages.stride(0) : kBytes;
    SNAPMLA_REQUIRE(stride >= kBytes && stride % 16 == 0, op_,
                    "cache must have a page stride that is a multiple of 16 bytes and at least ", kBytes,
                    "; got ", stride);
    return make_cache_view(CacheFormat::kFp8, pages.data(), pages.dim(0), stride);
  }
  SNAPMLA_REQUIRE(
      pages.dtype() == DType::kBF16 &&
          (has_shape(pages, {kPageTokens, kTokenDim}) || has_shape(pages, {kPageTokens, 1, kTokenDim})),
      op_,
      "cache without planes must be u8 [num_pages, bytes] (FP8 records) or bf16 [num_pages, 64, 576] or "
      "[num_pages, 64, 1, 576]; got ",
      ConstTensorView(pages));
  CacheView result{.format = CacheFormat::kBf16, .num_pages = pages.dim(0)};
  constexpr std::int64_t kBf16Bytes = 2;
  result.latent = plane_of(pages, kTokenDim * kBf16Bytes);
  result.rope = result.latent;
  result.rope.data = pages.as<Bf16>() + kLatentDim;
  return result;
}

CacheView Call::cache(const Tensor& cache, const OptionalTensor& rope, const OptionalTensor& scale) const {
  if (!rope) {
    SNAPMLA_REQUIRE(!scale, op_, "cache_scale needs cache_rope: a cache is one tensor of records, or planes");
    return record_cache(cache);
  }
  const TensorView latent = view("cache", cache);
  const bool fp8 = latent.dtype() == DType::kE4M3;
  SNAPMLA_REQUIRE((fp8 || latent.dtype() == DType::kBF16) && has_shape(latent, {kPageTokens, kLatentDim}),
                  op_, "cache beside cache_rope must be e4m3 or bf16 [num_pages, 64, 512]; got ",
                  ConstTensorView(latent));
  const TensorView ropes = view("cache_rope", *rope);
  SNAPMLA_REQUIRE(ropes.dtype() == DType::kBF16 && has_shape(ropes, {kPageTokens, kRopeDim}) &&
                      ropes.dim(0) == latent.dim(0),
                  op_, "cache_rope must be bf16 [num_pages=", latent.dim(0), ", 64, 64]; got ",
                  ConstTensorView(ropes));
  SNAPMLA_REQUIRE(scale.has_value() == fp8, op_, "cache_scale must be given for FP8 planes, and only there");
  CacheView result{.format = fp8 ? CacheFormat::kFp8 : CacheFormat::kBf16, .num_pages = latent.dim(0)};
  result.latent = plane_of(latent, kLatentDim * size_of(latent.dtype()));
  result.rope = plane_of(ropes, kRopeDim * size_of(DType::kBF16));
  if (fp8) {
    const TensorView scales = view("cache_scale", *scale);
    SNAPMLA_REQUIRE(scales.dtype() == DType::kF32 && scales.rank() == 2 && scales.dim(0) == latent.dim(0) &&
                        scales.dim(1) == kPageTokens,
                    op_, "cache_scale must be f32 [num_pages=", latent.dim(0), ", 64]; got ",
                    ConstTensorView(scales));
    result.scale = plane_of(scales, size_of(DType::kF32));
  }
  return result;
}

PlanView Call::plan(const Tensor& plan, std::int64_t batch, std::int64_t num_workers,
                    std::int64_t fixed_split_tokens) const {
  const TensorView data = view("plan", plan);
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  SNAPMLA_REQUIRE(
      num_workers >= 1 && num_workers <= kMax && fixed_split_tokens >= 0 && fixed_split_tokens <= kMax, op_,
      "num_workers and fixed_split_tokens must be those of the plan; got ", num_workers, " and ",
      fixed_split_tokens);
  const std::int64_t items4 = data.rank() == 1 ? data.dim(0) - (num_workers + 1) - (batch + 1) : -1;
  SNAPMLA_REQUIRE(data.dtype() == DType::kI32 && data.is_contiguous() && items4 >= 4 * batch &&
                      items4 % 4 == 0 && items4 / 4 <= kMax,
                  op_,
                  "plan must be dense int32 [4 * max_items + num_workers + 1 + batch + 1] with num_workers ",
                  num_workers, ", batch ", batch, "; got ", ConstTensorView(data));
  std::int32_t* at = data.as<std::int32_t>();
  return {.shape = {.batch = static_cast<int>(batch),
                    .num_workers = static_cast<int>(num_workers),
                    .fixed_split_tokens = static_cast<int>(fixed_split_tokens),
                    .max_items = static_cast<int>(items4 / 4)},
          .work_items = {at, DType::kI32, {items4 / 4, 4}},
          .worker_offsets = {at + items4, DType::kI32, {num_workers + 1}},
          .split_offsets = {at + items4 + num_workers + 1, DType::kI32, {batch + 1}}};
}

void rethrow_for_torch(const Error& error) {
  if (error.code() == ErrorCode::kInvalidArgument) throw std::invalid_argument(error.what());
  throw std::runtime_error(error.what());
}

}  // namespace snapmla::torch_ops
