// SPDX-License-Identifier: Apache-2.0
//
// ASVD: min ‖(W − Ŵ)S‖_F with S = diag((mean_t |x_it|)^α + ε). Needs the channel means.
//   source   ASVD, arXiv 2312.05821, section 3.2 (absolute-mean scaling, α = 0.5)
#pragma once

#include <cmath>
#include <string_view>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct asvd {
  svd_options options = {};
  double alpha = 0.5;    ///< how much the activations' scale counts, in [0, 1]
  double epsilon = 1e-6; ///< keeps the scale of dead channels above zero

  static constexpr std::string_view name = "asvd";
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    detail::require(alpha >= 0 && alpha <= 1 && epsilon >= 0, "ASVD's alpha ", alpha,
                    " is outside [0, 1] or its epsilon ", epsilon, " is negative");
    const auto s = diagonal_weights(be, input.mean_abs("ASVD"), w.cols(), "the channel means",
                                    [&](double mean) { return std::pow(mean, alpha) + epsilon; });
    return truncated_svd(be, w, {}, metric<typename B::space>::diagonal(s), rank, options);
  }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
