// SPDX-License-Identifier: Apache-2.0
//
// What methods share: diagonal metrics from statistics.
#pragma once

#include <cmath>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/methods/calibration.hpp"
#include "ressvd/methods/method.hpp"

namespace ressvd {
inline namespace v0 {

/// A factor diag(f(v_1), …, f(v_k)) from non-negative `values`, k × 1; hand it to
/// metric::diagonal. Blocks. Throws std::invalid_argument for another length and for a negative
/// value, nonfinite_error for NaN and infinity; `name` stands in the message.
template <backend B, class F>
matrix<double, typename B::space> diagonal_weights(B& be,
                                                   block<const double, typename B::space> values,
                                                   index_t k, const char* name, F f) {
  wide_backend<B> be64(be);
  detail::check_nonempty(values.view(), name);
  detail::check_shape(values, k, 1, name);
  std::vector<double> host(static_cast<std::size_t>(k));
  be64.download(values, {host.data(), k, 1, k});
  for (std::size_t i = 0; i < host.size(); ++i) {
    detail::require<nonfinite_error>(std::isfinite(host[i]), name, " has ", host[i], " at ", i);
    detail::require(host[i] >= 0, name, " has the negative value ", host[i], " at ", i);
    host[i] = f(host[i]);
  }
  auto weights = be64.allocate(k, 1);
  be64.upload({host.data(), k, 1, k}, weights);
  return weights;
}

} // namespace v0
} // namespace ressvd
