// SPDX-License-Identifier: Apache-2.0
//
// What block iterations for singular vectors share: a block of directions X beside its image B·X
// under a matrix B, kept in step. Ritz vectors are the combinations of the directions that
// diagonalise XᵀBᵀB·X; their Ritz values θ approximate eigenvalues of BᵀB from below.
//   blocks   in the factorisations
//   source   Parlett, "The Symmetric Eigenvalue Problem", ch. 11
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/eigenpairs.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// B = op(A) for a block A, and how much it was multiplied by.
template <backend B>
class iterated_matrix {
  using T = typename B::scalar;
  using block_type = block_of<B>;

 public:
  iterated_matrix(B& be, block_type a, op o) : be_(be), a_(a), op_(o) {}

  index_t rows() const { return op_ == op::none ? a_.rows : a_.cols; }
  index_t cols() const { return op_ == op::none ? a_.cols : a_.rows; }
  /// Columns that B or Bᵀ was multiplied by, so far.
  index_t columns_multiplied() const { return multiplied_; }
  double energy() { return be_.dot(a_, a_); }

  /// out ← B·x.
  void forward(const_block_of<B> x, block_type out) {
    be_.gemm(op_, op::none, T{1}, a_, x, T{0}, out);
    multiplied_ += x.cols;
  }
  /// out ← alpha·Bᵀ·y + beta·out.
  void backward(T alpha, const_block_of<B> y, T beta, block_type out) {
    be_.gemm(transposed(op_), op::none, alpha, a_, y, beta, out);
    multiplied_ += y.cols;
  }
  void backward(const_block_of<B> y, block_type out) { backward(T{1}, y, T{0}, out); }
  /// B ← B − y·xᵀ.
  void subtract(const_block_of<B> y, const_block_of<B> x) {
    const bool plain = op_ == op::none;
    be_.gemm(op::none, op::transpose, T{-1}, plain ? y : x, plain ? x : y, T{1}, a_);
  }
  /// sum += BᵀB, both triangles or the lower one.
  void add_gram(block_type sum) {
    be_.add_gram(op_ == op::none ? a_.transposed() : a_.view(), sum);
  }

 private:
  B& be_;
  block_type a_;
  op op_;
  index_t multiplied_ = 0;
};

/// ‖c_j‖² for each column, a few columns at a time in scratch. Blocks.
template <backend B>
std::vector<double> column_energies(B& be, const_block_of<B> c) {
  constexpr index_t most = 64;
  auto frame = be.frame();
  const auto rows = be.scratch((std::min)(most, c.cols), c.rows);
  std::vector<double> energies(static_cast<std::size_t>(c.cols));
  for (index_t first = 0; first < c.cols; first += most) {
    const index_t count = (std::min)(most, c.cols - first);
    const auto part = rows.top_rows(count);
    be.copy(c.col_range(first, count).transposed(), part);
    be.row_squared_norms(part,
                         std::span<double>(energies).subspan(static_cast<std::size_t>(first),
                                                             static_cast<std::size_t>(count)));
  }
  return energies;
}

/// What the sum of the largest Ritz values θ_1, …, θ_r of a block of b misses of the eigenvalues,
/// to second order: Σ_i s_i/(θ_i − θ_m), s_i the squared residuals, each term at most √s_i. θ_m in
/// the middle between θ_r and θ_b stands for the eigenvalues outside of the block: they may reach
/// above θ_b, which has hardly converged.
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

/// Outliers that were taken out of a matrix.
struct taken_outliers {
  std::vector<double> theta; ///< their Ritz values, descending
  double next = 0;           ///< the largest Ritz value that stayed

  index_t count() const { return static_cast<index_t>(theta.size()); }
};

/// X, k × c with orthonormal columns, and B·X. A light handle on the caller's blocks.
template <backend B>
class ritz_block {
  using T = typename B::scalar;
  using block_type = block_of<B>;
  using view_type = matrix_view<const T, typename B::space>;

 public:
  ritz_block(B& be, block_type x, block_type image) : be_(be), x_(x), image_(image) {}

  block_type x() const { return x_; }
  block_type image() const { return image_; }
  index_t size() const { return x_.cols; }
  ritz_block part(index_t first, index_t count) const {
    return {be_, x_.col_range(first, count), image_.col_range(first, count)};
  }

  /// Directions and their images become the columns from `first` on; the rest is as it was.
  void join(index_t first, view_type x, view_type image) const {
    be_.copy(x, x_.col_range(first, x.cols));
    be_.copy(image, image_.col_range(first, image.cols));
  }

  /// The leading directions of b, roughly: three steps of power iteration from a random block.
  void seek_leading(iterated_matrix<B>& b, std::uint64_t seed) const {
    be_.random_normal(image_, seed);
    for (int step = 0; step < 3; ++step) {
      b.backward(image_, x_);
      orthonormalize(be_, x_);
      b.forward(x_, image_);
    }
  }

  /// One pass of Cholesky QR over directions that are orthonormal but for rounding.
  void polish() const {
    auto frame = be_.frame();
    const auto l = be_.scratch(size(), size());
    be_.fill(l, T{0});
    be_.add_gram(x_.transposed(), l);
    be_.potrf(l);
    be_.trsm(side::right, op::transpose, l, x_);
    be_.trsm(side::right, op::transpose, l, image_);
  }

  /// All Ritz values, descending, from XᵀBᵀB·X summed and decomposed in double; v: c × any count
  /// becomes the combinations X·v that are the Ritz vectors of the largest.
  std::vector<double> ritz_pairs(block_type v) const {
    wide_backend<B> be64(be_);
    auto frame = be64.frame();
    const auto h = be64.scratch(size(), size());
    const auto v64 = be64.scratch(v.rows, v.cols);
    be64.fill(h, 0.0);
    be64.add_gram(image_.transposed(), h);
    std::vector<double> theta(static_cast<std::size_t>(size()));
    leading_eigenpairs(be64, h, std::span<double>(theta), v64);
    be_.copy(v64, v);
    return theta;
  }

  /// The directions become Ritz vectors, of which the largest `kept` stay, in the leading columns.
  /// Returns their Ritz values, descending.
  std::vector<double> rotate_to_ritz_vectors(index_t kept) const {
    auto frame = be_.frame();
    const auto v = be_.scratch(size(), kept);
    std::vector<double> theta = ritz_pairs(v);
    theta.resize(static_cast<std::size_t>(kept));
    for (const auto& c : {x_, image_}) {
      auto inner = be_.frame();
      const auto rotated = be_.scratch(c.rows, kept);
      be_.gemm(op::none, op::none, T{1}, c, v, T{0}, rotated);
      be_.copy(rotated, c.left_cols(kept));
    }
    return theta;
  }

  /// e: BᵀB of some combinations of the directions becomes their residuals, (I − XXᵀ)·e. Returns
  /// their squared norms.
  std::vector<double> residuals(block_type e) const {
    project_out<B>(be_, x_, e);
    return column_energies<B>(be_, e);
  }

  /// Takes outliers out of b, at most `most`: the directions become Ritz vectors, and b loses those
  /// that have converged and exceed the last one by a factor `apart`, b ← b − (bx)·xᵀ. They are the
  /// leading columns. back: as large as x, becomes BᵀB·x.
  taken_outliers take_outliers(iterated_matrix<B>& b, double apart, index_t most,
                               block_type back) const {
    // ‖BᵀB·x − θx‖/θ of a converged one: it misses this squared of a direction.
    constexpr double most_residual = 0.02;
    polish();
    taken_outliers taken{.theta = rotate_to_ritz_vectors(size())};
    auto& theta = taken.theta;
    b.backward(image_, back);
    // ‖BᵀB·x − θx‖² = ‖BᵀB·x‖² − θ²
    const std::vector<double> squares = column_energies<B>(be_, back);
    const auto is_outlier = [&](std::size_t i) {
      return theta[i] > apart * theta.back() &&
             squares[i] <= (1 + most_residual * most_residual) * theta[i] * theta[i];
    };
    std::size_t count = 0;
    while (count < (std::min)(theta.size(), static_cast<std::size_t>(most)) && is_outlier(count))
      ++count;
    taken.next = theta[(std::min)(count, theta.size() - 1)];
    theta.resize(count);
    if (count > 0) {
      b.subtract(image_.left_cols(taken.count()), x_.left_cols(taken.count()));
    }
    return taken;
  }

 private:
  B& be_;
  block_type x_;
  block_type image_;
};

} // namespace detail
} // namespace v0
} // namespace ressvd
