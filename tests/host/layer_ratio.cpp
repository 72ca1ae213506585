// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/layer_ratio.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "support/catch.hpp"

using ressvd::index_t;
using ressvd::layer_candidate;
using ressvd::rounding;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<index_t> layers_of(const std::vector<layer_candidate>& candidates) {
  std::vector<index_t> layers;
  for (const layer_candidate& candidate : candidates)
    layers.push_back(candidate.layers);
  return layers;
}

} // namespace

TEST_CASE("ranks of percentages are those of integer arithmetic", "[layer_ratio]") {
  // R = p/100 makes the rank ⌊(100−p)mn / (100(m+n))⌋ without any rounding of R.
  std::mt19937_64 random{1};
  std::uniform_int_distribution<index_t> size{2, 20000};
  for (int trial = 0; trial < 20000; ++trial) {
    const index_t m = size(random), n = trial % 4 == 0 ? m : size(random);
    const index_t percent = 1 + trial % 99;
    const index_t exact = (100 - percent) * m * n / (100 * (m + n));
    const auto choice = ressvd::rank_for_ratio(m, n, static_cast<double>(percent) / 100);
    CAPTURE(m, n, percent);
    if (exact == 0) {
      CHECK(choice.clamped);
      CHECK((choice.dense || choice.rank == 1));
    } else {
      REQUIRE(!choice.clamped);
      REQUIRE(choice.rank == exact);
    }
  }
}

TEST_CASE("a ratio just beside a decimal in binary does not cost a rank", "[layer_ratio]") {
  // α = 10, and (1 − 0.9)·10 is 0.99999999999999978 in double.
  CHECK((1 - 0.9) * 10 < 1);
  CHECK(ressvd::rank_for_ratio(20, 20, 0.9).rank == 1);
  CHECK(!ressvd::rank_for_ratio(20, 20, 0.9).clamped);
  // Layer ratios N·R/k: 1 − 32·0.2/12 = 7/15, α = 150.
  CHECK(ressvd::rank_for_ratio(300, 300, ressvd::layer_ratio(32, 0.2, 12)).rank == 70);
  // Rounding up has the same slack: (1 − 0.7)·100 is 30.000000000000004.
  CHECK((1 - 0.7) * 100 > 30);
  CHECK(ressvd::rank_for_ratio(200, 200, 0.7, {.towards = rounding::up}).rank == 30);
}

TEST_CASE("rank multiples: direction, distance and the ratio reached", "[layer_ratio]") {
  std::mt19937_64 random{2};
  std::uniform_int_distribution<index_t> size{200, 5000};
  std::uniform_real_distribution<double> ratios{0.01, 0.9};
  for (int trial = 0; trial < 3000; ++trial) {
    const index_t m = size(random), n = size(random);
    const double ratio = ratios(random);
    const index_t q = index_t{1} << (trial % 7);
    const double exact = (1 - ratio) * ressvd::break_even_rank(m, n);
    CAPTURE(m, n, ratio, q);
    for (const rounding towards : {rounding::down, rounding::nearest, rounding::up}) {
      const auto choice = ressvd::rank_for_ratio(m, n, ratio, {.multiple = q, .towards = towards});
      REQUIRE(choice.requested_ratio == ratio);
      if (choice.dense) {
        REQUIRE(choice.achieved_ratio == 0);
        REQUIRE(choice.rank == std::min(m, n));
        continue;
      }
      REQUIRE(choice.rank % q == 0);
      REQUIRE(choice.rank * (m + n) < m * n);
      REQUIRE(choice.achieved_ratio == ressvd::ratio_of_rank(m, n, choice.rank));
      if (choice.clamped) {
        REQUIRE(choice.rank == q);
        continue;
      }
      const double difference = static_cast<double>(choice.rank) - exact;
      // 1e-9 is far above the rounding slack 64 ε α and far below one rank.
      if (towards == rounding::down) {
        REQUIRE((difference <= 1e-9 && difference > -static_cast<double>(q)));
        REQUIRE(choice.achieved_ratio >= ratio - 1e-12);
      }
      if (towards == rounding::up)
        REQUIRE((difference >= -1e-9 && difference < static_cast<double>(q)));
      if (towards == rounding::nearest)
        REQUIRE(std::abs(difference) <= static_cast<double>(q) / 2 + 1e-9);
    }
  }
}

TEST_CASE("halves are rounded towards the smaller model", "[layer_ratio]") {
  // α = 50, R = 0.5: 25 multiples of 1, 2.5 multiples of 10.
  CHECK(
      ressvd::rank_for_ratio(100, 100, 0.5, {.multiple = 10, .towards = rounding::nearest}).rank ==
      20);
}

TEST_CASE("rank zero and useless ranks are said, not hidden", "[layer_ratio]") {
  const auto clamped = ressvd::rank_for_ratio(64, 64, 0.99); // (1 − 0.99)·32 = 0.32
  CHECK(clamped.rank == 1);
  CHECK(clamped.clamped);
  CHECK(!clamped.dense);
  CHECK(clamped.achieved_ratio < 0.99);

  const auto useless = ressvd::rank_for_ratio(64, 64, 0.5, {.multiple = 64}); // α = 32 < 64
  CHECK(useless.dense);
  CHECK(useless.clamped);
  CHECK(useless.achieved_ratio == 0);

  const auto untouched = ressvd::rank_for_ratio(64, 48, 0);
  CHECK(untouched.dense);
  CHECK(!untouched.clamped);
  CHECK(untouched.rank == 48);
  CHECK(ressvd::kept_parameters(64, 48, untouched) == 64 * 48);

  const auto vector = ressvd::rank_for_ratio(1, 4096, 0.5); // α < 1: any rank costs more
  CHECK(vector.dense);
  CHECK(ressvd::largest_saving_rank(1, 4096) == 0);
}

TEST_CASE("wide matrices take their small break-even rank", "[layer_ratio]") {
  // A grouped-query key projection, 1024 × 8192: α = 910.2.
  CHECK(ressvd::largest_saving_rank(1024, 8192) == 910);
  CHECK(ressvd::rank_for_ratio(1024, 8192, 0.2).rank == 728);
  CHECK(ressvd::kept_parameters(1024, 8192, ressvd::rank_for_ratio(1024, 8192, 0.2)) == 728 * 9216);
  CHECK(ressvd::ratio_of_rank(1024, 8192, 1024) < 0);
  CHECK(ressvd::largest_saving_rank(4, 4) == 1); // α = 2 exactly: rank 2 saves nothing
}

TEST_CASE("bad shapes, ratios and multiples are refused with their numbers", "[layer_ratio]") {
  using ressvd::rank_for_ratio;
  CHECK_THROWS_AS(rank_for_ratio(0, 4, 0.5), std::invalid_argument);
  CHECK_THROWS_WITH(rank_for_ratio(0, 4, 0.5), contains_text("0 x 4"));
  CHECK_THROWS_WITH(rank_for_ratio(index_t{1} << 31, 4, 0.5), contains_text("2147483648 x 4"));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, 1), contains_text("ratio 1 is outside [0, 1)"));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, -0.25), contains_text("-0.25"));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, not_a_number), contains_text("nan"));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, 0.5, {.multiple = 0}), contains_text("multiple 0"));
  CHECK_THROWS_WITH(ressvd::ratio_of_rank(8, 6, 7), contains_text("rank 7"));
}

TEST_CASE("dense parameters that count raise the ratio of the others", "[layer_ratio]") {
  CHECK(ressvd::compressible_ratio(0.2, 1000, 0) == 0.2);
  // 300 of 1500 removed from 1000.
  CHECK(ressvd::compressible_ratio(0.2, 1000, 500) == Approx(0.3).epsilon(1e-14));
  CHECK_THROWS_WITH(ressvd::compressible_ratio(0.5, 100, 100), contains_text("the ratio 1"));
  CHECK_THROWS_WITH(ressvd::compressible_ratio(0.5, 0, 100), contains_text("0 compressible"));
}

TEST_CASE("layer ratios of the paper: 32 layers at 20 %", "[layer_ratio]") {
  const auto candidates = ressvd::last_layer_candidates(32, 0.2, {.step = 4});
  CHECK(layers_of(candidates) == std::vector<index_t>{32, 28, 24, 20, 16, 12, 8});
  const std::vector<int> percent{20, 23, 27, 32, 40, 53, 80};
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    CHECK(std::lround(100 * candidates[i].ratio) == percent[i]);
    CHECK(candidates[i].ratio == ressvd::layer_ratio(32, 0.2, candidates[i].layers));
  }
  CHECK_THROWS_WITH(ressvd::layer_ratio(32, 0.2, 6), contains_text("last 6 of 32"));
  CHECK_THROWS_WITH(ressvd::layer_ratio(32, 0.2, 6), contains_text("the ratio 1.06667"));
  CHECK_THROWS_WITH(ressvd::layer_ratio(32, 0.2, 33), contains_text("[1, 32]"));
  CHECK_THROWS_WITH(ressvd::layer_ratio(32, 0.2, 0), contains_text("last 0 of 32"));
}

TEST_CASE("candidates are exactly the feasible k on the grid", "[layer_ratio]") {
  // Ratios p/100, so that feasibility N·p < 100 k is exact in integers.
  std::mt19937_64 random{3};
  std::uniform_int_distribution<index_t> layers{1, 100}, percents{0, 99}, steps{1, 9};
  for (int trial = 0; trial < 2000; ++trial) {
    const index_t n = layers(random), percent = percents(random), step = steps(random);
    std::vector<index_t> expected;
    for (index_t k = n; k >= 1; k -= step)
      if (n * percent < 100 * k) expected.push_back(k);
    const double ratio = static_cast<double>(percent) / 100;
    const auto candidates = ressvd::last_layer_candidates(n, ratio, {.step = step});
    CAPTURE(n, percent, step);
    REQUIRE(layers_of(candidates) == expected);
    REQUIRE(candidates.front() == layer_candidate{n, ratio});
    for (const auto& [k, layer_ratio] : candidates) {
      // k layers at R_l remove what n layers at R remove; both sides carry a few roundings.
      REQUIRE(std::abs(static_cast<double>(k) * layer_ratio - static_cast<double>(n) * ratio) <=
              1e-13 * static_cast<double>(n));
      REQUIRE(layer_ratio < 1);
    }
  }
  CHECK_THROWS_WITH(ressvd::last_layer_candidates(0, 0.2), contains_text("0 layers"));
  CHECK_THROWS_WITH(ressvd::last_layer_candidates(8, 0.2, {.step = 0}), contains_text("step 0"));
}

TEST_CASE("layers of different sizes remove the overall share", "[layer_ratio]") {
  std::mt19937_64 random{4};
  std::uniform_int_distribution<index_t> sizes{1, 1000000};
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<index_t> parameters(static_cast<std::size_t>(1 + trial % 40));
    for (index_t& p : parameters)
      p = sizes(random);
    const double total = std::accumulate(parameters.begin(), parameters.end(), 0.0);
    for (const auto& [k, ratio] : ressvd::last_layer_candidates(parameters, 0.3)) {
      const double last = std::accumulate(parameters.end() - k, parameters.end(), 0.0);
      REQUIRE(ratio * last == Approx(0.3 * total).epsilon(1e-12));
      REQUIRE(ressvd::layer_ratio(parameters, 0.3, k) == ratio);
    }
  }
  const std::vector<index_t> with_empty{5, 0, 5};
  CHECK_THROWS_WITH(ressvd::last_layer_candidates(with_empty, 0.3),
                    contains_text("layer 1 has 0 parameters"));
  const std::vector<index_t> beyond(3, index_t{1} << 62);
  CHECK_THROWS_WITH(ressvd::layer_ratio(beyond, 0.3, 2), contains_text("their number above 2^63"));
}

TEST_CASE("selection tries each candidate once, from the largest k down", "[layer_ratio]") {
  auto candidates = ressvd::last_layer_candidates(12, 0.4);
  std::ranges::reverse(candidates);
  std::vector<index_t> tried;
  const auto selection =
      ressvd::select_last_layers(candidates, [&](const layer_candidate& candidate) {
        tried.push_back(candidate.layers);
        return std::abs(static_cast<double>(candidate.layers) - 8.6);
      });
  CHECK(tried == std::vector<index_t>{12, 11, 10, 9, 8, 7, 6, 5});
  CHECK(selection.chosen.layers == 9);
  CHECK(selection.chosen.ratio == ressvd::layer_ratio(12, 0.4, 9));
  CHECK(selection.error == Approx(0.4));
  REQUIRE(selection.curve.size() == 8);
  CHECK(selection.curve.front().candidate.layers == 12);
  CHECK(selection.curve[3].error == selection.error);
}

TEST_CASE("selection: ties go to the larger k, bad errors are refused", "[layer_ratio]") {
  const auto candidates = ressvd::last_layer_candidates(6, 0.5);
  const auto tied = [](const layer_candidate& c) { return c.layers == 6 ? 2.0 : 1.0; };
  CHECK(ressvd::select_last_layers(candidates, tied).chosen.layers == 5);

  for (const double bad : {not_a_number, infinity}) {
    const auto failing = [&](const layer_candidate& c) { return c.layers == 4 ? bad : 1.0; };
    CHECK_THROWS_AS(ressvd::select_last_layers(candidates, failing), ressvd::nonfinite_error);
    CHECK_THROWS_WITH(ressvd::select_last_layers(candidates, failing), contains_text("k = 4"));
  }
  const std::vector<layer_candidate> none, twice{{5, 0.6}, {6, 0.5}, {5, 0.6}};
  CHECK_THROWS_WITH(ressvd::select_last_layers(none, tied), contains_text("no candidates"));
  CHECK_THROWS_WITH(ressvd::select_last_layers(twice, tied), contains_text("k = 5"));
}

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
