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
#include "support/special_values.hpp"

namespace methods_suite {

using namespace support;
using ressvd::at_rank;
using ressvd::at_ratio;
using ressvd::rank_target;
using ressvd::svd_algorithm;
namespace methods = ressvd::methods;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// One weight with all the statistics that any method reads.
template <class B, class U = typename B::scalar>
struct layer {
  problem<B, U> p;
  dense shifted; ///< X', the inputs behind a compressed prefix
  dense mean_abs;
  dense fisher;
  dense curvature;                   ///< H, m × m
  placed<double, B> placed_original; ///< tokens × features
  placed<double, B> placed_shifted;
  placed<double, B> placed_mean;
  placed<double, B> placed_importance;
  placed<double, B> placed_curvature;

  layer(B& be, index_t m, index_t n, std::uint64_t seed, const dense& x)
      : p(be, random_normal(m, n, seed), x),
        shifted(x + 0.1 * random_normal(n, x.cols(), seed + 1)),
        mean_abs((1.0 / static_cast<double>(x.cols())) * (absolute(x) * dense(x.cols(), 1, 1.0))),
        fisher(squares(random_normal(m, n, seed + 2))),
        curvature(gram_of(activations(m, 3 * m, seed + 3, {.condition = 3}))),
        placed_original(be, transpose(x)),
        placed_shifted(be, transpose(shifted)),
        placed_mean(be, mean_abs),
        placed_importance(be, fisher * dense(n, 1, 1.0)),
        placed_curvature(be, curvature) {}

  auto w() const { return p.placed_w.view(); }
  ressvd::weight<B> weight(B& be) const { return with_gradients(be, w()); }
  template <class View>
  ressvd::weight<B> with_gradients(B& be, View view) const {
    ressvd::weight<B> w(be, view);
    w.row_importance = placed_importance.block();
    w.output_curvature = placed_curvature.block();
    return w;
  }
  ressvd::calibration<B> input(B& be) const {
    return {be, p.placed_g.block(), placed_mean.block()};
  }
  ressvd::shifted_input<B> shifted_input(B& be, double original_share) const {
    ressvd::shifted_input<B> x(be, p.g.rows(), {.original_share = original_share});
    if (x.needs_original()) {
      x.observe(placed_shifted.view(), placed_original.view());
    } else {
      x.observe(placed_shifted.view());
    }
    return x;
  }
  template <class M>
  ressvd::compressed_matrix<B> compress(B& be, const M& method, const rank_target& target) const {
    return input(be).compress(weight(be), method, target);
  }
  bool unchanged(B& be) const {
    return p.placed_w.unchanged(be) && p.placed_g.unchanged(be) && placed_shifted.unchanged(be) &&
           placed_original.unchanged(be) && placed_mean.unchanged(be) &&
           placed_importance.unchanged(be) && placed_curvature.unchanged(be);
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

/// f(method) for each of the methods, with default options but for the residual stage.
template <class F>
void for_each_method(F f) {
  f(methods::svd{});
  f(methods::fwsvd{});
  f(methods::asvd{});
  f(methods::svd_llm{});
  f(methods::adasvd{});
  f(methods::ressvd{.beta = 0.4});
  f(methods::tempered{});
  f(methods::kfac_svd{});
  f(methods::kfac_svd{.beta = 0.4});
}

/// A method as a stranger would write one: a dense right metric that permutes the channels, which
/// leaves plain SVD's result as it is.
struct reversed_rows {
  static constexpr const char* name = "reversed";
  template <class B>
  ressvd::svd_basis<B> basis(B& be, const ressvd::weight<B>& w, ressvd::calibration<B>&,
                             index_t rank) const {
    const index_t n = w.cols();
    dense permutation(n, n);
    for (index_t i = 0; i < n; ++i)
      permutation(i, n - 1 - i) = 1;
    const placed<double, B> factor(be, permutation);
    return ressvd::truncated_svd(be, w, {},
                                 ressvd::metric<typename B::space>::dense(factor.block()), rank);
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
  CHECK_FALSE(result.dense());
  CHECK(report.choice.rank == rank);
  CHECK(result.factors.rank() == rank);
  CHECK(report.compression_ratio ==
        Approx(1 - static_cast<double>(rank * (m + n)) / static_cast<double>(m * n)));
  CHECK(report.seconds >= 0);
  CHECK(report.seconds < 600);

  const double size = frobenius(l.p.w) + frobenius(absolute(pair.u) * absolute(pair.v));
  const double error = 4 * static_cast<double>(rank + n) * eps<B> * size;
  // With a residual stage a loss is the difference of what the first stage left and what the second
  // one took, each good to a few eps.
  const double cancelled = report.intermediate_rank < rank ? 8 * eps<B> : 0;
  const double weight = squared_norm(l.p.w - pair.product());
  CHECK_THAT(report.weight_loss.absolute,
             WithinAbs(weight, loss_tolerance(weight, error) + cancelled * squared_norm(l.p.w)));
  CHECK_THAT(report.weight_loss.relative,
             WithinAbs(report.weight_loss.absolute / squared_norm(l.p.w), 8 * eps<B>));
  REQUIRE(report.activation_loss.has_value());
  const double active = loss_of(l.p.w, pair.product(), x);
  const double tolerance =
      loss_tolerance(active, error * spectral_norm(x)) + cancelled * squared_norm(l.p.w * x);
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
      const auto result = l.compress(be, methods::svd{{.algorithm = algorithm}}, at_rank(rank));
      CHECK(distance(values_of(be, result.factors).product(), best_of_rank(l.p.w, rank)) <=
            truncation_change(l.p.w, l.p.w, rank, eps<TestType>));
      CHECK(result.report.svd.algorithm == algorithm);
      CHECK(result.report.intermediate_rank == rank);
      check_report(be, l, result, rank, x);
    }
    CHECK(l.unchanged(be));
    // Without calibration there is no activation loss to report.
    const auto bare = ressvd::calibration(be).compress(l.w(), methods::svd{}, at_rank(rank));
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
    const auto result = l.compress(be, methods::fwsvd{}, at_rank(rank));
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
  ressvd::weight<TestType> weight(be, p.placed_w.view());
  weight.row_importance = placed_importance.block();
  const auto result =
      ressvd::calibration(be).compress(std::move(weight), methods::fwsvd{}, at_rank(4));
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
      const auto result =
          l.compress(be, methods::asvd{.alpha = alpha, .epsilon = 0.25}, at_rank(rank));
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
      const auto result = l.compress(be, methods::svd_llm{{.algorithm = algorithm}}, at_rank(rank));
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

    auto input = l.input(be);
    const auto factored = input.factor(l.w(), methods::svd_llm{}, {rank});
    const ressvd::rank_choice choice{.rank = rank};
    const auto own = l.shifted_input(be, 0).update(factored, methods::svd_llm{}, choice);
    const auto expected = updated(l.p.w, start, rank, gram, gram, eps<TestType>);
    CHECK(distance(values_of(be, own.factors).product(), expected.result) <= expected.tolerance);
    CHECK(own.report.update_rank == rank);
    check_report(be, l, own, rank, x);

    const auto original = l.shifted_input(be, 1).update(factored, methods::svd_llm{}, choice);
    const auto towards = updated(l.p.w, start, rank, gram, x * transpose(l.shifted), eps<TestType>);
    CHECK(distance(values_of(be, original.factors).product(), towards.result) <= towards.tolerance);
    CHECK(l.unchanged(be));

    // What the update is for: outputs of the compressed prefix closer to their target.
    const auto plain = values_of(be, factored.at(choice).factors).product();
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
    auto input = l.input(be);
    const auto factored = input.factor(l.w(), methods::adasvd{}, {rank});
    for (int iterations = 0; iterations <= 3; ++iterations) {
      INFO(m << " x " << n << ", " << iterations << " iterations");
      const auto result = l.shifted_input(be, 0).update(
          factored, methods::adasvd{.iterations = iterations}, {.rank = rank});
      CHECK(distance(values_of(be, result.factors).product(), u * v) <= bound.tolerance);
      check_report(be, l, result, rank, x);
      CHECK(result.report.update_rank.has_value() == (iterations > 0));
      u = l.p.w * gram * transpose(v) * pseudo_inverse(v * gram * transpose(v));
      bound = updated(l.p.w, {u * v, bound.tolerance}, rank, gram, gram, eps<TestType>);
      v = pseudo_inverse(u) * l.p.w;
    }
    CHECK(l.unchanged(be));
    // For the calibration inputs themselves the start is optimal already.
    ressvd::shifted_input<TestType> same(be, n);
    same.observe(l.placed_original.view());
    const auto kept = same.update(factored, methods::adasvd{}, {.rank = rank});
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
      const methods::ressvd method{.residual_rank = residual};
      const auto result = l.compress(be, method, at_rank(rank));
      CHECK(distance(values_of(be, result.factors).product(), expected) <= tolerance);
      CHECK(result.report.intermediate_rank == rank - residual);
      check_report(be, l, result, rank, x);
    }
    const auto same_metric = l.compress(
        be, methods::ressvd{.residual_rank = 2, .whitened_residual = true}, at_rank(rank));
    const double optimum = sum_of_squares_from(svd(l.p.w * x).s, rank);
    CHECK_THAT(
        loss_of(l.p.w, values_of(be, same_metric.factors).product(), x),
        WithinAbs(optimum, loss_tolerance(optimum, 2 * projection_error(l.p.w, x, eps<TestType>)) +
                               2 * gram_algorithm_loss(l.p.w * x, rank)));
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("KFAC-SVD is the best approximation in the metrics of both sides",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto& [m, n, rank] : sizes) {
    const dense x = mild_activations(n, 51);
    const layer<TestType> l(be, m, n, 52, x);
    const double mean = mean_diagonal(l.curvature);
    const double input_mean = mean_diagonal(l.p.g);
    for (const double p : {1.0, 0.5, 0.0}) {
      for (const double q : {1.0, 0.8}) {
        INFO(m << " x " << n << ", powers " << p << " and " << q);
        const methods::kfac_svd method{.output_power = p, .input_power = q, .ridge = 0.02};
        const auto result = l.compress(be, method, at_rank(rank));
        check_report(be, l, result, rank, x);
        const dense h =
            std::pow(mean, 1 - p) * power_of(l.curvature + 0.02 * mean * identity(m), p);
        const dense left = cholesky(h);
        const dense right = cholesky(std::pow(input_mean, 1 - q) * power_of(l.p.g, q));
        const auto sigma = svd(transpose(left) * l.p.w * right).s;
        const double optimum = sum_of_squares_from(sigma, rank);
        const auto pair = values_of(be, result.factors);
        const dense lost = transpose(left) * (l.p.w - pair.product()) * right;
        // What the factors' and A's rounding, of magnitude eps·‖A‖, changes of the residual.
        const double size = spectral_norm(left) * spectral_norm(right) *
                            (frobenius(l.p.w) + frobenius(absolute(pair.u) * absolute(pair.v)));
        const double error = 8 * static_cast<double>(m + n) * eps<TestType> * size;
        CHECK(squared_norm(lost) <= optimum + loss_tolerance(optimum, error));
        REQUIRE(result.report.truncation_loss.has_value());
        CHECK_THAT(result.report.truncation_loss->absolute,
                   WithinAbs(optimum, loss_tolerance(optimum, error)));
        CHECK(result.report.truncation_loss->relative ==
              Approx(optimum / sum_of_squares_from(sigma, 0)).epsilon(1e-3));
        // No other method does better in these metrics.
        const auto other = values_of(be, l.compress(be, methods::svd_llm{}, at_rank(rank)).factors);
        CHECK(squared_norm(lost) <=
              squared_norm(transpose(left) * (l.p.w - other.product()) * right) +
                  loss_tolerance(optimum, error));
      }
    }
    auto input = l.input(be);
    const auto spectrum = ressvd::curvature_spectrum(be, l.weight(be), input);
    const auto factored = input.factor(l.weight(be), methods::kfac_svd{}, {rank});
    REQUIRE(spectrum.size() == factored.singular_values().size());
    for (std::size_t i = 0; i < spectrum.size(); ++i)
      CHECK_THAT(spectrum[i],
                 WithinAbs(factored.singular_values()[i], 1e3 * eps<TestType> * spectrum.front()));
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("KFAC-SVD's residual stage keeps the outputs' metric", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto& [m, n, rank] : sizes) {
    INFO(m << " x " << n);
    const dense x = mild_activations(n, 151);
    const layer<TestType> l(be, m, n, 152, x);
    const methods::kfac_svd direct{.ridge = 0.02};
    methods::kfac_svd staged = direct;
    staged.beta = 2.0 * static_cast<double>(m + n) / static_cast<double>(m * n);
    const auto result = l.compress(be, staged, at_rank(rank));
    check_report(be, l, result, rank, x);
    const index_t first = result.report.intermediate_rank;
    CHECK(first == (std::max)(rank - 2, index_t{1}));
    CHECK_FALSE(result.report.truncation_loss.has_value());

    const dense left = cholesky(l.curvature + 0.02 * mean_diagonal(l.curvature) * identity(m));
    const dense right = cholesky(l.p.g);
    const auto losses = [&](const dense& approximation) {
      const dense lost = transpose(left) * (l.p.w - approximation);
      return std::pair(squared_norm(lost), squared_norm(lost * right));
    };
    const dense compressed = values_of(be, result.factors).product();
    const dense truncated = values_of(be, l.compress(be, direct, at_rank(rank)).factors).product();
    const auto pair = values_of(be, result.factors);
    const double scale =
        spectral_norm(left) * (frobenius(l.p.w) + frobenius(absolute(pair.u) * absolute(pair.v)));
    const double error = 8 * static_cast<double>(m + n) * eps<TestType> * scale;
    // Two truncations: that of the second is the best there is for what the first leaves.
    const dense image = transpose(left) * l.p.w;
    const auto parts = svd(image * right);
    const dense q = part(parts.u, 0, 0, m, first);
    const double rest =
        sum_of_squares_from(svd(image - q * (transpose(q) * image)).s, rank - first);
    const double turned = truncation_change(image, image * right, first, eps<TestType>);
    CHECK_THAT(losses(compressed).first, WithinAbs(rest, loss_tolerance(rest, error + turned)));
    // Never worse for inputs that are all alike, never better for those of the calibration.
    CHECK(losses(compressed).first <=
          losses(truncated).first + loss_tolerance(losses(truncated).first, error));
    CHECK(losses(truncated).second <=
          losses(compressed).second +
              loss_tolerance(losses(compressed).second, error * spectral_norm(right)));
    CHECK(l.unchanged(be));
  }
}

TEMPLATE_LIST_TEST_CASE("KFAC-SVD serves curvatures that are singular or say nothing", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(14, 53);
  const layer<TestType> l(be, 11, 14, 54, x);
  const auto with_curvature = [&](const placed<double, TestType>& h, double ridge) {
    auto w = l.weight(be);
    w.output_curvature = h.block();
    return l.input(be).compress(std::move(w), methods::kfac_svd{.ridge = ridge}, at_rank(4));
  };
  const double plain =
      l.compress(be, methods::svd_llm{}, at_rank(4)).report.activation_loss->absolute;
  // Equal for all outputs, or all zero: SVD-LLM's problem.
  for (const dense& h : {3.0 * identity(11), dense(11, 11)}) {
    const auto result = with_curvature(placed<double, TestType>(be, h), 0.01);
    CHECK(result.report.activation_loss->absolute == Approx(plain).epsilon(1e-3));
  }
  // Two directions of outputs count, and two ranks serve them entirely.
  const dense g = random_normal(11, 2, 55);
  const placed<double, TestType> singular(be, g * transpose(g));
  for (const double ridge : {0.0, 1e-4}) {
    const auto result = with_curvature(singular, ridge);
    const auto pair = values_of(be, result.factors);
    CHECK(all_finite(pair.u));
    CHECK(all_finite(pair.v));
    CHECK(frobenius(transpose(g) * (l.p.w - pair.product()) * x) <=
          0.05 * frobenius(transpose(g) * l.p.w * x));
  }
}

TEMPLATE_LIST_TEST_CASE("the reported activation loss is under the Gram whatever the factor",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(18, 12, 18, {.outlier_channels = 1, .dead_channels = 1});
  const problem<TestType> p(be, random_normal(10, 18, 19), x);
  const auto check = [&](const char* name, ressvd::calibration<TestType> input,
                         const auto& method) {
    INFO(name);
    const auto result = input.compress(p.placed_w.view(), method, at_rank(4));
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
  const auto with = [&](const ressvd::whitening_options& options) {
    return ressvd::calibration<TestType>(be, p.placed_g.block(), {}, options);
  };
  check("damped", with({}), methods::svd_llm{});
  check("ridge", with({.ridge = 0.1}), methods::svd_llm{});
  check("eigenvalues", with({.damping = 1e-30, .max_damping = 1e-30}), methods::svd_llm{});
  check("power", with({}), methods::tempered{.power = 0.6});
  check("factor alone",
        ressvd::calibration<TestType>(be, ressvd::whiten(be, p.placed_g.view(), {.ridge = 0.1})),
        methods::svd_llm{});
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
    const auto run = [&](auto w) {
      std::vector<dense> results;
      for_each_method([&](const auto& method) {
        const auto result = l.input(be).compress(l.with_gradients(be, w), method, at_rank(5));
        results.push_back(values_of(be, result.factors).product());
      });
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
  for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
    const auto run = [&](TestType& backend) {
      std::vector<pair_values> results;
      for_each_method([&](auto method) {
        method.options.algorithm = algorithm;
        const auto result = l.compress(backend, method, at_ratio(0.4));
        results.push_back(values_of(backend, result.factors));
      });
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
  const auto rank = [&](const rank_target& target) {
    const auto report = l.compress(be, methods::svd{}, target).report;
    CHECK(report.compression_ratio ==
          Approx(1 - static_cast<double>(report.choice.rank) * 100 / 2400).margin(1e-15));
    return report.choice.rank;
  };
  // mn/(m+n) = 24.
  CHECK(rank(at_ratio(0.5)) == 12);
  CHECK(rank(at_ratio(0.2)) == 19);
  CHECK(rank(at_ratio(0.2, {.multiple = 8})) == 16);
  CHECK(rank(at_ratio(0.2, {.multiple = 8, .towards = ressvd::rounding::nearest})) == 16);
  CHECK(rank(at_rank(24)) == 24);
}

TEMPLATE_LIST_TEST_CASE("a matrix that no rank makes smaller stays dense", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(64, 30);
  const layer<TestType> l(be, 64, 64, 31, x);
  for_each_method([&](const auto& method) {
    // 64 · 128 numbers of two factors for 64 · 64 of the matrix; and a ratio of 0.
    for (const rank_target& target : {at_ratio(0.2, {.multiple = 64}), at_ratio(0)}) {
      const auto result = l.compress(be, method, target);
      CHECK(result.dense());
      CHECK(result.factors.u.empty());
      CHECK(result.factors.v.empty());
      CHECK(result.report.choice == ressvd::keep_dense(64, 64));
      CHECK(result.report.compression_ratio == 0);
      CHECK(result.report.weight_loss.absolute == 0);
      REQUIRE(result.report.activation_loss.has_value());
      CHECK(result.report.activation_loss->absolute == 0);
    }
  });
  // Asked for by number, factors may be larger than the matrix.
  CHECK(l.compress(be, methods::svd{}, at_rank(64)).report.compression_ratio == -1);
}

TEMPLATE_LIST_TEST_CASE("a factored matrix answers for every rank what one rank alone gives",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(14, 32);
  const layer<TestType> l(be, 18, 14, 33, x);
  for_each_method([&](const auto& method) {
    INFO(method.name);
    auto input = l.input(be);
    const auto factored = input.factor(l.weight(be), method, {2, 11, 7});
    for (const index_t rank : {11, 7, 2}) {
      INFO("rank " << rank);
      const ressvd::rank_choice choice{.rank = rank};
      const auto cut = factored.at(choice);
      const auto alone = l.compress(be, method, at_rank(rank));
      CHECK(
          distance(values_of(be, cut.factors).product(), values_of(be, alone.factors).product()) <=
          1e4 * eps<TestType> * frobenius(l.p.w));
      check_report(be, l, cut, rank, x);
      CHECK(factored.weight_loss(choice).absolute == cut.report.weight_loss.absolute);
      CHECK(factored.activation_loss(choice)->absolute == cut.report.activation_loss->absolute);
    }
    CHECK(factored.at(ressvd::keep_dense(18, 14)).dense());
    CHECK(factored.at(at_ratio(0)).dense());
    CHECK_THROWS_AS(factored.at(at_rank(14)), std::invalid_argument);

    // To the host and back: the same factors, losses and spectrum.
    const auto state = factored.state();
    const auto weight = std::make_shared<const ressvd::weight<TestType>>(l.weight(be));
    const auto restored = ressvd::factored_matrix<TestType>::from_state(be, weight, state);
    CHECK(restored.singular_values() == factored.singular_values());
    for (const index_t rank : {11, 7, 2}) {
      const auto before = factored.at(at_rank(rank));
      const auto after = restored.at(at_rank(rank));
      // What follows from W is computed anew, for this rank alone.
      CHECK(distance(values_of(be, before.factors).product(),
                     values_of(be, after.factors).product()) <=
            32 * eps<TestType> * frobenius(l.p.w));
      CHECK(after.report.weight_loss.absolute == before.report.weight_loss.absolute);
      CHECK(after.report.activation_loss->absolute == before.report.activation_loss->absolute);
      CHECK(after.report.intermediate_rank == before.report.intermediate_rank);
      CHECK(state.weight_loss({.rank = rank})->absolute == before.report.weight_loss.absolute);
      CHECK(state.activation_loss({.rank = rank})->absolute ==
            before.report.activation_loss->absolute);
    }
    const auto other = std::make_shared<const ressvd::weight<TestType>>(be, l.p.placed_g.view());
    CHECK_THROWS_WITH(ressvd::factored_matrix<TestType>::from_state(be, other, state),
                      contains_text("is of a 18 x 14 matrix, W is 14 x 14"));
    auto broken = state;
    broken.q.pop_back();
    CHECK_THROWS_AS(ressvd::factored_matrix<TestType>::from_state(be, weight, broken),
                    std::invalid_argument);
  });

  // A residual stage that was not prepared is made when it is asked for.
  auto input = l.input(be);
  const methods::ressvd method{.beta = 0.4};
  const auto factored = input.factor(l.w(), method, {11});
  check_report(be, l, factored.at(at_rank(9)), 9, x);
  const auto weight = std::make_shared<const ressvd::weight<TestType>>(be, l.w());
  const auto restored = ressvd::factored_matrix<TestType>::from_state(be, weight, factored.state());
  CHECK(distance(values_of(be, restored.at(at_rank(9)).factors).product(),
                 values_of(be, factored.at(at_rank(9)).factors).product()) <=
        1e4 * eps<TestType> * frobenius(l.p.w));
  CHECK_FALSE(restored.activation_loss({.rank = 9}).has_value()); // the Gram is gone by then
  CHECK(restored.activation_loss({.rank = 11}).has_value());
}

TEMPLATE_LIST_TEST_CASE(
    "activations that are all zero leave the plain metric, and the report says so", "[methods]",
    test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const problem<TestType> p(be, random_normal(14, 10, 39), dense(10, 6));
  const placed<double, TestType> tokens(be, dense(6, 10));
  ressvd::gram_accumulator sums(be, 10);
  sums.add(tokens.view());
  ressvd::calibration input(be, std::move(sums));
  const double optimum = sum_of_squares_from(svd(p.w).s, 4);
  const auto check = [&](const auto& method) {
    const auto result = input.compress(p.placed_w.view(), method, at_rank(4));
    REQUIRE(result.report.whitening.has_value());
    CHECK(result.report.whitening->path == ressvd::whitening_path::plain);
    CHECK(result.report.activation_loss->absolute == 0);
    CHECK(result.report.activation_loss->relative == 0);
    CHECK_THAT(result.report.weight_loss.absolute,
               WithinAbs(optimum, loss_tolerance(
                                      optimum, projection_error(p.w, identity(10), eps<TestType>)) +
                                      gram_algorithm_loss(p.w, 4)));
  };
  check(methods::svd_llm{});
  check(methods::tempered{});
  check(methods::ressvd{});
}

TEMPLATE_LIST_TEST_CASE("one input serves several weights, and a stranger's method", "[methods]",
                        test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(14, 34);
  const layer<TestType> q(be, 18, 14, 35, x);
  const layer<TestType> k(be, 6, 14, 36, x);
  ressvd::gram_accumulator gram(be, 14);
  gram.add(q.placed_original.view());
  ressvd::calibration input(be, std::move(gram));
  check_report(be, q, input.compress(q.w(), methods::svd_llm{}, at_rank(5)), 5, x);
  const auto tempered = input.compress(k.w(), methods::tempered{.power = 0.5}, at_rank(3));
  check_report(be, k, tempered, 3, x);
  CHECK(tempered.report.whitening->path == ressvd::whitening_path::power);
  CHECK(tempered.report.whitening->power == 0.5);
  check_report(be, k, input.compress(k.w(), methods::asvd{}, at_rank(3)), 3, x);
  check_report(be, q, input.compress(q.w(), reversed_rows{}, at_rank(4)), 4, x);

  // Another context shares what was made, bit for bit.
  auto other = make_backend<TestType>();
  const ressvd::any_method tempering = ressvd::method_named("tempered");
  input.prepare(tempering);
  ressvd::calibration<TestType> copy(other, input);
  CHECK(&copy.whitening() == &input.whitening());
  CHECK(values_of(other, copy.compress(k.w(), tempering, at_rank(3)).factors).u ==
        values_of(be, input.compress(k.w(), tempering, at_rank(3)).factors).u);

  for (const char* name :
       {"svd", "fwsvd", "asvd", "svd-llm", "adasvd", "ressvd", "tempered", "kfac-svd"}) {
    INFO(name);
    const auto method = ressvd::method_named(name);
    CHECK(method.name() == name);
    check_report(be, q, input.compress(q.weight(be), method, at_rank(4)), 4, x);
  }
  CHECK_THROWS_WITH(ressvd::method_named("frob"),
                    contains_text("no method 'frob': the methods are svd, fwsvd"));
}

TEMPLATE_LIST_TEST_CASE("a new truncation for shifted inputs is that of W' in their metric",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  for (const auto [m, n, rank] : sizes) {
    INFO(m << " x " << n);
    const dense x = mild_activations(n, 37);
    const layer<TestType> l(be, m, n, 38, x);
    ressvd::shifted_input<TestType> shifted(be, n, {.original_share = 1, .ridge = 0});
    shifted.observe(l.placed_shifted.view(), l.placed_original.view());
    const auto result =
        shifted.truncate(ressvd::weight(be, l.w()), methods::svd_llm{}, {.rank = rank});
    // The best map of rank r from X' to W·X: no other one of that rank is nearer.
    const dense gram = l.shifted * transpose(l.shifted);
    const dense fitted = l.p.w * x * transpose(l.shifted) * inverse(gram);
    const double unreachable = squared_norm(l.p.w * x - fitted * l.shifted);
    const double optimum = unreachable + sum_of_squares_from(svd(fitted * l.shifted).s, rank);
    const double lost =
        squared_norm(l.p.w * x - values_of(be, result.factors).product() * l.shifted);
    const double error = projection_error(fitted, l.shifted, 10 * eps<TestType>);
    CHECK_THAT(lost, WithinAbs(optimum, loss_tolerance(optimum, error) +
                                            gram_algorithm_loss(fitted * l.shifted, rank)));
    const double weight = squared_norm(l.p.w - values_of(be, result.factors).product());
    CHECK_THAT(result.report.weight_loss.absolute,
               WithinAbs(weight, loss_tolerance(weight, 100 * eps<TestType> * frobenius(l.p.w))));
    CHECK_FALSE(result.report.activation_loss.has_value());
    CHECK(shifted.truncate(ressvd::weight(be, l.w()), methods::svd_llm{}, ressvd::keep_dense(m, n))
              .dense());
  }
}

TEMPLATE_LIST_TEST_CASE("fits to shifted inputs that are all zero keep what they cannot judge",
                        "[methods]", test_backends) {
  using namespace methods_suite;
  auto be = make_backend<TestType>();
  const index_t n = 9;
  const layer<TestType> l(be, 12, n, 39, mild_activations(n, 40));
  ressvd::shifted_input<TestType> shifted(be, n, {.original_share = 0.5});
  const placed<float, TestType> zeros(be, dense(20, n));
  shifted.observe(zeros.view(), zeros.view());

  auto input = l.input(be);
  const auto factored = input.factor(ressvd::weight(be, l.w()), methods::svd_llm{}, {3});
  const auto before = factored.at(ressvd::rank_choice{.rank = 3});
  const auto updated = shifted.update(factored, methods::svd_llm{}, {.rank = 3});
  CHECK(updated.report.update_rank == 0);
  CHECK(values_of(be, updated.factors).product() == values_of(be, before.factors).product());

  const auto truncated =
      shifted.truncate(ressvd::weight(be, l.w()), methods::svd_llm{}, {.rank = 3});
  const double optimum = sum_of_squares_from(svd(l.p.w).s, 3);
  CHECK(truncated.report.whitening->path == ressvd::whitening_path::plain);
  CHECK_THAT(truncated.report.weight_loss.absolute,
             WithinAbs(optimum, loss_tolerance(optimum, 100 * eps<TestType> * frobenius(l.p.w))));
}

TEMPLATE_LIST_TEST_CASE("wrong calls of the methods are refused", "[methods]", test_backends) {
  using namespace methods_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  auto be = make_backend<TestType>();
  const dense x = mild_activations(8, 26);
  const layer<TestType> l(be, 6, 8, 27, x);
  dense spoiled = l.p.w;
  spoiled(5, 6) = std::numeric_limits<double>::infinity();
  const placed<T, TestType> bad(be, spoiled, layout::row_major, 1);
  view short_rows = l.w();
  short_rows.ld = 7;
  for (const index_t rank : {-1, 0, 7}) {
    CHECK_THROWS_WITH(
        l.compress(be, methods::svd{}, at_rank(rank)),
        contains_text("rank " + std::to_string(rank) + " of a 6 x 8 matrix is outside [1, 6]"));
  }
  for_each_method([&](const auto& method) {
    INFO(method.name);
    auto input = l.input(be);
    const auto call = [&](view w) { input.compress(l.with_gradients(be, w), method, at_rank(2)); };
    CHECK_NOTHROW(call(l.w()));
    CHECK_THROWS_WITH(call(view{}), contains_text("W is empty (0 x 0)"));
    CHECK_THROWS_WITH(call({nullptr, 6, 8, 8}), contains_text("W (6 x 8) has a null data pointer"));
    CHECK_THROWS_WITH(call(short_rows),
                      contains_text("W (6 x 8, row-major) has leading dimension 7, less than 8"));
    CHECK_THROWS_AS(call(bad.view()), ressvd::nonfinite_error);
    CHECK_THROWS_WITH(call(bad.view()), contains_text("W (6 x 8) has "));
    CHECK_THROWS_WITH(input.factor(l.weight(be), method, {}), contains_text("no ranks"));
    CHECK_THROWS_WITH(input.factor(l.weight(be), method, {2, 7}),
                      contains_text("rank 7 of a 6 x 8 matrix is outside [1, 6]"));
  });

  // What a method needs and does not get.
  ressvd::calibration nothing(be);
  const auto two = at_rank(2);
  CHECK_THROWS_WITH(nothing.compress(l.w(), methods::fwsvd{}, two),
                    contains_text("the row importance is empty"));
  CHECK_THROWS_WITH(nothing.compress(l.w(), methods::asvd{}, two),
                    contains_text("ASVD needs the channel means"));
  CHECK_THROWS_WITH(nothing.compress(l.w(), methods::svd_llm{}, two),
                    contains_text("SVD-LLM needs the Gram"));
  CHECK_THROWS_WITH(nothing.compress(l.w(), methods::ressvd{}, two),
                    contains_text("ResSVD needs the Gram"));
  CHECK_THROWS_WITH(nothing.compress(l.w(), methods::adasvd{}, two),
                    contains_text("AdaSVD needs the Gram"));
  CHECK_THROWS_WITH(nothing.compress(l.w(), methods::tempered{}, two),
                    contains_text("tempered whitening needs the Gram"));
  CHECK_THROWS_WITH(nothing.compress(l.weight(be), methods::kfac_svd{}, two),
                    contains_text("KFAC-SVD needs the Gram"));
  auto known = l.input(be);
  CHECK_THROWS_WITH(known.compress(l.w(), methods::kfac_svd{}, two),
                    contains_text("KFAC-SVD needs the curvature of W's outputs"));
  auto misfit = l.weight(be);
  misfit.output_curvature = l.p.placed_g.block();
  CHECK_THROWS_WITH(known.compress(std::move(misfit), methods::kfac_svd{}, two),
                    contains_text("the curvature of W's outputs is "));
  CHECK_THROWS_WITH(l.compress(be, methods::kfac_svd{.output_power = -0.5}, two),
                    contains_text("outside [0, 1]"));
  CHECK_THROWS_WITH(l.compress(be, methods::kfac_svd{.ridge = -1}, two), contains_text("ridge -1"));
  CHECK_THROWS_WITH(l.compress(be, methods::ressvd{.beta = 1.5}, two),
                    contains_text("beta 1.5 is outside [0, 1)"));
  CHECK_THROWS_WITH(l.compress(be, methods::asvd{.alpha = 2}, two),
                    contains_text("alpha 2 is outside [0, 1]"));
  CHECK_THROWS_WITH(l.compress(be, methods::tempered{.power = 1.5}, two),
                    contains_text("power 1.5 is outside [0, 1]"));
  CHECK_THROWS_WITH(ressvd::calibration(be, ressvd::gram_accumulator(be, 8, {.name = "x"})),
                    contains_text("x: no tokens were accumulated"));
  CHECK_THROWS_WITH(ressvd::shifted_input<TestType>(be, 8, {.original_share = 1.5}),
                    contains_text("share 1.5 of the target is outside [0, 1]"));
  const auto factored = l.input(be).factor(l.w(), methods::adasvd{}, {2});
  CHECK_THROWS_WITH(
      l.shifted_input(be, 0).update(factored, methods::adasvd{.iterations = -1}, {.rank = 2}),
      contains_text("an update of -1 iterations"));
  CHECK_THROWS_WITH(
      ressvd::shifted_input<TestType>(be, 8).update(factored, methods::adasvd{}, {.rank = 2}),
      contains_text("no tokens were accumulated"));

  // Statistics of another layer.
  const layer<TestType> other(be, 7, 9, 28, mild_activations(9, 29));
  ressvd::weight<TestType> foreign(be, l.w());
  foreign.row_importance = other.placed_importance.block();
  CHECK_THROWS_WITH(ressvd::calibration(be).compress(std::move(foreign), methods::fwsvd{}, two),
                    contains_text("the row importance is 7 x 1, expected 6 x 1"));
  CHECK_THROWS_WITH(other.input(be).compress(l.w(), methods::svd_llm{}, two),
                    contains_text("the calibration is of 9 channels, W (6 x 8) reads 8"));
  CHECK_THROWS_WITH(other.shifted_input(be, 0).update(factored, methods::svd_llm{}, {.rank = 2}),
                    contains_text("the shifted Gram is 9 x 9, expected 8 x 8"));

  dense importance(6, 1, 1.0);
  importance(3, 0) = -0.5;
  const placed<double, TestType> negative(be, importance);
  importance(3, 0) = not_a_number;
  const placed<double, TestType> nan(be, importance);
  const auto with = [&](const placed<double, TestType>& row_importance) {
    ressvd::weight<TestType> w(be, l.w());
    w.row_importance = row_importance.block();
    ressvd::calibration(be).compress(std::move(w), methods::fwsvd{}, two);
  };
  CHECK_THROWS_WITH(with(negative),
                    contains_text("the row importance has the negative value -0.5 at 3"));
  CHECK_THROWS_AS(with(nan), ressvd::nonfinite_error);
  CHECK(l.unchanged(be));
}
