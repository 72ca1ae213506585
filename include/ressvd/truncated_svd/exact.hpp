// SPDX-License-Identifier: Apache-2.0
//
// Dense singular value decomposition of A: m × p, by the backend's own routine: every digit of its
// scalar, the slowest way. A matrix much wider than tall is first reduced to the triangle of
// Aᵀ = Q·R: A = RᵀQᵀ has the left vectors and singular values of Rᵀ (m × m).
//   cost        reduction 2pm² flops, then the backend's SVD of at most m × min(m, p)
//   workspace   A, m·min(m, p) scalars, mp + m² for a reduction, and the SVD's
//   blocks      yes
#pragma once

#include <limits>
#include <optional>

#include "ressvd/core/backend.hpp"
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// q: the leading q.cols left singular vectors. Never declines.
template <backend B>
std::optional<svd_outcome> exact_svd(B& be, const weighted_matrix<B>& parts,
                                     const svd_options& options, block_of<B> q) {
  auto frame = be.frame();
  const auto [a, energy] = form(be, parts);
  svd_outcome outcome{.energy = energy, .report = {.algorithm = svd_algorithm::exact}};
  auto& values = outcome.singular_values;
  values.resize(static_cast<std::size_t>((std::min)(a.rows, a.cols)));
  const auto u = be.scratch(a.rows, (std::min)(a.rows, a.cols));
  report_progress(options, 0.1);
  if (a.cols > a.rows + a.rows / 2) {
    const auto at = be.scratch(a.cols, a.rows);
    const auto r = be.scratch(a.rows, a.rows);
    be.copy(a.transposed(), at);
    be.triangularize(at, r);
    report_progress(options, 0.3);
    const auto rt = a.left_cols(a.rows);
    be.copy(r.transposed(), rt);
    be.svd(rt, values, u);
  } else {
    be.svd(a, values, u);
  }
  be.copy(u.left_cols(q.cols), q);
  const auto longest = static_cast<double>((std::max)(a.rows, a.cols));
  outcome.report.numerical_rank =
      count_above(values, longest * std::numeric_limits<typename B::scalar>::epsilon());
  return outcome;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
