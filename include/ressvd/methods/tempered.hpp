// SPDX-License-Identifier: Apache-2.0
//
// Tempered whitening: SVD-LLM's problem in the metric Gᵖ, scaled to the trace of G. p = 1 is
// SVD-LLM, p = 0 plain SVD. The p that generalises best lies between them and differs from model to
// model: choose it on held-out data. Needs the Gram.
//   source   ours; docs/theory.md
#pragma once

#include <string_view>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct tempered {
  svd_options options = {};
  double power = 0.6; ///< p in [0, 1]

  static constexpr std::string_view name = "tempered";
  template <backend B>
  void prepare(calibration<B>& input) const {
    input.whitening_power(power, "tempered whitening");
  }
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>& input, index_t rank) const {
    return truncated_svd(be, w, {}, input.whitening_power(power, "tempered whitening").metric(),
                         rank, options);
  }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
