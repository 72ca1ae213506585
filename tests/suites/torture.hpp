// SPDX-License-Identifier: Apache-2.0
//
// Inputs on which careless code overflows, divides by zero or loses all digits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/algorithms.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/dense.hpp"
#include "support/placed.hpp"
#include "support/problem.hpp"

namespace torture_suite {

using namespace support;
using ressvd::svd_algorithm;
namespace methods = ressvd::methods;

inline constexpr double double_eps = std::numeric_limits<double>::epsilon();

/// The statistics of X for all methods, gathered by the library itself.
template <class B>
struct statistics {
  ressvd::calibration<B> input;
  ressvd::shifted_input<B> shifted; ///< X once more
  placed<double, B> importance;
  placed<double, B> curvature;

  statistics(B& be, const dense& x, index_t rows)
      : input(be, accumulate(be, x)),
        shifted(be, x.rows()),
        importance(be, absolute(random_normal(rows, 1, 99))),
        curvature(be, gram_of(random_normal(rows, 2 * rows, 98))) {
    const placed<double, B> p(be, transpose(x));
    shifted.observe(p.view());
  }

 private:
  static ressvd::gram_accumulator<B> accumulate(B& be, const dense& x) {
    ressvd::gram_accumulator<B> sums(be, x.rows());
    const placed<double, B> p(be, x);
    sums.add(p.view(), ressvd::token_order::features_by_tokens);
    return sums;
  }
};

struct outcome {
  std::string name;
  pair_values pair;
  ressvd::method_report report;
};

/// All methods on one matrix.
template <class B>
std::vector<outcome> run_all(B& be, const dense& w, statistics<B>& known, index_t rank,
                             svd_algorithm algorithm) {
  using T = typename B::scalar;
  const placed<T, B> pw(be, w, layout::row_major, 1);
  std::vector<outcome> outcomes;
  const auto keep = [&](std::string name, const auto& result) {
    outcomes.push_back({std::move(name), values_of(be, result.factors), result.report});
  };
  const auto run = [&](auto method) {
    method.options.algorithm = algorithm;
    ressvd::weight<B> weight(be, pw.view());
    weight.row_importance = known.importance.block();
    weight.output_curvature = known.curvature.block();
    const auto factored = known.input.factor(std::move(weight), method, {rank});
    keep(std::string(method.name), factored.at(ressvd::at_rank(rank)));
    // The row space of a whitened truncation is what an update is for: from another one the oblique
    // projection may be larger than W.
    if (method.name == "svd-llm" || method.name == "adasvd") {
      keep(std::string(method.name) + ", updated",
           known.shifted.update(factored, method, {.rank = rank}));
    }
  };
  run(methods::svd{});
  run(methods::fwsvd{});
  run(methods::asvd{});
  run(methods::svd_llm{});
  run(methods::adasvd{});
  run(methods::ressvd{.beta = 0.3});
  run(methods::tempered{});
  run(methods::kfac_svd{});
  return outcomes;
}

inline void check_finite(const outcome& o) {
  CHECK(all_finite(o.pair.u));
  CHECK(all_finite(o.pair.v));
  CHECK(all_finite(o.pair.product()));
  CHECK(std::isfinite(o.report.weight_loss.absolute));
  CHECK(std::isfinite(o.report.weight_loss.relative));
  REQUIRE(o.report.activation_loss.has_value());
  CHECK(std::isfinite(o.report.activation_loss->absolute));
  CHECK(std::isfinite(o.report.activation_loss->relative));
  CHECK(o.report.weight_loss.absolute >= 0);
  CHECK(o.report.activation_loss->absolute >= 0);
}

} // namespace torture_suite

TEMPLATE_LIST_TEST_CASE("weights of any magnitude are compressed alike", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense x = activations(20, 60, 1, {.outlier_channels = 1});
  statistics<TestType> known(be, x, 14);
  const dense w = rounded<T>(random_normal(14, 20, 2));
  for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
    const auto expected = run_all(be, w, known, 6, algorithm);
    for (const double magnitude : {0x1p-100, 0x1p100, 1e-30, 1e30}) {
      const auto actual = run_all(be, rounded<T>(magnitude * w), known, 6, algorithm);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        INFO(actual[i].name << ", " << name_of(algorithm) << ", weights of " << magnitude);
        check_finite(actual[i]);
        // W itself is rounded again, which moves losses by eps of the norm.
        const double error = projection_error(w, identity(20), eps<TestType>);
        CHECK_THAT(actual[i].report.weight_loss.relative,
                   WithinAbs(expected[i].report.weight_loss.relative, 4 * error / frobenius(w)));
        CHECK_THAT(actual[i].report.activation_loss->relative,
                   WithinAbs(expected[i].report.activation_loss->relative,
                             4 * projection_error(w, x, eps<TestType>) / frobenius(w * x)));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("activations of any magnitude are whitened alike", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  const dense x = activations(24, 80, 3, {.outlier_channels = 1});
  // 24 columns against 10 rows take the reduction to a triangle first.
  for (const index_t m : {10, 20, 40}) {
    const dense w = rounded<T>(random_normal(m, 24, 4));
    const double optimum = sum_of_squares_from(svd(w * x).s, 6) / squared_norm(w * x);
    for (const double magnitude : {1e-25, 1e-12, 1e12, 1e25}) {
      statistics<TestType> known(be, magnitude * x, m);
      for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
        const placed<T, TestType> pw(be, w);
        const auto result = known.input.compress(
            pw.view(), methods::svd_llm{{.algorithm = algorithm}}, ressvd::at_rank(6));
        INFO(m << " x 24, " << name_of(algorithm) << ", activations of " << magnitude);
        const double error = projection_error(w, x, eps<TestType>) / frobenius(w * x);
        const double tolerance =
            loss_tolerance(optimum, error) + gram_algorithm_loss(w * x, 6) / squared_norm(w * x);
        const auto pair = values_of(be, result.factors);
        CHECK_THAT(loss_of(w, pair.product(), x) / squared_norm(w * x),
                   WithinAbs(optimum, tolerance));
        CHECK_THAT(result.report.activation_loss->relative, WithinAbs(optimum, tolerance));
      }
    }
  }
}

// A power of two commutes with every rounding, so it changes nothing but the scale.
TEMPLATE_LIST_TEST_CASE("subspace iteration does not depend on the metric's scale", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  using metric = ressvd::metric<typename TestType::space>;
  auto be = make_backend<TestType>();
  const placed<T, TestType> w(be, rounded<T>(random_normal(60, 50, 6)));
  const auto factor = [&](double magnitude) {
    dense f(50, 1);
    for (index_t i = 0; i < 50; ++i)
      f(i, 0) = magnitude;
    const placed<double, TestType> weights(be, f);
    return ressvd::truncated_svd(be, w.view(), {}, metric::diagonal(weights.block()), 10,
                                 {.algorithm = svd_algorithm::subspace});
  };
  const auto expected = factor(1);
  for (const double magnitude : {0x1p-100, 0x1p-70, 0x1p70, 0x1p100}) {
    const auto actual = factor(magnitude);
    INFO("metric of " << magnitude);
    CHECK(values_of(be, actual.q) == values_of(be, expected.q));
    CHECK(actual.singular_values[0] == magnitude * expected.singular_values[0]);
    CHECK(actual.truncation_loss(10) == magnitude * magnitude * expected.truncation_loss(10));
  }
}

TEMPLATE_LIST_TEST_CASE("Grams of condition 1e18 leave the loss within its bound", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  using wide = ressvd::wide_backend<TestType>;
  auto be = make_backend<TestType>();
  for (const double spread : {1e3, 1e6, 1e9}) { // condition numbers of G: squares of these
    dense x = random_normal(24, 90, 5);
    const std::vector<double> scale = geometric_spectrum(24, spread);
    for (index_t t = 0; t < 90; ++t) {
      for (index_t i = 0; i < 24; ++i)
        x(i, t) *= scale[static_cast<std::size_t>(i)];
    }
    for (const index_t m : {16, 40}) {
      const dense w = rounded<T>(random_normal(m, 24, 6));
      const placed<T, TestType> pw(be, w);
      const placed<double, TestType> px(be, x);
      const placed<double, TestType> pg(be, x * transpose(x));
      ressvd::qr_accumulator<wide> accumulator(wide(be), 24);
      accumulator.add(px.view(), ressvd::token_order::features_by_tokens);
      const auto by_cholesky = ressvd::whiten(be, pg.view());
      const auto by_qr = ressvd::whiten(be, accumulator);
      const std::vector<double> sigma = svd(w * x).s;
      for (const auto* whitening : {&by_cholesky, &by_qr}) {
        const bool qr = whitening == &by_qr;
        for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
          for (const index_t rank : {4, 12}) {
            INFO("spread " << spread << ", " << m << " x 24, " << (qr ? "QR" : "Cholesky") << ", "
                           << name_of(algorithm) << ", rank " << rank);
            auto input = qr ? ressvd::calibration(be, ressvd::whiten(be, accumulator))
                            : ressvd::calibration<TestType>(be, pg.block());
            const auto result = input.compress(
                pw.view(), methods::svd_llm{{.algorithm = algorithm}}, ressvd::at_rank(rank));
            const auto pair = values_of(be, result.factors);
            CHECK(all_finite(pair.product()));
            const double optimum = sum_of_squares_from(sigma, rank);
            const double lost = loss_of(w, pair.product(), x);
            // A is known to eps of its norm, through QR; through the Gram its square is, and
            // damping adds its share of ‖W‖².
            const double error = projection_error(w, x, eps<TestType>);
            const double squared =
                qr ? 0
                   : householder_tolerance(24, 24, double_eps) * squared_norm(x) * squared_norm(w) +
                         whitening->report.damping * squared_norm(w);
            const double eigen =
                algorithm == svd_algorithm::gram ? gram_algorithm_loss(w * x, rank) : 0;
            CHECK(lost <= optimum + loss_tolerance(optimum, error) + squared + eigen);
          }
        }
      }
    }
  }
}

// Where a float64 reference loses more than rounding explains, the loss is within 1 % of its.
TEMPLATE_LIST_TEST_CASE("the activation loss of hard inputs is within 1 % of the optimum",
                        "[torture]", test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  constexpr index_t m = 16;
  constexpr index_t n = 24;
  const dense w = random_normal(m, n, 31);
  const dense x = activations(n, 80, 32);
  const auto scaled_channel = [&](index_t channel, double factor) {
    dense changed = x;
    for (index_t t = 0; t < x.cols(); ++t)
      changed(channel, t) *= factor;
    return changed;
  };
  const dense ones_m(m, 1, 1.0);
  const dense ones_n(n, 1, 1.0);
  dense duplicated = x;
  for (index_t t = 0; t < x.cols(); ++t) {
    for (index_t i = 0; i < n / 2; ++i)
      duplicated(n / 2 + i, t) = x(i, t);
  }
  dense few_denormals = w;
  for (index_t i = 0; i < m; i += 2)
    few_denormals(i, i) = std::numeric_limits<T>::denorm_min();
  const struct {
    const char* name;
    dense w;
    dense x;
  } inputs[] = {
      {"an outlier channel of 1e3", w, scaled_channel(5, 1e3)},
      {"an outlier channel of 1e6", w, scaled_channel(5, 1e6)},
      {"a denormal channel", w, scaled_channel(5, 1e-310)},
      {"a channel whose square is denormal", w, scaled_channel(5, 1e-158)},
      {"denormal weights", few_denormals, x},
      {"weights of the smallest numbers", 8 * double{std::numeric_limits<T>::min()} * w, x},
      {"weights of 1e-30", 1e-30 * w, x},
      {"weights of 1e30", 1e30 * w, x},
      {"equal rows of W", ones_m * part(w, 0, 0, 1, n), x},
      {"equal columns of W", part(w, 0, 0, m, 1) * transpose(ones_n), x},
      {"equal rows of X", w, ones_n * part(x, 0, 0, 1, x.cols())},
      {"equal tokens", w, part(x, 0, 0, n, 1) * dense(1, 80, 1.0)},
      {"duplicated features", w, duplicated},
      {"one token", w, left_cols(x, 1)},
      {"fewer tokens than features", w, left_cols(x, n / 2)},
  };
  for (const auto& input : inputs) {
    const dense weights = rounded<T>(input.w);
    const dense weighed = weights * input.x;
    statistics<TestType> known(be, input.x, m);
    const placed<T, TestType> pw(be, weights);
    const std::vector<double> sigma = svd(weighed).s;
    // The norm of (W−Ŵ)X that rounding may leave: from the projection, from stored factors that are
    // denormal, and, as a square root, from the Gram with the damping that it took.
    const double error = projection_error(weights, input.x, eps<TestType>) +
                         double{std::numeric_limits<T>::denorm_min()} * static_cast<double>(n) *
                             spectral_norm(input.x);
    const double gram_error = (householder_tolerance(n, n, double_eps) * squared_norm(input.x) +
                               known.input.whitening().report.damping) *
                              squared_norm(weights);
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      for (const index_t rank : {1, 6, 12}) {
        INFO(input.name << ", " << name_of(algorithm) << ", rank " << rank);
        const double rounding_share =
            101 * error * error + gram_error +
            (algorithm == svd_algorithm::gram ? gram_algorithm_loss(weighed, rank) : 0);
        const auto whitened = known.input.compress(
            pw.view(), methods::svd_llm{{.algorithm = algorithm}}, ressvd::at_rank(rank));
        const dense approximation = values_of(be, whitened.factors).product();
        CHECK(all_finite(approximation));
        CHECK(loss_of(weights, approximation, input.x) <=
              1.01 * sum_of_squares_from(sigma, rank) + rounding_share);

        // The residual stage adds to what the whitened one keeps.
        const auto compensated = known.input.compress(
            pw.view(), methods::ressvd{.options = {.algorithm = algorithm}, .beta = 0.3},
            ressvd::at_rank(rank));
        CHECK(loss_of(weights, values_of(be, compensated.factors).product(), input.x) <=
              1.01 * sum_of_squares_from(sigma, compensated.report.intermediate_rank) +
                  rounding_share);
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("degenerate activations are no obstacle to any method", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  dense one_channel(18, 30);
  for (index_t t = 0; t < 30; ++t)
    one_channel(7, t) = 1;
  const std::vector<std::pair<const char*, dense>> inputs{
      {"one token", random_normal(18, 1, 7)},
      {"two tokens", random_normal(18, 2, 8)},
      {"dead channels", activations(18, 50, 9, {.outlier_channels = 2, .dead_channels = 5})},
      {"copied channels", activations(18, 50, 10, {.copied_channels = 6})},
      {"one live channel", one_channel},
      {"all ones", dense(18, 30, 1.0)},
      {"nothing", dense(18, 4)},
  };
  for (const auto& [name, x] : inputs) {
    for (const index_t m : {11, 27}) {
      const dense w = rounded<T>(random_normal(m, 18, 11));
      statistics<TestType> known(be, x, m);
      for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
        for (const auto& o : run_all(be, w, known, 5, algorithm)) {
          INFO(name << ", " << m << " x 18, " << o.name << ", " << name_of(algorithm));
          check_finite(o);
          const double error = projection_error(w, x, eps<TestType>) +
                               storage_error(o.pair, eps<TestType>) * spectral_norm(x);
          const double lost = loss_of(w, o.pair.product(), x);
          // No method does worse than leaving W away.
          CHECK(lost <= squared_norm(w * x) + loss_tolerance(squared_norm(w * x), error));
          // Whitening loses nothing that double resolves where X has rank 5 at most.
          const double known_rank = frobenius(x) == 0 ? 0 : spectral_norm(x);
          const bool low = name == std::string("one token") || name == std::string("two tokens") ||
                           name == std::string("one live channel") ||
                           name == std::string("all ones") || name == std::string("nothing");
          if (low && o.name == "svd_llm") {
            const double negligible =
                (known.input.whitening().report.damping +
                 householder_tolerance(18, 18, double_eps) * known_rank * known_rank) *
                squared_norm(w);
            CHECK(lost <= error * error + negligible + gram_algorithm_loss(w * x, 5));
          }
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("degenerate weights are no obstacle to any method", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  dense hilbert(12, 16);
  for (index_t j = 0; j < 16; ++j) {
    for (index_t i = 0; i < 12; ++i)
      hilbert(i, j) = 1 / static_cast<double>(1 + i + j);
  }
  dense spike(12, 16);
  spike(3, 5) = 1;
  dense dominated = random_normal(12, 16, 12);
  dominated(6, 2) = 1e7;
  const std::vector<std::pair<const char*, dense>> weights{
      {"zero", dense(12, 16)},
      {"ones", dense(12, 16, 1.0)},
      {"one element", spike},
      {"one dominating element", dominated},
      {"Hilbert", hilbert},
      {"axes", part(identity(16), 0, 0, 12, 16)},
      {"row", random_normal(1, 16, 13)},
      {"column", random_normal(12, 1, 14)},
      {"number", random_normal(1, 1, 15)},
  };
  for (const auto& [name, given] : weights) {
    const dense w = rounded<T>(given);
    const dense x = activations(w.cols(), 40, 16);
    statistics<TestType> known(be, x, w.rows());
    const index_t full = (std::min)(w.rows(), w.cols());
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      for (const index_t rank : {index_t{1}, (full + 1) / 2, full}) {
        for (const auto& o : run_all(be, w, known, rank, algorithm)) {
          INFO(name << ", " << o.name << ", " << name_of(algorithm) << ", rank " << rank);
          check_finite(o);
          CHECK(o.report.weight_loss.relative <= 1 + 100 * eps<TestType>);
          if (rank == full) {
            // At full rank nothing is lost that the algorithm resolves.
            const double error = projection_error(w, identity(w.cols()), eps<TestType>) +
                                 storage_error(o.pair, eps<TestType>);
            CHECK(squared_norm(w - o.pair.product()) <=
                  100 * (error * error + gram_algorithm_loss(w, full)));
          }
        }
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("finite input never gives a number that is not finite", "[torture]",
                        test_backends) {
  using namespace torture_suite;
  using T = typename TestType::scalar;
  auto be = make_backend<TestType>();
  std::mt19937_64 random(17);
  const auto draw = [&](index_t low, index_t high) {
    return std::uniform_int_distribution<index_t>(low, high)(random);
  };
  for (int trial = 0; trial < 40; ++trial) {
    const index_t m = draw(1, 30);
    const index_t n = draw(1, 30);
    const index_t tokens = draw(1, 60);
    const auto ragged = [&](index_t rows, index_t cols, double digits) {
      dense a = random_normal(rows, cols, random());
      const auto scales = [&](index_t count) {
        std::vector<double> s;
        for (index_t i = 0; i < count; ++i) {
          const double e = std::uniform_real_distribution<double>(-digits, digits)(random);
          s.push_back(draw(0, 9) == 0 ? 0 : std::pow(10.0, e));
        }
        return s;
      };
      return diagonal_matrix(scales(rows)) * a * diagonal_matrix(scales(cols));
    };
    const dense w = rounded<T>(ragged(m, n, 8));
    const dense x = ragged(n, tokens, 8);
    statistics<TestType> known(be, x, m);
    const index_t rank = draw(1, (std::min)(m, n));
    for (const svd_algorithm algorithm : {svd_algorithm::exact, svd_algorithm::gram}) {
      for (const auto& o : run_all(be, w, known, rank, algorithm)) {
        INFO("trial " << trial << ": " << m << " x " << n << ", " << tokens << " tokens, rank "
                      << rank << ", " << o.name << ", " << name_of(algorithm));
        check_finite(o);
      }
    }
  }
}
