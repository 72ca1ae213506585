// SPDX-License-Identifier: Apache-2.0
//
// Ranks and compression ratios of matrices, layers and models. Host scalars only.
//
// A rank r stores an m×n matrix in r(m+n) numbers, so the compression ratio (the share of
// parameters removed) is R = 1 − r(m+n)/(mn) = 1 − r/α with the break-even rank α = mn/(m+n),
// and a ratio R asks for the rank r = ⌊(1−R)α⌋ (the convention of SVD-LLM, arXiv 2403.07378).
//
// Rounding rule. Ratios such as 0.9 or N·R/k are rarely exact in binary: (1 − 0.9)·10 is
// 0.99999999999999978. A value is taken for the integer next to it when they differ by less than
// the error such a ratio can cause, 64 ε α ≈ 1.4e-14 α.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

/// To which integer a rank is rounded. Halves go down: towards the smaller model.
enum class rounding : std::uint8_t { down, nearest, up };

struct rank_rounding {
  index_t multiple = 1;              ///< ranks are multiples of this (8, 32, 64 for tensor cores)
  rounding towards = rounding::down; ///< which multiple
};

/// The rank that a ratio leads to, and the ratio that this rank reaches.
struct rank_choice {
  index_t rank = 0;     ///< at least 1; min(rows, cols) when dense
  bool dense = false;   ///< keep W itself: the ratio is 0, or the rank would save nothing
  bool clamped = false; ///< the ratio asks for rank 0; the smallest multiple was taken instead
  double requested_ratio = 0; ///< as passed
  double achieved_ratio = 0;  ///< 1 − kept / (rows·cols); 0 when dense
};

namespace detail {

inline constexpr double ratio_epsilon = 64 * std::numeric_limits<double>::epsilon();

inline void require_shape(index_t rows, index_t cols) {
  constexpr index_t largest = (std::numeric_limits<std::int32_t>::max)();
  require(rows > 0 && cols > 0 && rows <= largest && cols <= largest, "a matrix of ", rows, " x ",
          cols, " has no compression ratio; both sizes must be in [1, ", largest, "]");
}

inline void require_ratio(double ratio) {
  require(ratio >= 0 && ratio < 1, "compression ratio ", ratio, " is outside [0, 1)");
}

/// What the compressed parameters must reach for compressed and intact ones to reach `ratio`.
inline double concentrated_ratio(double ratio, index_t compressed, index_t intact) {
  const auto c = static_cast<double>(compressed);
  return ratio * ((c + static_cast<double>(intact)) / c);
}

inline bool below_one(double ratio) {
  return ratio < 1 - ratio_epsilon;
}

inline void require_layers(std::span<const index_t> layer_parameters) {
  require(!layer_parameters.empty(), "a model without layers cannot be compressed");
  index_t left = (std::numeric_limits<index_t>::max)();
  for (std::size_t l = 0; l < layer_parameters.size(); ++l) {
    require(layer_parameters[l] > 0, "layer ", l, " has ", layer_parameters[l], " parameters");
    require(layer_parameters[l] <= left, "layer ", l, " with ", layer_parameters[l],
            " parameters brings their number above 2^63");
    left -= layer_parameters[l];
  }
}

/// Layers of one size: their ratios do not depend on the size.
inline std::vector<index_t> equal_layers(index_t layers) {
  require(layers >= 1, "a model of ", layers, " layers cannot be compressed");
  return std::vector<index_t>(static_cast<std::size_t>(layers), 1);
}

/// `value` rounded to an integer, where differences below `slack` do not count.
inline index_t round_with_slack(double value, double slack, rounding towards) {
  switch (towards) {
    case rounding::down:
      return static_cast<index_t>(std::floor(value + slack));
    case rounding::up:
      return static_cast<index_t>(std::ceil(value - slack));
    case rounding::nearest:
      break;
  }
  return static_cast<index_t>(std::ceil(value - 0.5 - slack));
}

} // namespace detail

/// α = mn/(m+n), the rank at which two factors cost what the matrix costs.
/// Throws std::invalid_argument unless 1 ≤ rows, cols < 2³¹.
inline double break_even_rank(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return static_cast<double>(rows * cols) / static_cast<double>(rows + cols);
}

/// The largest rank whose factors are smaller than the matrix, ⌈α⌉ − 1; 0 for a vector.
inline index_t largest_saving_rank(index_t rows, index_t cols) {
  detail::require_shape(rows, cols);
  return (rows * cols - 1) / (rows + cols);
}

/// 1 − r/α. Negative where the factors cost more than the matrix.
inline double ratio_of_rank(index_t rows, index_t cols, index_t rank) {
  detail::require_shape(rows, cols);
  detail::require(rank >= 0 && rank <= (std::min)(rows, cols), "rank ", rank, " of a ", rows, " x ",
                  cols, " matrix is outside [0, ", (std::min)(rows, cols), "]");
  return 1 - static_cast<double>(rank) / break_even_rank(rows, cols);
}

/// The rank (1−R)α, rounded as `options` says. A rank of 0 becomes the smallest multiple, and the
/// result says so; where no rank saves anything, or R = 0, the result is dense.
/// Throws std::invalid_argument for a ratio outside [0, 1) or a multiple below 1.
inline rank_choice rank_for_ratio(index_t rows, index_t cols, double ratio,
                                  const rank_rounding& options = {}) {
  detail::require_ratio(ratio);
  detail::require(options.multiple >= 1, "rank multiple ", options.multiple, " is below 1");
  const double multiples = break_even_rank(rows, cols) / static_cast<double>(options.multiple);
  const index_t rounded = detail::round_with_slack(
      (1 - ratio) * multiples, detail::ratio_epsilon * multiples, options.towards);
  const index_t rank = options.multiple * std::max<index_t>(rounded, 1);

  if (ratio == 0 || rank > largest_saving_rank(rows, cols))
    return {.rank = (std::min)(rows, cols),
            .dense = true,
            .clamped = rounded < 1 && ratio > 0,
            .requested_ratio = ratio,
            .achieved_ratio = 0};
  return {.rank = rank,
          .dense = false,
          .clamped = rounded < 1,
          .requested_ratio = ratio,
          .achieved_ratio = ratio_of_rank(rows, cols, rank)};
}

/// What stays of a matrix: mn when dense, r(m+n) otherwise.
inline index_t kept_parameters(index_t rows, index_t cols, const rank_choice& choice) {
  return choice.dense ? rows * cols : choice.rank * (rows + cols);
}

/// The ratio that the compressible parameters must reach so that the model reaches `ratio`, when
/// `dense` further parameters (embeddings, head, norms, biases) count but stay as they are:
/// R (compressible + dense) / compressible. Parameters that do not count are not passed.
/// Throws std::invalid_argument when that is not below 1.
inline double compressible_ratio(double ratio, index_t compressible, index_t dense) {
  detail::require_ratio(ratio);
  detail::require(compressible > 0 && dense >= 0, "a model of ", compressible, " compressible and ",
                  dense, " dense parameters cannot be compressed");
  const double needed = detail::concentrated_ratio(ratio, compressible, dense);
  detail::require(detail::below_one(needed), "a model ratio of ", ratio, " over ", compressible,
                  " compressible and ", dense, " dense parameters needs the ratio ", needed,
                  " of the compressible ones");
  return needed;
}

/// A choice of layers to compress: the last `layers` of them, each by `ratio`.
struct layer_candidate {
  index_t layers = 0; ///< k
  double ratio = 0;   ///< R_l

  friend bool operator==(const layer_candidate&, const layer_candidate&) = default;
};

struct layer_candidate_options {
  index_t step = 1; ///< s: candidates are N, N−s, N−2s, …
};

/// The layer ratio of partial-layer compression (ERC-SVD, arXiv 2505.20112): only the last k of N
/// layers are compressed, and all N together reach the overall ratio R_o with
///   R_l = R_o · (parameters of all layers) / (parameters of the last k),
/// which is N·R_o/k for layers of one size. `layer_parameters` counts the compressible parameters
/// of each layer, first to last.
/// Throws std::invalid_argument when R_l is not below 1, for k outside [1, N], for an empty layer.
inline double layer_ratio(std::span<const index_t> layer_parameters, double overall_ratio,
                          index_t last_layers) {
  detail::require_ratio(overall_ratio);
  detail::require_layers(layer_parameters);
  const auto layers = static_cast<index_t>(layer_parameters.size());
  detail::require(last_layers >= 1 && last_layers <= layers, "the last ", last_layers, " of ",
                  layers, " layers cannot be compressed; k must be in [1, ", layers, "]");
  const auto first = layer_parameters.end() - last_layers;
  const double ratio = detail::concentrated_ratio(
      overall_ratio, std::accumulate(first, layer_parameters.end(), index_t{0}),
      std::accumulate(layer_parameters.begin(), first, index_t{0}));
  detail::require(detail::below_one(ratio), "the last ", last_layers, " of ", layers,
                  " layers cannot reach the overall ratio ", overall_ratio,
                  ": they would need the ratio ", ratio);
  return ratio;
}

/// The same for N layers of one size: N·R_o/k.
inline double layer_ratio(index_t layers, double overall_ratio, index_t last_layers) {
  return layer_ratio(detail::equal_layers(layers), overall_ratio, last_layers);
}

/// All feasible k out of N, N−s, N−2s, …, in descending order, with their layer ratios R_l < 1
/// (N·R_o < k ≤ N for layers of one size). The uniform case k = N is always the first.
/// Throws std::invalid_argument for a ratio outside [0, 1), an empty layer, step < 1.
inline std::vector<layer_candidate> last_layer_candidates(
    std::span<const index_t> layer_parameters, double overall_ratio,
    const layer_candidate_options& options = {}) {
  detail::require_ratio(overall_ratio);
  detail::require_layers(layer_parameters);
  detail::require(options.step >= 1, "candidate step ", options.step, " is below 1");

  const auto layers = static_cast<index_t>(layer_parameters.size());
  index_t intact = 0;
  index_t compressed =
      std::accumulate(layer_parameters.begin(), layer_parameters.end(), index_t{0});
  std::vector<layer_candidate> candidates;
  for (index_t k = layers; k >= 1; --k) {
    const double ratio = detail::concentrated_ratio(overall_ratio, compressed, intact);
    if (!detail::below_one(ratio)) break;
    if ((layers - k) % options.step == 0) candidates.push_back({.layers = k, .ratio = ratio});
    const index_t first = layer_parameters[static_cast<std::size_t>(layers - k)];
    intact += first;
    compressed -= first;
  }
  return candidates;
}

/// The same for N layers of one size.
inline std::vector<layer_candidate> last_layer_candidates(
    index_t layers, double overall_ratio, const layer_candidate_options& options = {}) {
  return last_layer_candidates(detail::equal_layers(layers), overall_ratio, options);
}

/// A candidate and the caller's error for it.
struct scored_layer_candidate {
  layer_candidate candidate;
  double error = 0;
};

struct layer_selection {
  layer_candidate chosen;
  double error = 0;                          ///< the error of `chosen`
  std::vector<scored_layer_candidate> curve; ///< all candidates, in the order they were tried
};

/// Chooses the candidate of the smallest error. `error(candidate)` is called once for each, in
/// descending k, whatever the order of `candidates`. That order suits a caller who reuses work:
/// - candidate k needs the original hidden state before layer N−k; descending k moves that state
///   forward only, so one state is kept and each original layer runs once for all candidates;
/// - the ratio grows along the way, so ranks shrink: factors of the first candidate serve all
///   later ones by slicing.
/// Equal errors go to the larger k, the gentler ratio.
/// Throws nonfinite_error, naming the candidate, when an error is not finite, and
/// std::invalid_argument for no candidates or a k given twice.
template <class Error>
layer_selection select_last_layers(std::span<const layer_candidate> candidates, Error&& error) {
  detail::require(!candidates.empty(), "no candidates for the number of compressed layers");
  std::vector<layer_candidate> order(candidates.begin(), candidates.end());
  std::ranges::sort(order, std::ranges::greater{}, &layer_candidate::layers);
  const auto twice = std::ranges::adjacent_find(order, {}, &layer_candidate::layers);
  if (twice != order.end()) detail::fail("candidate k = ", twice->layers, " is given twice");

  layer_selection selection;
  for (const layer_candidate& candidate : order) {
    const double value = error(candidate);
    detail::require<nonfinite_error>(std::isfinite(value),
                                     "the error of candidate k = ", candidate.layers,
                                     " (layer ratio ", candidate.ratio, ") is ", value);
    if (selection.curve.empty() || value < selection.error) {
      selection.chosen = candidate;
      selection.error = value;
    }
    selection.curve.push_back({candidate, value});
  }
  return selection;
}

struct importance_ratio_options {
  double minimum_retention = 0; ///< mrr: the share of parameters an unimportant layer keeps;
                                ///< in (0, 1 − overall ratio]
};

/// Ratios layer by layer, and what they add up to.
struct importance_ratios {
  std::vector<double> ratios; ///< R_l, in [0, 1)
  double achieved_ratio = 0;  ///< 1 − kept / all; above the overall ratio only where important
                              ///< layers are whole and the others have importance 0
  index_t whole_layers = 0;   ///< layers whose retention is cut off at 1
};

/// AdaSVD's rule (arXiv 2502.01403, "adaCR"): the retention 1 − R_l of a layer is
///   ρ_l = mrr + Î_l (trr − mrr),   Î_l = I_l / mean(I),   trr = 1 − overall ratio,
/// where the importance I_l is the cosine similarity of the layer's input and output, given by the
/// caller. The paper's mean makes the overall ratio come out for layers of one size and retentions
/// below 1. Here it comes out in general: ρ_l = min(1, mrr + t·I_l), with t such that
/// Σ p_l ρ_l = trr Σ p_l for the parameter counts p_l; the paper's rule where that applies.
/// Throws std::invalid_argument for sizes that differ, a minimum retention out of its range, and
/// importances that are negative or all zero; nonfinite_error, with the layer, for NaN and
/// infinity.
inline importance_ratios ratios_from_importances(std::span<const double> importances,
                                                 std::span<const index_t> layer_parameters,
                                                 double overall_ratio,
                                                 const importance_ratio_options& options) {
  detail::require_ratio(overall_ratio);
  const double target = 1 - overall_ratio;
  const double minimum = options.minimum_retention;
  detail::require(importances.size() == layer_parameters.size(), importances.size(),
                  " importances for ", layer_parameters.size(), " layers");
  detail::require(minimum > 0 && minimum <= target + detail::ratio_epsilon, "minimum retention ",
                  minimum, " is outside (0, ", target, "] for the overall ratio ", overall_ratio);
  detail::require_layers(layer_parameters);
  for (std::size_t l = 0; l < importances.size(); ++l) {
    detail::require<nonfinite_error>(std::isfinite(importances[l]), "the importance of layer ", l,
                                     " is ", importances[l]);
    detail::require(importances[l] >= 0, "the importance of layer ", l, " is ", importances[l],
                    "; importances are not negative");
  }
  const double total = std::accumulate(layer_parameters.begin(), layer_parameters.end(), 0.0);

  const bool any = std::ranges::any_of(importances, [](double i) { return i > 0; });
  detail::require(any, "all ", importances.size(), " importances are zero");

  // Making a layer whole frees what it would have had above 1, so t only grows from pass to pass.
  std::vector<bool> whole(importances.size(), false);
  double t = 0;
  for (bool changed = true; changed;) {
    double spare = (target - minimum) * total;
    double weight = 0;
    for (std::size_t l = 0; l < importances.size(); ++l) {
      const auto parameters = static_cast<double>(layer_parameters[l]);
      if (whole[l])
        spare -= (1 - minimum) * parameters;
      else
        weight += importances[l] * parameters;
    }
    t = weight > 0 ? spare / weight : 0;
    changed = false;
    for (std::size_t l = 0; l < importances.size(); ++l)
      if (!whole[l] && minimum + t * importances[l] >= 1 - detail::ratio_epsilon)
        whole[l] = changed = true;
  }

  importance_ratios result;
  double kept = 0;
  for (std::size_t l = 0; l < importances.size(); ++l) {
    const double retention = whole[l] ? 1 : minimum + t * importances[l];
    result.ratios.push_back(1 - retention);
    result.whole_layers += whole[l];
    kept += retention * static_cast<double>(layer_parameters[l]);
  }
  result.achieved_ratio = 1 - kept / total;
  return result;
}

} // namespace v0
} // namespace ressvd
