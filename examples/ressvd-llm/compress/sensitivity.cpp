// SPDX-License-Identifier: Apache-2.0
#include "compress/sensitivity.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/layer_ratio/probe.hpp>
#include <ressvd/layer_ratio/rank_allocation.hpp>
#include <ressvd/layer_ratio/refine_allocation.hpp>

#include "compress/rank_problem.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// Ranks by sensitivity: the problem of the library's allocator, and the model runs that its probes
// ask for.
class sensitivity_allocation {
 public:
  sensitivity_allocation(model_passes& passes, const factored_model& factored,
                         const compress_options& options, const calibration_samples& samples,
                         kept_results& kept)
      : passes_(passes),
        factored_(factored),
        options_(options),
        kept_(kept),
        probes_{"probe samples", samples.calibration.first(options.probe_samples), {}},
        heldout_{"held-out samples", samples.heldout, {}},
        problem_(factored, passes.config().layers, options,
                 [](const factored_module& m) -> const std::vector<double>& {
                   return m.state.singular_values;
                 }),
        bent_(problem_.entries.size()) {}

  rank_selection select(double ratio) {
    rank_selection result;
    result.how.probes = probe();
    const std::int64_t budget =
        (std::max)(ressvd::uniform_budget(problem_.entries, ratio), problem_.least_parameters());
    ressvd::allocation solution;
    if (rounds_of(options_) > 1) {
      auto refined = refine(budget);
      for (const auto& a : refined.attempts)
        result.how.rounds.push_back({a.round, a.trust, a.validation, a.accepted});
      solution = std::move(refined.solution);
    } else {
      solution = ressvd::allocate_ranks(problem_.entries, budget);
    }
    result.ranks = problem_.ranks_of(solution.ranks);
    result.how.loss = {.predicted = solution.loss,
                       .bound = solution.loss_bound,
                       .measured = divergence(probes_, result.ranks)};
    return result;
  }

 private:
  // Samples and, once a measurement asks for them, the original model's final states.
  struct judged_samples {
    std::string name;
    sample_set samples;
    hidden_states original;
  };

  const hidden_states& original(judged_samples& judged) {
    if (judged.original.empty()) judged.original = passes_.final_original(judged.samples);
    return judged.original;
  }

  std::string name_at(const judged_samples& judged, const model_ranks& ranks) const {
    return ressvd_llm::name_at(judged.name, ranks, passes_.config().layers);
  }

  double divergence(judged_samples& judged, const model_ranks& ranks) {
    return kept_.value(name_at(judged, ranks), [&] {
      return passes_.mean_divergence(original(judged), factored_.run(judged.samples, ranks));
    });
  }

  // Every matrix alone, in the otherwise intact model.
  std::vector<probe_report> probe() {
    const model_config& config = passes_.config();
    const bool curved = options_.probe_ranks > 1;
    const sample_set& samples = probes_.samples;
    hidden_states before;
    std::int64_t reached = 0;
    factored_layer probed; // the layer of the last probe
    progress bar("probing",
                 static_cast<std::int64_t>(problem_.places.size()) * options_.probe_ranks);
    const auto measure = [&](std::int64_t j, std::int64_t rank) {
      const auto [layer, module] = problem_.places[static_cast<std::size_t>(j)];
      if (before.empty()) before = passes_.embed(samples);
      for (; reached < layer; ++reached)
        passes_.run_original(reached, before, samples.length);
      if (probed.matrices.empty() || probed.index != layer) probed = factored_.factored(layer);
      layer_weights weights = passes_.model().layer(layer);
      factored_.replace(weights, probed.matrices[module], {.rank = rank});
      hidden_states hidden = before;
      passes_.run(weights, hidden, samples.length);
      for (std::int64_t later = layer + 1; later < config.layers; ++later) {
        passes_.run_original(later, hidden, samples.length);
      }
      return passes_.mean_divergence(original(probes_), hidden);
    };
    const auto evaluate = [&](std::int64_t j, std::int64_t rank) {
      const std::string& name = problem_.matrix(static_cast<std::size_t>(j)).module.prefix;
      const double value = kept_.value("probe of " + name + " at " + std::to_string(rank),
                                       [&] { return measure(j, rank); });
      bar.advance();
      return value;
    };
    const auto probes = ressvd::probe_matrices(
        problem_.entries, evaluate,
        {.rank_shares = curved ? std::vector<double>{0.5, 0.25} : std::vector<double>{0.5}});
    problem_.entries = ressvd::with_sensitivities(problem_.entries, probes);
    std::vector<probe_report> report;
    for (std::size_t j = 0; j < problem_.places.size(); ++j) {
      if (curved && probes[j].exponent > 1) bend(j, probes[j]);
      for (const auto& point : probes[j].points) {
        report.push_back({.name = problem_.matrix(j).module.prefix,
                          .rank = point.rank,
                          .divergence = point.error,
                          .sensitivity = problem_.entries[j].sensitivity,
                          .exponent = probes[j].exponent});
      }
    }
    return report;
  }

  // The error model c·T^γ in place of c·T, through the probed points.
  void bend(std::size_t j, const ressvd::matrix_probe& probe) {
    const ressvd::probe_point& first = probe.points.front();
    auto curved = ressvd::curve_spectrum(problem_.entries[j], probe.exponent, first.rank);
    bent_[j] = std::move(curved.singular_values);
    problem_.entries[j].singular_values = bent_[j];
    problem_.entries[j].tail_energy = curved.tail_energy;
    problem_.entries[j].sensitivity = (std::max)(first.error, 0.0) / first.truncated_energy;
  }

  // Further probes at the solution itself, accepted by the held-out samples.
  ressvd::refined_allocation refine(std::int64_t budget) {
    const sample_set& samples = probes_.samples;
    model_ranks solution;
    hidden_states before;
    std::int64_t reached = 0;
    progress bar("probing again",
                 (rounds_of(options_) - 1) * static_cast<std::int64_t>(problem_.places.size() + 1));
    const auto evaluate = [&](std::span<const ressvd::rank_choice> stored, std::int64_t changed) {
      const model_ranks ranks = problem_.ranks_of(stored);
      bar.advance();
      if (changed == ressvd::no_matrix) {
        solution = ranks;
        before.clear();
        reached = 0;
        return divergence(probes_, ranks);
      }
      return kept_.value(name_at(probes_, ranks), [&] {
        const std::int64_t layer = problem_.places[static_cast<std::size_t>(changed)].layer;
        if (before.empty()) before = passes_.embed(samples);
        for (; reached < layer; ++reached)
          passes_.run(factored_.layer(reached, solution[reached]), before, samples.length);
        return passes_.mean_divergence(original(probes_),
                                       factored_.run(before, layer, samples.length, ranks));
      });
    };
    const auto validate = [&](std::span<const ressvd::rank_choice> stored) {
      return divergence(heldout_, problem_.ranks_of(stored));
    };
    return ressvd::refine_allocation(problem_.entries, budget, evaluate, validate,
                                     {.rounds = rounds_of(options_) - 1});
  }

  model_passes& passes_;
  const factored_model& factored_;
  const compress_options& options_;
  kept_results& kept_;
  judged_samples probes_;
  judged_samples heldout_;
  rank_problem problem_;
  std::vector<std::vector<double>> bent_; // spectra in place of the layers' own
};

} // namespace

rank_selection select_by_sensitivity(model_passes& passes, const factored_model& factored,
                                     const compress_options& options, double ratio,
                                     const calibration_samples& samples, kept_results& kept) {
  return sensitivity_allocation(passes, factored, options, samples, kept).select(ratio);
}

} // namespace ressvd_llm
