// SPDX-License-Identifier: Apache-2.0
//
// Whitening factors: F·Fᵀ is what the report says it is, on every path.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/whitening/whitening.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/special_values.hpp"

namespace whitening_suite {

using namespace support;
using ressvd::metric_kind;
using ressvd::whitening_path;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// The factor as it may be read: the lower triangle alone where it is triangular.
template <class B>
dense factor_of(B& be, const ressvd::whitening<B>& whitening) {
  dense f = values_of(be, whitening.factor);
  if (whitening.kind == metric_kind::triangular) {
    for (index_t j = 0; j < f.cols(); ++j) {
      for (index_t i = 0; i < j; ++i)
        f(i, j) = 0;
    }
  }
  return f;
}

inline dense shifted(dense g, double delta) {
  for (index_t i = 0; i < g.rows(); ++i)
    g(i, i) += delta;
  return g;
}

/// |F·Fᵀ − G| for a Cholesky factor in double (Higham, Theorem 10.3).
inline dense cholesky_bound(const dense& f) {
  return (static_cast<double>(f.rows() + 2) * double_eps) * (absolute(f) * absolute(transpose(f)));
}
/// The same in norm for a factor made of eigenvectors.
inline double eigenvector_bound(const dense& g) {
  return 2 * householder_tolerance(g.rows(), g.rows(), double_eps) * frobenius(g);
}

} // namespace whitening_suite

TEMPLATE_LIST_TEST_CASE("a regular Gram gets its Cholesky factor", "[whitening]", test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  for (const index_t n : {1, 6, 40, 90}) {
    const dense g = gram_of(activations(n, 3 * n + 5, 1, {.outlier_channels = n / 10}));
    const placed<double, TestType> p(be, g, layout::col_major, 2);
    const auto whitening = ressvd::whiten(be, p.view());
    CHECK(whitening.report.path == whitening_path::cholesky);
    CHECK(whitening.kind == metric_kind::triangular);
    CHECK(whitening.features() == n);
    CHECK(whitening.report.damping == 0);
    CHECK(whitening.report.relative_damping == 0);
    CHECK(whitening.report.attempts == 1);
    const dense f = factor_of(be, whitening);
    CHECK(error_in_bounds(f * transpose(f), g, cholesky_bound(f)) <= 1);
    CHECK(p.unchanged(be));

    // Pivots l_ii² lie between the extreme eigenvalues.
    const auto eigenvalues = eigh(g).values;
    const double condition = eigenvalues.back() / eigenvalues.front();
    CHECK(whitening.report.condition >= 1);
    CHECK(whitening.report.condition <= condition * (1 + 1e-6));
  }
}

TEMPLATE_LIST_TEST_CASE("any storage and layout of the Gram whitens alike", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    const dense g = rounded<U>(gram_of(random_normal(8, 40, 2)) + 5 * identity(8));
    for (const layout order : {layout::row_major, layout::col_major}) {
      INFO(storage_name<U>());
      const placed<U, TestType> p(be, g, order, 3);
      const auto whitening = ressvd::whiten(be, p.view());
      const dense f = factor_of(be, whitening);
      CHECK(error_in_bounds(f * transpose(f), g, cholesky_bound(f)) <= 1);
      CHECK(p.unchanged(be));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("a singular Gram is damped by as little as helps", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const ressvd::whitening_options options;
  const std::vector<dense> inputs{
      random_normal(30, 11, 3),                                             // few tokens
      activations(30, 200, 4, {.outlier_channels = 2, .dead_channels = 3}), // zero channels
      activations(30, 200, 5, {.copied_channels = 4}),
      random_normal(30, 1, 6),
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    INFO("case " << i);
    const dense g = gram_of(inputs[i]);
    const placed<double, TestType> p(be, g);
    const auto whitening = ressvd::whiten(be, p.view(), options);
    const auto& report = whitening.report;
    if (report.path == whitening_path::cholesky) {
      // Rounding can leave copied channels positive.
      CHECK(report.damping == 0);
    } else {
      REQUIRE(report.path == whitening_path::damped_cholesky);
      CHECK(report.attempts >= 2);
      CHECK(report.relative_damping >= options.damping);
      CHECK(report.relative_damping <= options.max_damping * (1 + 1e-9));
      // Each attempt multiplies by ten.
      CHECK(report.relative_damping ==
            Approx(options.damping * std::pow(10.0, report.attempts - 2)).epsilon(1e-9));
      CHECK(report.damping == Approx(report.relative_damping * mean_diagonal(g)).epsilon(1e-12));
    }
    const dense f = factor_of(be, whitening);
    CHECK(error_in_bounds(f * transpose(f), shifted(g, report.damping), cholesky_bound(f)) <= 1);
    CHECK(all_finite(f));
  }
}

TEMPLATE_LIST_TEST_CASE("beyond the allowed damping the factor comes from eigenvalues",
                        "[whitening]", test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  struct example {
    dense x;
    index_t rank;
  };
  const std::vector<example> examples{
      {random_normal(30, 11, 7), 11},
      {activations(30, 12, 8, {.outlier_channels = 2, .dead_channels = 4}), 12},
  };
  for (std::size_t i = 0; i < examples.size(); ++i) {
    INFO("case " << i);
    const dense g = gram_of(examples[i].x);
    const placed<double, TestType> p(be, g);
    // No damping that double resolves.
    const auto whitening = ressvd::whiten(be, p.view(), {.damping = 1e-30, .max_damping = 1e-30});
    CHECK(whitening.report.path == whitening_path::eigenvalues);
    CHECK(whitening.kind == metric_kind::dense);
    CHECK(whitening.report.damping == 0);
    REQUIRE(whitening.report.rank.has_value());
    CHECK(*whitening.report.rank == examples[i].rank);
    CHECK(std::isinf(whitening.report.condition));
    CHECK(whitening.report.most_negative_eigenvalue <= 0);
    CHECK(whitening.report.most_negative_eigenvalue >= -eigenvector_bound(g));
    const dense f = factor_of(be, whitening);
    CHECK(distance(f * transpose(f), g) <= eigenvector_bound(g));
  }
}

TEMPLATE_LIST_TEST_CASE("a ridge is part of the metric and of the report", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const dense g = gram_of(random_normal(12, 5, 9));
  const placed<double, TestType> p(be, g);
  const auto whitening = ressvd::whiten(be, p.view(), {.ridge = 0.01});
  CHECK(whitening.report.path == whitening_path::cholesky);
  CHECK(whitening.report.relative_damping == Approx(0.01));
  CHECK(whitening.report.damping == Approx(0.01 * mean_diagonal(g)));
  const dense f = factor_of(be, whitening);
  CHECK(error_in_bounds(f * transpose(f), shifted(g, 0.01 * mean_diagonal(g)), cholesky_bound(f)) <=
        1);
}

TEMPLATE_LIST_TEST_CASE("a callback is told of each factorisation, and ends the call",
                        "[whitening]", test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const placed<double, TestType> singular(be, gram_of(random_normal(30, 11, 9)));
  const auto whiten = [&](ressvd::progress_callback progress) {
    return ressvd::whiten(
        be, singular.view(),
        {.damping = 1e-30, .max_damping = 1e-28, .progress = std::move(progress)});
  };
  std::vector<double> told;
  const auto watched = whiten([&](double done) {
    told.push_back(done);
    return true;
  });
  REQUIRE(watched.report.path == whitening_path::eigenvalues);
  CHECK(watched.report.attempts == 4);
  CHECK(told == std::vector<double>{0, 0.2, 0.4, 0.6, 0.8});
  for (std::size_t end = 1; end <= told.size(); ++end) {
    std::size_t calls = 0;
    CHECK_THROWS_AS(whiten([&](double) { return ++calls < end; }), ressvd::cancelled);
    CHECK(calls == end);
  }
}

TEMPLATE_LIST_TEST_CASE("a Gram of float's rounding is accepted as semidefinite", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const dense g = rounded<float>(gram_of(random_normal(30, 11, 10)));
  const double smallest = eigh(g).values.front();
  REQUIRE(smallest < 0); // the rounding did make it indefinite
  const placed<double, TestType> p(be, g);
  const auto whitening = ressvd::whiten(be, p.view(), {.damping = 1e-30, .max_damping = 1e-30});
  CHECK(whitening.report.path == whitening_path::eigenvalues);
  CHECK_THAT(whitening.report.most_negative_eigenvalue, WithinAbs(smallest, eigenvector_bound(g)));
  const dense f = factor_of(be, whitening);
  // Clamping moves G by its negative part, whose eigenvalues are at least the smallest one.
  CHECK(distance(f * transpose(f), g) <=
        std::sqrt(30.0) * std::abs(smallest) + eigenvector_bound(g));
}

TEMPLATE_LIST_TEST_CASE("a Gram of zeros gives the plain metric and says so", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const placed<double, TestType> zero(be, dense(3, 3));
  for (const auto& whitening :
       {ressvd::whiten(be, zero.view()), ressvd::whiten(be, zero.view(), {.ridge = 0.1}),
        ressvd::whiten_power(be, zero.view(), 0.5)}) {
    CHECK(whitening.report.path == whitening_path::plain);
    CHECK(whitening.report.rank == 0);
    CHECK(std::isinf(whitening.report.relative_damping));
    CHECK(factor_of(be, whitening) == identity(3));
  }
  ressvd::qr_accumulator triangle(typename TestType::template rebind<double>(be), 3, "inputs");
  CHECK_THROWS_WITH(ressvd::whiten(be, triangle), contains_text("inputs: no tokens"));
  const placed<double, TestType> zeros(be, dense(5, 3));
  triangle.add(zeros.view());
  const auto whitening = ressvd::whiten(be, triangle);
  CHECK(whitening.report.path == whitening_path::plain);
  CHECK(factor_of(be, whitening) == identity(3));
}

TEMPLATE_LIST_TEST_CASE("an asymmetric Gram is refused, one of float's rounding is not",
                        "[whitening]", test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  dense g = gram_of(random_normal(6, 30, 21));
  g(4, 1) *= 1 + 1e-7;
  const placed<double, TestType> rounded_gram(be, g);
  CHECK_NOTHROW(ressvd::whiten(be, rounded_gram.view()));
  g(4, 1) += 1;
  const placed<double, TestType> asymmetric(be, g);
  CHECK_THROWS_WITH(ressvd::whiten(be, asymmetric.view()),
                    contains_text("the Gram is not symmetric"));
  CHECK_THROWS_WITH(ressvd::whiten_power(be, asymmetric.view(), 0.5),
                    contains_text("the Gram is not symmetric"));
  // Beside an outlier channel, and with a channel that is dead.
  dense outlier(4, 4);
  outlier(0, 0) = 1e6;
  outlier(1, 1) = outlier(2, 2) = 1;
  outlier(1, 2) = 0.9;
  outlier(2, 1) = -0.9;
  const placed<double, TestType> beside(be, outlier);
  CHECK_THROWS_WITH(ressvd::whiten(be, beside.view()), contains_text("the Gram is not symmetric"));
  outlier(2, 1) = 0.9;
  const placed<double, TestType> symmetric(be, outlier);
  CHECK_NOTHROW(ressvd::whiten(be, symmetric.view()));
}

TEMPLATE_LIST_TEST_CASE("an indefinite Gram is refused with numbers", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const auto whiten = [&](const dense& g) {
    const placed<double, TestType> p(be, g);
    return ressvd::whiten(be, p.view());
  };
  const auto temper = [&](const dense& g) {
    const placed<double, TestType> p(be, g);
    return ressvd::whiten_power(be, p.view(), 0.5);
  };
  dense negative = identity(4);
  negative(2, 2) = -0.5;
  CHECK_THROWS_AS(whiten(negative), ressvd::indefinite_error);
  CHECK_THROWS_WITH(whiten(negative), contains_text("indefinite: diagonal element 2 is -0.5"));
  CHECK_THROWS_WITH(temper(negative), contains_text("indefinite: diagonal element 2 is -0.5"));

  dense large = identity(4);
  large(3, 1) = large(1, 3) = 7;
  CHECK_THROWS_AS(whiten(large), ressvd::indefinite_error);
  CHECK_THROWS_WITH(whiten(large), contains_text("magnitude 7 exceeds the largest diagonal"));

  // Eigenvalues −0.8 and 1.9 twice behind an innocent diagonal.
  dense hidden = identity(3);
  hidden(1, 0) = hidden(0, 1) = hidden(2, 1) = hidden(1, 2) = 0.9;
  hidden(2, 0) = hidden(0, 2) = -0.9;
  CHECK_THROWS_AS(whiten(hidden), ressvd::indefinite_error);
  CHECK_THROWS_WITH(whiten(hidden), contains_text("eigenvalues range from -0.8 to 1.9"));
  CHECK_THROWS_AS(temper(hidden), ressvd::indefinite_error);
}

TEMPLATE_LIST_TEST_CASE("powers of the Gram are scaled to its trace", "[whitening]",
                        test_backends) {
  using namespace whitening_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(25, 80, 11, {.outlier_channels = 2});
  const dense g = gram_of(x);
  const placed<double, TestType> p(be, g, layout::col_major, 1);
  const double mean = mean_diagonal(g);
  for (const double power : {0.0, 0.3, 0.5, 1.0}) {
    INFO("power " << power);
    const auto whitening = ressvd::whiten_power(be, p.view(), power);
    CHECK(whitening.report.path == whitening_path::power);
    CHECK(whitening.report.power == power);
    CHECK(whitening.kind == metric_kind::dense);
    const auto eigenvalues = eigh(g).values;
    CHECK(whitening.report.condition ==
          Approx(eigenvalues.back() / eigenvalues.front()).epsilon(1e-6));
    const dense expected = std::pow(mean, 1 - power) * power_of(g, power);
    const dense f = factor_of(be, whitening);
    // Powers below 1 amplify the error of small eigenvalues λ by (λ/λ_max)^(p−1) at most.
    const double amplified =
        std::pow(eigenvalues.back() / eigenvalues.front(), 1 - power) * eigenvector_bound(expected);
    CHECK(distance(f * transpose(f), expected) <= amplified);
    CHECK(p.unchanged(be));
  }
  // Zero eigenvalues stay zero for every positive power, and count fully for p = 0.
  const dense singular = gram_of(random_normal(12, 4, 12));
  const placed<double, TestType> ps(be, singular);
  const auto half_power = ressvd::whiten_power(be, ps.view(), 0.5);
  CHECK(*half_power.report.rank == 4);
  CHECK(all_finite(factor_of(be, half_power)));
  const auto zeroth = ressvd::whiten_power(be, ps.view(), 0.0);
  const dense f = factor_of(be, zeroth);
  const dense plain = mean_diagonal(singular) * identity(12);
  CHECK(distance(f * transpose(f), plain) <= eigenvector_bound(plain));
}

TEMPLATE_LIST_TEST_CASE("the QR road gives a lower triangular factor of the same Gram",
                        "[whitening]", test_backends) {
  using namespace whitening_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  for (const index_t tokens : {5, 20, 90}) {
    const dense x = activations(20, tokens, 13, {.outlier_channels = 2, .dead_channels = 1});
    const placed<double, TestType> p(be, x);
    ressvd::qr_accumulator<wide> accumulator(wide(be), 20);
    accumulator.add(p.view(), ressvd::token_order::features_by_tokens);
    const auto whitening = ressvd::whiten(be, accumulator);
    CHECK(whitening.report.path == whitening_path::qr);
    CHECK(whitening.kind == metric_kind::triangular);
    CHECK(whitening.report.damping == 0);
    CHECK(whitening.report.condition >= 1);
    const dense f = values_of(be, whitening.factor);
    for (index_t j = 0; j < 20; ++j) {
      for (index_t i = 0; i < j; ++i)
        CHECK(f(i, j) == 0);
    }
    const double tolerance =
        2 * std::sqrt(6.0) * householder_tolerance(40, 20, double_eps) * squared_norm(x);
    CHECK(distance(f * transpose(f), gram_of(x)) <= tolerance);
    // The accumulator goes on, the factor stays.
    accumulator.add(p.view(), ressvd::token_order::features_by_tokens);
    CHECK(values_of(be, whitening.factor) == f);
  }
}

TEMPLATE_LIST_TEST_CASE("wrong calls of whitening are refused", "[whitening]", test_backends) {
  using namespace whitening_suite;
  using view = ressvd::matrix_view<const double, typename TestType::space>;
  auto be = make_backend<TestType>();
  const placed<double, TestType> good(be, identity(4));
  const placed<double, TestType> wide_gram(be, dense(3, 4, 1.0));
  CHECK_THROWS_WITH(ressvd::whiten(be, wide_gram.view()),
                    contains_text("the Gram is 3 x 4, expected a square matrix"));
  CHECK_THROWS_WITH(ressvd::whiten(be, view{}), contains_text("the Gram is empty (0 x 0)"));
  CHECK_THROWS_WITH(ressvd::whiten(be, view{nullptr, 4, 4, 4}),
                    contains_text("the Gram (4 x 4) has a null data pointer"));
  view narrow = good.view();
  narrow.ld = 3;
  CHECK_THROWS_WITH(ressvd::whiten(be, narrow), contains_text("leading dimension 3, less than 4"));
  CHECK_THROWS_WITH(ressvd::whiten_power(be, wide_gram.view(), 0.5), contains_text("3 x 4"));

  dense spoiled = identity(4);
  spoiled(2, 1) = spoiled(1, 2) = not_a_number;
  const placed<double, TestType> bad(be, spoiled);
  CHECK_THROWS_AS(ressvd::whiten(be, bad.view()), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(ressvd::whiten(be, bad.view()), contains_text("the Gram (4 x 4) has "));
  CHECK_THROWS_AS(ressvd::whiten_power(be, bad.view(), 0.5), ressvd::nonfinite_error);

  for (const double power : {-0.1, 1.1, not_a_number}) {
    CHECK_THROWS_WITH(ressvd::whiten_power(be, good.view(), power),
                      contains_text("is outside [0, 1]"));
  }
  CHECK_THROWS_WITH(ressvd::whiten(be, good.view(), {.damping = 0}),
                    contains_text("whitening damping 0"));
  CHECK_THROWS_WITH(ressvd::whiten(be, good.view(), {.damping = 1e-3, .max_damping = 1e-6}),
                    contains_text("0.001 to 1e-06"));
  CHECK_THROWS_WITH(ressvd::whiten(be, good.view(), {.ridge = -1}), contains_text("ridge -1"));
  CHECK_THROWS_WITH(ressvd::whiten(be, good.view(), {.ridge = infinity}),
                    contains_text("ridge inf"));
  CHECK_THROWS_WITH(ressvd::whiten(be, good.view(), {.max_damping = infinity}),
                    contains_text("to inf"));
  const placed<double, TestType> large(be, 1e200 * identity(4));
  CHECK_THROWS_WITH(ressvd::whiten(be, large.view(), {.ridge = 1e200}),
                    contains_text("overflow on a Gram of mean diagonal 1e+200"));
  CHECK_THROWS_AS(ressvd::whiten(be, good.view(), {.damping = not_a_number}),
                  std::invalid_argument);
}
