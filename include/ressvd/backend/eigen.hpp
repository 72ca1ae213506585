// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend on Eigen. This header declares it without including Eigen; the definitions are
// in backend/eigen/implementation.hpp, which ressvd.hpp includes and compiled.hpp does not.
//
// Eigen supplies the products. The decompositions are Householder reductions written over them
// (cpu/householder.hpp), divide and conquer for eigh (cpu/tridiagonal.hpp) and, for svd, a QR
// iteration whose rotations are applied in batches. They compile in a small part of the time of
// Eigen's own.
//
// Threads: products, matrix-vector products, triangular solves and rotations are divided among the
// threads of the context (cpu/host_context.hpp), and no part of them uses OpenMP, whatever the
// flags. The number of threads does not change the results (eigen/products.hpp says why).
#pragma once

#include "ressvd/backend/cpu/host.hpp"

namespace ressvd {
inline namespace v0 {

template <compute_scalar T>
class eigen_backend : public host_backend<eigen_backend<T>, T> {
  using base = host_backend<eigen_backend<T>, T>;
  friend base;

 public:
  template <compute_scalar U>
  using rebind = eigen_backend<U>;

  /// Owns a context that grows on demand.
  eigen_backend() = default;
  /// Computes on a given context, e.g. one with the engine's own buffer.
  explicit eigen_backend(std::shared_ptr<host_context> context) : base(std::move(context)) {}
  /// The same context in another precision.
  template <compute_scalar U>
  eigen_backend(const eigen_backend<U>& other) : base(other.context()) {}

  void gemm(op oa, op ob, T alpha, block<const T> a, block<const T> b, T beta, block<T> c);
  void thin_qr(block<T> c, block<T> r);
  void triangularize(block<T> c, block<T> r);
  void eigh(block<T> c, std::span<double> values);
  void svd(block<T> c, std::span<double> values, block<T> u);
  /// values: all eigenvalues, ascending, of the symmetric n × n matrix in c's lower triangle, which
  /// is destroyed. q: n × count, orthonormal eigenvectors of the count ≤ n largest, in the same
  /// order; it may be c. 4/3·n³ flops for the reduction, half of them in matrix-vector
  /// products, 2n²·count for its transformation of the vectors, and at most n³/3 + n²·count for
  /// those of the tridiagonal matrix, where count > 0.
  void leading_eigenvectors(block<T> c, std::span<double> values, block<T> q);

 private:
  void solve_leaf(side s, op o, block<const T> l, block<T> c);
};

} // namespace v0
} // namespace ressvd
