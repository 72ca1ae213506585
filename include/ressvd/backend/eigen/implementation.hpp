// SPDX-License-Identifier: Apache-2.0
//
// The members of eigen_backend that need Eigen. Not inline on purpose: `extern template class`
// (compiled.hpp) then spares a translation unit their instantiation.
#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ressvd/backend/eigen.hpp"
#include "ressvd/backend/eigen/tridiagonal_qr.hpp"

namespace ressvd::inline v0 {
namespace detail {

template <class T>
using eigen_matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;

template <class T>
auto as_eigen(block<T> a) {
  using matrix_type =
      std::conditional_t<std::is_const_v<T>, const eigen_matrix<std::remove_const_t<T>>,
                         eigen_matrix<T>>;
  return Eigen::Map<matrix_type, 0, Eigen::OuterStride<>>(a.data, a.rows, a.cols,
                                                          Eigen::OuterStride<>(a.ld));
}

/// Divides a by a power of two near its largest element and returns that power: Eigen's Householder
/// reflections square what they are given.
template <class Matrix>
auto take_scale(Matrix& a) {
  using T = typename Matrix::Scalar;
  const T largest = a.size() == 0 ? T{0} : a.cwiseAbs().maxCoeff();
  if (largest == T{0} || !std::isfinite(largest)) return T{1};
  int exponent = 0;
  std::frexp(largest, &exponent);
  const T unit = std::ldexp(T{1}, (std::min)(exponent, std::numeric_limits<T>::max_exponent - 1));
  a /= unit;
  return unit;
}

template <class Solver>
void check_converged(const Solver& solver, const char* routine, index_t rows, index_t cols) {
  require<backend_error>(solver.info() == Eigen::Success, "Eigen's ", routine,
                         " did not converge on a ", rows, " x ", cols, " matrix");
}

} // namespace detail

template <compute_scalar T>
void eigen_backend<T>::gemm(op oa, op ob, T alpha, block<const T> a, block<const T> b, T beta,
                            block<T> c) {
  auto out = detail::as_eigen(c);
  if (beta == T{0}) {
    out.setZero();
  } else if (beta != T{1}) {
    out *= beta;
  }
  if (c.empty() || a.empty() || b.empty()) return;
  const auto x = detail::as_eigen(a);
  const auto y = detail::as_eigen(b);
  // A single column runs at the speed of memory in Eigen's matrix-vector product.
  if (c.cols == 1 && ob == op::none) {
    if (oa == op::none) {
      out.col(0).noalias() += alpha * x * y.col(0);
    } else {
      out.col(0).noalias() += alpha * x.transpose() * y.col(0);
    }
  } else if (oa == op::none && ob == op::none) {
    out.noalias() += alpha * x * y;
  } else if (oa == op::none) {
    out.noalias() += alpha * x * y.transpose();
  } else if (ob == op::none) {
    out.noalias() += alpha * x.transpose() * y;
  } else {
    out.noalias() += alpha * x.transpose() * y.transpose();
  }
}

template <compute_scalar T>
void eigen_backend<T>::thin_qr(block<T> c, block<T> r) {
  auto q = detail::as_eigen(c);
  const T unit = detail::take_scale(q);
  const Eigen::HouseholderQR<detail::eigen_matrix<T>> qr(q);
  auto triangle = detail::as_eigen(r);
  triangle = qr.matrixQR().topRows(c.cols).template triangularView<Eigen::Upper>();
  triangle *= unit;
  q.setIdentity();
  q.applyOnTheLeft(qr.householderQ());
}

template <compute_scalar T>
void eigen_backend<T>::triangularize(block<T> c, block<T> r) {
  using stored = Eigen::Map<detail::eigen_matrix<T>, 0, Eigen::OuterStride<>>;
  stored in = detail::as_eigen(c);
  auto out = detail::as_eigen(r);
  const T unit = detail::take_scale(in);
  const Eigen::HouseholderQR<Eigen::Ref<detail::eigen_matrix<T>>> qr(in);
  const index_t k = (std::min)(c.rows, c.cols);
  out.setZero();
  out.topRows(k) = in.topRows(k).template triangularView<Eigen::Upper>();
  out *= unit;
}

template <compute_scalar T>
void eigen_backend<T>::eigh(block<T> c, std::span<double> values) {
  auto a = detail::as_eigen(c);
  if (c.rows == 1) {
    values[0] = static_cast<double>(a(0, 0));
    a(0, 0) = T{1};
    return;
  }
  const T unit = detail::take_scale(a);
  std::vector<T> diagonal(static_cast<std::size_t>(c.rows));
  std::vector<T> beside(diagonal.size() - 1);
  {
    const Eigen::Tridiagonalization<detail::eigen_matrix<T>> reduced(a);
    for (std::size_t i = 0; i < diagonal.size(); ++i)
      diagonal[i] = reduced.diagonal()[static_cast<index_t>(i)];
    for (std::size_t i = 0; i < beside.size(); ++i)
      beside[i] = reduced.subDiagonal()[static_cast<index_t>(i)];
    a = reduced.matrixQ();
  }
  detail::require<backend_error>(detail::tridiagonal_qr(diagonal, beside, c),
                                 "the QR iteration did not converge on a ", c.rows, " x ", c.cols,
                                 " matrix");
  for (std::size_t i = 0; i < diagonal.size(); ++i)
    values[i] = static_cast<double>(unit) * static_cast<double>(diagonal[i]);
}

template <compute_scalar T>
void eigen_backend<T>::svd(block<T> c, std::span<double> values, block<T> u) {
  const Eigen::BDCSVD<detail::eigen_matrix<T>> solver(detail::as_eigen(c), Eigen::ComputeThinU);
  detail::check_converged(solver, "BDCSVD", c.rows, c.cols);
  detail::as_eigen(u) = solver.matrixU();
  for (index_t i = 0; i < (std::min)(c.rows, c.cols); ++i) {
    values[static_cast<std::size_t>(i)] = static_cast<double>(solver.singularValues()[i]);
  }
}

template <compute_scalar T>
void eigen_backend<T>::solve_leaf(side s, op o, block<const T> l, block<T> c) {
  const auto lower = detail::as_eigen(l).template triangularView<Eigen::Lower>();
  auto x = detail::as_eigen(c);
  if (s == side::left && o == op::none) {
    lower.solveInPlace(x);
  } else if (s == side::left) {
    lower.transpose().solveInPlace(x);
  } else if (o == op::none) {
    lower.template solveInPlace<Eigen::OnTheRight>(x);
  } else {
    lower.transpose().template solveInPlace<Eigen::OnTheRight>(x);
  }
}

} // namespace ressvd::inline v0
