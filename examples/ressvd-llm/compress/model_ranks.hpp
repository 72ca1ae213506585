// SPDX-License-Identifier: Apache-2.0
//
// Which rank every matrix of a model gets, and at which ranks it may be asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <ressvd/layer_ratio/last_layers.hpp>
#include <ressvd/layer_ratio/rank_choice.hpp>

#include "compress/options.hpp"
#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// A value for each matrix of a model: of every layer, those of its matrices in the order of
// linear_modules.
template <class T>
class per_matrix {
 public:
  per_matrix() = default;
  explicit per_matrix(std::int64_t layers) : layers_(static_cast<std::size_t>(layers)) {}

  std::vector<T>& operator[](std::int64_t layer) {
    return layers_[static_cast<std::size_t>(layer)];
  }
  const std::vector<T>& operator[](std::int64_t layer) const {
    return layers_[static_cast<std::size_t>(layer)];
  }

  friend bool operator==(const per_matrix&, const per_matrix&) = default;

 private:
  std::vector<std::vector<T>> layers_;
};

using layer_ranks = std::vector<ressvd::rank_choice>;
using model_ranks = per_matrix<ressvd::rank_choice>;

// The ranks at which one matrix may be sliced, descending. None: it stays as it is.
using rank_list = std::vector<std::int64_t>;
using candidate_ranks = per_matrix<rank_list>;

std::int64_t matrix_parameters(const linear_module& module);
std::vector<std::int64_t> layer_parameters(const model_config& config);

// The ratio that the layers' matrices must reach: options.ratio itself, or more when embeddings,
// head, norms and biases count and stay.
double matrix_ratio(const compress_options& options, const model_config& config,
                    const checkpoint& source);

// The values of k that a run may choose, each with the ratio of its layers. One for a fixed k and
// for uniform ratios; none where ranks come from importances or sensitivities. A search leaves out
// what misses the ratio while another choice reaches it, or comes closer.
std::vector<ressvd::layer_candidate> last_layer_choices(const compress_options& options,
                                                        const model_config& config, double ratio);

// Every matrix of the last k layers at the candidate's ratio.
model_ranks ranks_of(const ressvd::layer_candidate& candidate, const model_config& config,
                     const compress_options& options);

// A ratio per layer.
model_ranks ranks_of(const std::vector<double>& layer_ratios, const model_config& config,
                     const compress_options& options);

// The ranks that some candidate gives each matrix. If there are no candidates, any rank may be
// asked for later: the largest useful one alone.
candidate_ranks ranks_of_all(const std::vector<ressvd::layer_candidate>& candidates,
                             const model_config& config, const compress_options& options);

// By how much less than the ratio may be removed without missing it: half a percentage point. Ranks
// rounded down never remove less. What does is a matrix whose rank is raised to one multiple, or
// that stays dense because one multiple saves nothing; a small one of these does not show in the
// whole percents in which ratios are given.
constexpr double ratio_tolerance = 0.005;

// The share of the layers' matrix parameters that the ranks remove.
double achieved_ratio(const model_ranks& ranks, const model_config& config,
                      ressvd::factored_form form);

} // namespace ressvd_llm
