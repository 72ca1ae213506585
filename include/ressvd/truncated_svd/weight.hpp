// SPDX-License-Identifier: Apache-2.0
//
// A weight matrix as the kernels take it: W (m × n) checked, scaled and converted once, whatever
// its storage type and layout, so that what follows depends on the backend alone.
//
//   values   W / unit in the backend's scalar, column-major, with elements of magnitude at most 1:
//            their squares neither overflow nor vanish in float. Scaling is exact, by a power of
//            two
//   cost     one pass over W to check it, one to copy it; mn scalars of memory
//   blocks   yes (the check)
//   errors   std::invalid_argument for an empty or impossible view, nonfinite_error for NaN and
//            infinity, by position where W is in host memory
#pragma once

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/detail/scaling.hpp"

namespace ressvd {
inline namespace v0 {

template <backend B>
struct weight {
  using scalar = typename B::scalar;
  using space = typename B::space;

  matrix<scalar, space> values; ///< W / unit
  double unit = 1;              ///< a power of two
  /// What the model's gradients say of W's outputs, for methods that ask: Σ_j F_ij of the Fisher
  /// information F, m × 1, in the caller's memory; empty where it is not known.
  block<const double, space> row_importance = {};
  /// H = Σ g·gᵀ over tokens, g the gradient of the model's loss at W's output, m × m, both
  /// triangles, in the caller's memory; empty where it is not known.
  block<const double, space> output_curvature = {};

  /// `name` stands in the messages of errors.
  template <readable_matrix<space> M>
  weight(B& be, const M& w, const char* name = "W") {
    const auto source = const_view(w);
    detail::check_nonempty(source, name);
    unit = detail::power_of_two_above(detail::require_finite(be, source, name));
    values = be.allocate(source.rows, source.cols);
    if constexpr (sizeof(element_of<M>) <= sizeof(scalar)) {
      be.copy(source, values.ref());
      be.scale(static_cast<scalar>(1 / unit), values.ref());
    } else { // a double beyond float's range is scaled before it is rounded
      wide_backend<B> be64(be);
      auto frame = be64.frame();
      const auto scaled = be64.scratch(source.rows, source.cols);
      be64.copy(source, scaled);
      be64.scale(1 / unit, scaled);
      be.copy(scaled, values.ref());
    }
  }

  index_t rows() const { return values.rows(); }
  index_t cols() const { return values.cols(); }
};

template <backend B, class M>
weight(B&, const M&) -> weight<B>;
template <backend B, class M>
weight(B&, const M&, const char*) -> weight<B>;

} // namespace v0
} // namespace ressvd
