// Torch's side of a call: tensors of the stable ABI as views of the core, the device they share, its current
// stream, and errors as the exceptions that torch turns into Python's.
//
// Only the stable C and C++ interface of torch (torch/csrc/stable, the aoti_torch_* functions) is used, at the
// version that TORCH_TARGET_VERSION names, and of Python its lock alone, where it is there (boxing.h): one binary
// serves every torch from that version on and every Python. Headers of this folder stay in this folder.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <utility>

#include "boxing.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"

namespace snapmla::torch_ops {

using NewTensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;

/// One call of an op on the device of its first tensor: the current device and stream are that device's while
/// the object lives, and every tensor that becomes a view must be there too. An empty tensor becomes a view
/// that is present, with a pointer nobody reads.
class Call {
 public:
  Call(const char* op, const char* name, const Tensor& first);

  [[nodiscard]] Backend& backend() const { return *backend_; }
  [[nodiscard]] Stream stream() const { return stream_; }

  /// Throws Error(kInvalidArgument) on another device, a dtype that no op takes, or more dimensions than four.
  [[nodiscard]] TensorView view(const char* name, const Tensor& tensor) const;
  [[nodiscard]] ConstTensorView view(const char* name, const OptionalTensor& tensor) const;

  /// A new dense tensor on the call's device, from torch's allocator.
  [[nodiscard]] NewTensor empty(ScalarType dtype, std::initializer_list<std::int64_t> shape) const;

  /// The pages of a pool. `cache` alone: records, u8 [num_pages, bytes] (FP8) or bf16 [num_pages, 64, 576] (or
  /// [.., 64, 1, 576]). With `rope` (and `scale` for FP8): planes, e4m3 or bf16 [num_pages, 64, 512], bf16 [.., 64],
  /// f32 [num_pages, 64].
  [[nodiscard]] CacheView cache(const Tensor& cache, const OptionalTensor& rope,
                                const OptionalTensor& scale) const;

  /// A plan in its tensor: int32 [4 * max_items + num_workers + 1 + batch + 1], in this order. Only who fills it
  /// needs fixed_split_tokens.
  [[nodiscard]] PlanView plan(const Tensor& plan, std::int64_t batch, std::int64_t num_workers,
                              std::int64_t fixed_split_tokens = 0) const;

 private:
  [[nodiscard]] bool is_cuda() const { return device_type_ == aoti_torch_device_type_cuda(); }
  void require_device(const char* name, const Tensor& tensor) const;
  [[nodiscard]] CacheView record_cache(const Tensor& cache) const;

  const char* op_;
  const char* first_name_;
  std::int32_t device_type_;
  std::int32_t device_index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  Backend* backend_;
  Stream stream_;
};

/// The exception that torch hands to Python as ValueError (invalid arguments), else RuntimeError.
[[noreturn]] void rethrow_for_torch(const Error& error);

/// Runs `body`, an op's work, with the core's errors as torch's.
template <class Body>
auto guarded(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    rethrow_for_torch(error);
  }
}

}  // namespace snapmla::torch_ops
