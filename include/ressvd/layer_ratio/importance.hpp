// SPDX-License-Identifier: Apache-2.0
//
// Ratios layer by layer from importances: AdaSVD's rule (arXiv 2502.01403, "adaCR"). Host scalars
// only.
//
//   retention of layer l:  ρ_l = 1 − R_l = min(1, mrr + t·I_l),  t such that the budget is met
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "ressvd/core/error.hpp"
#include "ressvd/core/types.hpp"
#include "ressvd/layer_ratio/last_layers.hpp"
#include "ressvd/layer_ratio/rank_choice.hpp"

namespace ressvd {
inline namespace v0 {

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
