// SPDX-License-Identifier: Apache-2.0
//
// y = U(V·x) + bias for one to eight vectors in two launches of a kernel that reads a factor once:
// a warp takes a row, with 16-byte reads. The same for a pivoted pair, y = P·[t; C·t] + bias with
// t = Z·x: each sum goes to its row of y as it is made. One cooperative launch for both factors
// was slower: 12 µs went into the launch and the wait for all blocks (docs/cuda.md).
//   layout      factors by rows, as they lie in a checkpoint, x and y by columns (one vector after
//               the other)
//   types       float, half and bfloat16, of both factors, of x and of y; sums in float
//   workspace   r·batch floats in scratch
//   blocks      no
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "ressvd/backend/cuda/elementwise.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

inline constexpr index_t most_low_rank_vectors = 8;

/// Elements that can be read at once from each line of a matrix, at most 16 bytes of it.
template <class T>
index_t aligned_elements(const T* data, index_t ld, index_t lines) {
  index_t count = 16 / static_cast<index_t>(sizeof(T));
  const auto place = reinterpret_cast<std::uintptr_t>(data) / sizeof(T);
  while (count > 1 &&
         (place % static_cast<std::uintptr_t>(count) != 0 || (lines > 1 && ld % count != 0)))
    count /= 2;
  return count;
}

/// Where products a·x go: to t, to rows of y with a bias, or to both; see few_products.
template <class Y>
struct few_targets {
  device_block<float> t = {};
  device_view<Y> y = {};
  const index_t* order = nullptr;
  const float* bias = nullptr; ///< bias_step apart, or null
  index_t bias_step = 1;
};

/// a: row-major, x: column-major.
template <class F, class X, class Y>
void few_products(cuda_context& context, device_view<const F> a, device_view<const X> x,
                  const few_targets<Y>& to) {
  if (a.rows == 0) return;
  // A factor's elements go with as many of x: the fewer that alignment allows.
  const index_t of_x = aligned_elements(x.data, x.ld, x.cols);
  const index_t of_a = aligned_elements(a.data, a.ld, a.rows);
  const index_t wide = of_x == 16 / static_cast<index_t>(sizeof(X)) ? of_a : (std::min)(of_a, of_x);
  constexpr index_t most_blocks = 1 << 16;
  const launch_shape shape{dim3(blocks_for(a.rows, 8, most_blocks)), dim3(32, 8)};
  context.launch(
      shape,
      kernel_name("few_products", {kernel_type<F>(), kernel_type<X>(), kernel_type<Y>(),
                                   std::to_string(x.cols).c_str(), std::to_string(wide).c_str()}),
      a.data, a.ld, a.rows, a.cols, x.data, x.ld, to.t.data, to.t.ld, to.order, to.bias,
      to.bias_step, to.y.data, to.y.ld);
}

/// u: m × r and v: r × n, row-major, or C: (m−r) × r and Z of a pivoted pair with its `order`, else
/// null. x: n × batch and y: m × batch, column-major; bias: m floats, bias_step apart, or null.
/// t: r × batch.
template <class F, class X, class Y>
void low_rank_product(cuda_context& context, device_view<const F> u, device_view<const F> v,
                      const index_t* order, device_view<const X> x, const float* bias,
                      index_t bias_step, device_view<Y> y, device_block<float> t) {
  const bool pivoted = order != nullptr;
  few_targets<Y> first{.t = t, .order = order, .bias = bias, .bias_step = bias_step};
  if (pivoted) first.y = y; // the rows of t are rows of y
  few_products<F, X, Y>(context, v, x, first);
  const few_targets<Y> second{
      .y = y, .order = pivoted ? order + v.rows : nullptr, .bias = bias, .bias_step = bias_step};
  few_products<F, float, Y>(context, u, device_block<const float>(t).view(), second);
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
