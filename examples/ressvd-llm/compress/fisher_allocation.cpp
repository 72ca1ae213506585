// SPDX-License-Identifier: Apache-2.0
#include "compress/fisher_allocation.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <ressvd/layer_ratio/rank_allocation.hpp>

#include "compress/curvature.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// What the smallest ranks keep. It exceeds the budget where multiples of a rank are too coarse; the
// run then removes what it can.
std::int64_t least_parameters(const std::vector<ressvd::allocation_matrix>& problem) {
  const double almost_all = std::nextafter(1.0, 0.0);
  std::int64_t sum = 0;
  for (const ressvd::allocation_matrix& m : problem) {
    const auto smallest =
        m.max_rank > 0 ? ressvd::rank_for_ratio(m.rows, m.cols, almost_all,
                                                {.multiple = m.rank_multiple, .form = m.form})
                       : ressvd::keep_dense(m.rows, m.cols);
    sum += ressvd::kept_parameters(m.rows, m.cols, smallest, m.form);
  }
  return sum;
}

// Pairs may keep what uniform ranks keep of the ratio, which is less than it says by their
// rounding: so that allocations of pairs compare at equal size.
std::int64_t budget_of(const std::vector<ressvd::allocation_matrix>& problem, double ratio,
                       ressvd::factored_form form) {
  if (form == ressvd::factored_form::pair) return ressvd::uniform_budget(problem, ratio);
  std::int64_t all = 0;
  for (const ressvd::allocation_matrix& m : problem)
    all += m.rows * m.cols;
  return static_cast<std::int64_t>((1 - ratio) * static_cast<double>(all) * (1 + 1e-12));
}

class fisher_allocation {
 public:
  fisher_allocation(model_passes& passes, const factored_model& factored,
                    const compress_options& options, const sample_set& samples, kept_results& kept)
      : passes_(passes), factored_(factored), options_(options), samples_(samples), kept_(kept) {
    for (std::int64_t layer = 0; layer < passes_.config().layers; ++layer)
      layers_.push_back(factored_.summary(layer));
    for (const factored_layer& layer : layers_) {
      for (const factored_module& m : layer.matrices) {
        // A matrix that no rank makes smaller stays dense.
        const bool free = m.state.rank > 0;
        problem_.push_back({.name = m.module.prefix,
                            .singular_values = m.curvature_spectrum,
                            .rows = m.module.out,
                            .cols = m.module.in,
                            .sensitivity = free ? 1 : std::numeric_limits<double>::infinity(),
                            .max_rank = m.state.rank,
                            .rank_multiple = options.rank_multiple,
                            .form = options.form});
      }
    }
  }

  rank_selection select(double ratio) {
    budget_ = (std::max)(budget_of(problem_, ratio, options_.form), least_parameters(problem_));
    const ressvd::allocation first = ressvd::allocate_ranks(problem_, budget_);
    rank_selection result;
    result.ranks = ranks_of(first);
    double divergence = divergence_at(result.ranks);
    for (int round = 2; round <= rounds_of(options_); ++round) {
      const std::vector<double> growth = growth_at(result.ranks, round);
      bool improved = false;
      for (const double trust : {0.5, 1.0}) {
        auto changed = problem_;
        for (std::size_t j = 0; j < changed.size(); ++j)
          changed[j].sensitivity *= std::pow(growth[j], trust);
        model_ranks ranks = ranks_of(ressvd::allocate_ranks(changed, budget_));
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
  model_ranks ranks_of(const ressvd::allocation& solution) const {
    model_ranks ranks(passes_.config().layers);
    std::size_t next = 0;
    for (const factored_layer& layer : layers_) {
      for (std::size_t i = 0; i < layer.matrices.size(); ++i)
        ranks[layer.index].push_back(solution.ranks[next++]);
    }
    return ranks;
  }

  double predicted_loss(const model_ranks& ranks) const {
    double sum = 0;
    for (const factored_layer& layer : layers_) {
      for (std::size_t i = 0; i < layer.matrices.size(); ++i) {
        const ressvd::rank_choice& choice = ranks[layer.index][i];
        if (choice.dense) continue;
        sum += ressvd::detail::truncation_loss(layer.matrices[i].curvature_spectrum, choice.rank)
                   .absolute;
      }
    }
    return sum;
  }

  double divergence_at(const model_ranks& ranks) {
    std::string name = "divergence at";
    for (const factored_layer& layer : layers_) {
      for (const ressvd::rank_choice& r : ranks[layer.index]) {
        name += ' ';
        name += r.dense ? std::string("dense") : std::to_string(r.rank);
      }
    }
    return kept_.value(name, [&] {
      if (original_.empty()) original_ = passes_.final_original(samples_);
      return passes_.mean_divergence(original_, factored_.run(samples_, ranks));
    });
  }

  // Σ‖g‖² a token of every matrix at the compressed model, over that at the original.
  std::vector<double> growth_at(const model_ranks& ranks, int round) {
    std::vector<double> energies; // at the compressed model, once one is not kept
    const auto measure = [&] {
      energies.assign(problem_.size(), 0);
      const gradient_pass_options at_ranks{
          .labels = {.source = label_source::drawn, .seed = options_.seed},
          .layer = [&](std::int64_t layer) { return factored_.layer(layer, ranks[layer]); }};
      progress bar("gradients again", passes_.config().layers);
      pass_gradients(passes_, samples_, at_ranks, [&](std::int64_t layer, const layer_back& back) {
        const auto modules = linear_modules(passes_.config(), layer);
        double* const sums = energies.data() + layer * std::ssize(modules);
        const gradient_observer observer = [&](const linear_observation& seen) {
          for (std::size_t i = 0; i < modules.size(); ++i) {
            if (modules[i].kind != seen.kind) continue;
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
    std::vector<double> growth(problem_.size(), 1);
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
  std::vector<factored_layer> layers_;
  std::vector<ressvd::allocation_matrix> problem_;
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
