// SPDX-License-Identifier: Apache-2.0
//
// Energies and losses of a factored matrix at every rank, in any metric, from the basis alone. With
// G = F·Fᵀ:
//   left    ‖(W − Q_rQ_rᵀW)F‖_F² = ‖WF‖_F² − Σ_{i≤r} ‖q_iᵀWF‖²
//   right   ‖(W − WQ_rQ_rᵀ)F‖_F² = ‖WF‖_F² − 2·tr(D_r) + ⟨M_r, H_r⟩,
//           D = QᵀWᵀWGQ, M = QᵀWᵀWQ, H = QᵀGQ, of each its leading r × r block
// so one product gives the truncation loss of all slices, also in metrics the basis was not made
// for. W: m × n in any storage type and layout, Q in the backend's scalar; nothing is changed.
//   cost        left 2mnr + 2n²r flops; right 4mnr + 6r²n in double
//   workspace   left mn + 2nr scalars; right mn + mr + 4rn + r² doubles
//   blocks      yes
//   source      Pythagoras in the Frobenius norm, docs/theory.md
#pragma once

#include <algorithm>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {

/// ‖W·F‖_F² for any metric factor F. Workspace 2mn scalars; blocks.
template <backend B, class U>
double weighted_energy(B& be, matrix_view<U, typename B::space> weights,
                       const metric<typename B::space>& m = {}) {
  detail::check_nonempty(weights, "W");
  detail::check_metric(m, weights.cols, "the metric's factor");
  using T = typename B::scalar;
  const double unit =
      detail::power_of_two_above(detail::require_finite(be, const_view(weights), "W"));
  auto frame = be.frame();
  const auto w = be.scratch(weights.rows, weights.cols);
  const auto weighed = be.scratch(weights.rows, m.width(weights.cols));
  be.copy(const_view(weights), w);
  be.scale(static_cast<T>(1 / unit), w);
  detail::weigh<B>(be, w, m, weighed);
  return be.dot(weighed, weighed) * unit * unit;
}

/// ‖q_iᵀ·W·F‖² for every column of an orthonormal q (m × r): what each basis vector of a
/// projection QQᵀW keeps of ‖W·F‖_F², in any metric, whichever one q was made for.
/// Cost 2mnr + 2n²r flops; workspace mn + 2nr scalars; blocks.
template <backend B, class U>
std::vector<double> basis_energies(B& be, matrix_view<U, typename B::space> weights,
                                   const_block_of<B> q, const metric<typename B::space>& m = {}) {
  using T = typename B::scalar;
  const auto w = const_view(weights);
  detail::check_nonempty(w, "W");
  detail::check_metric(m, w.cols, "the metric's factor");
  detail::require(q.rows == w.rows, "the basis has ", q.rows, " rows, W has ", w.rows);
  const double unit = detail::power_of_two_above(detail::require_finite(be, w, "W"));
  auto frame = be.frame();
  const auto kept = be.scratch(q.cols, w.cols);
  const auto weighed = be.scratch(q.cols, m.width(w.cols));
  detail::product(be, q.view().transposed(), detail::in_scalar(be, w), T{0}, kept.view());
  be.scale(static_cast<T>(1 / unit), kept);
  detail::weigh<B>(be, kept, m, weighed);
  std::vector<double> energies(static_cast<std::size_t>(q.cols));
  be.row_squared_norms(weighed, energies);
  for (double& e : energies)
    e *= unit * unit;
  return energies;
}

namespace detail {

/// What vector i of a basis on the right takes off: 2·D_ii − M_ii·H_ii − 2·Σ_{j<i} M_ij·H_ij. In
/// double, since D, M and H are squares.
template <backend B, class U>
std::vector<double> right_energies(B& be, matrix_view<U, typename B::space> weights,
                                   const_block_of<B> q, const metric<typename B::space>& m) {
  wide_backend<B> be64(be);
  const auto r = q.cols;
  const index_t width = m.width(weights.cols);
  auto frame = be64.frame();
  const auto qt = be64.scratch(r, weights.cols);
  const auto wq = be64.scratch(weights.rows, r);
  const auto gained = be64.scratch(r, weights.cols);
  const auto weighed = be64.scratch(r, width);
  const auto basis = be64.scratch(r, width);
  be64.copy(q.view().transposed(), qt);
  {
    auto copy = be64.frame();
    const auto w = be64.scratch(weights.rows, weights.cols);
    be64.copy(const_view(weights), w);
    be64.gemm(op::none, op::transpose, 1.0, w, qt, 0.0, wq);
    be64.gemm(op::transpose, op::none, 1.0, wq, w, 0.0, gained);
  }
  weigh<wide_backend<B>>(be64, gained, m, weighed);
  weigh<wide_backend<B>>(be64, qt, m, basis);

  const auto square = be64.scratch(r, r);
  const auto product_of = [&](op a, op b, block_of<wide_backend<B>> x,
                              block_of<wide_backend<B>> y) {
    std::vector<double> host(static_cast<std::size_t>(r * r));
    be64.gemm(a, b, 1.0, x, y, 0.0, square);
    be64.download(square, {host.data(), r, r, r});
    return host;
  };
  const auto d = product_of(op::none, op::transpose, weighed, basis);
  const auto w_part = product_of(op::transpose, op::none, wq, wq);
  const auto g_part = product_of(op::none, op::transpose, basis, basis);
  std::vector<double> energies(static_cast<std::size_t>(r));
  for (index_t i = 0; i < r; ++i) {
    const auto at = [&](index_t j) { return static_cast<std::size_t>(i * r + j); };
    double energy = 2 * d[at(i)] - w_part[at(i)] * g_part[at(i)];
    for (index_t j = 0; j < i; ++j)
      energy -= 2 * w_part[at(j)] * g_part[at(j)];
    energies[static_cast<std::size_t>(i)] = energy;
  }
  return energies;
}

} // namespace detail

/// What each vector of the basis takes off ‖W·F‖_F², in any metric, whichever one it was made for:
/// ‖(W − Ŵ_r)F‖_F² = ‖WF‖_F² − Σ_{i≤r} e_i. Cost and workspace: for a basis on the left
/// basis_energies; on the right with a metric 4mnr + 6r²n flops in double, mn + mr + 4rn + r²
/// doubles, and an e_i may be negative. Blocks. Throws std::invalid_argument for a two-sided basis.
template <backend B, class U>
std::vector<double> captured_energies(B& be, matrix_view<U, typename B::space> weights,
                                      const svd_basis<B>& basis,
                                      const metric<typename B::space>& m = {}) {
  detail::require(basis.acts != projection::both, "energies need a basis that acts on one side");
  const auto w = const_view(weights);
  if (basis.acts == projection::left) return basis_energies(be, w, basis.q.ref(), m);
  if (m.is_identity()) return basis_energies(be, w.transposed(), basis.q.ref());
  detail::check_nonempty(w, "W");
  detail::check_metric(m, w.cols, "the metric's factor");
  detail::require(basis.q.rows() == w.cols, "the basis has ", basis.q.rows(), " rows, W has ",
                  w.cols, " columns");
  detail::require_finite(be, w, "W");
  return detail::right_energies(be, w, basis.q.ref(), m);
}

/// ‖(W − Ŵ_r)F‖_F² for r = 0 … basis.rank(), in any metric. Good to the backend's eps relative to
/// the first value. Cost, workspace and errors: captured_energies.
template <backend B, class U>
std::vector<double> truncation_losses(B& be, matrix_view<U, typename B::space> weights,
                                      const svd_basis<B>& basis,
                                      const metric<typename B::space>& m = {}) {
  const auto energies = captured_energies(be, weights, basis, m);
  std::vector<double> curve{weighted_energy(be, weights, m)};
  double left = curve.front();
  for (const double e : energies)
    curve.push_back((std::max)(left -= e, 0.0));
  return curve;
}

} // namespace v0
} // namespace ressvd
