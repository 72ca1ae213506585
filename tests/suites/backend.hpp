// SPDX-License-Identifier: Apache-2.0
//
// Every primitive of the backend concept against plain double arithmetic. Bounds are the
// componentwise ones of the textbook algorithm (Higham, Accuracy and Stability of Numerical
// Algorithms), with eps in place of the unit roundoff u = eps/2: a margin of 2 for the order in
// which blocked and vectorised code adds.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/core.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/special_values.hpp"

namespace backend_suite {

using namespace support;
using ressvd::op;
using ressvd::side;

inline constexpr std::array ops{op::none, op::transpose};

inline dense applied(op o, const dense& a) {
  return o == op::none ? a : transpose(a);
}

/// Lower triangular, well conditioned: unit to two on the diagonal, rows below of norm about 1/2.
inline dense random_lower(index_t n, std::uint64_t seed) {
  dense l = (0.5 / std::sqrt(static_cast<double>(n))) * random_normal(n, n, seed);
  for (index_t j = 0; j < n; ++j) {
    for (index_t i = 0; i < j; ++i)
      l(i, j) = 0;
    l(j, j) = 1 + static_cast<double>(j % 7) / 7;
  }
  return l;
}

inline dense with_upper(dense a, double value) {
  for (index_t j = 0; j < a.cols(); ++j) {
    for (index_t i = 0; i < std::min(j, a.rows()); ++i)
      a(i, j) = value;
  }
  return a;
}

inline dense lower_of(dense a) {
  return with_upper(std::move(a), 0);
}

inline bool upper_is_nan(const dense& a) {
  for (index_t j = 0; j < a.cols(); ++j) {
    for (index_t i = 0; i < j; ++i) {
      if (!std::isnan(a(i, j))) return false;
    }
  }
  return true;
}

inline bool zero_below_diagonal(const dense& r) {
  for (index_t j = 0; j < r.cols(); ++j) {
    for (index_t i = j + 1; i < r.rows(); ++i) {
      if (r(i, j) != 0) return false;
    }
  }
  return true;
}

/// Matrices on which factorisations go wrong first.
inline std::vector<dense> difficult_tall_matrices(index_t m, index_t n) {
  dense repeated = random_normal(m, n, 31);
  for (index_t i = 0; i < m; ++i)
    repeated(i, n - 1) = repeated(i, 0);
  dense holed = random_normal(m, n, 32);
  for (index_t i = 0; i < m; ++i)
    holed(i, n / 2) = 0;
  return {dense(m, n),
          repeated,
          holed,
          identity(m).cols() == n ? identity(m) : left_cols(identity(m), n),
          with_spectrum(m, n, geometric_spectrum(n, 1e12), 33),
          with_spectrum(m, n, std::vector<double>(static_cast<std::size_t>(n), 1.0), 34)};
}

/// n × n; about every fourth number on the diagonal is zero, which no shift of a QR iteration
/// passes, and every fifth above it.
inline dense bidiagonal_with_zeros(index_t n, unsigned seed) {
  const dense values = random_normal(n, 2, seed);
  dense a(n, n);
  for (index_t i = 0; i < n; ++i) {
    if (values(i, 0) > -0.67) a(i, i) = values(i, 0);
    if (i + 1 < n && values(i, 1) > -0.84) a(i, i + 1) = values(i, 1);
  }
  return a;
}

struct product_shape {
  index_t m, n, k;
};

} // namespace backend_suite

TEMPLATE_LIST_TEST_CASE("gemm is the product for all shapes and transpositions", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct factors {
    double alpha, beta;
  };
  for (const auto [m, n, k] :
       {product_shape{1, 1, 1}, {5, 7, 3}, {7, 1, 9}, {1, 6, 4}, {33, 65, 17}, {130, 70, 96}}) {
    for (const op oa : ops) {
      for (const op ob : ops) {
        for (const auto [alpha, beta] : {factors{1, 0}, {-1, 1}, {0.5, -2}}) {
          INFO(m << " x " << n << " x " << k << ", transposed " << (oa == op::transpose)
                 << (ob == op::transpose) << ", alpha " << alpha << ", beta " << beta);
          const dense a = rounded<T>(applied(oa, random_normal(m, k, 1)));
          const dense b = rounded<T>(applied(ob, random_normal(k, n, 2)));
          const dense c =
              beta == 0 ? dense(m, n, not_a_number) : rounded<T>(random_normal(m, n, 3));
          placed<T, TestType> pa(be, a, layout::col_major, 2);
          placed<T, TestType> pb(be, b, layout::col_major, 1);
          placed<T, TestType> pc(be, c, layout::col_major, 3);
          be.gemm(oa, ob, static_cast<T>(alpha), std::as_const(pa).block(),
                  std::as_const(pb).block(), static_cast<T>(beta), pc.block());
          dense expected = alpha * (applied(oa, a) * applied(ob, b));
          dense magnitude = absolute(applied(oa, a)) * absolute(applied(ob, b));
          if (beta != 0) {
            expected = expected + beta * c;
            magnitude = magnitude + std::abs(beta) * absolute(c);
          }
          const double gamma = static_cast<double>(k + 2) * eps<TestType>;
          CHECK(error_in_bounds(pc.values(be), expected, gamma * magnitude) <= 1);
          CHECK(pc.surroundings_unchanged(be));
          CHECK(pa.unchanged(be));
          CHECK(pb.unchanged(be));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("gemm of empty operands scales or does nothing", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense c = rounded<T>(random_normal(4, 3, 1));
  SECTION("no terms") {
    for (const double beta : {0.0, 1.0, 2.0}) {
      placed<T, TestType> pa(be, dense(4, 0));
      placed<T, TestType> pb(be, dense(0, 3));
      placed<T, TestType> pc(be, beta == 0 ? dense(4, 3, not_a_number) : c);
      be.gemm(op::none, op::none, T{1}, std::as_const(pa).block(), std::as_const(pb).block(),
              static_cast<T>(beta), pc.block());
      CHECK(pc.values(be) == (beta == 0 ? dense(4, 3) : beta * c));
      CHECK(pc.surroundings_unchanged(be));
    }
  }
  SECTION("no elements") {
    placed<T, TestType> pa(be, dense(0, 5));
    placed<T, TestType> pb(be, random_normal(5, 3, 1));
    placed<T, TestType> pc(be, dense(0, 3));
    be.gemm(op::none, op::none, T{1}, std::as_const(pa).block(), std::as_const(pb).block(), T{0},
            pc.block());
    CHECK(pc.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("trmm multiplies by the triangle alone", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for (const index_t n : {1, 5, 64, 65, 150}) {
    const dense l = rounded<T>(random_lower(n, 4));
    placed<T, TestType> pl(be, with_upper(l, not_a_number), layout::col_major, 1);
    for (const index_t others : {1, 9, 70}) {
      for (const op o : ops) {
        for (const side s : {side::left, side::right}) {
          INFO("order " << n << " and " << others << (s == side::left ? ", left" : ", right")
                        << (o == op::none ? "" : ", transposed"));
          const bool left = s == side::left;
          const dense a =
              rounded<T>(left ? random_normal(n, others, 5) : random_normal(others, n, 5));
          placed<T, TestType> pa(be, a, layout::col_major, 2);
          placed<T, TestType> pc(be, dense(a.rows(), a.cols(), not_a_number), layout::col_major, 3);
          be.trmm(s, o, std::as_const(pl).block(), std::as_const(pa).block(), pc.block());
          const dense expected = left ? applied(o, l) * a : a * applied(o, l);
          const dense magnitude =
              left ? absolute(applied(o, l)) * absolute(a) : absolute(a) * absolute(applied(o, l));
          const double gamma = static_cast<double>(n + 1) * eps<TestType>;
          CHECK(error_in_bounds(pc.values(be), expected, gamma * magnitude) <= 1);
          CHECK(pc.surroundings_unchanged(be));
          CHECK(pa.unchanged(be));
          CHECK(pl.unchanged(be));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("trsm solves with the triangle alone", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for (const index_t n : {1, 5, 64, 65, 150}) {
    const dense l = rounded<T>(random_lower(n, 6));
    placed<T, TestType> pl(be, with_upper(l, not_a_number), layout::col_major, 1);
    for (const index_t others : {1, 9, 70}) {
      for (const op o : ops) {
        for (const side s : {side::left, side::right}) {
          INFO("order " << n << " and " << others << (s == side::left ? ", left" : ", right")
                        << (o == op::none ? "" : ", transposed"));
          const bool left = s == side::left;
          const dense c =
              rounded<T>(left ? random_normal(n, others, 7) : random_normal(others, n, 7));
          placed<T, TestType> pc(be, c, layout::col_major, 3);
          be.trsm(s, o, std::as_const(pl).block(), pc.block());
          // Theorem 8.5: x solves a system whose triangle differs by γ_n·|L|.
          const dense x = pc.values(be);
          const dense product = left ? applied(o, l) * x : x * applied(o, l);
          const dense magnitude =
              left ? absolute(applied(o, l)) * absolute(x) : absolute(x) * absolute(applied(o, l));
          const double gamma = static_cast<double>(n + 2) * eps<TestType>;
          CHECK(error_in_bounds(product, c, gamma * magnitude) <= 1);
          CHECK(pc.surroundings_unchanged(be));
          CHECK(pl.unchanged(be));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("potrf is the Cholesky factor in the lower triangle", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  // 530 passes the panels between the blocks of the recursion.
  for (const index_t n : {1, 5, 64, 65, 150, 530}) {
    INFO("order " << n);
    const dense x = random_normal(n, n, 8);
    dense a = rounded<T>((1 / static_cast<double>(n)) * (x * transpose(x)) + identity(n));
    // A product's two triangles may differ by rounding; potrf reads the lower one.
    for (index_t i = 0; i < n; ++i) {
      for (index_t j = 0; j < i; ++j)
        a(j, i) = a(i, j);
    }
    placed<T, TestType> pc(be, with_upper(a, not_a_number), layout::col_major, 3);
    REQUIRE(be.potrf(pc.block()) == 0);
    const dense c = pc.values(be);
    CHECK(upper_is_nan(c));
    CHECK(pc.surroundings_unchanged(be));
    // Theorem 10.3: |A − LLᵀ| ≤ γ_{n+1}|L||Lᵀ|.
    const dense l = lower_of(c);
    const double gamma = static_cast<double>(n + 1) * eps<TestType>;
    CHECK(error_in_bounds(l * transpose(l), a, gamma * (absolute(l) * absolute(transpose(l)))) <=
          1);
  }
}

TEMPLATE_LIST_TEST_CASE("potrf names the first minor that is not positive", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  constexpr index_t n = 150;
  for (const index_t k : {0, 3, 63, 64, 75, 100, 149}) {
    // L·D·Lᵀ with one negative element in D: the leading minors up to k are positive, the next one
    // is not, by a margin of order 1.
    std::vector<double> d(n, 1.0);
    d[static_cast<std::size_t>(k)] = -1;
    const dense l = random_lower(n, 9);
    for (const double pivot : {-1.0, not_a_number, infinity}) {
      dense a = l * diagonal_matrix(d) * transpose(l);
      if (!(pivot < 0)) a(k, k) = pivot;
      INFO("minor " << k + 1 << ", pivot " << pivot);
      placed<T, TestType> pc(be, a);
      CHECK(be.potrf(pc.block()) == k + 1);
      CHECK(pc.surroundings_unchanged(be));
    }
  }
  placed<T, TestType> zero(be, dense(3, 3));
  CHECK(be.potrf(zero.block()) == 1);
}

TEMPLATE_LIST_TEST_CASE("lu factors tall matrices with their rows in another order", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const auto check = [&](const dense& a) {
    const index_t m = a.rows();
    const index_t n = a.cols();
    INFO(m << " x " << n);
    placed<T, TestType> pl(be, a, layout::col_major, 3);
    placed<T, TestType> pr(be, dense(n, n, not_a_number), layout::col_major, 2);
    std::vector<index_t> order(static_cast<std::size_t>(m), -1);
    be.lu(pl.block(), pr.block(), order);
    CHECK(pl.surroundings_unchanged(be));
    CHECK(pr.surroundings_unchanged(be));
    const dense l = pl.values(be);
    const dense r = pr.values(be);
    dense permuted(m, n);
    std::vector<bool> seen(static_cast<std::size_t>(m), false);
    for (index_t i = 0; i < m; ++i) {
      const index_t from = order[static_cast<std::size_t>(i)];
      REQUIRE((from >= 0 && from < m && !seen[static_cast<std::size_t>(from)]));
      seen[static_cast<std::size_t>(from)] = true;
      for (index_t j = 0; j < n; ++j) {
        permuted(i, j) = a(from, j);
        CHECK(std::abs(l(i, j)) <= 1);
        if (i == j) CHECK(l(i, j) == 1);
        if (i < j) CHECK(l(i, j) == 0);
        if (i > j && i < n) CHECK(r(i, j) == 0);
      }
    }
    // Each element is a sum of at most n + 1 terms |l|·|r|, rounded one by one.
    const dense bound =
        (2 * static_cast<double>(n + 1) * eps<TestType>)*(absolute(l) * absolute(r));
    CHECK(error_in_bounds(l * r, permuted, bound + dense(m, n, 1e-300)) <= 1);
  };
  for (const auto& [m, n] :
       {std::pair<index_t, index_t>{7, 7}, {20, 5}, {1, 1}, {9, 1}, {70, 65}, {150, 130}}) {
    check(rounded<T>(random_normal(m, n, 70)));
    check(rounded<T>(random_normal(m, 1, 71) * random_normal(1, n, 72)));
    check(dense(m, n));
  }
  dense gap = rounded<T>(random_normal(30, 12, 73)); // a column without a pivot in between
  for (index_t i = 0; i < 30; ++i)
    gap(i, 4) = gap(i, 2);
  check(gap);
}

TEMPLATE_LIST_TEST_CASE("rows are scattered by a list of indices", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense a = rounded<float>(random_normal(5, 4, 74));
  const std::vector<index_t> at{3, 0, 6, 1, 4};
  const auto rows = be.indices(at);
  CHECK(rows.size == 5);
  for_each_storage([&]<class U>(U) {
    for (const layout from : {layout::row_major, layout::col_major}) {
      for (const layout to : {layout::row_major, layout::col_major}) {
        INFO(storage_name<U>());
        const placed<T, TestType> in(be, a, from, 1);
        placed<U, TestType> out(be, dense(7, 4, 9.0), to, 2);
        be.scatter_rows(in.view(), rows, out.target());
        dense expected(7, 4, 9.0);
        for (index_t i = 0; i < 5; ++i) {
          for (index_t j = 0; j < 4; ++j)
            expected(at[static_cast<std::size_t>(i)], j) = a(i, j);
        }
        CHECK(out.values(be) == rounded<U>(expected));
        CHECK(out.surroundings_unchanged(be));
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("thin_qr factors matrices of any rank", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n;
  };
  for (const auto [m, n] : {shape{1, 1}, {7, 3}, {64, 64}, {100, 30}, {150, 110}}) {
    auto cases = difficult_tall_matrices(m, n);
    cases.push_back(random_normal(m, n, 10));
    for (std::size_t i = 0; i < cases.size(); ++i) {
      INFO(m << " x " << n << ", case " << i);
      const dense c = rounded<T>(cases[i]);
      placed<T, TestType> pq(be, c, layout::col_major, 3);
      placed<T, TestType> pr(be, dense(n, n, not_a_number), layout::col_major, 2);
      be.thin_qr(pq.block(), pr.block());
      const dense q = pq.values(be);
      const dense r = pr.values(be);
      const double tolerance = householder_tolerance(m, n, eps<TestType>);
      CHECK(orthonormality_error(q) <= tolerance);
      CHECK(distance(q * r, c) <= tolerance * frobenius(c));
      CHECK(zero_below_diagonal(r));
      CHECK(pq.surroundings_unchanged(be));
      CHECK(pr.surroundings_unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("triangularize keeps the Gram", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n;
  };
  for (const auto [m, n] : {shape{1, 1}, {3, 7}, {1, 5}, {7, 3}, {64, 64}, {40, 90}, {150, 110}}) {
    std::vector<dense> cases{random_normal(m, n, 11), dense(m, n)};
    if (m >= n) cases = difficult_tall_matrices(m, n);
    for (std::size_t i = 0; i < cases.size(); ++i) {
      INFO(m << " x " << n << ", case " << i);
      const dense c = rounded<T>(cases[i]);
      placed<T, TestType> pc(be, c, layout::col_major, 3);
      placed<T, TestType> pr(be, dense(n, n, not_a_number), layout::col_major, 2);
      be.triangularize(pc.block(), pr.block());
      const dense r = pr.values(be);
      // R is exact for a matrix that differs by `tolerance` relatively: its Gram by twice that.
      const double tolerance = 2 * householder_tolerance(m, n, eps<TestType>);
      CHECK(distance(transpose(r) * r, transpose(c) * c) <= tolerance * squared_norm(c));
      CHECK(zero_below_diagonal(r));
      CHECK(pc.surroundings_unchanged(be));
      CHECK(pr.surroundings_unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("factorisations do not depend on the scale", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  // Squares of these leave the range of float, for double those of the second pair.
  const int far = std::numeric_limits<T>::max_exponent - 28;
  for (const int exponent : {-100, 100, -far, far}) {
    INFO("scaled by 2^" << exponent);
    const double scale = std::ldexp(1.0, exponent);
    const dense c = rounded<T>(random_normal(20, 9, 40));
    const dense scaled = scale * c;
    const double tolerance = householder_tolerance(20, 9, eps<TestType>);
    const auto relative = [&](const dense& a) { return (1 / scale) * a; };
    placed<T, TestType> pq(be, scaled);
    placed<T, TestType> pr(be, dense(9, 9));
    be.thin_qr(pq.block(), pr.block());
    CHECK(orthonormality_error(pq.values(be)) <= tolerance);
    CHECK(distance(pq.values(be) * relative(pr.values(be)), c) <= tolerance * frobenius(c));

    placed<T, TestType> pc(be, scaled);
    be.triangularize(pc.block(), pr.block());
    const dense r = relative(pr.values(be));
    CHECK(distance(transpose(r) * r, transpose(c) * c) <= 2 * tolerance * squared_norm(c));

    placed<T, TestType> pa(be, scaled);
    placed<T, TestType> pu(be, dense(20, 9));
    std::vector<double> values(9);
    be.svd(pa.block(), values, pu.block());
    CHECK(distance(relative(column(values)), column(svd(c).s)) <= 3 * tolerance * frobenius(c));
    CHECK(orthonormality_error(pu.values(be)) <= tolerance);

    const dense symmetric = part(c, 0, 0, 9, 9) + transpose(part(c, 0, 0, 9, 9));
    const dense stored = rounded<T>(symmetric);
    placed<T, TestType> pe(be, scale * stored);
    be.eigh(pe.block(), values);
    CHECK(distance(relative(column(values)), column(eigh(stored).values)) <=
          3 * tolerance * frobenius(stored));
  }
}

TEMPLATE_LIST_TEST_CASE("eigh diagonalises what is in the lower triangle", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for (const index_t n : {1, 2, 7, 64, 90}) {
    const dense v = random_orthonormal(n, n, 12);
    const dense x = random_normal(n, n, 13);
    const std::vector<dense> cases{
        x + transpose(x),
        dense(n, n),
        identity(n),
        v * diagonal_matrix(geometric_spectrum(n, 1e14)) * transpose(v),
        v * diagonal_matrix(spiked_spectrum(n, (std::min)(n, index_t{3}))) * transpose(v),
    };
    for (std::size_t i = 0; i < cases.size(); ++i) {
      INFO("order " << n << ", case " << i);
      const dense a = rounded<T>(0.5 * (cases[i] + transpose(cases[i])));
      placed<T, TestType> pc(be, with_upper(a, not_a_number), layout::col_major, 3);
      std::vector<double> values(static_cast<std::size_t>(n));
      be.eigh(pc.block(), values);
      const dense q = pc.values(be);
      // Orthogonal transformations of an n × n matrix: as for Householder QR.
      const double tolerance = householder_tolerance(n, n, eps<TestType>);
      CHECK(std::is_sorted(values.begin(), values.end()));
      CHECK(orthonormality_error(q) <= tolerance);
      CHECK(distance(q * diagonal_matrix(values) * transpose(q), a) <= tolerance * frobenius(a));
      CHECK(pc.surroundings_unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("leading_eigenvectors are those of the largest eigenvalues", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  if constexpr (requires(ressvd::block_of<TestType> c, std::vector<double> v) {
                  be.leading_eigenvectors(c, v, c);
                }) {
    for (const index_t n : {1, 2, 3, 33, 70, 150}) {
      const dense v = random_orthonormal(n, n, 41);
      const dense x = random_normal(n, n, 42);
      for (const dense& made : {x + transpose(x), dense(n, n),
                                v * diagonal_matrix(geometric_spectrum(n, 1e9)) * transpose(v)}) {
        const dense a = rounded<T>(0.5 * (made + transpose(made)));
        const double tolerance = householder_tolerance(n, n, eps<TestType>) * frobenius(a);
        const std::vector<double> reference = eigh(a).values;
        for (const index_t count : {index_t{0}, index_t{1}, (n + 2) / 3, n}) {
          INFO("order " << n << ", " << count << " vectors");
          placed<T, TestType> pc(be, with_upper(a, not_a_number), layout::col_major, 3);
          placed<T, TestType> pq(be, dense(n, count, not_a_number), layout::col_major, 2);
          std::vector<double> values(static_cast<std::size_t>(n));
          be.leading_eigenvectors(pc.block(), values, pq.block());
          const dense q = pq.values(be);
          CHECK(orthonormality_error(q) <= householder_tolerance(n, n, eps<TestType>));
          const std::vector<double> theirs(values.end() - count, values.end());
          CHECK(distance(a * q, q * diagonal_matrix(theirs)) <= tolerance);
          CHECK(std::is_sorted(values.begin(), values.end()));
          CHECK(distance(column(values), column(reference)) <= tolerance);
          CHECK(pq.surroundings_unchanged(be));
          CHECK(pc.surroundings_unchanged(be));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("svd gives singular values and left vectors of any shape", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n;
  };
  for (const auto [m, n] :
       {shape{1, 1}, {1, 9}, {9, 1}, {7, 12}, {12, 7}, {40, 40}, {90, 31}, {31, 90}, {96, 80}}) {
    const index_t k = (std::min)(m, n);
    const std::vector<dense> cases{
        random_normal(m, n, 14),
        dense(m, n),
        with_spectrum(m, n, geometric_spectrum(k, 1e10), 15),
        with_spectrum(m, n, spiked_spectrum((k + 1) / 2, (std::min)(k, index_t{2})), 16),
        part(identity((std::max)(m, n)), 0, 0, m, n),
    };
    for (std::size_t i = 0; i < cases.size(); ++i) {
      INFO(m << " x " << n << ", case " << i);
      const dense a = rounded<T>(cases[i]);
      placed<T, TestType> pa(be, a, layout::col_major, 2);
      placed<T, TestType> pu(be, dense(m, k, not_a_number), layout::col_major, 3);
      std::vector<double> values(static_cast<std::size_t>(k));
      be.svd(pa.block(), values, pu.block());
      const dense u = pu.values(be);
      const double tolerance = householder_tolerance((std::max)(m, n), k, eps<TestType>);
      CHECK(std::is_sorted(values.rbegin(), values.rend()));
      CHECK(values.back() >= 0);
      CHECK(orthonormality_error(u) <= tolerance);
      // Uᵀ·A has orthogonal rows of norm σ_i, and U spans A.
      const dense b = transpose(u) * a;
      std::vector<double> squares;
      for (const double s : values)
        squares.push_back(s * s);
      CHECK(distance(b * transpose(b), diagonal_matrix(squares)) <=
            2 * tolerance * squared_norm(a));
      CHECK(distance(u * b, a) <= 2 * tolerance * frobenius(a));
      // Weyl: singular values move by no more than the backward error.
      const std::vector<double> reference = svd(a).s;
      CHECK(distance(column(values), column(reference)) <=
            std::sqrt(static_cast<double>(k)) * tolerance * frobenius(a));
      CHECK(pu.surroundings_unchanged(be));
      CHECK(pa.surroundings_unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("svd takes bidiagonals with zeros on the diagonal", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  constexpr index_t n = 61;
  const double tolerance = householder_tolerance(n, n, eps<TestType>);
  for (unsigned seed = 0; seed < 12; ++seed) {
    INFO("seed " << seed);
    const dense a = rounded<T>(bidiagonal_with_zeros(n, seed));
    placed<T, TestType> pa(be, a, layout::col_major, 2);
    placed<T, TestType> pu(be, dense(n, n, not_a_number), layout::col_major, 3);
    std::vector<double> values(static_cast<std::size_t>(n));
    be.svd(pa.block(), values, pu.block());
    const dense u = pu.values(be);
    const dense b = transpose(u) * a;
    for (double& s : values)
      s *= s;
    CHECK(orthonormality_error(u) <= tolerance);
    CHECK(distance(b * transpose(b), diagonal_matrix(values)) <= 2 * tolerance * squared_norm(a));
  }
}

TEMPLATE_LIST_TEST_CASE("copy converts storage types and layouts exactly", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n;
  };
  for_each_storage([&]<class U>(U) {
    for (const auto [m, n] : {shape{1, 1}, {3, 5}, {70, 130}, {1, 66}, {0, 4}, {4, 0}}) {
      for (const layout order : {layout::row_major, layout::col_major}) {
        INFO(storage_name<U>() << ", " << m << " x " << n
                               << (order == layout::row_major ? " by rows" : " by columns"));
        const dense a = rounded<U>(random_normal(m, n, 17));
        placed<U, TestType> source(be, a, order, 3);
        placed<T, TestType> block(be, dense(m, n, not_a_number), layout::col_major, 2);
        be.copy(source.view(), block.block());
        CHECK(block.values(be) == rounded<T>(a));
        CHECK(block.surroundings_unchanged(be));
        CHECK(source.unchanged(be));

        const dense b = rounded<T>(random_normal(m, n, 18));
        placed<T, TestType> from(be, b, layout::col_major, 2);
        placed<U, TestType> target(be, dense(m, n, not_a_number), order, 3);
        be.copy(std::as_const(from).block(), target.target());
        CHECK(target.values(be) == rounded<U>(b));
        CHECK(target.surroundings_unchanged(be));
        CHECK(from.unchanged(be));
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("upload and download keep every element", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense a = rounded<T>(random_normal(9, 6, 19));
  std::vector<T> host(11 * 6, T{-1}); // leading dimension 11
  for (index_t j = 0; j < 6; ++j) {
    for (index_t i = 0; i < 9; ++i)
      host[static_cast<std::size_t>(i + 11 * j)] = T(a(i, j));
  }
  placed<T, TestType> on_device(be, dense(9, 6), layout::col_major, 3);
  be.upload(ressvd::block<const T>{host.data(), 9, 6, 11}, on_device.block());
  CHECK(on_device.values(be) == a);
  CHECK(on_device.surroundings_unchanged(be));

  std::vector<T> back(10 * 6, T{-1});
  be.download(std::as_const(on_device).block(), ressvd::block<T>{back.data(), 9, 6, 10});
  for (index_t j = 0; j < 6; ++j) {
    for (index_t i = 0; i < 9; ++i) {
      CHECK(back[static_cast<std::size_t>(i + 10 * j)] == T(a(i, j)));
    }
    CHECK(back[static_cast<std::size_t>(9 + 10 * j)] == T{-1});
  }
}

TEMPLATE_LIST_TEST_CASE("max_abs is exact and reports NaN and infinity", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    for (const layout order : {layout::row_major, layout::col_major}) {
      INFO(storage_name<U>());
      const dense a = rounded<U>(random_normal(37, 21, 20));
      const placed<U, TestType> pa(be, a, order, 3); // the padding is NaN and must not count
      CHECK(be.max_abs(pa.view()) == max_abs(a));
      CHECK(be.max_abs(placed<U, TestType>(be, dense(3, 4), order).view()) == 0);
      CHECK(be.max_abs(placed<U, TestType>(be, dense(1, 1, -0.5), order).view()) == 0.5);
      for (const double bad : {infinity, -infinity, not_a_number}) {
        for (const index_t at : {0, 20, 36}) {
          dense spoiled = a;
          spoiled(at, at % 21) = bad;
          const placed<U, TestType> ps(be, spoiled, order, 3);
          CHECK_FALSE(std::isfinite(be.max_abs(ps.view())));
        }
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("add_gram adds the Gram of any storage and layout", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t n, t;
  };
  for_each_storage([&]<class U>(U) {
    // 530 passes the panels of the sum, 2100 and 4200 the chunks of tokens.
    for (const auto [n, t] :
         {shape{1, 1}, {5, 1}, {1, 40}, {33, 17}, {6, 2100}, {2, 4200}, {530, 9}, {7, 0}}) {
      for (const layout order : {layout::row_major, layout::col_major}) {
        INFO(storage_name<U>() << ", " << n << " x " << t
                               << (order == layout::row_major ? " by rows" : " by columns"));
        const dense x = rounded<U>(random_normal(n, t, 21));
        const dense start = rounded<T>(random_normal(n, n, 22));
        placed<U, TestType> px(be, x, order, 3);
        placed<T, TestType> sum(be, start, layout::col_major, 2);
        be.add_gram(px.view(), sum.block());
        const dense expected = start + x * transpose(x);
        // Products of t terms in float (at most 2048 a time) or in the scalar, and their sum.
        const double product_eps = std::is_same_v<U, double>
                                       ? eps<TestType>
                                       : static_cast<double>(std::numeric_limits<float>::epsilon());
        const dense magnitude = absolute(x) * absolute(transpose(x));
        const dense bound =
            (static_cast<double>(std::min<index_t>(t, 2048) + 1) * product_eps) * magnitude +
            (static_cast<double>(t / 2048 + 2) * eps<TestType>)*(absolute(start) + magnitude);
        CHECK(error_in_bounds(lower_of(sum.values(be)), lower_of(expected), bound) <= 1);
        CHECK(sum.surroundings_unchanged(be));
        CHECK(px.unchanged(be));
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("add_product adds the product of two inputs", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n, t;
  };
  for_each_storage([&]<class U>(U) {
    const double product_eps = std::is_same_v<U, double>
                                   ? eps<TestType>
                                   : static_cast<double>(std::numeric_limits<float>::epsilon());
    const auto bound = [&](const dense& x, const dense& y, const dense& start) {
      const dense magnitude = absolute(x) * absolute(transpose(y));
      const index_t t = x.cols();
      return (static_cast<double>(std::min<index_t>(t, 2048) + 1) * product_eps) * magnitude +
             (static_cast<double>(t / 2048 + 2) * eps<TestType>)*(absolute(start) + magnitude);
    };
    for (const auto [m, n, t] : {shape{1, 1, 1}, {5, 3, 7}, {3, 40, 12}, {4, 6, 2100}, {3, 2, 0}}) {
      for (const layout order_x : {layout::row_major, layout::col_major}) {
        for (const layout order_y : {layout::row_major, layout::col_major}) {
          INFO(storage_name<U>() << ", " << m << " x " << n << " x " << t);
          const dense x = rounded<U>(random_normal(m, t, 23));
          const dense y = rounded<U>(random_normal(n, t, 24));
          const dense start = rounded<T>(random_normal(m, n, 25));
          placed<U, TestType> px(be, x, order_x, 3);
          placed<U, TestType> py(be, y, order_y, 1);
          placed<T, TestType> sum(be, start, layout::col_major, 2);
          be.add_product(px.view(), py.view(), sum.block());
          CHECK(error_in_bounds(sum.values(be), start + x * transpose(y), bound(x, y, start)) <= 1);
          CHECK(sum.surroundings_unchanged(be));
        }
      }
    }
    // Views of one buffer: the same matrix, a part that starts where the whole does, a transpose.
    const dense x = rounded<U>(random_normal(6, 6, 26));
    const dense zero(6, 6);
    const placed<U, TestType> px(be, x, layout::col_major, 3);
    placed<T, TestType> whole(be, zero);
    be.add_product(px.view(), px.view(), whole.block());
    CHECK(error_in_bounds(whole.values(be), x * transpose(x), bound(x, x, zero)) <= 1);

    const dense top = part(x, 0, 0, 2, 6);
    placed<T, TestType> narrow(be, dense(2, 6));
    be.add_product(px.view().part(0, 0, 2, 6), px.view(), narrow.block());
    CHECK(error_in_bounds(narrow.values(be), top * transpose(x), bound(top, x, dense(2, 6))) <= 1);

    placed<T, TestType> square(be, zero);
    be.add_product(px.view(), px.view().transposed(), square.block());
    CHECK(error_in_bounds(square.values(be), x * x, bound(x, transpose(x), zero)) <= 1);
  });
}

TEMPLATE_LIST_TEST_CASE("add_row_abs adds absolute row sums", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    for (const layout order : {layout::row_major, layout::col_major}) {
      INFO(storage_name<U>());
      const dense x = rounded<U>(random_normal(13, 101, 27));
      const dense start = rounded<T>(absolute(random_normal(13, 1, 28)));
      const placed<U, TestType> px(be, x, order, 3);
      placed<T, TestType> sum(be, start);
      be.add_row_abs(px.view(), sum.block());
      const dense expected = start + absolute(x) * dense(101, 1, 1.0);
      CHECK(error_in_bounds(sum.values(be), expected, (102 * eps<TestType>)*expected) <= 1);
      CHECK(sum.surroundings_unchanged(be));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("elementwise members of the backend", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n;
  };
  for (const shape s : {shape{1, 1}, {9, 6}, {70, 65}, {0, 3}, {3, 0}}) {
    const index_t m = s.m;
    const index_t n = s.n;
    INFO(m << " x " << n);
    const dense a = rounded<T>(random_normal(m, n, 29));
    const dense c = rounded<T>(random_normal(m, n, 30));
    const dense rows = rounded<T>(random_normal(m, 1, 31));
    const dense cols = rounded<T>(random_normal(n, 1, 32));
    const placed<T, TestType> pa(be, a, layout::col_major, 1);
    placed<T, TestType> pc(be, c, layout::col_major, 2);
    const auto scaled = [&](auto factor) {
      dense out = c;
      for (index_t j = 0; j < n; ++j) {
        for (index_t i = 0; i < m; ++i)
          out(i, j) *= factor(i, j);
      }
      return out;
    };
    dense expected = c;
    double roundings = 0; // of one element
    SECTION("fill") {
      be.fill(pc.block(), T(0.75));
      expected = dense(m, n, 0.75);
    }
    SECTION("scale") {
      be.scale(T(-1.5), pc.block());
      expected = scaled([](index_t, index_t) { return -1.5; });
      roundings = 1;
    }
    SECTION("add") {
      be.add(T(-1.5), pa.block(), pc.block());
      expected = c - 1.5 * a;
      roundings = 2;
    }
    SECTION("scale_rows") {
      const placed<T, TestType> d(be, rows);
      be.scale_rows(d.block(), pc.block());
      expected = scaled([&](index_t i, index_t) { return rows(i, 0); });
      roundings = 1;
    }
    SECTION("scale_cols") {
      const placed<T, TestType> d(be, cols);
      be.scale_cols(pc.block(), d.block());
      expected = scaled([&](index_t, index_t j) { return cols(j, 0); });
      roundings = 1;
    }
    SECTION("shift_diagonal") {
      be.shift_diagonal(pc.block(), T(2));
      for (index_t i = 0; i < (std::min)(m, n); ++i)
        expected(i, i) += 2;
      roundings = 1;
    }
    const double eps_here = eps<TestType>;
    const dense bound =
        (roundings * eps_here) * (absolute(expected) + absolute(c) + 1.5 * absolute(a));
    CHECK(error_in_bounds(pc.values(be), expected, bound) <= 1);
    CHECK(pc.surroundings_unchanged(be));
    CHECK(pa.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("mirror_lower copies the lower triangle up", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for (const index_t n : {1, 2, 64, 65, 130}) {
    const dense a = rounded<T>(random_normal(n, n, 33));
    placed<T, TestType> pc(be, with_upper(a, not_a_number), layout::col_major, 2);
    be.mirror_lower(pc.block());
    dense expected = a;
    for (index_t j = 0; j < n; ++j) {
      for (index_t i = 0; i < j; ++i)
        expected(i, j) = a(j, i);
    }
    CHECK(pc.values(be) == expected);
    CHECK(pc.surroundings_unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("random_normal is standard normal and a function of seed and shape",
                        "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const auto draw = [&](index_t m, index_t n, index_t padding, std::uint64_t seed) {
    placed<T, TestType> p(be, dense(m, n), layout::col_major, padding);
    be.random_normal(p.block(), seed);
    CHECK(p.surroundings_unchanged(be));
    return p.values(be);
  };
  CHECK(draw(7, 9, 0, 1) == draw(7, 9, 4, 1)); // also an odd count
  CHECK_FALSE(draw(7, 9, 0, 1) == draw(7, 9, 0, 2));

  // Moments of a normal sample of N lie within 5 standard deviations of the true ones.
  const dense a = draw(200, 200, 1, 3);
  const double count = 200.0 * 200.0;
  double mean = 0;
  double square = 0;
  double fourth = 0;
  double neighbours = 0; // Σ a_ij·a_(i+1)j, of a pair from one radius or from two
  for (index_t j = 0; j < 200; ++j) {
    for (index_t i = 0; i < 200; ++i) {
      mean += a(i, j) / count;
      square += a(i, j) * a(i, j) / count;
      fourth += std::pow(a(i, j), 4) / count;
      if (i > 0) neighbours += a(i, j) * a(i - 1, j) / count;
    }
  }
  CHECK_THAT(mean, WithinAbs(0, 5 / std::sqrt(count)));
  CHECK_THAT(square, WithinAbs(1, 5 * std::sqrt(2 / count)));
  CHECK_THAT(fourth, WithinAbs(3, 5 * std::sqrt(96 / count)));
  CHECK_THAT(neighbours, WithinAbs(0, 5 / std::sqrt(count)));
}

TEMPLATE_LIST_TEST_CASE("reductions sum in double", "[backend]", test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  constexpr double eps_double = std::numeric_limits<double>::epsilon();
  struct shape {
    index_t m, n;
  };
  for (const auto [m, n] : {shape{1, 1}, {9, 6}, {6, 9}, {130, 70}}) {
    INFO(m << " x " << n);
    const dense a = rounded<T>(random_normal(m, n, 34));
    const dense b = rounded<T>(random_normal(m, n, 35));
    const placed<T, TestType> pa(be, a, layout::col_major, 1);
    const placed<T, TestType> pb(be, b, layout::col_major, 2);
    const double magnitude = trace(absolute(a) * absolute(transpose(b)));
    CHECK_THAT(be.dot(pa.block(), pb.block()),
               WithinAbs(trace(a * transpose(b)),
                         static_cast<double>(m * n + 1) * eps_double * magnitude));

    std::vector<double> norms(static_cast<std::size_t>(m));
    be.row_squared_norms(pa.block(), norms);
    std::vector<double> diagonal(static_cast<std::size_t>((std::min)(m, n)));
    be.diagonal(pa.block(), diagonal);
    const dense gram = a * transpose(a);
    for (index_t i = 0; i < m; ++i) {
      CHECK_THAT(norms[static_cast<std::size_t>(i)],
                 WithinAbs(gram(i, i), static_cast<double>(n + 1) * eps_double * gram(i, i)));
      if (i < n) CHECK(diagonal[static_cast<std::size_t>(i)] == a(i, i));
    }
  }
  // What a sum in float would lose: 1 + 2^-30 + … + 2^-30.
  dense unequal(1025, 1, 0x1p-15);
  unequal(0, 0) = 1;
  const placed<T, TestType> p(be, unequal);
  CHECK(be.dot(p.block(), p.block()) == 1 + 0x1p-20);
}

TEMPLATE_LIST_TEST_CASE("scratch blocks live in nested frames and never overlap", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  auto outer = be.frame();
  const auto a = be.scratch(13, 7);
  be.fill(a, T{1});
  {
    auto inner = be.frame();
    const auto b = be.scratch(40, 50);
    be.fill(b, T{2});
    const auto c = be.scratch(300, 200);
    be.fill(c, T{3});
    CHECK(values_of(be, b) == dense(40, 50, 2.0));
    CHECK(values_of(be, c) == dense(300, 200, 3.0));
  }
  const auto d = be.scratch(500, 400);
  be.fill(d, T{4});
  CHECK(values_of(be, a) == dense(13, 7, 1.0));
  CHECK(values_of(be, d) == dense(500, 400, 4.0));
}

TEMPLATE_LIST_TEST_CASE("owned matrices outlive frames and the backend object", "[backend]",
                        test_backends) {
  using namespace backend_suite;
  using T = typename TestType::scalar;
  auto reader = make_backend<TestType>();
  ressvd::matrix<T, typename TestType::space> kept;
  {
    auto be = make_backend<TestType>();
    auto frame = be.frame();
    be.fill(be.scratch(5, 5), T{1});
    kept = be.allocate(4, 3);
    be.fill(kept, T{2});
    be.synchronize();
  }
  CHECK(values_of(reader, kept) == dense(4, 3, 2.0));
  const auto empty = reader.allocate(0, 3);
  CHECK(empty.empty());
}

TEMPLATE_LIST_TEST_CASE("a rebound backend works on the same context in another precision",
                        "[backend]", test_backends) {
  using namespace backend_suite;
  auto be = make_backend<TestType>();
  typename TestType::template rebind<double> be64(be);
  typename TestType::template rebind<float> be32(be);
  auto frame = be.frame();
  const auto mine = be.scratch(10, 10);
  be.fill(mine, typename TestType::scalar{1});
  {
    auto inner = be64.frame();
    be64.fill(be64.scratch(50, 50), 2.0);
    be32.fill(be32.scratch(50, 50), 3.0F);
  }
  CHECK(values_of(be, mine) == dense(10, 10, 1.0));
}
