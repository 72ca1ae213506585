// SPDX-License-Identifier: Apache-2.0
//
// Plain SVD: min ‖W − Ŵ‖_F, both metrics the identity. Needs no calibration.
//   source   Eckart and Young, Psychometrika 1 (1936)
#pragma once

#include "ressvd/methods/method.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

/// One factorisation for all ranks up to `rank`; slice(be, W, basis, r) gives the pair.
template <backend B, class U>
svd_basis<B> svd_basis_of(B& be, matrix_view<U, typename B::space> w, index_t rank,
                          svd_algorithm algorithm = svd_algorithm::automatic) {
  return truncated_svd(be, w, metric<typename B::space>::identity(),
                       metric<typename B::space>::identity(), rank, {.algorithm = algorithm});
}

/// Compresses W (m × n). Cost, errors and workspace: truncated_svd and slice.
template <backend B, class U>
compressed_matrix<B> svd(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                         const method_options& options) {
  const detail::stopwatch watch;
  const index_t rank = detail::wanted_rank(options.target, w);
  return detail::slice_and_finish(be, w, data, svd_basis_of(be, w, rank, options.algorithm), watch);
}

} // namespace methods
} // namespace v0
} // namespace ressvd
