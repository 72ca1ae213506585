// SPDX-License-Identifier: Apache-2.0
//
// Closed-form updates from Grams against least squares on the activations themselves.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ressvd/residual/closed_form_update.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/whitening/whitening.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"

namespace update_suite {

using namespace support;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// The minimiser of ‖T − U·Z‖_F of smallest norm, T·Z⁺.
inline dense least_squares(const dense& target, const dense& z) {
  return target * pseudo_inverse(z);
}

/// ‖Z‖·‖Z⁺‖ of what is not zero to rounding.
inline double condition_of(const dense& z) {
  return spectral_norm(z) * spectral_norm(pseudo_inverse(z));
}

/// Relative error of a solution by normal equations in double, stored in the scalar: the condition
/// number squared times the rounding of sums of `terms` products, and one rounding.
template <class B>
double normal_equations_error(const dense& z, index_t terms) {
  const double condition = condition_of(z);
  return 4 * static_cast<double>(terms) * double_eps * condition * condition + eps<B>;
}

} // namespace update_suite

TEMPLATE_LIST_TEST_CASE("the left update solves the least-squares problem on X'", "[update]",
                        test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    INFO(storage_name<U>());
    const dense w = rounded<U>(random_normal(9, 14, 1));
    const dense v = rounded<T>(random_normal(4, 14, 2));
    const dense u = rounded<T>(random_normal(9, 4, 3));
    const dense x = activations(14, 70, 4, {.outlier_channels = 1});
    const dense shifted = x + 0.1 * random_normal(14, 70, 5);
    const dense z = v * shifted;
    const placed<U, TestType> pw(be, w, layout::row_major, 3);
    const placed<double, TestType> gram(be, shifted * transpose(shifted), layout::col_major, 1);
    const placed<double, TestType> cross(be, x * transpose(shifted), layout::col_major, 2);
    const double error = normal_equations_error<TestType>(z, 70 + 14 + 14);

    auto pair = make_pair(be, u, v);
    CHECK(ressvd::update_left(be, pw.view(), pair, gram.block()) == 4);
    const dense own = least_squares(w * shifted, z);
    CHECK(distance(values_of(be, pair.u), own) <=
          error * frobenius(w * shifted) * spectral_norm(pseudo_inverse(z)));
    CHECK(values_of(be, pair.v) == v);

    auto towards_original = make_pair(be, u, v);
    CHECK(ressvd::update_left(be, pw.view(), towards_original, gram.block(), cross.block()) == 4);
    const dense original = least_squares(w * x, z);
    CHECK(distance(values_of(be, towards_original.u), original) <=
          error * frobenius(w * x) * spectral_norm(pseudo_inverse(z)));
    // The two targets differ by more than the tolerance.
    CHECK(distance(own, original) >
          2 * error * frobenius(w * x) * spectral_norm(pseudo_inverse(z)));
    CHECK(pw.unchanged(be));
    CHECK(gram.unchanged(be));
    CHECK(cross.unchanged(be));
  });
}

TEMPLATE_LIST_TEST_CASE("the original inputs may have other features than the shifted ones",
                        "[update]", test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  // W acts on 11 original features, the pair on 14.
  const dense w = rounded<T>(random_normal(9, 11, 6));
  const dense v = rounded<T>(random_normal(4, 14, 7));
  const dense x = random_normal(11, 60, 8);
  const dense shifted = random_normal(14, 60, 9);
  const dense z = v * shifted;
  const placed<T, TestType> pw(be, w);
  const placed<double, TestType> gram(be, shifted * transpose(shifted));
  const placed<double, TestType> cross(be, x * transpose(shifted));
  auto pair = make_pair(be, dense(9, 4), v);
  ressvd::update_left(be, pw.view(), pair, gram.block(), cross.block());
  CHECK(distance(values_of(be, pair.u), least_squares(w * x, z)) <=
        normal_equations_error<TestType>(z, 60 + 14 + 14) * frobenius(w * x) *
            spectral_norm(pseudo_inverse(z)));
}

TEMPLATE_LIST_TEST_CASE("singular updates take the least-squares solution of smallest norm",
                        "[update]", test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense w = rounded<T>(random_normal(9, 14, 10));
  const placed<T, TestType> pw(be, w);
  dense repeated = random_normal(4, 14, 11);
  for (index_t j = 0; j < 14; ++j)
    repeated(2, j) = repeated(0, j);
  dense holed = random_normal(4, 14, 12);
  for (index_t j = 0; j < 14; ++j)
    holed(1, j) = 0;
  struct example {
    dense v, x;
    index_t rank;
  };
  const std::vector<example> examples{{repeated, random_normal(14, 50, 13), 3},
                                      {holed, random_normal(14, 50, 14), 3},
                                      {random_normal(4, 14, 15), random_normal(14, 2, 16), 2},
                                      {random_normal(4, 14, 17), dense(14, 3), 0}};
  for (std::size_t i = 0; i < examples.size(); ++i) {
    INFO("case " << i);
    const dense v = rounded<T>(examples[i].v);
    const dense& x = examples[i].x;
    const dense z = v * x;
    const placed<double, TestType> gram(be, x * transpose(x));
    auto pair = make_pair(be, random_normal(9, 4, 18), v);
    CHECK(ressvd::update_left(be, pw.view(), pair, gram.block()) == examples[i].rank);
    const dense u = values_of(be, pair.u);
    CHECK(all_finite(u));
    const dense expected = examples[i].rank == 0 ? dense(9, 4) : least_squares(w * x, z);
    const double scale =
        examples[i].rank == 0 ? 1 : frobenius(w * x) * spectral_norm(pseudo_inverse(z));
    const double error =
        examples[i].rank == 0 ? 0 : normal_equations_error<TestType>(z, 50 + 14 + 14);
    CHECK(distance(u, expected) <= error * scale);
  }
}

TEMPLATE_LIST_TEST_CASE("the right update is the pseudo-inverse of U times W", "[update]",
                        test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense w = rounded<T>(random_normal(13, 8, 19));
  const placed<T, TestType> pw(be, w, layout::row_major, 2);
  dense repeated = random_normal(13, 4, 20);
  for (index_t i = 0; i < 13; ++i)
    repeated(i, 3) = repeated(i, 1);
  struct example {
    dense u;
    index_t rank;
  };
  const std::vector<example> examples{{random_normal(13, 4, 21), 4},
                                      {random_orthonormal(13, 4, 22), 4},
                                      {with_spectrum(13, 4, {10, 1, 0.1, 0.01}, 23), 4},
                                      {repeated, 3}};
  for (std::size_t i = 0; i < examples.size(); ++i) {
    INFO("case " << i);
    const dense u = rounded<T>(examples[i].u);
    auto pair = make_pair(be, u, random_normal(4, 8, 24));
    CHECK(ressvd::update_right(be, pw.view(), pair) == examples[i].rank);
    CHECK(distance(values_of(be, pair.v), pseudo_inverse(u) * w) <=
          normal_equations_error<TestType>(u, 2 * 13) * frobenius(w) *
              spectral_norm(pseudo_inverse(u)));
    CHECK(values_of(be, pair.u) == u);
    CHECK(pw.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("no update raises the loss it minimises", "[update]", test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense x = activations(16, 80, 25, {.outlier_channels = 2, .dead_channels = 1});
  const problem<TestType> p(be, random_normal(12, 16, 26), x);
  auto pair =
      make_pair(be, rounded<T>(random_normal(12, 5, 27)), rounded<T>(random_normal(5, 16, 28)));
  double before = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 6; ++i) {
    if (i % 2 == 0) {
      ressvd::update_left(be, p.placed_w.view(), pair, p.placed_g.block());
    } else {
      ressvd::update_right(be, p.placed_w.view(), pair);
    }
    const auto values = values_of(be, pair);
    const double loss = loss_of(p.w, values.product(), x);
    const double error =
        spectral_norm(x) * (storage_error(values, eps<TestType>) + eps<TestType> * frobenius(p.w));
    CHECK(loss <= before + loss_tolerance(loss, error));
    before = loss;
  }
}

TEMPLATE_LIST_TEST_CASE("shifted weights solve the least-squares problem on X' with its ridge",
                        "[update]", test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    INFO(storage_name<U>());
    const dense w = rounded<U>(random_normal(9, 14, 33));
    const dense x = activations(14, 70, 34, {.outlier_channels = 1});
    const dense shifted = x + 0.1 * random_normal(14, 70, 35);
    const dense g = shifted * transpose(shifted);
    const placed<U, TestType> pw(be, w, layout::row_major, 3);
    const placed<double, TestType> gram(be, g, layout::col_major, 1);
    const placed<double, TestType> cross(be, x * transpose(shifted), layout::col_major, 2);
    for (const double ridge : {0.0, 0.01, 1.0}) {
      INFO("ridge " << ridge);
      // λ‖W − W'‖² is the loss on √λ·I as further inputs of both models.
      const double root = std::sqrt(ridge * trace(g) / 14);
      const dense z = ridge > 0 ? join_cols(shifted, root * identity(14)) : shifted;
      const dense target = ridge > 0 ? join_cols(w * x, root * w) : w * x;
      const double scale = frobenius(target) * spectral_norm(pseudo_inverse(z));
      const double error = normal_equations_error<TestType>(z, 84 + 14 + 14) * scale;
      const dense fitted =
          values_of(be, ressvd::shifted_weights(be, pw.view(), gram.block(), cross.block(), ridge));
      CHECK(distance(fitted, least_squares(target, z)) <= error);
      CHECK(distance(fitted, w) > 2 * error);
      // Without another target W itself fits best.
      CHECK(distance(values_of(be, ressvd::shifted_weights(be, pw.view(), gram.block(), {}, ridge)),
                     w) <= error);
    }
    CHECK(pw.unchanged(be));
    CHECK(gram.unchanged(be));
    CHECK(cross.unchanged(be));
  });
  const dense w = rounded<T>(random_normal(9, 11, 36));
  const dense x = random_normal(11, 60, 37);
  const dense shifted = random_normal(14, 60, 38);
  const placed<T, TestType> pw(be, w);
  const placed<double, TestType> gram(be, shifted * transpose(shifted));
  const placed<double, TestType> cross(be, x * transpose(shifted));
  CHECK(distance(
            values_of(be, ressvd::shifted_weights(be, pw.view(), gram.block(), cross.block(), 0)),
            least_squares(w * x, shifted)) <=
        normal_equations_error<TestType>(shifted, 60 + 14 + 14) * frobenius(w * x) *
            spectral_norm(pseudo_inverse(shifted)));
  CHECK_THROWS_WITH(ressvd::shifted_weights(be, pw.view(), gram.block(), cross.block(), 0.1),
                    contains_text("needs original inputs of 14 features, not 11"));
  CHECK_THROWS_WITH(ressvd::shifted_weights(be, pw.view(), gram.block(), cross.block(), -1),
                    contains_text("ridge -1 is outside [0, inf)"));
}

TEMPLATE_LIST_TEST_CASE("truncated shifted weights beat the truncated W on shifted inputs",
                        "[update]", test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense w = rounded<T>(random_normal(12, 16, 39));
  const dense x = activations(16, 90, 40);
  const dense shifted = x + 0.3 * random_normal(16, 90, 41);
  const placed<T, TestType> pw(be, w);
  const placed<double, TestType> gram(be, shifted * transpose(shifted));
  const placed<double, TestType> cross(be, x * transpose(shifted));
  const auto fitted = ressvd::shifted_weights(be, pw.view(), gram.block(), cross.block(), 0);
  const auto metric = ressvd::whiten(be, gram.view());
  const auto truncated = [&](auto view, index_t rank) {
    const auto basis = ressvd::truncated_svd(be, view, {}, metric.metric(), rank);
    return values_of(be, ressvd::slice(be, view, basis, rank)).product();
  };
  // ‖WX − ŴX'‖² = ‖WX − W'X'‖² + ‖(W' − Ŵ)X'‖², so the best Ŵ truncates W'.
  const double unfittable = squared_norm(w * x - values_of(be, fitted) * shifted);
  for (const index_t rank : {1, 4, 9}) {
    INFO("rank " << rank);
    const double best = squared_norm(w * x - truncated(fitted.view(), rank) * shifted);
    const auto tail = sum_of_squares_from(svd(values_of(be, fitted) * shifted).s, rank);
    // W' and the factors are stored in the scalar; the loss is a good part of ‖WX‖², so a few
    // eps of that are as many of the loss.
    CHECK_THAT(best, WithinRel(unfittable + tail, 100 * eps<TestType>));
    CHECK(best < squared_norm(w * x - truncated(pw.view(), rank) * shifted));
  }
}

TEMPLATE_LIST_TEST_CASE("wrong calls of the updates are refused", "[update]", test_backends) {
  using namespace update_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  auto be = make_backend<TestType>();
  const placed<T, TestType> w(be, random_normal(6, 8, 29));
  const placed<T, TestType> wrong(be, random_normal(7, 8, 30));
  const placed<double, TestType> gram(be, identity(8));
  const placed<double, TestType> small(be, identity(7));
  auto pair = make_pair(be, random_normal(6, 2, 31), random_normal(2, 8, 32));
  const dense before = values_of(be, pair).product();
  CHECK_THROWS_WITH(ressvd::update_left(be, w.view(), pair, small.block()),
                    contains_text("the shifted Gram is 7 x 7, expected 8 x 8"));
  CHECK_THROWS_WITH(ressvd::update_left(be, w.view(), pair, gram.block(), small.block()),
                    contains_text("the cross-Gram is 7 x 7, expected 8 x 8"));
  CHECK_THROWS_WITH(ressvd::update_left(be, w.view(), pair, {nullptr, 8, 8, 8}),
                    contains_text("the shifted Gram (8 x 8) has a null data pointer"));
  CHECK_THROWS_WITH(ressvd::update_left(be, w.view(), pair, gram.block(), {nullptr, 8, 8, 8}),
                    contains_text("the cross-Gram (8 x 8) has a null data pointer"));
  auto narrow = gram.block();
  narrow.ld = 5;
  CHECK_THROWS_WITH(ressvd::update_left(be, w.view(), pair, narrow),
                    contains_text("leading dimension 5, less than 8"));
  CHECK_THROWS_WITH(ressvd::update_left(be, wrong.view(), pair, gram.block()),
                    contains_text("W is 7 x 8, expected 6 x 8"));
  CHECK_THROWS_WITH(ressvd::update_right(be, wrong.view(), pair),
                    contains_text("W is 7 x 8, expected 6 x 8"));
  CHECK_THROWS_WITH(ressvd::update_right(be, view{}, pair), contains_text("W is empty"));

  dense spoiled = identity(8);
  spoiled(3, 3) = std::numeric_limits<double>::quiet_NaN();
  const placed<double, TestType> bad_gram(be, spoiled);
  const placed<T, TestType> bad_w(be, dense(6, 8, std::numeric_limits<double>::infinity()));
  CHECK_THROWS_AS(ressvd::update_left(be, w.view(), pair, bad_gram.block()),
                  ressvd::nonfinite_error);
  CHECK_THROWS_AS(ressvd::update_left(be, w.view(), pair, gram.block(), bad_gram.block()),
                  ressvd::nonfinite_error);
  CHECK_THROWS_AS(ressvd::update_left(be, bad_w.view(), pair, gram.block()),
                  ressvd::nonfinite_error);
  CHECK_THROWS_AS(ressvd::update_right(be, bad_w.view(), pair), ressvd::nonfinite_error);
  CHECK(values_of(be, pair).product() == before);
}
