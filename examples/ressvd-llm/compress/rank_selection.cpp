// SPDX-License-Identifier: Apache-2.0
#include "compress/rank_selection.hpp"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include <ressvd/layer_ratio/probe.hpp>
#include <ressvd/layer_ratio/rank_allocation.hpp>
#include <ressvd/layer_ratio/refine_allocation.hpp>

#include "io/error.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

chosen_ranks search_last_layers(workbench& bench, const compress_options& options,
                                const std::vector<ressvd::layer_candidate>& candidates,
                                const sample_set& samples) {
  if (candidates.size() == 1 && samples.count() == 0) {
    chosen_ranks only;
    only.ranks = ranks_of(candidates.front(), bench.config(), options);
    only.last_layers = candidates.front().layers;
    return only;
  }
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

// Ranks by sensitivity: the problem of the library's allocator, and the model runs that its probes
// ask for.
class sensitivity_allocation {
 public:
  sensitivity_allocation(workbench& bench, const compress_options& options,
                         const calibration_samples& samples)
      : bench_(bench),
        options_(options),
        samples_(samples.calibration.first(options.probe_samples)),
        heldout_(samples.heldout) {
    const model_config& config = bench_.config();
    for (std::int64_t layer = 0; layer < config.layers; ++layer) {
      layers_.push_back(bench_.store().load_summary(config, layer));
      for (std::size_t i = 0; i < layers_.back().matrices.size(); ++i) {
        place_.emplace_back(layer, i);
        auto& squares = energies_.emplace_back(layers_.back().matrices[i].singular_values);
        for (double& s : squares)
          s *= s;
      }
    }
    for (std::size_t j = 0; j < place_.size(); ++j) {
      const factored_matrix& m = matrix(j);
      problem_.push_back({.name = m.module.prefix,
                          .energies = energies_[j],
                          .rows = m.module.out,
                          .cols = m.module.in,
                          .layer = place_[j].first,
                          .min_rank = options_.rank_multiple,
                          .max_rank = (std::max)(m.rank, options_.rank_multiple),
                          .rank_multiple = options_.rank_multiple,
                          .stored = m.rank == 0 ? ressvd::storage::dense : ressvd::storage::free});
    }
    original_ = bench_.final_original(samples_);
  }

  chosen_ranks choose(double ratio) {
    chosen_ranks result;
    probe(result.probes);
    const ressvd::allocation_options budget{.budget = ressvd::uniform_budget(problem_, ratio)};
    ressvd::allocation solution;
    if (options_.rounds > 1) {
      auto refined = refine(budget);
      for (const auto& a : refined.attempts) {
        result.rounds.push_back({a.round, a.trust, a.validation, a.accepted});
      }
      solution = std::move(refined.solution);
    } else {
      solution = ressvd::allocate_ranks(problem_, budget);
    }
    result.ranks = model_ranks_of(solution.ranks);
    result.predicted_loss = solution.loss;
    result.loss_bound = solution.loss_bound;
    result.measured_loss = divergence(samples_, original_, result.ranks);
    return result;
  }

 private:
  const factored_matrix& matrix(std::size_t j) const {
    return layers_[static_cast<std::size_t>(place_[j].first)].matrices[place_[j].second];
  }

  model_ranks model_ranks_of(std::span<const ressvd::rank_choice> stored) const {
    model_ranks ranks(layers_.size());
    for (std::size_t j = 0; j < place_.size(); ++j) {
      ranks[static_cast<std::size_t>(place_[j].first)].push_back(stored[j]);
    }
    return ranks;
  }

  double divergence(const sample_set& samples, const hidden_states& original,
                    const model_ranks& ranks) {
    return bench_.mean_divergence(
        original, bench_.final_compressed(bench_.embed(samples), 0, samples.length, ranks));
  }

  // Every matrix alone, in the otherwise intact model.
  void probe(std::vector<probed_matrix>& report) {
    const model_config& config = bench_.config();
    const bool curved = options_.probe_ranks > 1;
    hidden_states before = bench_.embed(samples_);
    std::int64_t reached = 0;
    factored_layer bases;
    progress bar("probing", static_cast<std::int64_t>(place_.size()) * options_.probe_ranks);
    const auto evaluate = [&](std::int64_t j, std::int64_t rank) {
      const auto [layer, module] = place_[static_cast<std::size_t>(j)];
      for (; reached < layer; ++reached)
        bench_.run_original(reached, before, samples_.length);
      if (bases.matrices.empty() || bases.index != layer) {
        bases = bench_.store().load(config, layer);
      }
      layer_weights weights = bench_.model().layer(layer);
      bench_.replace(weights, bases.matrices[module], rank);
      hidden_states hidden = before;
      bench_.run(weights, hidden, samples_.length);
      for (std::int64_t later = layer + 1; later < config.layers; ++later) {
        bench_.run_original(later, hidden, samples_.length);
      }
      bar.advance();
      return bench_.mean_divergence(original_, hidden);
    };
    const auto probes = ressvd::probe_matrices(
        problem_, evaluate,
        {.rank_shares = curved ? std::vector<double>{0.5, 0.25} : std::vector<double>{0.5}});
    problem_ = ressvd::with_sensitivities(problem_, probes);
    for (std::size_t j = 0; j < place_.size(); ++j) {
      if (curved && probes[j].exponent > 1) bend(j, probes[j]);
      for (const auto& point : probes[j].points) {
        report.push_back({.prefix = matrix(j).module.prefix,
                          .rank = point.rank,
                          .divergence = point.error,
                          .sensitivity = problem_[j].sensitivity,
                          .exponent = probes[j].exponent});
      }
    }
  }

  // The error model c·T^γ in place of c·T, through the probed points.
  void bend(std::size_t j, const ressvd::matrix_probe& probe) {
    const ressvd::probe_point& first = probe.points.front();
    auto curved = ressvd::curve_spectrum(problem_[j], probe.exponent, first.rank);
    energies_[j] = std::move(curved.energies);
    problem_[j].energies = energies_[j];
    problem_[j].tail_energy = curved.tail_energy;
    problem_[j].sensitivity = (std::max)(first.error, 0.0) / first.truncated_energy;
  }

  // Further probes at the solution itself, accepted by the held-out samples.
  ressvd::refined_allocation refine(const ressvd::allocation_options& budget) {
    if (heldout_.count() == 0) {
      throw usage_error("--rounds above 1 needs held-out samples to judge the rounds");
    }
    const hidden_states heldout_original = bench_.final_original(heldout_);
    model_ranks solution;
    hidden_states before;
    std::int64_t reached = 0;
    progress bar("probing again",
                 (options_.rounds - 1) * static_cast<std::int64_t>(place_.size() + 1));
    const auto evaluate = [&](std::span<const ressvd::rank_choice> stored, std::int64_t changed) {
      const model_ranks ranks = model_ranks_of(stored);
      bar.advance();
      if (changed == ressvd::no_matrix) {
        solution = ranks;
        before = bench_.embed(samples_);
        reached = 0;
        return divergence(samples_, original_, ranks);
      }
      const std::int64_t layer = place_[static_cast<std::size_t>(changed)].first;
      for (; reached < layer; ++reached) {
        bench_.run(bench_.compressed_layer(reached, solution[static_cast<std::size_t>(reached)]),
                   before, samples_.length);
      }
      return bench_.mean_divergence(original_,
                                    bench_.final_compressed(before, layer, samples_.length, ranks));
    };
    const auto validate = [&](std::span<const ressvd::rank_choice> stored) {
      return divergence(heldout_, heldout_original, model_ranks_of(stored));
    };
    return ressvd::refine_allocation(problem_, budget, evaluate, validate,
                                     {.rounds = options_.rounds - 1});
  }

  workbench& bench_;
  const compress_options& options_;
  sample_set samples_;
  const sample_set& heldout_;
  hidden_states original_; // final states of the probe samples
  std::vector<factored_layer> layers_;
  std::vector<std::vector<double>> energies_;
  std::vector<std::pair<std::int64_t, std::size_t>> place_; // of matrix j: layer, module
  std::vector<ressvd::allocation_matrix> problem_;
};

} // namespace

chosen_ranks choose_ranks(workbench& bench, const compress_options& options, double ratio,
                          const std::vector<ressvd::layer_candidate>& candidates,
                          const calibration_samples& samples) {
  switch (options.allocation) {
    case allocation::uniform:
    case allocation::last_layers:
      break;
    case allocation::importance:
      return by_importance(bench, options, ratio);
    case allocation::sensitivity:
      return sensitivity_allocation(bench, options, samples).choose(ratio);
  }
  return search_last_layers(bench, options, candidates,
                            samples.calibration.first(options.search_samples));
}

} // namespace ressvd_llm
