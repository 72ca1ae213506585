// SPDX-License-Identifier: Apache-2.0
//
// A step of Adam in host memory.
#pragma once

#include <algorithm>
#include <cmath>

#include "ressvd/backend/cpu/host_context.hpp"
#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cpu {

/// `count` elements; centre may be null.
template <class T>
void adam(const adam_step& step, const T* g, T* m, T* v, const T* centre, T* c, index_t count) {
  const auto scale = static_cast<T>(step.gradient);
  const auto fresh1 = static_cast<T>(step.fresh1);
  const auto fresh2 = static_cast<T>(step.fresh2);
  const auto rate = static_cast<T>(step.rate);
  const auto root = static_cast<T>(step.root);
  const auto epsilon = static_cast<T>(step.epsilon);
  const auto pull = static_cast<T>(step.pull);
  for (index_t i = 0; i < count; ++i) {
    const T gradient = scale * g[i];
    m[i] += fresh1 * (gradient - m[i]);
    v[i] += fresh2 * (gradient * gradient - v[i]);
    const T away = centre == nullptr ? c[i] : c[i] - centre[i];
    c[i] -= rate * m[i] / (root * std::sqrt(v[i]) + epsilon) + pull * away;
  }
}

/// The backend concept's adam, its work shared among the context's threads.
template <class T>
void adam(host_context& context, const adam_step& step, block<const T> g, block<T> m, block<T> v,
          block<const T> centre, block<T> c) {
  constexpr index_t chunk = 8192;
  constexpr double work = 80;                          // of an element: five are read
  const index_t pieces = (c.rows + chunk - 1) / chunk; // of a column
  context.parallel_for(pieces * c.cols, work * static_cast<double>(c.size()), [&](index_t k) {
    const index_t first = k % pieces * chunk;
    const index_t count = (std::min)(chunk, c.rows - first);
    const auto from = [&](const auto& b) { return b.data + first + k / pieces * b.ld; };
    adam(step, from(g), from(m), from(v), centre.empty() ? nullptr : from(centre), from(c), count);
  });
}

} // namespace cpu
} // namespace detail
} // namespace v0
} // namespace ressvd
