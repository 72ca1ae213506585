// SPDX-License-Identifier: Apache-2.0
//
// How results are compared, and the storage types that a test goes through.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "ressvd/core/scalar.hpp"
#include "support/dense.hpp"
#include "support/special_values.hpp"

namespace support {

/// The distance from 1 to the next number of a backend's scalar: twice the unit roundoff.
template <class B>
constexpr double eps = static_cast<double>(std::numeric_limits<typename B::scalar>::epsilon());

/// max |a_ij − b_ij| / bound_ij. Infinity where a difference is NaN or its bound is zero, and for
/// matrices of different shapes.
inline double error_in_bounds(const dense& a, const dense& b, const dense& bound) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return infinity;
  double worst = 0;
  for (index_t j = 0; j < a.cols(); ++j) {
    for (index_t i = 0; i < a.rows(); ++i) {
      const double difference = std::abs(a(i, j) - b(i, j));
      if (difference == 0) continue;
      const double ratio = difference / bound(i, j);
      worst = std::isnan(ratio) ? infinity : std::max(worst, ratio);
    }
  }
  return worst;
}

/// ‖a − b‖_F, infinity when it is not a number.
inline double distance(const dense& a, const dense& b) {
  const double d = frobenius(a - b);
  return std::isnan(d) ? infinity : d;
}

/// How far Householder transformations leave m × n matrices from their exact result, relative to
/// the norm: √n·γ_mn in the worst case (Higham, Accuracy and Stability of Numerical Algorithms,
/// Theorem 19.4), whose sum of mn roundings grows like √(mn) when they are independent.
inline double householder_tolerance(index_t m, index_t n, double epsilon) {
  const auto rows = static_cast<double>(m);
  const auto cols = static_cast<double>(n);
  return 4 * std::sqrt(cols) * std::sqrt(rows * cols) * epsilon;
}

/// Calls f(U{}) for every storage type.
template <class F>
void for_each_storage(F f) {
  f(double{});
  f(float{});
  f(ressvd::half{});
  f(ressvd::bfloat16{});
}

template <class U>
constexpr const char* storage_name() {
  if constexpr (std::is_same_v<U, double>) return "double";
  if constexpr (std::is_same_v<U, float>) return "float";
  if constexpr (std::is_same_v<U, ressvd::half>) return "half";
  return "bfloat16";
}

/// The unit of rounding to U.
template <class U>
constexpr double storage_eps() {
  if constexpr (std::is_same_v<U, ressvd::half>) return 0x1p-10;
  if constexpr (std::is_same_v<U, ressvd::bfloat16>) return 0x1p-7;
  if constexpr (std::is_floating_point_v<U>) return std::numeric_limits<U>::epsilon();
}

} // namespace support
