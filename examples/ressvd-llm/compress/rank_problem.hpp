// SPDX-License-Identifier: Apache-2.0
//
// The ranks of a model's matrices as a problem of the library's allocator: its entries are the
// matrices of all layers, in their order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ressvd/layer_ratio/rank_allocation.hpp>

#include "compress/factored_model.hpp"
#include "compress/model_ranks.hpp"
#include "compress/options.hpp"

namespace ressvd_llm {

struct rank_problem {
  struct place {
    std::int64_t layer = 0;
    std::size_t module = 0;
  };

  // With the spectrum that `spectrum` names of each matrix and a sensitivity of 1; matrices that no
  // rank makes smaller stay dense.
  rank_problem(const factored_model& factored, std::int64_t layer_count,
               const compress_options& options,
               const std::function<const std::vector<double>&(const factored_module&)>& spectrum);
  // The entries point into the layers.
  rank_problem(const rank_problem&) = delete;
  rank_problem& operator=(const rank_problem&) = delete;

  const factored_module& matrix(std::size_t j) const {
    return layers[static_cast<std::size_t>(places[j].layer)].matrices[places[j].module];
  }
  // The allocator's ranks, layer by layer.
  model_ranks ranks_of(std::span<const ressvd::rank_choice> solution) const;
  // What the smallest ranks keep. It exceeds a budget where multiples of a rank are too coarse; a
  // run then removes what it can.
  std::int64_t least_parameters() const;

  std::vector<factored_layer> layers; // summaries
  std::vector<place> places;          // of each entry
  std::vector<ressvd::allocation_matrix> entries;
};

// The name of a measurement at these ranks.
std::string name_at(const std::string& what, const model_ranks& ranks, std::int64_t layers);

} // namespace ressvd_llm
