// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/rank_choice.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "support/catch.hpp"
#include "support/special_values.hpp"

using ressvd::factored_form;
using ressvd::index_t;
using ressvd::rank_choice;
using ressvd::rounding;
using support::not_a_number;

namespace {

constexpr auto pivoted = factored_form::pivoted;

/// The largest r with r(m+n−r) ≤ share/100 · mn in integers; 0 where there is none.
index_t pivoted_rank(index_t m, index_t n, index_t share) {
  index_t low = 0, high = std::min(m, n); // the cost grows up to there
  while (low < high) {
    const index_t r = (low + high + 1) / 2;
    if (100 * r * (m + n - r) <= share * m * n)
      low = r;
    else
      high = r - 1;
  }
  return low;
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

TEST_CASE("pivoted: ranks of percentages are those of integer arithmetic", "[layer_ratio]") {
  const auto check = [](index_t m, index_t n, index_t percent) {
    const double ratio = static_cast<double>(percent) / 100;
    const index_t exact = pivoted_rank(m, n, 100 - percent);
    const auto choice = ressvd::rank_for_ratio(m, n, ratio, {.form = pivoted});
    CAPTURE(m, n, percent);
    if (std::min(m, n) == 1 || percent == 0) {
      REQUIRE(choice == ressvd::keep_dense(m, n));
      return;
    }
    REQUIRE(choice == rank_choice{.rank = std::max<index_t>(exact, 1), .dense = false});
    if (exact > 0) {
      REQUIRE(100 * ressvd::kept_parameters(m, n, choice, pivoted) <= (100 - percent) * m * n);
      REQUIRE(ressvd::achieved_ratio(m, n, choice, pivoted) >= ratio - 1e-15);
    }
  };
  for (index_t m = 1; m <= 12; ++m)
    for (index_t n = 1; n <= 12; ++n)
      for (index_t percent = 0; percent < 100; ++percent)
        check(m, n, percent);
  std::mt19937_64 random{3};
  std::uniform_int_distribution<index_t> size{1, 20000};
  for (int trial = 0; trial < 20000; ++trial) {
    const index_t m = trial % 7 == 0 ? 1 + trial % 3 : size(random);
    check(m, trial % 4 == 0 ? m : size(random), 1 + trial % 99);
  }
}

TEST_CASE("pivoted: multiples, direction and the ratio reached", "[layer_ratio]") {
  std::mt19937_64 random{4};
  std::uniform_int_distribution<index_t> size{1, 3000};
  for (int trial = 0; trial < 6000; ++trial) {
    const index_t m = size(random), n = trial % 4 == 0 ? m : size(random), least = std::min(m, n);
    const index_t percent = 1 + trial % 99, q = trial % 2 == 0 ? index_t{1} << (trial % 7) : 3;
    const double ratio = static_cast<double>(percent) / 100;
    const index_t below = pivoted_rank(m, n, 100 - percent);
    const bool exact = 100 * below * (m + n - below) == (100 - percent) * m * n;
    CAPTURE(m, n, percent, q);
    for (const rounding towards : {rounding::down, rounding::nearest, rounding::up}) {
      const auto choice =
          ressvd::rank_for_ratio(m, n, ratio, {.multiple = q, .towards = towards, .form = pivoted});
      // The real rank is `below` or lies between it and the next one.
      const index_t down = std::max(below / q * q, q);
      const index_t up = exact ? std::max((below + q - 1) / q * q, q) : (below / q + 1) * q;
      const auto expected = [&](index_t rank) {
        return rank < least ? rank_choice{.rank = rank, .dense = false} : ressvd::keep_dense(m, n);
      };
      if (towards == rounding::down) REQUIRE(choice == expected(down));
      if (towards == rounding::up) REQUIRE(choice == expected(up));
      if (towards == rounding::nearest) {
        REQUIRE((choice == expected(down) || choice == expected(up)));
        // Half a multiple above `down` the smaller side still has room for the ratio asked for.
        const index_t twice = 2 * down + q; // twice the middle; r(m+n−r) times 4 in integers
        const bool above = 100 * twice * (2 * (m + n) - twice) < 4 * (100 - percent) * m * n;
        if (below >= q && twice < 2 * least) REQUIRE(choice == expected(above ? up : down));
      }
      const index_t kept = ressvd::kept_parameters(m, n, choice, pivoted);
      REQUIRE(kept == (choice.dense ? m * n : m * n - (m - choice.rank) * (n - choice.rank)));
      REQUIRE(kept <= m * n);
      REQUIRE(choice.dense == (kept == m * n));
      REQUIRE(ressvd::achieved_ratio(m, n, choice, pivoted) ==
              Approx(static_cast<double>(m * n - kept) / static_cast<double>(m * n)).margin(1e-15));
    }
  }
}

TEST_CASE("pivoted: a larger ratio never keeps more, nor less than a pair's rank",
          "[layer_ratio]") {
  std::mt19937_64 random{5};
  std::uniform_int_distribution<index_t> size{2, 5000};
  for (int trial = 0; trial < 300; ++trial) {
    const index_t m = size(random), n = trial % 3 == 0 ? m : size(random);
    index_t kept = m * n;
    for (int step = 0; step < 200; ++step) {
      const double ratio = step / 200.0;
      const auto choice = ressvd::rank_for_ratio(m, n, ratio, {.form = pivoted});
      const auto pair = ressvd::rank_for_ratio(m, n, ratio);
      CAPTURE(m, n, ratio);
      REQUIRE(ressvd::kept_parameters(m, n, choice, pivoted) <= kept);
      REQUIRE((pair.dense || choice.rank >= pair.rank));
      kept = ressvd::kept_parameters(m, n, choice, pivoted);
    }
  }
}

TEST_CASE("pivoted: dense is the end of the scale", "[layer_ratio]") {
  for (const index_t m : {1, 2, 3, 64, 4096})
    for (const index_t n : {1, 2, 5, 64, 11008}) {
      const index_t least = std::min(m, n);
      CAPTURE(m, n);
      CHECK(ressvd::kept_parameters(m, n, {.rank = least}, pivoted) == m * n);
      CHECK(ressvd::achieved_ratio(m, n, {.rank = least}, pivoted) == 0);
      CHECK(ressvd::largest_saving_rank(m, n, pivoted) == least - 1);
      if (least > 1) CHECK(ressvd::kept_parameters(m, n, {.rank = least - 1}, pivoted) < m * n);
      CHECK(ressvd::rank_for_ratio(m, n, 0, {.form = pivoted}) == ressvd::keep_dense(m, n));
    }
  // The largest shape: nothing overflows, and a share is not lost between its roundings.
  const index_t huge = (index_t{1} << 31) - 1;
  CHECK(ressvd::kept_parameters(huge, huge, {.rank = huge}, pivoted) == huge * huge);
  CHECK(ressvd::rank_for_ratio(huge, huge, 0.25, {.form = pivoted}).rank == huge / 2); // n(1 − √R)
  // Ratios that no share can tell from 0, and from 1.
  CHECK(ressvd::rank_for_ratio(64, 64, 1e-300, {.form = pivoted}).dense);
  CHECK(ressvd::rank_for_ratio(64, 64, 1 - 1e-16, {.form = pivoted}).rank == 1);
  CHECK(ressvd::rank_for_ratio(64, 64, 1 - 1e-16,
                               {.multiple = 8, .towards = rounding::up, .form = pivoted})
            .rank == 8);
  CHECK(ressvd::rank_for_ratio(2, 2, 0.25, {.form = pivoted}).rank == 1); // 3 of 4 numbers
  CHECK(ressvd::rank_for_ratio(2, 2, 0.25).dense); // a pair of rank 1 takes all 4
  CHECK(ressvd::rank_for_ratio(64, 64, 0.5, {.multiple = 64, .form = pivoted}).dense);
}

TEST_CASE("a target is a ratio or a rank", "[layer_ratio]") {
  using ressvd::at_rank;
  using ressvd::at_ratio;
  CHECK(at_ratio(0.2).choose(1024, 8192) == ressvd::rank_for_ratio(1024, 8192, 0.2));
  CHECK(at_ratio(0.2, {.multiple = 64}).choose(4096, 11008).rank == 2368);
  CHECK(at_ratio(0).choose(6, 4) == ressvd::keep_dense(6, 4));
  CHECK(at_ratio(0.19, {.form = pivoted}).choose(100, 100).rank == 56); // 100(1 − √0.19) = 56.4
  CHECK(at_ratio(0.19, {.multiple = 16, .form = pivoted}).choose(100, 100).rank == 48);
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
  CHECK_THROWS_WITH(rank_for_ratio(0, 4, 0.5, {.form = pivoted}), contains_text("0 x 4"));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, 1, {.form = pivoted}), contains_text("ratio 1 "));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, not_a_number, {.form = pivoted}), contains_text("nan"));
  CHECK_THROWS_WITH(rank_for_ratio(8, 8, 0.5, {.multiple = -1, .form = pivoted}),
                    contains_text("multiple -1"));
  CHECK_THROWS_WITH(ressvd::kept_parameters(8, 6, {.rank = 7}, pivoted), contains_text("rank 7"));
  CHECK_THROWS_WITH(ressvd::achieved_ratio(8, 6, {.rank = 0}, pivoted), contains_text("rank 0"));
  CHECK_THROWS_WITH(ressvd::largest_saving_rank(8, 0, pivoted), contains_text("8 x 0"));
}
