// SPDX-License-Identifier: Apache-2.0
//
// Orthonormal bases of the columns of a matrix C, alone or beside a basis that is already there,
// by Cholesky-QR: C ← C·L⁻ᵀ with CᵀC = L·Lᵀ. One pass leaves an error of κ(C)²·eps, the second one
// brings it to eps; where the Gram is not numerically positive definite (κ(C)² eps ≳ 1) Householder
// QR takes over. A pass in mixed precision, its Gram and factor in double, leaves κ(C)·eps.
//   cost   2 × (mk² + mk² + k³/3) flops, nearly all gemm; workspace k² scalars, in mixed precision
//          512k + k² doubles; blocks in potrf
//   source Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 44 (2015);
//          Yamazaki, Tomov, Dongarra, "Mixed-precision Cholesky QR factorization", SIAM J. Sci.
//          Comput. 37 (2015)
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

struct cholesky_qr_report {
  /// max |l_ii − 1|; infinity when CᵀC is not numerically positive definite.
  double deviation = std::numeric_limits<double>::infinity();
  /// min l_ii²/(CᵀC)_ii: the least that a column has outside the span of those before it. The
  /// result is orthonormal to about eps over this.
  double independence = 0;
};

/// One pass, c ← c·L⁻ᵀ; c is left as it is when there is no L.
template <backend B>
cholesky_qr_report cholesky_qr_pass(B& be, block_of<B> c) {
  using T = typename B::scalar;
  auto frame = be.frame();
  const auto l = be.scratch(c.cols, c.cols);
  be.fill(l, T{0});
  be.add_gram(c.transposed(), l);
  std::vector<double> squares(static_cast<std::size_t>(c.cols));
  be.diagonal(l, squares);
  if (be.potrf(l) != 0) return {};
  be.trsm(side::right, op::transpose, l, c);
  std::vector<double> pivots(squares.size());
  be.diagonal(l, pivots);
  cholesky_qr_report report{.deviation = 0, .independence = 1};
  for (std::size_t i = 0; i < pivots.size(); ++i) {
    report.deviation = (std::max)(report.deviation, std::abs(pivots[i] - 1));
    report.independence = (std::min)(report.independence, pivots[i] * pivots[i] / squares[i]);
  }
  return report;
}

/// One pass with CᵀC in double, 512 rows at a time. False, and c as it was, when there is no L.
template <backend B>
bool mixed_cholesky_qr_pass(B& be, block_of<B> c) {
  using wide = wide_backend<B>;
  constexpr index_t chunk = 512;
  wide be64(be);
  auto frame = be64.frame();
  const auto l64 = be64.scratch(c.cols, c.cols);
  be64.fill(l64, 0.0);
  {
    auto inner = be64.frame();
    const auto rows64 = be64.scratch((std::min)(chunk, c.rows), c.cols);
    for (index_t i = 0; i < c.rows; i += chunk) {
      const auto rows = c.part(i, 0, (std::min)(chunk, c.rows - i), c.cols);
      const auto part = rows64.top_rows(rows.rows);
      be64.copy(rows, part);
      be64.add_gram(part.transposed(), l64);
    }
  }
  if (be64.potrf(l64) != 0) return false;
  const auto l = be.scratch(c.cols, c.cols);
  be.copy(l64, l);
  be.trsm(side::right, op::transpose, l, c);
  return true;
}

/// c: m × k, m ≥ k, becomes an orthonormal basis whose leading columns span what c's leading
/// columns span, for every count of them. A rank-deficient c is completed to a basis.
template <backend B>
void orthonormalize(B& be, block_of<B> c) {
  auto frame = be.frame();
  const auto kept = be.scratch(c.rows, c.cols);
  be.copy(c, kept);
  // Where L = I + E with ‖E‖_F < 0.6, κ(C) < 4 and one pass is enough. A second pass that still
  // finds pivots far from 1 tells that the first one started beyond κ(C)² eps = 1.
  const cholesky_qr_report first = cholesky_qr_pass(be, c);
  if (std::isfinite(first.deviation)) {
    const bool near_identity =
        first.deviation < 0.1 && static_cast<double>(c.cols) * (1 - first.independence) < 0.25;
    if (near_identity || cholesky_qr_pass(be, c).deviation < 0.1) return;
  }
  be.copy(kept, c);
  be.thin_qr(c, be.scratch(c.cols, c.cols));
}

/// c: m × k with columns of these norms, orthogonal but for rounding, becomes orthonormal; columns
/// of norm 0 are completed.
template <backend B>
void normalize_columns(B& be, block_of<B> c, std::span<const double> norms) {
  using T = typename B::scalar;
  auto frame = be.frame();
  std::vector<T> reciprocals(norms.size());
  std::ranges::transform(norms, reciprocals.begin(),
                         [](double norm) { return norm > 0 ? static_cast<T>(1 / norm) : T{0}; });
  const auto d = be.scratch(c.cols, 1);
  be.upload({reciprocals.data(), c.cols, 1, c.cols}, d);
  be.scale_cols(c, d);
  orthonormalize(be, c);
}

/// c ← (I − qqᵀ)·c for an orthonormal q: m × p and c: m × k. overlap: p × k becomes qᵀc.
template <backend B>
void project_out(B& be, const_block_of<B> q, block_of<B> c, block_of<B> overlap) {
  using T = typename B::scalar;
  be.gemm(op::transpose, op::none, T{1}, q, c, T{0}, overlap);
  be.gemm(op::none, op::none, T{-1}, q, overlap, T{1}, c);
}
template <backend B>
void project_out(B& be, const_block_of<B> q, block_of<B> c) {
  auto frame = be.frame();
  project_out<B>(be, q, c, be.scratch(q.cols, c.cols));
}

/// c ← orthonormal basis of c's columns within the complement of q's (q orthonormal, m × p,
/// p + k ≤ m), completed where they span less. The second projection removes what rounding leaves
/// of the first. A completion knows nothing of q and may lie in its span; then Householder QR
/// of [q, c] finds the columns, 4m(p + k)² flops.
template <backend B>
void orthonormalize_against(B& be, const_block_of<B> q, block_of<B> c) {
  using T = typename B::scalar;
  auto frame = be.frame();
  const auto overlap = be.scratch(q.cols, c.cols);
  for (int pass = 0; pass < 2; ++pass) {
    project_out<B>(be, q, c, overlap);
    orthonormalize(be, c);
  }
  be.gemm(op::transpose, op::none, T{1}, q, c, T{0}, overlap);
  const double rounding =
      16 * std::sqrt(static_cast<double>(q.rows)) * std::numeric_limits<T>::epsilon();
  if (be.max_abs(overlap) <= rounding) return;
  const auto both = be.scratch(q.rows, q.cols + c.cols);
  be.copy(q.view(), both.left_cols(q.cols));
  be.copy(c, both.col_range(q.cols, c.cols));
  be.thin_qr(both, be.scratch(both.cols, both.cols));
  be.copy(both.col_range(q.cols, c.cols), c);
}

/// The same for columns that are orthogonal to q but for rounding, with one projection.
template <backend B>
void reorthonormalize_against(B& be, const_block_of<B> q, block_of<B> c) {
  auto frame = be.frame();
  const auto overlap = be.scratch(q.cols, c.cols);
  project_out<B>(be, q, c, overlap);
  if (be.max_abs(overlap) > 1e-2) return orthonormalize_against<B>(be, q, c);
  orthonormalize(be, c);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
