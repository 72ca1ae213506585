// SPDX-License-Identifier: Apache-2.0
//
// Eigenvalues and eigenvectors of a symmetric tridiagonal matrix by implicit QR steps with
// Wilkinson's shift. The rotations are applied in batches, see rotations.hpp.
//   cost        about 6n³ flops on n × n vectors
//   workspace   n² + 420·n scalars
//   source      Golub and Van Loan, "Matrix Computations", 4th ed., section 8.3.5
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "ressvd/backend/eigen/rotations.hpp"

namespace ressvd::inline v0::detail {

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
  const auto negligible = [&](std::size_t i) {
    return std::abs(e[i]) <=
               std::numeric_limits<T>::epsilon() * (std::abs(d[i]) + std::abs(d[i + 1])) ||
           std::abs(e[i]) < (std::numeric_limits<T>::min)();
  };
  const auto clear = [&](std::size_t last) {
    for (std::size_t i = 0; i < last; ++i) {
      if (negligible(i)) e[i] = 0;
    }
  };
  const auto step = [&](std::size_t first, std::size_t last, rotations<T>& turns) {
    qr_step(d, e, first, last, turns);
  };
  if (!qr_iteration(e, q, clear, step)) return false;
  sort_with_columns(d, q, [](T a, T b) { return a < b; });
  return true;
}

} // namespace ressvd::inline v0::detail
