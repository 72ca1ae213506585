// SPDX-License-Identifier: Apache-2.0
//
// cuSOLVER over blocks: the 64-bit interface where there is one. Sizes of workspace are in bytes
// there, in elements in the older interface (orgqr, syevj). `info` is an int on the device: -i for
// a wrong i-th parameter, 0 for success, or how far the routine got.
#pragma once

#include <cstddef>
#include <limits>

#include "ressvd/backend/cuda/blas.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

/// Bytes of workspace that a cuSOLVER routine asks for.
struct solver_size {
  std::size_t device = 0;
  std::size_t host = 0;
};

/// That workspace; the device part lives as long as the open scratch frame.
struct solver_space {
  solver_size size;
  void* device;
  void* host;
};

inline solver_space take(cuda_context& context, solver_size size) {
  return {size, context.scratch.take(size.device), context.host_workspace(size.host)};
}

inline int* take_info(cuda_context& context) {
  return static_cast<int*>(context.scratch.take(sizeof(int)));
}

/// The older interface counts in int.
inline int as_int(index_t n) {
  require<solver_error>(n <= (std::numeric_limits<int>::max)(), "a dimension of ", n,
                        " exceeds cuSOLVER's 32-bit interface");
  return static_cast<int>(n);
}

/// That interface answers in int as well, where a large workspace may overflow.
template <compute_scalar T>
solver_size in_elements(int count) {
  require<solver_error>(count >= 0, "cuSOLVER asked for a workspace of ", count, " elements");
  return {static_cast<std::size_t>(count) * sizeof(T), 0};
}

inline void check_parameters(int info, const char* routine) {
  require<solver_error>(info >= 0, "cuSOLVER's ", routine, " refused its parameter ", -info);
}

template <compute_scalar T>
solver_size potrf_size(cuda_context& context, device_block<T> c) {
  solver_size size;
  check(cusolverDnXpotrf_bufferSize(context.cusolver(), context.params(), CUBLAS_FILL_MODE_LOWER,
                                    c.rows, cuda_type<T>(), c.data, c.ld, cuda_type<T>(),
                                    &size.device, &size.host));
  return size;
}

/// Cholesky, lower; info > 0 is the order of a minor that is not positive: by the documentation the
/// first, on devices sometimes the first of the next block.
template <compute_scalar T>
void potrf(cuda_context& context, device_block<T> c, int* info) {
  const auto w = take(context, potrf_size(context, c));
  check(cusolverDnXpotrf(context.cusolver(), context.params(), CUBLAS_FILL_MODE_LOWER, c.rows,
                         cuda_type<T>(), c.data, c.ld, cuda_type<T>(), w.device, w.size.device,
                         w.host, w.size.host, info));
}

template <compute_scalar T>
solver_size getrf_size(cuda_context& context, device_block<T> c) {
  solver_size size;
  check(cusolverDnXgetrf_bufferSize(context.cusolver(), context.params(), c.rows, c.cols,
                                    cuda_type<T>(), c.data, c.ld, cuda_type<T>(), &size.device,
                                    &size.host));
  return size;
}

/// LU with partial pivoting: row i changed places with row pivots_i − 1, in this order. info > 0:
/// the pivot of that column is 0.
template <compute_scalar T>
void getrf(cuda_context& context, device_block<T> c, std::int64_t* pivots, int* info) {
  const auto w = take(context, getrf_size(context, c));
  check(cusolverDnXgetrf(context.cusolver(), context.params(), c.rows, c.cols, cuda_type<T>(),
                         c.data, c.ld, pivots, cuda_type<T>(), w.device, w.size.device, w.host,
                         w.size.host, info));
}

template <compute_scalar T>
solver_size geqrf_size(cuda_context& context, device_block<T> c, device_block<T> tau) {
  solver_size size;
  check(cusolverDnXgeqrf_bufferSize(context.cusolver(), context.params(), c.rows, c.cols,
                                    cuda_type<T>(), c.data, c.ld, cuda_type<T>(), tau.data,
                                    cuda_type<T>(), &size.device, &size.host));
  return size;
}

/// Householder QR: R in the upper triangle, the reflectors below it and in tau (min(m, n)).
template <compute_scalar T>
void geqrf(cuda_context& context, device_block<T> c, device_block<T> tau) {
  const auto w = take(context, geqrf_size(context, c, tau));
  check(cusolverDnXgeqrf(context.cusolver(), context.params(), c.rows, c.cols, cuda_type<T>(),
                         c.data, c.ld, cuda_type<T>(), tau.data, cuda_type<T>(), w.device,
                         w.size.device, w.host, w.size.host, take_info(context)));
}

template <compute_scalar T>
solver_size orgqr_size(cuda_context& context, device_block<T> c, device_block<T> tau) {
  const int m = as_int(c.rows);
  const int n = as_int(c.cols);
  int elements = 0;
  if constexpr (std::is_same_v<T, float>) {
    check(cusolverDnSorgqr_bufferSize(context.cusolver(), m, n, n, c.data, as_int(c.ld), tau.data,
                                      &elements));
  } else {
    check(cusolverDnDorgqr_bufferSize(context.cusolver(), m, n, n, c.data, as_int(c.ld), tau.data,
                                      &elements));
  }
  return in_elements<T>(elements);
}

/// c, as geqrf left it, becomes the first n columns of Q. There is no 64-bit interface.
template <compute_scalar T>
void orgqr(cuda_context& context, device_block<T> c, device_block<T> tau) {
  const auto w = take(context, orgqr_size(context, c, tau));
  const int m = as_int(c.rows);
  const int n = as_int(c.cols);
  const int elements = as_int(static_cast<index_t>(w.size.device / sizeof(T)));
  auto* work = static_cast<T*>(w.device);
  if constexpr (std::is_same_v<T, float>) {
    check(cusolverDnSorgqr(context.cusolver(), m, n, n, c.data, as_int(c.ld), tau.data, work,
                           elements, take_info(context)));
  } else {
    check(cusolverDnDorgqr(context.cusolver(), m, n, n, c.data, as_int(c.ld), tau.data, work,
                           elements, take_info(context)));
  }
}

template <compute_scalar T>
solver_size syevd_size(cuda_context& context, device_block<T> c, device_block<T> w) {
  solver_size size;
  check(cusolverDnXsyevd_bufferSize(context.cusolver(), context.params(), CUSOLVER_EIG_MODE_VECTOR,
                                    CUBLAS_FILL_MODE_LOWER, c.rows, cuda_type<T>(), c.data, c.ld,
                                    cuda_type<T>(), w.data, cuda_type<T>(), &size.device,
                                    &size.host));
  return size;
}

/// Eigenvalues ascending in w, eigenvectors in c's columns, of the matrix in c's lower triangle:
/// divide and conquer. info > 0: not converged.
template <compute_scalar T>
void syevd(cuda_context& context, device_block<T> c, device_block<T> w, int* info) {
  const auto space = take(context, syevd_size(context, c, w));
  check(cusolverDnXsyevd(context.cusolver(), context.params(), CUSOLVER_EIG_MODE_VECTOR,
                         CUBLAS_FILL_MODE_LOWER, c.rows, cuda_type<T>(), c.data, c.ld,
                         cuda_type<T>(), w.data, cuda_type<T>(), space.device, space.size.device,
                         space.host, space.size.host, info));
}

/// Parameters of Jacobi's method, at cuSOLVER's defaults: sorted, to working precision.
class syevj_params {
 public:
  syevj_params() { check(cusolverDnCreateSyevjInfo(&params_)); }
  syevj_params(const syevj_params&) = delete;
  syevj_params& operator=(const syevj_params&) = delete;
  ~syevj_params() { cusolverDnDestroySyevjInfo(params_); }
  operator syevjInfo_t() const { return params_; }

 private:
  syevjInfo_t params_ = nullptr;
};

template <compute_scalar T>
solver_size syevj_size(cuda_context& context, device_block<T> c, device_block<T> w,
                       const syevj_params& params) {
  int elements = 0;
  if constexpr (std::is_same_v<T, float>) {
    check(cusolverDnSsyevj_bufferSize(context.cusolver(), CUSOLVER_EIG_MODE_VECTOR,
                                      CUBLAS_FILL_MODE_LOWER, as_int(c.rows), c.data, as_int(c.ld),
                                      w.data, &elements, params));
  } else {
    check(cusolverDnDsyevj_bufferSize(context.cusolver(), CUSOLVER_EIG_MODE_VECTOR,
                                      CUBLAS_FILL_MODE_LOWER, as_int(c.rows), c.data, as_int(c.ld),
                                      w.data, &elements, params));
  }
  return in_elements<T>(elements);
}

/// The same as syevd by Jacobi's method, slow and sure. Blocks. There is no 64-bit interface.
template <compute_scalar T>
void syevj(cuda_context& context, device_block<T> c, device_block<T> w, int* info) {
  const syevj_params params;
  const auto space = take(context, syevj_size(context, c, w, params));
  const int elements = as_int(static_cast<index_t>(space.size.device / sizeof(T)));
  auto* work = static_cast<T*>(space.device);
  cusolverStatus_t status = CUSOLVER_STATUS_SUCCESS;
  if constexpr (std::is_same_v<T, float>) {
    status = cusolverDnSsyevj(context.cusolver(), CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER,
                              as_int(c.rows), c.data, as_int(c.ld), w.data, work, elements, info,
                              params);
  } else {
    status = cusolverDnDsyevj(context.cusolver(), CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER,
                              as_int(c.rows), c.data, as_int(c.ld), w.data, work, elements, info,
                              params);
  }
  context.synchronize(); // before the parameters go, also where it failed half-way
  check(status);
}

template <compute_scalar T>
solver_size gesvdp_size(cuda_context& context, device_block<T> a, device_block<T> s,
                        device_block<T> u, device_block<T> v) {
  constexpr auto type = cuda_type<T>();
  solver_size size;
  check(cusolverDnXgesvdp_bufferSize(context.cusolver(), context.params(), CUSOLVER_EIG_MODE_VECTOR,
                                     1, a.rows, a.cols, type, a.data, a.ld, type, s.data, type,
                                     u.data, u.ld, type, v.data, v.ld, type, &size.device,
                                     &size.host));
  return size;
}

/// Economy SVD of a (destroyed) by polar decomposition, k = min(m, n): s (k) descending, u: m × k,
/// v: n × k (V, not Vᵀ). Blocks. Returns the perturbation of the singular values that it needed.
template <compute_scalar T>
double gesvdp(cuda_context& context, device_block<T> a, device_block<T> s, device_block<T> u,
              device_block<T> v, int* info) {
  constexpr auto type = cuda_type<T>();
  double perturbation = 0;
  const auto w = take(context, gesvdp_size(context, a, s, u, v));
  const cusolverStatus_t status = cusolverDnXgesvdp(
      context.cusolver(), context.params(), CUSOLVER_EIG_MODE_VECTOR, 1, a.rows, a.cols, type,
      a.data, a.ld, type, s.data, type, u.data, u.ld, type, v.data, v.ld, type, w.device,
      w.size.device, w.host, w.size.host, info, &perturbation);
  context.synchronize(); // the perturbation is written to this function's memory
  check(status);
  return perturbation;
}

template <compute_scalar T>
solver_size gesvd_size(cuda_context& context, device_block<T> a, device_block<T> s,
                       device_block<T> u) {
  constexpr auto type = cuda_type<T>();
  solver_size size;
  check(cusolverDnXgesvd_bufferSize(context.cusolver(), context.params(), 'S', 'N', a.rows, a.cols,
                                    type, a.data, a.ld, type, s.data, type, u.data, u.ld, type,
                                    nullptr, a.cols, type, &size.device, &size.host));
  return size;
}

/// Economy SVD of a (destroyed), m ≥ n, by QR iteration: s (n) descending, u: m × n; no right
/// singular vectors. info > 0: not converged.
template <compute_scalar T>
void gesvd(cuda_context& context, device_block<T> a, device_block<T> s, device_block<T> u,
           int* info) {
  constexpr auto type = cuda_type<T>();
  const auto w = take(context, gesvd_size(context, a, s, u));
  check(cusolverDnXgesvd(context.cusolver(), context.params(), 'S', 'N', a.rows, a.cols, type,
                         a.data, a.ld, type, s.data, type, u.data, u.ld, type, nullptr, a.cols,
                         type, w.device, w.size.device, w.host, w.size.host, info));
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
