// SPDX-License-Identifier: Apache-2.0
//
// SVD-LLM: min ‖(W − Ŵ)X‖_F by whitening with a factor of G = XXᵀ. With a power of G as the factor
// (whiten_power) the same call is tempered whitening. When the Gram of the inputs that the
// compressed prefix produces is given, U is updated in closed form to fit those inputs.
//   source   SVD-LLM, arXiv 2403.07378, Algorithms 1–3
#pragma once

#include "ressvd/methods/method.hpp"
#include "ressvd/residual/closed_form_update.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

/// Basis for all ranks up to `rank`. Needs data.whitening.
template <backend B, class U>
svd_basis<B> svd_llm_basis(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                           index_t rank, svd_algorithm algorithm = svd_algorithm::automatic) {
  return truncated_svd(be, w, metric<typename B::space>::identity(),
                       detail::required_whitening(data, "SVD-LLM").metric(), rank,
                       {.algorithm = algorithm});
}

/// Compresses W (m × n). Needs data.whitening; with data.shifted_gram U is updated, with
/// data.cross_gram in addition towards the original outputs.
template <backend B, class U>
compressed_matrix<B> svd_llm(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                             const method_options& options) {
  const detail::stopwatch watch;
  const index_t rank = detail::wanted_rank(options.target, w);
  const auto basis = svd_llm_basis(be, w, data, rank, options.algorithm);
  auto pair = slice(be, w, basis, rank);
  method_report report{.svd = basis.report};
  detail::require(data.cross_gram.empty() || !data.shifted_gram.empty(),
                  "a cross-Gram was given without the shifted Gram that belongs to it");
  if (!data.shifted_gram.empty()) {
    report.update_rank = update_left(be, w, pair, data.shifted_gram, data.cross_gram);
  }
  return detail::finish(be, w, data, std::move(pair), std::move(report), watch);
}

} // namespace methods
} // namespace v0
} // namespace ressvd
