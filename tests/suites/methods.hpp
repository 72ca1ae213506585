// SPDX-License-Identifier: Apache-2.0
//
// Every method against its paper's formula, computed naively in double with explicit inverses.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/algorithms.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"

namespace methods_suite {

using namespace support;
using ressvd::method_target;
using ressvd::svd_algorithm;
namespace methods = ressvd::methods;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();
inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// One layer with all the statistics that any method reads.
template <class B, class U = typename B::scalar>
struct layer {
  problem<B, U> p;
  dense shifted; ///< X', the inputs behind a compressed prefix
  dense mean_abs;
  dense fisher;
  placed<double, B> placed_shifted;
  placed<double, B> placed_cross;
  placed<double, B> placed_mean;
  placed<double, B> placed_importance;
  ressvd::whitening<B> whitening;

  layer(B& be, index_t m, index_t n, std::uint64_t seed, const dense& x)
      : p(be, random_normal(m, n, seed), x),
        shifted(x + 0.1 * random_normal(n, x.cols(), seed + 1)),
        mean_abs((1.0 / static_cast<double>(x.cols())) * (absolute(x) * dense(x.cols(), 1, 1.0))),
        fisher(squares(random_normal(m, n, seed + 2))),
        placed_shifted(be, shifted * transpose(shifted)),
        placed_cross(be, x * transpose(shifted)),
        placed_mean(be, mean_abs),
        placed_importance(be, fisher * dense(n, 1, 1.0)),
        whitening(ressvd::whiten(be, p.placed_g.view())) {}

  auto w() const { return p.placed_w.view(); }
  ressvd::calibration<B> everything() const {
    return {.whitening = &whitening,
            .gram = p.placed_g.block(),
            .mean_abs = placed_mean.block(),
            .row_importance = placed_importance.block(),
            .shifted_gram = placed_shifted.block(),
            .cross_gram = placed_cross.block()};
  }
  bool unchanged(B& be) const {
    return p.placed_w.unchanged(be) && p.placed_g.unchanged(be) && placed_shifted.unchanged(be) &&
           placed_cross.unchanged(be) && placed_mean.unchanged(be) &&
           placed_importance.unchanged(be);
  }

 private:
  static dense squares(dense a) {
    for (index_t j = 0; j < a.cols(); ++j) {
      for (index_t i = 0; i < a.rows(); ++i)
        a(i, j) *= a(i, j);
    }
    return a;
  }
};

/// Sizes on which every method is compared, and activations without an ill-conditioned inverse.
struct size {
  index_t m, n, rank;
};
inline const std::vector<size> sizes{{12, 17, 5}, {17, 12, 5}, {14, 14, 7}, {10, 30, 10}};
inline dense mild_activations(index_t n, std::uint64_t seed) {
  return activations(n, 5 * n, seed, {.condition = 3});
}

inline dense diagonal_of(const dense& column, const std::function<double(double)>& f) {
  std::vector<double> values;
  for (index_t i = 0; i < column.rows(); ++i)
    values.push_back(f(column(i, 0)));
  return diagonal_matrix(values);
}

/// ‖S‖·‖S⁻¹‖.
inline double condition_of(const dense& s) {
  return spectral_norm(s) * spectral_norm(inverse(s));
}

/// A naive result and what rounding may change of it.
struct expectation {
  dense result;
  double tolerance = 0;
};

/// SVD_r(W·S)·S⁻¹.
inline expectation whitened_truncation(const dense& w, const dense& s, index_t rank,
                                       double epsilon) {
  return {best_of_rank(w * s, rank) * inverse(s),
          truncation_change(w, w * s, rank, epsilon) +
              10 * double_eps * condition_of(s) * frobenius(w)};
}

/// U·V with U = W·C·Vᵀ·(V·G'·Vᵀ)⁻¹ for the row space of `pair`, an oblique projection of W whose
/// norm is at most that of the condition number of a factor of G'. When the row space turns by
/// change/σ_r, so does the projection, times its norm and twice (once on either side).
inline expectation updated(const dense& w, const expectation& pair, index_t rank,
                           const dense& shifted_gram, const dense& cross, double epsilon) {
  const svd_parts parts = svd(pair.result);
  const dense v = transpose(left_cols(parts.v, rank));
  const dense vgv = v * shifted_gram * transpose(v);
  const dense u = w * cross * transpose(v) * inverse(vgv);
  const double oblique = condition_of(cholesky(shifted_gram));
  const double turned = pair.tolerance / parts.s[static_cast<std::size_t>(rank - 1)];
  const double rounding = 4 * static_cast<double>(w.rows() + w.cols()) * epsilon;
  return {u * v, (2 * turned + rounding) * oblique * oblique * frobenius(w)};
}

template <class B>
void check_report(B& be, const layer<B>& l, const ressvd::compressed_matrix<B>& result,
                  index_t rank, const dense& x) {
  const auto& report = result.report;
  const auto pair = values_of(be, result.factors);
  const index_t m = l.p.w.rows();
  const index_t n = l.p.w.cols();
  CHECK(report.rows == m);
  CHECK(report.cols == n);
  CHECK(report.rank == rank);
  CHECK(result.factors.rank() == rank);
  CHECK(report.compression_ratio ==
        Approx(1 - static_cast<double>(rank * (m + n)) / static_cast<double>(m * n)));
  CHECK(report.seconds >= 0);
  CHECK(report.seconds < 600);

  const double size = frobenius(l.p.w) + frobenius(absolute(pair.u) * absolute(pair.v));
  const double error = 4 * static_cast<double>(rank + n) * eps<B> * size;
  const double weight = squared_norm(l.p.w - pair.product());
  CHECK_THAT(report.weight_loss.absolute, WithinAbs(weight, loss_tolerance(weight, error)));
  CHECK_THAT(report.weight_loss.relative,
             WithinAbs(report.weight_loss.absolute / squared_norm(l.p.w), 8 * eps<B>));
  REQUIRE(report.activation_loss.has_value());
  const double active = loss_of(l.p.w, pair.product(), x);
  const double tolerance = loss_tolerance(active, error * spectral_norm(x));
  CHECK_THAT(report.activation_loss->absolute, WithinAbs(active, tolerance));
  CHECK_THAT(report.activation_loss->relative,
             WithinAbs(active / squared_norm(l.p.w * x),
                       2 * tolerance / squared_norm(l.p.w * x) + 8 * eps<B>));
}

} // namespace methods_suite

TEMPLATE_LIST_TEST_CASE("SVD is the best approximation of W", "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    const dense x = mild_activations(n, 1);
    const layer<TestType> l(be, m, n, 2, x);
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      INFO(m << " x " << n << ", " << name_of(algorithm));
      const auto result = methods::svd(be, l.w(), l.everything(),
                                       {.target = {.rank = rank}, .algorithm = algorithm});
      CHECK(distance(values_of(be, result.factors).product(), best_of_rank(l.p.w, rank)) <=
            truncation_change(l.p.w, l.p.w, rank, eps<TestType>));
      CHECK(result.report.svd.algorithm == algorithm);
      CHECK(result.report.intermediate_rank == rank);
      check_report(be, l, result, rank, x);
    }
    CHECK(l.unchanged(be));
    // Without calibration there is no activation loss to report.
    const auto bare = methods::svd(be, l.w(), {}, {.target = {.rank = rank}});
    CHECK_FALSE(bare.report.activation_loss.has_value());
    CHECK_FALSE(bare.report.whitening.has_value());
  }
}

TEMPLATE_LIST_TEST_CASE("FWSVD is D⁻¹·SVD_r(D·W)", "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    INFO(m << " x " << n);
    const dense x = mild_activations(n, 3);
    const layer<TestType> l(be, m, n, 4, x);
    const dense d = diagonal_of(l.fisher * dense(n, 1, 1.0), [](double f) { return std::sqrt(f); });
    const auto result = methods::fwsvd(be, l.w(), l.everything(), {.target = {.rank = rank}});
    const dense expected = inverse(d) * best_of_rank(d * l.p.w, rank);
    CHECK(distance(values_of(be, result.factors).product(), expected) <=
          truncation_change(l.p.w, d * l.p.w, rank, eps<TestType>));
    check_report(be, l, result, rank, x);
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("the row importance is the row sum of the Fisher information", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for_each_storage([&]<class U>(U) {
    const dense fisher = rounded<U>(absolute(random_normal(7, 11, 5)));
    for (const layout order : {layout::row_major, layout::col_major}) {
      const placed<U, TestType> p(be, fisher, order, 2);
      const dense expected = fisher * dense(11, 1, 1.0);
      CHECK(error_in_bounds(values_of(be, methods::fisher_row_importance(be, p.view())), expected,
                            (12 * double_eps) * expected) <= 1);
    }
  });
  const placed<double, TestType> bad(be, dense(2, 3, not_a_number));
  CHECK_THROWS_WITH(methods::fisher_row_importance(be, bad.view()),
                    contains_text("the Fisher information (2 x 3) has "));
}

TEMPLATE_LIST_TEST_CASE("FWSVD takes rows of no importance", "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const problem<TestType> p(be, random_normal(9, 12, 6), dense(12, 1));
  dense importance = absolute(random_normal(9, 1, 7));
  importance(2, 0) = importance(7, 0) = 0;
  const placed<double, TestType> placed_importance(be, importance);
  const auto result =
      methods::fwsvd(be, p.placed_w.view(), {.row_importance = placed_importance.block()},
                     {.target = {.rank = 4}});
  const dense d = diagonal_of(importance, [](double f) { return std::sqrt(f); });
  const auto pair = values_of(be, result.factors);
  const double optimum = sum_of_squares_from(svd(d * p.w).s, 4);
  const double error = projection_error(transpose(p.w), d, eps<TestType>);
  CHECK_THAT(squared_norm(d * (p.w - pair.product())),
             WithinAbs(optimum, loss_tolerance(optimum, error) + gram_algorithm_loss(d * p.w, 4)));
}

TEMPLATE_LIST_TEST_CASE("ASVD is SVD_r(W·S)·S⁻¹ with S from the channel means", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    const dense x = mild_activations(n, 8);
    const layer<TestType> l(be, m, n, 9, x);
    for (const double alpha : {0.0, 0.5, 1.0}) {
      INFO(m << " x " << n << ", alpha " << alpha);
      const dense s = diagonal_of(l.mean_abs, [&](double a) { return std::pow(a, alpha) + 0.25; });
      const auto result = methods::asvd(
          be, l.w(), l.everything(), {.target = {.rank = rank}, .alpha = alpha, .epsilon = 0.25});
      const auto expected = whitened_truncation(l.p.w, s, rank, eps<TestType>);
      CHECK(distance(values_of(be, result.factors).product(), expected.result) <=
            expected.tolerance);
      check_report(be, l, result, rank, x);
    }
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("SVD-LLM is SVD_r(W·S)·S⁻¹ with the Cholesky factor of the Gram",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    const dense x = mild_activations(n, 10);
    const layer<TestType> l(be, m, n, 11, x);
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      INFO(m << " x " << n << ", " << name_of(algorithm));
      const auto result = methods::svd_llm(be, l.w(), {.whitening = &l.whitening},
                                           {.target = {.rank = rank}, .algorithm = algorithm});
      const auto expected = whitened_truncation(l.p.w, cholesky(l.p.g), rank, eps<TestType>);
      CHECK(distance(values_of(be, result.factors).product(), expected.result) <=
            expected.tolerance);
      CHECK_FALSE(result.report.update_rank.has_value());
      REQUIRE(result.report.whitening.has_value());
      CHECK(result.report.whitening->path == ressvd::whitening_path::cholesky);
      check_report(be, l, result, rank, x);
    }
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("SVD-LLM's update is the least-squares U for the shifted inputs",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    INFO(m << " x " << n);
    const dense x = mild_activations(n, 12);
    const layer<TestType> l(be, m, n, 13, x);
    const dense gram = l.shifted * transpose(l.shifted);
    const auto start = whitened_truncation(l.p.w, cholesky(l.p.g), rank, eps<TestType>);

    const auto own = methods::svd_llm(
        be, l.w(), {.whitening = &l.whitening, .shifted_gram = l.placed_shifted.block()},
        {.target = {.rank = rank}});
    const auto expected = updated(l.p.w, start, rank, gram, gram, eps<TestType>);
    CHECK(distance(values_of(be, own.factors).product(), expected.result) <= expected.tolerance);
    CHECK(own.report.update_rank == rank);
    check_report(be, l, own, rank, x);

    const auto original = methods::svd_llm(be, l.w(), l.everything(), {.target = {.rank = rank}});
    const auto towards = updated(l.p.w, start, rank, gram, x * transpose(l.shifted), eps<TestType>);
    CHECK(distance(values_of(be, original.factors).product(), towards.result) <= towards.tolerance);
    CHECK(l.unchanged(be));

    // What the update is for: outputs of the compressed prefix closer to their target.
    const auto plain = values_of(be, methods::svd_llm(be, l.w(), {.whitening = &l.whitening},
                                                      {.target = {.rank = rank}})
                                         .factors)
                           .product();
    const double before = squared_norm(l.p.w * x - plain * l.shifted);
    const double after =
        squared_norm(l.p.w * x - values_of(be, original.factors).product() * l.shifted);
    CHECK(after <=
          before + loss_tolerance(before, projection_error(l.p.w, l.shifted, eps<TestType>)));
  }
}

TEMPLATE_LIST_TEST_CASE("AdaSVD alternates both updates from the whitened truncation", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    const dense x = mild_activations(n, 14);
    const layer<TestType> l(be, m, n, 15, x);
    const dense gram = l.shifted * transpose(l.shifted);
    // U = U_r·Σ^½, V = Σ^½·V_rᵀ·S⁻¹, then K times U = W·G·Vᵀ·(V·G·Vᵀ)⁺, V = U⁺·W.
    const dense s = cholesky(l.p.g);
    const svd_parts parts = svd(l.p.w * s);
    std::vector<double> roots;
    for (index_t i = 0; i < rank; ++i) {
      roots.push_back(std::sqrt(parts.s[static_cast<std::size_t>(i)]));
    }
    dense u = left_cols(parts.u, rank) * diagonal_matrix(roots);
    dense v = diagonal_matrix(roots) * transpose(left_cols(parts.v, rank)) * inverse(s);
    expectation bound = whitened_truncation(l.p.w, s, rank, eps<TestType>);
    for (int iterations = 0; iterations <= 3; ++iterations) {
      INFO(m << " x " << n << ", " << iterations << " iterations");
      const auto result = methods::adasvd(be, l.w(), l.everything(),
                                          {.target = {.rank = rank}, .iterations = iterations});
      CHECK(distance(values_of(be, result.factors).product(), u * v) <= bound.tolerance);
      check_report(be, l, result, rank, x);
      CHECK(result.report.update_rank.has_value() == (iterations > 0));
      u = l.p.w * gram * transpose(v) * pseudo_inverse(v * gram * transpose(v));
      bound = updated(l.p.w, {u * v, bound.tolerance}, rank, gram, gram, eps<TestType>);
      v = pseudo_inverse(u) * l.p.w;
    }
    CHECK(l.unchanged(be));
    // With the calibration Gram alone the start is optimal already.
    const auto kept =
        methods::adasvd(be, l.w(), {.whitening = &l.whitening, .gram = l.p.placed_g.block()},
                        {.target = {.rank = rank}});
    const auto start = whitened_truncation(l.p.w, s, rank, eps<TestType>);
    const double optimum = sum_of_squares_from(parts.s, rank);
    CHECK_THAT(loss_of(l.p.w, values_of(be, kept.factors).product(), x),
               WithinAbs(optimum, loss_tolerance(optimum, start.tolerance * spectral_norm(x))));
  }
}

TEMPLATE_LIST_TEST_CASE("ResSVD is the explicit computation of both stages", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    const dense x = mild_activations(n, 16);
    const layer<TestType> l(be, m, n, 17, x);
    for (const index_t residual : {0, 1, 3}) {
      INFO(m << " x " << n << ", residual rank " << residual);
      const auto first =
          whitened_truncation(l.p.w, cholesky(l.p.g), rank - residual, eps<TestType>);
      const dense rest = l.p.w - first.result;
      dense expected = first.result;
      double tolerance = first.tolerance;
      if (residual > 0) {
        expected = expected + best_of_rank(rest, residual);
        const std::vector<double> sigma = svd(rest).s;
        const auto r = static_cast<std::size_t>(residual);
        const double gap = r < sigma.size() ? sigma[r - 1] - sigma[r] : sigma[r - 1];
        tolerance += truncation_change(rest, rest, residual, eps<TestType>) +
                     2 * first.tolerance / gap * frobenius(rest);
      }
      const auto result = methods::ressvd(be, l.w(), {.whitening = &l.whitening},
                                          {.target = {.rank = rank}, .residual_rank = residual});
      CHECK(distance(values_of(be, result.factors).product(), expected) <= tolerance);
      CHECK(result.report.intermediate_rank == rank - residual);
      check_report(be, l, result, rank, x);

      const auto basis = methods::svd_llm_basis(be, l.w(), {.whitening = &l.whitening}, rank);
      const auto sliced = methods::ressvd_from_basis(be, l.w(), {.whitening = &l.whitening}, basis,
                                                     rank, {.residual_rank = residual});
      CHECK(distance(values_of(be, sliced.factors).product(), expected) <= tolerance);
    }
    const auto same_metric =
        methods::ressvd(be, l.w(), {.whitening = &l.whitening},
                        {.target = {.rank = rank}, .residual_rank = 2, .whitened_residual = true});
    const double optimum = sum_of_squares_from(svd(l.p.w * x).s, rank);
    CHECK_THAT(
        loss_of(l.p.w, values_of(be, same_metric.factors).product(), x),
        WithinAbs(optimum, loss_tolerance(optimum, 2 * projection_error(l.p.w, x, eps<TestType>)) +
                               2 * gram_algorithm_loss(l.p.w * x, rank)));
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("the reported activation loss is under the Gram whatever the factor",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(18, 12, 18, {.outlier_channels = 1, .dead_channels = 1});
  const problem<TestType> p(be, random_normal(10, 18, 19), x);
  const auto check = [&](const char* name, const ressvd::whitening<TestType>& whitening,
                         bool with_gram) {
    INFO(name);
    ressvd::calibration<TestType> data{.whitening = &whitening};
    if (with_gram) data.gram = p.placed_g.block();
    const auto result = methods::svd_llm(be, p.placed_w.view(), data, {.target = {.rank = 4}});
    const auto pair = values_of(be, result.factors);
    const double exact = loss_of(p.w, pair.product(), x);
    const double delta = result.report.whitening->damping;
    const double error =
        projection_error(p.w, x, eps<TestType>) + std::sqrt(delta) * eps<TestType> * frobenius(p.w);
    // The part of the damping is subtracted from the loss in the metric.
    const double subtracted = 100 * eps<TestType> * delta * squared_norm(p.w);
    // A dense factor knows G to eps of its largest eigenvalue.
    const double factor = householder_tolerance(18, 18, double_eps) * frobenius(p.g) *
                          squared_norm(p.w - pair.product());
    REQUIRE(result.report.activation_loss.has_value());
    CHECK_THAT(result.report.activation_loss->absolute,
               WithinAbs(exact, loss_tolerance(exact, error) + subtracted + factor));
  };
  const auto view = p.placed_g.view();
  check("damped", ressvd::whiten(be, view), false);
  check("ridge", ressvd::whiten(be, view, {.ridge = 0.1}), false);
  check("eigenvalues", ressvd::whiten(be, view, {.damping = 1e-30, .max_damping = 1e-30}), false);
  check("power", ressvd::whiten_power(be, view, 0.6), true);
  const auto power = ressvd::whiten_power(be, view, 0.6);
  const auto unknown =
      methods::svd_llm(be, p.placed_w.view(), {.whitening = &power}, {.target = {.rank = 4}});
  CHECK_FALSE(unknown.report.activation_loss.has_value());
}

TEMPLATE_LIST_TEST_CASE("every method takes any storage and layout of W", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(15, 20);
  for_each_storage([&]<class U>(U) {
    INFO(storage_name<U>());
    const layer<TestType> l(be, 11, 15, 21, x);
    const dense stored = rounded<T>(rounded<U>(l.p.w));
    const method_target target{.rank = 5};
    const auto run = [&](auto w) {
      std::vector<dense> results;
      const auto keep = [&](const auto& result) {
        results.push_back(values_of(be, result.factors).product());
      };
      const auto data = l.everything();
      keep(methods::svd(be, w, data, {.target = target}));
      keep(methods::fwsvd(be, w, data, {.target = target}));
      keep(methods::asvd(be, w, data, {.target = target}));
      keep(methods::svd_llm(be, w, data, {.target = target}));
      keep(methods::adasvd(be, w, data, {.target = target}));
      keep(methods::ressvd(be, w, data, {.target = target, .beta = 0.4}));
      return results;
    };
    const placed<T, TestType> reference(be, stored);
    const auto expected = run(reference.view());
    for (const layout order : {layout::row_major, layout::col_major}) {
      const placed<U, TestType> w(be, rounded<U>(l.p.w), order, 3);
      const auto results = run(w.view());
      for (std::size_t i = 0; i < results.size(); ++i) {
        INFO("method " << i);
        // The same basis from the same matrix; products with W may add in another order, and the
        // updates magnify that by at most the condition number of the Gram, about 10.
        CHECK(distance(results[i], expected[i]) <= 10 * 26 * eps<TestType> * frobenius(stored));
      }
      CHECK(w.unchanged(be));
    }
  });
}

TEMPLATE_LIST_TEST_CASE("the same call twice gives the same bits", "[methods][long]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  auto other = make_backend<TestType>();
  const dense x = activations(40, 120, 22, {.outlier_channels = 2});
  const layer<TestType> l(be, 70, 40, 23, x);
  const method_target target{.ratio = 0.4};
  for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
    const auto run = [&](TestType& backend) {
      std::vector<pair_values> results;
      const auto data = l.everything();
      const auto keep = [&](const auto& result) {
        results.push_back(values_of(backend, result.factors));
      };
      const auto w = l.w();
      keep(methods::svd(backend, w, data, {.target = target, .algorithm = algorithm}));
      keep(methods::fwsvd(backend, w, data, {.target = target, .algorithm = algorithm}));
      keep(methods::asvd(backend, w, data, {.target = target, .algorithm = algorithm}));
      keep(methods::svd_llm(backend, w, data, {.target = target, .algorithm = algorithm}));
      keep(methods::adasvd(backend, w, data, {.target = target, .algorithm = algorithm}));
      keep(methods::ressvd(backend, w, data, {.target = target, .algorithm = algorithm}));
      return results;
    };
    const auto first = run(be);
    const auto second = run(be);
    const auto third = run(other);
    for (std::size_t i = 0; i < first.size(); ++i) {
      INFO(name_of(algorithm) << ", method " << i);
      CHECK(first[i].u == second[i].u);
      CHECK(first[i].v == second[i].v);
      CHECK(first[i].u == third[i].u);
      CHECK(first[i].v == third[i].v);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("a ratio asks for the rank that reaches it", "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(40, 24);
  const layer<TestType> l(be, 60, 40, 25, x);
  const auto rank = [&](const method_target& target) {
    const auto report = methods::svd(be, l.w(), l.everything(), {.target = target}).report;
    CHECK(report.compression_ratio ==
          Approx(1 - static_cast<double>(report.rank) * 100 / 2400).margin(1e-15));
    return report.rank;
  };
  // mn/(m+n) = 24.
  CHECK(rank({.ratio = 0.5}) == 12);
  CHECK(rank({.ratio = 0.2}) == 19);
  CHECK(rank({.ratio = 0.2, .rounding = {.multiple = 8}}) == 16);
  CHECK(rank({.ratio = 0.2, .rounding = {.multiple = 8, .towards = ressvd::rounding::nearest}}) ==
        16);
  CHECK(rank({.ratio = 0}) == 40);
}

TEMPLATE_LIST_TEST_CASE("wrong calls of the methods are refused", "[methods]", test_backends) {
  using namespace methods_suite;
  using T = typename TestType::scalar;
  using calibration = ressvd::calibration<TestType>;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(8, 26);
  const layer<TestType> l(be, 6, 8, 27, x);
  const auto everything = l.everything();
  const method_target two{.rank = 2};

  // Every method checks its target and its W alike.
  const std::vector<std::function<void(view, const calibration&, const method_target&)>> all{
      [&](view w, const calibration& c, const method_target& t) {
        methods::svd(be, w, c, {.target = t});
      },
      [&](view w, const calibration& c, const method_target& t) {
        methods::fwsvd(be, w, c, {.target = t});
      },
      [&](view w, const calibration& c, const method_target& t) {
        methods::asvd(be, w, c, {.target = t});
      },
      [&](view w, const calibration& c, const method_target& t) {
        methods::svd_llm(be, w, c, {.target = t});
      },
      [&](view w, const calibration& c, const method_target& t) {
        methods::adasvd(be, w, c, {.target = t});
      },
      [&](view w, const calibration& c, const method_target& t) {
        methods::ressvd(be, w, c, {.target = t});
      },
  };
  dense spoiled = l.p.w;
  spoiled(5, 6) = std::numeric_limits<double>::infinity();
  const placed<T, TestType> bad(be, spoiled, layout::row_major, 1);
  view short_rows = l.w();
  short_rows.ld = 7;
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO("method " << i);
    const auto& method = all[i];
    CHECK_NOTHROW(method(l.w(), everything, two));
    CHECK_THROWS_WITH(method(l.w(), everything, {}),
                      contains_text("needs a rank or a compression ratio"));
    CHECK_THROWS_WITH(method(l.w(), everything, {.rank = 2, .ratio = 0.5}),
                      contains_text("and not both"));
    for (const index_t rank : {-1, 0, 7}) {
      CHECK_THROWS_WITH(
          method(l.w(), everything, {.rank = rank}),
          contains_text("rank " + std::to_string(rank) + " of a 6 x 8 matrix is outside [1, 6]"));
    }
    for (const double ratio : {-0.1, 1.0, 1.5}) {
      CHECK_THROWS_WITH(method(l.w(), everything, {.ratio = ratio}),
                        contains_text("is outside [0, 1)"));
    }
    CHECK_THROWS_WITH(method(l.w(), everything, {.ratio = not_a_number}),
                      contains_text("compression ratio nan is outside [0, 1)"));
    CHECK_THROWS_WITH(method(l.w(), everything, {.ratio = 0.5, .rounding = {.multiple = 0}}),
                      contains_text("multiple 0"));
    CHECK_THROWS_WITH(method(view{}, everything, two), contains_text("W is empty (0 x 0)"));
    CHECK_THROWS_WITH(method(view{}, everything, {.ratio = 0.5}),
                      contains_text("W is empty (0 x 0)"));
    CHECK_THROWS_WITH(method(view{nullptr, 6, 8, 8}, everything, two),
                      contains_text("W (6 x 8) has a null data pointer"));
    CHECK_THROWS_WITH(method(short_rows, everything, two),
                      contains_text("W (6 x 8, row-major) has leading dimension 7, less than 8"));
    CHECK_THROWS_AS(method(bad.view(), everything, two), ressvd::nonfinite_error);
    CHECK_THROWS_WITH(method(bad.view(), everything, two), contains_text("W (6 x 8) has "));
  }

  // What a method needs and does not get.
  CHECK_THROWS_WITH(methods::fwsvd(be, l.w(), {}, {.target = two}),
                    contains_text("the row importance is empty"));
  CHECK_THROWS_WITH(methods::asvd(be, l.w(), {}, {.target = two}),
                    contains_text("the channel means is empty"));
  CHECK_THROWS_WITH(methods::svd_llm(be, l.w(), {}, {.target = two}),
                    contains_text("SVD-LLM needs the whitening factor"));
  CHECK_THROWS_WITH(methods::ressvd(be, l.w(), {}, {.target = two}),
                    contains_text("needs the whitening factor"));
  CHECK_THROWS_WITH(methods::adasvd(be, l.w(), {}, {.target = two}), contains_text("AdaSVD needs"));
  CHECK_THROWS_WITH(methods::adasvd(be, l.w(), {.whitening = &l.whitening}, {.target = two}),
                    contains_text("AdaSVD needs the calibration Gram or the shifted Gram"));
  CHECK_THROWS_WITH(methods::adasvd(be, l.w(), everything, {.target = two, .iterations = -1}),
                    contains_text("AdaSVD with -1 iterations"));
  CHECK_THROWS_WITH(
      methods::svd_llm(be, l.w(), {.whitening = &l.whitening, .cross_gram = l.placed_cross.block()},
                       {.target = two}),
      contains_text("a cross-Gram was given without the shifted Gram"));
  CHECK_THROWS_WITH(methods::ressvd(be, l.w(), everything, {.target = two, .beta = 1.5}),
                    contains_text("beta 1.5 is outside [0, 1)"));
  CHECK_THROWS_WITH(methods::asvd(be, l.w(), everything, {.target = two, .alpha = 2}),
                    contains_text("alpha 2 is outside [0, 1]"));

  // Statistics of another layer.
  const layer<TestType> other(be, 7, 9, 28, mild_activations(9, 29));
  CHECK_THROWS_WITH(methods::fwsvd(be, l.w(), other.everything(), {.target = two}),
                    contains_text("the row importance is 7 x 1, expected 6 x 1"));
  CHECK_THROWS_WITH(methods::asvd(be, l.w(), other.everything(), {.target = two}),
                    contains_text("the channel means is 9 x 1, expected 8 x 1"));
  CHECK_THROWS_WITH(methods::svd_llm(be, l.w(), other.everything(), {.target = two}),
                    contains_text("has 9 rows, expected 8"));
  CHECK_THROWS_WITH(
      methods::svd_llm(be, l.w(),
                       {.whitening = &l.whitening, .shifted_gram = other.placed_shifted.block()},
                       {.target = two}),
      contains_text("the shifted Gram is 9 x 9, expected 8 x 8"));

  dense importance(6, 1, 1.0);
  importance(3, 0) = -0.5;
  const placed<double, TestType> negative(be, importance);
  importance(3, 0) = not_a_number;
  const placed<double, TestType> nan(be, importance);
  CHECK_THROWS_WITH(
      methods::fwsvd(be, l.w(), {.row_importance = negative.block()}, {.target = two}),
      contains_text("the row importance has the negative value -0.5 at 3"));
  CHECK_THROWS_AS(methods::fwsvd(be, l.w(), {.row_importance = nan.block()}, {.target = two}),
                  ressvd::nonfinite_error);
  CHECK(l.unchanged(be));
}
