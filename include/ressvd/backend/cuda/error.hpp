// SPDX-License-Identifier: Apache-2.0
//
// Statuses of the CUDA libraries as exceptions, with the library, the status by name and the place
// of the call: workspace_error where memory ran out, backend_error otherwise.
#pragma once

#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>
#include <nvrtc.h>

#include <cstddef>
#include <string_view>

#include "ressvd/core/error.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

/// The place of a call, as a default argument sees it. (std::source_location needs clang 16.)
struct call_site {
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
  const char* function = __builtin_FUNCTION();

  std::string_view file_name() const {
    const std::string_view path = file;
    return path.substr(path.find_last_of('/') + 1); // npos + 1 is 0
  }
};

/// cuSOLVER refused a matrix or gave up on it. Another of its routines may do better.
class solver_error : public backend_error {
 public:
  using backend_error::backend_error;
};

template <class Error = backend_error>
[[noreturn]] void fail_cuda(const char* library, const char* status, const char* detail,
                            const call_site& where) {
  fail<Error>(library, " returned ", status, *detail == '\0' ? "" : ": ", detail, " (",
              where.file_name(), ":", where.line, ", ", where.function, ")");
}

/// A library could not get the memory that it takes for itself. No library says how much that was.
[[noreturn]] inline void fail_allocation(const char* library, const call_site& where) {
  std::size_t available = 0;
  std::size_t total = 0;
  cudaMemGetInfo(&available, &total);
  cudaGetLastError();
  fail<workspace_error>(library, " could not allocate memory of its own: ", available, " of ",
                        total, " bytes are free (", where.file_name(), ":", where.line, ", ",
                        where.function, ")");
}

/// cuSOLVER has no function that names its statuses.
inline const char* status_name(cusolverStatus_t status) {
  switch (status) {
    case CUSOLVER_STATUS_SUCCESS:
      return "CUSOLVER_STATUS_SUCCESS";
    case CUSOLVER_STATUS_NOT_INITIALIZED:
      return "CUSOLVER_STATUS_NOT_INITIALIZED";
    case CUSOLVER_STATUS_ALLOC_FAILED:
      return "CUSOLVER_STATUS_ALLOC_FAILED";
    case CUSOLVER_STATUS_INVALID_VALUE:
      return "CUSOLVER_STATUS_INVALID_VALUE";
    case CUSOLVER_STATUS_ARCH_MISMATCH:
      return "CUSOLVER_STATUS_ARCH_MISMATCH";
    case CUSOLVER_STATUS_MAPPING_ERROR:
      return "CUSOLVER_STATUS_MAPPING_ERROR";
    case CUSOLVER_STATUS_EXECUTION_FAILED:
      return "CUSOLVER_STATUS_EXECUTION_FAILED";
    case CUSOLVER_STATUS_INTERNAL_ERROR:
      return "CUSOLVER_STATUS_INTERNAL_ERROR";
    case CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED:
      return "CUSOLVER_STATUS_MATRIX_TYPE_NOT_SUPPORTED";
    case CUSOLVER_STATUS_NOT_SUPPORTED:
      return "CUSOLVER_STATUS_NOT_SUPPORTED";
    case CUSOLVER_STATUS_INVALID_LICENSE:
      return "CUSOLVER_STATUS_INVALID_LICENSE";
    case CUSOLVER_STATUS_INVALID_WORKSPACE:
      return "CUSOLVER_STATUS_INVALID_WORKSPACE";
    default:
      return "an unknown status";
  }
}

inline void check(cudaError_t status, call_site where = {}) {
  if (status == cudaSuccess) return;
  cudaGetLastError(); // reported here, so the engine's next check need not find it
  fail_cuda("CUDA", cudaGetErrorName(status), cudaGetErrorString(status), where);
}

inline void check(cublasStatus_t status, call_site where = {}) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) fail_allocation("cuBLAS", where);
  fail_cuda("cuBLAS", cublasGetStatusName(status), "", where);
}

inline void check(cusolverStatus_t status, call_site where = {}) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) fail_allocation("cuSOLVER", where);
  if (status == CUSOLVER_STATUS_NOT_INITIALIZED) {
    fail_cuda("cuSOLVER", status_name(status), "", where);
  }
  fail_cuda<solver_error>("cuSOLVER", status_name(status), "", where);
}

inline void check(nvrtcResult status, call_site where = {}) {
  if (status != NVRTC_SUCCESS) fail_cuda("NVRTC", nvrtcGetErrorString(status), "", where);
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
