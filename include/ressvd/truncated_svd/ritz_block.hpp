// SPDX-License-Identifier: Apache-2.0
//
// A block of directions X with its image BX under a matrix B: orthonormal columns, their rotation
// to Ritz vectors, and what these miss.
//   blocks   in the factorisations
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Whether the backend forms the eigenvectors of the largest eigenvalues alone.
template <backend B>
constexpr bool has_leading_eigenvectors = requires(B& be, block_of<B> h, std::span<double> values) {
  be.leading_eigenvectors(h, values, h);
};

/// Eigenvalues of the symmetric h (lower triangle; destroyed), descending, and the eigenvectors of
/// the largest in v's columns, v: n × any count. All of them 14/3·n³ flops; less where the
/// backend has a routine for the largest.
template <backend B>
void leading_eigenpairs(B& be, block_of<B> h, std::span<double> values, block_of<B> v) {
  auto frame = be.frame();
  auto ascending = h;
  if constexpr (has_leading_eigenvectors<B>) {
    ascending = be.scratch(h.rows, v.cols);
    be.leading_eigenvectors(h, values, ascending);
  } else {
    be.eigh(h, values);
  }
  std::reverse(values.begin(), values.end());
  for (index_t i = 0; i < v.cols; ++i) {
    be.copy(ascending.col_range(ascending.cols - 1 - i, 1), v.col_range(i, 1));
  }
}

/// c ← c·v.
template <backend B>
void rotate(B& be, block_of<B> c, const_block_of<B> v) {
  auto frame = be.frame();
  const auto out = be.scratch(c.rows, v.cols);
  be.gemm(op::none, op::none, typename B::scalar{1}, c, v, typename B::scalar{0}, out);
  be.copy(out, c);
}

/// One pass of Cholesky QR over x, which is orthonormal but for rounding; the image follows.
template <backend B>
void polish(B& be, block_of<B> x, block_of<B> image) {
  auto frame = be.frame();
  const auto l = be.scratch(x.cols, x.cols);
  be.fill(l, typename B::scalar{0});
  be.add_gram(x.transposed(), l);
  be.potrf(l);
  be.trsm(side::right, op::transpose, l, x);
  be.trsm(side::right, op::transpose, l, image);
}

/// xᵀ·x, summed in double, in be64's scratch.
template <backend B>
block_of<wide_backend<B>> wide_gram(wide_backend<B>& be64, block_of<B> x) {
  const auto h = be64.scratch(x.cols, x.cols);
  be64.fill(h, 0.0);
  be64.add_gram(x.transposed(), h);
  return h;
}

/// What the sum of the largest Ritz values θ_1, …, θ_r of a block of b misses of the eigenvalues,
/// to second order: Σ_i s_i/(θ_i − θ_m), s_i the squared residuals, each term at most √s_i. θ_m in
/// the middle between θ_r and θ_b stands for the eigenvalues outside of the block: they may reach
/// above θ_b, which has hardly converged.
/// Source: Parlett, "The Symmetric Eigenvalue Problem", ch. 11.
inline double missed_by_ritz_values(const std::vector<double>& theta,
                                    const std::vector<double>& squared_residuals) {
  const std::size_t rank = squared_residuals.size();
  const double outside = theta[(std::min)((rank + theta.size()) / 2, theta.size() - 1)];
  double sum = 0;
  for (std::size_t i = 0; i < rank; ++i) {
    const double s = squared_residuals[i];
    if (s == 0) continue;
    const double gap = theta[i] - outside;
    sum += 2 * s / (gap + std::sqrt(gap * gap + 4 * s));
  }
  return sum;
}

/// Rotates x, orthonormal, and its image BX to Ritz vectors of BᵀB; returns their Ritz values,
/// descending.
template <backend B>
std::vector<double> rotate_to_ritz_vectors(B& be, block_of<B> x, block_of<B> image) {
  using wide = wide_backend<B>;
  wide be64(be);
  auto frame = be.frame();
  std::vector<double> theta(static_cast<std::size_t>(x.cols));
  const auto v = be.scratch(x.cols, x.cols);
  const auto v64 = be64.scratch(x.cols, x.cols);
  leading_eigenpairs(be64, wide_gram<B>(be64, image), std::span<double>(theta), v64);
  be.copy(v64, v);
  rotate<B>(be, x, v);
  rotate<B>(be, image, v);
  return theta;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
