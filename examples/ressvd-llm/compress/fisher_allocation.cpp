// SPDX-License-Identifier: Apache-2.0
#include "compress/fisher_allocation.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <ressvd/layer_ratio/rank_allocation.hpp>

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

// Pairs may keep what uniform ranks keep of the ratio, which is less than it says by their rounding:
// so that allocations of pairs compare at equal size.
std::int64_t budget_of(const std::vector<ressvd::allocation_matrix>& problem, double ratio,
                       ressvd::factored_form form) {
  if (form == ressvd::factored_form::pair) return ressvd::uniform_budget(problem, ratio);
  std::int64_t all = 0;
  for (const ressvd::allocation_matrix& m : problem)
    all += m.rows * m.cols;
  return static_cast<std::int64_t>((1 - ratio) * static_cast<double>(all) * (1 + 1e-12));
}

} // namespace

rank_selection select_by_fisher(model_passes& passes, const factored_model& factored,
                                const compress_options& options, double ratio,
                                const sample_set& samples, kept_results& kept) {
  const model_config& config = passes.config();
  std::vector<factored_layer> layers;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    layers.push_back(factored.summary(layer));
  std::vector<ressvd::allocation_matrix> problem;
  for (const factored_layer& layer : layers) {
    for (const factored_module& m : layer.matrices) {
      // A matrix that no rank makes smaller stays dense.
      const bool free = m.state.rank > 0;
      problem.push_back({.name = m.module.prefix,
                         .singular_values = m.curvature_spectrum,
                         .rows = m.module.out,
                         .cols = m.module.in,
                         .sensitivity = free ? 1 : std::numeric_limits<double>::infinity(),
                         .max_rank = m.state.rank,
                         .rank_multiple = options.rank_multiple,
                         .form = options.form});
    }
  }
  const std::int64_t budget =
      (std::max)(budget_of(problem, ratio, options.form), least_parameters(problem));
  const ressvd::allocation solution = ressvd::allocate_ranks(problem, budget);
  rank_selection result;
  result.ranks = model_ranks(config.layers);
  std::size_t next = 0;
  for (const factored_layer& layer : layers) {
    for (std::size_t i = 0; i < layer.matrices.size(); ++i)
      result.ranks[layer.index].push_back(solution.ranks[next++]);
  }
  const double measured = kept.value("divergence at ranks by fisher", [&] {
    return passes.mean_divergence(passes.final_original(samples),
                                  factored.run(samples, result.ranks));
  });
  result.how.loss = {
      .predicted = solution.loss, .bound = solution.loss_bound, .measured = measured};
  return result;
}

} // namespace ressvd_llm
