// SPDX-License-Identifier: Apache-2.0
//
// ResSVD (final version: ERC-SVD): whitened truncation to the intermediate rank, then the plain SVD
// of the residual. residual/residual_compensation.hpp says what this changes and what it cannot.
// Needs the Gram.
//   source   ResSVD, arXiv 2505.20112, Algorithm 1
#pragma once

#include <optional>
#include <string_view>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct ressvd {
  svd_options options = {};
  double beta = 0.05; ///< r_r = βα rounded, α = mn/(m+n), unless one of the ranks is given
  std::optional<index_t> residual_rank = std::nullopt;
  std::optional<index_t> intermediate_rank = std::nullopt;
  bool whitened_residual = false; ///< second stage in the first stage's metric

  static constexpr std::string_view name = "ressvd";
  template <backend B>
  void prepare(calibration<B>& input) const {
    input.whitening("ResSVD");
  }
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    return truncated_svd(be, w, {}, input.whitening("ResSVD").metric(), rank, options);
  }
  std::optional<residual_plan> residual() const {
    return residual_plan{.options = {.beta = beta,
                                     .residual_rank = residual_rank,
                                     .intermediate_rank = intermediate_rank,
                                     .svd = options},
                         .whitened = whitened_residual};
  }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
