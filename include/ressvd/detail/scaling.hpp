// SPDX-License-Identifier: Apache-2.0
//
// Conversions that kernels make at their entry: to the backend's scalar, and to a magnitude whose
// squares neither overflow nor vanish.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// 2^e with 2^(e-1) ≤ value < 2^e, kept to what a float can hold; 1 for 0.
inline double power_of_two_above(double value) {
  if (value == 0) return 1;
  int exponent = 0;
  std::frexp(value, &exponent);
  return std::ldexp(1.0, (std::max)(-120, (std::min)(120, exponent)));
}

/// The matrix in the backend's scalar: itself if the types agree, else a copy in scratch.
template <backend B, readable_matrix<typename B::space> M>
matrix_view<const typename B::scalar, typename B::space> in_scalar(B& be, const M& a) {
  const auto view = const_view(a);
  if constexpr (std::is_same_v<typename B::scalar, element_of<M>>) {
    return view;
  } else {
    const auto copy = be.scratch(view.rows, view.cols);
    be.copy(view, copy);
    return const_view(copy);
  }
}

/// The same for a block, which stays one.
template <backend B>
const_block_of<B> in_scalar(B& be, block<const double, typename B::space> a) {
  if constexpr (std::is_same_v<typename B::scalar, double>) {
    return a;
  } else {
    const auto copy = be.scratch(a.rows, a.cols);
    be.copy(a, copy);
    return copy;
  }
}

} // namespace detail
} // namespace v0
} // namespace ressvd
