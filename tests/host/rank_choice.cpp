// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/rank_choice.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "support/catch.hpp"
#include "support/special_values.hpp"

using ressvd::index_t;
using ressvd::rank_choice;
using ressvd::rounding;
using support::not_a_number;

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
    if (exact == 0)
      CHECK((choice.dense || choice.rank == 1));
    else
      REQUIRE(choice.rank == exact);
  }
}

TEST_CASE("a ratio just beside a decimal in binary does not cost a rank", "[layer_ratio]") {
  // α = 10, and (1 − 0.9)·10 is 0.99999999999999978 in double.
  CHECK((1 - 0.9) * 10 < 1);
  CHECK(ressvd::rank_for_ratio(20, 20, 0.9).rank == 1);
  // A layer ratio N·R/k: 1 − 32·0.2/12 = 7/15, α = 150.
  CHECK(ressvd::rank_for_ratio(300, 300, 32 * 0.2 / 12).rank == 70);
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
      const double achieved = ressvd::achieved_ratio(m, n, choice);
      if (choice.dense) {
        REQUIRE(achieved == 0);
        REQUIRE(choice == ressvd::keep_dense(m, n));
        REQUIRE(choice.rank == std::min(m, n));
        continue;
      }
      REQUIRE(choice.rank % q == 0);
      REQUIRE(choice.rank * (m + n) < m * n);
      // 1 − r/α: a handful of roundings of numbers below 1.
      REQUIRE(achieved ==
              Approx(1 - static_cast<double>(choice.rank) / ressvd::break_even_rank(m, n))
                  .margin(1e-15));
      if (exact < static_cast<double>(q)) {
        REQUIRE(choice.rank == q);
        continue;
      }
      const double difference = static_cast<double>(choice.rank) - exact;
      // 1e-9 is far above the rounding slack 64 ε α and far below one rank.
      if (towards == rounding::down) {
        REQUIRE((difference <= 1e-9 && difference > -static_cast<double>(q)));
        REQUIRE(achieved >= ratio - 1e-12);
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

TEST_CASE("at least one multiple; dense where it saves nothing", "[layer_ratio]") {
  const auto least = ressvd::rank_for_ratio(64, 64, 0.99); // (1 − 0.99)·32 = 0.32
  CHECK(least == rank_choice{.rank = 1, .dense = false});
  CHECK(ressvd::achieved_ratio(64, 64, least) < 0.99);

  const auto useless = ressvd::rank_for_ratio(64, 64, 0.5, {.multiple = 64}); // α = 32 < 64
  CHECK(useless == rank_choice{.rank = 64, .dense = true});
  CHECK(ressvd::achieved_ratio(64, 64, useless) == 0);

  const auto untouched = ressvd::rank_for_ratio(64, 48, 0);
  CHECK(untouched == rank_choice{.rank = 48, .dense = true});
  CHECK(ressvd::kept_parameters(64, 48, untouched) == 64 * 48);

  CHECK(ressvd::rank_for_ratio(1, 4096, 0.5).dense); // α < 1: any rank costs more
  CHECK(ressvd::largest_saving_rank(1, 4096) == 0);
}

TEST_CASE("a target is a ratio or a rank", "[layer_ratio]") {
  using ressvd::at_rank;
  using ressvd::at_ratio;
  CHECK(at_ratio(0.2).choose(1024, 8192) == ressvd::rank_for_ratio(1024, 8192, 0.2));
  CHECK(at_ratio(0.2, {.multiple = 64}).choose(4096, 11008).rank == 2368);
  CHECK(at_ratio(0).choose(6, 4) == ressvd::keep_dense(6, 4));
  // A rank is taken as it is, though the factors of rank 4 are larger than 6 × 4.
  CHECK(at_rank(4).choose(6, 4) == rank_choice{.rank = 4, .dense = false});
  CHECK(ressvd::achieved_ratio(6, 4, at_rank(4).choose(6, 4)) == Approx(1 - 40.0 / 24));

  for (const index_t rank : {-1, 0, 5})
    CHECK_THROWS_WITH(
        at_rank(rank).choose(6, 4),
        contains_text("rank " + std::to_string(rank) + " of a 6 x 4 matrix is outside [1, 4]"));
  CHECK_THROWS_WITH(at_rank(1).choose(0, 4), contains_text("0 x 4"));
  CHECK_THROWS_WITH(at_ratio(1), contains_text("ratio 1 is outside [0, 1)"));
  CHECK_THROWS_WITH(at_ratio(not_a_number), contains_text("nan"));
  CHECK_THROWS_WITH(at_ratio(0.5, {.multiple = 0}), contains_text("multiple 0"));
}

TEST_CASE("wide matrices take their small break-even rank", "[layer_ratio]") {
  // A grouped-query key projection, 1024 × 8192: α = 910.2.
  CHECK(ressvd::largest_saving_rank(1024, 8192) == 910);
  CHECK(ressvd::rank_for_ratio(1024, 8192, 0.2).rank == 728);
  CHECK(ressvd::kept_parameters(1024, 8192, ressvd::rank_for_ratio(1024, 8192, 0.2)) == 728 * 9216);
  CHECK(ressvd::achieved_ratio(1024, 8192, {.rank = 1024}) < 0);
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
  CHECK_THROWS_WITH(ressvd::achieved_ratio(8, 6, {.rank = 7}), contains_text("rank 7"));
  CHECK_THROWS_WITH(ressvd::kept_parameters(8, 6, {.rank = 0}), contains_text("rank 0"));
}
