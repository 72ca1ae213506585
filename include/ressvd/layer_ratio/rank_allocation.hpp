// SPDX-License-Identifier: Apache-2.0
//
// Rank allocation: all ranks of a model chosen together under one parameter budget.
//
//   minimise  Σ_j c_j Σ_{i>r_j} σ²_ij   subject to   Σ_j parameters_j ≤ budget
//
// (ressvd/layer_ratio/allocation_problem.hpp). Without the dense choice, steps in the order of
// c_jσ²_ij/(m_j+n_j) are optimal, as spectra descend. The dense choice makes it a knapsack: a
// matrix may jump from any rank to m_j n_j parameters and no loss. So each matrix is replaced by
// its lower convex hull (detail/loss_curve.hpp); the relaxation over the hulls is solved exactly by
// a price per parameter and bounds the loss from below (detail/allocation_search.hpp); and where
// the budget cuts a jump to dense in two, branching tries that matrix dense and not dense.
// docs/rank_allocation.md has the argument. Host scalars only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/layer_ratio/allocation_problem.hpp"
#include "ressvd/layer_ratio/allocation_search.hpp"
#include "ressvd/layer_ratio/loss_curve.hpp"

namespace ressvd {
inline namespace v0 {

/// What decided the storage of a matrix.
enum class allocation_limit : std::uint8_t {
  budget,       ///< it would take more, and the common budget is spent
  layer_budget, ///< it would take more, and its layer's budget is spent
  lowest_rank,  ///< min_rank holds it above what its energy is worth
  highest_rank, ///< max_rank, max_rank_share or the end of its spectrum, and it may not be dense
  only_choice,  ///< pinned dense, or one rank alone is allowed
  none,         ///< more parameters would save nothing
};

struct allocation {
  std::vector<rank_choice> ranks;
  std::vector<allocation_limit> limits; ///< by matrix
  double loss = 0;                      ///< Σ_j c_j Σ_{i>r_j} σ²_ij of `ranks`
  double loss_bound = 0;                ///< no assignment within the constraints loses less
  index_t parameters = 0;               ///< kept by all matrices together
  index_t budget = 0;                   ///< as passed
  double price = 0;                     ///< loss that one more parameter saves; 0: budget to spare
  std::vector<double> layer_prices;     ///< the same by layer, where layers have budgets
  index_t nodes = 0;                    ///< relaxations solved
};

namespace detail {

inline void check_problem(std::span<const allocation_matrix> matrices,
                          const allocation_options& options) {
  require(!matrices.empty(), "no matrices to allocate ranks to");
  require(options.max_rank_share > 0 && options.max_rank_share <= 1, "max_rank_share ",
          options.max_rank_share, " is outside (0, 1]");
  require(options.gap >= 0 && options.max_nodes >= 1, "gap ", options.gap, " and max_nodes ",
          options.max_nodes, " must be at least 0 and 1");
  const auto layers = static_cast<index_t>(options.layer_budgets.size());
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    check_matrix(matrices[j], j);
    if (layers > 0 && matrices[j].layer >= layers)
      fail(describe(matrices[j], j), " is in layer ", matrices[j].layer,
           " and there are budgets for ", layers, " layers");
  }
}

inline std::vector<loss_curve> make_curves(std::span<const allocation_matrix> matrices,
                                           const allocation_options& options) {
  std::vector<loss_curve> curves;
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    curves.emplace_back(matrices[j], options.max_rank_share);
    if (!curves[j].has_choice())
      fail(describe(matrices[j], j), " of ", matrices[j].rows, " x ", matrices[j].cols,
           " must not be dense and has no rank: lowest ", curves[j].lowest(), ", highest ",
           curves[j].highest());
  }
  return curves;
}

/// The cheapest choices do not fit: says where, with the numbers.
[[noreturn]] inline void fail_infeasible(const allocation_search& search,
                                         const std::vector<loss_curve>& curves,
                                         const allocation_options& options) {
  for (std::size_t l = 0; l < options.layer_budgets.size(); ++l) {
    const index_t least = search.layer_cost(curves, l, std::numeric_limits<double>::infinity());
    require(least <= options.layer_budgets[l], "layer ", l, " needs at least ", least,
            " parameters and its budget is ", options.layer_budgets[l]);
  }
  fail(curves.size(), " matrices need at least ", search.cheapest_cost(curves),
       " parameters and the budget is ", options.budget);
}

/// Refuses an assignment that breaks a constraint.
inline void check_start(std::span<const allocation_matrix> matrices,
                        const std::vector<loss_curve>& curves, const allocation_options& options) {
  const allocation_point point = evaluate_allocation(matrices, options.start);
  require(point.parameters <= options.budget, "the starting assignment keeps ", point.parameters,
          " parameters and the budget is ", options.budget);
  std::vector<index_t> left(options.layer_budgets.begin(), options.layer_budgets.end());
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const rank_choice& stored = options.start[j];
    if (!curves[j].allows(stored))
      fail("the starting assignment stores ", describe(matrices[j], j),
           stored.dense ? " dense" : " at rank ", stored.dense ? "" : std::to_string(stored.rank),
           ", which its constraints forbid");
    if (!left.empty() && matrices[j].layer >= 0) {
      const auto l = static_cast<std::size_t>(matrices[j].layer);
      left[l] -= curves[j].cost(stored);
      require(left[l] >= 0, "the starting assignment exceeds the budget ", options.layer_budgets[l],
              " of layer ", l);
    }
  }
}

/// A part of the search: some matrices made dense, some kept from it.
struct allocation_node {
  std::vector<std::pair<std::size_t, storage>> fixed;
  std::size_t split = 0;
  double bound = 0;

  bool operator<(const allocation_node& other) const { return bound > other.bound; }
};

inline allocation_limit limit_of(const loss_curve& curve, const rank_choice& stored, double price,
                                 double layer_price) {
  const bool factors_only = !curve.may_be_dense();
  if (!curve.has_factors() || (factors_only && curve.lowest() == curve.highest()))
    return allocation_limit::only_choice;
  if (stored.dense) return allocation_limit::none;
  if (stored.rank == curve.lowest() && curve.saving(stored.rank) < (std::max)(price, layer_price))
    return allocation_limit::lowest_rank;
  if (factors_only && stored.rank == curve.highest()) return allocation_limit::highest_rank;
  if (curve.next(stored, false).saving == 0) return allocation_limit::none;
  return layer_price > price ? allocation_limit::layer_budget : allocation_limit::budget;
}

} // namespace detail

/// Chooses a rank, or dense, for every matrix.
///
/// The result keeps to all constraints, and the least possible loss lies in [loss_bound, loss].
/// Once nothing is left to branch on, the two differ by at most gap · loss, or by what one more
/// step of rank would save, one step for each budget that binds. Cost: one pass over the spectra,
/// then about 63 · log₂(ranks) operations per matrix and relaxation. Memory: about 200 bytes per
/// matrix; the spectra are not copied. Throws std::invalid_argument, with the matrix and the
/// numbers, for data that is no spectrum, constraints that contradict each other, or a budget below
/// what the lowest ranks need; nonfinite_error for NaN and infinity (sensitivities may be infinite:
/// that pins dense).
inline allocation allocate_ranks(std::span<const allocation_matrix> matrices,
                                 const allocation_options& options) {
  using namespace detail;
  check_problem(matrices, options);
  const std::vector<loss_curve> curves = make_curves(matrices, options);
  const allocation_search search{matrices, options};
  const auto root = search.solve(curves);
  if (!root) fail_infeasible(search, curves, options);

  std::vector<rank_choice> best = root->ranks;
  double loss = root->loss;
  if (!options.start.empty()) {
    check_start(matrices, curves, options);
    const allocation_point start = evaluate_allocation(matrices, options.start);
    if (start.loss < loss) {
      best = start.ranks;
      loss = start.loss;
    }
  }

  // Best bound first. `settled` is the lowest bound among the parts that need no more branching.
  double settled = std::numeric_limits<double>::infinity();
  index_t nodes = 1;
  std::priority_queue<allocation_node> open;
  const auto keep = [&](const relaxation& part, auto&& fixed) {
    if (part.split)
      open.push({.fixed = fixed, .split = *part.split, .bound = part.bound});
    else
      settled = (std::min)(settled, part.bound);
  };
  keep(*root, std::vector<std::pair<std::size_t, storage>>{});
  while (!open.empty() && nodes + 1 < options.max_nodes &&
         loss - open.top().bound > options.gap * loss) {
    const allocation_node node = open.top();
    open.pop();
    for (const storage branch : {storage::dense, storage::low_rank}) {
      auto fixed = node.fixed;
      fixed.emplace_back(node.split, branch);
      std::vector<loss_curve> part = curves;
      for (const auto& [j, stored] : fixed)
        part[j] = stored == storage::dense ? part[j].without_factors() : part[j].without_dense();
      const auto solved = search.solve(part);
      ++nodes;
      if (!solved) continue;
      if (solved->loss < loss) {
        best = solved->ranks;
        loss = solved->loss;
      }
      keep(*solved, fixed);
    }
  }

  allocation result{
      .ranks = std::move(best),
      .limits = {},
      .loss = loss,
      .loss_bound = (std::min)({loss, settled, open.empty() ? loss : open.top().bound}),
      .parameters = 0,
      .budget = options.budget,
      .price = root->price,
      .layer_prices = root->layer_prices,
      .nodes = nodes};
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const bool in_layer = !result.layer_prices.empty() && matrices[j].layer >= 0;
    result.parameters += curves[j].cost(result.ranks[j]);
    result.limits.push_back(
        limit_of(curves[j], result.ranks[j], result.price,
                 in_layer ? result.layer_prices[static_cast<std::size_t>(matrices[j].layer)] : 0));
  }
  return result;
}

} // namespace v0
} // namespace ressvd
