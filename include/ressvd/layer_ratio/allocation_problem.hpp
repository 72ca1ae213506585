// SPDX-License-Identifier: Apache-2.0
//
// Rank allocation, the statement of the problem: which rank for which matrix.
//
// Every matrix j is known by its spectrum: energies σ²_ij, the squared singular values of the
// weighted matrix in descending order, so that truncation at rank r loses Σ_{i>r} σ²_ij. A
// sensitivity c_j says what a unit of that loss costs the model. Stored at rank r the matrix takes
// r(m_j+n_j) parameters; stored dense it takes m_j n_j and loses nothing. Wanted is
//   minimise  Σ_j c_j Σ_{i>r_j} σ²_ij   subject to   Σ_j parameters_j ≤ budget
// and the constraints below. ressvd/layer_ratio/rank_allocation.hpp solves it; uniform ratios and
// the last-k rule are points of the same problem, made here. Host scalars only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/layer_ratio/last_layers.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"

namespace ressvd {
inline namespace v0 {

inline constexpr index_t unlimited = (std::numeric_limits<index_t>::max)();

/// What a matrix may become: the solver's choice, always two factors, or always itself.
enum class storage : std::uint8_t { free, low_rank, dense };

struct allocation_matrix {
  std::string_view name = {};            ///< for messages
  std::span<const double> energies = {}; ///< σ²_i ≥ 0, descending, at most min(rows, cols) of them
  index_t rows = 0;                      ///< m
  index_t cols = 0;                      ///< n
  double sensitivity = 1;                ///< c ≥ 0; infinity keeps the matrix dense
  double tail_energy = 0;                ///< energy past the end of a truncated spectrum
  index_t layer = -1;                    ///< in [0, layers); −1 for a matrix of no layer
  index_t min_rank = 1;                  ///< at least 1
  index_t max_rank = unlimited;          ///< of the factors; does not forbid dense
  index_t rank_multiple = 1;             ///< ranks are multiples of this
  storage stored = storage::free;
};

struct allocation_options {
  index_t budget = 0; ///< parameters all matrices together may keep
  /// Factors have at most this share of α; it sets the minimum speed-up 1/share of a factored
  /// matrix over a dense one, counted in multiplications. In (0, 1]; a rank of α or more is never
  /// used, as it saves nothing.
  double max_rank_share = 1;
  /// By layer, the parameters its matrices together may keep; empty for no such bounds.
  std::span<const index_t> layer_budgets = {};
  /// A known assignment that keeps to all constraints (uniform, last-k); the result loses no more
  /// than this one does. Empty for none.
  std::span<const rank_choice> start = {};
  /// The search ends when the loss exceeds its lower bound by no more than this share of it …
  double gap = 1e-4;
  /// … or after this many relaxations. 1 is the plain greedy, whose loss never grows with the
  /// budget.
  index_t max_nodes = 64;
};

/// An assignment of ranks and what it costs.
struct allocation_point {
  std::vector<rank_choice> ranks;
  double loss = 0;        ///< Σ_j c_j Σ_{i>r_j} σ²_ij
  index_t parameters = 0; ///< kept by all matrices together
};

namespace detail {

inline std::string describe(const allocation_matrix& matrix, std::size_t j) {
  return matrix.name.empty() ? text("matrix ", j) : text("matrix ", j, " (", matrix.name, ")");
}

inline bool pinned_dense(const allocation_matrix& matrix) {
  return matrix.stored == storage::dense || std::isinf(matrix.sensitivity);
}

/// Everything about the data of one matrix that a caller can get wrong.
inline void check_matrix(const allocation_matrix& matrix, std::size_t j) {
  const auto name = [&] { return describe(matrix, j); };
  const auto& e = matrix.energies;
  if (matrix.rows < 1 || matrix.cols < 1) // the shape check itself throws, without the name
    fail(name(), " has the shape ", matrix.rows, " x ", matrix.cols);
  require_shape(matrix.rows, matrix.cols);
  const auto count = static_cast<index_t>(e.size());
  if (count > (std::min)(matrix.rows, matrix.cols))
    fail(name(), " of ", matrix.rows, " x ", matrix.cols, " has ", count, " energies");
  // Descending from a finite first value to a last one of at least 0: no NaN can hide in between.
  const auto bad = std::ranges::adjacent_find(e, [](double a, double b) { return !(a >= b); });
  if (bad != e.end() && std::isfinite(bad[0]) && std::isfinite(bad[1]))
    fail(name(), ": the energies are not descending, ", bad[0], " before ", bad[1], " at ",
         bad - e.begin());
  if (bad != e.end() || (count > 0 && !std::isfinite(e.front())) ||
      !std::isfinite(matrix.tail_energy))
    fail<nonfinite_error>(name(), ": the energies are not finite");
  if ((count > 0 && e.back() < 0) || matrix.tail_energy < 0)
    fail(name(), ": negative energy ",
         count > 0 ? (std::min)(e.back(), matrix.tail_energy) : matrix.tail_energy);
  if (std::isnan(matrix.sensitivity)) fail<nonfinite_error>(name(), ": the sensitivity is nan");
  if (matrix.sensitivity < 0) fail(name(), ": negative sensitivity ", matrix.sensitivity);
  const double largest = count > 0 ? e.front() * static_cast<double>(count) : 0;
  if (!std::isinf(matrix.sensitivity) &&
      !std::isfinite(matrix.sensitivity * (largest + matrix.tail_energy)))
    fail<nonfinite_error>(name(), ": the sensitivity ", matrix.sensitivity,
                          " times the energy overflows");
  if (matrix.min_rank < 1 || matrix.rank_multiple < 1 || matrix.max_rank < matrix.min_rank)
    fail(name(), ": min_rank ", matrix.min_rank, ", max_rank ", matrix.max_rank, ", rank_multiple ",
         matrix.rank_multiple, " do not fit together");
  if (matrix.stored == storage::low_rank && std::isinf(matrix.sensitivity))
    fail(name(), " is to be low-rank and has an infinite sensitivity");
}

} // namespace detail

/// Σ_{i>rank} σ²_i, with the tail. Summed from the small end. rank ≤ energies.size().
inline double truncated_energy(std::span<const double> energies, index_t rank,
                               double tail_energy = 0) {
  const auto count = static_cast<index_t>(energies.size());
  detail::require(rank >= 0 && rank <= count, "rank ", rank, " is outside [0, ", count, "]");
  return std::reduce(energies.rbegin(), energies.rend() - rank, tail_energy);
}

/// c Σ_{i>r} σ²_i; 0 when dense.
inline double predicted_loss(const allocation_matrix& matrix, const rank_choice& stored) {
  if (stored.dense) return 0;
  return matrix.sensitivity * truncated_energy(matrix.energies, stored.rank, matrix.tail_energy);
}

/// Loss and parameters of any assignment of ranks, kept to constraints or not.
inline allocation_point evaluate_allocation(std::span<const allocation_matrix> matrices,
                                            std::span<const rank_choice> ranks) {
  detail::require(matrices.size() == ranks.size(), ranks.size(), " ranks for ", matrices.size(),
                  " matrices");
  allocation_point point{.ranks = {ranks.begin(), ranks.end()}, .loss = 0, .parameters = 0};
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    point.loss += predicted_loss(matrices[j], ranks[j]);
    point.parameters += kept_parameters(matrices[j].rows, matrices[j].cols, ranks[j]);
  }
  return point;
}

/// The uniform point: every matrix at the rank of `ratio`, rounded down to its multiple. No other
/// constraint is looked at.
inline std::vector<rank_choice> uniform_ranks(std::span<const allocation_matrix> matrices,
                                              double ratio) {
  std::vector<rank_choice> ranks;
  for (const allocation_matrix& matrix : matrices)
    ranks.push_back(
        rank_for_ratio(matrix.rows, matrix.cols, ratio, {.multiple = matrix.rank_multiple}));
  return ranks;
}

/// Σ_j ⌊(1−R)α_j⌋(m_j+n_j): the budget that makes an allocation comparable with the uniform ratio
/// R. It is a promise about all these matrices, whatever is pinned or rounded among them.
inline index_t uniform_budget(std::span<const allocation_matrix> matrices, double ratio) {
  index_t budget = 0;
  for (const allocation_matrix& matrix : matrices)
    budget +=
        kept_parameters(matrix.rows, matrix.cols, rank_for_ratio(matrix.rows, matrix.cols, ratio));
  return budget;
}

/// The last-k point (ERC-SVD): matrices of the last k of `layers` layers at the rank of the layer
/// ratio, all others dense. Every matrix needs its layer. Throws where layer_ratio does.
inline std::vector<rank_choice> last_layers_ranks(std::span<const allocation_matrix> matrices,
                                                  index_t layers, index_t last_layers,
                                                  double overall_ratio) {
  detail::require(layers >= 1, "a model of ", layers, " layers cannot be compressed");
  std::vector<index_t> layer_parameters(static_cast<std::size_t>(layers), 0);
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const index_t layer = matrices[j].layer;
    detail::require(layer >= 0 && layer < layers, detail::describe(matrices[j], j), " is in layer ",
                    layer, " of ", layers);
    layer_parameters[static_cast<std::size_t>(layer)] += matrices[j].rows * matrices[j].cols;
  }
  const double ratio = layer_ratio(layer_parameters, overall_ratio, last_layers);
  std::vector<rank_choice> ranks = uniform_ranks(matrices, ratio);
  for (std::size_t j = 0; j < matrices.size(); ++j)
    if (matrices[j].layer < layers - last_layers)
      ranks[j] = keep_dense(matrices[j].rows, matrices[j].cols);
  return ranks;
}

/// The matrix with its storage fixed: a point of the problem becomes an input of the solver.
inline allocation_matrix pinned(allocation_matrix matrix, const rank_choice& stored) {
  if (stored.dense) {
    matrix.stored = storage::dense;
  } else {
    matrix.stored = storage::low_rank;
    matrix.min_rank = matrix.max_rank = stored.rank;
    matrix.rank_multiple = 1;
  }
  return matrix;
}

} // namespace v0
} // namespace ressvd
