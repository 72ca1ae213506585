// SPDX-License-Identifier: Apache-2.0
//
// The low-rank pair: application, materialisation, scale and losses against plain products.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/truncated_svd/low_rank.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"
#include "support/special_values.hpp"

namespace low_rank_suite {

using namespace support;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

inline double column_norm(const dense& a, index_t j) {
  return frobenius(part(a, 0, j, a.rows(), 1));
}
inline double row_norm(const dense& a, index_t i) {
  return frobenius(part(a, i, 0, 1, a.cols()));
}

} // namespace low_rank_suite

TEMPLATE_LIST_TEST_CASE("apply is U(Vx) + b for vectors and batches of any layout", "[low_rank]",
                        test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n, r, batch;
  };
  const auto orders = {layout::row_major, layout::col_major};
  for (const auto [m, n, r, batch] :
       {shape{7, 11, 3, 1}, {11, 7, 2, 5}, {1, 9, 1, 4}, {9, 1, 1, 1}, {40, 33, 12, 17}}) {
    const dense u = rounded<T>(random_normal(m, r, 1));
    const dense v = rounded<T>(random_normal(r, n, 2));
    const dense x = rounded<T>(random_normal(n, batch, 3));
    const dense b = rounded<T>(random_normal(m, 1, 4));
    const dense bias_of_all = b * dense(1, batch, 1.0);
    const dense magnitude = absolute(u) * (absolute(v) * absolute(x)) + absolute(bias_of_all);
    const dense bound = (static_cast<double>(n + r + 3) * eps<TestType>)*magnitude;
    for (const layout order_u : orders) {
      for (const layout order_x : orders) {
        for (const layout order_y : orders) {
          INFO(m << " x " << n << " rank " << r << ", batch " << batch);
          const placed<T, TestType> pu(be, u, order_u, 1);
          const placed<T, TestType> pv(be, v, order_u, 2);
          const placed<T, TestType> px(be, x, order_x, 3);
          const placed<T, TestType> pb(be, b);
          placed<T, TestType> py(be, dense(m, batch, not_a_number), order_y, 4);
          ressvd::apply(be, pu.view(), pv.view(), px.view(), py.target());
          CHECK(error_in_bounds(py.values(be), u * (v * x), bound) <= 1);
          CHECK(py.surroundings_unchanged(be));

          ressvd::apply(be, pu.view(), pv.view(), px.view(), py.target(), pb.view());
          CHECK(error_in_bounds(py.values(be), u * (v * x) + bias_of_all, bound) <= 1);
          CHECK(py.surroundings_unchanged(be));
          CHECK(px.unchanged(be));
          CHECK(pu.unchanged(be));
          CHECK(pv.unchanged(be));
          CHECK(pb.unchanged(be));
        }
      }
    }
    const auto pair = make_pair(be, u, v);
    const placed<T, TestType> px(be, x);
    placed<T, TestType> py(be, dense(m, batch, not_a_number));
    ressvd::apply(be, pair, px.view(), py.target());
    CHECK(error_in_bounds(py.values(be), u * (v * x), bound) <= 1);
  }
}

TEMPLATE_LIST_TEST_CASE("apply takes factors, inputs and outputs of any storage", "[low_rank]",
                        test_backends) {
  using namespace low_rank_suite;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    INFO(storage_name<U>());
    const dense u = rounded<U>(random_normal(7, 3, 1));
    const dense v = rounded<U>(random_normal(3, 9, 2));
    const dense x = rounded<U>(random_normal(9, 5, 3));
    const dense b = rounded<U>(random_normal(7, 1, 4));
    const dense exact = u * (v * x) + b * dense(1, 5, 1.0);
    const dense magnitude =
        absolute(u) * (absolute(v) * absolute(x)) + absolute(b * dense(1, 5, 1.0));
    // Sums of at most 9 + 3 terms of rounded inputs in the backend's scalar, and one rounding to
    // the storage type.
    const double stored = sizeof(U) == 2 ? 0x1p-7 : std::numeric_limits<float>::epsilon();
    const dense bound = (20 * eps<TestType> + stored) * magnitude;
    const placed<U, TestType> pu(be, u);
    const placed<U, TestType> pv(be, v, layout::row_major, 2);
    const placed<U, TestType> px(be, x, layout::row_major, 1);
    const placed<U, TestType> pb(be, b);
    placed<U, TestType> py(be, dense(7, 5), layout::row_major, 3);
    ressvd::apply(be, pu.view(), pv.view(), px.view(), py.target(), pb.view());
    CHECK(error_in_bounds(py.values(be), exact, bound) <= 1);
    CHECK(py.surroundings_unchanged(be));
    CHECK(px.unchanged(be));
  });
}

TEMPLATE_LIST_TEST_CASE("export_to writes factors in any layout and storage, and checks",
                        "[low_rank]", test_backends) {
  using namespace low_rank_suite;
  auto be = make_backend<TestType>();
  const dense u = random_normal(6, 2, 5);
  const dense v = random_normal(2, 4, 6);
  const auto pair = make_pair(be, u, v);
  const auto held = values_of(be, pair);
  for_each_storage([&]<class U>(U) {
    for (const layout order : {layout::row_major, layout::col_major}) {
      INFO(storage_name<U>());
      placed<U, TestType> pu(be, dense(6, 2), order, 1);
      placed<U, TestType> pv(be, dense(2, 4), order, 2);
      ressvd::export_to(be, pair, pu.target(), pv.target());
      CHECK(pu.values(be) == rounded<U>(held.u));
      CHECK(pv.values(be) == rounded<U>(held.v));
      CHECK(pu.surroundings_unchanged(be));
      CHECK(pv.surroundings_unchanged(be));
    }
  });
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<T, typename TestType::space>;
  placed<T, TestType> pu(be, dense(6, 2));
  placed<T, TestType> swapped(be, dense(4, 2));
  CHECK_THROWS_WITH(ressvd::export_to(be, pair, pu.target(), swapped.target()),
                    contains_text("v is 4 x 2, expected 2 x 4"));
  CHECK(pu.unchanged(be)); // checked before anything is written
  CHECK_THROWS_WITH(ressvd::export_to(be, pair.u, swapped.target()),
                    contains_text("out is 4 x 2, expected 6 x 2"));
  CHECK_THROWS_WITH(ressvd::export_to(be, pair.u, view{nullptr, 6, 2, 2}, "the engine's U"),
                    contains_text("the engine's U (6 x 2) has a null data pointer"));
}

TEMPLATE_LIST_TEST_CASE("apply to an empty batch does nothing", "[low_rank]", test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const auto pair = make_pair(be, random_normal(4, 2, 1), random_normal(2, 3, 2));
  const placed<T, TestType> x(be, dense(3, 0));
  placed<T, TestType> y(be, dense(4, 0));
  ressvd::apply(be, pair, x.view(), y.target());
  CHECK(y.unchanged(be));
}

TEMPLATE_LIST_TEST_CASE("apply refuses what does not fit", "[low_rank]", test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  auto be = make_backend<TestType>();
  const placed<T, TestType> u(be, random_normal(4, 2, 1));
  const placed<T, TestType> v(be, random_normal(2, 3, 2));
  const placed<T, TestType> x(be, random_normal(3, 5, 3));
  const placed<T, TestType> wrong_x(be, random_normal(4, 5, 3));
  const placed<T, TestType> bias(be, random_normal(4, 1, 3));
  placed<T, TestType> y(be, dense(4, 5));
  placed<T, TestType> wrong_y(be, dense(4, 6));
  CHECK_THROWS_WITH(ressvd::apply(be, u.view(), u.view(), x.view(), y.target()),
                    contains_text("U is 4 x 2 but V is 4 x 2"));
  CHECK_THROWS_WITH(ressvd::apply(be, u.view(), v.view(), wrong_x.view(), y.target()),
                    contains_text("x is 4 x 5, expected 3 x 5"));
  CHECK_THROWS_WITH(ressvd::apply(be, u.view(), v.view(), x.view(), wrong_y.target()),
                    contains_text("y is 4 x 6, expected 4 x 5"));
  CHECK_THROWS_WITH(
      ressvd::apply(be, u.view(), v.view(), x.view(), y.target(), bias.view().part(0, 0, 3, 1)),
      contains_text("bias is 3 x 1, expected 4 x 1"));
  CHECK_THROWS_WITH(
      ressvd::apply(be, u.view(), v.view(), x.view(), y.target(), view{nullptr, 4, 1, 1}),
      contains_text("bias (4 x 1) has a null data pointer"));
  CHECK_THROWS_WITH(ressvd::apply(be, u.view(), v.view(), view{nullptr, 3, 5, 5}, y.target()),
                    contains_text("x (3 x 5) has a null data pointer"));
  CHECK_THROWS_WITH(ressvd::apply(be, view{}, v.view(), x.view(), y.target()),
                    contains_text("U is empty"));
  CHECK(y.unchanged(be));
}

TEMPLATE_LIST_TEST_CASE("materialise writes the product in any storage and layout", "[low_rank]",
                        test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense u = rounded<T>(random_normal(13, 4, 5));
  const dense v = rounded<T>(random_normal(4, 9, 6));
  const auto pair = make_pair(be, u, v);
  CHECK(pair.rows() == 13);
  CHECK(pair.cols() == 9);
  CHECK(pair.rank() == 4);
  CHECK(pair.parameters() == 4 * (13 + 9));
  for_each_storage([&]<class U>(U) {
    for (const layout order : {layout::row_major, layout::col_major}) {
      INFO(storage_name<U>());
      placed<U, TestType> out(be, dense(13, 9, not_a_number), order, 3);
      ressvd::materialise(be, pair, out.target());
      const dense bound =
          (6 * eps<TestType>)*(absolute(u) * absolute(v)) + storage_eps<U>() * absolute(u * v);
      CHECK(error_in_bounds(out.values(be), u * v, bound) <= 1);
      CHECK(out.surroundings_unchanged(be));
    }
  });
  placed<T, TestType> wrong(be, dense(9, 13));
  CHECK_THROWS_WITH(ressvd::materialise(be, pair, wrong.target()),
                    contains_text("out is 9 x 13, expected 13 x 9"));
}

TEMPLATE_LIST_TEST_CASE("split moves the scale and keeps the product", "[low_rank]",
                        test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  using ressvd::scale_split;
  auto be = make_backend<TestType>();
  dense u = random_normal(15, 5, 7) * diagonal_matrix({1e-6, 1, 1e8, 3, 0});
  dense v = diagonal_matrix({1e3, 1, 1e-2, 0, 2}) * random_normal(5, 8, 8);
  u = rounded<T>(u);
  v = rounded<T>(v);
  for (const scale_split where : {scale_split::right, scale_split::left, scale_split::balanced}) {
    auto pair = make_pair(be, u, v);
    ressvd::split(be, pair, where);
    const pair_values after = values_of(be, pair);
    // Factors are scaled by rounded numbers and rounded again.
    CHECK(error_in_bounds(after.product(), u * v,
                          (5 * eps<TestType>)*(absolute(u) * absolute(v))) <= 1);
    // Norms of 15 and 8 rounded elements.
    const double tolerance = 8 * eps<TestType>;
    for (const index_t i : {0, 1, 2}) {
      const double left = column_norm(after.u, i);
      const double right = row_norm(after.v, i);
      if (where == scale_split::right) CHECK_THAT(left, WithinRel(1, tolerance));
      if (where == scale_split::left) CHECK_THAT(right, WithinRel(1, tolerance));
      if (where == scale_split::balanced) CHECK_THAT(left, WithinRel(right, tolerance));
    }
    CHECK(row_norm(after.v, 3) == 0);
    CHECK(column_norm(after.u, 4) == 0);
    CHECK(all_finite(after.u));
    CHECK(all_finite(after.v));
  }
}

TEMPLATE_LIST_TEST_CASE("losses equal their definition for every metric", "[low_rank]",
                        test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  using metric = ressvd::metric<typename TestType::space>;
  auto be = make_backend<TestType>();
  const dense x = activations(17, 60, 9, {.outlier_channels = 1});
  const problem<TestType> p(be, random_normal(12, 17, 10), x);
  const dense u = rounded<T>(random_normal(12, 4, 11));
  const dense v = rounded<T>(0.3 * random_normal(4, 17, 12));
  const auto pair = make_pair(be, u, v);
  const dense f = random_normal(17, 23, 13);
  const dense d = absolute(random_normal(17, 1, 14));
  const dense s = cholesky(p.g);
  const placed<double, TestType> pf(be, f);
  const placed<double, TestType> pd(be, d);
  const placed<double, TestType> ps(be, s, layout::col_major, 2);
  std::vector<double> diagonal(d.data(), d.data() + 17);
  struct example {
    metric m;
    dense factor;
  };
  const std::vector<example> examples{{metric::identity(), identity(17)},
                                      {metric::dense(pf.block()), f},
                                      {metric::diagonal(pd.block()), diagonal_matrix(diagonal)},
                                      {metric::triangular(ps.block()), s}};
  for (std::size_t i = 0; i < examples.size(); ++i) {
    INFO("metric " << i);
    const auto& [m, factor] = examples[i];
    const auto loss = ressvd::weighted_loss(be, p.placed_w.view(), pair, m);
    const double exact = loss_of(p.w, u * v, factor);
    // ‖R·F‖ with R of 4 + 1 terms and sums of 17.
    const double error = 24 * eps<TestType> *
                         (frobenius(p.w) + frobenius(absolute(u) * absolute(v))) *
                         frobenius(factor);
    CHECK_THAT(loss.absolute, WithinAbs(exact, loss_tolerance(exact, error)));
    CHECK_THAT(loss.relative, WithinRel(loss.absolute / squared_norm(p.w * factor),
                                        2 * error / frobenius(p.w * factor)));
  }
  CHECK(ressvd::weight_loss(be, p.placed_w.view(), pair).absolute ==
        ressvd::weighted_loss(be, p.placed_w.view(), pair).absolute);

  // The Gram alone gives the loss, in double.
  const auto loss = ressvd::activation_loss(be, p.placed_w.view(), pair, p.placed_g.view());
  const double exact = loss_of(p.w, u * v, x);
  CHECK_THAT(loss.absolute,
             WithinAbs(exact, 40 * double_eps * squared_norm(p.w - u * v) * frobenius(p.g)));
  CHECK_THAT(loss.relative,
             WithinRel(exact / squared_norm(p.w * x), 80 * double_eps * squared_norm(p.w) *
                                                          frobenius(p.g) / squared_norm(p.w * x)));
  CHECK(p.placed_w.unchanged(be));
  CHECK(p.placed_g.unchanged(be));
}

TEMPLATE_LIST_TEST_CASE("a small loss is not lost to cancellation", "[low_rank]", test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  // W = U·V + D with exact products of small integers and |D| far below the rounding of a
  // difference ‖W‖² − ‖U·V‖².
  dense u(6, 2);
  dense v(2, 5);
  for (index_t i = 0; i < 6; ++i)
    u(i, i % 2) = static_cast<double>(1 + i);
  for (index_t j = 0; j < 5; ++j)
    v(j % 2, j) = static_cast<double>(3 - j);
  const double step = 1024 * eps<TestType>;
  dense w = u * v;
  w(0, 0) += step;
  w(5, 1) -= step;
  const placed<T, TestType> pw(be, w);
  REQUIRE(pw.values(be) == w);
  const auto loss = ressvd::weight_loss(be, pw.view(), make_pair(be, u, v));
  CHECK(loss.absolute == 2 * step * step);
  CHECK(loss.relative == Approx(2 * step * step / squared_norm(w)));
}

TEMPLATE_LIST_TEST_CASE("losses of zero and of every storage type", "[low_rank]", test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const placed<T, TestType> zero(be, dense(4, 5));
  const auto nothing = make_pair(be, dense(4, 1), dense(1, 5));
  CHECK(ressvd::weight_loss(be, zero.view(), nothing).absolute == 0);
  CHECK(ressvd::weight_loss(be, zero.view(), nothing).relative == 0);
  for_each_storage([&]<class U>(U) {
    const dense w = rounded<U>(random_normal(4, 5, 15));
    for (const layout order : {layout::row_major, layout::col_major}) {
      const placed<U, TestType> pw(be, w, order, 2);
      const auto loss = ressvd::weight_loss(be, pw.view(), nothing);
      const dense stored = rounded<T>(w);
      CHECK_THAT(loss.absolute, WithinRel(squared_norm(stored), 40 * double_eps));
      CHECK_THAT(loss.relative, WithinRel(1, double_eps));
      CHECK(pw.unchanged(be));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("losses refuse what does not fit", "[low_rank]", test_backends) {
  using namespace low_rank_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  using metric = ressvd::metric<typename TestType::space>;
  auto be = make_backend<TestType>();
  const auto pair = make_pair(be, random_normal(4, 2, 1), random_normal(2, 5, 2));
  const placed<T, TestType> w(be, random_normal(4, 5, 3));
  const placed<T, TestType> wrong(be, random_normal(5, 4, 3));
  const placed<double, TestType> factor(be, random_normal(4, 4, 4));
  CHECK_THROWS_WITH(ressvd::weight_loss(be, wrong.view(), pair),
                    contains_text("W is 5 x 4, expected 4 x 5"));
  CHECK_THROWS_WITH(ressvd::weight_loss(be, view{nullptr, 4, 5, 5}, pair),
                    contains_text("W (4 x 5) has a null data pointer"));
  CHECK_THROWS_WITH(ressvd::weighted_loss(be, w.view(), pair, metric::dense(factor.block())),
                    contains_text("the metric's factor has 4 rows, expected 5"));
  CHECK_THROWS_WITH(ressvd::activation_loss(be, w.view(), pair, factor.view()),
                    contains_text("the Gram is 4 x 4, expected 5 x 5"));
  dense spoiled = random_normal(4, 5, 3);
  spoiled(2, 3) = not_a_number;
  const placed<T, TestType> bad(be, spoiled, layout::row_major, 2);
  CHECK_THROWS_AS(ressvd::weight_loss(be, bad.view(), pair), ressvd::nonfinite_error);
  CHECK_THROWS_AS(ressvd::activation_loss(be, bad.view(), pair,
                                          placed<double, TestType>(be, identity(5)).view()),
                  ressvd::nonfinite_error);
}
