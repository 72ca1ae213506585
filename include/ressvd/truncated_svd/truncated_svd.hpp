// SPDX-License-Identifier: Apache-2.0
//
// Truncated SVD of a weighted matrix: the best rank-r Ŵ in  ‖F_Lᵀ (W − Ŵ) F_R‖_F  for every r up to
// a largest one, from one factorisation.
//
//   A = F_Lᵀ·W·F_R = UΣVᵀ (W: m × n) gives, with orthonormal bases and no inverse,
//     F_L = I    Ŵ_r = U_r·(U_rᵀW)
//     F_R = I    Ŵ_r = (W·V_r)·V_rᵀ
//     both       Ŵ_r = (W·F_R·V_r)·(Σ_r⁻¹·U_rᵀ·F_Lᵀ·W)
//   and the weighted loss is Σ_{i>r} σ_i² (Eckart–Young) for any, also singular, metrics.
//
// Each algorithm is a file of this folder: a function
//   optional<svd_outcome> NAME(B& be, const weighted_matrix<B>& A, const svd_options&, block U)
// that fills U with left singular vectors of A or declines. choose_algorithms orders those to try;
// the first that does not decline has served.
//
//   cost        one product with each factor, then by algorithm (see svd_algorithm); a slice is one
//               product of 2mnr flops
//   workspace   A (mn scalars) and what the algorithm says; everything in backend scratch
//   blocks      yes
//   errors      std::invalid_argument for a rank outside [1, min(m, n)], metrics that do not fit, a
//               tolerance that is not positive; nonfinite_error for NaN or infinity in a metric;
//               cancelled where svd_options::progress asks for the end
//   source      SVD-LLM, arXiv 2403.07378, Theorem 3.2 for the loss; the projector form of the same
//               Ŵ: COALA, arXiv 2507.07580, and Swift-SVD, arXiv 2604.01609
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/truncated_svd/choose_algorithms.hpp"
#include "ressvd/truncated_svd/deflated_gram.hpp"
#include "ressvd/truncated_svd/exact.hpp"
#include "ressvd/truncated_svd/gram.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/projector.hpp"
#include "ressvd/truncated_svd/subspace.hpp"
#include "ressvd/truncated_svd/weight.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {

/// The side of W on which the orthonormal basis acts.
enum class projection : std::uint8_t { left, right, both };

/// A factorisation to slice from.
template <backend B>
struct svd_basis {
  using scalar = typename B::scalar;
  using space = typename B::space;

  projection acts = projection::left;
  matrix<scalar, space> q; ///< left: U, m × rank. right: V, n × rank. both: W·F_R·V, m × rank
  matrix<scalar, space> p; ///< both: Σ⁻¹·Uᵀ·F_Lᵀ·W, rank × n. Else empty
  /// All min(m, columns of A) singular values of A, descending. subspace knows only the energy of
  /// those beyond the rank: they are its root mean square.
  std::vector<double> singular_values;
  double total_energy = 0; ///< ‖A‖_F²
  svd_report report;

  index_t rank() const { return q.cols(); } ///< the largest rank that can be sliced

  /// Σ_{i>r} σ_i², the weighted loss of the rank-r slice, for any 0 ≤ r ≤ all singular values (an
  /// upper bound for subspace, up to its tolerance; beyond the rank, that of an even tail).
  double truncation_loss(index_t r) const {
    detail::require(r >= 0 && r <= static_cast<index_t>(singular_values.size()),
                    "truncation loss at rank ", r, " of ", singular_values.size(),
                    " singular values");
    double tail = 0;
    for (auto i = static_cast<index_t>(singular_values.size()); i-- > r;) {
      const double s = singular_values[static_cast<std::size_t>(i)];
      tail += s * s;
    }
    return tail;
  }
};

namespace detail {

/// Refuses NaN and infinity in a factor. A triangle is not looked at, since what is above the
/// diagonal may be anything: its product with W is checked instead.
template <backend W>
void require_finite_factor(W& be, const metric<typename W::space>& m, const char* name) {
  if (m.kind == metric_kind::diagonal || m.kind == metric_kind::dense) {
    require_finite(be, m.factor.view(), name);
  }
}

template <backend B>
std::optional<svd_outcome> run_algorithm(svd_algorithm which, B& be, const weighted_matrix<B>& a,
                                         const svd_options& options, block_of<B> u) {
  switch (which) {
    case svd_algorithm::exact:
      return exact_svd<B>(be, a, options, u);
    case svd_algorithm::subspace:
      return subspace_svd<B>(be, a, options, u);
    case svd_algorithm::deflated_gram:
      return deflated_gram_svd<B>(be, a, options, u);
    case svd_algorithm::projector:
      return projector_svd<B>(be, a, options, u);
    default:
      return gram_svd<B>(be, a, options, u);
  }
}

/// A's singular values and the leading u.cols left vectors, by the first algorithm that serves.
template <backend B>
svd_outcome left_singular_vectors(B& be, const weighted_matrix<B>& a, const svd_options& options,
                                  block_of<B> u) {
  const svd_options watched = with_rising_progress(options);
  report_progress(watched, 0);
  for (const svd_algorithm which :
       choose_algorithms(be, options.algorithm, a.rows(), a.cols(), u.cols)) {
    if (auto outcome = run_algorithm<B>(which, be, a, watched, u)) return std::move(*outcome);
  }
  fail<backend_error>("every algorithm declined a truncated SVD of rank ", u.cols);
}

inline void check_svd_rank(index_t rank, index_t rows, index_t cols, index_t largest) {
  require(rank >= 1 && rank <= largest, "rank ", rank, " of a ", rows, " x ", cols,
          " matrix is outside [1, ", largest, "]");
}

/// The factorisation of A alone: acts on the left, values in units of W's.
template <backend B>
svd_basis<B> factor(B& be, const weighted_matrix<B>& a, index_t rank, const svd_options& options) {
  check_svd_rank(rank, a.w.rows, a.w.cols, (std::min)(a.rows(), a.cols()));
  require(options.tolerance > 0, "tolerance ", options.tolerance, " is not positive");
  wide_backend<B> be64(be);
  require_finite_factor(be64, a.left, "the left metric");
  require_finite_factor(be64, a.right, "the right metric");
  svd_basis<B> basis;
  basis.q = be.allocate(a.rows(), rank);
  svd_outcome outcome = left_singular_vectors<B>(be, a, options, basis.q);
  basis.singular_values = std::move(outcome.singular_values);
  basis.total_energy = outcome.energy;
  basis.report = outcome.report;
  return basis;
}

/// The two-sided factors, in double: Aᵀ·U = V·R (thin QR; R = Σ but for rounding) gives
///   q = W·F_R·V,  p = R⁻ᵀ·Uᵀ·F_Lᵀ·W,  hence  F_Lᵀ·q·p·F_R = A·V·Vᵀ,
/// an orthogonal projection of A however U was rounded, and so is every slice, because R is
/// triangular. The factors are zero beyond the numerical rank.
template <backend B>
void two_sided_factors(B& be, const weighted_matrix<B>& parts, double unit, svd_basis<B>& basis) {
  using wide = wide_backend<B>;
  wide be64(be);
  auto frame = be64.frame();
  const index_t r = basis.rank();
  const auto u = be64.scratch(basis.q.rows(), r);
  be64.copy(basis.q, u);

  const auto w = in_block(be64, parts.w);
  const auto lw = be64.scratch(parts.rows(), w.cols);
  const auto a = be64.scratch(parts.rows(), parts.cols());
  const auto wr = be64.scratch(w.rows, parts.cols());
  weigh_left<wide>(be64, parts.left, w, lw);
  weigh<wide>(be64, lw, parts.right, a);
  weigh<wide>(be64, w, parts.right, wr);

  const index_t k = (std::min)(r, basis.report.numerical_rank);
  const auto q = be64.scratch(w.rows, r);
  const auto p = be64.scratch(r, w.cols);
  be64.fill(q, 0.0);
  be64.fill(p, 0.0);
  if (k > 0) {
    const auto v = be64.scratch(a.cols, k);
    const auto triangle = be64.scratch(k, k);
    const auto lower = be64.scratch(k, k);
    const auto rows = p.top_rows(k);
    be64.gemm(op::transpose, op::none, 1.0, a, u.left_cols(k), 0.0, v);
    be64.thin_qr(v, triangle);
    be64.copy(triangle.transposed(), lower);
    be64.gemm(op::none, op::none, unit, wr, v, 0.0, q.left_cols(k));
    be64.gemm(op::transpose, op::none, 1.0, u.left_cols(k), lw, 0.0, rows);
    be64.trsm(side::left, op::none, lower, rows);
  }
  basis.q = be.allocate(w.rows, r);
  basis.p = be.allocate(r, w.cols);
  be.copy(q, basis.q.ref());
  be.copy(p, basis.p.ref());
  basis.acts = projection::both;
}

} // namespace detail

/// Factors W (m × n) once for all slices up to `rank`.
template <backend B>
svd_basis<B> truncated_svd(B& be, const weight<B>& w, const metric<typename B::space>& left,
                           const metric<typename B::space>& right, index_t rank,
                           const svd_options& options = {}) {
  detail::check_metric(left, w.rows(), "the left metric's factor");
  detail::check_metric(right, w.cols(), "the right metric's factor");
  detail::check_svd_rank(
      rank, w.rows(), w.cols(),
      (std::min)({w.rows(), w.cols(), left.width(w.rows()), right.width(w.cols())}));
  const bool left_alone = !left.is_identity() && right.is_identity();
  const auto a = left_alone ? detail::weighted_matrix<B>{.w = w.values.transposed(), .right = left}
                            : detail::weighted_matrix<B>{w.values.view(), left, right};
  auto basis = detail::factor(be, a, rank, options);
  if (left_alone) basis.acts = projection::right;
  if (!a.left.is_identity()) detail::two_sided_factors(be, a, w.unit, basis);
  for (double& s : basis.singular_values)
    s *= w.unit;
  basis.total_energy *= w.unit * w.unit;
  return basis;
}

/// The same for a W in any layout and storage type, which is prepared here: mn scalars of memory.
/// Throws as weight does, too.
template <backend B, readable_matrix<typename B::space> M>
svd_basis<B> truncated_svd(B& be, const M& w, const metric<typename B::space>& left,
                           const metric<typename B::space>& right, index_t rank,
                           const svd_options& options = {}) {
  return truncated_svd(be, weight<B>(be, w), left, right, rank, options);
}

/// The rank-r pair of a factorisation, r ≤ basis.rank(). W as it was factored; it is read once more
/// (2mnr flops), except where both metrics were given.
template <backend B>
low_rank<typename B::scalar, typename B::space> slice(B& be, const weight<B>& w,
                                                      const svd_basis<B>& basis, index_t rank) {
  using T = typename B::scalar;
  const bool left = basis.acts != projection::right;
  detail::require(rank >= 1 && rank <= basis.rank(), "rank ", rank,
                  " cannot be sliced from a basis of rank ", basis.rank());
  detail::require((left ? w.rows() : w.cols()) == basis.q.rows(), "W is ", w.rows(), " x ",
                  w.cols(), ", but the basis was made for ", left ? "rows" : "columns", " of ",
                  basis.q.rows());
  detail::require(basis.acts != projection::both || w.cols() == basis.p.cols(), "W is ", w.rows(),
                  " x ", w.cols(), ", but the basis was made for columns of ", basis.p.cols());
  const auto q = basis.q.ref().left_cols(rank);
  const auto unit = static_cast<T>(w.unit);
  low_rank<T, typename B::space> pair{be.allocate(w.rows(), rank), be.allocate(rank, w.cols())};
  if (basis.acts == projection::both) {
    be.copy(q, pair.u.ref());
    be.copy(basis.p.ref().top_rows(rank), pair.v.ref());
  } else if (basis.acts == projection::left) {
    be.copy(q, pair.u.ref());
    be.gemm(op::transpose, op::none, unit, q, w.values, T{0}, pair.v);
  } else {
    be.copy(q.transposed(), pair.v.ref());
    be.gemm(op::none, op::none, unit, w.values, q, T{0}, pair.u);
  }
  return pair;
}

/// The same for a W in any layout and storage type, which is prepared here.
template <backend B, readable_matrix<typename B::space> M>
low_rank<typename B::scalar, typename B::space> slice(B& be, const M& w, const svd_basis<B>& basis,
                                                      index_t rank) {
  return slice(be, weight<B>(be, w), basis, rank);
}

} // namespace v0
} // namespace ressvd
