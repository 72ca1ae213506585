// SPDX-License-Identifier: Apache-2.0
//
// The members of eigen_backend that need Eigen. They are not inline, so that `extern template
// class` (compiled.hpp) spares a translation unit their instantiation.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/backend/cpu/householder.hpp"
#include "ressvd/backend/cpu/tridiagonal.hpp"
#include "ressvd/backend/eigen.hpp"
#include "ressvd/backend/eigen/bidiagonal_qr.hpp"
#include "ressvd/backend/eigen/products.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

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
  host_context& context = *this->context();
  if (c.empty()) return;
  if (a.empty()) return detail::scale_block(beta, c);
  if (c.cols == 1) return detail::column_product(context, oa, ob, alpha, a, b, beta, c);
  if (c.rows > 1) return detail::matrix_product(context, oa, ob, alpha, a, b, beta, c);
  // A single row is the transpose of a column, in one piece.
  std::vector<T> row = detail::gathered<T>(c.data, c.cols, c.ld);
  const block<T> column{row.data(), c.cols, 1, c.cols};
  detail::column_product(context, transposed(ob), transposed(oa), alpha, b, a, beta, column);
  for (index_t j = 0; j < c.cols; ++j)
    c.data[j * c.ld] = column.data[j];
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

// A tall matrix is first reduced to its triangle, a wide one to the triangle of its transpose,
// A = Rᵀ·Qᵀ.
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
  detail::require<backend_error>(detail::bidiagonal_qr(*this->context(), d, e, u),
                                 "the QR iteration did not converge on a ", n, " x ", n, " matrix");
  for (std::size_t i = 0; i < d.size(); ++i)
    values[i] = static_cast<double>(unit) * d[i];
}

// Works by columns of x: each one of x·op(L) = c is c's, less those already known times elements of
// L; 256 rows of x at a time stay in the caches. op(L)·x = c is solved as xᵀ·op(L)ᵀ = cᵀ.
template <compute_scalar T>
void eigen_backend<T>::solve_leaf(side s, op o, block<const T> l, block<T> c) {
  constexpr index_t chunk = 256;
  const index_t n = l.rows;
  const index_t others = s == side::left ? c.cols : c.rows;
  const op across = s == side::left ? transposed(o) : o;
  const auto solve = [&](block<T> x) {
    for (index_t k = 0; k < n; ++k) {
      const index_t j = across == op::transpose ? k : n - 1 - k;
      const auto column = x.col_range(j, 1);
      if (across == op::transpose) {
        gemm(op::none, across, T{-1}, x.left_cols(j), l.part(j, 0, 1, j), T{1}, column);
      } else {
        gemm(op::none, across, T{-1}, x.col_range(j + 1, k), l.part(j + 1, j, k, 1), T{1}, column);
      }
      for (index_t i = 0; i < x.rows; ++i)
        column.data[i] /= l.data[j + j * l.ld];
    }
  };
  const double flops = 4.0 * static_cast<double>(c.size()) * static_cast<double>(n);
  this->context()->parallel_for((others + chunk - 1) / chunk, flops, [&](index_t i) {
    const index_t begin = i * chunk;
    const index_t count = (std::min)(chunk, others - begin);
    if (s == side::right) return solve(c.part(begin, 0, count, n));
    const auto part = c.col_range(begin, count);
    detail::eigen_matrix<T> held = detail::as_eigen(part).transpose();
    solve({held.data(), count, n, count});
    detail::as_eigen(part) = held.transpose();
  });
}

} // namespace v0
} // namespace ressvd
