// SPDX-License-Identifier: Apache-2.0
//
// Probing: how much the model suffers from what each matrix loses.
//
// A probe truncates one matrix alone to rank r, runs a few samples, and measures the error of the
// whole model e_j (relative squared final-layer error, or KL divergence of the logits). Its
// truncated energy T_j(r) = Σ_{i>r} σ²_ij is known, so the sensitivity of a rank allocation is
//   c_j = e_j / T_j(r)        (one rank)
//   c_j = Σ e T / Σ T²        (several ranks: least squares of e = c T).
// Running the model is the caller's callback; nothing here knows of models. Host scalars only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/layer_ratio/allocation_problem.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"

namespace ressvd {
inline namespace v0 {

struct probe_options {
  /// Each matrix is probed at the ranks that keep these shares of its parameters: the same shares
  /// of the break-even rank α in pairs.
  std::vector<double> rank_shares = {0.5};
  /// A probe must truncate at least this share of the matrix's energy; where the rank above
  /// truncates less (matrices of low rank), the largest rank that does is probed instead.
  double least_truncated_share = 1e-9;
};

/// One probe of one matrix.
struct probe_point {
  index_t rank = 0;
  double truncated_energy = 0; ///< T(rank)
  double error = 0;            ///< as the caller measured it
};

/// What the probes of one matrix say.
struct matrix_probe {
  std::vector<probe_point> points; ///< in descending rank; empty when the matrix was not probed
  /// c. Errors below zero (rounding of a KL divergence) count as zero here. A matrix that is
  /// pinned dense keeps the sensitivity it had; one that no rank truncates has 0.
  double sensitivity = 0;
  /// γ of error ∝ T^γ, the least-squares slope of log e over log T; 1 where fewer than two points
  /// with a positive error exist. The additive model takes γ = 1.
  double exponent = 1;
};

namespace detail {

/// T(0), T(1), …, T(count).
inline std::vector<double> truncated_energies(const allocation_matrix& matrix) {
  const auto& s = matrix.singular_values;
  std::vector<double> tails(s.size() + 1, matrix.tail_energy);
  for (std::size_t i = s.size(); i > 0; --i)
    tails[i - 1] = tails[i] + s[i - 1] * s[i - 1];
  return tails;
}

/// The ranks to probe, descending, each once.
inline std::vector<index_t> probe_ranks(const allocation_matrix& matrix,
                                        std::span<const double> tails,
                                        const probe_options& options) {
  const double least = options.least_truncated_share * tails.front();
  std::vector<index_t> ranks;
  for (const double share : options.rank_shares) {
    const auto wanted =
        static_cast<index_t>(rank_keeping(matrix.rows, matrix.cols, share, matrix.form));
    index_t rank = std::clamp<index_t>(wanted, 1, static_cast<index_t>(tails.size()) - 1);
    while (rank > 0 && tails[static_cast<std::size_t>(rank)] <= least)
      --rank;
    if (rank > 0) ranks.push_back(rank);
  }
  std::ranges::sort(ranks, std::ranges::greater{});
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

inline double fitted_sensitivity(std::span<const probe_point> points) {
  double products = 0, squares = 0;
  const double scale = points.front().truncated_energy; // squares neither overflow nor vanish
  for (const probe_point& point : points) {
    const double energy = point.truncated_energy / scale;
    products += (std::max)(point.error, 0.0) * energy;
    squares += energy * energy;
  }
  return products / squares / scale;
}

inline double fitted_exponent(std::span<const probe_point> points) {
  double count = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const probe_point& point : points) {
    if (point.error <= 0) continue;
    const double log_energy = std::log(point.truncated_energy);
    const double log_error = std::log(point.error);
    count += 1;
    x += log_energy;
    y += log_error;
    xx += log_energy * log_energy;
    xy += log_energy * log_error;
  }
  const double spread = count * xx - x * x;
  return count >= 2 && spread > 0 ? (count * xy - x * y) / spread : 1;
}

} // namespace detail

/// Probes the matrices one at a time. `evaluate(j, rank)` returns the error of the model with only
/// matrix j truncated to `rank`. It is called in the order of `matrices`, and for each in
/// descending rank; with the matrices in the order of their layers, the caller keeps one original
/// hidden state, the one before the layer of matrix j, and moves it forward only.
/// Matrices pinned dense are not probed. Cost: one pass over the spectra and the calls.
/// Throws std::invalid_argument for a spectrum that is none or rank shares outside (0, 1];
/// nonfinite_error, naming matrix and rank, when an error is not finite.
template <class Evaluate>
std::vector<matrix_probe> probe_matrices(std::span<const allocation_matrix> matrices,
                                         Evaluate&& evaluate, const probe_options& options = {}) {
  detail::require(!options.rank_shares.empty(), "no rank shares to probe at");
  for (const double share : options.rank_shares)
    detail::require(share > 0 && share <= 1, "probe rank share ", share, " is outside (0, 1]");
  detail::require(options.least_truncated_share >= 0 && options.least_truncated_share < 1,
                  "least truncated share ", options.least_truncated_share, " is outside [0, 1)");
  for (std::size_t j = 0; j < matrices.size(); ++j)
    detail::check_matrix(matrices[j], j);

  std::vector<matrix_probe> probes(matrices.size());
  for (std::size_t j = 0; j < matrices.size(); ++j) {
    const allocation_matrix& matrix = matrices[j];
    matrix_probe& probe = probes[j];
    if (detail::pinned_dense(matrix) || matrix.singular_values.empty()) {
      probe.sensitivity = matrix.sensitivity;
      continue;
    }
    const std::vector<double> tails = detail::truncated_energies(matrix);
    for (const index_t rank : detail::probe_ranks(matrix, tails, options)) {
      const double error = evaluate(static_cast<index_t>(j), rank);
      detail::require<nonfinite_error>(std::isfinite(error), "the error of the probe of ",
                                       detail::describe(matrix, j), " at rank ", rank, " is ",
                                       error);
      probe.points.push_back({rank, tails[static_cast<std::size_t>(rank)], error});
    }
    if (probe.points.empty()) continue;
    probe.sensitivity = detail::fitted_sensitivity(probe.points);
    probe.exponent = detail::fitted_exponent(probe.points);
  }
  return probes;
}

/// The matrices with the probes' sensitivities: the input of allocate_ranks.
inline std::vector<allocation_matrix> with_sensitivities(
    std::span<const allocation_matrix> matrices, std::span<const matrix_probe> probes) {
  detail::require(matrices.size() == probes.size(), probes.size(), " probes for ", matrices.size(),
                  " matrices");
  std::vector<allocation_matrix> result(matrices.begin(), matrices.end());
  for (std::size_t j = 0; j < result.size(); ++j)
    result[j].sensitivity = probes[j].sensitivity;
  return result;
}

/// A spectrum and its tail whose truncated energies are s·T(r)^γ: makes the error model e = c T^γ
/// an input of allocate_ranks, which takes e = c T. The scale s = T(probed_rank)^(1−γ) leaves the
/// truncated energy at the probed rank, and so the sensitivity measured there, as it was.
struct curved_spectrum {
  std::vector<double> singular_values;
  double tail_energy = 0;
};

/// γ ≥ 1 keeps the spectrum descending (T is convex in r, and so is T^γ); below 1 it is refused.
inline curved_spectrum curve_spectrum(const allocation_matrix& matrix, double exponent,
                                      index_t probed_rank) {
  detail::require(exponent >= 1 && std::isfinite(exponent), "exponent ", exponent,
                  " of the error model is outside [1, inf)");
  const double unit = truncated_energy(matrix.singular_values, probed_rank, matrix.tail_energy);
  detail::require(unit > 0, "no energy is truncated at the probed rank ", probed_rank);
  const std::vector<double> tails = detail::truncated_energies(matrix);
  const auto curved = [&](double tail) { return unit * std::pow(tail / unit, exponent); };

  curved_spectrum result;
  result.tail_energy = curved(tails.back());
  result.singular_values.resize(matrix.singular_values.size());
  double smallest = 0; // differences of nearly equal powers may miss the order by rounding
  for (std::size_t i = result.singular_values.size(); i > 0; --i) {
    smallest = (std::max)(smallest, curved(tails[i - 1]) - curved(tails[i]));
    result.singular_values[i - 1] = std::sqrt(smallest);
  }
  return result;
}

} // namespace v0
} // namespace ressvd
