// SPDX-License-Identifier: Apache-2.0
//
// FWSVD: min ‖D(W − Ŵ)‖_F with D = diag(√Σ_j F_ij), F the mean squared gradient of the loss with
// respect to W, which the caller provides. With V_r the top right singular vectors of DW the
// solution is Ŵ = W·V_r·V_rᵀ: rows of zero importance need no division.
//   source   FWSVD, arXiv 2207.00112, eqs. 5–7
#pragma once

#include <cmath>

#include "ressvd/methods/method.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

/// Σ_j F_ij of a Fisher information F: m × n, non-negative, any storage; m × 1, owned by the
/// caller.
template <backend B, class U>
matrix<double, typename B::space> fisher_row_importance(B& be,
                                                        matrix_view<U, typename B::space> fisher) {
  wide_backend<B> be64(be);
  detail::check_nonempty(fisher, "the Fisher information");
  detail::require_finite(be64, const_view(fisher), "the Fisher information");
  auto sums = be64.allocate(fisher.rows, 1);
  be64.fill(sums, 0.0);
  be64.add_row_abs(const_view(fisher), sums);
  return sums;
}

/// Basis for all ranks up to `rank`. Needs data.row_importance.
template <backend B, class U>
svd_basis<B> fwsvd_basis(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                         index_t rank, svd_algorithm algorithm = svd_algorithm::automatic) {
  using metric = ressvd::metric<typename B::space>;
  const auto d = detail::diagonal_weights(be, data.row_importance, w.rows, "the row importance",
                                          [](double f) { return std::sqrt(f); });
  return truncated_svd(be, w, metric::diagonal(d), metric::identity(), rank,
                       {.algorithm = algorithm});
}

/// Compresses W (m × n). Throws std::invalid_argument for a missing or negative row importance.
template <backend B, class U>
compressed_matrix<B> fwsvd(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                           const method_options& options) {
  const detail::stopwatch watch;
  const index_t rank = detail::wanted_rank(options.target, w);
  return detail::slice_and_finish(be, w, data, fwsvd_basis(be, w, data, rank, options.algorithm),
                                  watch);
}

} // namespace methods
} // namespace v0
} // namespace ressvd
