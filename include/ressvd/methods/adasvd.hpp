// SPDX-License-Identifier: Apache-2.0
//
// AdaSVD: the whitened truncation, then alternating updates U = WG'Vᵀ(VG'Vᵀ)⁺ and V = U⁺W for the
// inputs X' that the compressed prefix produces (shifted_input::update). The truncation is optimal
// already for X itself, and the updates would keep it. ratios_from_importances
// (layer_ratio/importance.hpp) gives its ratio per layer from cos(X, Y).
//   source   AdaSVD, arXiv 2502.01403, section 3.2
#pragma once

#include <string_view>

#include "ressvd/methods/shifted_input.hpp"
#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct adasvd {
  svd_options options = {};
  int iterations = 3; ///< alternations, each one update of U and one of V

  static constexpr std::string_view name = "adasvd";
  template <backend B>
  void prepare(calibration<B>& input) const {
    input.whitening("AdaSVD");
  }
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    return truncated_svd(be, w, {}, input.whitening("AdaSVD").metric(), rank, options);
  }
  update_options update() const { return {.iterations = iterations, .alternating = true}; }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
