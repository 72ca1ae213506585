// SPDX-License-Identifier: Apache-2.0
//
// Eigenvalues and eigenvectors of D + ρ·z·zᵀ, D diagonal: the roots of the secular equation
//   f(λ) = 1/ρ + Σ z_i²/(d_i − λ) = 0,
// one between any two neighbouring poles d_i and one above the last.
//   cost        about five sweeps over the k poles for each of the k roots, one division each
//   source      Gu and Eisenstat, "A divide-and-conquer algorithm for the symmetric tridiagonal
//               eigenproblem", SIAM J. Matrix Anal. Appl. 16 (1995); Li, "Solving secular equations
//               stably and efficiently", LAPACK Working Note 89 (1993), for the rational steps
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

/// The root origin + offset; origin is the nearest pole, so that (d_i − origin) − offset has a
/// small relative error for every i.
struct secular_root {
  double origin = 0;
  double offset = 0;
};

struct secular_equation {
  std::vector<double> d; ///< ascending, distinct
  std::vector<double> z; ///< none zero, ‖z‖ = 1 or a little less
  double rho = 0;        ///< positive

  index_t size() const { return static_cast<index_t>(d.size()); }
};

/// Σ z_i²/(d_i − λ) over count poles, and its derivative. So many running sums let compilers make
/// vectors of the loop at every level of optimisation.
struct secular_sum {
  double value = 0;
  double slope = 0;
};
inline secular_sum sum_poles(const double* d, const double* z, index_t count,
                             const secular_root& at) {
  constexpr index_t lanes = 32;
  std::array<double, lanes> sums{};
  std::array<double, lanes> slope_sums{};
  double* values = sums.data();
  double* slopes = slope_sums.data();
  const auto [origin, offset] = at;
  for (; count >= lanes; count -= lanes, d += lanes, z += lanes) {
    for (index_t k = 0; k < lanes; ++k) {
      const double quotient = z[k] / ((d[k] - origin) - offset);
      values[k] += z[k] * quotient;
      slopes[k] += quotient * quotient;
    }
  }
  for (index_t k = 0; k < count; ++k) {
    const double quotient = z[k] / ((d[k] - origin) - offset);
    values[k] += z[k] * quotient;
    slopes[k] += quotient * quotient;
  }
  for (index_t half = lanes / 2; half > 0; half /= 2) {
    for (index_t k = 0; k < half; ++k) {
      values[k] += values[k + half];
      slopes[k] += slopes[k + half];
    }
  }
  return {values[0], slopes[0]};
}

/// Π f(i) for i in [begin, end) with eight running products.
template <class F>
double product_over(index_t begin, index_t end, F f) {
  std::array<double, 8> products;
  products.fill(1);
  index_t i = begin;
  for (; i + 8 <= end; i += 8) {
    for (index_t lane = 0; lane < 8; ++lane)
      products[static_cast<std::size_t>(lane)] *= f(i + lane);
  }
  double total = 1;
  for (; i < end; ++i)
    total *= f(i);
  for (const double p : products)
    total *= p;
  return total;
}

/// The number halfway between two of one sign in the order of floating-point numbers: at most 64
/// halvings leave nothing between them, however small they are.
inline double halfway(double a, double b) {
  const double sign = a < 0 || b < 0 ? -1 : 1;
  const auto x = std::bit_cast<std::uint64_t>(std::abs(a));
  const auto y = std::bit_cast<std::uint64_t>(std::abs(b));
  return sign * std::bit_cast<double>(x / 2 + y / 2);
}

/// The root of c·η² − a·η + b that lies between two poles, or above both.
inline double rational_root(double a, double b, double c, bool above) {
  const double root = std::sqrt((std::max)(0.0, a * a - 4 * b * c));
  if (above) return a >= 0 ? (a + root) / (2 * c) : 2 * b / (a - root);
  return a <= 0 ? (a - root) / (2 * c) : 2 * b / (a + root);
}

/// Root j, the one above d_j.
///
/// f is replaced by c + s/(d_l − λ) + t/(d_r − λ), l and r the poles beside the root (the last root
/// takes the last two), which has the value and the slope of f here; s or t is that of the nearest
/// pole in f itself ("fixed weight"), or both follow from the slopes of the sums over the poles on
/// either side ("middle way") where the former makes slow progress. A bracket guards the steps,
/// and halving it ends the iteration in any case.
inline secular_root solve_secular(const secular_equation& f, index_t j) {
  constexpr double eps = std::numeric_limits<double>::epsilon();
  const index_t n = f.size();
  if (n == 1) return {f.d[0], f.rho * f.z[0] * f.z[0]};
  const bool last = j == n - 1;
  const index_t l = last ? n - 2 : j;
  const index_t r = l + 1;
  const auto left = static_cast<std::size_t>(l);
  const auto right = static_cast<std::size_t>(r);
  const double gap = f.d[right] - f.d[left];
  const double s = f.z[left] * f.z[left];
  const double t = f.z[right] * f.z[right];

  const auto sum = [&](index_t begin, index_t end, const secular_root& x) {
    return sum_poles(f.d.data() + begin, f.z.data() + begin, end - begin, x);
  };

  // The equation with the sum over all other poles taken at a middle point: its root is the first
  // guess, its sign there tells the nearest pole.
  const double middle = last ? f.rho / 2 : gap / 2;
  const secular_root centre{last ? f.d[right] : f.d[left], middle};
  const double others = 1 / f.rho + sum(0, l, centre).value + sum(r + 1, n, centre).value;
  const double left_distance = last ? -gap - middle : -middle;
  const double right_distance = last ? -middle : gap - middle;
  const bool beyond = others + s / left_distance + t / right_distance < 0;

  const bool from_left = !last && !beyond;
  secular_root x{from_left ? f.d[left] : f.d[right], 0};
  double low = 0;
  double high = middle;
  if (last) {
    low = beyond ? middle : 0;
    high = beyond ? 2 * f.rho : middle;
  } else if (beyond) {
    low = middle - gap;
    high = 0;
  }
  const auto inside = [&](double offset) { return low < offset && offset < high; };
  {
    const double l0 = from_left ? 0 : -gap;
    const double r0 = from_left ? gap : 0;
    x.offset =
        rational_root(others * (l0 + r0) + s + t, others * l0 * r0 + s * r0 + t * l0, others, last);
    if (!inside(x.offset)) x.offset = low / 2 + high / 2;
  }

  // The most that eight running sums lose, and as much again for the terms.
  const double tolerance = eps * (8 + static_cast<double>(n) / 16);
  bool fixed_weight = !last;
  double previous = std::numeric_limits<double>::infinity();
  for (int step = 0;; ++step) {
    const auto below = sum(0, r, x);
    const auto above = sum(r, n, x);
    const double value = 1 / f.rho + below.value + above.value;
    const double slope = below.slope + above.slope;
    if (std::abs(value) <= tolerance * (1 / f.rho + std::abs(below.value) + std::abs(above.value)))
      return x;
    (value < 0 ? low : high) = x.offset;
    if (std::abs(value) > 0.1 * previous && !last) fixed_weight = !fixed_weight;
    previous = std::abs(value);

    const double dl = (f.d[left] - x.origin) - x.offset;
    const double dr = (f.d[right] - x.origin) - x.offset;
    double c = value - dl * below.slope - dr * above.slope;
    if (fixed_weight) {
      c = from_left ? value - dr * slope + gap * (s / dl / dl)
                    : value - dl * slope - gap * (t / dr / dr);
    }
    double move = rational_root((dl + dr) * value - dl * dr * slope, dl * dr * value, c, last);
    if (!(value * move < 0)) move = -value / slope;
    double next = x.offset + move;
    if (!inside(next)) next = low / 2 + high / 2;
    if (step >= 20) next = halfway(low, high);
    if (next == x.offset || !inside(next)) return x;
    x.offset = next;
  }
}

/// All roots, ascending.
inline std::vector<secular_root> solve_secular(const secular_equation& f) {
  std::vector<secular_root> roots(f.d.size());
  for (index_t j = 0; j < f.size(); ++j)
    roots[static_cast<std::size_t>(j)] = solve_secular(f, j);
  return roots;
}

/// The z for which these roots are exact, by Löwner's formula
///   ρ·z_i² = Π_j (λ_j − d_i) / Π_{j≠i} (d_j − d_i),
/// but for a factor they share: eigenvectors from it are orthogonal to working precision, however
/// close the roots are.
inline std::vector<double> exact_weights(const secular_equation& f,
                                         const std::vector<secular_root>& roots) {
  const index_t n = f.size();
  std::vector<double> origins;
  std::vector<double> offsets;
  for (const auto& root : roots) {
    origins.push_back(root.origin);
    offsets.push_back(root.offset);
  }
  const double* d = f.d.data();
  const double* origin = origins.data();
  const double* offset = offsets.data();
  std::vector<double> z(f.z.size());
  for (index_t i = 0; i < n; ++i) {
    const double pole = d[i];
    const auto distance = [&](index_t j) { return (origin[j] - pole) + offset[j]; };
    // Every quotient is in (0, 1): λ_j lies between d_j and d_(j+1).
    const double product =
        product_over(0, i, [&](index_t j) { return distance(j) / (d[j] - pole); }) *
        product_over(i, n - 1, [&](index_t j) { return distance(j) / (d[j + 1] - pole); }) *
        distance(n - 1);
    const auto at = static_cast<std::size_t>(i);
    z[at] = std::copysign(std::sqrt(product), f.z[at]);
  }
  return z;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
