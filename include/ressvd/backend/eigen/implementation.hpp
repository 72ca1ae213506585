// SPDX-License-Identifier: Apache-2.0
//
// The members of eigen_backend that need Eigen. Not inline on purpose: `extern template class`
// (compiled.hpp) then spares a translation unit their instantiation.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/backend/cpu/tridiagonal.hpp"
#include "ressvd/backend/eigen.hpp"
#include "ressvd/backend/eigen/bidiagonal_qr.hpp"
#include "ressvd/backend/eigen/householder.hpp"
#include "ressvd/backend/eigen/threads.hpp"

namespace ressvd {
inline namespace v0 {
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

/// Divides a by a power of two near its largest element and returns that power: Householder
/// reflections square what they are given.
template <class B>
typename B::scalar take_scale(B& be, block_of<B> a) {
  using T = typename B::scalar;
  const double largest = be.max_abs(a);
  if (largest == 0 || !std::isfinite(largest)) return T{1};
  int exponent = 0;
  std::frexp(largest, &exponent);
  const T unit = std::ldexp(T{1}, (std::min)(exponent, std::numeric_limits<T>::max_exponent - 1));
  for (index_t j = 0; j < a.cols; ++j) {
    for (index_t i = 0; i < a.rows; ++i)
      a.data[i + j * a.ld] /= unit;
  }
  return unit;
}

/// r ← scale times the upper triangle of a, with zeros below it and below a's last row.
template <class B>
void copy_triangle(B& be, const_block_of<B> a, typename B::scalar scale, block_of<B> r) {
  be.fill(r, 0);
  for (index_t j = 0; j < a.cols; ++j) {
    for (index_t i = 0; i < (std::min)(j + 1, a.rows); ++i)
      r.data[i + j * r.ld] = scale * a.data[i + j * a.ld];
  }
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
  // A single column runs at the speed of memory in Eigen's matrix-vector product; each thread forms
  // a part of it, or of its sum where the columns of a would be short.
  const bool single = c.cols == 1 && ob == op::none;
  const index_t threads = single ? detail::threads_for(a.size()) : 1;
  const auto add = [=](block<const T> part, block<const T> v, block<T> sum) {
    if (oa == op::none) {
      detail::as_eigen(sum).col(0).noalias() +=
          alpha * detail::as_eigen(part) * detail::as_eigen(v).col(0);
    } else {
      detail::as_eigen(sum).col(0).noalias() +=
          alpha * detail::as_eigen(part).transpose() * detail::as_eigen(v).col(0);
    }
  };
  if (single && threads > 1 && oa == op::none && a.rows < a.cols) {
    detail::eigen_matrix<T> sums(c.rows, threads);
    sums.setZero();
    detail::in_parallel(threads, [&](index_t t) {
      const index_t begin = a.cols * t / threads;
      const index_t count = a.cols * (t + 1) / threads - begin;
      add(a.col_range(begin, count), b.part(begin, 0, count, 1),
          {sums.data() + t * c.rows, c.rows, 1, c.rows});
    });
    for (index_t t = 0; t < threads; ++t)
      out.col(0) += sums.col(t);
  } else if (single) {
    detail::in_parallel(threads, [&](index_t t) {
      const index_t begin = c.rows * t / threads;
      const index_t count = c.rows * (t + 1) / threads - begin;
      add(oa == op::none ? a.part(begin, 0, count, a.cols) : a.col_range(begin, count), b,
          c.part(begin, 0, count, 1));
    });
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
  const T unit = detail::take_scale(*this, c);
  const auto reflectors = detail::reduce_to_triangle(*this, c);
  detail::copy_triangle<eigen_backend>(*this, c, unit, r);
  detail::form_q(*this, reflectors, c);
}

template <compute_scalar T>
void eigen_backend<T>::triangularize(block<T> c, block<T> r) {
  const T unit = detail::take_scale(*this, c);
  detail::reduce_to_triangle(*this, c);
  detail::copy_triangle<eigen_backend>(*this, c, unit, r);
}

template <compute_scalar T>
void eigen_backend<T>::eigh(block<T> c, std::span<double> values) {
  leading_eigenvectors(c, values, c);
}

template <compute_scalar T>
void eigen_backend<T>::leading_eigenvectors(block<T> c, std::span<double> values, block<T> q) {
  const index_t n = c.rows;
  this->mirror_lower(c);
  const T unit = detail::take_scale(*this, c);
  std::vector<T> diagonal(static_cast<std::size_t>(n));
  std::vector<T> beside(diagonal.size() - 1);
  const auto reflectors = detail::reduce_to_tridiagonal(*this, c, diagonal, beside);
  const std::vector<double> d(diagonal.begin(), diagonal.end());
  const std::vector<double> e(beside.begin(), beside.end());
  detail::require<backend_error>(detail::tridiagonal_eigenvectors(*this, d, e, values, q),
                                 "the eigenvalues of a ", n, " x ", n, " matrix did not converge");
  detail::apply_q(*this, reflectors, q.part(1, 0, n - 1, q.cols));
  for (double& value : values.first(diagonal.size()))
    value *= static_cast<double>(unit);
}

// A tall matrix is first reduced to its triangle; of a wide one the triangle of its transpose is
// taken, A = Rᵀ·Qᵀ.
template <compute_scalar T>
void eigen_backend<T>::svd(block<T> c, std::span<double> values, block<T> u) {
  const index_t n = (std::min)(c.rows, c.cols);
  if (c.rows != c.cols) {
    auto square = this->allocate(n, n);
    if (c.rows > n) {
      thin_qr(c, square);
      auto inner = this->allocate(n, n);
      svd(square, values, inner);
      return gemm(op::none, op::none, T{1}, c, inner, T{0}, u);
    }
    auto transposed = this->allocate(c.cols, n);
    this->copy(block<const T>(c).view().transposed(), transposed);
    triangularize(transposed, square);
    const auto lower = c.left_cols(n);
    this->copy(square.transposed(), lower);
    return svd(lower, values, u);
  }
  const T unit = detail::take_scale(*this, c);
  std::vector<T> diagonal(static_cast<std::size_t>(n));
  std::vector<T> above(diagonal.size() - 1);
  {
    const auto reflectors = detail::reduce_to_bidiagonal(*this, c, diagonal, above);
    detail::form_q(*this, reflectors, u);
  }
  std::vector<double> d(diagonal.begin(), diagonal.end());
  std::vector<double> e(above.begin(), above.end());
  detail::require<backend_error>(detail::bidiagonal_qr(d, e, u),
                                 "the QR iteration did not converge on a ", n, " x ", n, " matrix");
  for (std::size_t i = 0; i < d.size(); ++i)
    values[i] = static_cast<double>(unit) * d[i];
}

// By columns of x alone: in x·op(L) = c each is c's, less those already known times elements of L.
// op(L)·x = c is solved as xᵀ·op(L)ᵀ = cᵀ.
template <compute_scalar T>
void eigen_backend<T>::solve_leaf(side s, op o, block<const T> l, block<T> c) {
  if (s == side::left) {
    constexpr index_t chunk = 256;
    for (index_t j = 0; j < c.cols; j += chunk) {
      auto f = this->frame();
      const auto part = c.col_range(j, (std::min)(chunk, c.cols - j));
      const auto across = this->scratch(part.cols, part.rows);
      this->copy(block<const T>(part).view().transposed(), across);
      solve_leaf(side::right, transposed(o), l, across);
      this->copy(block<const T>(across).view().transposed(), part);
    }
    return;
  }
  const index_t n = l.rows;
  for (index_t k = 0; k < n; ++k) {
    const index_t j = o == op::transpose ? k : n - 1 - k;
    const auto column = c.col_range(j, 1);
    if (o == op::transpose) {
      gemm(op::none, o, T{-1}, c.left_cols(j), l.part(j, 0, 1, j), T{1}, column);
    } else {
      gemm(op::none, o, T{-1}, c.col_range(j + 1, k), l.part(j + 1, j, k, 1), T{1}, column);
    }
    for (index_t i = 0; i < c.rows; ++i)
      column.data[i] /= l.data[j + j * l.ld];
  }
}

} // namespace v0
} // namespace ressvd
