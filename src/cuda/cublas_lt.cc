#include "cuda/cublas_lt.h"

#include <dlfcn.h>

#include "core/check.h"

namespace snapmla::cuda_ops {
namespace {

struct Library {
  CublasLt functions{};
  Support support{};
};

template <class Function>
void find(void* library, const char* name, Function& function, Support& support) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) support = {.ok = false, .reason = std::string("cuBLASLt has no ") + name};
}

// Never closed: its kernels may be running when the process ends.
Library load() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  Library result{.functions = {}, .support = {.ok = true, .reason = ""}};
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    result.support = {.ok = false,
                      .reason = std::string("whole models need cuBLASLt, and it was not found (") +
                                (error != nullptr ? error : name.c_str()) + "); install the cuBLAS of CUDA " +
                                std::to_string(CUBLAS_VER_MAJOR) + ", or name its folder in LD_LIBRARY_PATH"};
    return result;
  }
  CublasLt& f = result.functions;
  find(library, "cublasLtCreate", f.create, result.support);
  find(library, "cublasLtMatmul", f.matmul, result.support);
  find(library, "cublasLtMatmulAlgoGetHeuristic", f.get_heuristic, result.support);
  find(library, "cublasLtMatmulAlgoCheck", f.check_algo, result.support);
  find(library, "cublasLtMatmulDescCreate", f.create_desc, result.support);
  find(library, "cublasLtMatmulDescDestroy", f.destroy_desc, result.support);
  find(library, "cublasLtMatmulDescSetAttribute", f.set_desc, result.support);
  find(library, "cublasLtMatrixLayoutCreate", f.create_layout, result.support);
  find(library, "cublasLtMatrixLayoutDestroy", f.destroy_layout, result.support);
  find(library, "cublasLtMatrixLayoutSetAttribute", f.set_layout, result.support);
  find(library, "cublasLtMatmulPreferenceCreate", f.create_preference, result.support);
  find(library, "cublasLtMatmulPreferenceDestroy", f.destroy_preference, result.support);
  find(library, "cublasLtMatmulPreferenceSetAttribute", f.set_preference, result.support);
  find(library, "cublasLtGetStatusName", f.status_name, result.support);
  return result;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

}  // namespace

const Support& cublas_lt_support() {
  return library().support;
}

const CublasLt& cublas_lt() {
  if (!library().support.ok) fail(ErrorCode::kUnsupported, "cuda", library().support.reason);
  return library().functions;
}

void check_cublas_lt(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail(ErrorCode::kDevice, "cuda", call, " failed: ", cublas_lt().status_name(status));
}

}  // namespace snapmla::cuda_ops
