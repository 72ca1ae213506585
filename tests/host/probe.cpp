// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/probe.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/layer_ratio/refine_allocation.hpp"
#include "support/catch.hpp"
#include "support/special_values.hpp"

using ressvd::allocation_matrix;
using ressvd::index_t;
using ressvd::matrix_probe;
using ressvd::rank_choice;
using support::infinity;
using support::not_a_number;

namespace {

/// A stand-in for a model: matrices, and the sensitivities that a probe is to find out.
struct probed_model {
  std::vector<std::vector<double>> spectra;
  std::vector<allocation_matrix> matrices;
  std::vector<double> truth;

  void add(index_t rows, index_t cols, double exponent, double sensitivity) {
    std::vector<double> values;
    for (index_t i = 1; i <= std::min(rows, cols); ++i)
      values.push_back(std::pow(static_cast<double>(i), -exponent / 2));
    spectra.push_back(std::move(values));
    matrices.push_back({.singular_values = spectra.back(), .rows = rows, .cols = cols});
    truth.push_back(sensitivity);
  }

  double lost(std::size_t j, const rank_choice& stored) const {
    return stored.dense ? 0 : ressvd::truncated_energy(spectra[j], stored.rank);
  }

  /// The error of the model if losses simply add up.
  double additive(std::span<const rank_choice> ranks) const {
    double error = 0;
    for (std::size_t j = 0; j < ranks.size(); ++j)
      error += truth[j] * lost(j, ranks[j]);
    return error;
  }
};

probed_model random_model(unsigned seed, int count) {
  std::mt19937_64 random{seed};
  std::uniform_real_distribution<double> exponent{0.5, 2}, log_sensitivity{-3, 3};
  std::uniform_int_distribution<index_t> size{10, 60};
  probed_model m;
  for (int j = 0; j < count; ++j)
    m.add(size(random), size(random), exponent(random), std::exp(log_sensitivity(random)));
  return m;
}

} // namespace

TEST_CASE("probes recover the sensitivities of an additive model", "[probe]") {
  const probed_model m = random_model(1, 20);
  std::vector<std::pair<index_t, index_t>> calls;
  const auto probes = ressvd::probe_matrices(m.matrices, [&](index_t j, index_t rank) {
    calls.emplace_back(j, rank);
    const auto i = static_cast<std::size_t>(j);
    return m.truth[i] * m.lost(i, {.rank = rank});
  });
  REQUIRE(calls.size() == 20);
  for (std::size_t j = 0; j < 20; ++j) {
    CHECK(calls[j].first == static_cast<index_t>(j));
    const double alpha = ressvd::break_even_rank(m.matrices[j].rows, m.matrices[j].cols);
    CHECK(calls[j].second == static_cast<index_t>(alpha / 2));
    CHECK(probes[j].points.size() == 1);
    CHECK(probes[j].sensitivity == Approx(m.truth[j]).epsilon(1e-13));
    CHECK(probes[j].exponent == 1);
  }
  const auto weighted = ressvd::with_sensitivities(m.matrices, probes);
  for (std::size_t j = 0; j < 20; ++j)
    CHECK(weighted[j].sensitivity == probes[j].sensitivity);
}

TEST_CASE("probes at several ranks fit sensitivity and curvature", "[probe]") {
  const probed_model m = random_model(2, 10);
  for (const double exponent : {1.0, 1.5, 2.0}) {
    std::vector<index_t> ranks;
    const auto probes =
        ressvd::probe_matrices(m.matrices,
                               [&](index_t j, index_t rank) {
                                 if (j == 0) ranks.push_back(rank);
                                 const auto i = static_cast<std::size_t>(j);
                                 return m.truth[i] * std::pow(m.lost(i, {.rank = rank}), exponent);
                               },
                               {.rank_shares = {0.25, 0.75, 0.5}});
    CHECK(ranks.size() == 3);
    CHECK(std::ranges::is_sorted(ranks, std::ranges::greater{}));
    for (std::size_t j = 0; j < 10; ++j) {
      CHECK(probes[j].exponent == Approx(exponent).epsilon(1e-9));
      if (exponent == 1) CHECK(probes[j].sensitivity == Approx(m.truth[j]).epsilon(1e-13));
      // A mean of e/T: between the smallest and the largest quotient.
      const auto [least, most] = std::ranges::minmax(probes[j].points, {}, [](const auto& point) {
        return point.error / point.truncated_energy;
      });
      CHECK(probes[j].sensitivity >= least.error / least.truncated_energy * (1 - 1e-13));
      CHECK(probes[j].sensitivity <= most.error / most.truncated_energy * (1 + 1e-13));
    }
  }
}

TEST_CASE("pivoted pairs are probed at the rank that keeps the share", "[probe]") {
  probed_model m = random_model(9, 20);
  m.add(1, 30, 1, 1);
  m.add(2, 2, 1, 1);
  for (auto& matrix : m.matrices)
    matrix.form = ressvd::factored_form::pivoted;
  for (const double share : {0.25, 0.5, 0.75, 1.0}) {
    const auto probes = ressvd::probe_matrices(m.matrices, [](index_t, index_t) { return 1.0; },
                                               {.rank_shares = {share}});
    for (std::size_t j = 0; j < m.matrices.size(); ++j) {
      const index_t rows = m.matrices[j].rows, cols = m.matrices[j].cols;
      index_t expected = 1; // the highest rank within the share that truncates something
      for (index_t r = 2; r < std::min(rows, cols); ++r)
        if (static_cast<double>(r * (rows + cols - r)) <= share * static_cast<double>(rows * cols))
          expected = r;
      CAPTURE(rows, cols, share);
      if (rows == 1) {
        CHECK(probes[j].points.empty());
        continue;
      }
      REQUIRE(probes[j].points.size() == 1);
      CHECK(probes[j].points[0].rank == expected);
    }
  }
}

TEST_CASE("matrices that a probe cannot truncate", "[probe]") {
  std::vector<double> rank_three(20, 0.0), rank_one(20, 0.0), zero(20, 0.0), full(20, 1.0);
  rank_three[0] = 5, rank_three[1] = 2, rank_three[2] = 1, rank_one[0] = 5;
  std::vector<allocation_matrix> matrices;
  for (const auto* values : {&rank_three, &rank_one, &zero, &full})
    matrices.push_back({.singular_values = *values, .rows = 20, .cols = 20});
  matrices[3].sensitivity = infinity;

  std::vector<std::pair<index_t, index_t>> calls;
  const auto probes = ressvd::probe_matrices(matrices, [&](index_t j, index_t rank) {
    calls.emplace_back(j, rank);
    return 0.5;
  });
  CHECK(calls == std::vector<std::pair<index_t, index_t>>{{0, 2}}); // the last rank that loses
  CHECK(probes[0].sensitivity == 0.5);
  CHECK(probes[1].sensitivity == 0);
  CHECK(probes[2].sensitivity == 0);
  CHECK(probes[2].points.empty());
  CHECK(probes[3].sensitivity == infinity);

  // And the result is an input of the solver.
  const auto result =
      ressvd::allocate_ranks(ressvd::with_sensitivities(matrices, probes), 400 + 40 * 5);
  CHECK(result.loss == 0);
  CHECK(result.ranks[0].rank == 3);
}

TEST_CASE("probe errors: negative ones count as zero, others are refused", "[probe]") {
  probed_model m = random_model(3, 3);
  m.matrices[1].name = "layers.0.down_proj";
  const auto negative =
      ressvd::probe_matrices(m.matrices, [](index_t j, index_t) { return j == 1 ? -1e-9 : 1.0; });
  CHECK(negative[1].points[0].error == -1e-9);
  CHECK(negative[1].sensitivity == 0);
  CHECK(negative[2].sensitivity > 0);

  for (const double bad : {not_a_number, infinity}) {
    const auto failing = [&](index_t j, index_t) { return j == 1 ? bad : 1.0; };
    CHECK_THROWS_AS(ressvd::probe_matrices(m.matrices, failing), ressvd::nonfinite_error);
    CHECK_THROWS_WITH(ressvd::probe_matrices(m.matrices, failing),
                      contains_text("matrix 1 (layers.0.down_proj) at rank "));
  }
  const auto fine = [](index_t, index_t) { return 1.0; };
  CHECK_THROWS_WITH(ressvd::probe_matrices(m.matrices, fine, {.rank_shares = {}}),
                    contains_text("no rank shares"));
  CHECK_THROWS_WITH(ressvd::probe_matrices(m.matrices, fine, {.rank_shares = {0.5, 1.5}}),
                    contains_text("share 1.5"));
  CHECK_THROWS_WITH(ressvd::probe_matrices(m.matrices, fine, {.least_truncated_share = 1}),
                    contains_text("share 1 "));
  CHECK_THROWS_WITH(ressvd::with_sensitivities(m.matrices, std::vector<matrix_probe>(2)),
                    contains_text("2 probes for 3 matrices"));
}

TEST_CASE("a curved spectrum truncates to the power of the energy", "[probe]") {
  const probed_model m = random_model(4, 12);
  for (const allocation_matrix& matrix : m.matrices) {
    const index_t probed = static_cast<index_t>(matrix.singular_values.size()) / 3;
    const double unit = ressvd::truncated_energy(matrix.singular_values, probed);
    for (const double exponent : {1.0, 1.3, 2.0}) {
      const auto curved = ressvd::curve_spectrum(matrix, exponent, probed);
      allocation_matrix replaced = matrix;
      replaced.singular_values = curved.singular_values;
      replaced.tail_energy = curved.tail_energy;
      CHECK_NOTHROW(ressvd::allocate_ranks(std::vector{replaced}, ressvd::unlimited));
      for (index_t r = 0; r <= static_cast<index_t>(matrix.singular_values.size()); ++r) {
        const double expected =
            unit * std::pow(ressvd::truncated_energy(matrix.singular_values, r) / unit, exponent);
        CHECK(ressvd::truncated_energy(curved.singular_values, r, curved.tail_energy) ==
              Approx(expected).epsilon(1e-10).margin(1e-14 * unit));
      }
    }
    CHECK_THROWS_WITH(ressvd::curve_spectrum(matrix, 0.5, probed), contains_text("exponent 0.5"));
  }
}

TEST_CASE("probes and allocation together beat the uniform ratio", "[probe]") {
  const probed_model m = random_model(5, 40);
  const auto probes = ressvd::probe_matrices(m.matrices, [&](index_t j, index_t rank) {
    const auto i = static_cast<std::size_t>(j);
    return m.truth[i] * m.lost(i, {.rank = rank});
  });
  const auto matrices = ressvd::with_sensitivities(m.matrices, probes);
  for (const double ratio : {0.2, 0.4, 0.6}) {
    const auto result = ressvd::allocate_ranks(matrices, ressvd::uniform_budget(matrices, ratio));
    CHECK(m.additive(result.ranks) == Approx(result.loss).epsilon(1e-12));
    std::vector<rank_choice> uniform;
    for (const allocation_matrix& matrix : matrices)
      uniform.push_back(ressvd::rank_for_ratio(matrix.rows, matrix.cols, ratio));
    CHECK(m.additive(result.ranks) < m.additive(uniform));
  }
}

TEST_CASE("rounds leave a solution alone that needs no correction", "[refine_allocation]") {
  probed_model m = random_model(6, 15);
  for (std::size_t j = 0; j < m.matrices.size(); ++j)
    m.matrices[j].sensitivity = m.truth[j];
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  index_t next = ressvd::no_matrix;
  const auto refined = ressvd::refine_allocation(
      m.matrices, budget,
      [&](std::span<const rank_choice> ranks, index_t changed) {
        CHECK(changed == next++); // the solution first, then the matrices in order
        return m.additive(ranks);
      },
      [&](std::span<const rank_choice> ranks) { return m.additive(ranks); }, {.rounds = 3});
  CHECK(next == 15);
  CHECK(refined.solution.ranks == ressvd::allocate_ranks(m.matrices, budget).ranks);
  CHECK(refined.attempts.size() == 1);
  CHECK(refined.attempts[0].accepted);
  CHECK(refined.sensitivities == m.truth);
}

TEST_CASE("rounds move a matrix to half of what it has", "[refine_allocation]") {
  for (const auto form : {ressvd::factored_form::pair, ressvd::factored_form::pivoted}) {
    probed_model m = random_model(7, 20);
    for (auto& matrix : m.matrices)
      matrix.form = form;
    const index_t budget = ressvd::uniform_budget(m.matrices, 0.1);
    const auto first = ressvd::allocate_ranks(m.matrices, budget);
    int dense = 0, factored = 0;
    ressvd::refine_allocation(
        m.matrices, budget,
        [&](std::span<const rank_choice> ranks, index_t changed) {
          if (changed == ressvd::no_matrix) return m.additive(ranks);
          const auto j = static_cast<std::size_t>(changed);
          const index_t rows = m.matrices[j].rows, cols = m.matrices[j].cols;
          REQUIRE(!ranks[j].dense);
          if (first.ranks[j].dense) { // the highest rank that keeps at most half
            ++dense;
            CHECK(2 * ressvd::kept_parameters(rows, cols, ranks[j], form) <= rows * cols);
            CHECK(2 * ressvd::kept_parameters(rows, cols, {ranks[j].rank + 1}, form) > rows * cols);
          } else if (first.ranks[j].rank > 1) {
            ++factored;
            CHECK(ranks[j].rank == first.ranks[j].rank / 2);
          }
          return m.additive(ranks);
        },
        [&](std::span<const rank_choice>) { return 1.0; });
    CHECK(dense > 0);
    CHECK(factored > 0);
  }
}

TEST_CASE("rounds correct wrong sensitivities within the trust region", "[refine_allocation]") {
  for (unsigned seed = 10; seed < 20; ++seed) {
    const probed_model m = random_model(seed, 20); // all sensitivities assumed 1, off by up to e³
    const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
    const auto measure = [&](std::span<const rank_choice> ranks, index_t) {
      return m.additive(ranks);
    };
    const auto validate = [&](std::span<const rank_choice> ranks) { return m.additive(ranks); };
    const auto first = ressvd::allocate_ranks(m.matrices, budget);
    const auto refined =
        ressvd::refine_allocation(m.matrices, budget, measure, validate, {.rounds = 4, .trust = 2});
    CHECK(refined.validation == m.additive(refined.solution.ranks));
    CHECK(refined.validation < m.additive(first.ranks));
    CHECK(refined.solution.parameters <= budget);
    double accepted = infinity, largest = 1;
    for (const auto& attempt : refined.attempts) {
      if (!attempt.accepted) continue;
      CHECK(attempt.validation < accepted);
      accepted = attempt.validation;
      if (attempt.round > 0) largest *= attempt.trust;
    }
    CHECK(accepted == refined.validation);
    for (const double sensitivity : refined.sensitivities) {
      CHECK(sensitivity <= largest * (1 + 1e-12));
      CHECK(sensitivity >= 1 / largest * (1 - 1e-12));
    }
  }
}

TEST_CASE("rounds leave matrices alone that cannot be measured", "[refine_allocation]") {
  probed_model m = random_model(9, 20);
  m.matrices[3].sensitivity = infinity; // dense
  m.matrices[5].sensitivity = 0;
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.3);
  const auto error = [&](std::span<const rank_choice> ranks) { return m.additive(ranks); };
  std::vector<index_t> changed;
  const auto refined =
      ressvd::refine_allocation(m.matrices, budget,
                                [&](std::span<const rank_choice> ranks, index_t j) {
                                  changed.push_back(j);
                                  return error(ranks);
                                },
                                error, {.rounds = 1});
  CHECK(changed.size() == 1 + 18);
  CHECK(refined.attempts.size() > 1);
  CHECK(refined.sensitivities[3] == infinity);
  CHECK(refined.sensitivities[5] == 0);
  CHECK(refined.solution.ranks[3].dense);
}

TEST_CASE("a held-out error that does not improve keeps the first solution",
          "[refine_allocation]") {
  const probed_model m = random_model(7, 20);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  const auto first = ressvd::allocate_ranks(m.matrices, budget);
  int evaluations = 0;
  const auto refined = ressvd::refine_allocation(
      m.matrices, budget,
      [&](std::span<const rank_choice> ranks, index_t) {
        ++evaluations;
        return m.additive(ranks);
      },
      [&](std::span<const rank_choice> ranks) {
        return std::ranges::equal(ranks, first.ranks) ? 1.0 : 2.0;
      },
      {.rounds = 5, .trust = 16, .attempts = 3});
  CHECK(refined.solution.ranks == first.ranks);
  CHECK(refined.validation == 1);
  CHECK(evaluations == 21); // one round of probes; no new ones at the same solution
  REQUIRE(refined.attempts.size() == 4);
  CHECK(refined.attempts[1].trust == 16);
  CHECK(refined.attempts[2].trust == 4);
  CHECK(refined.attempts[3].trust == 2);
  CHECK(!refined.attempts[3].accepted);
  CHECK(refined.sensitivities == std::vector<double>(20, 1.0));
}

TEST_CASE("rounds refuse errors that are not finite", "[refine_allocation]") {
  probed_model m = random_model(8, 4);
  m.matrices[2].name = "gate";
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  const auto one = [](std::span<const rank_choice>) { return 1.0; };
  const auto measure = [&](double solution, double probe) {
    return [=](std::span<const rank_choice>, index_t changed) {
      return changed == ressvd::no_matrix ? solution : changed == 2 ? probe : 1.0;
    };
  };
  const auto refine = [&](auto&& evaluate, auto&& validate, ressvd::refine_options options = {}) {
    return ressvd::refine_allocation(m.matrices, budget, evaluate, validate, options);
  };
  CHECK_THROWS_WITH(refine(measure(not_a_number, 1), one), contains_text("the solution"));
  CHECK_THROWS_WITH(refine(measure(1, infinity), one), contains_text("matrix 2 (gate)"));
  CHECK_THROWS_WITH(
      refine(measure(1, 1), [](std::span<const rank_choice>) { return not_a_number; }),
      contains_text("round 0 is nan"));
  CHECK_THROWS_WITH(refine(measure(1, 1), one, {.trust = 1}), contains_text("trust 1"));
}
