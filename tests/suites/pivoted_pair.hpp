// SPDX-License-Identifier: Apache-2.0
//
// Pivoted pairs: the product of a pair in fewer numbers. A backend's own file includes its
// backends, which define `test_backends`, and then this header.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ressvd/residual/losses.hpp"
#include "ressvd/truncated_svd/pivoted_pair.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"
#include "support/special_values.hpp"

namespace pivoted_suite {

using namespace support;
using ressvd::low_rank;
using ressvd::pivot;

template <class B>
low_rank<typename B::scalar, typename B::space> pair_of(B& be, const dense& u, const dense& v) {
  using T = typename B::scalar;
  const placed<T, B> pu(be, u);
  const placed<T, B> pv(be, v);
  low_rank<T, typename B::space> pair{be.allocate(u.rows(), u.cols()),
                                      be.allocate(v.rows(), v.cols())};
  be.copy(pu.view(), pair.u.ref());
  be.copy(pv.view(), pair.v.ref());
  return pair;
}

template <class B>
dense product_of(B& be, const ressvd::pivoted_pair<typename B::scalar, typename B::space>& pair) {
  using T = typename B::scalar;
  placed<T, B> out(be, dense(pair.rows(), pair.cols(), not_a_number), layout::row_major, 2);
  ressvd::materialise(be, pair, out.target());
  CHECK(out.surroundings_unchanged(be));
  return out.values(be);
}

/// Elements of the product may be off by the rounding of a storage in the scalar, of r terms of
/// magnitude |C|·|Z| each, and by that of LU in double, whose growth is far below 1e3 here.
inline double product_tolerance(index_t r, double largest, double epsilon, const dense& w) {
  const double terms = static_cast<double>(r) + 2;
  return terms * (1 + largest) * (epsilon + 1e3 * terms * 0x1p-53) * frobenius(w);
}

} // namespace pivoted_suite

TEMPLATE_LIST_TEST_CASE("a pivoted pair is the same matrix in fewer numbers", "[pivoted_pair]",
                        test_backends) {
  using namespace pivoted_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n, r;
  };
  for (const auto [m, n, r] : {shape{30, 40, 7},
                               {40, 30, 12},
                               {25, 25, 25},
                               {25, 25, 1},
                               {1, 9, 1},
                               {9, 1, 1},
                               {20, 50, 20},
                               {90, 70, 66},
                               {200, 40, 40}}) {
    INFO(m << " x " << n << ", rank " << r);
    const dense u = rounded<T>(random_normal(m, r, 1));
    const dense v = rounded<T>(random_normal(r, n, 2));
    const auto pair = pair_of(be, u, v);
    const auto [pivoted, report] = pivot(be, pair);
    CHECK(pivoted.rows() == m);
    CHECK(pivoted.cols() == n);
    CHECK(pivoted.rank() == r);
    CHECK(pivoted.parameters() == r * (m + n - r));
    std::vector<index_t> sorted = pivoted.order;
    std::ranges::sort(sorted);
    std::vector<index_t> all(static_cast<std::size_t>(m));
    std::iota(all.begin(), all.end(), index_t{0});
    CHECK(sorted == all);
    CHECK(report.largest <= 4);
    CHECK(report.condition >= 1);
    const dense w = u * v;
    CHECK(distance(product_of(be, pivoted), w) <=
          product_tolerance(r, report.largest, eps<TestType>, w));
    const auto again = values_of(be, ressvd::unpivot(be, pivoted));
    CHECK(distance(again.product(), w) <= product_tolerance(r, report.largest, eps<TestType>, w));
  }
}

TEMPLATE_LIST_TEST_CASE("pairs of lower rank than they have columns are pivoted", "[pivoted_pair]",
                        test_backends) {
  using namespace pivoted_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const index_t m = 40;
  const index_t n = 30;
  for (const index_t own : {0, 1, 5, 11}) {
    INFO("rank " << own << " of 12");
    const dense u =
        rounded<T>(own == 0 ? dense(m, 12) : random_normal(m, own, 3) * random_normal(own, 12, 4));
    const dense v = rounded<T>(random_normal(12, n, 5));
    const auto [pivoted, report] = pivot(be, pair_of(be, u, v));
    CHECK(report.largest <= 4);
    CHECK(report.condition > 1 / (100 * eps<TestType>));
    const dense w = u * v;
    const dense found = product_of(be, pivoted);
    CHECK(distance(found, w) <= product_tolerance(12, report.largest, eps<TestType>, w));
  }
  dense twice = random_normal(m, 12, 6); // rows that are equal
  for (index_t j = 0; j < 12; ++j)
    twice(1, j) = twice(0, j);
  const dense u = rounded<T>(twice);
  const dense v = rounded<T>(random_normal(12, n, 7));
  const auto [pivoted, report] = pivot(be, pair_of(be, u, v));
  CHECK(distance(product_of(be, pivoted), u * v) <=
        product_tolerance(12, report.largest, eps<TestType>, u * v));
}

// Of Wilkinson's matrix, whose L₁⁻¹ grows like 2^r, partial pivoting takes the rows as they come.
TEMPLATE_LIST_TEST_CASE("rows are swapped until no element of C exceeds the bound",
                        "[pivoted_pair]", test_backends) {
  using namespace pivoted_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const index_t r = 12;
  dense u(r + 3, r);
  for (index_t j = 0; j < r; ++j) {
    u(j, j) = 1;
    for (index_t i = j + 1; i < u.rows(); ++i)
      u(i, j) = -1;
  }
  const dense v = rounded<T>(random_normal(r, 20, 8));
  const auto pair = pair_of(be, u, v);
  const auto loose = pivot(be, pair, {.largest = 1e9});
  CHECK(loose.report.swaps == 0);
  CHECK(loose.report.largest > 100);
  for (const double largest : {1.01, 2.0, 16.0}) {
    const auto [pivoted, report] = pivot(be, pair, {.largest = largest});
    INFO("bound " << largest << ", " << report.swaps << " swaps");
    CHECK(report.swaps > 0);
    CHECK(report.largest <= largest);
    const dense w = u * v;
    CHECK(distance(product_of(be, pivoted), w) <=
          product_tolerance(r, loose.report.largest, eps<TestType>, w));
  }
}

TEMPLATE_LIST_TEST_CASE("a pivoted pair is applied in any layout and storage", "[pivoted_pair]",
                        test_backends) {
  using namespace pivoted_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const auto orders = {layout::row_major, layout::col_major};
  struct shape {
    index_t m, n, r, batch;
  };
  for (const shape& s : {shape{9, 12, 4, 1}, {12, 9, 3, 5}, {7, 7, 7, 2}, {1, 6, 1, 3}}) {
    const index_t m = s.m;
    const index_t n = s.n;
    const index_t r = s.r;
    const index_t batch = s.batch;
    const dense u = rounded<T>(random_normal(m, r, 11));
    const dense v = rounded<T>(random_normal(r, n, 12));
    const auto result = pivot(be, pair_of(be, u, v));
    const auto& pivoted = result.pair;
    const double largest = result.report.largest;
    const dense w = product_of(be, pivoted);
    for_each_storage([&]<class U>(U) {
      const dense x = rounded<U>(random_normal(n, batch, 13));
      const dense b = rounded<U>(random_normal(m, 1, 14));
      const double stored = sizeof(U) == 2 ? 0x1p-7 : std::numeric_limits<float>::epsilon();
      const double rounding =
          (20 * static_cast<double>(n + r) * (1 + largest) * eps<TestType> + stored) *
          (frobenius(w) * frobenius(x) + frobenius(b));
      for (const layout order_x : orders) {
        for (const layout order_y : orders) {
          INFO(m << " x " << n << " rank " << r << ", batch " << batch << ", "
                 << storage_name<U>());
          const placed<U, TestType> px(be, x, order_x, 1);
          const placed<U, TestType> pb(be, b);
          placed<U, TestType> py(be, dense(m, batch, not_a_number), order_y, 2);
          ressvd::apply(be, pivoted, px.view(), py.target());
          CHECK(distance(py.values(be), w * x) <= rounding);
          CHECK(py.surroundings_unchanged(be));
          ressvd::apply(be, pivoted, px.view(), py.target(), pb.view());
          CHECK(distance(py.values(be), w * x + b * dense(1, batch, 1.0)) <= rounding);
          CHECK(py.surroundings_unchanged(be));
          CHECK(px.unchanged(be));
        }
      }
    });
  }
}

TEMPLATE_LIST_TEST_CASE("wrong calls about pivoted pairs are refused", "[pivoted_pair]",
                        test_backends) {
  using namespace pivoted_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const auto pair = pair_of(be, random_normal(6, 2, 1), random_normal(2, 5, 2));
  for (const double largest : {1.0, 0.0, -2.0, not_a_number})
    CHECK_THROWS_WITH(pivot(be, pair, {.largest = largest}), contains_text("is not above 1"));
  CHECK_THROWS_WITH(pivot(be, pair_of(be, random_normal(2, 3, 1), random_normal(3, 5, 2))),
                    contains_text("a pair of rank 3 has 2 rows"));
  dense spoiled = random_normal(6, 2, 1);
  spoiled(3, 1) = not_a_number;
  CHECK_THROWS_AS(pivot(be, pair_of(be, spoiled, random_normal(2, 5, 2))), ressvd::nonfinite_error);
  CHECK_THROWS_AS(pivot(be, pair_of(be, random_normal(6, 2, 1), infinity * dense(2, 5, 1.0))),
                  ressvd::nonfinite_error);
  const auto pivoted = pivot(be, pair).pair;
  const placed<T, TestType> x(be, dense(4, 2));
  placed<T, TestType> y(be, dense(6, 2));
  CHECK_THROWS_WITH(ressvd::apply(be, pivoted, x.view(), y.target()),
                    contains_text("x is 4 x 2, expected 5 x 2"));
  placed<T, TestType> out(be, dense(5, 6));
  CHECK_THROWS_WITH(ressvd::materialise(be, pivoted, out.target()),
                    contains_text("out is 5 x 6, expected 6 x 5"));
}

TEMPLATE_LIST_TEST_CASE("losses of a pivoted pair say what its storage costs", "[pivoted_pair]",
                        test_backends) {
  using namespace pivoted_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const index_t m = 23;
  const index_t n = 17;
  const index_t r = 5;
  const dense w = rounded<T>(random_normal(m, n, 21));
  const dense f = random_normal(n, n, 22);
  const placed<T, TestType> pw(be, w);
  const placed<double, TestType> pf(be, f);
  const auto metric = ressvd::metric<typename TestType::space>::dense(pf.block());
  const ressvd::weight<TestType> weight(be, pw.view());
  const auto pair =
      pair_of(be, rounded<T>(random_normal(m, r, 23)), rounded<T>(random_normal(r, n, 24)));
  const auto pivoted = pivot(be, pair).pair;
  const double of_pair = ressvd::weighted_loss(be, weight, pair, metric).absolute;
  const double error =
      100 * eps<TestType> * (frobenius(w) + frobenius(product_of(be, pivoted))) * frobenius(f);
  CHECK(std::abs(ressvd::weighted_loss(be, weight, pivoted, metric).absolute - of_pair) <=
        2 * std::sqrt(of_pair) * error + error * error);
  for_each_storage([&]<class U>(U) {
    INFO(storage_name<U>());
    placed<U, TestType> pc(be, dense(m - r, r), layout::row_major, 3);
    placed<U, TestType> pz(be, dense(r, n), layout::col_major, 2);
    ressvd::export_to(be, pivoted.c, pc.target());
    ressvd::export_to(be, pivoted.z, pz.target());
    const auto loss =
        ressvd::weighted_loss(be, weight, pc.view(), pz.view(), pivoted.indices, metric);
    const dense lower = pc.values(be);
    const dense own = pz.values(be);
    dense product(m, n);
    const dense others = lower * own;
    for (index_t i = 0; i < m; ++i) {
      for (index_t j = 0; j < n; ++j)
        product(pivoted.order[static_cast<std::size_t>(i)], j) =
            i < r ? own(i, j) : others(i - r, j);
    }
    const double exact = squared_norm((w - product) * f);
    CHECK(std::abs(loss.absolute - exact) <= 2 * std::sqrt(exact) * error + error * error);
    CHECK(loss.relative > 0);
  });
  CHECK_THROWS_WITH(ressvd::weighted_loss(be, weight, pivoted.z, pivoted.z, pivoted.indices),
                    contains_text("C is 5 x 17, expected 18 x 5"));
}
