// SPDX-License-Identifier: Apache-2.0
//
// The check that a matrix holds numbers only, neither NaN nor infinity, with a message that names
// the matrix and, on the CPU, the element. O(mn) reads; blocks.
#pragma once

#include <cmath>
#include <string>
#include <type_traits>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Where the first non-finite element of a host view stands, for messages.
template <class U>
std::string nonfinite_position(matrix_view<const U> a) {
  for (index_t i = 0; i < a.rows; ++i) {
    for (index_t j = 0; j < a.cols; ++j) {
      const double value = load<double>(*a.part(i, j, 1, 1).data);
      if (!std::isfinite(value)) return text(value, " at row ", i, ", column ", j);
    }
  }
  return "a non-finite element";
}

/// Refuses NaN and infinity by the matrix's name; returns max |a_ij|. Blocks.
template <backend B, readable_matrix<typename B::space> M>
double require_finite(B& be, const M& matrix, const char* name) {
  const auto a = const_view(matrix);
  const double largest = a.empty() ? 0.0 : be.max_abs(a);
  if (!std::isfinite(largest)) {
    if constexpr (std::is_same_v<typename B::space, host_space>) {
      fail<nonfinite_error>(name, " (", a.rows, " x ", a.cols, ") has ", nonfinite_position(a));
    } else {
      fail<nonfinite_error>(name, " (", a.rows, " x ", a.cols, ") has a non-finite element");
    }
  }
  return largest;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
