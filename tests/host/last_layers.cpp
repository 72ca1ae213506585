// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/last_layers.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "support/catch.hpp"
#include "support/special_values.hpp"

using ressvd::index_t;
using ressvd::layer_candidate;
using support::infinity;
using support::not_a_number;

namespace {

std::vector<index_t> layers_of(const std::vector<layer_candidate>& candidates) {
  std::vector<index_t> layers;
  for (const layer_candidate& candidate : candidates)
    layers.push_back(candidate.layers);
  return layers;
}

} // namespace

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
