// SPDX-License-Identifier: Apache-2.0
//
// Singular values and left vectors of A: m × p from one symmetric eigendecomposition in double.
//   m ≤ p   AAᵀ = UΛUᵀ, Σ = Λ^(1/2)
//   m > p   AᵀA = VΛVᵀ, U = A·V·Σ⁻¹ made orthonormal again
// Squaring leaves singular values below √eps ≈ 1e-8 of the largest undetermined; that is finer
// than what a float32 SVD of A resolves.
//   cost       mp·k flops for the Gram, k = min(m, p); an eigendecomposition of order k with r
//              vectors; 2mp·r + 6mr² in the second case
//   workspace  k² + k·r doubles and the eigendecomposition's
//   blocks     yes
//   source     Swift-SVD, arXiv 2604.01609 (m ≤ p)
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/truncated_svd/ritz_block.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// As exact_svd; `be` computes in double.
template <backend B>
void gram_svd(B& be, const_block_of<B> a, std::span<double> values, block_of<B> q) {
  const bool wide = a.rows <= a.cols;
  const index_t k = (std::min)(a.rows, a.cols);
  auto frame = be.frame();
  const auto gram = be.scratch(k, k);
  be.fill(gram, 0.0);
  be.add_gram(wide ? a.view() : a.view().transposed(), gram);
  const auto leading = wide ? q : be.scratch(k, q.cols);
  leading_eigenpairs(be, gram, values, leading);
  for (double& v : values)
    v = std::sqrt((std::max)(v, 0.0));
  if (wide) return;
  be.gemm(op::none, op::none, 1.0, a, leading, 0.0, q);
  std::vector<double> reciprocals(static_cast<std::size_t>(q.cols));
  for (std::size_t i = 0; i < reciprocals.size(); ++i) {
    reciprocals[i] = values[i] > 0 ? 1 / values[i] : 0;
  }
  const auto d = be.scratch(q.cols, 1);
  be.upload({reciprocals.data(), q.cols, 1, q.cols}, d);
  be.scale_cols(q, d);
  orthonormalize(be, q);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
