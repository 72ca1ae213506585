// SPDX-License-Identifier: Apache-2.0
//
// AdaSVD: starts from the whitened truncation and alternates U = WGVᵀ(VGVᵀ)⁺ and V = U⁺W. G is the
// shifted Gram when given, else the calibration Gram (for which the start is already optimal and
// the updates keep it). Its ratio per layer from cos(X, Y) is ratios_from_importances
// (layer_ratio/importance.hpp).
//   source   AdaSVD, arXiv 2502.01403, section 3.2
#pragma once

#include "ressvd/methods/method.hpp"
#include "ressvd/methods/svd_llm.hpp"
#include "ressvd/residual/closed_form_update.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct adasvd_options {
  method_target target = {};
  svd_algorithm algorithm = svd_algorithm::automatic;
  int iterations = 3; ///< alternations, each one update of U and one of V
};

/// Compresses W (m × n). Needs data.whitening and data.gram or data.shifted_gram.
template <backend B, class U>
compressed_matrix<B> adasvd(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                            const adasvd_options& options) {
  const detail::stopwatch watch;
  const index_t rank = detail::wanted_rank(options.target, w);
  detail::require(options.iterations >= 0, "AdaSVD with ", options.iterations, " iterations");
  const auto gram = data.shifted_gram.empty() ? data.gram : data.shifted_gram;
  detail::require(!gram.empty(), "AdaSVD needs the calibration Gram or the shifted Gram");
  const auto basis = svd_llm_basis(be, w, data, rank, options.algorithm);
  auto pair = slice(be, w, basis, rank);
  method_report report{.svd = basis.report};
  for (int i = 0; i < options.iterations; ++i) {
    report.update_rank = update_left(be, w, pair, gram);
    update_right(be, w, pair);
  }
  return detail::finish(be, w, data, std::move(pair), std::move(report), watch);
}

} // namespace methods
} // namespace v0
} // namespace ressvd
