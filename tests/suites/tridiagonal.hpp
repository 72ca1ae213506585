// SPDX-License-Identifier: Apache-2.0
//
// Divide and conquer on the tridiagonal matrices that such methods fail on, with the numbers of
// eigenvalues below a point (Sturm) as the independent method.
//
// Tolerances: deflation changes T by at most 2·√n·tol a merge, tol ≤ 4·eps·max|t_ij|, and the
// merges of order n, n/2, … by 1/(1 − √½) times as much, 28·√n·eps in all; the products of some
// levels add √n·eps each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/backend/cpu/tridiagonal.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace tridiagonal_suite {

using namespace support;

struct tridiagonal {
  std::string name;
  std::vector<double> d;
  std::vector<double> e;
};

/// diagonal(i) and beside(i), order n.
template <class F, class G>
tridiagonal make(std::string name, index_t n, F diagonal, G beside) {
  tridiagonal t{std::move(name), {}, {}};
  for (index_t i = 0; i < n; ++i)
    t.d.push_back(diagonal(i));
  for (index_t i = 0; i + 1 < n; ++i)
    t.e.push_back(beside(i));
  return t;
}

inline tridiagonal random_tridiagonal(index_t n) {
  const dense x = random_normal(n, 2, 1);
  return make(
      "random", n, [&](index_t i) { return x(i, 0); }, [&](index_t i) { return x(i, 1); });
}

inline std::vector<tridiagonal> difficult(index_t n) {
  const dense x = random_normal(n, 1, 2);
  const auto constant = [](double value) { return [value](index_t) { return value; }; };
  const auto share = [&](index_t i) { return static_cast<double>(i) / static_cast<double>(n); };
  // Row i of Wilkinson's W21+.
  const auto wilkinson = [](index_t i) { return std::abs(static_cast<double>(i % 21) - 10); };
  return {
      random_tridiagonal(n),
      make("Wilkinson", n, wilkinson, constant(1)),
      make("glued Wilkinson", n, wilkinson, [](index_t i) { return i % 21 == 20 ? 1e-8 : 1.0; }),
      make("Toeplitz", n, constant(2), constant(1)),
      make("Toeplitz of zeros", n, constant(0), constant(-1)),
      make("multiple of the identity", n, constant(3), constant(0)),
      make("zero", n, constant(0), constant(0)),
      make(
          "diagonal", n, [&](index_t i) { return x(i, 0); }, constant(0)),
      make(
          "clusters", n, [](index_t i) { return static_cast<double>(i % 3); },
          [&](index_t i) { return 1e-9 * x(i, 0); }),
      make(
          "close", n, [](index_t i) { return 1 + 1e-15 * static_cast<double>(i % 5); },
          [&](index_t i) { return 1e-7 * x(i, 0); }),
      make(
          "graded", n, [&](index_t i) { return std::pow(10, 12 - 24 * share(i)); },
          [&](index_t i) { return std::pow(10, 11.5 - 24 * share(i)); }),
      make(
          "graded the other way", n, [&](index_t i) { return std::pow(10, 24 * share(i) - 12); },
          [&](index_t i) { return std::pow(10, 24 * share(i) - 11.5); }),
      make(
          "one huge", n, [&](index_t i) { return i == n / 2 ? 1e12 : 1e-12 * x(i, 0); },
          constant(1e-12)),
      make(
          "blocks", n, [&](index_t i) { return x(i, 0); },
          [&](index_t i) { return i % 4 == 3 ? 0 : x(i + 1, 0); }),
      make(
          "near underflow", n, [&](index_t i) { return i % 4 == 0 ? x(i, 0) : 1e-300 * x(i, 0); },
          [&](index_t i) { return i % 3 == 0 ? x(i, 0) : 1e-200 * x(i, 0); }),
  };
}

inline double largest_element(const tridiagonal& t) {
  double largest = 0;
  for (const auto* elements : {&t.d, &t.e}) {
    for (const double x : *elements)
      largest = (std::max)(largest, std::abs(x));
  }
  return largest;
}

inline tridiagonal scaled(tridiagonal t, double factor) {
  for (auto* elements : {&t.d, &t.e}) {
    for (double& x : *elements)
      x *= factor;
  }
  return t;
}

/// Eigenvalues below `point`: the negative pivots of T − point·I.
inline index_t count_below(const tridiagonal& t, double point) {
  index_t count = 0;
  double pivot = 1;
  for (std::size_t i = 0; i < t.d.size(); ++i) {
    pivot = t.d[i] - point - (i > 0 ? t.e[i - 1] / pivot * t.e[i - 1] : 0);
    if (pivot == 0) pivot = (std::numeric_limits<double>::min)();
    if (pivot < 0) ++count;
  }
  return count;
}

inline dense as_dense(const tridiagonal& t) {
  dense a = diagonal_matrix(t.d);
  for (std::size_t i = 0; i < t.e.size(); ++i) {
    const auto row = static_cast<index_t>(i);
    a(row + 1, row) = a(row, row + 1) = t.e[i];
  }
  return a;
}

struct solution {
  bool converged = false;
  bool surroundings_unchanged = false;
  std::vector<double> values;
  dense vectors;
};

template <class B>
solution solve(const tridiagonal& t, index_t count) {
  using T = typename B::scalar;
  auto be = make_backend<B>();
  const auto n = static_cast<index_t>(t.d.size());
  placed<T, B> q(be, dense(n, count, std::numeric_limits<double>::quiet_NaN()), layout::col_major,
                 3);
  solution s;
  s.values.resize(t.d.size());
  s.converged = ressvd::detail::tridiagonal_eigenvectors(be, t.d, t.e, s.values, q.block());
  s.surroundings_unchanged = q.surroundings_unchanged(be);
  s.vectors = q.values(be);
  return s;
}

} // namespace tridiagonal_suite

TEMPLATE_LIST_TEST_CASE("eigenvectors of tridiagonal matrices that are difficult", "[tridiagonal]",
                        test_backends) {
  using namespace tridiagonal_suite;
  for (const index_t n : {1, 2, 3, 21, 31, 32, 33, 64, 65, 66, 200}) {
    for (const tridiagonal& t : difficult(n)) {
      // The smallest numbers of both precisions and the overflow of squares are not tested here.
      const double unit = largest_element(t) > 0 ? largest_element(t) : 1;
      const tridiagonal relative = scaled(t, 1 / unit);
      const double tolerance = 32 * std::sqrt(static_cast<double>(n)) * eps<TestType>;
      std::vector<double> all_values;
      for (const index_t count : {index_t{0}, index_t{1}, (n + 2) / 3, n}) {
        INFO(t.name << ", order " << n << ", " << count << " vectors");
        const solution s = solve<TestType>(t, count);
        REQUIRE(s.converged);
        CHECK(s.surroundings_unchanged);
        CHECK(orthonormality_error(s.vectors) <= tolerance * std::sqrt(static_cast<double>(count)));
        const std::vector<double> theirs(s.values.end() - count, s.values.end());
        const dense residual =
            as_dense(relative) * s.vectors - s.vectors * ((1 / unit) * diagonal_matrix(theirs));
        CHECK(frobenius(residual) <= tolerance * std::sqrt(static_cast<double>(count)));
        if (count > 0) {
          CHECK(s.values == all_values); // whatever the number of vectors
          continue;
        }
        all_values = s.values;
        CHECK(std::is_sorted(s.values.begin(), s.values.end()));
        index_t wrong = 0;
        for (index_t i = 0; i < n; ++i) {
          const double value = s.values[static_cast<std::size_t>(i)] / unit;
          if (count_below(relative, value - tolerance) > i) ++wrong;
          if (count_below(relative, value + tolerance) <= i) ++wrong;
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("eigenvalues of the second difference are known", "[tridiagonal]",
                        test_backends) {
  using namespace tridiagonal_suite;
  for (const index_t n : {5, 33, 130}) {
    std::vector<double> expected;
    for (index_t k = n; k > 0; --k) {
      expected.push_back(
          2 + 2 * std::cos(static_cast<double>(k) * std::numbers::pi / static_cast<double>(n + 1)));
    }
    const solution s =
        solve<TestType>(make(
                            "", n, [](index_t) { return 2.0; }, [](index_t) { return -1.0; }),
                        n / 2);
    const double tolerance = 2 * 32 * std::sqrt(static_cast<double>(n)) * eps<TestType>;
    CHECK(max_abs(column(s.values) - column(expected)) <= tolerance);
  }
}

TEMPLATE_LIST_TEST_CASE("tridiagonal eigenvectors are the same every time and at every scale",
                        "[tridiagonal]", test_backends) {
  using namespace tridiagonal_suite;
  const tridiagonal t = random_tridiagonal(150);
  const solution once = solve<TestType>(t, 150);
  CHECK(solve<TestType>(t, 150).vectors == once.vectors);
  for (const int exponent : {-900, -200, 1015}) {
    INFO("scaled by 2^" << exponent);
    const solution s = solve<TestType>(scaled(t, std::ldexp(1, exponent)), 150);
    CHECK(s.vectors == once.vectors);
    CHECK(std::ldexp(1, -exponent) * column(s.values) == column(once.values));
  }
}

TEMPLATE_LIST_TEST_CASE("tridiagonal matrices that are not finite are refused", "[tridiagonal]",
                        test_backends) {
  using namespace tridiagonal_suite;
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    tridiagonal t = random_tridiagonal(40);
    t.e[17] = bad;
    CHECK_FALSE(solve<TestType>(t, 40).converged);
    CHECK_FALSE(solve<TestType>(t, 0).converged);
  }
}
