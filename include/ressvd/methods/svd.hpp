// SPDX-License-Identifier: Apache-2.0
//
// Plain SVD: min ‖W − Ŵ‖_F, the identity as metric on both sides. Needs no calibration.
//   source   Eckart and Young, Psychometrika 1 (1936)
#pragma once

#include <string_view>

#include "ressvd/methods/support.hpp"

namespace ressvd {
inline namespace v0 {
namespace methods {

struct svd {
  svd_options options = {};

  static constexpr std::string_view name = "svd";
  template <backend B>
  svd_basis<B> basis(B& be, const weight<B>& w, calibration<B>&, index_t rank) const {
    return truncated_svd(be, w, {}, {}, rank, options);
  }
};

} // namespace methods
} // namespace v0
} // namespace ressvd
