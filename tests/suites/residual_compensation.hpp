// SPDX-License-Identifier: Apache-2.0
//
// Residual compensation: the result of the two explicit stages of the paper, computed with an
// inverse in double, and the properties that follow from Ŵ = Q·Qᵀ·W.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/residual/residual_compensation.hpp"
#include "ressvd/whitening/whitening.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"
#include "support/special_values.hpp"

namespace residual_suite {

using namespace support;
using ressvd::residual_options;
using ressvd::svd_algorithm;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// Algorithm 2 of the paper as it is written: W_i = SVD_{r_i}(W·S)·S⁻¹, R_r = SVD_{r_r}(W − W_i).
struct two_stages {
  dense result;
  double tolerance = 0; ///< how far rounding of A = W·S by eps·‖A‖ may move the result
};

inline two_stages explicit_stages(const dense& w, const dense& g, index_t ri, index_t rr,
                                  double epsilon) {
  const dense s = cholesky(g);
  const dense a = w * s;
  const dense first = best_of_rank(a, ri) * inverse(s);
  const dense residual = w - first;
  const dense second = rr > 0 ? best_of_rank(residual, rr) : dense(w.rows(), w.cols());

  // The residual inherits what the first stage moves.
  const double first_change = truncation_change(w, a, ri, epsilon);
  double change = first_change;
  if (rr > 0) {
    const std::vector<double> sigma = svd(residual).s;
    const auto r = static_cast<std::size_t>(rr);
    const double gap = r < sigma.size() ? sigma[r - 1] - sigma[r] : sigma[r - 1];
    change += truncation_change(residual, residual, rr, epsilon) +
              2 * first_change / gap * frobenius(residual);
  }
  // The explicit inverse has an error of its own.
  const double inverse_error = 10 * double_eps * spectral_norm(s) * spectral_norm(inverse(s));
  return {first + second, change + inverse_error * frobenius(w)};
}

template <class B>
struct compensated {
  ressvd::compensated_basis<B> basis;
  pair_values pair;
};

/// W, X and everything up to the first stage.
template <class B>
struct staged {
  problem<B> p;
  ressvd::whitening<B> whitening;
  ressvd::svd_basis<B> stage1;

  staged(B& be, const dense& w, const dense& x, index_t rank,
         svd_algorithm algorithm = svd_algorithm::automatic)
      : p(be, w, x),
        whitening(ressvd::whiten(be, p.placed_g.view())),
        stage1(ressvd::truncated_svd(be, p.placed_w.view(), {}, whitening.metric(), rank,
                                     {.algorithm = algorithm})) {}

  dense compensate(B& be, const residual_options& options,
                   const ressvd::metric<typename B::space>& second = {}) {
    auto basis = ressvd::residual_compensation(be, p.placed_w.view(), stage1, options, second);
    const dense q = values_of(be, basis.q);
    CHECK(orthonormality_error(q) <= householder_tolerance(q.rows(), q.cols(), eps<B>));
    CHECK(basis.intermediate_rank == ressvd::intermediate_rank(p.w.rows(), p.w.cols(), options));
    const auto pair = values_of(be, ressvd::project(be, p.placed_w.view(), std::move(basis.q)));
    CHECK(pair.u == q);
    return pair.product();
  }
  dense direct(B& be, index_t rank) {
    return values_of(be, ressvd::slice(be, p.placed_w.view(), stage1, rank)).product();
  }
};

/// Singular values as layers have them: `outliers` enormous ones, then a slow decay.
inline std::vector<double> layer_spectrum(index_t count, index_t outliers, double size) {
  std::vector<double> values;
  for (index_t i = 0; i < count; ++i) {
    const auto x = static_cast<double>(i);
    values.push_back(i < outliers ? size / (x + 1) : 2 / std::sqrt(x + 1));
  }
  return values;
}

/// Checks stages of W against the optimum in double, F being the second stage's metric.
template <class B>
class stage_check {
 public:
  stage_check(B& be, const staged<B>& s, dense f,
              double tolerance = ressvd::svd_options{}.tolerance)
      : be_(be),
        tolerance_(tolerance),
        w_(s.p.w),
        u_(values_of(be, s.stage1.q)),
        f_(std::move(f)),
        wf_(w_ * f_),
        plain_error_(projection_error(w_, identity(w_.cols()), eps<B>)),
        error_(projection_error(w_, f_, eps<B>)) {}

  /// Q of the stage is orthonormal and begins with U_i, and the loss ‖(W − QQᵀW)·F‖² is the least
  /// for this r_i, up to rounding and to twice the tolerance, as its estimate is of second order.
  /// Returns Q.
  dense operator()(ressvd::residual_stages<B>& stages, const residual_options& options) {
    INFO("rank " << options.rank);
    const auto basis = stages.at(options);
    const dense q = values_of(be_, basis.q);
    const index_t ri = ressvd::intermediate_rank(w_.rows(), w_.cols(), options);
    REQUIRE(basis.intermediate_rank == ri);
    CHECK(q.cols() == options.rank);
    CHECK(orthonormality_error(q) <= householder_tolerance(q.rows(), q.cols(), eps<B>));
    CHECK(left_cols(q, ri) == left_cols(u_, ri));

    const residual& r = of_rank(ri);
    CHECK_THAT(basis.residual_energy, WithinAbs(r.energy, loss_tolerance(r.energy, plain_error_)));
    const double optimum =
        std::accumulate(r.eigenvalues.begin(), r.eigenvalues.end() - (options.rank - ri), 0.0);
    const double loss = loss_of(w_, q * (transpose(q) * w_), f_);
    const double rounding =
        loss_tolerance((std::max)(optimum, 0.0), error_) + gram_algorithm_loss(wf_, options.rank);
    CHECK(loss <= optimum * (1 + 2 * tolerance_) + rounding);
    CHECK(loss >= optimum - rounding);
    return q;
  }

 private:
  struct residual {
    double energy;
    std::vector<double> eigenvalues; ///< of R·F·(R·F)ᵀ, ascending
  };

  const residual& of_rank(index_t ri) {
    if (const auto known = residuals_.find(ri); known != residuals_.end()) return known->second;
    const dense ui = left_cols(u_, ri);
    const dense r = w_ - ui * (transpose(ui) * w_);
    const dense rf = r * f_;
    return residuals_.emplace(ri, residual{squared_norm(r), eigh(rf * transpose(rf)).values})
        .first->second;
  }

  B& be_;
  double tolerance_;
  dense w_;
  dense u_;
  dense f_;
  dense wf_;
  double plain_error_;
  double error_;
  std::map<index_t, residual> residuals_;
};

} // namespace residual_suite

TEMPLATE_LIST_TEST_CASE("both stages give what the explicit computation gives", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  struct example {
    index_t m, n, rank, residual;
  };
  for (const auto [m, n, rank, residual] :
       {example{12, 18, 6, 2}, {18, 12, 6, 1}, {15, 15, 9, 4}, {14, 30, 5, 0}, {10, 12, 10, 3}}) {
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      INFO(m << " x " << n << ", rank " << rank << " of which " << residual << ", "
             << name_of(algorithm));
      const dense x = activations(n, 4 * n, 1, {.condition = 3});
      staged<TestType> s(be, random_normal(m, n, 2), x, rank, algorithm);
      const auto expected = explicit_stages(s.p.w, s.p.g, rank - residual, residual, eps<TestType>);
      const dense actual = s.compensate(
          be, {.rank = rank, .residual_rank = residual, .svd = {.algorithm = algorithm}});
      CHECK(distance(actual, expected.result) <= expected.tolerance);
      CHECK(s.p.placed_w.unchanged(be));
      // The tolerance leaves room for no other result.
      CHECK(expected.tolerance < 0.1 * frobenius(s.p.w));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("with the same metric twice the result is the direct truncation",
                        "[residual]", test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  for (const auto& [m, n] : {std::pair<index_t, index_t>{12, 18}, {18, 12}}) {
    const dense x = activations(n, 80, 3, {.outlier_channels = 1});
    staged<TestType> s(be, random_normal(m, n, 4), x, 8);
    const double error = projection_error(s.p.w, x, eps<TestType>);
    for (const index_t residual : {1, 3, 7}) {
      const dense twice =
          s.compensate(be, {.rank = 8, .residual_rank = residual}, s.whitening.metric());
      const double direct = loss_of(s.p.w, s.direct(be, 8), x);
      CHECK_THAT(loss_of(s.p.w, twice, x),
                 WithinAbs(direct, loss_tolerance(direct, 2 * error) +
                                       2 * gram_algorithm_loss(s.p.w * x, 8)));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("the plain second stage trades activation loss for weight loss",
                        "[residual]", test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  const std::vector<dense> inputs{
      random_normal(20, 60, 5), activations(20, 60, 6, {.outlier_channels = 2}),
      activations(20, 60, 7, {.outlier_channels = 1, .dead_channels = 2}), random_normal(20, 8, 8)};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    for (const index_t m : {13, 31}) {
      const dense& x = inputs[i];
      staged<TestType> s(be, random_normal(m, 20, 9), x, 10);
      const dense direct = s.direct(be, 10);
      for (const index_t residual : {0, 1, 4, 9}) {
        INFO("input " << i << ", " << m << " x 20, residual rank " << residual);
        const dense compensated = s.compensate(be, {.rank = 10, .residual_rank = residual});
        const double damped = s.whitening.report.damping * squared_norm(s.p.w);
        const double activation = loss_of(s.p.w, direct, x);
        CHECK(loss_of(s.p.w, compensated, x) >=
              activation - damped - gram_algorithm_loss(s.p.w * x, 10) -
                  loss_tolerance(activation, projection_error(s.p.w, x, eps<TestType>)));
        const double weight = squared_norm(s.p.w - direct);
        CHECK(squared_norm(s.p.w - compensated) <=
              weight + gram_algorithm_loss(s.p.w, 10) +
                  loss_tolerance(weight, projection_error(s.p.w, identity(20), eps<TestType>)));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("nothing is counted twice where the residual vanishes", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  dense axes(9, 12); // its singular vectors are axes, as are those of a zero residual
  axes(0, 0) = 3;
  axes(1, 1) = 2;
  dense sparse(12, 9);
  sparse(11, 4) = 1;
  sparse(10, 3) = -2;
  sparse(3, 3) = 5;
  const std::vector<dense> cases{axes,
                                 sparse,
                                 dense(9, 12),
                                 dense(12, 9),
                                 with_spectrum(12, 14, {4, 2, 1}, 10),
                                 with_spectrum(14, 12, {4, 2, 1}, 11)};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const dense& w = cases[i];
    const index_t full = (std::min)(w.rows(), w.cols());
    for (const bool white : {false, true}) {
      const dense x = white ? identity(w.cols()) : random_normal(w.cols(), 40, 12);
      for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
        staged<TestType> s(be, w, x, full, algorithm);
        for (const auto& [rank, residual] :
             {std::pair<index_t, index_t>{7, 3}, {7, 1}, {full, 4}, {full, full - 1}}) {
          INFO("case " << i << ", rank " << rank << " of which " << residual << ", "
                       << name_of(algorithm));
          const dense actual = s.compensate(
              be, {.rank = rank, .residual_rank = residual, .svd = {.algorithm = algorithm}});
          // rank(W) ≤ 3. Where r_i covers it Ŵ is W, and with r ≥ 6 the two stages together do.
          const double error = projection_error(s.p.w, identity(w.cols()), eps<TestType>);
          CHECK(squared_norm(s.p.w - actual) <= error * error + gram_algorithm_loss(s.p.w, rank));
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("one first stage serves all divisions of the rank", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(16, 60, 13);
  staged<TestType> s(be, random_normal(20, 16, 14), x, 9);
  double before = std::numeric_limits<double>::infinity();
  for (const index_t ri : {3, 6, 9}) {
    const auto basis = ressvd::residual_compensation(be, s.p.placed_w.view(), s.stage1,
                                                     {.rank = 9, .intermediate_rank = ri});
    CHECK(basis.intermediate_rank == ri);
    const double exact = squared_norm(s.p.w - s.direct(be, ri));
    CHECK_THAT(basis.residual_energy,
               WithinAbs(exact, loss_tolerance(
                                    exact, projection_error(s.p.w, identity(16), eps<TestType>))));
    CHECK(basis.residual_energy <= before);
    before = basis.residual_energy;
  }
}

TEMPLATE_LIST_TEST_CASE("stages at many ranks are those of each rank, in any order", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  using metric_type = ressvd::metric<typename TestType::space>;
  const std::vector<index_t> descending{28, 27, 24, 20, 15, 9, 4, 1};
  const std::vector<index_t> ascending(descending.rbegin(), descending.rend());
  const std::vector<index_t> jumping{20, 28, 27, 9, 24, 24, 4, 27};
  for (const auto& [m, n] : {std::pair<index_t, index_t>{44, 60}, {60, 44}, {50, 50}}) {
    const dense scale = absolute(random_normal(n, 1, 20));
    const placed<double, TestType> held(be, scale);
    std::vector<double> diagonal;
    for (index_t i = 0; i < n; ++i)
      diagonal.push_back(scale(i, 0));
    const dense x = activations(n, 3 * n, 21, {.outlier_channels = 2});
    staged<TestType> s(be, with_spectrum(m, n, layer_spectrum((std::min)(m, n), 2, 30), 22), x, 28);
    for (const bool weighed : {false, true}) {
      INFO(m << " x " << n << (weighed ? ", with a metric in stage 2" : ""));
      const metric_type second = weighed ? metric_type::diagonal(held.block()) : metric_type{};
      const dense f = weighed ? diagonal_matrix(diagonal) : identity(n);
      stage_check<TestType> check(be, s, f);
      for (const auto* ranks : {&descending, &ascending, &jumping}) {
        ressvd::residual_stages<TestType> stages(be, s.p.placed_w.view(), s.stage1, second);
        for (const index_t rank : *ranks)
          check(stages, {.rank = rank, .beta = 0.1});
        // Rank 1 has no second stage.
        if (ranks == &descending) CHECK(stages.begun() == 1);
        if (ranks == &ascending) CHECK(stages.begun() == 7);
        if (ranks == &jumping) CHECK(stages.begun() == 4);
      }
      CHECK(s.p.placed_w.unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("stages at many ranks of difficult matrices", "[residual]", test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  const std::vector<double> low_rank{9, 8, 7, 5, 4, 2, 1};
  const std::vector<double> flat(40, 1.0);
  const std::vector<dense> cases{dense(40, 48),
                                 with_spectrum(40, 48, low_rank, 23),
                                 with_spectrum(48, 40, low_rank, 24),
                                 with_spectrum(40, 50, flat, 25),
                                 with_spectrum(40, 48, layer_spectrum(40, 4, 1e4), 26),
                                 1e-12 * with_spectrum(40, 40, layer_spectrum(40, 1, 10), 27),
                                 1e12 * with_spectrum(40, 40, layer_spectrum(40, 1, 10), 28)};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const index_t n = cases[i].cols();
    for (const bool white : {false, true}) {
      INFO("case " << i << (white ? ", white" : ""));
      const dense x = white ? identity(n) : activations(n, 2 * n, 29, {.outlier_channels = 1});
      staged<TestType> s(be, cases[i], x, 20);
      ressvd::residual_stages<TestType> stages(be, s.p.placed_w.view(), s.stage1);
      stage_check<TestType> check(be, s, identity(n));
      for (const index_t rank : {20, 19, 16, 12, 9, 8, 6, 5, 4, 3})
        check(stages, {.rank = rank, .residual_rank = 2});
      // The outliers return to the residual, and decide the rounding of what stands beside them.
      for (const index_t rank : {26, 20, 14, 10, 8, 7})
        check(stages, {.rank = rank, .residual_rank = 6});
      check(stages, {.rank = 40, .intermediate_rank = 20});
    }
  }
}

TEMPLATE_LIST_TEST_CASE("stages at many ranks: divisions, algorithms, repetition", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(70, 200, 30, {.outlier_channels = 1});
  staged<TestType> s(be, with_spectrum(60, 70, layer_spectrum(60, 2, 20), 31), x, 30);
  ressvd::residual_stages<TestType> stages(be, s.p.placed_w.view(), s.stage1);
  ressvd::residual_stages<TestType> again(be, s.p.placed_w.view(), s.stage1);
  stage_check<TestType> check(be, s, identity(70));
  for (const residual_options& options : std::vector<residual_options>{
           {.rank = 36, .intermediate_rank = 30},
           {.rank = 30, .beta = 0},
           {.rank = 30, .residual_rank = 5},
           {.rank = 28, .residual_rank = 4},
           {.rank = 28, .residual_rank = 9},
           {.rank = 27, .residual_rank = 9, .svd = {.algorithm = svd_algorithm::exact}},
           {.rank = 24, .residual_rank = 7, .svd = {.algorithm = svd_algorithm::subspace}},
           {.rank = 20, .residual_rank = 19}}) {
    const dense q = check(stages, options);
    CHECK(values_of(be, again.at(options).q) == q);
  }
}

TEMPLATE_LIST_TEST_CASE("the second stage's tolerance is the caller's", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(70, 200, 32, {.outlier_channels = 1});
  staged<TestType> s(be, with_spectrum(60, 70, layer_spectrum(60, 2, 20), 33), x, 26);
  for (const double tolerance : {1e-5, 0.1}) {
    INFO("tolerance " << tolerance);
    ressvd::residual_stages<TestType> stages(be, s.p.placed_w.view(), s.stage1);
    stage_check<TestType> check(be, s, identity(70), tolerance);
    for (const index_t rank : {30, 29, 27, 24, 20})
      check(stages, {.rank = rank, .residual_rank = 4, .svd = {.tolerance = tolerance}});
  }
}

TEMPLATE_LIST_TEST_CASE("a cancelled stage leaves the others as they are", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(70, 200, 34, {.outlier_channels = 1});
  staged<TestType> s(be, with_spectrum(60, 70, layer_spectrum(60, 2, 20), 35), x, 30);
  ressvd::residual_stages<TestType> stages(be, s.p.placed_w.view(), s.stage1);
  stage_check<TestType> check(be, s, identity(70));
  const ressvd::svd_options cancelling{.progress = [](double) { return false; }};
  check(stages, {.rank = 30, .residual_rank = 4});
  CHECK(stages.begun() == 1);
  // A stage from the one before asks too.
  CHECK_THROWS_AS(stages.at({.rank = 28, .residual_rank = 4, .svd = cancelling}),
                  ressvd::cancelled);
  CHECK(stages.begun() == 1);
  check(stages, {.rank = 28, .residual_rank = 4});
  CHECK(stages.begun() == 2);
  check(stages, {.rank = 27, .residual_rank = 4});
  CHECK(stages.begun() == 2);
  CHECK_THROWS_AS(
      ressvd::residual_compensation(be, s.p.placed_w.view(), s.stage1,
                                    {.rank = 28, .residual_rank = 4, .svd = cancelling}),
      ressvd::cancelled);
}

TEMPLATE_LIST_TEST_CASE("the rank is divided as the options say", "[residual]", test_backends) {
  using namespace residual_suite;
  // A 200 x 200 matrix has alpha = 100.
  const auto ri = [](residual_options options) {
    return ressvd::intermediate_rank(200, 200, options);
  };
  CHECK(ri({.rank = 100}) == 95);
  CHECK(ri({.rank = 60}) == 55);
  CHECK(ri({.rank = 6}) == 1);
  CHECK(ri({.rank = 5}) == 1); // the residual takes no more than r - 1
  CHECK(ri({.rank = 1}) == 1);
  CHECK(ressvd::intermediate_rank(300, 150, {.rank = 40, .beta = 0.1}) == 30); // alpha = 100
  CHECK(ressvd::intermediate_rank(28, 14, {.rank = 4}) == 4);                  // 0.05·9.33 < 0.5
  CHECK(ressvd::intermediate_rank(192, 192, {.rank = 77}) == 72);              // 0.05·96 = 4.8
  CHECK(ri({.rank = 100, .beta = 0.07}) == 93);
  CHECK(ri({.rank = 100, .beta = 0.29}) == 71);
  CHECK(ri({.rank = 10, .beta = 0}) == 10);
  CHECK(ri({.rank = 10, .residual_rank = 4}) == 6);
  CHECK(ri({.rank = 10, .residual_rank = 0}) == 10);
  CHECK(ri({.rank = 10, .intermediate_rank = 3}) == 3);
  CHECK_THROWS_WITH(ri({.rank = 0}), contains_text("residual compensation of rank 0"));
  CHECK_THROWS_WITH(ri({.rank = 5, .beta = 1}), contains_text("beta 1 is outside [0, 1)"));
  CHECK_THROWS_WITH(ri({.rank = 5, .beta = -0.1}), contains_text("beta -0.1"));
  CHECK_THROWS_WITH(ri({.rank = 5, .beta = not_a_number}), contains_text("outside [0, 1)"));
  CHECK_THROWS_WITH(ri({.rank = 5, .residual_rank = 5}),
                    contains_text("residual rank 5 is outside [0, 4]"));
  for (const index_t residual : {index_t{-1}, (std::numeric_limits<index_t>::min)()}) {
    CHECK_THROWS_WITH(ri({.rank = 5, .residual_rank = residual}),
                      contains_text(std::to_string(residual) + " is outside [0, 4]"));
  }
  CHECK_THROWS_WITH(ri({.rank = 5, .intermediate_rank = 6}),
                    contains_text("intermediate rank 6 is outside [1, 5]"));
  CHECK_THROWS_WITH(ri({.rank = 5, .residual_rank = 2, .intermediate_rank = 3}),
                    contains_text("both given"));
}

TEMPLATE_LIST_TEST_CASE("wrong calls of residual compensation are refused", "[residual]",
                        test_backends) {
  using namespace residual_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  staged<TestType> s(be, random_normal(6, 8, 15), random_normal(8, 30, 16), 4);
  const placed<T, TestType> other(be, random_normal(7, 8, 17));
  const placed<T, TestType> bad(be, dense(6, 8, not_a_number));
  const placed<double, TestType> left(be, dense(6, 1, 2.0));
  const auto w = s.p.placed_w.view();
  CHECK_THROWS_WITH(ressvd::residual_compensation(be, w, s.stage1, {.rank = 7}),
                    contains_text("rank 7 of a 6 x 8 matrix is outside [1, 6]"));
  CHECK_THROWS_WITH(ressvd::residual_compensation(be, w, s.stage1, {.rank = 6, .residual_rank = 1}),
                    contains_text("intermediate rank 5 exceeds the first stage's rank 4"));
  CHECK_THROWS_WITH(ressvd::residual_compensation(be, other.view(), s.stage1, {.rank = 3}),
                    contains_text("identity as left metric, made for 7 rows"));
  const auto right = ressvd::truncated_svd(
      be, w, ressvd::metric<typename TestType::space>::diagonal(left.block()), {}, 4);
  CHECK_THROWS_WITH(ressvd::residual_compensation(be, w, right, {.rank = 3}),
                    contains_text("identity as left metric"));
  CHECK_THROWS_AS(
      ressvd::residual_compensation(be, bad.view(), s.stage1, {.rank = 4, .residual_rank = 1}),
      ressvd::nonfinite_error);
  using stages_type = ressvd::residual_stages<TestType>;
  stages_type stages(be, w, s.stage1);
  CHECK_THROWS_WITH(stages.at({.rank = 7}),
                    contains_text("rank 7 of a 6 x 8 matrix is outside [1, 6]"));
  CHECK_THROWS_WITH(stages.at({.rank = 6, .residual_rank = 1}),
                    contains_text("intermediate rank 5 exceeds the first stage's rank 4"));
  CHECK_THROWS_WITH(stages_type(be, other.view(), s.stage1), contains_text("made for 7 rows"));
  CHECK_THROWS_WITH(stages_type(be, w, right), contains_text("identity as left metric"));
  CHECK_THROWS_WITH(stages_type(be, w, s.stage1,
                                ressvd::metric<typename TestType::space>::diagonal(left.block())),
                    contains_text("the second stage's metric"));
  CHECK_THROWS_AS(stages_type(be, bad.view(), s.stage1), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(ressvd::project(be, w, be.allocate(5, 2)),
                    contains_text("the basis has 5 rows, W has 6"));
}
