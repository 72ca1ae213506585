// SPDX-License-Identifier: Apache-2.0
//
// Truncated SVD of a weighted matrix: the loss of every slice is the tail of the singular values
// of A = F_Lᵀ·W·F_R as a textbook SVD finds them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/residual/losses.hpp"
#include "ressvd/truncated_svd/truncated_svd.hpp"
#include "ressvd/whitening/whitening.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"
#include "support/special_values.hpp"

namespace svd_suite {

using namespace support;
using ressvd::metric_kind;
using ressvd::projection;
using ressvd::svd_algorithm;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();
inline constexpr std::array algorithms{svd_algorithm::automatic, svd_algorithm::exact,
                                       svd_algorithm::gram};

/// The algorithms that stop at a tolerance.
inline constexpr std::array to_tolerance{svd_algorithm::subspace, svd_algorithm::deflated_gram,
                                         svd_algorithm::projector};

/// Half ones, half 1e-4: beyond the ones the loss is below 1e-8 of the energy, which rounding in a
/// float Gram may cost and more, and there is no outlier to take out.
inline std::vector<double> hidden_loss(index_t count) {
  std::vector<double> values(static_cast<std::size_t>(count), 1e-4);
  std::fill_n(values.begin(), count / 2, 1.0);
  return values;
}

/// A metric in the backend's memory, and its factor as a full matrix.
template <class B>
struct placed_metric {
  metric_kind kind = metric_kind::identity;
  dense factor; ///< n × width
  placed<double, B> stored;

  ressvd::metric<typename B::space> metric() const {
    if (kind == metric_kind::identity) return {};
    return {kind, stored.block()};
  }
};

/// A metric for n channels whose factor has about the given condition number.
template <class B>
placed_metric<B> make_metric(B& be, metric_kind kind, index_t n, double condition,
                             std::uint64_t seed, index_t width = 0) {
  const auto place = [&](const dense& a) { return placed<double, B>(be, a, layout::col_major, 2); };
  switch (kind) {
    case metric_kind::diagonal: {
      const std::vector<double> d = geometric_spectrum(n, condition);
      return {kind, diagonal_matrix(d), place(column(d))};
    }
    case metric_kind::triangular: {
      const dense f = with_spectrum(n, 2 * n, geometric_spectrum(n, condition), seed);
      const dense l = cholesky(f * transpose(f));
      dense stored = l;
      for (index_t j = 0; j < n; ++j) {
        for (index_t i = 0; i < j; ++i)
          stored(i, j) = not_a_number; // never read
      }
      return {kind, l, place(stored)};
    }
    case metric_kind::dense: {
      const index_t columns = width > 0 ? width : n;
      const dense f =
          with_spectrum(n, columns, geometric_spectrum((std::min)(n, columns), condition), seed);
      return {kind, f, place(f)};
    }
    default:
      return {metric_kind::identity, identity(n), place(dense(1, 1))};
  }
}

inline const char* name_of(metric_kind kind) {
  switch (kind) {
    case metric_kind::identity:
      return "identity";
    case metric_kind::diagonal:
      return "diagonal";
    case metric_kind::triangular:
      return "triangular";
    default:
      return "dense";
  }
}

/// F_Lᵀ·(W − U·V)·F_R.
inline dense weighed(const dense& left, const dense& a, const dense& right) {
  return transpose(left) * a * right;
}

/// Bound on the error of the weighed residual for a slice of rank r.
template <class B>
double residual_error(const dense& left, const dense& w, const dense& right,
                      const pair_values& pair) {
  const dense a = weighed(left, w, right);
  const double terms = std::sqrt(static_cast<double>(w.rows() + w.cols()));
  const double scale = spectral_norm(left) * spectral_norm(right);
  // Forming A and the factors: sums of m or n terms; then orthogonal transformations of A.
  return 4 * terms * eps<B> * frobenius(w) * scale + scale * storage_error(pair, 4 * eps<B>) +
         2 *
             householder_tolerance(std::max(a.rows(), a.cols()), std::min(a.rows(), a.cols()),
                                   eps<B>) *
             frobenius(a);
}

/// Spectra of layers and harder ones, all with `count` values.
struct named_spectrum {
  const char* name;
  std::vector<double> values;
};
inline std::vector<named_spectrum> spectra(index_t count) {
  std::vector<double> flat;
  std::vector<double> power;
  for (index_t i = 0; i < count; ++i) {
    flat.push_back(1.5 - static_cast<double>(i) / static_cast<double>(count));
    power.push_back(1 / std::sqrt(static_cast<double>(i + 1)));
  }
  return {{"flat", flat},
          {"power law", power},
          {"exponential", geometric_spectrum(count, 1e3)},
          {"steep", geometric_spectrum(count, 1e8)},
          {"outliers", spiked_spectrum(count, 4)}};
}

/// ‖A − QQᵀA‖² for the leading columns of q, made orthonormal in double: what q's own rounding
/// does to the span is second order.
inline double span_loss(const dense& a, const dense& q, index_t rank) {
  const dense basis = svd(left_cols(q, rank)).u;
  return squared_norm(a - basis * (transpose(basis) * a));
}

/// Energy that rounding may take from a span: sums of m + n terms, whose roundings are independent,
/// turn it by 4·√(m + n)·eps, and at an optimum the loss is quadratic in that.
template <class B>
double span_rounding(const dense& a) {
  const double angle = 4 * std::sqrt(static_cast<double>(a.rows() + a.cols())) * eps<B>;
  return angle * angle * squared_norm(a);
}

} // namespace svd_suite

TEMPLATE_LIST_TEST_CASE("the loss of every slice is the tail of the singular values",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  struct example {
    index_t m, n;
    metric_kind left, right;
    index_t left_width = 0, right_width = 0;
  };
  const auto identity_kind = metric_kind::identity;
  const std::vector<example> examples{
      {12, 20, identity_kind, identity_kind},
      {20, 12, identity_kind, identity_kind},
      {1, 9, identity_kind, identity_kind},
      {9, 1, identity_kind, identity_kind},
      {16, 16, identity_kind, metric_kind::triangular},
      {12, 30, identity_kind, metric_kind::triangular},
      {30, 12, identity_kind, metric_kind::triangular},
      {18, 14, identity_kind, metric_kind::diagonal},
      {14, 18, metric_kind::diagonal, identity_kind},
      {18, 14, metric_kind::triangular, identity_kind},
      {15, 22, identity_kind, metric_kind::dense},
      {15, 22, identity_kind, metric_kind::dense, 0, 9},
      {15, 22, identity_kind, metric_kind::dense, 0, 40},
      {22, 15, metric_kind::dense, identity_kind, 9, 0},
      {16, 21, metric_kind::diagonal, metric_kind::triangular},
      {21, 16, metric_kind::triangular, metric_kind::triangular},
      {16, 21, metric_kind::dense, metric_kind::dense, 12, 30},
      {21, 16, metric_kind::dense, metric_kind::diagonal},
      {150, 70, identity_kind, metric_kind::triangular},
      {70, 150, identity_kind, metric_kind::triangular},
  };
  for (const auto& [m, n, left_kind, right_kind, left_width, right_width] : examples) {
    const problem<TestType> p(be, random_normal(m, n, 1), dense(n, 1));
    const auto left = make_metric(be, left_kind, m, 20, 2, left_width);
    const auto right = make_metric(be, right_kind, n, 20, 3, right_width);
    const dense a = weighed(left.factor, p.w, right.factor);
    const std::vector<double> sigma = svd(a).s;
    const auto count = static_cast<index_t>(sigma.size());
    const index_t largest = (std::min)({m, n, count});
    for (const svd_algorithm algorithm : algorithms) {
      INFO(m << " x " << n << ", " << name_of(left_kind) << " and " << name_of(right_kind) << ", "
             << support::name_of(algorithm));
      const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), left.metric(), right.metric(),
                                               largest, {.algorithm = algorithm});
      CHECK(basis.rank() == largest);
      CHECK(basis.report.algorithm != svd_algorithm::automatic);
      REQUIRE(static_cast<index_t>(basis.singular_values.size()) == count);
      CHECK(std::is_sorted(basis.singular_values.rbegin(), basis.singular_values.rend()));
      // Full-rank examples whose condition is far from any rounding.
      CHECK(basis.report.numerical_rank == count);

      const bool gram = basis.report.algorithm == svd_algorithm::gram;
      const bool two_sided =
          left_kind != metric_kind::identity && right_kind != metric_kind::identity;
      CHECK(basis.acts == (two_sided                            ? projection::both
                           : left_kind != metric_kind::identity ? projection::right
                                                                : projection::left));
      if (!two_sided) {
        CHECK(orthonormality_error(values_of(be, basis.q)) <=
              householder_tolerance((std::max)(m, n), largest, eps<TestType>));
      }
      double before = std::numeric_limits<double>::infinity();
      for (index_t r = 1; r <= largest; r += (std::max)(index_t{1}, largest / 5)) {
        INFO("rank " << r);
        const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, r));
        REQUIRE(pair.u.cols() == r);
        const double exact = sum_of_squares_from(sigma, r);
        const double error = residual_error<TestType>(left.factor, p.w, right.factor, pair);
        const double lost = squared_norm(weighed(left.factor, p.w - pair.product(), right.factor));
        const double algorithm_loss = gram ? gram_algorithm_loss(a, r) : 0;
        CHECK_THAT(lost, WithinAbs(exact, loss_tolerance(exact, error) + algorithm_loss));
        CHECK_THAT(basis.truncation_loss(r),
                   WithinAbs(exact, loss_tolerance(exact, error) + algorithm_loss));
        CHECK(lost <= before + loss_tolerance(exact, error) + algorithm_loss);
        before = lost;
      }
      CHECK_THAT(basis.total_energy,
                 WithinRel(squared_norm(a),
                           loss_tolerance(squared_norm(a),
                                          residual_error<TestType>(left.factor, p.w, right.factor,
                                                                   {dense(m, 1), dense(1, n)})) /
                               squared_norm(a)));
      CHECK_THAT(basis.truncation_loss(0), WithinRel(basis.total_energy, 100 * eps<TestType>));
      CHECK(p.placed_w.unchanged(be));
      CHECK(left.stored.unchanged(be));
      CHECK(right.stored.unchanged(be));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("two ill-conditioned metrics do not amplify rounding", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  // σ_1/σ_16 is about 1e5 here: factors that divide by σ² lose 60 times the optimum in norm.
  const problem<TestType> p(be, random_normal(20, 24, 4), dense(24, 1));
  const auto left = make_metric(be, metric_kind::triangular, 20, 1e4, 5);
  const auto right = make_metric(be, metric_kind::triangular, 24, 1e4, 6);
  const dense a = weighed(left.factor, p.w, right.factor);
  const std::vector<double> sigma = svd(a).s;
  const double scale = spectral_norm(left.factor) * spectral_norm(right.factor);
  for (const svd_algorithm algorithm : algorithms) {
    const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), left.metric(), right.metric(),
                                             16, {.algorithm = algorithm});
    for (const index_t r : {1, 4, 8, 16}) {
      INFO(support::name_of(algorithm) << ", rank " << r);
      const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, r));
      const double exact = sum_of_squares_from(sigma, r);
      // What storing the factors costs in the metrics, the SVD's backward error, and A itself,
      // which is formed in double.
      const double stored =
          spectral_norm(left.factor) *
              storage_error({pair.u, pair.v * right.factor}, eps<TestType>) +
          spectral_norm(right.factor) *
              storage_error({transpose(left.factor) * pair.u, pair.v}, eps<TestType>);
      const double error = stored + householder_tolerance(24, 20, eps<TestType>) * frobenius(a) +
                           44 * double_eps * frobenius(p.w) * scale;
      const double lost = squared_norm(weighed(left.factor, p.w - pair.product(), right.factor));
      CHECK(lost <= exact + loss_tolerance(exact, error) + gram_algorithm_loss(a, r));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("activation loss of the whitened truncation is the tail for any Gram",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  struct example {
    const char* name;
    dense x;
  };
  const std::vector<example> examples{
      {"full rank", random_normal(24, 90, 7)},
      {"outlier channels", activations(24, 90, 8, {.outlier_channels = 2})},
      {"fewer tokens than features", random_normal(24, 10, 9)},
      {"one token", random_normal(24, 1, 10)},
      {"dead channels", activations(24, 90, 11, {.dead_channels = 3})},
      {"copied channels", activations(24, 90, 12, {.copied_channels = 3})},
  };
  for (const auto& [name, x] : examples) {
    for (const index_t m : {16, 40}) {
      const problem<TestType> p(be, random_normal(m, 24, 13), x);
      const std::vector<double> sigma = svd(p.w * x).s;
      const placed<double, TestType> px(be, x);
      ressvd::qr_accumulator<wide> accumulator(wide(be), 24);
      accumulator.add(px.view(), ressvd::token_order::features_by_tokens);
      const auto by_cholesky = ressvd::whiten(be, p.placed_g.view());
      const auto by_qr = ressvd::whiten(be, accumulator);
      for (const auto* whitening : {&by_cholesky, &by_qr}) {
        for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
          const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), {}, whitening->metric(),
                                                   12, {.algorithm = algorithm});
          for (const index_t r : {1, 5, 12}) {
            INFO(name << ", " << m << " x 24, " << (whitening == &by_qr ? "QR" : "Cholesky") << ", "
                      << support::name_of(algorithm) << ", rank " << r);
            const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, r));
            const double exact =
                r < static_cast<index_t>(sigma.size()) ? sum_of_squares_from(sigma, r) : 0;
            // The factor's metric is G + δI: at the optimum for it the loss under G itself is
            // above the tail by at most δ·‖W‖². Its own rounding is that of G.
            const double delta = whitening->report.damping;
            const double damped = delta * squared_norm(p.w);
            const double factor_rounding =
                householder_tolerance(48, 24, double_eps) * squared_norm(x) * squared_norm(p.w);
            const double error = projection_error(p.w, x, eps<TestType>) +
                                 spectral_norm(x) * storage_error(pair, eps<TestType>);
            const double algorithm_loss = gram_algorithm_loss(p.w * x, r);
            const double lost = loss_of(p.w, pair.product(), x);
            CHECK_THAT(lost, WithinAbs(exact, loss_tolerance(exact, error) + damped +
                                                  factor_rounding + algorithm_loss));
            CHECK_THAT(basis.truncation_loss(r),
                       WithinAbs(exact, loss_tolerance(exact, error) + damped + factor_rounding +
                                            algorithm_loss));
          }
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("no perturbation of the factors lowers the loss", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const dense x = activations(18, 60, 14, {.outlier_channels = 1});
  const problem<TestType> p(be, random_normal(14, 18, 15), x);
  const auto whitening = ressvd::whiten(be, p.placed_g.view());
  for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
    const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), {}, whitening.metric(), 6,
                                             {.algorithm = algorithm});
    const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, 6));
    const double optimum = loss_of(p.w, pair.product(), x);
    const double tolerance = loss_tolerance(optimum, projection_error(p.w, x, eps<TestType>)) +
                             gram_algorithm_loss(p.w * x, 6);
    for (int trial = 0; trial < 60; ++trial) {
      const double size = std::pow(10.0, -(trial % 6));
      const auto seed = static_cast<std::uint64_t>(100 + 2 * trial);
      const dense u = pair.u + size * random_normal(14, 6, seed);
      const dense v = pair.v + size * random_normal(6, 18, seed + 1);
      CHECK(loss_of(p.w, u * v, x) >= optimum - tolerance);
      CHECK(loss_of(p.w, u * pair.v, x) >= optimum - tolerance);
      CHECK(loss_of(p.w, pair.u * v, x) >= optimum - tolerance);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("slicing at a rank equals factoring at that rank", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  for (const auto& [m, n] : {std::pair<index_t, index_t>{20, 30}, {30, 20}}) {
    // σ_i = 2^-i: every subspace is well determined.
    const problem<TestType> p(be, with_spectrum(m, n, geometric_spectrum(20, 0x1p19), 16),
                              dense(n, 1));
    const auto left = make_metric(be, metric_kind::diagonal, m, 3, 17);
    const auto right = make_metric(be, metric_kind::triangular, n, 3, 18);
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      for (const int sides : {0, 1, 2}) {
        const auto l = sides == 0 ? ressvd::metric<typename TestType::space>{} : left.metric();
        const auto r = sides == 1 ? ressvd::metric<typename TestType::space>{} : right.metric();
        const auto large =
            ressvd::truncated_svd(be, p.placed_w.view(), l, r, 12, {.algorithm = algorithm});
        for (const index_t rank : {1, 3, 6}) {
          INFO(m << " x " << n << ", " << support::name_of(algorithm) << ", metrics " << sides
                 << ", rank " << rank);
          const auto small =
              ressvd::truncated_svd(be, p.placed_w.view(), l, r, rank, {.algorithm = algorithm});
          const auto sliced = values_of(be, ressvd::slice(be, p.placed_w.view(), large, rank));
          const auto direct = values_of(be, ressvd::slice(be, p.placed_w.view(), small, rank));
          // Both take the same computed vectors, up to the rounding of making them orthonormal
          // again, which σ_1/σ_r ≤ 9·2^r magnifies.
          const double tolerance = std::ldexp(9.0, static_cast<int>(rank)) *
                                   static_cast<double>(m + n) * eps<TestType> * frobenius(p.w);
          CHECK(distance(sliced.product(), direct.product()) <= tolerance);
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("matrices of lower rank are served beyond it", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const auto check = [&](const dense& w, index_t rank, metric_kind left_kind,
                         metric_kind right_kind) {
    const problem<TestType> p(be, w, dense(w.cols(), 1));
    const auto left = make_metric(be, left_kind, w.rows(), 5, 19);
    const auto right = make_metric(be, right_kind, w.cols(), 5, 20);
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      INFO(w.rows() << " x " << w.cols() << " of rank " << rank << ", "
                    << support::name_of(algorithm) << ", " << name_of(left_kind) << " and "
                    << name_of(right_kind));
      const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), left.metric(), right.metric(),
                                               9, {.algorithm = algorithm});
      CHECK(basis.report.numerical_rank == rank);
      const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, 9));
      CHECK(all_finite(pair.u));
      CHECK(all_finite(pair.v));
      if (basis.acts != projection::both) {
        CHECK(orthonormality_error(values_of(be, basis.q)) <=
              householder_tolerance((std::max)(w.rows(), w.cols()), 9, eps<TestType>));
      }
      const dense lost = weighed(left.factor, p.w - pair.product(), right.factor);
      const dense a = weighed(left.factor, p.w, right.factor);
      const double error = residual_error<TestType>(left.factor, p.w, right.factor, pair);
      CHECK(squared_norm(lost) <= error * error + gram_algorithm_loss(a, 9));
    }
  };
  const auto identity_kind = metric_kind::identity;
  for (const metric_kind left : {identity_kind, metric_kind::diagonal}) {
    for (const metric_kind right : {identity_kind, metric_kind::triangular}) {
      // Products of small integers: the rank is exact in every scalar.
      dense u(14, 3);
      dense v(3, 11);
      for (index_t i = 0; i < 14; ++i)
        u(i, i % 3) = static_cast<double>(1 + i % 4);
      for (index_t j = 0; j < 11; ++j)
        v(j % 3, j) = static_cast<double>(1 + j % 5);
      check(u * v, 3, left, right);
      check(transpose(u * v), 3, left, right);
      check(dense(12, 15), 0, left, right);
      check(dense(15, 12), 0, left, right);
    }
  }
  dense one(10, 12);
  one(4, 7) = -3;
  check(one, 1, identity_kind, identity_kind);
}

TEMPLATE_LIST_TEST_CASE("scaling the weights by a power of two scales the result",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const dense w = rounded<typename TestType::scalar>(random_normal(15, 20, 21));
  const problem<TestType> plain(be, w, dense(20, 1));
  const auto right = make_metric(be, metric_kind::triangular, 20, 10, 22);
  for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
    const auto factor = [&](const problem<TestType>& p) {
      return ressvd::truncated_svd(be, p.placed_w.view(), {}, right.metric(), 8,
                                   {.algorithm = algorithm});
    };
    const auto expected = factor(plain);
    for (const int exponent : {-100, 100}) {
      const double scale = std::ldexp(1.0, exponent);
      const problem<TestType> scaled(be, scale * w, dense(20, 1));
      const auto basis = factor(scaled);
      CHECK(values_of(be, basis.q) == values_of(be, expected.q));
      CHECK(column(basis.singular_values) == scale * column(expected.singular_values));
      CHECK(basis.total_energy == scale * scale * expected.total_energy);
      CHECK(basis.report.numerical_rank == expected.report.numerical_rank);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("storage and layout of W do not change the factorisation",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const auto right = make_metric(be, metric_kind::triangular, 17, 10, 23);
  const auto left = make_metric(be, metric_kind::diagonal, 13, 10, 24);
  for_each_storage([&]<class U>(U) {
    const dense w = rounded<typename TestType::scalar>(rounded<U>(random_normal(13, 17, 25)));
    const problem<TestType> reference(be, w, dense(17, 1));
    for (const int sides : {0, 1, 2}) {
      const auto l = sides == 0 ? ressvd::metric<typename TestType::space>{} : left.metric();
      const auto r = sides == 1 ? ressvd::metric<typename TestType::space>{} : right.metric();
      const auto expected = ressvd::truncated_svd(be, reference.placed_w.view(), l, r, 6);
      const auto expected_pair =
          values_of(be, ressvd::slice(be, reference.placed_w.view(), expected, 6));
      for (const layout order : {layout::row_major, layout::col_major}) {
        for (const index_t padding : {0, 5}) {
          INFO(storage_name<U>() << ", metrics " << sides);
          const placed<U, TestType> pw(be, w, order, padding);
          const auto basis = ressvd::truncated_svd(be, pw.view(), l, r, 6);
          CHECK(values_of(be, basis.q) == values_of(be, expected.q));
          CHECK(basis.singular_values == expected.singular_values);
          // The second factor is a product whose order of summation may depend on the layout.
          const auto pair = values_of(be, ressvd::slice(be, pw.view(), basis, 6));
          const dense bound = (34 * eps<TestType>)*(
              absolute(expected_pair.u) * dense(6, 17, max_abs(expected_pair.v) + frobenius(w)));
          CHECK(error_in_bounds(pair.product(), expected_pair.product(), bound) <= 1);
          CHECK(pw.unchanged(be));
        }
      }
    }
  });
}

TEMPLATE_LIST_TEST_CASE("float agrees with double", "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  wide be64(be);
  const dense x = activations(30, 100, 26, {.outlier_channels = 2});
  const problem<TestType> p(be, random_normal(25, 30, 27), x);
  const placed<double, wide> pw(be64, p.w);
  const auto whitening = ressvd::whiten(be, p.placed_g.view());
  for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
    const auto narrow = ressvd::truncated_svd(be, p.placed_w.view(), {}, whitening.metric(), 10,
                                              {.algorithm = algorithm});
    const auto broad = ressvd::truncated_svd(be64, pw.view(), {}, whitening.metric(), 10,
                                             {.algorithm = algorithm});
    const double error = projection_error(p.w, x, eps<TestType>);
    CHECK(distance(column(narrow.singular_values), column(broad.singular_values)) <= 2 * error);
    const auto a = values_of(be, ressvd::slice(be, p.placed_w.view(), narrow, 10));
    const auto b = values_of(be64, ressvd::slice(be64, pw.view(), broad, 10));
    const double exact = loss_of(p.w, b.product(), x);
    CHECK_THAT(loss_of(p.w, a.product(), x),
               WithinAbs(exact, loss_tolerance(exact, error) + gram_algorithm_loss(p.w * x, 10)));
  }
}

TEMPLATE_LIST_TEST_CASE("the curve of losses is the loss of every slice in any metric",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const problem<TestType> p(be, random_normal(16, 13, 28), dense(13, 1));
  const auto losses = [&](const auto& weights, const ressvd::svd_basis<TestType>& basis,
                          const ressvd::metric<typename TestType::space>& metric) {
    const ressvd::weight<TestType> w(be, weights);
    const auto nested = ressvd::slice(be, w, basis, basis.rank());
    const auto kind = basis.acts == ressvd::projection::left ? ressvd::nesting::projection
                                                             : ressvd::nesting::general;
    return ressvd::truncation_losses(be, w, nested.u.ref(), nested.v.ref(), kind, metric);
  };
  const auto check = [&](const ressvd::svd_basis<TestType>& basis,
                         const ressvd::metric<typename TestType::space>& metric,
                         const dense& factor) {
    const auto curve = losses(p.placed_w.view(), basis, metric);
    REQUIRE(curve.size() == 10);
    // A projection on the right is optimal in no metric but its own: there the loss may rise.
    const bool plain_on_right = basis.acts == ressvd::projection::right && metric.is_identity();
    if (basis.acts == ressvd::projection::left || plain_on_right) {
      CHECK(std::is_sorted(curve.rbegin(), curve.rend()));
    }
    // Differences of squares: each of 9 subtractions, and sums of at most 16 + 13 terms in them,
    // round to eps of ‖W‖²‖F‖².
    const double tolerance = (9 + 29) * eps<TestType> * squared_norm(p.w) * squared_norm(factor);
    CHECK_THAT(curve.front(), WithinAbs(squared_norm(p.w * factor), tolerance));
    for (index_t r = 1; r <= 9; ++r) {
      const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, r));
      CHECK_THAT(curve[static_cast<std::size_t>(r)],
                 WithinAbs(loss_of(p.w, pair.product(), factor), tolerance));
    }
  };
  const auto right = make_metric(be, metric_kind::triangular, 13, 30, 29);
  const auto other = make_metric(be, metric_kind::diagonal, 13, 4, 30);
  const auto left = make_metric(be, metric_kind::dense, 16, 30, 31);
  const auto on_left = ressvd::truncated_svd(be, p.placed_w.view(), {}, right.metric(), 9);
  check(on_left, {}, identity(13));
  check(on_left, right.metric(), right.factor);
  check(on_left, other.metric(), other.factor);
  const auto on_right = ressvd::truncated_svd(be, p.placed_w.view(), left.metric(), {}, 9);
  check(on_right, {}, identity(13));
  check(on_right, right.metric(), right.factor);
  check(on_right, other.metric(), other.factor);

  // Weights of 2^100 in a metric of 2^50 leave float's range without care.
  const double large = 0x1p100;
  const problem<TestType> scaled(be, large * p.w, dense(13, 1));
  const placed<double, TestType> metric(be, 0x1p50 * right.factor);
  const auto wide_metric = ressvd::metric<typename TestType::space>::triangular(metric.block());
  const auto expected = losses(p.placed_w.view(), on_left, right.metric());
  const auto curve = losses(scaled.placed_w.view(), on_left, wide_metric);
  for (std::size_t r = 0; r < curve.size(); ++r)
    CHECK(curve[r] == 0x1p300 * expected[r]);

  const auto on_both =
      ressvd::truncated_svd(be, p.placed_w.view(), left.metric(), right.metric(), 9);
  check(on_both, {}, identity(13));
  check(on_both, right.metric(), right.factor);
  CHECK_THROWS_WITH(losses(p.placed_w.view(), on_right, left.metric()),
                    contains_text("the metric's factor has 16 rows, expected 13"));
}

TEMPLATE_LIST_TEST_CASE("wrong calls of the truncated SVD are refused", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  using T = typename TestType::scalar;
  using view = ressvd::matrix_view<const T, typename TestType::space>;
  using metric = ressvd::metric<typename TestType::space>;
  auto be = make_backend<TestType>();
  const placed<T, TestType> w(be, random_normal(6, 8, 31), layout::row_major, 1);
  const placed<double, TestType> square(be, identity(8));
  const placed<double, TestType> narrow(be, random_normal(8, 2, 32));
  const auto factor = [&](view a, const metric& left, const metric& right, index_t rank) {
    return ressvd::truncated_svd(be, a, left, right, rank);
  };
  for (const index_t rank : {-1, 0, 7}) {
    CHECK_THROWS_WITH(
        factor(w.view(), {}, {}, rank),
        contains_text("rank " + std::to_string(rank) + " of a 6 x 8 matrix is outside [1, 6]"));
  }
  CHECK_THROWS_WITH(factor(w.view(), {}, metric::dense(narrow.block()), 3),
                    contains_text("rank 3 of a 6 x 8 matrix is outside [1, 2]"));
  CHECK_THROWS_WITH(factor(w.view(), metric::dense(square.block()), {}, 3),
                    contains_text("the left metric's factor has 8 rows, expected 6"));
  CHECK_THROWS_WITH(factor(w.view(), {}, metric::diagonal(square.block()), 3),
                    contains_text("the right metric's factor is 8 x 8, expected 8 x 1"));
  CHECK_THROWS_WITH(factor(w.view(), {}, metric::triangular(narrow.block()), 3),
                    contains_text("the right metric's factor is 8 x 2, expected 8 x 8"));
  CHECK_THROWS_WITH(factor(w.view(), {}, metric{metric_kind::dense, {}}, 3),
                    contains_text("the right metric's factor is empty"));
  CHECK_THROWS_WITH(factor(w.view(), {}, metric::dense({nullptr, 8, 8, 8}), 3),
                    contains_text("the right metric's factor (8 x 8) has a null data pointer"));
  CHECK_THROWS_WITH(factor(view{}, {}, {}, 1), contains_text("W is empty (0 x 0)"));
  CHECK_THROWS_WITH(factor(view{nullptr, 6, 8, 8}, {}, {}, 1),
                    contains_text("W (6 x 8) has a null data pointer"));
  view short_rows = w.view();
  short_rows.ld = 7;
  CHECK_THROWS_WITH(factor(short_rows, {}, {}, 1),
                    contains_text("W (6 x 8, row-major) has leading dimension 7, less than 8"));

  dense spoiled = random_normal(6, 8, 31);
  spoiled(4, 5) = not_a_number;
  const placed<T, TestType> bad(be, spoiled, layout::row_major, 1);
  CHECK_THROWS_AS(factor(bad.view(), {}, {}, 1), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(factor(bad.view(), {}, {}, 1), contains_text("W (6 x 8) has "));
  if constexpr (std::is_same_v<typename TestType::space, ressvd::host_space>) {
    CHECK_THROWS_WITH(factor(bad.view(), {}, {}, 1), contains_text("at row 4, column 5"));
  }
  dense bad_factor = identity(8);
  bad_factor(7, 2) = std::numeric_limits<double>::infinity();
  const placed<double, TestType> pf(be, bad_factor);
  CHECK_THROWS_AS(factor(w.view(), {}, metric::dense(pf.block()), 1), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(factor(w.view(), {}, metric::dense(pf.block()), 1),
                    contains_text("the right metric"));

  const auto basis = factor(w.view(), {}, {}, 4);
  const placed<T, TestType> other(be, random_normal(7, 8, 33));
  for (const index_t rank : {0, 5}) {
    CHECK_THROWS_WITH(
        ressvd::slice(be, w.view(), basis, rank),
        contains_text("rank " + std::to_string(rank) + " cannot be sliced from a basis of rank 4"));
  }
  CHECK_THROWS_WITH(ressvd::slice(be, other.view(), basis, 2),
                    contains_text("W is 7 x 8, but the basis was made for rows of 6"));
  const placed<double, TestType> six(be, identity(6));
  const auto both = factor(w.view(), metric::dense(six.block()), metric::dense(square.block()), 4);
  const placed<T, TestType> wider(be, random_normal(6, 9, 34));
  CHECK_THROWS_WITH(ressvd::slice(be, wider.view(), both, 2), contains_text("W is 6 x 9"));
  CHECK_THROWS_WITH(basis.truncation_loss(7), contains_text("rank 7 of 6 singular values"));
  CHECK_THROWS_WITH(basis.truncation_loss(-1), contains_text("rank -1"));
}

TEMPLATE_LIST_TEST_CASE("the tolerance asked for is reached at every slice",
                        "[truncated_svd][long]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  struct shape {
    index_t m, n;
  };
  for (const auto [m, n] : {shape{90, 130}, {130, 90}, {100, 100}}) {
    const index_t count = (std::min)(m, n);
    for (const auto& [name, spectrum] : spectra(count)) {
      const problem<TestType> p(be, with_spectrum(m, n, spectrum, 40), dense(n, 1));
      const std::vector<double> sigma = svd(p.w).s;
      const double rounding = span_rounding<TestType>(p.w);
      for (const index_t rank : {1, 20, 45}) {
        for (const double tolerance : {1e-3, 1e-5}) {
          for (const svd_algorithm algorithm : to_tolerance) {
            INFO(m << " x " << n << ", " << name << ", rank " << rank << ", tolerance " << tolerance
                   << ", " << support::name_of(algorithm));
            const auto basis =
                ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, rank,
                                      {.algorithm = algorithm, .tolerance = tolerance});
            if (algorithm == svd_algorithm::subspace) {
              CHECK(basis.report.algorithm == algorithm);
              CHECK(basis.report.applications >= 0.5);
              CHECK(basis.report.sweeps <= 20);
            } else if (basis.report.algorithm != svd_algorithm::gram) {
              CHECK(basis.report.algorithm == algorithm);
              CHECK(basis.report.excess_loss > 0);
            }
            CHECK(basis.report.excess_loss <= tolerance);
            CHECK(p.placed_w.unchanged(be));
            const dense q = values_of(be, basis.q);
            CHECK(orthonormality_error(q) <= householder_tolerance(m, rank, eps<TestType>));
            for (const index_t r : {rank, (rank + 1) / 2, (rank + 3) / 4}) {
              INFO("slice " << r);
              const double optimum = sum_of_squares_from(sigma, r);
              const double allowed = (1 + tolerance) * optimum + rounding;
              const double lost = span_loss(p.w, q, r);
              CHECK(lost <= allowed);
              // An upper bound, half a step of the iteration behind the slice, up to the rounding
              // of energies in sums of the scalar.
              CHECK(basis.truncation_loss(r) <=
                    (1 + 2 * tolerance) * optimum + 20 * eps<TestType> * squared_norm(p.w));
              CHECK(basis.truncation_loss(r) >= lost - 20 * eps<TestType> * squared_norm(p.w));
            }
            REQUIRE(static_cast<index_t>(basis.singular_values.size()) == count);
            CHECK(std::is_sorted(basis.singular_values.rbegin(), basis.singular_values.rend()));
            CHECK_THAT(basis.truncation_loss(0),
                       WithinRel(basis.total_energy, 100 * eps<TestType>));
            CHECK_THAT(basis.total_energy, WithinRel(squared_norm(p.w), 10 * eps<TestType>));
          }
        }
      }
    }
  }
}

// The values of a whitened matrix, from many start blocks: what the iteration reports as its excess
// is not below what it lost.
TEMPLATE_LIST_TEST_CASE("the estimated excess of subspace iteration is not below the real one",
                        "[truncated_svd][long]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  constexpr index_t m = 128;
  constexpr index_t n = 200;
  std::vector<double> sigma;
  for (index_t i = 0; i < m; ++i) {
    const auto x = static_cast<double>(i);
    sigma.push_back(60 * std::exp(-x / 48) + 30 * std::exp(-x / 4));
  }
  const problem<TestType> p(be, with_spectrum(m, n, sigma, 40), dense(n, 1));
  const double rounding = span_rounding<TestType>(p.w);
  for (const double tolerance : {1e-3, 1e-5}) {
    for (const index_t rank : {20, 37}) {
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const auto basis = ressvd::truncated_svd(
            be, p.placed_w.view(), {}, {}, rank,
            {.algorithm = svd_algorithm::subspace, .tolerance = tolerance, .seed = seed});
        const double estimate = basis.report.excess_loss;
        INFO("tolerance " << tolerance << ", rank " << rank << ", seed " << seed << ", estimate "
                          << estimate);
        CHECK(estimate <= tolerance);
        CHECK(span_loss(p.w, values_of(be, basis.q), rank) <=
              (1 + 1.25 * estimate) * sum_of_squares_from(sigma, rank) + rounding);
      }
    }
  }
}

// The deflated Gram serves a spectrum if its bound on rounding in the scalar at hand allows.
TEMPLATE_LIST_TEST_CASE("the deflated Gram serves spectra of layers", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  for (const auto& [m, n] : {std::pair<index_t, index_t>{90, 130}, {130, 90}}) {
    for (const auto& [name, spectrum] : spectra(90)) {
      const problem<TestType> p(be, with_spectrum(m, n, spectrum, 40), dense(n, 1));
      const std::vector<double> sigma = svd(p.w).s;
      const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 30,
                                               {.algorithm = svd_algorithm::deflated_gram});
      INFO(m << " x " << n << ", " << name << ", excess " << basis.report.excess_loss);
      if (std::string(name) == "steep") {
        // 2·30·2·eps of the largest eigenvalue, in float, is more than the whole loss.
        const bool in_float = eps<TestType> > 1e-10;
        CHECK((basis.report.algorithm == svd_algorithm::gram) == in_float);
        continue;
      }
      CHECK(basis.report.algorithm == svd_algorithm::deflated_gram);
      CHECK(basis.report.sweeps == 0);
      // Beyond the rank it knows the values, to the root of what rounding does to eigenvalues: here
      // that of a whole sum.
      REQUIRE(basis.singular_values.size() == sigma.size());
      for (const index_t r : {40, 60}) {
        CHECK_THAT(basis.truncation_loss(r),
                   WithinAbs(sum_of_squares_from(sigma, r), 1e-3 * sum_of_squares_from(sigma, 30)));
      }
    }
  }
}

// Directions of one singular value on both sides of the rank never separate, and need not.
TEMPLATE_LIST_TEST_CASE("a plateau at the rank does not hold the iteration up", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const svd_algorithm algorithm = GENERATE(from_range(to_tolerance));
  CAPTURE(support::name_of(algorithm));
  constexpr index_t count = 120;
  std::vector<double> plateau(count, 0.5);
  std::fill_n(plateau.begin(), 60, 1.0);
  std::fill_n(plateau.begin(), 10, 2.0);
  const problem<TestType> p(be, with_spectrum(count, 150, plateau, 41), dense(150, 1));
  for (const index_t rank : {20, 40}) {
    INFO("rank " << rank);
    const auto basis =
        ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, rank, {.algorithm = algorithm});
    CHECK(basis.report.sweeps <= 4);
    CHECK(basis.report.excess_loss <= 1e-3);
    CHECK(span_loss(p.w, values_of(be, basis.q), rank) <=
          (1 + 1e-3) * sum_of_squares_from(plateau, rank));
  }
}

TEMPLATE_LIST_TEST_CASE("a tolerance holds in any metric", "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const svd_algorithm algorithm = GENERATE(from_range(to_tolerance));
  CAPTURE(support::name_of(algorithm));
  const index_t m = 80;
  const index_t n = 110;
  const problem<TestType> p(be, random_normal(m, n, 41),
                            activations(n, 300, 42, {.outlier_channels = 2, .dead_channels = 1}));
  const auto whitening = ressvd::whiten(be, p.placed_g.view());
  const auto left = make_metric(be, metric_kind::diagonal, m, 10, 43);
  const auto right = make_metric(be, metric_kind::triangular, n, 10, 44);
  const ressvd::svd_options options{.algorithm = algorithm};
  const auto check = [&](const ressvd::metric<typename TestType::space>& l,
                         const ressvd::metric<typename TestType::space>& r,
                         const dense& left_factor, const dense& right_factor) {
    const dense a = weighed(left_factor, p.w, right_factor);
    const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), l, r, 25, options);
    const auto pair = values_of(be, ressvd::slice(be, p.placed_w.view(), basis, 25));
    const double optimum = sum_of_squares_from(svd(a).s, 25);
    const double lost = squared_norm(weighed(left_factor, p.w - pair.product(), right_factor));
    const double error = residual_error<TestType>(left_factor, p.w, right_factor, pair);
    CHECK(lost <= (1 + options.tolerance) * optimum + loss_tolerance(optimum, error));
    CHECK(lost >= optimum - loss_tolerance(optimum, error));
  };
  check({}, right.metric(), identity(m), right.factor);
  check(left.metric(), {}, left.factor, identity(n));
  check(left.metric(), right.metric(), left.factor, right.factor);

  const auto basis =
      ressvd::truncated_svd(be, p.placed_w.view(), {}, whitening.metric(), 25, options);
  const dense a = p.w * p.x;
  const double damped = whitening.report.damping * squared_norm(p.w);
  const double lost = span_loss(a, values_of(be, basis.q), 25);
  CHECK(lost <= (1 + options.tolerance) * sum_of_squares_from(svd(a).s, 25) +
                    span_rounding<TestType>(a) + damped);
}

TEMPLATE_LIST_TEST_CASE("the same seed gives the same", "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const svd_algorithm algorithm = GENERATE(from_range(to_tolerance));
  CAPTURE(support::name_of(algorithm));
  const problem<TestType> p(be, with_spectrum(70, 90, spiked_spectrum(70, 3), 45), dense(90, 1));
  const auto factor = [&](std::uint64_t seed) {
    return ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 20,
                                 {.algorithm = algorithm, .seed = seed});
  };
  const auto first = factor(7);
  const auto again = factor(7);
  CHECK(values_of(be, first.q) == values_of(be, again.q));
  CHECK(first.singular_values == again.singular_values);
  CHECK(first.report.excess_loss == again.report.excess_loss);
  const auto other = factor(8);
  if (first.report.algorithm == algorithm) { // gram in its place has nothing random
    CHECK_FALSE(values_of(be, first.q) == values_of(be, other.q));
  }
  CHECK(span_loss(p.w, values_of(be, other.q), 20) <=
        1.001 * sum_of_squares_from(svd(p.w).s, 20) + span_rounding<TestType>(p.w));
}

TEMPLATE_LIST_TEST_CASE("ranks beyond the matrix's own are served to a tolerance too",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const svd_algorithm algorithm = GENERATE(from_range(to_tolerance));
  CAPTURE(support::name_of(algorithm));
  for (const index_t own_rank : {0, 1, 5, 18, 30}) {
    for (const auto& [m, n] : {std::pair<index_t, index_t>{60, 80}, {80, 60}}) {
      INFO(m << " x " << n << " of rank " << own_rank);
      const dense w =
          own_rank == 0 ? dense(m, n) : with_spectrum(m, n, geometric_spectrum(own_rank, 4), 46);
      const problem<TestType> p(be, w, dense(n, 1));
      const auto basis =
          ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 30, {.algorithm = algorithm});
      const dense q = values_of(be, basis.q);
      CHECK(orthonormality_error(q) <= householder_tolerance(m, 30, eps<TestType>));
      CHECK(span_loss(p.w, q, 30) <= span_rounding<TestType>(p.w));
      CHECK(basis.truncation_loss(30) <= 20 * eps<TestType> * squared_norm(p.w));
      CHECK(std::all_of(basis.singular_values.begin(), basis.singular_values.end(),
                        [](double s) { return std::isfinite(s); }));
      if (own_rank < 30) CHECK(basis.report.numerical_rank == own_rank);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("more outliers than the rank asked for", "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const svd_algorithm algorithm = GENERATE(from_range(to_tolerance));
  CAPTURE(support::name_of(algorithm));
  std::vector<double> spectrum = geometric_spectrum(60, 10);
  for (std::size_t i = 0; i < 5; ++i)
    spectrum[i] = 1000 - 100 * static_cast<double>(i);
  const problem<TestType> p(be, with_spectrum(60, 80, spectrum, 48), dense(80, 1));
  for (const index_t rank : {1, 2, 4}) {
    INFO("rank " << rank);
    const auto basis =
        ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, rank, {.algorithm = algorithm});
    const double optimum = sum_of_squares_from(spectrum, rank);
    CHECK(span_loss(p.w, values_of(be, basis.q), rank) <=
          1.01 * optimum + span_rounding<TestType>(p.w));
  }
}

TEMPLATE_LIST_TEST_CASE("subspace iteration gives way where its block is the whole matrix",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const problem<TestType> p(be, random_normal(20, 30, 47), dense(30, 1));
  for (const index_t rank : {12, 20}) { // blocks of 20 and 28 columns
    const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, rank,
                                             {.algorithm = svd_algorithm::subspace});
    CHECK(basis.report.algorithm == svd_algorithm::gram);
    CHECK(basis.report.sweeps == 0);
  }
  const auto narrow = ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 11,
                                            {.algorithm = svd_algorithm::subspace});
  CHECK(narrow.report.algorithm == svd_algorithm::subspace);
  for (const double tolerance : {0.0, -1.0, not_a_number}) {
    CHECK_THROWS_WITH(
        ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 2, {.tolerance = tolerance}),
        contains_text("is not positive"));
  }
}

TEMPLATE_LIST_TEST_CASE("automatic takes the faster algorithm that keeps the scalar's digits",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  using list = std::vector<svd_algorithm>;
  auto be = make_backend<TestType>();
  const auto chosen = [&](index_t rows, index_t cols, index_t rank) {
    return ressvd::choose_algorithms(be, svd_algorithm::automatic, rows, cols, rank);
  };
  const list gram{svd_algorithm::gram};
  const list subspace = ressvd::detail::doubles_are_fast(be)
                            ? gram
                            : list{svd_algorithm::subspace, svd_algorithm::gram};
  if constexpr (std::is_same_v<typename TestType::scalar, double>) {
    CHECK(chosen(4096, 4096, 100) == list{svd_algorithm::exact});
  } else {
    constexpr bool partial = ressvd::detail::has_leading_eigenvectors<TestType>;
    const list beyond = partial ? list{svd_algorithm::deflated_gram, svd_algorithm::gram} : gram;
    const bool projects =
        ressvd::detail::doubles_are_fast(be) && ressvd::detail::reduced_products_are_fast(be);
    const auto large = [&](const list& otherwise) {
      return projects ? list{svd_algorithm::projector, svd_algorithm::gram} : otherwise;
    };
    CHECK(chosen(4096, 4096, 600) == large(subspace));
    CHECK(chosen(4096, 4096, 1228) == large(partial ? beyond : subspace));
    CHECK(chosen(4096, 4096, 2500) == beyond);
    CHECK(chosen(4096, 1024, 70) == subspace);
    CHECK(chosen(1024, 4096, 500) == beyond);
    CHECK(chosen(1024, 1024, 900) == gram);
    CHECK(chosen(300, 4096, 10) == gram);
    // On both sides of every bound: 512 rows, the share of the shorter side, 3/4 of it.
    CHECK(chosen(511, 511, 10) == gram);
    CHECK(chosen(512, 512, 10) == subspace);
    const index_t square = partial ? 150 : 500;
    CHECK(chosen(1000, 1000, square) == subspace);
    CHECK(chosen(1000, 1000, square + 1) == beyond);
    CHECK(chosen(1999, 1000, square) == subspace);
    CHECK(chosen(1000, 2000, square / 2) == subspace);
    CHECK(chosen(2000, 1000, square / 2 + 1) == beyond);
    CHECK(chosen(1000, 1000, 750) == beyond);
    CHECK(chosen(1000, 1000, 751) == gram);
    const problem<TestType> p(be, random_normal(512, 520, 48), dense(520, 1));
    const auto basis = ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 8);
    CHECK(basis.report.algorithm == subspace.front());
  }
}

TEMPLATE_LIST_TEST_CASE("behind an algorithm that may decline stands one that never does",
                        "[truncated_svd]", test_backends) {
  using namespace svd_suite;
  using list = std::vector<svd_algorithm>;
  auto be = make_backend<TestType>();
  for (const auto asked : {svd_algorithm::exact, svd_algorithm::gram}) {
    CHECK(ressvd::choose_algorithms(be, asked, 4096, 4096, 600) == list{asked});
  }
  for (const auto asked : to_tolerance) {
    CHECK(ressvd::choose_algorithms(be, asked, 10, 10, 10) == list{asked, svd_algorithm::gram});
  }

  const auto declines = [&](const dense& w, index_t rank, auto algorithm) {
    const problem<TestType> p(be, w, dense(w.cols(), 1));
    const ressvd::weight<TestType> prepared(be, p.placed_w.view());
    const ressvd::detail::weighted_matrix<TestType> a{.w = prepared.values.view()};
    auto q = be.allocate(w.rows(), rank);
    return !algorithm(a, q.ref()).has_value();
  };
  const auto subspace = [&](const auto& a, auto q) {
    return ressvd::detail::subspace_svd<TestType>(be, a, {}, q);
  };
  const auto deflated = [&](const auto& a, auto q) {
    return ressvd::detail::deflated_gram_svd<TestType>(be, a, {}, q);
  };
  CHECK_FALSE(declines(random_normal(20, 30, 47), 11, subspace)); // a block of 19 columns
  CHECK(declines(random_normal(20, 30, 47), 12, subspace));
  CHECK_FALSE(declines(random_normal(40, 30, 47), 15, deflated));
  CHECK(declines(with_spectrum(40, 50, hidden_loss(40), 49), 25, deflated) ==
        std::is_same_v<typename TestType::scalar, float>);
}

TEMPLATE_LIST_TEST_CASE("progress rises, and false ends the call", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  const auto algorithm =
      GENERATE(svd_algorithm::exact, svd_algorithm::gram, svd_algorithm::subspace,
               svd_algorithm::deflated_gram, svd_algorithm::projector);
  CAPTURE(support::name_of(algorithm));
  const std::vector<dense> matrices{with_spectrum(60, 80, spiked_spectrum(60, 3), 50),
                                    with_spectrum(80, 60, hidden_loss(60), 51)};
  for (const dense& w : matrices) {
    const problem<TestType> p(be, w, dense(w.cols(), 1));
    const auto factor = [&](std::function<bool(double)> progress) {
      return ressvd::truncated_svd(be, p.placed_w.view(), {}, {}, 40,
                                   {.algorithm = algorithm, .progress = std::move(progress)});
    };
    const auto silent = factor(nullptr);
    std::vector<double> told;
    const auto watched = factor([&](double done) {
      told.push_back(done);
      return true;
    });
    CHECK(values_of(be, watched.q) == values_of(be, silent.q));
    CHECK(watched.report.algorithm == silent.report.algorithm);
    REQUIRE(told.size() >= 2);
    CHECK(told.front() == 0);
    CHECK(std::is_sorted(told.begin(), told.end()));
    CHECK(told.back() < 1);
    if (silent.report.algorithm == svd_algorithm::subspace) {
      CHECK(static_cast<index_t>(told.size()) >= 1 + silent.report.sweeps);
    }

    for (std::size_t end = 1; end <= told.size(); ++end) {
      std::size_t calls = 0;
      CHECK_THROWS_AS(factor([&](double) { return ++calls < end; }), ressvd::cancelled);
      CHECK(calls == end);
    }
    CHECK(values_of(be, factor(nullptr).q) == values_of(be, silent.q));
  }
}

TEMPLATE_LIST_TEST_CASE("a weight prepared once gives what the matrix gives", "[truncated_svd]",
                        test_backends) {
  using namespace svd_suite;
  auto be = make_backend<TestType>();
  for (const layout order : {layout::row_major, layout::col_major}) {
    const problem<TestType> p(be, 1e-3 * random_normal(17, 13, 52), dense(13, 1));
    const placed<ressvd::half, TestType> stored(be, p.w, order, 2);
    const ressvd::weight<TestType> w(be, stored.view());
    const auto left = make_metric(be, metric_kind::diagonal, 17, 10, 53);
    const auto right = make_metric(be, metric_kind::triangular, 13, 10, 54);
    using metric = ressvd::metric<typename TestType::space>;
    for (const auto& [l, r] : {std::pair<metric, metric>{{}, right.metric()},
                               {left.metric(), {}},
                               {left.metric(), right.metric()}}) {
      const auto once = ressvd::truncated_svd(be, w, l, r, 7);
      const auto each = ressvd::truncated_svd(be, stored.view(), l, r, 7);
      CHECK(once.acts == each.acts);
      CHECK(values_of(be, once.q) == values_of(be, each.q));
      CHECK(once.singular_values == each.singular_values);
      const auto a = values_of(be, ressvd::slice(be, w, once, 5));
      const auto b = values_of(be, ressvd::slice(be, stored.view(), each, 5));
      CHECK(a.u == b.u);
      CHECK(a.v == b.v);
    }
  }
}
