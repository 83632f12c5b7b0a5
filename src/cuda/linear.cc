// cuBLASLt thinks in column-major matrices, so a row-major product y = x W^T is asked for as y^T = W x^T:
//
//     D [outs, rows]  =  op(A) [outs, inner]  *  B [inner, rows]        A: the weight, B: x, D: y
//
// A weight [outs, inner] is column-major [inner, outs], hence op = transpose; one stored [inner, outs] needs none.
// The heads of a head_linear are the batch of a strided batched product.
//
// What cuBLASLt needs to know of a shape (descriptors, the algorithm) is made at the shape's first product and kept
// for the process: a model has some ten shapes, times the numbers of rows it meets.
#include "cuda/linear.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "core/check.h"
#include "cuda/cublas_lt.h"
#include "cuda/plain_ops.h"

namespace snapmla::cuda_ops {
namespace {

// What cuBLAS' own documentation recommends for Hopper.
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
// Algorithms::kOneAShape chooses as for so many rows: a decode batch, and the tile of rows that Hopper's products have at least.
constexpr std::int64_t kUsualRows = 64;
constexpr int kMostAlignment = 256;

/// All that the choice of an algorithm may depend on.
struct Shape {
  std::int64_t device = 0;
  std::int64_t outs = 0;
  std::int64_t rows = 0;
  std::int64_t inner = 0;
  std::int64_t heads = 1;
  bool transpose_weight = true;
  bool out_is_f32 = false;
  bool has_bias = false;
  std::int64_t weight_stride = 0;  ///< from one of a matrix's columns to the next
  std::int64_t x_stride = 0;
  std::int64_t out_stride = 0;
  std::int64_t weight_head_stride = 0;
  std::int64_t x_head_stride = 0;
  std::int64_t out_head_stride = 0;
  bool one_algorithm = false;
  std::int64_t alignment = 0;  ///< bytes, of all three matrices
  auto operator<=>(const Shape&) const = default;
};

struct Operands {
  const void* weight;
  const void* x;
  const void* bias;
  void* out;
};

template <class T>
struct Destroy {
  void operator()(T* object) const {
    if constexpr (std::is_same_v<T, cublasLtMatmulDescOpaque_t>) (void)cublas_lt().destroy_desc(object);
    if constexpr (std::is_same_v<T, cublasLtMatrixLayoutOpaque_t>) (void)cublas_lt().destroy_layout(object);
    if constexpr (std::is_same_v<T, cublasLtMatmulPreferenceOpaque_t>)
      (void)cublas_lt().destroy_preference(object);
  }
};
using Desc = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy<cublasLtMatmulDescOpaque_t>>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy<cublasLtMatrixLayoutOpaque_t>>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy<cublasLtMatmulPreferenceOpaque_t>>;

Layout make_layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                   std::int64_t heads, std::int64_t head_stride) {
  const CublasLt& lt = cublas_lt();
  cublasLtMatrixLayout_t raw = nullptr;
  check_cublas_lt(lt.create_layout(&raw, type, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(columns), stride),
                  "cublasLtMatrixLayoutCreate");
  Layout layout(raw);
  const auto count = static_cast<std::int32_t>(heads);
  check_cublas_lt(lt.set_layout(raw, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
                  "cublasLtMatrixLayoutSetAttribute");
  check_cublas_lt(
      lt.set_layout(raw, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &head_stride, sizeof head_stride),
      "cublasLtMatrixLayoutSetAttribute");
  return layout;
}

template <class T>
void set(const Desc& desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check_cublas_lt(cublas_lt().set_desc(desc.get(), attribute, &value, sizeof value),
                  "cublasLtMatmulDescSetAttribute");
}

template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check_cublas_lt(cublas_lt().set_preference(preference.get(), attribute, &value, sizeof value),
                  "cublasLtMatmulPreferenceSetAttribute");
}

/// A shape as cuBLASLt takes it.
struct Product {
  Desc desc;
  Layout weight;
  Layout x;
  Layout out;
  cublasLtMatmulAlgo_t algorithm{};

  explicit Product(const Shape& s) {
    cublasLtMatmulDesc_t raw = nullptr;
    check_cublas_lt(cublas_lt().create_desc(&raw, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                    "cublasLtMatmulDescCreate");
    desc.reset(raw);
    set(desc, CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_weight ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (s.has_bias) {
      set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    }
    const bool t = s.transpose_weight;
    weight = make_layout(CUDA_R_16BF, t ? s.inner : s.outs, t ? s.outs : s.inner, s.weight_stride, s.heads,
                         s.weight_head_stride);
    x = make_layout(CUDA_R_16BF, s.inner, s.rows, s.x_stride, s.heads, s.x_head_stride);
    out = make_layout(s.out_is_f32 ? CUDA_R_32F : CUDA_R_16BF, s.outs, s.rows, s.out_stride, s.heads,
                      s.out_head_stride);
  }

  /// The algorithm that cuBLASLt thinks the fastest.
  [[nodiscard]] cublasLtMatmulAlgo_t best_algorithm(cublasLtHandle_t handle, const Shape& s) const {
    const CublasLt& lt = cublas_lt();
    cublasLtMatmulPreference_t raw = nullptr;
    check_cublas_lt(lt.create_preference(&raw), "cublasLtMatmulPreferenceCreate");
    const Preference preference(raw);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    const auto alignment = static_cast<std::uint32_t>(s.alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    check_cublas_lt(lt.get_heuristic(handle, desc.get(), weight.get(), x.get(), out.get(), out.get(),
                                     preference.get(), 1, &found, &count),
                    "cublasLtMatmulAlgoGetHeuristic");
    SNAPMLA_ASSERT(count == 1 && found.state == CUBLAS_STATUS_SUCCESS);
    return found.algo;
  }
};

/// The largest power of two, at most kMostAlignment, at which all the matrices and their heads start.
std::int64_t common_alignment(const Operands& operands, const Shape& s) {
  const std::int64_t out_bytes = s.out_is_f32 ? 4 : 2;
  const auto address = [](const void* pointer) { return std::bit_cast<std::uintptr_t>(pointer); };
  const std::uintptr_t all = address(operands.weight) | address(operands.x) | address(operands.out) |
                             static_cast<std::uintptr_t>(2 * s.weight_head_stride) |
                             static_cast<std::uintptr_t>(2 * s.x_head_stride) |
                             static_cast<std::uintptr_t>(out_bytes * s.out_head_stride) | kMostAlignment;
  return static_cast<std::int64_t>(all & (~all + 1));
}

/// cuBLASLt's state: a handle a device, products by shape, a workspace a stream. One lock guards it all; a product
/// takes it for the time of its launch.
class Products {
 public:
  void run(Shape shape, const Operands& operands, cudaStream_t stream) {
    int device = 0;
    SNAPMLA_CUDA(cudaGetDevice(&device));
    shape.device = device;
    shape.alignment = common_alignment(operands, shape);
    const std::lock_guard lock(mutex_);
    const cublasLtHandle_t handle = handle_of(device);
    Product& product = product_of(handle, shape);
    if (operands.bias != nullptr) set(product.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias);
    constexpr float kOne = 1;
    constexpr float kZero = 0;
    check_cublas_lt(
        cublas_lt().matmul(handle, product.desc.get(), &kOne, operands.weight, product.weight.get(),
                           operands.x, product.x.get(), &kZero, operands.out, product.out.get(), operands.out,
                           product.out.get(), &product.algorithm, workspace_of(device, stream),
                           kWorkspaceBytes, stream),
        "cublasLtMatmul");
  }

  void forget(cudaStream_t stream) noexcept {
    const std::lock_guard lock(mutex_);
    for (auto it = workspaces_.begin(); it != workspaces_.end();) {
      if (it->first.second != stream) {
        ++it;
        continue;
      }
      (void)cudaFree(it->second);
      it = workspaces_.erase(it);
    }
  }

 private:
  cublasLtHandle_t handle_of(int device) {
    cublasLtHandle_t& handle = handles_[device];
    if (handle == nullptr) check_cublas_lt(cublas_lt().create(&handle), "cublasLtCreate");
    return handle;
  }

  Product& product_of(cublasLtHandle_t handle, const Shape& shape) {
    if (const auto it = products_.find(shape); it != products_.end()) return it->second;
    Product product(shape);
    if (!shape.one_algorithm) {
      product.algorithm = product.best_algorithm(handle, shape);
    } else {
      Shape usual = shape;
      usual.rows = kUsualRows;
      // Rows may lie anywhere for the algorithm's sake: a batch of one has any stride.
      usual.alignment = std::min<std::int64_t>(shape.alignment, 16);
      product.algorithm = Product(usual).best_algorithm(handle, usual);
    }
    return products_.emplace(shape, std::move(product)).first->second;
  }

  void* workspace_of(int device, cudaStream_t stream) {
    void*& workspace = workspaces_[{device, stream}];
    if (workspace == nullptr) SNAPMLA_CUDA(cudaMalloc(&workspace, kWorkspaceBytes));
    return workspace;
  }

  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Shape, Product> products_;
  std::map<std::pair<int, cudaStream_t>, void*> workspaces_;
};

// Never destroyed: the CUDA runtime may be gone by then.
Products& products() {
  static auto* all = new Products;
  return *all;
}

/// Column strides must be at least a column long, and a single row may come with any stride.
std::int64_t column_stride(const ConstTensorView& rows, std::int64_t length) {
  return rows.dim(0) > 1 ? rows.stride(0) : std::max(rows.stride(0), length);
}

}  // namespace

void linear(const ConstTensorView& x, const ConstTensorView& weight, const ConstTensorView& bias,
            const TensorView& out, Algorithms algorithms, cudaStream_t stream) {
  const std::int64_t rows = x.dim(0);
  const std::int64_t inner = x.dim(1);
  const std::int64_t outs = weight.dim(0);
  SNAPMLA_ASSERT(x.dtype() == DType::kBF16 && weight.dtype() == DType::kBF16);
  SNAPMLA_ASSERT(weight.dim(1) == inner && out.dim(0) == rows && out.dim(1) == outs);
  SNAPMLA_ASSERT(out.dtype() == DType::kBF16 || (out.dtype() == DType::kF32 && !bias.present()));
  if (rows == 0) return;
  products().run({.outs = outs,
                  .rows = rows,
                  .inner = inner,
                  .out_is_f32 = out.dtype() == DType::kF32,
                  .has_bias = bias.present(),
                  .weight_stride = weight.stride(0),
                  .x_stride = column_stride(x, inner),
                  .out_stride = column_stride(out, outs),
                  .one_algorithm = algorithms == Algorithms::kOneAShape},
                 {.weight = weight.data(), .x = x.data(), .bias = bias.data(), .out = out.data()}, stream);
}

void head_linear(const ConstTensorView& x, const ConstTensorView& weight, bool transposed,
                 const TensorView& out, Algorithms algorithms, cudaStream_t stream) {
  const std::int64_t rows = x.dim(0);
  const std::int64_t heads = x.dim(1);
  const std::int64_t inner = x.dim(2);
  const std::int64_t outs = out.dim(2);
  SNAPMLA_ASSERT(x.dtype() == DType::kBF16 && weight.dtype() == DType::kBF16 && out.dtype() == DType::kBF16);
  SNAPMLA_ASSERT(out.dim(0) == rows && out.dim(1) == heads && weight.dim(0) == heads);
  SNAPMLA_ASSERT(weight.dim(transposed ? 1 : 2) == inner && weight.dim(transposed ? 2 : 1) == outs);
  if (rows == 0) return;
  products().run({.outs = outs,
                  .rows = rows,
                  .inner = inner,
                  .heads = heads,
                  .transpose_weight = !transposed,
                  .weight_stride = weight.stride(1),
                  .x_stride = column_stride(x, inner),
                  .out_stride = column_stride(out, outs),
                  .weight_head_stride = weight.stride(0),
                  .x_head_stride = x.stride(1),
                  .out_head_stride = out.stride(1),
                  .one_algorithm = algorithms == Algorithms::kOneAShape},
                 {.weight = weight.data(), .x = x.data(), .bias = nullptr, .out = out.data()}, stream);
}

void forget_stream(cudaStream_t stream) noexcept {
  products().forget(stream);
}

}  // namespace snapmla::cuda_ops
