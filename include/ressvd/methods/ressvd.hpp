// SPDX-License-Identifier: Apache-2.0
//
// ResSVD (final version: ERC-SVD): whitened truncation to the intermediate rank, then the plain SVD
// of the residual. See residual_compensation.hpp for what this changes and what it cannot.
//   source   ResSVD, arXiv 2505.20112, Algorithm 1
#pragma once

#include "ressvd/methods/method.hpp"
#include "ressvd/methods/svd_llm.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct ressvd_options {
  method_target target = {};
  svd_algorithm algorithm = svd_algorithm::automatic;
  double beta = 0.05; ///< r_r = βα rounded, α = mn/(m+n), unless one of the ranks is given
  std::optional<index_t> residual_rank = std::nullopt;
  std::optional<index_t> intermediate_rank = std::nullopt;
  bool whitened_residual = false; ///< second stage in the first stage's metric
};

/// Both stages at `rank` for a first-stage basis from svd_llm_basis: this is what repeats for every
/// rank tried, the first stage is not.
template <backend B, class U>
compressed_matrix<B> ressvd_from_basis(B& be, matrix_view<U, typename B::space> w,
                                       const calibration<B>& data, const svd_basis<B>& stage1,
                                       index_t rank, const ressvd_options& options = {}) {
  using metric = ressvd::metric<typename B::space>;
  const detail::stopwatch watch;
  const residual_options stages{.rank = rank,
                                .beta = options.beta,
                                .residual_rank = options.residual_rank,
                                .intermediate_rank = options.intermediate_rank,
                                .algorithm = options.algorithm};
  const metric second = options.whitened_residual
                            ? detail::required_whitening(data, "a whitened residual stage").metric()
                            : metric::identity();
  auto basis = residual_compensation(be, w, stage1, stages, second);
  const method_report report{.intermediate_rank = basis.intermediate_rank, .svd = stage1.report};
  return detail::finish(be, w, data, project(be, w, std::move(basis.q)), report, watch);
}

/// Compresses W (m × n). Needs data.whitening.
template <backend B, class U>
compressed_matrix<B> ressvd(B& be, matrix_view<U, typename B::space> w, const calibration<B>& data,
                            const ressvd_options& options) {
  const detail::stopwatch watch;
  const index_t rank = detail::wanted_rank(options.target, w);
  const index_t stage1_rank = intermediate_rank(w.rows, w.cols,
                                                {.rank = rank,
                                                 .beta = options.beta,
                                                 .residual_rank = options.residual_rank,
                                                 .intermediate_rank = options.intermediate_rank});
  const auto stage1 = svd_llm_basis(be, w, data, stage1_rank, options.algorithm);
  auto result = ressvd_from_basis(be, w, data, stage1, rank, options);
  result.report.seconds = watch.seconds();
  return result;
}

} // namespace methods
} // namespace v0
} // namespace ressvd
