// SPDX-License-Identifier: Apache-2.0
//
// Further rounds of probes, at the solution itself.
//
// Sensitivities are measured on the intact model; at the chosen ranks they differ. A round measures
// them there and solves again. Two safeguards keep it from running away, as replacing or
// multiplying sensitivities outright does: a trust region (a round changes a sensitivity by a
// bounded factor, relative to the others), and a held-out check (a solution is accepted only when
// the caller's `validate` improves). So the result is never worse, by `validate`, than the first
// solution.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/layer_ratio/allocation_problem.hpp"
#include "ressvd/layer_ratio/rank_allocation.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"

namespace ressvd {
inline namespace v0 {

/// Passed to `evaluate` in place of a matrix when the ranks are the solution's own.
inline constexpr index_t no_matrix = -1;

struct refine_options {
  index_t rounds = 1;   ///< of probing at the best solution so far
  double trust = 4;     ///< a round changes a sensitivity by at most this factor; > 1
  index_t attempts = 3; ///< solutions tried in a round, each with the square root of the trust
};

/// A solution that was tried.
struct refine_attempt {
  index_t round = 0; ///< 0 is the first solution, before any re-probing
  double trust = 0;
  double validation = 0;
  bool accepted = false;
};

struct refined_allocation {
  allocation solution;
  std::vector<double> sensitivities; ///< those that led to `solution`
  double validation = 0;             ///< of `solution`
  std::vector<refine_attempt> attempts;
};

namespace detail {

/// The rank to which a matrix is moved to measure its slope at the solution: half of what it has,
/// the rank that keeps half of a dense matrix, rank 2 from rank 1; 0 where there is no such rank.
inline index_t neighbouring_rank(const allocation_matrix& matrix, const rank_choice& stored) {
  const auto count = static_cast<index_t>(matrix.singular_values.size());
  const index_t half =
      stored.dense ? static_cast<index_t>(rank_keeping(matrix.rows, matrix.cols, 0.5, matrix.form))
                   : stored.rank / 2;
  if (half >= 1) return (std::min)(half, count);
  const index_t rank = stored.dense ? 1 : 2;
  return rank <= count ? rank : 0;
}

/// By how much the sensitivity of each matrix at the solution differs from the one assumed, over
/// the median of that; 1 where it cannot be measured.
template <class Evaluate>
std::vector<double> sensitivity_corrections(std::span<const allocation_matrix> matrices,
                                            std::span<const rank_choice> ranks,
                                            Evaluate&& evaluate) {
  const auto measure = [&](std::span<const rank_choice> at, index_t changed) {
    const double error = evaluate(at, changed);
    if (!std::isfinite(error))
      fail<nonfinite_error>("the error of the probe of ",
                            changed == no_matrix
                                ? std::string("the solution")
                                : describe(matrices[static_cast<std::size_t>(changed)],
                                           static_cast<std::size_t>(changed)),
                            " at the solution is ", error);
    return error;
  };
  constexpr double unmeasured = std::numeric_limits<double>::quiet_NaN();
  const double base = measure(ranks, no_matrix);
  std::vector<rank_choice> moved(ranks.begin(), ranks.end());
  std::vector<double> corrections(matrices.size(), unmeasured);
  std::vector<double> measured;
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const allocation_matrix& matrix = matrices[j];
    if (pinned_dense(matrix) || !(matrix.sensitivity > 0)) continue;
    const index_t rank = neighbouring_rank(matrix, ranks[j]);
    if (rank == 0) continue;
    moved[j] = {.rank = rank, .dense = false};
    const double assumed = predicted_loss(matrix, moved[j]) - predicted_loss(matrix, ranks[j]);
    if (assumed != 0) {
      const double found = measure(moved, static_cast<index_t>(j)) - base;
      corrections[j] = found / assumed;
      if (corrections[j] > 0) measured.push_back(corrections[j]);
    }
    moved[j] = ranks[j];
  }
  if (measured.empty()) return std::vector<double>(matrices.size(), 1);
  const auto middle = measured.begin() + static_cast<std::ptrdiff_t>(measured.size() / 2);
  std::nth_element(measured.begin(), middle, measured.end());
  for (double& correction : corrections)
    correction = std::isnan(correction) ? 1 : correction / *middle;
  return corrections;
}

} // namespace detail

/// Solves, and then improves the solution in rounds.
///
/// `matrices` carry the sensitivities of probe_matrices. Callbacks:
/// - evaluate(ranks, changed) → error on the probe samples of the model stored at `ranks`. Called
///   first with the solution and changed = no_matrix, then with one matrix, `changed`, moved to
///   another rank, in the order of `matrices`: with those in layer order the hidden state before
///   the layer of `changed` is that of the solution, kept once and moved forward only.
/// - validate(ranks) → error on held-out samples.
/// Within a round, solutions that were not accepted are tried again with the square root of the
/// trust, from the same probes; a round without an accepted solution ends the rounds.
/// Cost: rounds · (1 + matrices) evaluations, up to rounds · attempts solutions and validations.
/// Throws what allocate_ranks throws; nonfinite_error, named, when a callback's error is not
/// finite.
template <class Evaluate, class Validate>
refined_allocation refine_allocation(std::span<const allocation_matrix> matrices, index_t budget,
                                     Evaluate&& evaluate, Validate&& validate,
                                     const refine_options& options = {}) {
  detail::require(options.rounds >= 0 && options.attempts >= 1 && options.trust > 1 &&
                      std::isfinite(options.trust),
                  "rounds ", options.rounds, ", attempts ", options.attempts, ", trust ",
                  options.trust, " must be at least 0 and 1, and above 1");
  const auto validated = [&](const allocation& solution, index_t round) {
    const double error = validate(std::span<const rank_choice>(solution.ranks));
    detail::require<nonfinite_error>(std::isfinite(error), "the validation error of round ", round,
                                     " is ", error);
    return error;
  };

  std::vector<allocation_matrix> current(matrices.begin(), matrices.end());
  refined_allocation best;
  best.solution = allocate_ranks(current, budget);
  best.validation = validated(best.solution, 0);
  best.attempts.push_back(
      {.round = 0, .trust = 1, .validation = best.validation, .accepted = true});

  bool improved = true;
  for (index_t round = 1; round <= options.rounds && improved; ++round) {
    const std::vector<double> corrections =
        detail::sensitivity_corrections(current, best.solution.ranks, evaluate);
    improved = false;
    double trust = options.trust;
    for (index_t attempt = 0; attempt < options.attempts && !improved; ++attempt) {
      std::vector<allocation_matrix> moved = current;
      for (std::size_t j = 0; j < moved.size(); ++j)
        moved[j].sensitivity *= std::clamp(corrections[j], 1 / trust, trust);
      allocation solution = allocate_ranks(moved, budget);
      if (solution.ranks == best.solution.ranks) break;
      const double validation = validated(solution, round);
      improved = validation < best.validation;
      best.attempts.push_back(
          {.round = round, .trust = trust, .validation = validation, .accepted = improved});
      if (improved) {
        best.solution = std::move(solution);
        best.validation = validation;
        current = std::move(moved);
      }
      trust = std::sqrt(trust);
    }
  }
  for (const allocation_matrix& matrix : current)
    best.sensitivities.push_back(matrix.sensitivity);
  return best;
}

} // namespace v0
} // namespace ressvd
