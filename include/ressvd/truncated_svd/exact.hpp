// SPDX-License-Identifier: Apache-2.0
//
// Dense singular value decomposition of A: m × p. A much wider than tall is first reduced to
// the triangle of Aᵀ = Q·R: A = RᵀQᵀ has the left vectors and singular values of Rᵀ (m × m).
//   cost   reduction 2pm² flops, then the backend's SVD of at most m × min(m, p)
#pragma once

#include <span>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// values: all min(m, p) singular values, descending; q: the leading q.cols left singular vectors.
/// a is destroyed.
template <backend B>
void exact_svd(B& be, block_of<B> a, std::span<double> values, block_of<B> q) {
  auto frame = be.frame();
  const auto u = be.scratch(a.rows, (std::min)(a.rows, a.cols));
  if (a.cols > a.rows + a.rows / 2) {
    const auto at = be.scratch(a.cols, a.rows);
    const auto r = be.scratch(a.rows, a.rows);
    be.copy(a.transposed(), at);
    be.triangularize(at, r);
    const auto rt = a.left_cols(a.rows);
    be.copy(r.transposed(), rt);
    be.svd(rt, values, u);
  } else {
    be.svd(a, values, u);
  }
  be.copy(u.left_cols(q.cols), q);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
