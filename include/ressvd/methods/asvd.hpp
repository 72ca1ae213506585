// SPDX-License-Identifier: Apache-2.0
//
// ASVD: min ‖(W − Ŵ)S‖_F with S = diag((mean_t |x_it|)^α + ε).
//   source   ASVD, arXiv 2312.05821, section 3.2 (absolute-mean scaling, α = 0.5)
#pragma once

#include <cmath>

#include "ressvd/methods/method.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct asvd_options {
  method_target target = {};
  svd_algorithm algorithm = svd_algorithm::automatic;
  double alpha = 0.5;    ///< how much the activations' scale counts, in [0, 1]
  double epsilon = 1e-6; ///< keeps the scale of dead channels above zero
};

/// Basis for all ranks up to `rank`. Needs data.mean_abs.
template <backend B, class U>
svd_basis<B> asvd_basis(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                        index_t rank, const asvd_options& options = {}) {
  using metric = ressvd::metric<typename B::space>;
  detail::require(options.alpha >= 0 && options.alpha <= 1 && options.epsilon >= 0, "ASVD's alpha ",
                  options.alpha, " is outside [0, 1] or its epsilon ", options.epsilon,
                  " is negative");
  const auto s = detail::diagonal_weights(
      be, data.mean_abs, w.cols, "the channel means",
      [&](double mean) { return std::pow(mean, options.alpha) + options.epsilon; });
  return truncated_svd(be, w, metric::identity(), metric::diagonal(s),
                       {.rank = rank, .algorithm = options.algorithm});
}

/// Compresses W (m × n). Throws std::invalid_argument for missing channel means.
template <backend B, class U>
compressed_matrix<B> asvd(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                          const asvd_options& options) {
  const detail::stopwatch watch;
  const index_t rank = detail::wanted_rank(options.target, w);
  return detail::slice_and_finish(be, w, data, asvd_basis(be, w, data, rank, options), watch);
}

} // namespace methods
} // namespace v0
} // namespace ressvd
