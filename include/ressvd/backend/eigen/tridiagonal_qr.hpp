// SPDX-License-Identifier: Apache-2.0
//
// Eigenvalues and eigenvectors of a symmetric tridiagonal matrix by implicit QR steps with
// Wilkinson's shift. The rotations of many steps are kept and then applied together to the
// eigenvectors, a few rows at a time out of the first-level caches, where one by one each of them
// would pass through main memory.
//   cost        about 6n³ flops on n × n vectors
//   workspace   n² + 210·n scalars
//   source      Golub and Van Loan, "Matrix Computations", 4th ed., section 8.3.5; Van Zee, van de
//               Geijn, Quintana-Ortí, "Restructuring the tridiagonal and bidiagonal QR algorithms
//               for performance", ACM TOMS 40 (2014)
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd::inline v0::detail {

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
  std::vector<pair> pairs;
  std::vector<step> steps;
};

/// Applies them to the columns of q.
template <class T>
void apply(const rotations<T>& turns, block<T> q) {
  constexpr int lanes = 16;
  using strip_column = Eigen::Array<T, lanes, 1>;
  Eigen::Array<T, lanes, Eigen::Dynamic> strip(lanes, q.cols);
  for (index_t first = 0; first < q.rows; first += lanes) {
    const index_t rows = (std::min)(index_t{lanes}, q.rows - first);
    for (index_t j = 0; j < q.cols; ++j)
      std::copy_n(q.data + first + j * q.ld, rows, strip.col(j).data());
    std::size_t next = 0;
    for (const auto& step : turns.steps) {
      index_t k = step.first;
      strip_column carried = strip.col(k); // each pair takes over a column from the one before
      for (; next < step.end; ++next, ++k) {
        const auto [c, s] = turns.pairs[next];
        const strip_column right = strip.col(k + 1);
        strip.col(k) = c * carried - s * right;
        carried = s * carried + c * right;
      }
      strip.col(k) = carried;
    }
    for (index_t j = 0; j < q.cols; ++j)
      std::copy_n(strip.col(j).data(), rows, q.data + first + j * q.ld);
  }
}

/// One step on rows first to last of the tridiagonal (d, e), which is unreduced there.
template <class T>
void qr_step(std::vector<T>& d, std::vector<T>& e, std::size_t first, std::size_t last,
             rotations<T>& turns) {
  // The eigenvalue of the trailing 2 × 2 that is closer to its last entry.
  const T half = (d[last - 1] - d[last]) / 2;
  const T off = e[last - 1];
  const T shift = d[last] - off * (off / (half + std::copysign(std::hypot(half, off), half)));
  turns.steps.push_back({static_cast<index_t>(first), 0});
  T x = d[first] - shift;
  T z = e[first];
  for (std::size_t k = first; k < last && z != 0; ++k) {
    const T r = std::hypot(x, z);
    const T c = x / r;
    const T s = -z / r;
    const T upper = s * d[k] + c * e[k];
    const T lower = s * e[k] + c * d[k + 1];
    d[k] = c * (c * d[k] - s * e[k]) - s * (c * e[k] - s * d[k + 1]);
    d[k + 1] = s * upper + c * lower;
    e[k] = c * upper - s * lower;
    if (k > first) e[k - 1] = r;
    x = e[k];
    z = 0;
    if (k + 1 < last) {
      z = -s * e[k + 1];
      e[k + 1] *= c;
    }
    turns.pairs.push_back({c, s});
  }
  turns.steps.back().end = turns.pairs.size();
}

/// d: n diagonal entries, e: n − 1 beside it, of magnitude at most about 1; q: n × n. d becomes
/// the eigenvalues, ascending, and q the product of q and the eigenvectors. False when some value
/// did not converge in 30·n steps.
template <class T>
bool tridiagonal_qr(std::vector<T>& d, std::vector<T>& e, block<T> q) {
  const std::size_t n = d.size();
  rotations<T> turns;
  const std::size_t batch = 64 * n;
  std::size_t steps = 0;
  for (std::size_t last = n - 1; last > 0;) {
    const auto negligible = [&](std::size_t i) {
      return std::abs(e[i]) <=
                 std::numeric_limits<T>::epsilon() * (std::abs(d[i]) + std::abs(d[i + 1])) ||
             std::abs(e[i]) < (std::numeric_limits<T>::min)();
    };
    for (std::size_t i = 0; i < last; ++i) {
      if (negligible(i)) e[i] = 0;
    }
    while (last > 0 && e[last - 1] == 0)
      --last;
    if (last == 0) break;
    std::size_t first = last - 1;
    while (first > 0 && e[first - 1] != 0)
      --first;
    if (++steps > 30 * n) return false;
    qr_step(d, e, first, last, turns);
    if (turns.pairs.size() >= batch) {
      apply(turns, q);
      turns = {};
    }
  }
  apply(turns, q);

  std::vector<index_t> order(n);
  std::iota(order.begin(), order.end(), index_t{0});
  std::sort(order.begin(), order.end(), [&](index_t a, index_t b) {
    return d[static_cast<std::size_t>(a)] < d[static_cast<std::size_t>(b)];
  });
  const std::vector<T> values = d;
  const std::vector<T> vectors = [&] {
    std::vector<T> copy(n * n);
    for (index_t j = 0; j < q.cols; ++j)
      std::copy_n(q.data + j * q.ld, q.rows, copy.data() + j * q.rows);
    return copy;
  }();
  for (std::size_t j = 0; j < n; ++j) {
    const auto from = static_cast<std::size_t>(order[j]);
    d[j] = values[from];
    std::copy_n(vectors.data() + from * n, n, q.data + static_cast<index_t>(j) * q.ld);
  }
  return true;
}

} // namespace ressvd::inline v0::detail
