// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/importance.hpp"

#include <cmath>
#include <random>
#include <vector>

#include "support/catch.hpp"
#include "support/special_values.hpp"

using ressvd::index_t;
using support::not_a_number;

TEST_CASE("importances: the rule of AdaSVD where it keeps the budget", "[layer_ratio]") {
  const std::vector<double> importances{0.9, 0.6, 0.8, 0.7};
  const std::vector<index_t> sizes(4, 1000);
  const double mrr = 0.4, trr = 0.6;
  const auto result =
      ressvd::ratios_from_importances(importances, sizes, 1 - trr, {.minimum_retention = mrr});
  const double mean = (0.9 + 0.6 + 0.8 + 0.7) / 4;
  for (std::size_t l = 0; l < 4; ++l)
    CHECK(1 - result.ratios[l] == Approx(mrr + importances[l] / mean * (trr - mrr)).epsilon(1e-13));
  CHECK(result.achieved_ratio == Approx(0.4).epsilon(1e-13));
  CHECK(result.whole_layers == 0);
}

TEST_CASE("importances: the overall ratio is reached in general", "[layer_ratio]") {
  std::mt19937_64 random{5};
  std::uniform_real_distribution<double> unit{0.01, 1};
  std::uniform_int_distribution<index_t> sizes{1, 1000000};
  index_t cut_off = 0;
  for (int trial = 0; trial < 500; ++trial) {
    const auto layers = static_cast<std::size_t>(1 + trial % 50);
    std::vector<double> importances(layers);
    std::vector<index_t> parameters(layers);
    for (std::size_t l = 0; l < layers; ++l) {
      importances[l] = std::pow(unit(random), 3);
      parameters[l] = sizes(random);
    }
    const double overall = 0.95 * unit(random);
    const double minimum = (1 - overall) * unit(random);
    const auto result = ressvd::ratios_from_importances(importances, parameters, overall,
                                                        {.minimum_retention = minimum});
    cut_off += result.whole_layers;
    double removed = 0, total = 0;
    for (std::size_t l = 0; l < layers; ++l) {
      REQUIRE(result.ratios[l] >= 0);
      REQUIRE(result.ratios[l] <= 1 - minimum);
      removed += result.ratios[l] * static_cast<double>(parameters[l]);
      total += static_cast<double>(parameters[l]);
      for (std::size_t k = 0; k < layers; ++k)
        if (importances[k] >= importances[l]) REQUIRE(result.ratios[k] <= result.ratios[l]);
    }
    // Sums of at most 50 terms of one size: 50 ε and a margin of ten.
    REQUIRE(std::abs(removed / total - overall) <= 1e-13);
    REQUIRE(std::abs(result.achieved_ratio - overall) <= 1e-13);
  }
  CHECK(cut_off > 0);
}

TEST_CASE("importances: a budget that cannot be spent is reported", "[layer_ratio]") {
  const std::vector<double> importances{1, 0};
  const std::vector<index_t> sizes{100, 100};
  const auto result =
      ressvd::ratios_from_importances(importances, sizes, 0.2, {.minimum_retention = 0.1});
  CHECK(result.ratios == std::vector<double>{0, 0.9});
  CHECK(result.achieved_ratio == Approx(0.45));
  CHECK(result.whole_layers == 1);
}

TEST_CASE("importances: bad input is refused by name", "[layer_ratio]") {
  const std::vector<index_t> sizes{1, 1};
  const auto call = [&](std::vector<double> importances, double ratio, double minimum) {
    return ressvd::ratios_from_importances(importances, sizes, ratio,
                                           {.minimum_retention = minimum});
  };
  CHECK_THROWS_AS(call({1, not_a_number}, 0.5, 0.1), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(call({1, not_a_number}, 0.5, 0.1), contains_text("layer 1 is nan"));
  CHECK_THROWS_WITH(call({-0.5, 1}, 0.5, 0.1), contains_text("layer 0 is -0.5"));
  CHECK_THROWS_WITH(call({0, 0}, 0.5, 0.1), contains_text("all 2 importances are zero"));
  CHECK_THROWS_WITH(call({1, 1, 1}, 0.5, 0.1), contains_text("3 importances for 2 layers"));
  CHECK_THROWS_WITH(call({1, 1}, 0.5, 0), contains_text("minimum retention 0"));
  CHECK_THROWS_WITH(call({1, 1}, 0.5, 0.6), contains_text("minimum retention 0.6"));
  // 1 − 0.8 is below 0.2 in binary, and the same number to a reader.
  CHECK_NOTHROW(call({1, 2}, 0.8, 0.2));
}
