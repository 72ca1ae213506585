// SPDX-License-Identifier: Apache-2.0
//
// Singular values and left vectors of A: m × p from one symmetric eigendecomposition in double.
//   m ≤ p   AAᵀ = UΛUᵀ, Σ = Λ^(1/2)
//   m > p   AᵀA = VΛVᵀ, U = A·V·Σ⁻¹ made orthonormal again
// Squaring leaves singular values below √eps ≈ 1e-8 of the largest undetermined; that is finer
// than what a float32 SVD of A resolves.
//   cost       mp·k flops for the Gram, k = min(m, p); an eigendecomposition of order k with r
//              vectors; 2mp·r + 6mr² in the second case
//   workspace  A, k² + (m + k)·r doubles and the eigendecomposition's
//   blocks     yes
//   source     Swift-SVD, arXiv 2604.01609 (m ≤ p)
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/eigenpairs.hpp"
#include "ressvd/truncated_svd/options.hpp"
#include "ressvd/truncated_svd/weighted_matrix.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// The share of the largest singular value below which those of an A formed in T are undetermined:
/// the eigenvalues of a Gram are known to eps of the largest one, their square roots to √eps.
template <class T>
double gram_resolution(index_t longer) {
  const auto terms = static_cast<double>(longer);
  return (std::max)(std::sqrt(terms * std::numeric_limits<double>::epsilon()),
                    terms * std::numeric_limits<T>::epsilon());
}

/// q: the leading q.cols left singular vectors. Never declines.
template <backend B>
std::optional<svd_outcome> gram_svd(B& be, const weighted_matrix<B>& parts,
                                    const svd_options& options, block_of<B> q) {
  wide_backend<B> be64(be);
  auto frame = be64.frame();
  const auto [a, energy] = form(be64, parts);
  const bool wide = a.rows <= a.cols;
  const index_t k = (std::min)(a.rows, a.cols);
  svd_outcome outcome{.energy = energy, .report = {.algorithm = svd_algorithm::gram}};
  auto& values = outcome.singular_values;
  values.resize(static_cast<std::size_t>(k));
  const auto gram = be64.scratch(k, k);
  const auto leading = be64.scratch(k, q.cols);
  report_progress(options, 0.1);
  be64.fill(gram, 0.0);
  be64.add_gram(wide ? a.view() : a.transposed(), gram);
  report_progress(options, 0.3);
  leading_eigenpairs(be64, gram, std::span<double>(values), leading);
  for (double& v : values)
    v = std::sqrt((std::max)(v, 0.0));
  outcome.report.numerical_rank =
      count_above(values, gram_resolution<double>((std::max)(a.rows, a.cols)));
  if (wide) {
    be.copy(leading, q);
    return outcome;
  }
  report_progress(options, 0.8);
  const auto u = be64.scratch(a.rows, q.cols);
  be64.gemm(op::none, op::none, 1.0, a, leading, 0.0, u);
  normalize_columns(be64, u,
                    std::span<const double>(values).first(static_cast<std::size_t>(q.cols)));
  be.copy(u, q);
  return outcome;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
