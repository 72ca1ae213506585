// SPDX-License-Identifier: Apache-2.0
//
// Rank allocation, the statement of the problem: which rank for which matrix.
//
// Every matrix j is known by its spectrum, the singular values σ_ij of the weighted matrix in
// descending order: truncation at rank r loses the energy T_j(r) = Σ_{i>r} σ²_ij. A sensitivity c_j
// says what a unit of that loss costs the model. A matrix at rank r takes r(m_j+n_j) parameters, or
// r(m_j+n_j−r) in a pivoted pair; a dense one takes m_j n_j and loses nothing.
// rank_allocation.hpp solves the problem to
//   minimise  Σ_j c_j T_j(r_j)   subject to   Σ_j parameters_j ≤ budget
// Host scalars only.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"

namespace ressvd {
inline namespace v0 {

inline constexpr index_t unlimited = (std::numeric_limits<index_t>::max)();

struct allocation_matrix {
  std::string_view name = {};                   ///< for messages
  std::span<const double> singular_values = {}; ///< σ_i ≥ 0, descending, at most min(rows, cols)
  index_t rows = 0;                             ///< m
  index_t cols = 0;                             ///< n
  double sensitivity = 1;                       ///< c ≥ 0; infinity keeps the matrix dense
  double tail_energy = 0;                       ///< Σ σ² past the end of a truncated spectrum
  index_t max_rank = unlimited;                 ///< of the factors; does not forbid dense
  index_t rank_multiple = 1;                    ///< ranks are multiples of this
  factored_form form = factored_form::pair;     ///< what a rank costs
};

/// What an assignment of ranks loses and keeps.
struct allocation_totals {
  double loss = 0;        ///< Σ_j c_j T_j(r_j)
  index_t parameters = 0; ///< kept by all matrices together
};

namespace detail {

inline std::string describe(const allocation_matrix& matrix, std::size_t j) {
  return matrix.name.empty() ? text("matrix ", j) : text("matrix ", j, " (", matrix.name, ")");
}

inline bool pinned_dense(const allocation_matrix& matrix) {
  return std::isinf(matrix.sensitivity);
}

/// Everything about the data of one matrix that a caller can get wrong.
inline void check_matrix(const allocation_matrix& matrix, std::size_t j) {
  const auto name = [&] { return describe(matrix, j); };
  const auto& s = matrix.singular_values;
  if (matrix.rows < 1 || matrix.cols < 1) // the shape check itself throws, without the name
    fail(name(), " has the shape ", matrix.rows, " x ", matrix.cols);
  require_shape(matrix.rows, matrix.cols);
  const auto count = static_cast<index_t>(s.size());
  if (count > (std::min)(matrix.rows, matrix.cols))
    fail(name(), " of ", matrix.rows, " x ", matrix.cols, " has ", count, " singular values");
  // Descending from a finite first value to a last one of at least 0: no NaN can hide in between.
  const auto bad = std::ranges::adjacent_find(s, [](double a, double b) { return !(a >= b); });
  if (bad != s.end() && std::isfinite(bad[0]) && std::isfinite(bad[1]))
    fail(name(), ": the singular values are not descending, ", bad[0], " before ", bad[1], " at ",
         bad - s.begin());
  if (bad != s.end() || (count > 0 && !std::isfinite(s.front())) ||
      !std::isfinite(matrix.tail_energy))
    fail<nonfinite_error>(name(), ": the spectrum is not finite");
  if (count > 0 && s.back() < 0) fail(name(), ": negative singular value ", s.back());
  if (matrix.tail_energy < 0) fail(name(), ": negative tail energy ", matrix.tail_energy);
  if (std::isnan(matrix.sensitivity)) fail<nonfinite_error>(name(), ": the sensitivity is nan");
  if (matrix.sensitivity < 0) fail(name(), ": negative sensitivity ", matrix.sensitivity);
  const double energy =
      (count > 0 ? s.front() * s.front() * static_cast<double>(count) : 0) + matrix.tail_energy;
  if (!std::isfinite(energy) ||
      (!pinned_dense(matrix) && !std::isfinite(matrix.sensitivity * energy)))
    fail<nonfinite_error>(name(), ": the sensitivity ", matrix.sensitivity,
                          " times the energy overflows");
  if (matrix.rank_multiple < 1 || matrix.max_rank < 0)
    fail(name(), ": rank_multiple ", matrix.rank_multiple, " and max_rank ", matrix.max_rank,
         " must be at least 1 and 0");
}

} // namespace detail

/// T(rank) = Σ_{i>rank} σ²_i, with the tail. Summed from the small end. rank ≤ their number.
inline double truncated_energy(std::span<const double> singular_values, index_t rank,
                               double tail_energy = 0) {
  const auto count = static_cast<index_t>(singular_values.size());
  detail::require(rank >= 0 && rank <= count, "rank ", rank, " is outside [0, ", count, "]");
  return std::accumulate(singular_values.rbegin(), singular_values.rend() - rank, tail_energy,
                         [](double sum, double s) { return sum + s * s; });
}

/// c T(r), the same in either form; 0 when dense.
inline double predicted_loss(const allocation_matrix& matrix, const rank_choice& choice) {
  if (choice.dense) return 0;
  return matrix.sensitivity *
         truncated_energy(matrix.singular_values, choice.rank, matrix.tail_energy);
}

/// Loss and parameters of any assignment of ranks: uniform ones, those of a last-k search, or a
/// solution.
inline allocation_totals evaluate_allocation(std::span<const allocation_matrix> matrices,
                                             std::span<const rank_choice> ranks) {
  detail::require(matrices.size() == ranks.size(), ranks.size(), " ranks for ", matrices.size(),
                  " matrices");
  allocation_totals totals;
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    totals.loss += predicted_loss(matrices[j], ranks[j]);
    totals.parameters +=
        kept_parameters(matrices[j].rows, matrices[j].cols, ranks[j], matrices[j].form);
  }
  return totals;
}

/// What all matrices keep at the uniform ratio R, Σ_j ⌊(1−R)α_j⌋(m_j+n_j) in pairs: the budget that
/// makes an allocation comparable with R. It is a promise about all these matrices, whatever is
/// kept dense or rounded among them. A pivoted pair counts with what it keeps at R.
inline index_t uniform_budget(std::span<const allocation_matrix> matrices, double ratio) {
  index_t budget = 0;
  for (const allocation_matrix& matrix : matrices) {
    const rank_choice choice =
        rank_for_ratio(matrix.rows, matrix.cols, ratio, {.form = matrix.form});
    budget += kept_parameters(matrix.rows, matrix.cols, choice, matrix.form);
  }
  return budget;
}

} // namespace v0
} // namespace ressvd
