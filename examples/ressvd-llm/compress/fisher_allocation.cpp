// SPDX-License-Identifier: Apache-2.0
#include "compress/fisher_allocation.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/layer_ratio/rank_allocation.hpp>

#include "compress/curvature.hpp"
#include "compress/rank_problem.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// What the ratio says, in either form.
std::int64_t budget_of(const std::vector<ressvd::allocation_matrix>& problem, double ratio) {
  std::int64_t all = 0;
  for (const ressvd::allocation_matrix& m : problem)
    all += m.rows * m.cols;
  return static_cast<std::int64_t>((1 - ratio) * static_cast<double>(all) * (1 + 1e-12));
}

class fisher_allocation {
 public:
  fisher_allocation(model_passes& passes, const factored_model& factored,
                    const compress_options& options, const sample_set& samples, kept_results& kept)
      : passes_(passes),
        factored_(factored),
        options_(options),
        samples_(samples),
        kept_(kept),
        problem_(factored, passes.config().layers, options,
                 [](const factored_module& m) -> const std::vector<double>& {
                   return m.curvature_spectrum;
                 }) {}

  rank_selection select(double ratio) {
    budget_ = (std::max)(budget_of(problem_.entries, ratio), problem_.least_parameters());
    const ressvd::allocation first = ressvd::allocate_ranks(problem_.entries, budget_);
    rank_selection result;
    result.ranks = problem_.ranks_of(first.ranks);
    double divergence = divergence_at(result.ranks);
    for (int round = 2; round <= rounds_of(options_); ++round) {
      const std::vector<double> growth = growth_at(result.ranks, round);
      bool improved = false;
      for (const double trust : {0.5, 1.0}) {
        auto changed = problem_.entries;
        for (std::size_t j = 0; j < changed.size(); ++j)
          changed[j].sensitivity *= std::pow(growth[j], trust);
        model_ranks ranks = problem_.ranks_of(ressvd::allocate_ranks(changed, budget_).ranks);
        const double tried = divergence_at(ranks);
        const bool accepted = tried < divergence;
        result.how.curvature_rounds.push_back({round, trust, tried, accepted});
        if (!accepted) continue;
        divergence = tried;
        result.ranks = std::move(ranks);
        improved = true;
      }
      if (!improved) break;
    }
    result.how.loss = {.predicted = predicted_loss(result.ranks),
                       .bound = first.loss_bound,
                       .measured = divergence};
    return result;
  }

 private:
  double predicted_loss(const model_ranks& ranks) const {
    double sum = 0;
    for (std::size_t j = 0; j < problem_.places.size(); ++j) {
      const auto [layer, module] = problem_.places[j];
      const ressvd::rank_choice& choice = ranks[layer][module];
      if (choice.dense) continue;
      const auto& spectrum = problem_.matrix(j).curvature_spectrum;
      sum += ressvd::detail::truncation_loss(spectrum, choice.rank).absolute;
    }
    return sum;
  }

  double divergence_at(const model_ranks& ranks) {
    return kept_.value(name_at("divergence", ranks, passes_.config().layers), [&] {
      if (original_.empty()) original_ = passes_.final_original(samples_);
      return passes_.mean_divergence(original_, factored_.run(samples_, ranks));
    });
  }

  // Σ‖g‖² a token of every matrix at the compressed model, over that at the original.
  std::vector<double> growth_at(const model_ranks& ranks, int round) {
    std::vector<double> energies; // at the compressed model, once one is not kept
    const auto measure = [&] {
      energies.assign(problem_.places.size(), 0);
      std::vector<std::size_t> first_of_layer; // among all places
      for (std::size_t i = 0; i < problem_.places.size(); ++i)
        if (problem_.places[i].module == 0) first_of_layer.push_back(i);
      const gradient_pass_options at_ranks{
          .labels = {.source = label_source::drawn, .seed = options_.seed},
          .layer = [&](std::int64_t layer) { return factored_.layer(layer, ranks[layer]); }};
      progress bar("gradients again", passes_.config().layers);
      pass_gradients(passes_, samples_, at_ranks, [&](std::int64_t layer, const layer_back& back) {
        const auto modules = linear_modules(passes_.config(), layer);
        double* const sums = energies.data() + first_of_layer[static_cast<std::size_t>(layer)];
        const gradient_observer observer = [&](const linear_observation& seen) {
          for (std::size_t i = 0; i < modules.size(); ++i) {
            if (modules[i].place != seen.place) continue;
            double sum = 0;
            for (std::int64_t k = 0; k < seen.tokens * seen.out; ++k)
              sum += static_cast<double>(seen.g[k]) * static_cast<double>(seen.g[k]);
            sums[i] += sum;
          }
        };
        back(&observer);
        bar.advance();
      });
    };
    std::vector<double> growth(problem_.places.size(), 1);
    std::size_t j = 0;
    for (std::int64_t layer = 0; layer < passes_.config().layers; ++layer) {
      for (const matrix_curvature& known : factored_.curvature()->load(passes_.config(), layer)) {
        const std::string name =
            "gradients of " + known.module.prefix + " in round " + std::to_string(round);
        const double energy = kept_.value(name, [&] {
          if (energies.empty()) measure();
          return energies[j] / static_cast<double>(samples_.tokens());
        });
        double before = 0;
        const std::int64_t n = known.outputs.features;
        for (std::int64_t i = 0; i < n; ++i)
          before += known.outputs.gram[static_cast<std::size_t>(i * (n + 1))];
        before /= static_cast<double>(known.outputs.tokens);
        // Where nothing is known of a matrix, its sensitivity stays.
        if (before > 0 && energy > 0) growth[j] = energy / before;
        ++j;
      }
    }
    return growth;
  }

  model_passes& passes_;
  const factored_model& factored_;
  const compress_options& options_;
  const sample_set& samples_;
  kept_results& kept_;
  rank_problem problem_;
  std::int64_t budget_ = 0;
  hidden_states original_;
};

} // namespace

rank_selection select_by_fisher(model_passes& passes, const factored_model& factored,
                                const compress_options& options, double ratio,
                                const sample_set& samples, kept_results& kept) {
  return fisher_allocation(passes, factored, options, samples, kept).select(ratio);
}

} // namespace ressvd_llm
