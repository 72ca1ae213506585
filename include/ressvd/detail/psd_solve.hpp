// SPDX-License-Identifier: Apache-2.0
//
// Linear systems with a symmetric positive semidefinite matrix, b ← M⁺·b, singular ones included.
//   cost   k³/3 + 2ck² flops by Cholesky, an eigendecomposition of order k where M is singular;
//          workspace k² scalars, and ck more where M is singular; blocks
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// b ← M⁺·b for a symmetric positive semidefinite M: k × k (its lower triangle is read), b: k × c.
/// Takes Cholesky and two substitutions, or, where M is singular to rounding, the eigenvectors
/// above k·eps of the largest eigenvalue. Returns the rank that was used. Blocks.
template <backend B>
index_t solve_semidefinite(B& be, const_block_of<B> m, block_of<B> b) {
  using T = typename B::scalar;
  const index_t k = m.rows;
  const auto size = static_cast<std::size_t>(k);
  const double negligible = static_cast<double>(k) * std::numeric_limits<T>::epsilon();
  auto frame = be.frame();
  const auto factor = be.scratch(k, k);
  be.copy(m.view(), factor);
  std::vector<double> values(size);
  if (be.potrf(factor) == 0) {
    be.diagonal(factor, values);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    if (*low * *low > negligible * *high * *high) {
      be.trsm(side::left, op::none, factor, b);
      be.trsm(side::left, op::transpose, factor, b);
      return k;
    }
  }
  be.copy(m.view(), factor);
  be.eigh(factor, values);
  std::vector<T> reciprocals(size, T{0});
  for (std::size_t i = 0; i < size; ++i) {
    if (values[i] > negligible * values.back()) reciprocals[i] = static_cast<T>(1 / values[i]);
  }
  const auto d = be.scratch(k, 1);
  const auto coordinates = be.scratch(k, b.cols);
  be.upload({reciprocals.data(), k, 1, k}, d);
  be.gemm(op::transpose, op::none, T{1}, factor, b, T{0}, coordinates);
  be.scale_rows(d, coordinates);
  be.gemm(op::none, op::none, T{1}, factor, coordinates, T{0}, b);
  return std::count_if(reciprocals.begin(), reciprocals.end(), [](T r) { return r != 0; });
}

} // namespace detail
} // namespace v0
} // namespace ressvd
