// SPDX-License-Identifier: Apache-2.0
//
// LU factorisation with row pivoting of a tall block on the host: panels of columns, then one
// triangular solve and one product for what lies to their right.
//   cost        n²(m − n/3) flops, nearly all in the product
//   workspace   64² scalars
//   source      Golub, Van Loan, "Matrix Computations", 4th ed., section 3.4
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cpu {

/// Columns [first, last) of c, whose rows from `first` on are what earlier columns have left. Rows
/// of all of c change their places, and so do those of order.
template <compute_scalar T>
void lu_panel(block<T> c, index_t first, index_t last, std::span<index_t> order) {
  const auto at = [&](index_t i, index_t j) -> T& { return c.data[i + j * c.ld]; };
  for (index_t j = first; j < last; ++j) {
    T* const column = c.data + j * c.ld;
    const T* const largest = std::max_element(column + j, column + c.rows,
                                              [](T a, T b) { return std::abs(a) < std::abs(b); });
    const index_t pivot = largest - column;
    if (*largest == T{0}) continue; // zeros from here on
    if (pivot != j) {
      for (index_t k = 0; k < c.cols; ++k)
        std::swap(at(j, k), at(pivot, k));
      std::swap(order[static_cast<std::size_t>(j)], order[static_cast<std::size_t>(pivot)]);
    }
    for (index_t i = j + 1; i < c.rows; ++i)
      column[i] /= column[j];
    for (index_t k = j + 1; k < last; ++k) {
      const T factor = at(j, k);
      if (factor == T{0}) continue;
      T* const target = c.data + k * c.ld;
      for (index_t i = j + 1; i < c.rows; ++i)
        target[i] -= column[i] * factor;
    }
  }
}

/// r ← the upper triangle of c, which becomes unit lower trapezoidal.
template <compute_scalar T>
void split_lu(block<T> c, block<T> r) {
  for (index_t j = 0; j < c.cols; ++j) {
    T* const column = c.data + j * c.ld;
    T* const target = r.data + j * r.ld;
    std::copy_n(column, j + 1, target);
    std::fill(target + j + 1, target + r.rows, T{0});
    std::fill_n(column, j, T{0});
    column[j] = T{1};
  }
}

/// As the backend's member lu.
template <class B, compute_scalar T>
void lu(B& be, block<T> c, block<T> r, std::span<index_t> order) {
  constexpr index_t width = 64;
  std::iota(order.begin(), order.end(), index_t{0});
  for (index_t first = 0; first < c.cols; first += width) {
    const index_t last = (std::min)(first + width, c.cols);
    lu_panel(c, first, last, order);
    const index_t rest = c.cols - last;
    if (rest == 0) break;
    const index_t count = last - first;
    auto frame = be.frame();
    const auto l = be.scratch(count, count);
    be.copy(c.part(first, first, count, count).view(), l);
    for (index_t i = 0; i < count; ++i)
      l.data[i + i * l.ld] = T{1};
    const auto right = c.part(first, last, count, rest);
    be.trsm(side::left, op::none, l, right);
    if (c.rows > last) {
      be.gemm(op::none, op::none, T{-1}, c.part(last, first, c.rows - last, count), right, T{1},
              c.part(last, last, c.rows - last, rest));
    }
  }
  split_lu(c, r);
}

} // namespace cpu
} // namespace detail
} // namespace v0
} // namespace ressvd
