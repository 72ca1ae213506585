// SPDX-License-Identifier: Apache-2.0
//
// One relaxation of a rank allocation: prices, a lower bound of the loss, and a greedy assignment.
//
// At a price λ per parameter every matrix chooses for itself, min_choice loss + λ·cost. The
// smallest λ whose choices keep to the budget is the multiplier of the linear relaxation, and the
// dual function at λ is its optimum, Σ_j min_choice(loss + λ·cost) − λ·budget, a lower bound for
// every assignment. A layer with a budget of its own has a price of its own, never below the
// common one: the budgets are nested, so both prices are found one after the other.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <optional>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/layer_ratio/allocation_problem.hpp"
#include "ressvd/layer_ratio/loss_curve.hpp"

namespace ressvd {
inline namespace v0 {
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

/// What one relaxation found.
struct relaxation {
  std::vector<rank_choice> ranks;
  double loss = 0;
  double bound = 0; ///< no assignment of these curves loses less
  double price = 0;
  std::vector<double> layer_prices; ///< at least `price` where the layer's budget binds, else 0
  std::optional<std::size_t> split; ///< the matrix that the relaxation makes dense by a fraction
};

class allocation_search {
 public:
  allocation_search(std::span<const allocation_matrix> matrices, const allocation_options& options)
      : matrices_{matrices}, options_{options}, layers_(options.layer_budgets.size()) {
    for (std::size_t j = 0; j < matrices.size(); ++j)
      if (!layers_.empty() && matrices[j].layer >= 0)
        layers_[static_cast<std::size_t>(matrices[j].layer)].push_back(j);
  }

  /// Empty when the cheapest choices of all curves exceed the budget or a layer's budget.
  std::optional<relaxation> solve(const std::vector<loss_curve>& curves) const {
    const double infinite = std::numeric_limits<double>::infinity();
    for (std::size_t l = 0; l < layers_.size(); ++l)
      if (layer_cost(curves, l, infinite) > options_.layer_budgets[l]) return {};
    std::vector<double> layer_prices(layers_.size(), 0);
    if (relaxed_cost(curves, layer_prices, infinite) > options_.budget) return {};

    for (std::size_t l = 0; l < layers_.size(); ++l)
      layer_prices[l] = clearing_price([&](double price) { return layer_cost(curves, l, price); },
                                       options_.layer_budgets[l]);
    const double price = clearing_price(
        [&](double p) { return relaxed_cost(curves, layer_prices, p); }, options_.budget);
    return assign(curves, price, std::move(layer_prices));
  }

  index_t layer_cost(const std::vector<loss_curve>& curves, std::size_t layer, double price) const {
    index_t cost = 0;
    for (const std::size_t j : layers_[layer])
      cost += curves[j].cost(curves[j].choice_at(price));
    return cost;
  }

  index_t cheapest_cost(const std::vector<loss_curve>& curves) const {
    index_t cost = 0;
    for (const loss_curve& curve : curves)
      cost += curve.cost(curve.cheapest());
    return cost;
  }

 private:
  std::optional<std::size_t> layer_of(std::size_t j) const {
    if (layers_.empty() || matrices_[j].layer < 0) return {};
    return static_cast<std::size_t>(matrices_[j].layer);
  }

  /// The relaxation's cost at a price: a layer dearer than that spends the whole of its budget.
  index_t relaxed_cost(const std::vector<loss_curve>& curves,
                       const std::vector<double>& layer_prices, double price) const {
    index_t cost = 0;
    for (std::size_t l = 0; l < layers_.size(); ++l)
      if (price < layer_prices[l]) cost += options_.layer_budgets[l];
    for (std::size_t j = 0; j < curves.size(); ++j) {
      const auto layer = layer_of(j);
      if (!layer || price >= layer_prices[*layer])
        cost += curves[j].cost(curves[j].choice_at(price));
    }
    return cost;
  }

  /// The choices at the prices, and then, with what they leave of the budgets, the next steps in
  /// the order of their savings per parameter; a step that does not fit is left out.
  relaxation assign(const std::vector<loss_curve>& curves, double price,
                    std::vector<double> layer_prices) const {
    relaxation result;
    result.price = price;
    result.layer_prices = std::move(layer_prices);
    const auto price_of = [&](std::size_t j) {
      const auto layer = layer_of(j);
      return layer ? (std::max)(price, result.layer_prices[*layer]) : price;
    };
    index_t left = options_.budget;
    std::vector<index_t> layer_left(options_.layer_budgets.begin(), options_.layer_budgets.end());
    const auto spend = [&](std::size_t j, index_t parameters) {
      left -= parameters;
      if (const auto layer = layer_of(j)) layer_left[*layer] -= parameters;
    };
    const auto fits = [&](std::size_t j, index_t parameters) {
      const auto layer = layer_of(j);
      return parameters <= left && (!layer || parameters <= layer_left[*layer]);
    };

    std::vector<double> losses;
    for (std::size_t j = 0; j < curves.size(); ++j) {
      result.ranks.push_back(curves[j].choice_at(price_of(j)));
      losses.push_back(predicted_loss(matrices_[j], result.ranks[j]));
      result.bound += losses[j];
      spend(j, curves[j].cost(result.ranks[j]));
    }
    result.bound -= price * static_cast<double>(left);
    for (std::size_t l = 0; l < layers_.size(); ++l)
      result.bound -=
          (std::max)(result.layer_prices[l] - price, 0.0) * static_cast<double>(layer_left[l]);
    result.bound = (std::max)(result.bound, 0.0);

    std::vector<bool> refused(curves.size(), false);              // the jump to dense did not fit
    std::priority_queue<std::pair<double, std::ptrdiff_t>> steps; // saving, −j: first one first
    const auto offer = [&](std::size_t j) {
      const double saving = curves[j].next(result.ranks[j], refused[j]).saving;
      if (saving > 0) steps.emplace(saving, -static_cast<std::ptrdiff_t>(j));
    };
    for (std::size_t j = 0; j < curves.size(); ++j)
      offer(j);
    while (!steps.empty()) {
      const auto j = static_cast<std::size_t>(-steps.top().second);
      steps.pop();
      const auto [to, saving] = curves[j].next(result.ranks[j], refused[j]);
      const index_t parameters = curves[j].cost(to) - curves[j].cost(result.ranks[j]);
      if (fits(j, parameters)) {
        spend(j, parameters);
        result.ranks[j] = to;
        losses[j] = -1; // computed anew below
      } else if (to.dense) {
        refused[j] = true;
        if (!result.split && saving >= price_of(j)) result.split = j;
      } else {
        continue;
      }
      offer(j);
    }

    for (std::size_t j = 0; j < curves.size(); ++j)
      result.loss += losses[j] < 0 ? predicted_loss(matrices_[j], result.ranks[j]) : losses[j];
    return result;
  }

  std::span<const allocation_matrix> matrices_;
  allocation_options options_;
  std::vector<std::vector<std::size_t>> layers_; ///< matrices by layer, when layers have budgets
};

} // namespace detail
} // namespace v0
} // namespace ressvd
