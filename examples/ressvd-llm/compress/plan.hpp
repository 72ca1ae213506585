// SPDX-License-Identifier: Apache-2.0
//
// Which rank every matrix gets: the candidates of a run before its bases exist, the solution after.
#pragma once

#include <cstdint>
#include <vector>

#include <ressvd/layer_ratio/last_layers.hpp>
#include <ressvd/layer_ratio/rank_choice.hpp>

#include "compress/options.hpp"
#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// ranks[layer][module], modules in the order of linear_modules.
using model_ranks = std::vector<std::vector<ressvd::rank_choice>>;

std::int64_t matrix_parameters(const linear_module& module);
std::vector<std::int64_t> layer_parameters(const model_config& config);

// The ratio that the layers' matrices must reach: options.ratio itself, or more when embeddings,
// head, norms and biases count and stay.
double matrix_ratio(const compress_options& options, const model_config& config,
                    const checkpoint& source);

// The values of k that a run may choose, each with the ratio of its layers. One for a fixed k and
// for uniform ratios; none where ranks come from importances or sensitivities.
std::vector<ressvd::layer_candidate> last_layer_choices(const compress_options& options,
                                                        const model_config& config, double ratio);

// Every matrix of the last k layers at the candidate's ratio.
model_ranks ranks_of(const ressvd::layer_candidate& candidate, const model_config& config,
                     const compress_options& options);

// A ratio per layer.
model_ranks ranks_of(const std::vector<double>& layer_ratios, const model_config& config,
                     const compress_options& options);

// The ranks at which each matrix may be sliced, descending; and the largest among them. Where any
// rank may be asked for later, only the largest useful one.
std::vector<std::vector<std::vector<std::int64_t>>> wanted_ranks(
    const std::vector<ressvd::layer_candidate>& candidates, const model_config& config,
    const compress_options& options);

// The share of the layers' matrix parameters that the ranks remove.
double achieved_ratio(const model_ranks& ranks, const model_config& config);

} // namespace ressvd_llm
