// SPDX-License-Identifier: Apache-2.0
//
// Rank allocation: all ranks of a model chosen together under one parameter budget.
//
//   minimise  Σ_j c_j T_j(r_j)   subject to   Σ_j parameters_j ≤ budget,   T_j(r) = Σ_{i>r} σ²_ij
//
// (allocation_problem.hpp). For pairs without the dense choice, steps in the order of
// c_jσ²_ij/(m_j+n_j) are optimal, as spectra descend. The dense choice makes it a knapsack: a
// matrix may jump from any rank to m_j n_j parameters and no loss. Pivoted pairs make it one as
// well: the higher a rank, the fewer parameters it adds. So each matrix is replaced by its lower
// convex hull (loss_curve.hpp). At a price λ per parameter every matrix chooses for itself, min
// loss + λ·cost; the smallest λ whose choices keep to the budget solves the relaxation over the
// hulls, and
//   Σ_j min_choice(loss + λ·cost) − λ·budget
// is a lower bound for every assignment. Further steps, best first, spend what is left of the
// budget.
//   cost     one pass over the spectra, then about 63 · log₂(ranks) operations per matrix
//   memory   about 160 bytes per matrix, and 16 bytes per vertex of the hull of a pivoted pair; the
//            spectra are not copied
//   errors   std::invalid_argument, with the matrix and the numbers, for data that is no spectrum
//            and for a budget below what the lowest ranks need; nonfinite_error for NaN and
//            infinity (a sensitivity may be infinite: it keeps its matrix dense)
//   source   the multiple-choice knapsack, Sinha and Zoltners, Operations Research 27 (1979);
//            docs/rank_allocation.md has the argument
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/layer_ratio/allocation_problem.hpp"
#include "ressvd/layer_ratio/loss_curve.hpp"

namespace ressvd {
inline namespace v0 {

struct allocation {
  std::vector<rank_choice> ranks;
  double loss = 0;        ///< Σ_j c_j T_j(r_j) of `ranks`
  double loss_bound = 0;  ///< no assignment within the budget loses less
  index_t parameters = 0; ///< kept by all matrices together
  double price = 0;       ///< loss that one more parameter saves; 0: budget to spare
};

namespace detail {

/// The smallest price ≥ 0 with cost(price) ≤ budget, to the last bit, for a cost that does not grow
/// with the price and fits the budget at an infinite one. Non-negative doubles are ordered as
/// their bit patterns, so halving the patterns takes at most 63 calls.
template <class Cost>
double clearing_price(Cost&& cost, index_t budget) {
  if (cost(0.0) <= budget) return 0;
  std::uint64_t below = 0;
  auto above = std::bit_cast<std::uint64_t>(std::numeric_limits<double>::infinity());
  while (above - below > 1) {
    const std::uint64_t middle = below + (above - below) / 2;
    (cost(std::bit_cast<double>(middle)) > budget ? below : above) = middle;
  }
  return std::bit_cast<double>(above);
}

/// Spends `left` parameters, always on the step of all curves that saves the most per parameter and
/// fits. That is the step to the next vertex, until it does not fit: it never will again, and the
/// ranks before it follow.
inline void spend(std::span<const loss_curve> curves, index_t left, std::span<rank_choice> ranks) {
  std::vector<bool> vertex_fits(curves.size(), true);
  std::priority_queue<std::pair<double, std::ptrdiff_t>> steps; // saving, −j: first one first
  const auto next = [&](std::size_t j) {
    return vertex_fits[j] ? curves[j].next_vertex(ranks[j]) : curves[j].next_within(ranks[j], left);
  };
  const auto offer = [&](std::size_t j) {
    const double saving = next(j).saving;
    if (saving > 0) steps.emplace(saving, -static_cast<std::ptrdiff_t>(j));
  };
  for (std::size_t j = 0; j < curves.size(); ++j)
    offer(j);
  while (!steps.empty()) {
    const double offered = steps.top().first;
    const auto j = static_cast<std::size_t>(-steps.top().second);
    steps.pop();
    const loss_curve::step step = next(j);
    if (step.saving == offered) { // else the rank that was offered does not fit any more
      const index_t parameters = curves[j].cost(step.to) - curves[j].cost(ranks[j]);
      if (parameters <= left) {
        left -= parameters;
        ranks[j] = step.to;
      } else {
        vertex_fits[j] = false;
      }
    }
    offer(j);
  }
}

} // namespace detail

/// Chooses a rank, or dense, for every matrix, with at most `budget` parameters for all together.
/// The least possible loss lies in [loss_bound, loss]; the two differ by at most what one step on a
/// hull saves, a rank or a jump to dense. A larger budget never loses more.
inline allocation allocate_ranks(std::span<const allocation_matrix> matrices, index_t budget) {
  detail::require(!matrices.empty(), "no matrices to allocate ranks to");
  std::vector<detail::loss_curve> curves;
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    detail::check_matrix(matrices[j], j);
    curves.emplace_back(matrices[j]);
  }
  const auto cost_at = [&](double price) {
    index_t cost = 0;
    for (const detail::loss_curve& curve : curves)
      cost += curve.cost(curve.choice_at(price));
    return cost;
  };
  const index_t least = cost_at(std::numeric_limits<double>::infinity());
  detail::require(least <= budget, matrices.size(), " matrices need at least ", least,
                  " parameters and the budget is ", budget);

  allocation result;
  result.price = detail::clearing_price(cost_at, budget);
  for (const detail::loss_curve& curve : curves)
    result.ranks.push_back(curve.choice_at(result.price));
  const allocation_totals relaxed = evaluate_allocation(matrices, result.ranks);
  const index_t left = budget - relaxed.parameters;
  detail::spend(curves, left, result.ranks);

  const allocation_totals spent = evaluate_allocation(matrices, result.ranks);
  result.loss = spent.loss;
  result.parameters = spent.parameters;
  result.loss_bound =
      std::clamp(relaxed.loss - result.price * static_cast<double>(left), 0.0, result.loss);
  return result;
}

} // namespace v0
} // namespace ressvd
