// SPDX-License-Identifier: Apache-2.0
//
// The matrix that a truncated SVD factors, A = F_Lᵀ·W·F_R, described by its parts: each algorithm
// forms it in the precision it needs.
//   cost        one product with each factor
//   workspace   mn scalars, a copy of W where its layout or type differs, and one more block of
//               the size of A for a left metric
//   blocks      yes (the energy)
//   errors      nonfinite_error where A has no finite norm
#pragma once

#include <cmath>
#include <type_traits>

#include "ressvd/core/backend.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

template <backend B>
struct weighted_matrix {
  using space = typename B::space;

  /// W in the backend's scalar, with elements whose squares neither overflow nor vanish.
  matrix_view<const typename B::scalar, space> w;
  metric<space> left = {};
  metric<space> right = {};

  index_t rows() const { return left.width(w.rows); }
  index_t cols() const { return right.width(w.cols); }
};

/// A in a backend's scratch, and ‖A‖_F².
template <backend C>
struct formed_matrix {
  block_of<C> a;
  double energy = 0;
};

/// The view as a column-major block: the same memory where type and layout allow, else a copy in
/// scratch.
template <backend C, class T>
const_block_of<C> in_block(C& be, matrix_view<const T, typename C::space> w) {
  if constexpr (std::is_same_v<T, typename C::scalar>) {
    if (w.order == layout::col_major) return {w.data, w.rows, w.cols, w.ld};
  }
  const auto copy = be.scratch(w.rows, w.cols);
  be.copy(w, copy);
  return copy;
}

/// A in the scalar of C, a backend on the same machine.
template <backend C, backend B>
formed_matrix<C> form(C& be, const weighted_matrix<B>& parts) {
  const auto a = be.scratch(parts.rows(), parts.cols());
  if (parts.left.is_identity() && parts.right.is_identity()) {
    be.copy(parts.w, a);
  } else {
    auto frame = be.frame();
    const auto w = in_block(be, parts.w);
    if (parts.left.is_identity()) {
      weigh<C>(be, w, parts.right, a);
    } else {
      const auto half_weighed = be.scratch(parts.rows(), w.cols);
      weigh_left<C>(be, parts.left, w, half_weighed);
      weigh<C>(be, half_weighed, parts.right, a);
    }
  }
  const double energy = be.dot(a, a);
  require<nonfinite_error>(std::isfinite(energy), "W (", parts.w.rows, " x ", parts.w.cols,
                           ") in its metric has norm ", std::sqrt(energy),
                           ": a metric's factor has a non-finite element or is too large");
  return {a, energy};
}

/// Scales A to norm 1 up to a power of two, whose products neither overflow nor vanish in float.
/// Returns the scale, by which its singular values are to be multiplied.
template <backend C>
double normalize(C& be, formed_matrix<C>& formed) {
  const double unit = power_of_two_above(std::sqrt(formed.energy));
  be.scale(static_cast<typename C::scalar>(1 / unit), formed.a);
  formed.energy = be.dot(formed.a, formed.a);
  return unit;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
