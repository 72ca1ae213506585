// SPDX-License-Identifier: Apache-2.0
//
// Truncated SVD of a weighted matrix: the best rank-r Ŵ in  ‖F_Lᵀ (W − Ŵ) F_R‖_F  for every r up to
// a largest one, from one factorisation.
//
//   A = F_Lᵀ·W·F_R = UΣVᵀ (W: m × n). With orthonormal bases and no inverse:
//     F_L = I    Ŵ_r = U_r·(U_rᵀW)
//     F_R = I    Ŵ_r = (W·V_r)·V_rᵀ
//     both       Ŵ_r = (W·F_R·V_r)·(Σ_r⁻¹·U_rᵀ·F_Lᵀ·W)
//   and the weighted loss is Σ_{i>r} σ_i² (Eckart–Young) for any, also singular, metrics.
//
//   cost        one product with each factor, then by algorithm (see svd_algorithm); a slice is one
//               product of 2mnr flops
//   workspace   A (mn scalars) and what the algorithm says; everything in backend scratch
//   blocks      yes
//   source      SVD-LLM, arXiv 2403.07378, Theorem 3.2 for the loss; the projector form of the same
//               Ŵ: COALA, arXiv 2507.07580, and Swift-SVD, arXiv 2604.01609
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/truncated_svd/deflated_gram.hpp"
#include "ressvd/truncated_svd/exact.hpp"
#include "ressvd/truncated_svd/gram_svd.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/subspace.hpp"
#include "ressvd/truncated_svd/weight.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {

enum class svd_algorithm : std::uint8_t {
  automatic, ///< by shape, rank, scalar and backend: see detail::chosen_algorithm
  exact,     ///< dense SVD of A in the backend's scalar; workspace at most 3mn + n² scalars
  gram, ///< eigendecomposition of AAᵀ or AᵀA in double; workspace 2mn + 2·min(m, n)² doubles and
        ///< the backend's for eigenvectors
  subspace, ///< Chebyshev-filtered subspace iteration in the backend's scalar, to svd_options'
            ///< tolerance; workspace 2mn + 2(m + n)·b + 3b² scalars and 3b² + 512b doubles for a
            ///< block of b = rank + max(rank/5, 8). Where b reaches min(m, n), gram runs instead
  deflated_gram ///< as gram, but in the backend's scalar and without A's outliers, to the
                ///< tolerance; workspace in scalars, and rank·max(m, n) more. Where rounding may
                ///< cost more than the tolerance, gram runs instead
};

struct svd_options {
  index_t rank = 0; ///< largest rank that will be sliced; 1 to min(m, columns of A)
  svd_algorithm algorithm = svd_algorithm::automatic;
  double tolerance = 1e-3; ///< deflated_gram, subspace: excess of the loss at `rank`, relative to
                           ///< the optimum
  std::uint64_t seed = 1;  ///< the same: of the start block; equal seeds give equal results
};

struct svd_report {
  svd_algorithm algorithm = svd_algorithm::exact; ///< what ran
  /// Singular values that stand out of the algorithm's rounding. Ranks above it are served (the
  /// basis is completed) and gain nothing.
  index_t numerical_rank = 0;
  index_t sweeps = 0;      ///< subspace: filters that were applied
  double applications = 0; ///< subspace: products of AAᵀ with the whole block
  double excess_loss = 0;  ///< deflated_gram, subspace: estimated excess of the loss, relative to
                           ///< the optimum; subspace: above the tolerance where it did not
                           ///< reach it
};

/// On which side of W the orthonormal basis acts.
enum class projection : std::uint8_t { left, right, both };

/// A factorisation to slice from.
template <backend B>
struct svd_basis {
  using scalar = typename B::scalar;
  using space = typename B::space;

  projection acts = projection::left;
  matrix<scalar, space> q; ///< left: U, m × rank. right: V, n × rank. both: W·F_R·V, m × rank
  matrix<scalar, space> p; ///< both: Σ⁻¹·Uᵀ·F_Lᵀ·W, rank × n. Else empty
  /// Of A, descending, all min(m, columns of A). Of those beyond the rank, subspace knows the
  /// energy alone: they are its root mean square.
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

/// out ← F_Lᵀ·W·F_R / unit.
template <backend B, class U>
void weigh_both(B& be, matrix_view<const U, typename B::space> w, double unit,
                const metric<typename B::space>& left, const metric<typename B::space>& right,
                block_of<B> out) {
  using T = typename B::scalar;
  auto frame = be.frame();
  const auto scaled = be.scratch(w.rows, w.cols);
  be.copy(w, scaled);
  be.scale(static_cast<T>(1 / unit), scaled);
  if (left.is_identity()) return weigh<B>(be, scaled, right, out);
  const auto half_weighed = be.scratch(left.width(w.rows), w.cols);
  weigh_left<B>(be, left, scaled, half_weighed);
  weigh<B>(be, half_weighed, right, out);
}

/// A = F_Lᵀ·W·F_R / unit in B's scalar, in scratch, and its energy.
template <backend B, class U>
block_of<B> weighed_matrix(B& be, matrix_view<const U, typename B::space> w, double unit,
                           const metric<typename B::space>& left,
                           const metric<typename B::space>& right, double& energy) {
  const auto a = be.scratch(left.width(w.rows), right.width(w.cols));
  weigh_both(be, w, unit, left, right, a);
  energy = be.dot(a, a);
  require<nonfinite_error>(std::isfinite(energy), "W (", w.rows, " x ", w.cols,
                           ") in its metric has norm ", std::sqrt(energy),
                           ": a metric's factor has a non-finite element or is too large");
  return a;
}

/// Makes `count` of the leading singular values: the others share what is left of the energy.
inline void append_even_tail(std::vector<double>& values, double tail, index_t count) {
  const auto unknown = static_cast<double>(count - static_cast<index_t>(values.size()));
  const double even = (std::min)(std::sqrt(tail / unknown), values.back());
  values.resize(static_cast<std::size_t>(count), even);
}

/// Which algorithm runs for `asked`: A is rows × cols.
///
/// In double, automatic means the digits of double. In float it goes by measured times
/// (docs/performance.md, bench/crossover.cpp). From 512 rows or columns on, subspace is the fastest
/// up to a share of the shorter side, half of that where A is long, since of the Gram's cost
/// nothing but the Gram itself grows with the longer side. Beyond, where the backend forms no more
/// eigenvectors than are asked for, deflated_gram is, up to ranks whose loss may be little more
/// than rounding.
template <backend B>
svd_algorithm chosen_algorithm(svd_algorithm asked, index_t rows, index_t cols, index_t rank) {
  const index_t shorter = (std::min)(rows, cols);
  const index_t longer = (std::max)(rows, cols);
  if (asked == svd_algorithm::subspace && subspace_block(rank) >= shorter) {
    return svd_algorithm::gram;
  }
  if (asked != svd_algorithm::automatic) return asked;
  if constexpr (std::is_same_v<typename B::scalar, double>) return svd_algorithm::exact;
  if (shorter < 512) return svd_algorithm::gram;
  constexpr bool partial = has_leading_eigenvectors<B>;
  const double share = (partial ? 0.15 : 0.5) * (longer >= 2 * shorter ? 0.5 : 1.0);
  if (static_cast<double>(rank) <= share * static_cast<double>(shorter)) {
    return svd_algorithm::subspace;
  }
  return partial && 4 * rank <= 3 * shorter ? svd_algorithm::deflated_gram : svd_algorithm::gram;
}

/// Refuses NaN and infinity in a factor. A triangle is not looked at, since what is above the
/// diagonal may be anything: its product with W is checked instead.
template <backend W>
void require_finite_factor(W& be, const metric<typename W::space>& m, const char* name) {
  if (m.kind == metric_kind::diagonal || m.kind == metric_kind::dense) {
    require_finite(be, m.factor.view(), name);
  }
}

inline index_t count_above(const std::vector<double>& values, double share) {
  return std::count_if(values.begin(), values.end(),
                       [&](double v) { return v > share * values.front(); });
}

/// The two-sided factors, in double. With Aᵀ·U = V·R (thin QR; R = Σ but for rounding)
///   q = W·F_R·V,  p = R⁻ᵀ·Uᵀ·F_Lᵀ·W,  hence  F_Lᵀ·q·p·F_R = A·V·Vᵀ
/// is an orthogonal projection of A however U was rounded, and so is every slice, because R is
/// triangular. Beyond the numerical rank the factors are zero.
template <backend B, class U>
void two_sided_factors(B& be, matrix_view<const U, typename B::space> w, double unit,
                       const metric<typename B::space>& left,
                       const metric<typename B::space>& right, svd_basis<B>& basis) {
  using wide = wide_backend<B>;
  wide be64(be);
  auto frame = be64.frame();
  const index_t r = basis.rank();
  const auto u = be64.scratch(basis.q.rows(), r);
  be64.copy(basis.q, u);

  const auto lw = be64.scratch(left.width(w.rows), w.cols);
  weigh_both(be64, w, unit, left, metric<typename B::space>::identity(), lw);
  const auto a = be64.scratch(lw.rows, right.width(w.cols));
  weigh<wide>(be64, lw, right, a);
  const auto wr = be64.scratch(w.rows, right.width(w.cols));
  weigh_both(be64, w, unit, metric<typename B::space>::identity(), right, wr);

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

/// The basis for checked arguments; a left metric alone has been turned into a right one.
template <backend B, class U>
svd_basis<B> factor_basis(B& be, matrix_view<const U, typename B::space> w, double unit,
                          const metric<typename B::space>& left,
                          const metric<typename B::space>& right, const svd_options& options) {
  using wide = wide_backend<B>;
  const index_t rows = left.width(w.rows);
  const index_t cols = right.width(w.cols);
  svd_basis<B> basis;
  svd_report& report = basis.report;
  report.algorithm = chosen_algorithm<B>(options.algorithm, rows, cols, options.rank);
  basis.q = be.allocate(rows, options.rank);
  auto& values = basis.singular_values;
  values.resize(static_cast<std::size_t>((std::min)(rows, cols)));
  const auto longest = static_cast<double>((std::max)(rows, cols));
  // Eigenvalues of a Gram are known to eps of the largest one, their square roots to √eps.
  double resolution = std::sqrt(longest * std::numeric_limits<double>::epsilon());
  if (report.algorithm != svd_algorithm::gram) {
    const double eps = std::numeric_limits<typename B::scalar>::epsilon();
    resolution = report.algorithm == svd_algorithm::exact ? longest * eps
                                                          : (std::max)(resolution, longest * eps);
  }
  bool reached = true;
  if (report.algorithm == svd_algorithm::gram) {
    wide be64(be);
    auto frame = be64.frame();
    const auto a = weighed_matrix(be64, w, unit, left, right, basis.total_energy);
    const auto q = be64.scratch(rows, options.rank);
    gram_svd<wide>(be64, a, values, q);
    be.copy(q, basis.q.ref());
  } else {
    auto frame = be.frame();
    const auto a = weighed_matrix(be, w, unit, left, right, basis.total_energy);
    if (report.algorithm == svd_algorithm::exact) {
      exact_svd<B>(be, a, values, basis.q.ref());
    } else if (report.algorithm == svd_algorithm::deflated_gram) {
      const auto excess = deflated_gram_svd<B>(
          be, a, {.tolerance = options.tolerance, .seed = options.seed}, values, basis.q.ref());
      reached = excess.has_value();
      report.excess_loss = excess.value_or(0);
    } else {
      values.resize(static_cast<std::size_t>(options.rank));
      const auto outcome = subspace_svd<B>(
          be, a, {.rank = options.rank, .tolerance = options.tolerance, .seed = options.seed},
          values, basis.q.ref());
      append_even_tail(values, outcome.tail, (std::min)(rows, cols));
      report.sweeps = outcome.sweeps;
      report.applications = outcome.applications;
      report.excess_loss = outcome.excess;
    }
  }
  if (!reached) {
    svd_options other = options;
    other.algorithm = svd_algorithm::gram;
    return factor_basis(be, w, unit, left, right, other);
  }
  report.numerical_rank = count_above(basis.singular_values, resolution);

  if (!left.is_identity()) two_sided_factors(be, w, unit, left, right, basis);
  for (double& s : basis.singular_values)
    s *= unit;
  basis.total_energy *= unit * unit;
  return basis;
}

} // namespace detail

/// Factors W (m × n, any layout and storage type) once, up to options.rank.
/// Throws std::invalid_argument for an empty W, a rank outside [1, min(m, n)], metrics that do not
/// fit, a tolerance that is not positive; nonfinite_error for NaN or infinity in W or in a metric.
template <backend B, class U>
svd_basis<B> truncated_svd(B& be, matrix_view<U, typename B::space> weights,
                           const metric<typename B::space>& left,
                           const metric<typename B::space>& right, const svd_options& options) {
  const auto w = const_view(weights);
  detail::check_nonempty(w, "W");
  detail::check_metric(left, w.rows, "the left metric's factor");
  detail::check_metric(right, w.cols, "the right metric's factor");
  const index_t largest_rank =
      (std::min)({w.rows, w.cols, left.width(w.rows), right.width(w.cols)});
  detail::require(options.rank >= 1 && options.rank <= largest_rank, "rank ", options.rank,
                  " of a ", w.rows, " x ", w.cols, " matrix is outside [1, ", largest_rank, "]");
  detail::require(options.tolerance > 0, "tolerance ", options.tolerance, " is not positive");
  const double unit = detail::power_of_two_above(detail::require_finite(be, w, "W"));
  wide_backend<B> be64(be);
  detail::require_finite_factor(be64, left, "the left metric");
  detail::require_finite_factor(be64, right, "the right metric");
  if (!left.is_identity() && right.is_identity()) {
    auto basis = detail::factor_basis(be, w.transposed(), unit, right, left, options);
    basis.acts = projection::right;
    return basis;
  }
  return detail::factor_basis(be, w, unit, left, right, options);
}

/// The rank-r pair of a factorisation, r ≤ basis.rank(). W as it was factored; it is read once more
/// (2mnr flops), except where both metrics were given.
template <backend B, class U>
low_rank<typename B::scalar, typename B::space> slice(B& be,
                                                      matrix_view<U, typename B::space> weights,
                                                      const svd_basis<B>& basis, index_t rank) {
  using T = typename B::scalar;
  const auto w = const_view(weights);
  const bool left = basis.acts != projection::right;
  detail::check_nonempty(w, "W");
  detail::require(rank >= 1 && rank <= basis.rank(), "rank ", rank,
                  " cannot be sliced from a basis of rank ", basis.rank());
  detail::require((left ? w.rows : w.cols) == basis.q.rows(), "W is ", w.rows, " x ", w.cols,
                  ", but the basis was made for ", left ? "rows" : "columns", " of ",
                  basis.q.rows());
  detail::require(basis.acts != projection::both || w.cols == basis.p.cols(), "W is ", w.rows,
                  " x ", w.cols, ", but the basis was made for columns of ", basis.p.cols());
  auto frame = be.frame();
  const auto q = basis.q.ref().left_cols(rank);
  low_rank<T, typename B::space> pair{be.allocate(w.rows, rank), be.allocate(rank, w.cols)};
  if (basis.acts == projection::both) {
    be.copy(q.view(), pair.u.ref());
    be.copy(basis.p.ref().top_rows(rank).view(), pair.v.ref());
  } else if (basis.acts == projection::left) {
    be.copy(q.view(), pair.u.ref());
    detail::product(be, q.view().transposed(), detail::in_scalar(be, w), T{0}, pair.v.view());
  } else {
    be.copy(q.view().transposed(), pair.v.ref());
    detail::product(be, detail::in_scalar(be, w), q.view(), T{0}, pair.u.view());
  }
  return pair;
}

template <backend B>
svd_basis<B> truncated_svd(B& be, const weight<B>& w, const metric<typename B::space>& left,
                           const metric<typename B::space>& right, const svd_options& options) {
  auto basis = truncated_svd(be, w.values.view(), left, right, options);
  for (double& s : basis.singular_values)
    s *= w.unit;
  basis.total_energy *= w.unit * w.unit;
  if (basis.acts == projection::both) be.scale(static_cast<typename B::scalar>(w.unit), basis.q);
  return basis;
}

template <backend B>
low_rank<typename B::scalar, typename B::space> slice(B& be, const weight<B>& w,
                                                      const svd_basis<B>& basis, index_t rank) {
  auto pair = slice(be, w.values.view(), basis, rank);
  if (basis.acts != projection::both) {
    be.scale(static_cast<typename B::scalar>(w.unit),
             basis.acts == projection::left ? pair.v : pair.u);
  }
  return pair;
}

} // namespace v0
} // namespace ressvd
