// SPDX-License-Identifier: Apache-2.0
//
// cuSOLVER by way of LAPACK. Destroyed operands become NaN, workspaces are overwritten when their
// routine runs. It is as unkind as the real one has been seen to be: eigenvalue routines and SVDs
// write between the columns of their results, Cholesky notices a bad pivot late.
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_stand_in/stand_in.hpp"

struct cusolverDnContext {
  cudaStream_t stream = nullptr;
#if CUSOLVER_VER_MAJOR >= 12
  cusolverMathMode_t math_mode = CUSOLVER_DEFAULT_MATH;
#endif
};
struct cusolverDnParams {};
struct syevjInfo {};

namespace stand_in {
namespace {

constexpr std::size_t host_bytes = 1000;

std::size_t size_of(cudaDataType type) {
  if (type != CUDA_R_32F && type != CUDA_R_64F) misuse("cuSOLVER: element type %d", type);
  return type == CUDA_R_32F ? sizeof(float) : sizeof(double);
}
lapack_int to_lapack(std::int64_t n) {
  return static_cast<lapack_int>(n);
}

/// Calls f with a null pointer of the element type.
template <class F>
void with_type(cudaDataType type, F f) {
  size_of(type) == sizeof(float) ? f(static_cast<float*>(nullptr))
                                 : f(static_cast<double*>(nullptr));
}

bool same(std::initializer_list<cudaDataType> types) {
  return std::equal(types.begin() + 1, types.end(), types.begin());
}

/// What a routine may overwrite.
struct workspace {
  void* device;
  std::size_t device_size;
  void* host;
  std::size_t host_size;

  void overwrite() const {
    std::memset(device, 0x7f, device_size);
    if (host != nullptr) std::memset(host, 0x7f, host_size);
  }
};

workspace checked(void* memory, std::size_t size, std::size_t needed, void* on_host,
                  std::size_t host_size) {
  if (size < needed) misuse("a workspace of %zu bytes, %zu needed", size, needed);
  if (host_size < host_bytes) misuse("a host workspace of %zu bytes", host_size);
  return {device(memory, size, "workspace"), size, host(on_host, "host workspace"), host_size};
}

/// The stream of a handle that computes with all bits.
cudaStream_t stream_of(cusolverDnHandle_t handle) {
#if CUSOLVER_VER_MAJOR >= 12
  if (handle->math_mode != CUSOLVER_DEFAULT_MATH) misuse("cuSOLVER in an emulating math mode");
#endif
  return handle->stream;
}

int* checked_info(int* info) {
  return device_array<int>(info, 1, "info");
}

template <class T>
void destroy(T* a, std::int64_t m, std::int64_t n, std::int64_t ld) {
  for (std::int64_t j = 0; j < n; ++j)
    std::fill_n(a + j * ld, m, std::numeric_limits<T>::quiet_NaN());
}

/// Writes between the columns of an m × n result, as Xgesvdp has been seen to do.
template <class T>
void spill(T* a, std::int64_t m, std::int64_t n, std::int64_t ld) {
  for (std::int64_t j = 0; j + 1 < n; ++j)
    std::fill(a + j * ld + m, a + (j + 1) * ld, T{1});
}

/// Cholesky that notices a bad pivot only where its block of 64 columns ends, as Xpotrf has been
/// seen to do: infinity always, the last pivot of a block in float. The block's diagonal is then
/// spoilt from its beginning. Returns info.
template <class T>
int late_cholesky(std::int64_t n, T* a, std::int64_t ld) {
  constexpr std::int64_t width = 64;
  std::int64_t infinite = 0; // its minor, or 0
  while (infinite < n && !std::isinf(a[infinite + infinite * ld]))
    ++infinite;
  infinite = infinite < n ? infinite + 1 : 0;
  int info = 0;
  if constexpr (std::is_same_v<T, float>) {
    info = LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'L', to_lapack(n), a, to_lapack(ld));
  } else {
    info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'L', to_lapack(n), a, to_lapack(ld));
  }
  const bool by_infinity = infinite > 0 && (info == 0 || infinite <= info);
  const std::int64_t first = by_infinity ? infinite : info;
  if (first == 0) return 0;
  const std::int64_t begin = (first - 1) / width * width;
  for (std::int64_t j = begin; j < std::min(begin + width, n); ++j)
    a[j + j * ld] = std::numeric_limits<T>::quiet_NaN();
  const bool late = by_infinity || (std::is_same_v<T, float> && first == begin + width);
  if (!late) return static_cast<int>(first);
  return begin + width < n ? static_cast<int>(begin + width + 1) : 0;
}

/// What is wrong with this call.
fault due(fault& next) {
  return std::exchange(next, fault::none);
}

bool refuses(fault& next) {
  if (next != fault::refused) return false;
  next = fault::none;
  return true;
}

/// How a call with this fault ends.
cusolverStatus_t status_of(fault f) {
  if (f == fault::no_memory) return CUSOLVER_STATUS_ALLOC_FAILED;
  if (f == fault::device_lost) control.device_lost = true;
  if (f != fault::failed && f != fault::device_lost) return CUSOLVER_STATUS_SUCCESS;
  leave_error(cudaErrorInvalidConfiguration);
  return CUSOLVER_STATUS_EXECUTION_FAILED;
}

/// What the fault does to the results: n values and the m × n vectors.
template <class T>
void spoil(fault f, int& info, T* values, T* vectors, std::int64_t m, std::int64_t n,
           std::int64_t ld) {
  if (f == fault::none) return;
  if (f == fault::wrong_values) {
    for (std::int64_t i = 0; i < n; ++i)
      values[i] *= 2;
    return;
  }
  info = static_cast<int>(n) + 1;
  destroy(values, n, 1, n);
  destroy(vectors, m, n, ld);
}

template <class T>
int symmetric_eigen(std::int64_t n, T* a, std::int64_t ld, T* w) {
  for (std::int64_t j = 1; j < n; ++j) // the upper triangle is not read
    std::fill_n(a + j * ld, j, std::numeric_limits<T>::quiet_NaN());
  if constexpr (std::is_same_v<T, float>) {
    return LAPACKE_ssyev(LAPACK_COL_MAJOR, 'V', 'L', to_lapack(n), a, to_lapack(ld), w);
  } else {
    return LAPACKE_dsyev(LAPACK_COL_MAJOR, 'V', 'L', to_lapack(n), a, to_lapack(ld), w);
  }
}

/// Economy SVD; v, not its transpose, unless null.
template <class T>
int singular_values(std::int64_t m, std::int64_t n, T* a, std::int64_t lda, T* s, T* u,
                    std::int64_t ldu, T* v, std::int64_t ldv) {
  const std::int64_t k = std::min(m, n);
  std::vector<T> vt(static_cast<std::size_t>(k * n));
  std::vector<T> unconverged(static_cast<std::size_t>(k));
  int info = 0;
  if constexpr (std::is_same_v<T, float>) {
    info = LAPACKE_sgesvd(LAPACK_COL_MAJOR, 'S', 'S', to_lapack(m), to_lapack(n), a, to_lapack(lda),
                          s, u, to_lapack(ldu), vt.data(), to_lapack(k), unconverged.data());
  } else {
    info = LAPACKE_dgesvd(LAPACK_COL_MAJOR, 'S', 'S', to_lapack(m), to_lapack(n), a, to_lapack(lda),
                          s, u, to_lapack(ldu), vt.data(), to_lapack(k), unconverged.data());
  }
  for (std::int64_t j = 0; v != nullptr && j < k; ++j) {
    for (std::int64_t i = 0; i < n; ++i)
      v[i + j * ldv] = vt[static_cast<std::size_t>(j + i * k)];
  }
  destroy(a, m, n, lda);
  return info;
}

template <class T>
cusolverStatus_t queue_orgqr(cusolverDnHandle_t handle, int m, int n, int k, T* a, int lda,
                             const T* tau, T* work, int elements, int* info) {
  if (n > m || k > n) return CUSOLVER_STATUS_INVALID_VALUE;
  if (elements < n) misuse("orgqr: a workspace of %d elements", elements);
  T* const matrix = device_matrix<T>(a, m, n, lda, "orgqr, A");
  const T* const scales = device_array<T>(tau, k, "orgqr, tau");
  T* const scratch = device_array<T>(work, elements, "orgqr, workspace");
  int* const state = checked_info(info);
  enqueue(stream_of(handle), [=] {
    std::memset(static_cast<void*>(scratch), 0x7f, static_cast<std::size_t>(elements) * sizeof(T));
    if constexpr (std::is_same_v<T, float>) {
      *state = LAPACKE_sorgqr(LAPACK_COL_MAJOR, m, n, k, matrix, lda, scales);
    } else {
      *state = LAPACKE_dorgqr(LAPACK_COL_MAJOR, m, n, k, matrix, lda, scales);
    }
  });
  return CUSOLVER_STATUS_SUCCESS;
}

template <class T>
cusolverStatus_t queue_syevj(cusolverDnHandle_t handle, cusolverEigMode_t mode,
                             cublasFillMode_t fill, int n, T* a, int lda, T* w, T* work,
                             int elements, int* info, syevjInfo_t params) {
  if (mode != CUSOLVER_EIG_MODE_VECTOR || fill != CUBLAS_FILL_MODE_LOWER || params == nullptr) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  T* const matrix = device_matrix<T>(a, n, n, lda, "syevj, A");
  T* const values = device_array<T>(w, n, "syevj, W");
  device_array<T>(work, elements, "syevj, workspace");
  int* const state = checked_info(info);
  const fault now = due(control.syevj);
  enqueue(stream_of(handle), [=] {
    *state = symmetric_eigen(n, matrix, lda, values);
    spill(matrix, n, n, lda);
    spoil<T>(now, *state, values, matrix, n, n, lda);
  });
  return status_of(now);
}

std::size_t syevd_bytes(std::int64_t n, cudaDataType type) {
  return static_cast<std::size_t>(2 * n * n + 32 * n) * size_of(type);
}
std::size_t svd_bytes(std::int64_t m, std::int64_t n, cudaDataType type) {
  return static_cast<std::size_t>(6 * m * n) * size_of(type);
}
std::size_t panel_bytes(std::int64_t n, cudaDataType type) {
  return static_cast<std::size_t>(64 * n) * size_of(type);
}

} // namespace
} // namespace stand_in

using namespace stand_in;

extern "C" {

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  *handle = new cusolverDnContext;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete handle;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnGetStream(cusolverDnHandle_t handle, cudaStream_t* stream) {
  *stream = handle->stream;
  return CUSOLVER_STATUS_SUCCESS;
}
#if CUSOLVER_VER_MAJOR >= 12
cusolverStatus_t cusolverDnSetMathMode(cusolverDnHandle_t handle, cusolverMathMode_t mode) {
  handle->math_mode = mode;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnGetMathMode(cusolverDnHandle_t handle, cusolverMathMode_t* mode) {
  *mode = handle->math_mode;
  return CUSOLVER_STATUS_SUCCESS;
}
#endif
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params) {
  *params = new cusolverDnParams;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params) {
  delete params;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateSyevjInfo(syevjInfo_t* params) {
  *params = new syevjInfo;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroySyevjInfo(syevjInfo_t params) {
  delete params;
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t, cusolverDnParams_t params,
                                             cublasFillMode_t, std::int64_t n, cudaDataType type,
                                             const void*, std::int64_t lda, cudaDataType compute,
                                             std::size_t* device_size, std::size_t* host_size) {
  if (params == nullptr || lda < n || !same({type, compute})) return CUSOLVER_STATUS_INVALID_VALUE;
  *device_size = panel_bytes(n, type);
  *host_size = host_bytes;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                  cublasFillMode_t fill, std::int64_t n, cudaDataType type, void* a,
                                  std::int64_t lda, cudaDataType compute, void* work,
                                  std::size_t work_size, void* on_host, std::size_t host_size,
                                  int* info) {
  if (params == nullptr || fill != CUBLAS_FILL_MODE_LOWER || !same({type, compute})) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  const workspace w = checked(work, work_size, panel_bytes(n, type), on_host, host_size);
  int* const state = checked_info(info);
  with_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const matrix = device_matrix<T>(a, n, n, lda, "potrf, A");
    enqueue(stream_of(handle), [=] {
      w.overwrite();
      *state = late_cholesky(n, matrix, lda);
    });
  });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXgetrf_bufferSize(cusolverDnHandle_t, cusolverDnParams_t params,
                                             std::int64_t m, std::int64_t n, cudaDataType type,
                                             const void*, std::int64_t lda, cudaDataType compute,
                                             std::size_t* device_size, std::size_t* host_size) {
  if (params == nullptr || lda < m || !same({type, compute})) return CUSOLVER_STATUS_INVALID_VALUE;
  *device_size = panel_bytes(n, type);
  *host_size = host_bytes;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXgetrf(cusolverDnHandle_t handle, cusolverDnParams_t, std::int64_t m,
                                  std::int64_t n, cudaDataType type, void* a, std::int64_t lda,
                                  std::int64_t* ipiv, cudaDataType compute, void* work,
                                  std::size_t work_size, void* on_host, std::size_t host_size,
                                  int* info) {
  if (!same({type, compute})) return CUSOLVER_STATUS_INVALID_VALUE;
  const workspace w = checked(work, work_size, panel_bytes(n, type), on_host, host_size);
  int* const state = checked_info(info);
  with_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const matrix = device_matrix<T>(a, m, n, lda, "getrf, A");
    std::int64_t* const pivots = device_array<std::int64_t>(ipiv, std::min(m, n), "getrf, ipiv");
    enqueue(stream_of(handle), [=] {
      w.overwrite();
      std::vector<lapack_int> swaps(static_cast<std::size_t>(std::min(m, n)));
      if constexpr (std::is_same_v<T, float>) {
        *state = LAPACKE_sgetrf(LAPACK_COL_MAJOR, to_lapack(m), to_lapack(n), matrix,
                                to_lapack(lda), swaps.data());
      } else {
        *state = LAPACKE_dgetrf(LAPACK_COL_MAJOR, to_lapack(m), to_lapack(n), matrix,
                                to_lapack(lda), swaps.data());
      }
      std::copy(swaps.begin(), swaps.end(), pivots);
      // What stands below a pivot of 0 is not promised.
      if (*state > 0) matrix[*state - 1 + (*state - 1) * lda + (*state < m ? 1 : 0)] = NAN;
    });
  });
  return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXgeqrf_bufferSize(cusolverDnHandle_t, cusolverDnParams_t params,
                                             std::int64_t m, std::int64_t n, cudaDataType type,
                                             const void*, std::int64_t lda, cudaDataType type_tau,
                                             const void*, cudaDataType compute,
                                             std::size_t* device_size, std::size_t* host_size) {
  if (params == nullptr || lda < m || !same({type, type_tau, compute})) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *device_size = panel_bytes(n, type);
  *host_size = host_bytes;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXgeqrf(cusolverDnHandle_t handle, cusolverDnParams_t, std::int64_t m,
                                  std::int64_t n, cudaDataType type, void* a, std::int64_t lda,
                                  cudaDataType type_tau, void* tau, cudaDataType compute,
                                  void* work, std::size_t work_size, void* on_host,
                                  std::size_t host_size, int* info) {
  if (!same({type, type_tau, compute})) return CUSOLVER_STATUS_INVALID_VALUE;
  const workspace w = checked(work, work_size, panel_bytes(n, type), on_host, host_size);
  int* const state = checked_info(info);
  const fault now = due(control.geqrf);
  with_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const matrix = device_matrix<T>(a, m, n, lda, "geqrf, A");
    T* const scales = device_array<T>(tau, std::min(m, n), "geqrf, tau");
    enqueue(stream_of(handle), [=] {
      w.overwrite();
      if constexpr (std::is_same_v<T, float>) {
        *state = LAPACKE_sgeqrf(LAPACK_COL_MAJOR, to_lapack(m), to_lapack(n), matrix,
                                to_lapack(lda), scales);
      } else {
        *state = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, to_lapack(m), to_lapack(n), matrix,
                                to_lapack(lda), scales);
      }
      spoil<T>(now, *state, scales, matrix, m, std::min(m, n), lda);
    });
  });
  return status_of(now);
}

cusolverStatus_t cusolverDnSorgqr_bufferSize(cusolverDnHandle_t, int, int n, int, const float*, int,
                                             const float*, int* elements) {
  *elements = 33 * n;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDorgqr_bufferSize(cusolverDnHandle_t, int, int n, int, const double*,
                                             int, const double*, int* elements) {
  *elements = 33 * n;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSorgqr(cusolverDnHandle_t handle, int m, int n, int k, float* a, int lda,
                                  const float* tau, float* work, int elements, int* info) {
  return queue_orgqr(handle, m, n, k, a, lda, tau, work, elements, info);
}
cusolverStatus_t cusolverDnDorgqr(cusolverDnHandle_t handle, int m, int n, int k, double* a,
                                  int lda, const double* tau, double* work, int elements,
                                  int* info) {
  return queue_orgqr(handle, m, n, k, a, lda, tau, work, elements, info);
}

cusolverStatus_t cusolverDnXsyevd_bufferSize(cusolverDnHandle_t, cusolverDnParams_t params,
                                             cusolverEigMode_t, cublasFillMode_t, std::int64_t n,
                                             cudaDataType type, const void*, std::int64_t lda,
                                             cudaDataType type_w, const void*, cudaDataType compute,
                                             std::size_t* device_size, std::size_t* host_size) {
  if (params == nullptr || lda < n || !same({type, type_w, compute}) || refuses(control.syevd)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *device_size = syevd_bytes(n, type);
  *host_size = host_bytes;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXsyevd(cusolverDnHandle_t handle, cusolverDnParams_t,
                                  cusolverEigMode_t mode, cublasFillMode_t fill, std::int64_t n,
                                  cudaDataType type, void* a, std::int64_t lda, cudaDataType type_w,
                                  void* w, cudaDataType compute, void* work, std::size_t work_size,
                                  void* on_host, std::size_t host_size, int* info) {
  if (mode != CUSOLVER_EIG_MODE_VECTOR || fill != CUBLAS_FILL_MODE_LOWER ||
      !same({type, type_w, compute})) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  const workspace space = checked(work, work_size, syevd_bytes(n, type), on_host, host_size);
  int* const state = checked_info(info);
  const fault now = due(control.syevd);
  with_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const matrix = device_matrix<T>(a, n, n, lda, "syevd, A");
    T* const values = device_array<T>(w, n, "syevd, W");
    enqueue(stream_of(handle), [=] {
      space.overwrite();
      *state = symmetric_eigen(n, matrix, lda, values);
      spill(matrix, n, n, lda);
      spoil<T>(now, *state, values, matrix, n, n, lda);
    });
  });
  return status_of(now);
}

cusolverStatus_t cusolverDnSsyevj_bufferSize(cusolverDnHandle_t, cusolverEigMode_t,
                                             cublasFillMode_t, int n, const float*, int,
                                             const float*, int* elements, syevjInfo_t) {
  *elements = n * n + 5 * n;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDsyevj_bufferSize(cusolverDnHandle_t, cusolverEigMode_t,
                                             cublasFillMode_t, int n, const double*, int,
                                             const double*, int* elements, syevjInfo_t) {
  *elements = n * n + 5 * n;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSsyevj(cusolverDnHandle_t handle, cusolverEigMode_t mode,
                                  cublasFillMode_t fill, int n, float* a, int lda, float* w,
                                  float* work, int elements, int* info, syevjInfo_t params) {
  return queue_syevj(handle, mode, fill, n, a, lda, w, work, elements, info, params);
}
cusolverStatus_t cusolverDnDsyevj(cusolverDnHandle_t handle, cusolverEigMode_t mode,
                                  cublasFillMode_t fill, int n, double* a, int lda, double* w,
                                  double* work, int elements, int* info, syevjInfo_t params) {
  return queue_syevj(handle, mode, fill, n, a, lda, w, work, elements, info, params);
}

cusolverStatus_t cusolverDnXgesvdp_bufferSize(cusolverDnHandle_t, cusolverDnParams_t params,
                                              cusolverEigMode_t, int, std::int64_t m,
                                              std::int64_t n, cudaDataType type, const void*,
                                              std::int64_t lda, cudaDataType type_s, const void*,
                                              cudaDataType type_u, const void*, std::int64_t ldu,
                                              cudaDataType type_v, const void*, std::int64_t ldv,
                                              cudaDataType compute, std::size_t* device_size,
                                              std::size_t* host_size) {
  if (params == nullptr || lda < m || ldu < m || ldv < n ||
      !same({type, type_s, type_u, type_v, compute}) || refuses(control.gesvdp)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *device_size = svd_bytes(m, n, type);
  *host_size = host_bytes;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXgesvdp(cusolverDnHandle_t handle, cusolverDnParams_t,
                                   cusolverEigMode_t mode, int economy, std::int64_t m,
                                   std::int64_t n, cudaDataType type, void* a, std::int64_t lda,
                                   cudaDataType type_s, void* s, cudaDataType type_u, void* u,
                                   std::int64_t ldu, cudaDataType type_v, void* v, std::int64_t ldv,
                                   cudaDataType compute, void* work, std::size_t work_size,
                                   void* on_host, std::size_t host_size, int* info,
                                   double* perturbation) {
  if (mode != CUSOLVER_EIG_MODE_VECTOR || economy != 1 ||
      !same({type, type_s, type_u, type_v, compute})) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  const workspace space = checked(work, work_size, svd_bytes(m, n, type), on_host, host_size);
  int* const state = checked_info(info);
  host(perturbation, "gesvdp, h_err_sigma");
  const fault now = due(control.gesvdp);
  const double reported = control.gesvdp_perturbation;
  const std::int64_t k = std::min(m, n);
  with_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const matrix = device_matrix<T>(a, m, n, lda, "gesvdp, A");
    T* const values = device_array<T>(s, k, "gesvdp, S");
    T* const left = device_matrix<T>(u, m, k, ldu, "gesvdp, U");
    T* const right = device_matrix<T>(v, n, k, ldv, "gesvdp, V");
    enqueue(stream_of(handle), [=] {
      space.overwrite();
      *state = singular_values(m, n, matrix, lda, values, left, ldu, right, ldv);
      *perturbation = reported;
      spill(matrix, m, n, lda);
      spill(left, m, k, ldu);
      spill(right, n, k, ldv);
      spoil<T>(now, *state, values, left, m, k, ldu);
    });
  });
  return status_of(now);
}

cusolverStatus_t cusolverDnXgesvd_bufferSize(cusolverDnHandle_t, cusolverDnParams_t params,
                                             signed char job_u, signed char job_vt, std::int64_t m,
                                             std::int64_t n, cudaDataType type, const void*,
                                             std::int64_t lda, cudaDataType type_s, const void*,
                                             cudaDataType type_u, const void*, std::int64_t ldu,
                                             cudaDataType type_vt, const void*, std::int64_t ldvt,
                                             cudaDataType compute, std::size_t* device_size,
                                             std::size_t* host_size) {
  if (params == nullptr || job_u != 'S' || job_vt != 'N' || m < n || lda < m || ldu < m ||
      ldvt < 1 || !same({type, type_s, type_u, type_vt, compute}) || refuses(control.gesvd)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  *device_size = svd_bytes(m, n, type);
  *host_size = host_bytes;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXgesvd(cusolverDnHandle_t handle, cusolverDnParams_t, signed char job_u,
                                  signed char job_vt, std::int64_t m, std::int64_t n,
                                  cudaDataType type, void* a, std::int64_t lda, cudaDataType type_s,
                                  void* s, cudaDataType type_u, void* u, std::int64_t ldu,
                                  cudaDataType type_vt, void*, std::int64_t ldvt,
                                  cudaDataType compute, void* work, std::size_t work_size,
                                  void* on_host, std::size_t host_size, int* info) {
  if (job_u != 'S' || job_vt != 'N' || m < n || ldvt < 1 ||
      !same({type, type_s, type_u, type_vt, compute})) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  const workspace space = checked(work, work_size, svd_bytes(m, n, type), on_host, host_size);
  int* const state = checked_info(info);
  const fault now = due(control.gesvd);
  with_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T* const matrix = device_matrix<T>(a, m, n, lda, "gesvd, A");
    T* const values = device_array<T>(s, n, "gesvd, S");
    T* const left = device_matrix<T>(u, m, n, ldu, "gesvd, U");
    enqueue(stream_of(handle), [=] {
      space.overwrite();
      *state =
          singular_values<T>(m, n, matrix, lda, values, left, ldu, static_cast<T*>(nullptr), 0);
      spill(matrix, m, n, lda);
      spill(left, m, n, ldu);
      spoil<T>(now, *state, values, left, m, n, ldu);
    });
  });
  return status_of(now);
}

} // extern "C"
