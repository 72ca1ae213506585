// SPDX-License-Identifier: Apache-2.0
//
// The truncated SVD of A: m × p from a block of directions X whose Ritz vectors are leading
// singular vectors: what `subspace` and `projector` share around the way to X. Both work on the
// shorter side, with B = A (m ≥ p) or B = Aᵀ, of norm 1 up to a power of two; U = X·V or
// B·X·V·Θ^(-1/2).
//   cost        Rayleigh–Ritz: kb² flops and an eigendecomposition of order b in double for b
//               columns of length k; the estimate of what is missed 2mpb + 4kb·r; the vectors
//               2kb·r
//   workspace   A and b·r scalars, b² doubles and the eigendecomposition's
//   blocks      yes
//   source      Parlett, "The Symmetric Eigenvalue Problem", ch. 11
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/gram.hpp"
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// The leading Ritz vectors over a whole block X, of which the first columns may be outliers that
/// were taken out of B, and what they lose.
template <backend B>
class leading_ritz_vectors {
  using T = typename B::scalar;
  using block_type = block_of<B>;

 public:
  /// Makes the combinations in the caller's frame.
  leading_ritz_vectors(B& be, const ritz_block<B>& all, index_t rank)
      : be_(be), all_(all), v_(be.scratch(all.size(), rank)) {}

  /// Rayleigh–Ritz over all columns. active: those that were not taken out; remaining: the energy
  /// of B without what was.
  void find(const ritz_block<B>& active, double remaining) {
    active.polish();
    theta_ = all_.ritz_pairs(v_);
    tail_ = remaining - be_.dot(active.image(), active.image());
    for (auto i = static_cast<std::size_t>(v_.cols); i < theta_.size(); ++i)
      tail_ += (std::max)(theta_[i], 0.0);
  }

  /// What they lose above the optimum, relative to it, to second order. y: as large as X, becomes
  /// Bᵀ times the images.
  double missed(iterated_matrix<B>& b, block_type y) {
    b.backward(all_.image(), y);
    auto frame = be_.frame();
    const auto e = be_.scratch(y.rows, v_.cols);
    be_.gemm(op::none, op::none, T{1}, y, v_, T{0}, e);
    const double missing = missed_by_ritz_values(theta_, all_.residuals(e));
    return missing < tail_ ? missing / (tail_ - missing) : std::numeric_limits<double>::infinity();
  }

  /// Ritz values of the whole block, descending.
  const std::vector<double>& theta() const { return theta_; }
  /// Energy of B beyond the rank.
  double tail() const { return (std::max)(tail_, 0.0); }
  /// out ← the vectors, or what B makes of them.
  void vectors(block_type out) { be_.gemm(op::none, op::none, T{1}, all_.x(), v_, T{0}, out); }
  void images(block_type out) { be_.gemm(op::none, op::none, T{1}, all_.image(), v_, T{0}, out); }

 private:
  B& be_;
  ritz_block<B> all_;
  block_type v_; ///< the vectors are X·V
  std::vector<double> theta_;
  double tail_ = 0;
};

/// Makes `count` of the leading singular values: the others share what is left of the energy.
inline void append_even_tail(std::vector<double>& values, double tail, index_t count) {
  const auto unknown = static_cast<double>(count - static_cast<index_t>(values.size()));
  const double even = (std::min)(std::sqrt(tail / unknown), values.back());
  values.resize(static_cast<std::size_t>(count), even);
}

/// u ← the left singular vectors that the Ritz vectors are, or their images where B = A (on_right).
/// Returns all min(m, p) singular values, times unit: those beyond u.cols are their mean.
template <backend B>
std::vector<double> singular_vectors(B& be, leading_ritz_vectors<B>& ritz, bool on_right,
                                     index_t shorter, double unit, block_of<B> u) {
  std::vector<double> values;
  for (const double theta :
       std::span<const double>(ritz.theta()).first(static_cast<std::size_t>(u.cols)))
    values.push_back(std::sqrt((std::max)(theta, 0.0)));
  if (on_right) {
    ritz.images(u);
    normalize_columns(be, u, values);
  } else {
    ritz.vectors(u);
    orthonormalize(be, u);
  }
  append_even_tail(values, ritz.tail(), shorter);
  for (double& v : values)
    v *= unit;
  return values;
}

/// u: the leading u.cols left singular vectors of A. Iteration makes X for a B, its energy and the
/// rank; its columns(rank) are those of X. Declines where these are as many as A has rows or
/// columns, and where Iteration does.
template <class Iteration, backend B>
std::optional<svd_outcome> ritz_svd(B& be, const weighted_matrix<B>& parts,
                                    const svd_options& options, block_of<B> u) {
  const index_t shorter = (std::min)(parts.rows(), parts.cols());
  const index_t longer = (std::max)(parts.rows(), parts.cols());
  if (Iteration::columns(u.cols) >= shorter) return std::nullopt;
  auto frame = be.frame();
  auto formed = form(be, parts);
  svd_outcome outcome{.energy = formed.energy};
  const double unit = normalize(be, formed);
  const bool on_right = parts.rows() >= parts.cols(); // X acts on A's columns
  iterated_matrix<B> b(be, formed.a, on_right ? op::none : op::transpose);
  Iteration iteration(be, b, formed.energy, u.cols, options);
  if (!iteration.run()) return std::nullopt;
  outcome.singular_values = singular_vectors(be, iteration.ritz(), on_right, shorter, unit, u);
  outcome.report = iteration.report();
  outcome.report.numerical_rank =
      count_above(outcome.singular_values, gram_resolution<typename B::scalar>(longer));
  return outcome;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
