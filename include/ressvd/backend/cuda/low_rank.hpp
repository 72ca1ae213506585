// SPDX-License-Identifier: Apache-2.0
//
// y = U(V·x) + bias for one to eight vectors in one launch that reads each factor once: the blocks
// of threads compute t = V·x, wait for each other, and compute U·t. cuBLAS takes two launches, of
// which neither keeps the memory busy at these sizes. The same for a pivoted pair, y = P·[t; C·t] + bias
// with t = Z·x: each sum goes to its row of y as it is made.
//   layout      factors by rows, as they lie in a checkpoint, x and y by columns (one vector after
//               the other)
//   types       float, half and bfloat16, of both factors, of x and of y; sums in float
//   workspace   r·batch floats in scratch; a word of the context's
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

/// u: m × r and v: r × n, row-major, or C: (m−r) × r and Z of a pivoted pair with its `order`, else
/// null. x: n × batch and y: m × batch, column-major; bias: m floats, bias_step apart, or null.
/// t: r × batch.
template <class F, class X, class Y>
void low_rank_product(cuda_context& context, device_view<const F> u, device_view<const F> v,
                      const index_t* order, device_view<const X> x, const float* bias,
                      index_t bias_step, device_view<Y> y, device_block<float> t) {
  // A factor's elements go with as many of x or t: the fewer that alignment allows.
  const auto read_at_once = [](index_t factor, index_t vector, index_t vector_in_16_bytes) {
    return vector == vector_in_16_bytes ? factor : (std::min)(factor, vector);
  };
  const index_t wide_v = read_at_once(aligned_elements(v.data, v.ld, v.rows),
                                      aligned_elements(x.data, x.ld, x.cols), 16 / sizeof(X));
  const index_t wide_u = read_at_once(aligned_elements(u.data, u.ld, u.rows),
                                      aligned_elements(t.data, t.ld, t.cols), 16 / sizeof(float));
  // Two blocks fit on a multiprocessor (__launch_bounds__), so that all run at the same time.
  const index_t warps = (std::max)(u.rows, v.rows);
  const launch_shape shape{dim3(blocks_for(warps, 8, 2 * context.multiprocessors())), dim3(32, 8),
                           true};
  const auto number = [](index_t n) { return std::to_string(n); };
  context.launch(shape,
                 kernel_name("low_rank", {kernel_type<F>(), kernel_type<X>(), kernel_type<Y>(),
                                          number(x.cols).c_str(), number(wide_v).c_str(),
                                          number(wide_u).c_str()}),
                 u.data, u.ld, u.rows, v.data, v.ld, order, x.data, x.ld, bias, bias_step, y.data,
                 y.ld, t.data, t.ld, context.grid_state(), v.rows, v.cols);
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
