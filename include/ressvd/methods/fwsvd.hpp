// SPDX-License-Identifier: Apache-2.0
//
// FWSVD: min ‖D(W − Ŵ)‖_F with D = diag(√Σ_j F_ij), F the mean squared gradient of the loss with
// respect to W. The caller provides its row sums as weight::row_importance. The solution is
// Ŵ = W·V_r·V_rᵀ, V_r the top right singular vectors of DW: rows of zero importance need no
// division.
//   source   FWSVD, arXiv 2207.00112, eqs. 5–7
#pragma once

#include <cmath>
#include <string_view>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

/// Σ_j F_ij of a Fisher information F: m × n, non-negative, any storage; m × 1, owned by the
/// caller.
template <backend B, readable_matrix<typename B::space> M>
matrix<double, typename B::space> fisher_row_importance(B& be, const M& fisher) {
  wide_backend<B> be64(be);
  const auto f = const_view(fisher);
  detail::check_nonempty(f, "the Fisher information");
  detail::require_finite(be64, f, "the Fisher information");
  auto sums = be64.allocate(f.rows, 1);
  be64.fill(sums, 0.0);
  be64.add_row_abs(f, sums);
  return sums;
}

struct fwsvd {
  svd_options options = {};

  static constexpr std::string_view name = "fwsvd";
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>&, index_t rank) const {
    const auto d = diagonal_weights(be, w.row_importance, w.rows(), "the row importance",
                                    [](double f) { return std::sqrt(f); });
    return truncated_svd(be, w, metric<typename B::space>::diagonal(d), {}, rank, options);
  }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
