// SPDX-License-Identifier: Apache-2.0
//
// Singular values and left vectors of an upper bidiagonal matrix by implicit QR steps, with the
// smaller singular value of the trailing 2 × 2 as the shift, or none where that is below what is
// being resolved. The rotations from the left are applied in batches, see rotations.hpp.
//   cost        about 6n³ flops on n × n vectors
//   workspace   n² + 420·n scalars and 32 · n for each thread
//   source      Golub and Van Loan, "Matrix Computations", 4th ed., section 8.6; Demmel and Kahan,
//               "Accurate singular values of bidiagonal matrices", SIAM J. Sci. Stat. Comput. 11
//               (1990), for the step without shift
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "ressvd/backend/eigen/rotations.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

struct plane_rotation {
  double c, s, r;
};

/// (c s; −s c) takes (f, g) to (r, 0).
inline plane_rotation rotation_of(double f, double g) {
  if (g == 0) return {1, 0, f};
  const double r = std::hypot(f, g);
  return {f / r, g / r, r};
}

/// The smaller singular value of (f g; 0 h).
inline double smaller_singular_value(double f, double g, double h) {
  f = std::abs(f);
  h = std::abs(h);
  const double twice_larger = std::hypot(f + h, g) + std::hypot(f - h, g);
  return twice_larger == 0 ? 0 : 2 * f * (h / twice_larger);
}

/// One step on rows first to last of the bidiagonal (d, e), where no e is zero. A zero in d, which
/// would keep a shift from passing, leaves with one step without.
template <class T>
void bidiagonal_step(std::vector<double>& d, std::vector<double>& e, std::size_t first,
                     std::size_t last, rotations<T>& turns) {
  turns.steps.push_back({static_cast<index_t>(first), 0});
  const auto turn = [&](const plane_rotation& p) {
    turns.pairs.push_back({static_cast<T>(p.c), static_cast<T>(-p.s)});
  };
  const bool singular = std::any_of(d.begin() + static_cast<std::ptrdiff_t>(first),
                                    d.begin() + static_cast<std::ptrdiff_t>(last) + 1,
                                    [](double x) { return x == 0; });
  const double shift = smaller_singular_value(d[last - 1], e[last - 1], d[last]);
  const double share = singular ? 0 : shift / std::abs(d[first]);
  if (share * share < static_cast<double>(std::numeric_limits<T>::epsilon())) {
    plane_rotation right{1, 0, 0};
    plane_rotation left{1, 0, 0};
    for (std::size_t k = first; k < last; ++k) {
      right = rotation_of(d[k] * right.c, e[k]);
      if (k > first) e[k - 1] = left.s * right.r;
      left = rotation_of(left.c * right.r, d[k + 1] * right.s);
      d[k] = left.r;
      turn(left);
    }
    const double h = d[last] * right.c;
    d[last] = h * left.c;
    e[last - 1] = h * left.s;
  } else {
    double f = (std::abs(d[first]) - shift) * (std::copysign(1.0, d[first]) + shift / d[first]);
    double g = e[first];
    for (std::size_t k = first; k < last; ++k) {
      const plane_rotation right = rotation_of(f, g);
      if (k > first) e[k - 1] = right.r;
      f = right.c * d[k] + right.s * e[k];
      e[k] = right.c * e[k] - right.s * d[k];
      g = right.s * d[k + 1];
      d[k + 1] *= right.c;
      const plane_rotation left = rotation_of(f, g);
      d[k] = left.r;
      f = left.c * e[k] + left.s * d[k + 1];
      d[k + 1] = left.c * d[k + 1] - left.s * e[k];
      if (k + 1 < last) {
        g = left.s * e[k + 1];
        e[k + 1] *= left.c;
      }
      turn(left);
    }
    e[last - 1] = f;
  }
  turns.steps.back().end = turns.pairs.size();
}

/// d: n diagonal entries, e: n − 1 above it; q: n × n. d becomes the singular values, descending,
/// and q the product of q and the left vectors. Entries below eps of the largest one count as zero,
/// and so do those of e below eps of their neighbours on the diagonal. False when some value did
/// not converge in 30·n steps.
template <class T>
bool bidiagonal_qr(host_context& context, std::vector<double>& d, std::vector<double>& e,
                   block<T> q) {
  constexpr double eps = std::numeric_limits<T>::epsilon();
  double largest = 0;
  for (const double x : d)
    largest = (std::max)(largest, std::abs(x));
  for (const double x : e)
    largest = (std::max)(largest, std::abs(x));
  const double negligible = eps * largest / 16;
  const auto clear = [&](std::size_t last) {
    for (double& x : d) {
      if (std::abs(x) <= negligible) x = 0;
    }
    for (std::size_t i = 0; i < last; ++i) {
      if (std::abs(e[i]) <= eps * (std::abs(d[i]) + std::abs(d[i + 1])) ||
          std::abs(e[i]) <= negligible) {
        e[i] = 0;
      }
    }
  };
  const auto step = [&](std::size_t first, std::size_t last, rotations<T>& turns) {
    bidiagonal_step(d, e, first, last, turns);
  };
  if (!qr_iteration(context, e, q, clear, step)) return false;
  for (double& x : d)
    x = std::abs(x);
  sort_with_columns(d, q, [](double a, double b) { return a > b; });
  return true;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
