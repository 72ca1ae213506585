// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/rank_allocation.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "ressvd/layer_ratio/last_layers.hpp"
#include "support/catch.hpp"
#include "support/special_values.hpp"

using ressvd::allocation;
using ressvd::allocation_matrix;
using ressvd::factored_form;
using ressvd::index_t;
using ressvd::rank_choice;
using support::infinity;
using support::not_a_number;

namespace {

using generator = std::mt19937_64;

double uniform(generator& random, double low, double high) {
  return std::uniform_real_distribution<double>{low, high}(random);
}

index_t integer(generator& random, index_t low, index_t high) {
  return std::uniform_int_distribution<index_t>{low, high}(random);
}

/// Matrices that own their spectra, given as energies σ².
struct model {
  std::vector<std::vector<double>> spectra;
  std::vector<allocation_matrix> matrices;

  void add(allocation_matrix matrix, std::vector<double> energies) {
    for (double& e : energies)
      e = std::sqrt(e);
    spectra.push_back(std::move(energies)); // the heap block of a moved vector stays in place
    matrix.singular_values = spectra.back();
    matrices.push_back(matrix);
  }
};

std::vector<double> power_law(index_t count, double exponent) {
  std::vector<double> energies;
  for (index_t i = 1; i <= count; ++i)
    energies.push_back(std::pow(static_cast<double>(i), -exponent));
  return energies;
}

/// Random, flat, steep and partly zero spectra.
std::vector<double> random_spectrum(generator& random, index_t count) {
  if (integer(random, 0, 2) == 0) return power_law(count, uniform(random, 0, 3));
  std::vector<double> energies(static_cast<std::size_t>(count));
  const bool ties = integer(random, 0, 2) == 0;
  for (double& e : energies)
    e = ties ? static_cast<double>(integer(random, 0, 3)) : uniform(random, 0, 1);
  std::ranges::sort(energies, std::ranges::greater{});
  return energies;
}

/// A few small matrices with all kinds of constraints.
model small_model(generator& random) {
  model m;
  const index_t count = integer(random, 1, 5);
  for (index_t j = 0; j < count; ++j) {
    allocation_matrix matrix{.rows = integer(random, 2, 14), .cols = integer(random, 2, 14)};
    matrix.sensitivity = uniform(random, 0, 3);
    if (integer(random, 0, 9) == 0) matrix.sensitivity = 0;
    if (integer(random, 0, 3) == 0) matrix.rank_multiple = integer(random, 1, 3);
    if (integer(random, 0, 3) == 0) matrix.max_rank = integer(random, 0, 4);
    if (integer(random, 0, 9) == 0) matrix.sensitivity = infinity;
    const index_t full = std::min(matrix.rows, matrix.cols);
    const index_t known = integer(random, 0, 3) == 0 ? integer(random, 0, full) : full;
    if (known < full) matrix.tail_energy = uniform(random, 0, 1);
    m.add(matrix, random_spectrum(random, known));
  }
  return m;
}

enum class forms { pairs, pivoted, mixed };

void set_forms(generator& random, model& m, forms wanted) {
  if (wanted == forms::pairs) return;
  for (auto& matrix : m.matrices)
    if (wanted == forms::pivoted || integer(random, 0, 1) == 0)
      matrix.form = factored_form::pivoted;
}

index_t cost_of(const allocation_matrix& matrix, const rank_choice& stored) {
  const index_t m = matrix.rows, n = matrix.cols, r = stored.rank;
  if (stored.dense) return m * n;
  return matrix.form == factored_form::pair ? r * (m + n) : r * (m + n - r);
}

/// Every choice the constraints allow, from their definition; the cheapest first.
std::vector<rank_choice> choices(const allocation_matrix& matrix) {
  const index_t m = matrix.rows, n = matrix.cols;
  std::vector<rank_choice> all;
  const auto known = static_cast<index_t>(matrix.singular_values.size());
  for (index_t r = 1; !std::isinf(matrix.sensitivity) && r <= known; ++r)
    if (r <= matrix.max_rank && r % matrix.rank_multiple == 0 &&
        cost_of(matrix, {.rank = r}) < m * n)
      all.push_back({.rank = r, .dense = false});
  all.push_back({.rank = std::min(m, n), .dense = true});
  return all;
}

double loss_of(const allocation_matrix& matrix, const rank_choice& stored) {
  if (stored.dense) return 0;
  double lost = matrix.tail_energy;
  for (const double s : matrix.singular_values.subspan(static_cast<std::size_t>(stored.rank)))
    lost += s * s;
  return matrix.sensitivity * lost;
}

bool feasible(const std::vector<allocation_matrix>& matrices, index_t budget,
              const std::vector<rank_choice>& ranks) {
  index_t total = 0;
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const auto allowed = choices(matrices[j]);
    if (std::ranges::find(allowed, ranks[j]) == allowed.end()) return false;
    total += cost_of(matrices[j], ranks[j]);
  }
  return total <= budget;
}

/// The least loss of all feasible assignments, by trying every one.
std::optional<double> brute_force(const std::vector<allocation_matrix>& matrices, index_t budget) {
  std::optional<double> best;
  std::vector<std::vector<rank_choice>> all;
  for (const auto& matrix : matrices)
    all.push_back(choices(matrix));
  const std::function<void(std::size_t, index_t, double)> descend = [&](std::size_t j, index_t left,
                                                                        double loss) {
    if (j == matrices.size()) {
      best = std::min(best.value_or(loss), loss);
      return;
    }
    for (const rank_choice& stored : all[j]) {
      const index_t cost = cost_of(matrices[j], stored);
      if (cost <= left) descend(j + 1, left - cost, loss + loss_of(matrices[j], stored));
    }
  };
  descend(0, budget, 0);
  return best;
}

/// What the largest step along a matrix's lower convex hull saves: from each vertex of the hull the
/// next is the choice that saves the most per parameter.
double largest_step(const std::vector<allocation_matrix>& matrices) {
  double largest = 0;
  for (const auto& matrix : matrices) {
    const auto all = choices(matrix);
    for (std::size_t at = 0; at + 1 < all.size();) {
      std::size_t next = at;
      double best = -1, saved = 0;
      for (std::size_t to = at + 1; to < all.size(); ++to) {
        const double saving = loss_of(matrix, all[at]) - loss_of(matrix, all[to]);
        const double rate =
            saving / static_cast<double>(cost_of(matrix, all[to]) - cost_of(matrix, all[at]));
        if (rate > best) best = rate, saved = saving, next = to;
      }
      largest = std::max(largest, saved);
      at = next;
    }
  }
  return largest;
}

/// A model of Llama's proportions: `layers` layers of 7 matrices, in their order.
model llama_like(generator& random, index_t layers, index_t hidden) {
  model m;
  for (index_t l = 0; l < layers; ++l)
    for (index_t j = 0; j < 7; ++j) {
      const index_t rows = j < 4 ? hidden : j < 6 ? hidden * 8 / 3 : hidden;
      const index_t cols = j < 6 ? hidden : hidden * 8 / 3;
      const double sensitivity = std::exp(uniform(random, -4, 4));
      m.add({.rows = rows, .cols = cols, .sensitivity = sensitivity},
            power_law(hidden, uniform(random, 0.3, 2.5)));
    }
  return m;
}

index_t dense_parameters(const std::vector<allocation_matrix>& matrices) {
  index_t total = 0;
  for (const auto& matrix : matrices)
    total += matrix.rows * matrix.cols;
  return total;
}

/// Every matrix of the last k layers of a llama_like model at the layer ratio of k, the others
/// dense; k = layers is the uniform ratio.
std::vector<rank_choice> last_layers_ranks(const std::vector<allocation_matrix>& matrices,
                                           const ressvd::layer_candidate& candidate) {
  const std::size_t first = matrices.size() - 7 * static_cast<std::size_t>(candidate.layers);
  std::vector<rank_choice> ranks;
  for (std::size_t j = 0; j < matrices.size(); ++j)
    ranks.push_back(ressvd::rank_for_ratio(matrices[j].rows, matrices[j].cols,
                                           j < first ? 0 : candidate.ratio,
                                           {.form = matrices[j].form}));
  return ranks;
}

// Sums of a few hundred terms of one sign: relative rounding below 1e-12.
constexpr double rounding_error = 1e-12;

} // namespace

TEST_CASE("allocation against all assignments of small problems", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{1};
  int feasible_problems = 0, infeasible_problems = 0, optimal = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    model m = small_model(random);
    set_forms(random, m, wanted);
    const double whole = static_cast<double>(dense_parameters(m.matrices));
    const auto budget = static_cast<index_t>(uniform(random, 0.1, 1.0) * whole);
    CAPTURE(static_cast<int>(wanted), trial);

    const std::optional<double> least = brute_force(m.matrices, budget);
    if (!least) {
      ++infeasible_problems;
      REQUIRE_THROWS_AS(ressvd::allocate_ranks(m.matrices, budget), std::invalid_argument);
      continue;
    }
    ++feasible_problems;
    const allocation result = ressvd::allocate_ranks(m.matrices, budget);
    const double slack = rounding_error * (1 + *least);
    REQUIRE(feasible(m.matrices, budget, result.ranks));
    const auto totals = ressvd::evaluate_allocation(m.matrices, result.ranks);
    REQUIRE(totals.loss == result.loss);
    REQUIRE(totals.parameters == result.parameters);
    REQUIRE(result.loss >= *least - slack);
    REQUIRE(result.loss_bound <= *least + slack);
    REQUIRE(result.loss - result.loss_bound <= largest_step(m.matrices) + slack);
    optimal += result.loss <= *least + slack;
    // Whatever is left of the budget pays for no further step of a single matrix.
    for (std::size_t j = 0; j < m.matrices.size(); ++j)
      for (const rank_choice& other : choices(m.matrices[j])) {
        const index_t more =
            cost_of(m.matrices[j], other) - cost_of(m.matrices[j], result.ranks[j]);
        if (more > 0 && result.parameters + more <= budget)
          REQUIRE(loss_of(m.matrices[j], other) >= loss_of(m.matrices[j], result.ranks[j]) - slack);
      }
  }
  CAPTURE(optimal, feasible_problems);
  CHECK(feasible_problems > 1000);
  CHECK(infeasible_problems > 100);
  CHECK(optimal > feasible_problems * 3 / 4);
}

TEST_CASE("the bound is the dual function at the price, and its maximum", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{2};
  for (const double ratio : {0.1, 0.2, 0.4, 0.6, 0.8}) {
    model m = llama_like(random, 12, 48);
    set_forms(random, m, wanted);
    const index_t budget = ressvd::uniform_budget(m.matrices, ratio);
    const allocation result = ressvd::allocate_ranks(m.matrices, budget);
    const auto dual = [&](double price) {
      double value = -price * static_cast<double>(budget);
      for (const auto& matrix : m.matrices) {
        double least = infinity;
        for (const rank_choice& stored : choices(matrix))
          least = std::min(least, loss_of(matrix, stored) +
                                      price * static_cast<double>(cost_of(matrix, stored)));
        value += least;
      }
      return value;
    };
    CAPTURE(static_cast<int>(wanted), ratio);
    CHECK(result.price > 0);
    // The dual is a difference of sums as large as price × budget, which carries the rounding.
    const double slack = 1e-12 * result.price * static_cast<double>(budget);
    CHECK(std::abs(dual(result.price) - result.loss_bound) <= slack);
    for (const double factor : {0.5, 0.9, 0.999, 1.001, 1.1, 2.0})
      CHECK(dual(result.price * factor) <= result.loss_bound + slack);
    CHECK(result.loss_bound <= result.loss);
  }
}

TEST_CASE("no feasible assignment of a large problem is below the bound", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{3};
  model m = llama_like(random, 16, 64);
  set_forms(random, m, wanted);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  const allocation result = ressvd::allocate_ranks(m.matrices, budget);
  CHECK(result.parameters <= budget);
  CHECK(result.loss - result.loss_bound <= largest_step(m.matrices));

  // Assignments near the solution: random exchanges of rank that keep to the budget.
  for (int trial = 0; trial < 3000; ++trial) {
    auto ranks = result.ranks;
    for (index_t change = integer(random, 1, 6); change > 0; --change) {
      const auto j =
          static_cast<std::size_t>(integer(random, 0, static_cast<index_t>(m.matrices.size()) - 1));
      const auto allowed = choices(m.matrices[j]);
      ranks[j] = allowed[static_cast<std::size_t>(
          integer(random, 0, static_cast<index_t>(allowed.size()) - 1))];
    }
    const auto point = ressvd::evaluate_allocation(m.matrices, ranks);
    if (point.parameters <= budget) REQUIRE(point.loss >= result.loss_bound * (1 - rounding_error));
  }
}

TEST_CASE("more budget never costs loss, bound or price", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{4};
  for (int trial = 0; trial < 60; ++trial) {
    model m;
    if (trial < 20)
      m = llama_like(random, 3, 24);
    else
      while (m.matrices.size() < 3 || !brute_force(m.matrices, ressvd::unlimited))
        m = small_model(random);
    set_forms(random, m, wanted);
    double loss = infinity, bound = infinity, price = infinity;
    for (int percent = 1; percent <= 100; ++percent) {
      const index_t budget = dense_parameters(m.matrices) * percent / 100;
      allocation result;
      try {
        result = ressvd::allocate_ranks(m.matrices, budget);
      } catch (const std::invalid_argument&) {
        REQUIRE(loss == infinity); // feasible once, feasible with every larger budget
        continue;
      }
      CAPTURE(static_cast<int>(wanted), trial, percent);
      REQUIRE(result.loss <= loss + rounding_error * result.loss);
      REQUIRE(result.loss_bound <= bound + rounding_error * (result.loss_bound + result.loss));
      REQUIRE(result.price <= price);
      loss = result.loss;
      bound = result.loss_bound;
      price = result.price;
    }
  }
}

TEST_CASE("never above the uniform ratio nor the last k layers", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{5};
  for (int trial = 0; trial < 40; ++trial) {
    model m = llama_like(random, 8, 32);
    set_forms(random, m, wanted);
    if (trial % 4 == 0) // flat spectra and equal sensitivities: uniform has little to improve on
      for (std::size_t j = 0; j < m.matrices.size(); ++j) {
        std::ranges::fill(m.spectra[j], 1.0);
        m.matrices[j].sensitivity = 1;
      }
    for (const double ratio : {0.2, 0.5})
      for (const auto& candidate : ressvd::last_layer_candidates(8, ratio)) {
        const auto known =
            ressvd::evaluate_allocation(m.matrices, last_layers_ranks(m.matrices, candidate));
        const allocation result = ressvd::allocate_ranks(m.matrices, known.parameters);
        REQUIRE(result.parameters <= known.parameters);
        REQUIRE(result.loss_bound <= known.loss * (1 + rounding_error));
        REQUIRE(result.loss <= known.loss * (1 + rounding_error));
      }
  }
}

TEST_CASE("uniform: budget and point agree", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{6};
  model m = llama_like(random, 4, 48);
  set_forms(random, m, wanted);
  for (const double ratio : {0.2, 0.4, 0.6}) {
    const auto point =
        ressvd::evaluate_allocation(m.matrices, last_layers_ranks(m.matrices, {4, ratio}));
    CHECK(point.parameters == ressvd::uniform_budget(m.matrices, ratio));
    CHECK(static_cast<double>(point.parameters) <=
          (1 - ratio) * static_cast<double>(dense_parameters(m.matrices)));
  }
}

TEST_CASE("with the first layers dense, never above the last k layers", "[rank_allocation]") {
  generator random{7};
  const index_t layers = 10;
  const model m = llama_like(random, layers, 48);
  for (const auto& candidate : ressvd::last_layer_candidates(layers, 0.4)) {
    const auto last_k =
        ressvd::evaluate_allocation(m.matrices, last_layers_ranks(m.matrices, candidate));
    std::vector<allocation_matrix> input = m.matrices;
    const std::size_t first = input.size() - 7 * static_cast<std::size_t>(candidate.layers);
    for (std::size_t j = 0; j < first; ++j)
      input[j].sensitivity = infinity;
    const allocation result = ressvd::allocate_ranks(input, last_k.parameters);
    CAPTURE(candidate.layers);
    CHECK(result.loss <= last_k.loss);
    CHECK(result.parameters <= last_k.parameters);
    for (std::size_t j = 0; j < first; ++j)
      CHECK(result.ranks[j].dense);
  }
}

TEST_CASE("equal matrices in the last layers get the last-k rank", "[rank_allocation]") {
  // Steep equal spectra: no jump to dense pays, so ranks are shared out evenly.
  model m;
  const index_t layers = 12, k = 7;
  std::vector<rank_choice> last_k;
  for (index_t l = 0; l < layers; ++l) {
    m.add({.rows = 60, .cols = 40, .sensitivity = l < layers - k ? infinity : 1}, power_law(40, 4));
    const double ratio = l < layers - k ? 0 : ressvd::layer_ratio(layers, 0.3, k);
    last_k.push_back(ressvd::rank_for_ratio(60, 40, ratio));
  }
  const index_t budget = ressvd::evaluate_allocation(m.matrices, last_k).parameters;
  CHECK(ressvd::allocate_ranks(m.matrices, budget).ranks == last_k);
}

TEST_CASE("dense is taken as a jump where it pays", "[rank_allocation]") {
  // A flat spectrum: half the parameters of factors keep a quarter of the energy; all of them,
  // as a dense matrix, keep everything. Two such matrices and the budget of one and a bit.
  model m;
  for (int j = 0; j < 2; ++j)
    m.add({.rows = 32, .cols = 32}, std::vector<double>(32, 1.0));
  const allocation result = ressvd::allocate_ranks(m.matrices, 32 * 32 + 2 * 64);
  CHECK(result.ranks[0].dense != result.ranks[1].dense);
  CHECK(result.loss == 30); // the other one at rank 2
  CHECK(result.parameters == 32 * 32 + 2 * 64);
}

TEST_CASE("a jump that does not fit leaves the ranks beyond the knee", "[rank_allocation]") {
  // The jump to dense pays most, and the budget stops short of it by one parameter.
  model m;
  m.add({.rows = 16, .cols = 16}, std::vector<double>(16, 1.0));
  const allocation result = ressvd::allocate_ranks(m.matrices, 255);
  CHECK(result.ranks[0] == rank_choice{.rank = 7, .dense = false}); // α = 8
  CHECK(result.loss == 9);
  CHECK(result.loss_bound < 9);
}

TEST_CASE("looking ahead to dense beats the order of single ranks", "[rank_allocation]") {
  // The order of c σ²_i / (m+n), one rank at a time, dense only once the rank reaches ⌊α⌋.
  const auto rank_by_rank = [](const std::vector<allocation_matrix>& matrices, index_t budget) {
    std::vector<rank_choice> ranks(matrices.size(), {.rank = 1, .dense = false});
    const auto saving = [&](std::size_t j) {
      const auto& matrix = matrices[j];
      if (ranks[j].dense) return -1.0;
      const double s = matrix.singular_values[static_cast<std::size_t>(ranks[j].rank)];
      return matrix.sensitivity * s * s / static_cast<double>(matrix.rows + matrix.cols);
    };
    std::vector<bool> full(matrices.size(), false);
    index_t kept = ressvd::evaluate_allocation(matrices, ranks).parameters;
    for (;;) {
      std::optional<std::size_t> best;
      for (std::size_t j = 0; j < matrices.size(); ++j)
        if (!full[j] && (!best || saving(j) > saving(*best))) best = j;
      if (!best || saving(*best) < 0) return ranks;
      const auto& matrix = matrices[*best];
      rank_choice next{.rank = ranks[*best].rank + 1, .dense = false};
      if (next.rank > ressvd::largest_saving_rank(matrix.rows, matrix.cols))
        next = {.rank = std::min(matrix.rows, matrix.cols), .dense = true};
      const index_t cost = cost_of(matrix, next) - cost_of(matrix, ranks[*best]);
      full[*best] = kept + cost > budget;
      if (full[*best]) continue;
      kept += cost;
      ranks[*best] = next;
    }
  };
  generator random{12};
  for (const double ratio : {0.2, 0.4, 0.6}) {
    const model m = llama_like(random, 6, 48);
    const index_t budget = ressvd::uniform_budget(m.matrices, ratio);
    const auto plain = ressvd::evaluate_allocation(m.matrices, rank_by_rank(m.matrices, budget));
    const allocation result = ressvd::allocate_ranks(m.matrices, budget);
    CHECK(plain.parameters <= budget);
    CHECK(result.loss < plain.loss);
  }
}

TEST_CASE("scaling all sensitivities changes no rank", "[rank_allocation]") {
  generator random{8};
  model m = llama_like(random, 5, 32);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.5);
  const allocation before = ressvd::allocate_ranks(m.matrices, budget);
  for (auto& matrix : m.matrices)
    matrix.sensitivity *= 1024; // exact in binary
  const allocation after = ressvd::allocate_ranks(m.matrices, budget);
  CHECK(after.ranks == before.ranks);
  CHECK(after.loss == 1024 * before.loss);
  CHECK(after.price == 1024 * before.price);
}

TEST_CASE("rank limits and multiples hold on a large problem", "[rank_allocation]") {
  const forms wanted = GENERATE(forms::pairs, forms::pivoted, forms::mixed);
  generator random{9};
  model m = llama_like(random, 10, 64);
  set_forms(random, m, wanted);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  for (auto& matrix : m.matrices) {
    matrix.rank_multiple = 4;
    matrix.max_rank = 18; // 16 with the multiple
  }
  const allocation result = ressvd::allocate_ranks(m.matrices, budget);
  REQUIRE(feasible(m.matrices, budget, result.ranks));
  CHECK(std::ranges::count(result.ranks, rank_choice{.rank = 16, .dense = false}) > 0);
  CHECK(std::ranges::any_of(result.ranks, &rank_choice::dense));
  CHECK(result.loss_bound <= result.loss);
  for (auto& matrix : m.matrices)
    matrix.max_rank = ressvd::unlimited;
  CHECK(ressvd::allocate_ranks(m.matrices, budget).loss_bound <= result.loss);
}

TEST_CASE("degenerate problems", "[rank_allocation]") {
  SECTION("no energy: the lowest ranks, and budget to spare") {
    model m;
    for (int j = 0; j < 3; ++j)
      m.add({.rows = 8, .cols = 6}, std::vector<double>(6, 0.0));
    const allocation result = ressvd::allocate_ranks(m.matrices, 100);
    CHECK(result.parameters == 3 * 14);
    CHECK(result.loss == 0);
    CHECK(result.loss_bound == 0);
    CHECK(result.price == 0);
  }
  SECTION("sensitivity 0 takes nothing from the others") {
    model m;
    m.add({.rows = 32, .cols = 32, .sensitivity = 0}, power_law(32, 1));
    m.add({.rows = 32, .cols = 32, .sensitivity = 1}, power_law(32, 1));
    const allocation result = ressvd::allocate_ranks(m.matrices, 64 * 10);
    CHECK(result.ranks[0].rank == 1);
    CHECK(result.ranks[1].rank == 9);
  }
  SECTION("a budget for everything: all dense, nothing lost") {
    generator random{10};
    const model m = llama_like(random, 2, 24);
    const allocation result = ressvd::allocate_ranks(m.matrices, ressvd::unlimited);
    CHECK(std::ranges::all_of(result.ranks, &rank_choice::dense));
    CHECK(result.loss == 0);
    CHECK(result.price == 0);
  }
  SECTION("exactly the least budget, and one parameter less") {
    model m;
    m.add({.name = "query", .rows = 10, .cols = 8}, power_law(8, 1));
    m.add({.name = "key", .rows = 10, .cols = 8, .rank_multiple = 2}, power_law(8, 1));
    const allocation result = ressvd::allocate_ranks(m.matrices, 54);
    CHECK(result.ranks == std::vector<rank_choice>{{1, false}, {2, false}});
    CHECK(result.loss_bound <= result.loss);
    CHECK_THROWS_WITH(ressvd::allocate_ranks(m.matrices, 53),
                      contains_text("at least 54 parameters and the budget is 53"));
  }
  SECTION("a vector has no factors and stays dense") {
    model m;
    m.add({.rows = 1, .cols = 64}, {3.0});
    const allocation result = ressvd::allocate_ranks(m.matrices, 64);
    CHECK(result.ranks[0].dense);
  }
  SECTION("a matrix that may have no factors stays dense") {
    model m;
    m.add({.rows = 20, .cols = 20, .max_rank = 0}, power_law(20, 1));
    m.add({.rows = 20, .cols = 20, .max_rank = 3, .rank_multiple = 4}, power_law(20, 1));
    m.add({.rows = 20, .cols = 20, .tail_energy = 1}, {});
    const allocation result = ressvd::allocate_ranks(m.matrices, ressvd::unlimited);
    CHECK(std::ranges::all_of(result.ranks, &rank_choice::dense));
    CHECK_THROWS_WITH(ressvd::allocate_ranks(m.matrices, 1199),
                      contains_text("at least 1200 parameters and the budget is 1199"));
  }
  SECTION("one matrix") {
    model m;
    m.add({.rows = 40, .cols = 40}, power_law(40, 3));
    CHECK(ressvd::allocate_ranks(m.matrices, 1000).ranks[0] ==
          rank_choice{.rank = 12, .dense = false});
  }
}

TEST_CASE("a truncated spectrum with its tail is as good as the full one", "[rank_allocation]") {
  generator random{11};
  const model full = llama_like(random, 4, 48);
  const index_t budget = ressvd::uniform_budget(full.matrices, 0.4);
  const allocation expected = ressvd::allocate_ranks(full.matrices, budget);
  std::vector<allocation_matrix> cut = full.matrices;
  for (auto& matrix : cut) { // ranks from α on save nothing, so they need no single energies
    const index_t useful = ressvd::largest_saving_rank(matrix.rows, matrix.cols);
    matrix.tail_energy = ressvd::truncated_energy(matrix.singular_values, useful);
    matrix.singular_values = matrix.singular_values.first(static_cast<std::size_t>(useful));
  }
  const allocation result = ressvd::allocate_ranks(cut, budget);
  CHECK(result.ranks == expected.ranks);
  CHECK(result.loss == Approx(expected.loss).epsilon(rounding_error));
}

TEST_CASE("pivoted pairs: ranks between the vertices spend what is left", "[rank_allocation]") {
  // A flat spectrum: the cost of ranks is concave, so the hull goes straight from rank 1 to dense.
  model m;
  m.add({.rows = 16, .cols = 16, .form = factored_form::pivoted}, std::vector<double>(16, 1.0));
  for (const auto& [budget, rank] :
       std::vector<std::pair<index_t, index_t>>{{31, 1}, {59, 1}, {60, 2}, {206, 8}, {255, 15}}) {
    const allocation result = ressvd::allocate_ranks(m.matrices, budget);
    CAPTURE(budget);
    CHECK(result.ranks[0] == rank_choice{.rank = rank, .dense = false});
    CHECK(result.loss == static_cast<double>(16 - rank));
    CHECK(result.loss_bound <= result.loss);
    // On the line from (31, 15) to (256, 0).
    CHECK(result.loss_bound == Approx(15 * static_cast<double>(256 - budget) / 225));
  }
  CHECK(ressvd::allocate_ranks(m.matrices, 256).ranks[0].dense);
  m.matrices[0].rank_multiple = 4;
  CHECK(ressvd::allocate_ranks(m.matrices, 255).ranks[0].rank == 12);
  m.matrices[0].max_rank = 11;
  CHECK(ressvd::allocate_ranks(m.matrices, 255).ranks[0].rank == 8);
  m.matrices[0].sensitivity = 0;
  CHECK(ressvd::allocate_ranks(m.matrices, 256).ranks[0].rank == 4);
}

TEST_CASE("pivoted pairs: what one matrix cannot use goes to another", "[rank_allocation]") {
  // Both are flat; the budget holds one of them dense and a bit.
  model m;
  for (int j = 0; j < 2; ++j)
    m.add({.rows = 32, .cols = 32, .form = factored_form::pivoted}, std::vector<double>(32, 1.0));
  const allocation result = ressvd::allocate_ranks(m.matrices, 32 * 32 + 63 + 62);
  CHECK(result.ranks == std::vector<rank_choice>{{32, true}, {2, false}}); // 2 · 62 numbers
  CHECK(result.loss == 30);
}

TEST_CASE("pivoted pairs: the best rank within reach is taken, not the next", "[rank_allocation]") {
  // From rank 1 of the flat matrix the next rank saves 1/29 a parameter and rank 15 saves 14/224,
  // rank 2 of the other one 0.05; dense is one parameter out of reach.
  model m;
  m.add({.rows = 16, .cols = 16, .form = factored_form::pivoted}, std::vector<double>(16, 1.0));
  std::vector<double> two(16, 0.0);
  two[0] = 2, two[1] = 0.05 * 29;
  m.add({.rows = 16, .cols = 16, .form = factored_form::pivoted}, two);
  const allocation result = ressvd::allocate_ranks(m.matrices, 2 * 31 + 224);
  CHECK(result.ranks == std::vector<rank_choice>{{15, false}, {1, false}});
}

TEST_CASE("pivoted pairs: plateaus and zero tails", "[rank_allocation]") {
  model m;
  m.add({.rows = 20, .cols = 30, .form = factored_form::pivoted},
        {4, 4, 4, 1, 1, 1, 1, 1, 0, 0, 0, 0});
  m.add({.rows = 12, .cols = 12, .form = factored_form::pivoted}, std::vector<double>(12, 0.0));
  m.add({.rows = 1, .cols = 40, .form = factored_form::pivoted}, {2});
  m.add({.rows = 2, .cols = 2, .form = factored_form::pivoted}, {2, 1});
  const allocation whole = ressvd::allocate_ranks(m.matrices, ressvd::unlimited);
  // Nothing is lost from rank 8 on, and more than that is not kept.
  CHECK(whole.ranks == std::vector<rank_choice>{{8, false}, {1, false}, {1, true}, {2, true}});
  CHECK(whole.loss == 0);
  CHECK(whole.price == 0);
  CHECK(whole.parameters == 8 * 42 + 23 + 40 + 4);
  const allocation least = ressvd::allocate_ranks(m.matrices, 49 + 23 + 40 + 3);
  CHECK(least.ranks == std::vector<rank_choice>{{1, false}, {1, false}, {1, true}, {1, false}});
  CHECK_THROWS_WITH(ressvd::allocate_ranks(m.matrices, 49 + 23 + 40 + 2),
                    contains_text("at least 115 parameters and the budget is 114"));
}

TEST_CASE("pivoted pairs lose less than pairs of the same size", "[rank_allocation]") {
  generator random{13};
  for (const double ratio : {0.1, 0.2, 0.4, 0.6, 0.8}) {
    model m = llama_like(random, 8, 48);
    const index_t budget = ressvd::uniform_budget(m.matrices, ratio);
    const allocation pairs = ressvd::allocate_ranks(m.matrices, budget);
    set_forms(random, m, forms::pivoted);
    // Every assignment of pairs fits as pivoted pairs, so this much is certain.
    CHECK(ressvd::allocate_ranks(m.matrices, budget).loss_bound <= pairs.loss);
    CHECK(ressvd::allocate_ranks(m.matrices, budget).loss < pairs.loss);
    CHECK(ressvd::uniform_budget(m.matrices, ratio) <=
          static_cast<index_t>((1 - ratio) * static_cast<double>(dense_parameters(m.matrices))));
  }
}

TEST_CASE("bad allocation problems are refused by name and number", "[rank_allocation]") {
  const std::vector<double> good{3, 2, 1, 0.5};
  const auto solve = [&](allocation_matrix matrix) {
    matrix.name = "layers.3.q_proj";
    return ressvd::allocate_ranks(std::vector<allocation_matrix>{matrix}, 32);
  };
  const allocation_matrix base{.singular_values = good, .rows = 8, .cols = 4};
  const auto with = [&](auto&& change) {
    allocation_matrix matrix = base;
    change(matrix);
    return matrix;
  };
  const auto with_values = [&](const std::vector<double>& values) {
    return with([&](allocation_matrix& matrix) { matrix.singular_values = values; });
  };
  CHECK_NOTHROW(solve(base));

  const std::vector<double> rising{3, 1, 2, 0.5}, broken{3, not_a_number, 1, 0.5},
      endless{infinity, 2, 1, 0.5}, negative{3, 2, 1, -0.5}, huge{1e200, 2, 1, 0.5},
      too_many{5, 4, 3, 2, 1};
  CHECK_THROWS_WITH(solve(with_values(rising)), contains_text("layers.3.q_proj"));
  CHECK_THROWS_WITH(solve(with_values(rising)), contains_text("not descending, 1 before 2 at 1"));
  CHECK_THROWS_AS(solve(with_values(broken)), ressvd::nonfinite_error);
  CHECK_THROWS_AS(solve(with_values(endless)), ressvd::nonfinite_error);
  CHECK_THROWS_AS(solve(with_values(huge)), ressvd::nonfinite_error); // the squares overflow
  CHECK_THROWS_WITH(solve(with_values(negative)), contains_text("negative singular value -0.5"));
  CHECK_THROWS_WITH(solve(with_values(too_many)), contains_text("has 5 singular values"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.rows = 0; })), contains_text("0 x 4"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.sensitivity = -1; })),
                    contains_text("negative sensitivity -1"));
  CHECK_THROWS_AS(solve(with([](auto& m) { m.sensitivity = not_a_number; })),
                  ressvd::nonfinite_error);
  CHECK_THROWS_AS(solve(with([](auto& m) { m.tail_energy = infinity; })), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.tail_energy = -2; })),
                    contains_text("negative tail energy -2"));
  CHECK_THROWS_AS(solve(with([](auto& m) { m.sensitivity = 1e308; })), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.max_rank = -1; })), contains_text("max_rank -1"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.rank_multiple = 0; })),
                    contains_text("rank_multiple 0"));
  CHECK_THROWS_WITH(ressvd::allocate_ranks({}, 32), contains_text("no matrices"));
  const std::vector<rank_choice> two(2);
  CHECK_THROWS_WITH(ressvd::evaluate_allocation(std::vector<allocation_matrix>{base}, two),
                    contains_text("2 ranks for 1 matrices"));
}
