// SPDX-License-Identifier: Apache-2.0
#include "ressvd/layer_ratio/rank_allocation.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "support/catch.hpp"

using ressvd::allocation;
using ressvd::allocation_limit;
using ressvd::allocation_matrix;
using ressvd::allocation_options;
using ressvd::index_t;
using ressvd::rank_choice;
using ressvd::storage;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

using generator = std::mt19937_64;

double uniform(generator& random, double low, double high) {
  return std::uniform_real_distribution<double>{low, high}(random);
}

index_t integer(generator& random, index_t low, index_t high) {
  return std::uniform_int_distribution<index_t>{low, high}(random);
}

/// Matrices that own their spectra.
struct model {
  std::vector<std::vector<double>> spectra;
  std::vector<allocation_matrix> matrices;

  void add(allocation_matrix matrix, std::vector<double> energies) {
    spectra.push_back(std::move(energies)); // the heap block of a moved vector stays in place
    matrix.energies = spectra.back();
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
    matrix.layer = integer(random, -1, 1);
    if (integer(random, 0, 3) == 0) matrix.rank_multiple = integer(random, 1, 3);
    if (integer(random, 0, 3) == 0) matrix.min_rank = integer(random, 1, 3);
    if (integer(random, 0, 3) == 0) matrix.max_rank = matrix.min_rank + integer(random, 0, 3);
    if (integer(random, 0, 3) == 0) matrix.stored = storage::low_rank;
    if (integer(random, 0, 9) == 0) matrix.stored = storage::dense;
    if (matrix.stored == storage::free && integer(random, 0, 9) == 0) matrix.sensitivity = infinity;
    const index_t full = std::min(matrix.rows, matrix.cols);
    const index_t known = integer(random, 0, 3) == 0 ? integer(random, 0, full) : full;
    if (known < full) matrix.tail_energy = uniform(random, 0, 1);
    m.add(matrix, random_spectrum(random, known));
  }
  return m;
}

/// Every storage the constraints allow, from their definition.
std::vector<rank_choice> choices(const allocation_matrix& matrix, double max_rank_share) {
  const index_t m = matrix.rows, n = matrix.cols;
  std::vector<rank_choice> all;
  const bool pinned = matrix.stored == storage::dense || std::isinf(matrix.sensitivity);
  for (index_t r = 1; !pinned && r <= static_cast<index_t>(matrix.energies.size()); ++r) {
    const double share = static_cast<double>(r * (m + n)) / static_cast<double>(m * n);
    if (r >= matrix.min_rank && r <= matrix.max_rank && r % matrix.rank_multiple == 0 &&
        r * (m + n) < m * n && share <= max_rank_share + 1e-12)
      all.push_back({.rank = r, .dense = false});
  }
  if (matrix.stored != storage::low_rank) all.push_back({.rank = std::min(m, n), .dense = true});
  return all;
}

index_t cost_of(const allocation_matrix& matrix, const rank_choice& stored) {
  return stored.dense ? matrix.rows * matrix.cols : stored.rank * (matrix.rows + matrix.cols);
}

double loss_of(const allocation_matrix& matrix, const rank_choice& stored) {
  if (stored.dense) return 0;
  const auto from = matrix.energies.begin() + stored.rank;
  return matrix.sensitivity * std::accumulate(from, matrix.energies.end(), matrix.tail_energy);
}

bool feasible(const std::vector<allocation_matrix>& matrices, const allocation_options& options,
              const std::vector<rank_choice>& ranks) {
  index_t total = 0;
  std::vector<index_t> layers(options.layer_budgets.size(), 0);
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const auto allowed = choices(matrices[j], options.max_rank_share);
    if (std::ranges::find(allowed, ranks[j]) == allowed.end()) return false;
    total += cost_of(matrices[j], ranks[j]);
    if (!layers.empty() && matrices[j].layer >= 0)
      layers[static_cast<std::size_t>(matrices[j].layer)] += cost_of(matrices[j], ranks[j]);
  }
  for (std::size_t l = 0; l < layers.size(); ++l)
    if (layers[l] > options.layer_budgets[l]) return false;
  return total <= options.budget;
}

/// The least loss of all feasible assignments, by trying every one.
std::optional<double> brute_force(const std::vector<allocation_matrix>& matrices,
                                  const allocation_options& options) {
  std::optional<double> best;
  std::vector<std::vector<rank_choice>> all;
  for (const auto& matrix : matrices)
    all.push_back(choices(matrix, options.max_rank_share));
  std::vector<index_t> layers(options.layer_budgets.begin(), options.layer_budgets.end());
  const std::function<void(std::size_t, index_t, double)> descend = [&](std::size_t j, index_t left,
                                                                        double loss) {
    if (j == matrices.size()) {
      best = std::min(best.value_or(loss), loss);
      return;
    }
    for (const rank_choice& stored : all[j]) {
      const index_t cost = cost_of(matrices[j], stored);
      const bool bounded = !layers.empty() && matrices[j].layer >= 0;
      index_t* const layer =
          bounded ? &layers[static_cast<std::size_t>(matrices[j].layer)] : nullptr;
      if (cost > left || (layer && cost > *layer)) continue;
      if (layer) *layer -= cost;
      descend(j + 1, left - cost, loss + loss_of(matrices[j], stored));
      if (layer) *layer += cost;
    }
  };
  descend(0, options.budget, 0);
  return best;
}

/// What the largest step of rank above the lowest saves.
double largest_step(const std::vector<allocation_matrix>& matrices) {
  double largest = 0;
  for (const auto& matrix : matrices) {
    double step = 0;
    const auto q = static_cast<std::size_t>(matrix.rank_multiple);
    for (std::size_t i = q; i < std::min(2 * q, matrix.energies.size()); ++i)
      step += matrix.energies[i];
    if (!std::isinf(matrix.sensitivity)) largest = std::max(largest, matrix.sensitivity * step);
  }
  return largest;
}

/// A model of Llama's proportions: `layers` layers of 7 matrices.
model llama_like(generator& random, index_t layers, index_t hidden) {
  model m;
  for (index_t l = 0; l < layers; ++l)
    for (index_t j = 0; j < 7; ++j) {
      const index_t rows = j < 4 ? hidden : j < 6 ? hidden * 8 / 3 : hidden;
      const index_t cols = j < 6 ? hidden : hidden * 8 / 3;
      const double sensitivity = std::exp(uniform(random, -4, 4));
      m.add({.rows = rows, .cols = cols, .sensitivity = sensitivity, .layer = l},
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

// Sums of a few hundred terms of one sign: relative rounding below 1e-12.
constexpr double rounding_error = 1e-12;

} // namespace

TEST_CASE("allocation against all assignments of small problems", "[rank_allocation]") {
  generator random{1};
  int feasible_problems = 0, infeasible_problems = 0, optimal = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const model m = small_model(random);
    const double whole = static_cast<double>(dense_parameters(m.matrices));
    std::vector<index_t> layer_budgets;
    if (trial % 3 == 0)
      for (int l = 0; l < 2; ++l)
        layer_budgets.push_back(static_cast<index_t>(uniform(random, 0.1, 0.9) * whole));
    allocation_options options{.budget = static_cast<index_t>(uniform(random, 0.1, 1.0) * whole),
                               .layer_budgets = layer_budgets,
                               .gap = 0,
                               .max_nodes = 100000};
    if (trial % 5 == 0) options.max_rank_share = uniform(random, 0.3, 1);
    CAPTURE(trial);

    const std::optional<double> least = brute_force(m.matrices, options);
    if (!least) {
      ++infeasible_problems;
      REQUIRE_THROWS_AS(ressvd::allocate_ranks(m.matrices, options), std::invalid_argument);
      continue;
    }
    ++feasible_problems;
    const allocation result = ressvd::allocate_ranks(m.matrices, options);
    const double slack = rounding_error * (1 + *least);
    REQUIRE(feasible(m.matrices, options, result.ranks));
    const auto point = ressvd::evaluate_allocation(m.matrices, result.ranks);
    REQUIRE(point.loss == Approx(result.loss).epsilon(rounding_error));
    REQUIRE(point.parameters == result.parameters);
    REQUIRE(result.budget == options.budget);
    REQUIRE(result.loss >= *least - slack);
    REQUIRE(result.loss_bound <= *least + slack);
    // Searched to the end: one step of rank for each budget that can bind.
    const auto budgets = static_cast<double>(1 + layer_budgets.size());
    REQUIRE(result.loss - result.loss_bound <= budgets * largest_step(m.matrices) + slack);
    optimal += result.loss <= *least + slack;

    // The greedy alone is feasible as well, and its bound holds.
    options.max_nodes = 1;
    const allocation greedy = ressvd::allocate_ranks(m.matrices, options);
    REQUIRE(greedy.nodes == 1);
    REQUIRE(feasible(m.matrices, options, greedy.ranks));
    REQUIRE(greedy.loss_bound <= *least + slack);
    REQUIRE(greedy.loss >= result.loss - slack);
  }
  CHECK(feasible_problems > 1000);
  CHECK(infeasible_problems > 100);
  CHECK(optimal > feasible_problems * 3 / 4);
}

TEST_CASE("the bound is the dual function at the price, and its maximum", "[rank_allocation]") {
  generator random{2};
  for (const double ratio : {0.1, 0.2, 0.4, 0.6, 0.8}) {
    const model m = llama_like(random, 12, 48);
    const index_t budget = ressvd::uniform_budget(m.matrices, ratio);
    const allocation result =
        ressvd::allocate_ranks(m.matrices, {.budget = budget, .max_nodes = 1});
    const auto dual = [&](double price) {
      double value = -price * static_cast<double>(budget);
      for (const auto& matrix : m.matrices) {
        double least = infinity;
        for (const rank_choice& stored : choices(matrix, 1))
          least = std::min(least, loss_of(matrix, stored) +
                                      price * static_cast<double>(cost_of(matrix, stored)));
        value += least;
      }
      return value;
    };
    CAPTURE(ratio);
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
  generator random{3};
  const model m = llama_like(random, 16, 64);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = budget});
  CHECK(result.parameters <= budget);
  REQUIRE(result.nodes < 63); // searched to the end: the default gap, or one step of rank
  CHECK(result.loss - result.loss_bound <= std::max(1e-4 * result.loss, largest_step(m.matrices)));

  // Assignments near the solution: random exchanges of rank that keep to the budget.
  for (int trial = 0; trial < 3000; ++trial) {
    auto ranks = result.ranks;
    for (index_t change = integer(random, 1, 6); change > 0; --change) {
      const auto j =
          static_cast<std::size_t>(integer(random, 0, static_cast<index_t>(m.matrices.size()) - 1));
      const auto allowed = choices(m.matrices[j], 1);
      ranks[j] = allowed[static_cast<std::size_t>(
          integer(random, 0, static_cast<index_t>(allowed.size()) - 1))];
    }
    const auto point = ressvd::evaluate_allocation(m.matrices, ranks);
    if (point.parameters <= budget) REQUIRE(point.loss >= result.loss_bound * (1 - rounding_error));
  }
}

TEST_CASE("more budget never costs loss, bound or price", "[rank_allocation]") {
  generator random{4};
  for (int trial = 0; trial < 60; ++trial) {
    model m;
    if (trial < 20)
      m = llama_like(random, 3, 24);
    else
      while (m.matrices.size() < 3 || !brute_force(m.matrices, {.budget = ressvd::unlimited}))
        m = small_model(random);
    double loss = infinity, bound = infinity, price = infinity;
    for (int percent = 1; percent <= 100; ++percent) {
      const index_t budget = dense_parameters(m.matrices) * percent / 100;
      allocation result;
      try {
        result = ressvd::allocate_ranks(m.matrices, {.budget = budget, .max_nodes = 1});
      } catch (const std::invalid_argument&) {
        REQUIRE(loss == infinity); // feasible once, feasible with every larger budget
        continue;
      }
      CAPTURE(trial, percent);
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
  generator random{5};
  for (int trial = 0; trial < 40; ++trial) {
    model m = llama_like(random, 8, 32);
    if (trial % 4 == 0) // flat spectra and equal sensitivities: uniform has little to improve on
      for (std::size_t j = 0; j < m.matrices.size(); ++j) {
        std::ranges::fill(m.spectra[j], 1.0);
        m.matrices[j].sensitivity = 1;
      }
    for (const double ratio : {0.2, 0.5}) {
      std::vector<std::vector<rank_choice>> known{ressvd::uniform_ranks(m.matrices, ratio)};
      for (const auto& [k, layer_ratio] : ressvd::last_layer_candidates(8, ratio))
        known.push_back(ressvd::last_layers_ranks(m.matrices, 8, k, ratio));
      for (const auto& start : known) {
        const auto point = ressvd::evaluate_allocation(m.matrices, start);
        const allocation result = ressvd::allocate_ranks(
            m.matrices, {.budget = point.parameters, .start = start, .max_nodes = 1});
        REQUIRE(result.parameters <= point.parameters);
        REQUIRE(result.loss <= point.loss * (1 + rounding_error));
      }
    }
  }
}

TEST_CASE("uniform: budget and point agree", "[rank_allocation]") {
  generator random{6};
  const model m = llama_like(random, 4, 48);
  for (const double ratio : {0.2, 0.4, 0.6}) {
    const auto point =
        ressvd::evaluate_allocation(m.matrices, ressvd::uniform_ranks(m.matrices, ratio));
    CHECK(point.parameters == ressvd::uniform_budget(m.matrices, ratio));
    CHECK(static_cast<double>(point.parameters) <=
          (1 - ratio) * static_cast<double>(dense_parameters(m.matrices)));
  }
}

TEST_CASE("infinite sensitivity in the first layers gives the last-k rule", "[rank_allocation]") {
  generator random{7};
  const index_t layers = 10;
  const model m = llama_like(random, layers, 48);
  for (const auto& [k, layer_ratio] : ressvd::last_layer_candidates(layers, 0.4)) {
    const auto last_k = ressvd::last_layers_ranks(m.matrices, layers, k, 0.4);
    const auto point = ressvd::evaluate_allocation(m.matrices, last_k);
    std::vector<allocation_matrix> input = m.matrices;
    for (std::size_t j = 0; j < input.size(); ++j) {
      if (input[j].layer < layers - k)
        input[j].sensitivity = infinity;
      else
        input[j] = ressvd::pinned(input[j], last_k[j]);
    }
    const allocation result = ressvd::allocate_ranks(input, {.budget = point.parameters});
    CAPTURE(k);
    CHECK(result.ranks == last_k);
    CHECK(result.loss == Approx(point.loss).epsilon(rounding_error));
    CHECK(result.parameters == point.parameters);
    CHECK(std::ranges::count(result.limits, allocation_limit::only_choice) ==
          static_cast<std::ptrdiff_t>(input.size()));

    // Without the pinned ranks, the same budget is spent better, or as well.
    for (std::size_t j = 0; j < input.size(); ++j)
      if (input[j].layer >= layers - k) input[j] = m.matrices[j];
    const allocation free = ressvd::allocate_ranks(input, {.budget = point.parameters});
    CHECK(free.loss <= point.loss);
    for (std::size_t j = 0; j < input.size(); ++j)
      if (input[j].layer < layers - k) CHECK(free.ranks[j].dense);
  }
}

TEST_CASE("equal matrices in the last layers get the last-k rank", "[rank_allocation]") {
  // Steep equal spectra: no jump to dense pays, so ranks are shared out evenly.
  model m;
  const index_t layers = 12, k = 7;
  for (index_t l = 0; l < layers; ++l)
    m.add({.rows = 60, .cols = 40, .sensitivity = l < layers - k ? infinity : 1, .layer = l},
          power_law(40, 4));
  const auto last_k = ressvd::last_layers_ranks(m.matrices, layers, k, 0.3);
  const index_t budget = ressvd::evaluate_allocation(m.matrices, last_k).parameters;
  CHECK(ressvd::allocate_ranks(m.matrices, {.budget = budget}).ranks == last_k);
}

TEST_CASE("dense is taken as a jump where it pays", "[rank_allocation]") {
  // A flat spectrum: half the parameters of factors keep a quarter of the energy; all of them,
  // as a dense matrix, keep everything. Two such matrices and the budget of one and a bit.
  model m;
  for (int j = 0; j < 2; ++j)
    m.add({.rows = 32, .cols = 32}, std::vector<double>(32, 1.0));
  const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = 32 * 32 + 2 * 64});
  CHECK(result.ranks[0].dense != result.ranks[1].dense);
  CHECK(result.loss == 30); // the other one at rank 2
  CHECK(result.parameters == 32 * 32 + 2 * 64);
}

TEST_CASE("branching beats the greedy where a jump blocks the better one", "[rank_allocation]") {
  // The small matrix is the better bargain per parameter, but with it dense the large one, which
  // holds nearly all the energy, no longer fits.
  model m;
  m.add({.rows = 4, .cols = 4, .sensitivity = 1.2, .stored = storage::free},
        std::vector<double>(4, 1.0));
  m.add({.rows = 16, .cols = 16, .sensitivity = 4.0, .stored = storage::free},
        std::vector<double>(16, 1.0));
  const allocation_options greedy{.budget = 256 + 8, .max_nodes = 1};
  const allocation first = ressvd::allocate_ranks(m.matrices, greedy);
  const allocation best = ressvd::allocate_ranks(m.matrices, {.budget = 256 + 8});
  CHECK(best.ranks[1].dense);
  CHECK(best.loss == Approx(*brute_force(m.matrices, {.budget = 256 + 8})));
  CHECK(best.loss < first.loss);
}

TEST_CASE("looking ahead to dense beats the order of single ranks", "[rank_allocation]") {
  // The order of c σ²_i / (m+n), one rank at a time, dense only once the rank reaches ⌊α⌋.
  const auto rank_by_rank = [](const std::vector<allocation_matrix>& matrices, index_t budget) {
    std::vector<rank_choice> ranks(matrices.size(), {.rank = 1, .dense = false});
    const auto saving = [&](std::size_t j) {
      const auto& matrix = matrices[j];
      if (ranks[j].dense) return -1.0;
      return matrix.sensitivity * matrix.energies[static_cast<std::size_t>(ranks[j].rank)] /
             static_cast<double>(matrix.rows + matrix.cols);
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
    const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = budget});
    CHECK(plain.parameters <= budget);
    CHECK(result.loss < plain.loss);
  }
}

TEST_CASE("scaling all sensitivities changes no rank", "[rank_allocation]") {
  generator random{8};
  model m = llama_like(random, 5, 32);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.5);
  const allocation before = ressvd::allocate_ranks(m.matrices, {.budget = budget});
  for (auto& matrix : m.matrices)
    matrix.sensitivity *= 1024; // exact in binary
  const allocation after = ressvd::allocate_ranks(m.matrices, {.budget = budget});
  CHECK(after.ranks == before.ranks);
  CHECK(after.loss == 1024 * before.loss);
  CHECK(after.price == 1024 * before.price);
}

TEST_CASE("layer budgets, rank shares and multiples hold on a large problem", "[rank_allocation]") {
  generator random{9};
  model m = llama_like(random, 10, 64);
  const index_t budget = ressvd::uniform_budget(m.matrices, 0.4);
  std::vector<index_t> layer_budgets;
  const index_t layer = dense_parameters(m.matrices) / 10;
  for (int l = 0; l < 10; ++l)
    layer_budgets.push_back(layer * (50 + 5 * l) / 100);
  for (auto& matrix : m.matrices)
    matrix.rank_multiple = 4;
  const allocation_options options{
      .budget = budget, .max_rank_share = 0.75, .layer_budgets = layer_budgets};
  const allocation result = ressvd::allocate_ranks(m.matrices, options);
  REQUIRE(feasible(m.matrices, options, result.ranks));
  const allocation without =
      ressvd::allocate_ranks(m.matrices, {.budget = budget, .max_rank_share = 0.75});
  CHECK(without.loss_bound <= result.loss);
  CHECK(result.loss_bound <= result.loss);
  for (std::size_t l = 0; l < 10; ++l)
    if (result.layer_prices[l] > result.price) { // binding: less than one jump is left of it
      index_t kept = 0;
      for (std::size_t j = 0; j < m.matrices.size(); ++j)
        if (m.matrices[j].layer == static_cast<index_t>(l))
          kept += cost_of(m.matrices[j], result.ranks[j]);
      CHECK(layer_budgets[l] - kept < 64 * 170);
    }
  CHECK(std::ranges::count(result.limits, allocation_limit::layer_budget) > 0);
}

TEST_CASE("degenerate problems", "[rank_allocation]") {
  SECTION("no energy: the lowest ranks, and budget to spare") {
    model m;
    for (int j = 0; j < 3; ++j)
      m.add({.rows = 8, .cols = 6}, std::vector<double>(6, 0.0));
    const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = 100});
    CHECK(result.parameters == 3 * 14);
    CHECK(result.loss == 0);
    CHECK(result.loss_bound == 0);
    CHECK(result.price == 0);
    CHECK(result.limits == std::vector<allocation_limit>(3, allocation_limit::none));
  }
  SECTION("sensitivity 0 takes nothing from the others") {
    model m;
    m.add({.rows = 32, .cols = 32, .sensitivity = 0}, power_law(32, 1));
    m.add({.rows = 32, .cols = 32, .sensitivity = 1}, power_law(32, 1));
    const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = 64 * 10});
    CHECK(result.ranks[0].rank == 1);
    CHECK(result.ranks[1].rank == 9);
  }
  SECTION("a budget for everything: all dense, nothing lost") {
    generator random{10};
    const model m = llama_like(random, 2, 24);
    const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = ressvd::unlimited});
    CHECK(std::ranges::all_of(result.ranks, &rank_choice::dense));
    CHECK(result.loss == 0);
    CHECK(result.price == 0);
  }
  SECTION("exactly the least budget, and one parameter less") {
    model m;
    m.add({.name = "query", .rows = 10, .cols = 8}, power_law(8, 1));
    m.add({.name = "key", .rows = 10, .cols = 8, .min_rank = 2}, power_law(8, 1));
    const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = 54});
    CHECK(result.ranks == std::vector<rank_choice>{{1, false}, {2, false}});
    CHECK(result.loss_bound <= result.loss);
    CHECK_THROWS_WITH(ressvd::allocate_ranks(m.matrices, {.budget = 53}),
                      contains_text("at least 54 parameters and the budget is 53"));
  }
  SECTION("a vector has no factors and stays dense") {
    model m;
    m.add({.rows = 1, .cols = 64}, {3.0});
    const allocation result = ressvd::allocate_ranks(m.matrices, {.budget = 64});
    CHECK(result.ranks[0].dense);
    CHECK(result.limits[0] == allocation_limit::only_choice);
  }
  SECTION("one matrix") {
    model m;
    m.add({.rows = 40, .cols = 40}, power_law(40, 3));
    CHECK(ressvd::allocate_ranks(m.matrices, {.budget = 1000}).ranks[0] ==
          rank_choice{.rank = 12, .dense = false});
  }
}

TEST_CASE("what decided each rank is reported", "[rank_allocation]") {
  model m;
  const auto spectrum = power_law(64, 1);
  m.add({.rows = 64, .cols = 64, .sensitivity = infinity}, spectrum);
  m.add({.rows = 64, .cols = 64}, spectrum);
  m.add({.rows = 64, .cols = 64, .sensitivity = 1e-6, .min_rank = 5}, spectrum);
  m.add({.rows = 64, .cols = 64, .sensitivity = 1e6, .max_rank = 9, .stored = storage::low_rank},
        spectrum);
  m.add({.rows = 64, .cols = 64, .sensitivity = 1e6}, spectrum);
  m.add({.rows = 64, .cols = 64, .sensitivity = 1e6, .layer = 0, .stored = storage::low_rank},
        spectrum);
  const std::vector<index_t> layer_budgets{128 * 7};
  const allocation result = ressvd::allocate_ranks(
      m.matrices, {.budget = 2 * 4096 + 128 * (5 + 9 + 7 + 11), .layer_budgets = layer_budgets});
  CHECK(result.limits ==
        std::vector<allocation_limit>{allocation_limit::only_choice, allocation_limit::budget,
                                      allocation_limit::lowest_rank, allocation_limit::highest_rank,
                                      allocation_limit::none, allocation_limit::layer_budget});
  CHECK(result.ranks ==
        std::vector<rank_choice>{
            {64, true}, {11, false}, {5, false}, {9, false}, {64, true}, {7, false}});
  CHECK(result.layer_prices[0] > result.price);
}

TEST_CASE("a truncated spectrum with its tail is as good as the full one", "[rank_allocation]") {
  generator random{11};
  const model full = llama_like(random, 4, 48);
  const index_t budget = ressvd::uniform_budget(full.matrices, 0.4);
  const allocation expected = ressvd::allocate_ranks(full.matrices, {.budget = budget});
  std::vector<allocation_matrix> cut = full.matrices;
  for (auto& matrix : cut) { // ranks from α on save nothing, so they need no single energies
    const index_t useful = ressvd::largest_saving_rank(matrix.rows, matrix.cols);
    matrix.tail_energy = ressvd::truncated_energy(matrix.energies, useful);
    matrix.energies = matrix.energies.first(static_cast<std::size_t>(useful));
  }
  const allocation result = ressvd::allocate_ranks(cut, {.budget = budget});
  CHECK(result.ranks == expected.ranks);
  CHECK(result.loss == Approx(expected.loss).epsilon(rounding_error));
}

TEST_CASE("bad allocation problems are refused by name and number", "[rank_allocation]") {
  const std::vector<double> good{3, 2, 1, 0.5};
  const auto solve = [&](allocation_matrix matrix, allocation_options options) {
    matrix.name = "layers.3.q_proj";
    return ressvd::allocate_ranks(std::vector<allocation_matrix>{matrix}, options);
  };
  const allocation_matrix base{.energies = good, .rows = 8, .cols = 4};
  const auto with = [&](auto&& change) {
    allocation_matrix matrix = base;
    change(matrix);
    return matrix;
  };
  const auto with_energies = [&](const std::vector<double>& energies) {
    return with([&](allocation_matrix& matrix) { matrix.energies = energies; });
  };
  const allocation_options options{.budget = 32};
  CHECK_NOTHROW(solve(base, options));

  const std::vector<double> rising{3, 1, 2, 0.5}, broken{3, not_a_number, 1, 0.5},
      endless{infinity, 2, 1, 0.5}, negative{3, 2, 1, -0.5}, too_many{5, 4, 3, 2, 1};
  CHECK_THROWS_WITH(solve(with_energies(rising), options), contains_text("layers.3.q_proj"));
  CHECK_THROWS_WITH(solve(with_energies(rising), options),
                    contains_text("not descending, 1 before 2 at 1"));
  CHECK_THROWS_AS(solve(with_energies(broken), options), ressvd::nonfinite_error);
  CHECK_THROWS_AS(solve(with_energies(endless), options), ressvd::nonfinite_error);
  CHECK_THROWS_WITH(solve(with_energies(negative), options), contains_text("negative energy -0.5"));
  CHECK_THROWS_WITH(solve(with_energies(too_many), options), contains_text("has 5 energies"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.rows = 0; }), options), contains_text("0 x 4"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.sensitivity = -1; }), options),
                    contains_text("negative sensitivity -1"));
  CHECK_THROWS_AS(solve(with([](auto& m) { m.sensitivity = not_a_number; }), options),
                  ressvd::nonfinite_error);
  CHECK_THROWS_AS(solve(with([](auto& m) { m.tail_energy = infinity; }), options),
                  ressvd::nonfinite_error);
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.tail_energy = -2; }), options),
                    contains_text("negative energy -2"));
  CHECK_THROWS_AS(solve(with([](auto& m) { m.sensitivity = 1e308; }), options),
                  ressvd::nonfinite_error);
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.min_rank = 0; }), options),
                    contains_text("min_rank 0"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.min_rank = 3, m.max_rank = 2; }), options),
                    contains_text("max_rank 2"));
  CHECK_THROWS_WITH(solve(with([](auto& m) { m.rank_multiple = 0; }), options),
                    contains_text("rank_multiple 0"));
  CHECK_THROWS_WITH(
      solve(with([](auto& m) { m.stored = storage::low_rank, m.min_rank = 3; }), options),
      contains_text("lowest 3, highest 2"));
  CHECK_THROWS_WITH(
      solve(with([](auto& m) { m.stored = storage::low_rank, m.sensitivity = infinity; }), options),
      contains_text("infinite sensitivity"));
  CHECK_THROWS_WITH(solve(base, {.budget = 32, .max_rank_share = 0}),
                    contains_text("max_rank_share 0"));
  CHECK_THROWS_WITH(solve(base, {.budget = 32, .gap = -1}), contains_text("gap -1"));
  CHECK_THROWS_WITH(ressvd::allocate_ranks({}, options), contains_text("no matrices"));

  const std::vector<index_t> tight{11};
  CHECK_THROWS_WITH(
      solve(with([](auto& m) { m.layer = 0; }), {.budget = 32, .layer_budgets = tight}),
      contains_text("layer 0 needs at least 12 parameters and its budget is 11"));
  CHECK_THROWS_WITH(
      solve(with([](auto& m) { m.layer = 1; }), {.budget = 32, .layer_budgets = tight}),
      contains_text("is in layer 1"));
  CHECK_THROWS_WITH(ressvd::last_layers_ranks(std::vector<allocation_matrix>{base}, 4, 2, 0.2),
                    contains_text("is in layer -1 of 4"));
}

TEST_CASE("a start outside the constraints is refused", "[rank_allocation]") {
  model m;
  m.add({.name = "up",
         .rows = 20,
         .cols = 20,
         .layer = 0,
         .min_rank = 2,
         .stored = storage::low_rank},
        power_law(20, 1));
  const std::vector<index_t> layer_budgets{200};
  const auto solve = [&](rank_choice start, index_t budget) {
    const std::vector<rank_choice> starts{start};
    return ressvd::allocate_ranks(
        m.matrices, {.budget = budget, .layer_budgets = layer_budgets, .start = starts});
  };
  CHECK_NOTHROW(solve({.rank = 3, .dense = false}, 200));
  CHECK_THROWS_WITH(solve({.rank = 1, .dense = false}, 200), contains_text("(up) at rank 1"));
  CHECK_THROWS_WITH(solve({.rank = 20, .dense = true}, 400), contains_text("(up) dense"));
  CHECK_THROWS_WITH(solve({.rank = 4, .dense = false}, 120),
                    contains_text("keeps 160 parameters and the budget is 120"));
  CHECK_THROWS_WITH(solve({.rank = 6, .dense = false}, 400),
                    contains_text("exceeds the budget 200 of layer 0"));
}
