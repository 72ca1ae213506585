// SPDX-License-Identifier: Apache-2.0
//
// Plane rotations of neighbouring columns, as a QR iteration makes them. Those of many steps are
// kept and then applied together, a few rows at a time out of the caches; applied one by one, each
// would pass through main memory.
//   source      Van Zee, van de Geijn, Quintana-Ortí, "Restructuring the tridiagonal and bidiagonal
//               QR algorithms for performance", ACM TOMS 40 (2014)
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "ressvd/backend/cpu/host_context.hpp"
#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// Rotations in their order: each step turns columns k and k + 1 for k from its first one on,
/// q_k ← c·q_k − s·q_{k+1}, q_{k+1} ← s·q_k + c·q_{k+1}.
template <class T>
struct rotations {
  struct pair {
    T c, s;
  };
  struct step {
    index_t first = 0;
    std::size_t end = 0; ///< of its pairs
  };
  static constexpr std::size_t batch = 192; ///< of steps that are applied together
  std::vector<pair> pairs;
  std::vector<step> steps;
};

/// Applies them to the columns of q, on a strip of its rows at a time, one strip a thread. Within a
/// strip all steps go over a window of columns before the next one, each of them one column behind
/// the step before, whose results it needs: the window stays in the first-level cache.
template <class T>
void apply(host_context& context, const rotations<T>& turns, block<T> q) {
  constexpr int lanes = 128 / sizeof(T);
  constexpr index_t window = 64;
  using strip_column = Eigen::Array<T, lanes, 1>;
  const auto delays = static_cast<index_t>(turns.steps.size());
  const double flops = 6.0 * static_cast<double>(turns.pairs.size()) * static_cast<double>(q.rows);
  context.parallel_for((q.rows - 1) / lanes + 1, flops, [&](index_t part) {
    Eigen::Array<T, lanes, Eigen::Dynamic> strip(lanes, q.cols);
    const index_t row = part * lanes;
    const index_t rows = (std::min)(index_t{lanes}, q.rows - row);
    for (index_t j = 0; j < q.cols; ++j)
      std::copy_n(q.data + row + j * q.ld, rows, strip.col(j).data());
    for (index_t start = 0; start < q.cols + delays; start += window) {
      const auto* pairs = turns.pairs.data();
      index_t delay = 0;
      for (const auto& step : turns.steps) {
        const auto* end = turns.pairs.data() + step.end;
        const index_t from = (std::max)(step.first, start - delay);
        const index_t to = (std::min)(step.first + (end - pairs), start + window - delay);
        if (from < to) {
          // Each rotation takes over a column from the one before.
          strip_column carried = strip.col(from);
          for (index_t k = from; k < to; ++k) {
            const auto [c, s] = pairs[k - step.first];
            const strip_column right = strip.col(k + 1);
            strip.col(k) = c * carried - s * right;
            carried = s * carried + c * right;
          }
          strip.col(to) = carried;
        }
        pairs = end;
        ++delay;
      }
    }
    for (index_t j = 0; j < q.cols; ++j)
      std::copy_n(strip.col(j).data(), rows, q.data + row + j * q.ld);
  });
}

/// Takes e, what is beside or above a diagonal, to zero: clear(last) zeroes what is negligible
/// before e[last], step(first, last, turns) is a QR step on rows first to last, between which no e
/// is zero; its rotations go to q's columns. False after 30 steps for each row.
template <class V, class T, class Clear, class Step>
bool qr_iteration(host_context& context, std::vector<V>& e, block<T> q, Clear clear, Step step) {
  rotations<T> turns;
  std::size_t steps = 0;
  for (std::size_t last = e.size(); last > 0;) {
    clear(last);
    while (last > 0 && e[last - 1] == 0)
      --last;
    if (last == 0) break;
    std::size_t first = last - 1;
    while (first > 0 && e[first - 1] != 0)
      --first;
    if (++steps > 30 * (e.size() + 1)) return false;
    step(first, last, turns);
    if (turns.steps.size() == turns.batch) {
      apply(context, turns, q);
      turns = {};
    }
  }
  apply(context, turns, q);
  return true;
}

/// Sorts values, and the columns of q with them.
template <class V, class T, class Less>
void sort_with_columns(std::vector<V>& values, block<T> q, Less less) {
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
  std::vector<index_t> order(values.size());
  std::iota(order.begin(), order.end(), index_t{0});
  std::sort(order.begin(), order.end(),
            [&](index_t a, index_t b) { return less(values[at(a)], values[at(b)]); });
  const std::vector<V> unsorted = values;
  std::vector<T> columns(at(q.size()));
  for (index_t j = 0; j < q.cols; ++j)
    std::copy_n(q.data + j * q.ld, q.rows, columns.data() + j * q.rows);
  for (index_t j = 0; j < q.cols; ++j) {
    const index_t from = order[at(j)];
    values[at(j)] = unsorted[at(from)];
    std::copy_n(columns.data() + from * q.rows, q.rows, q.data + j * q.ld);
  }
}

} // namespace detail
} // namespace v0
} // namespace ressvd
