// SPDX-License-Identifier: Apache-2.0
#include "compress/choose.hpp"

#include <algorithm>
#include <utility>

#include <ressvd/probe.hpp>
#include <ressvd/rank_allocation.hpp>

#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

chosen_ranks search_last_layers(workbench& bench, const compress_options& options,
                                const std::vector<ressvd::layer_candidate>& candidates,
                                const sample_set& samples) {
  const hidden_states original = bench.final_original(samples);
  // Candidates come in descending k, so the state before the first compressed layer only moves
  // forward.
  hidden_states before = bench.embed(samples);
  std::int64_t reached = 0;
  progress bar("searching", static_cast<std::int64_t>(candidates.size()));
  const auto error = [&](const ressvd::layer_candidate& candidate) {
    const std::int64_t first = bench.config().layers - candidate.layers;
    for (; reached < first; ++reached)
      bench.run_original(reached, before, samples.length);
    const auto ranks = ranks_of(candidate, bench.config(), options);
    const auto compressed = bench.final_compressed(before, first, samples.length, ranks);
    bar.advance();
    return relative_error(original, compressed);
  };
  const auto selection = ressvd::select_last_layers(candidates, error);
  chosen_ranks result;
  result.ranks = ranks_of(selection.chosen, bench.config(), options);
  result.last_layers = selection.chosen.layers;
  result.search = selection.curve;
  return result;
}

chosen_ranks by_importance(workbench& bench, const compress_options& options, double ratio) {
  std::vector<double> importances;
  for (std::int64_t layer = 0; layer < bench.config().layers; ++layer) {
    const double similarity = bench.store().load_summary(bench.config(), layer).similarity;
    importances.push_back((std::max)(similarity, 0.0));
  }
  const double retention =
      options.minimum_retention > 0 ? options.minimum_retention : 0.8 * (1 - ratio);
  const auto ratios = ressvd::ratios_from_importances(importances, layer_parameters(bench.config()),
                                                      ratio, {.minimum_retention = retention});
  chosen_ranks result;
  result.ranks = ranks_of(ratios.ratios, bench.config(), options);
  result.layer_ratios = ratios.ratios;
  return result;
}

chosen_ranks by_sensitivity(workbench& bench, const compress_options& options, double ratio,
                            const sample_set& samples) {
  const model_config& config = bench.config();
  std::vector<factored_layer> layers;
  std::vector<std::vector<double>> energies;
  std::vector<std::pair<std::int64_t, std::size_t>> place; // of matrix j: layer, module
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    layers.push_back(bench.store().load_summary(config, layer));
    for (std::size_t i = 0; i < layers.back().matrices.size(); ++i) {
      place.emplace_back(layer, i);
      auto& squares = energies.emplace_back(layers.back().matrices[i].singular_values);
      for (double& s : squares)
        s *= s;
    }
  }
  const auto matrix = [&](std::size_t j) -> const factored_matrix& {
    return layers[static_cast<std::size_t>(place[j].first)].matrices[place[j].second];
  };
  std::vector<ressvd::allocation_matrix> problem;
  for (std::size_t j = 0; j < place.size(); ++j) {
    const linear_module& module = matrix(j).module;
    problem.push_back(
        {.name = module.prefix,
         .energies = energies[j],
         .rows = module.out,
         .cols = module.in,
         .layer = place[j].first,
         .min_rank = options.rank_multiple,
         .max_rank = (std::max)(matrix(j).rank, options.rank_multiple),
         .rank_multiple = options.rank_multiple,
         .stored = matrix(j).rank == 0 ? ressvd::storage::dense : ressvd::storage::free});
  }

  const hidden_states original = bench.final_original(samples);
  hidden_states before = bench.embed(samples);
  std::int64_t reached = 0;
  factored_layer bases;
  progress bar("probing", static_cast<std::int64_t>(place.size()));
  const auto evaluate = [&](std::int64_t j, std::int64_t rank) {
    const auto [layer, module] = place[static_cast<std::size_t>(j)];
    for (; reached < layer; ++reached)
      bench.run_original(reached, before, samples.length);
    if (bases.matrices.empty() || bases.index != layer) bases = bench.store().load(config, layer);
    layer_weights weights = bench.model().layer(layer);
    bench.replace(weights, bases.matrices[module], rank);
    hidden_states hidden = before;
    bench.run(weights, hidden, samples.length);
    for (std::int64_t later = layer + 1; later < config.layers; ++later) {
      bench.run_original(later, hidden, samples.length);
    }
    bar.advance();
    return bench.mean_divergence(original, hidden);
  };
  const auto probes = ressvd::probe_matrices(problem, evaluate);
  problem = ressvd::with_sensitivities(problem, probes);
  const auto solution =
      ressvd::allocate_ranks(problem, {.budget = ressvd::uniform_budget(problem, ratio)});

  chosen_ranks result;
  result.ranks.resize(static_cast<std::size_t>(config.layers));
  for (std::size_t j = 0; j < place.size(); ++j) {
    const auto& stored = solution.ranks[j];
    result.ranks[static_cast<std::size_t>(place[j].first)].push_back(
        stored.dense ? matrix_rank{} : matrix_rank{.dense = false, .rank = stored.rank});
    for (const auto& point : probes[j].points) {
      result.probes.push_back(
          {matrix(j).module.prefix, point.rank, point.error, probes[j].sensitivity});
    }
  }
  result.predicted_loss = solution.loss;
  result.loss_bound = solution.loss_bound;
  return result;
}

} // namespace

chosen_ranks choose_ranks(workbench& bench, const compress_options& options, double ratio,
                          const std::vector<ressvd::layer_candidate>& candidates,
                          const sample_set& calibration) {
  switch (options.allocation) {
    case allocation::uniform:
    case allocation::last_layers:
      break;
    case allocation::importance:
      return by_importance(bench, options, ratio);
    case allocation::sensitivity:
      return by_sensitivity(bench, options, ratio, calibration.first(options.probe_samples));
  }
  return search_last_layers(bench, options, candidates, calibration.first(options.search_samples));
}

} // namespace ressvd_llm
