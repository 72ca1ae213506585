// SPDX-License-Identifier: Apache-2.0
//
// Compressing the last k layers only: the layer ratio that k needs, the feasible k, and the choice
// of one by an error that the caller measures (ERC-SVD, arXiv 2505.20112). Host scalars only.
//
//   R_l = R_o · (parameters of all layers) / (parameters of the last k),
//   N·R_o/k for layers of one size
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

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

} // namespace detail

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

} // namespace v0
} // namespace ressvd
