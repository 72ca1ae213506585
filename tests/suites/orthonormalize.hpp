// SPDX-License-Identifier: Apache-2.0
//
// Orthonormal bases: to working precision for any conditioning and rank, with the spans that they
// promise.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/detail/orthonormalize.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"

namespace orthonormalize_suite {

using namespace support;

/// The part of C's j leading columns outside the span of Q's, relative to the norm of each column;
/// the largest over all j.
inline double outside_span(const dense& q, const dense& c) {
  double worst = 0;
  for (index_t j = 0; j < c.cols(); ++j) {
    const dense column = part(c, 0, j, c.rows(), 1);
    const dense basis = left_cols(q, j + 1);
    const double rest = frobenius(column - basis * (transpose(basis) * column));
    const double norm = frobenius(column);
    if (norm > 0) worst = std::max(worst, rest / norm);
  }
  return worst;
}

} // namespace orthonormalize_suite

TEMPLATE_LIST_TEST_CASE("orthonormalize keeps leading spans at any condition number",
                        "[orthonormalize]", test_backends) {
  using namespace orthonormalize_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, k;
  };
  for (const auto [m, k] : {shape{1, 1}, {9, 4}, {40, 40}, {100, 70}}) {
    for (const double condition : {1.0, 1e2, 1e5, 1e9, 1e16}) {
      INFO(m << " x " << k << ", condition " << condition);
      const dense c = rounded<T>(with_spectrum(m, k, geometric_spectrum(k, condition), 1));
      placed<T, TestType> p(be, c, layout::col_major, 3);
      ressvd::detail::orthonormalize(be, p.block());
      const dense q = p.values(be);
      const double tolerance = householder_tolerance(m, k, eps<TestType>);
      CHECK(orthonormality_error(q) <= tolerance);
      CHECK(outside_span(q, c) <= tolerance);
      CHECK(p.surroundings_unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("orthonormalize completes the basis of a deficient matrix",
                        "[orthonormalize]", test_backends) {
  using namespace orthonormalize_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  std::vector<dense> cases{dense(12, 5), with_spectrum(12, 5, {1, 1e-1}, 2),
                           random_normal(12, 5, 3) * diagonal_matrix({1, 1e-6, 1e6, 0, 1}),
                           left_cols(identity(12), 5)};
  dense repeated = random_normal(12, 5, 4);
  for (index_t i = 0; i < 12; ++i)
    repeated(i, 3) = repeated(i, 1);
  cases.push_back(repeated);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    INFO("case " << i);
    const dense c = rounded<T>(cases[i]);
    placed<T, TestType> p(be, c);
    ressvd::detail::orthonormalize(be, p.block());
    const dense q = p.values(be);
    const double tolerance = householder_tolerance(12, 5, eps<TestType>);
    CHECK(orthonormality_error(q) <= tolerance);
    CHECK(outside_span(q, c) <= tolerance);
  }
}

TEMPLATE_LIST_TEST_CASE("orthonormalize_against stays in the complement", "[orthonormalize]",
                        test_backends) {
  using namespace orthonormalize_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  constexpr index_t m = 14;
  constexpr index_t k = 4;
  const auto check = [&](const dense& basis, const dense& columns, const char* name) {
    INFO(name << ", beside " << basis.cols() << " columns");
    const dense q = rounded<T>(basis);
    const dense c = rounded<T>(columns);
    const placed<T, TestType> pq(be, q, layout::col_major, 1);
    placed<T, TestType> pc(be, c, layout::col_major, 2);
    ressvd::detail::orthonormalize_against<TestType>(be, pq.block(), pc.block());
    const dense joined = join_cols(q, pc.values(be));
    // q itself is orthonormal to the rounding of its elements only.
    const double tolerance = householder_tolerance(m, joined.cols(), eps<TestType>);
    CHECK(orthonormality_error(joined) <= tolerance);
    CHECK(pq.unchanged(be));
    CHECK(pc.surroundings_unchanged(be));
  };
  for (const index_t p : {1, 5, 10}) {
    const dense q = random_orthonormal(m, p, 5);
    const dense axes = left_cols(identity(m), p);
    check(q, random_normal(m, k, 6), "random");
    check(q, q * random_normal(p, k, 7) + 1e-3 * random_normal(m, k, 8), "close to the span");
    check(q, q * random_normal(p, k, 7) + 1e-9 * random_normal(m, k, 8), "very close to the span");
    check(q, q * random_normal(p, k, 7), "in the span");
    check(q, dense(m, k), "zero");
    check(axes, left_cols(identity(m), k), "axes among axes");
    check(axes, dense(m, k), "zero beside axes");
    check(axes, part(identity(m), 0, m - k, m, k), "axes beside axes");
  }
}
