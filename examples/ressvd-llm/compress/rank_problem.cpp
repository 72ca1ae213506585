// SPDX-License-Identifier: Apache-2.0
#include "compress/rank_problem.hpp"

#include <cmath>
#include <limits>

namespace ressvd_llm {

rank_problem::rank_problem(
    const factored_model& factored, std::int64_t layer_count, const compress_options& options,
    const std::function<const std::vector<double>&(const factored_module&)>& spectrum) {
  for (std::int64_t layer = 0; layer < layer_count; ++layer)
    layers.push_back(factored.summary(layer));
  for (const factored_layer& layer : layers) {
    for (std::size_t i = 0; i < layer.matrices.size(); ++i) {
      const factored_module& m = layer.matrices[i];
      places.push_back({layer.index, i});
      const bool free = m.state.rank > 0;
      entries.push_back({.name = m.module.prefix,
                         .singular_values = spectrum(m),
                         .rows = m.module.out,
                         .cols = m.module.in,
                         .sensitivity = free ? 1 : std::numeric_limits<double>::infinity(),
                         .max_rank = m.state.rank,
                         .rank_multiple = options.rank_multiple,
                         .form = options.form});
    }
  }
}

model_ranks rank_problem::ranks_of(std::span<const ressvd::rank_choice> solution) const {
  model_ranks ranks(std::ssize(layers));
  for (std::size_t j = 0; j < places.size(); ++j)
    ranks[places[j].layer].push_back(solution[j]);
  return ranks;
}

std::int64_t rank_problem::least_parameters() const {
  const double almost_all = std::nextafter(1.0, 0.0);
  std::int64_t sum = 0;
  for (const ressvd::allocation_matrix& m : entries) {
    const auto smallest =
        m.max_rank > 0 ? ressvd::rank_for_ratio(m.rows, m.cols, almost_all,
                                                {.multiple = m.rank_multiple, .form = m.form})
                       : ressvd::keep_dense(m.rows, m.cols);
    sum += ressvd::kept_parameters(m.rows, m.cols, smallest, m.form);
  }
  return sum;
}

std::string name_at(const std::string& what, const model_ranks& ranks, std::int64_t layers) {
  std::string name = what + " at";
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (const ressvd::rank_choice& r : ranks[layer]) {
      name += ' ';
      name += r.dense ? std::string("dense") : std::to_string(r.rank);
    }
  }
  return name;
}

} // namespace ressvd_llm
