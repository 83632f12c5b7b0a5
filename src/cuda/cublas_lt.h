// cuBLASLt, found when the process first asks for it: the library is half a gigabyte that the attention ops never
// touch, so nothing links to it, and a program without it still has these ops.
#pragma once

#include <cublasLt.h>

#include <string>

#include "snapmla/backend.h"

namespace snapmla::cuda_ops {

/// The functions used here, by cuBLASLt's own names.
struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmulAlgoCheck) check_algo;
  decltype(&cublasLtMatmulDescCreate) create_desc;
  decltype(&cublasLtMatmulDescDestroy) destroy_desc;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatrixLayoutSetAttribute) set_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtGetStatusName) status_name;
};

/// Whether cuBLASLt of the major version that this was built with is there, and the reason if not. Cheap after the first call.
const Support& cublas_lt_support();

/// Throws Error(kUnsupported) where cublas_lt_support() is not ok.
const CublasLt& cublas_lt();

/// Throws Error(kDevice) with the call and the status' name.
void check_cublas_lt(cublasStatus_t status, const char* call);

}  // namespace snapmla::cuda_ops
