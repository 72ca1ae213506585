// SPDX-License-Identifier: Apache-2.0
#include "compress/rank_selection.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

#include <ressvd/layer_ratio/importance.hpp>

#include "compress/fisher_allocation.hpp"
#include "compress/sensitivity.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

rank_selection search_last_layers(model_passes& passes, const factored_model& factored,
                                  const compress_options& options,
                                  const std::vector<ressvd::layer_candidate>& candidates,
                                  const sample_set& samples, kept_results& kept) {
  const model_config& config = passes.config();
  rank_selection result;
  if (candidates.size() == 1 && samples.count() == 0) {
    result.ranks = ranks_of(candidates.front(), config, options);
    result.how.last_layers = candidates.front().layers;
    return result;
  }
  hidden_states original;
  // Candidates come in descending k, so the state before the first compressed layer only moves
  // forward.
  hidden_states before;
  std::int64_t reached = 0;
  progress bar("searching", static_cast<std::int64_t>(candidates.size()));
  const auto measure = [&](const ressvd::layer_candidate& candidate) {
    if (original.empty()) {
      original = passes.final_original(samples);
      before = passes.embed(samples);
    }
    const std::int64_t first = config.layers - candidate.layers;
    for (; reached < first; ++reached)
      passes.run_original(reached, before, samples.length);
    const auto compressed =
        factored.run(before, first, samples.length, ranks_of(candidate, config, options));
    return relative_error(original, compressed);
  };
  const auto error = [&](const ressvd::layer_candidate& candidate) {
    const double value = kept.value("last layers " + std::to_string(candidate.layers),
                                    [&] { return measure(candidate); });
    bar.advance();
    return value;
  };
  const auto selection = ressvd::select_last_layers(candidates, error);
  result.ranks = ranks_of(selection.chosen, config, options);
  result.how.last_layers = selection.chosen.layers;
  for (const auto& trial : selection.curve)
    result.how.search.push_back({trial.candidate.layers, trial.candidate.ratio, trial.error});
  return result;
}

rank_selection by_importance(const model_config& config, const factored_model& factored,
                             const compress_options& options, double ratio) {
  std::vector<double> importances;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    importances.push_back((std::max)(factored.summary(layer).similarity, 0.0));
  const double retention = options.minimum_retention.value_or(0.8 * (1 - ratio));
  const auto ratios = ressvd::ratios_from_importances(importances, layer_parameters(config), ratio,
                                                      {.minimum_retention = retention});
  rank_selection result;
  result.ranks = ranks_of(ratios.ratios, config, options);
  result.how.layer_ratios = ratios.ratios;
  return result;
}

} // namespace

rank_selection select_ranks(model_passes& passes, const factored_model& factored,
                            const compress_options& options, double ratio,
                            const std::vector<ressvd::layer_candidate>& candidates,
                            const calibration_samples& samples, kept_results& kept) {
  switch (options.allocation) {
    case allocation::uniform:
    case allocation::last_layers:
      break;
    case allocation::importance:
      return by_importance(passes.config(), factored, options, ratio);
    case allocation::sensitivity:
      return select_by_sensitivity(passes, factored, options, ratio, samples, kept);
    case allocation::fisher:
      return select_by_fisher(passes, factored, options, ratio,
                              samples.calibration.first(options.search_samples), kept);
  }
  return search_last_layers(passes, factored, options, candidates,
                            samples.calibration.first(options.search_samples), kept);
}

} // namespace ressvd_llm
