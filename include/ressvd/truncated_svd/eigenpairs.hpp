// SPDX-License-Identifier: Apache-2.0
//
// The largest eigenvalues of a symmetric matrix and their vectors, from a backend's decomposition.
//   cost     14/3·n³ flops for all vectors; about 4/3·n³ + 3n²r for r of them where the backend has
//            a routine for the largest
//   blocks   yes
#pragma once

#include <algorithm>
#include <span>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Whether the backend forms the eigenvectors of the largest eigenvalues alone.
template <backend B>
constexpr bool has_leading_eigenvectors = requires(B& be, block_of<B> h, std::span<double> values) {
  be.leading_eigenvectors(h, values, h);
};

/// Eigenvalues of the symmetric h (n × n, lower triangle; destroyed), descending, and the
/// eigenvectors of the largest in v's columns, v: n × any count.
template <backend B>
void leading_eigenpairs(B& be, block_of<B> h, std::span<double> values, block_of<B> v) {
  auto frame = be.frame();
  auto ascending = h;
  if constexpr (has_leading_eigenvectors<B>) {
    ascending = be.scratch(h.rows, v.cols);
    be.leading_eigenvectors(h, values, ascending);
  } else {
    be.eigh(h, values);
  }
  std::reverse(values.begin(), values.end());
  for (index_t i = 0; i < v.cols; ++i) {
    be.copy(ascending.col_range(ascending.cols - 1 - i, 1), v.col_range(i, 1));
  }
}

} // namespace detail
} // namespace v0
} // namespace ressvd
