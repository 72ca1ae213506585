// SPDX-License-Identifier: Apache-2.0
#include "compress/model_ranks.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "io/error.hpp"

namespace ressvd_llm {
namespace {

ressvd::rank_choice rank_at(const linear_module& module, double ratio,
                            const compress_options& options) {
  return ressvd::rank_for_ratio(module.out, module.in, ratio,
                                {.multiple = options.rank_multiple, .form = options.form});
}

} // namespace

std::int64_t matrix_parameters(const linear_module& module) {
  return module.out * module.in;
}

std::vector<std::int64_t> layer_parameters(const model_config& config) {
  std::vector<std::int64_t> counts;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    std::int64_t count = 0;
    for (const linear_module& module : linear_modules(config, layer)) {
      count += matrix_parameters(module);
    }
    counts.push_back(count);
  }
  return counts;
}

double matrix_ratio(const compress_options& options, const model_config& config,
                    const checkpoint& source) {
  if (!options.count_all) return options.ratio;
  std::int64_t all = 0;
  for (const std::string& name : source.names())
    all += source.describe(name).elements;
  const auto counts = layer_parameters(config);
  const std::int64_t matrices = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  return ressvd::compressible_ratio(options.ratio, matrices, all - matrices);
}

namespace {

// The candidates that remove what is asked for, or else what the best of them does.
std::vector<ressvd::layer_candidate> closest_to_ratio(
    std::vector<ressvd::layer_candidate> candidates, double ratio, const model_config& config,
    const compress_options& options) {
  std::vector<double> achieved;
  for (const auto& candidate : candidates)
    achieved.push_back(achieved_ratio(ranks_of(candidate, config, options), config, options.form));
  const double reached = (std::min)(ratio, *std::ranges::max_element(achieved));
  std::vector<ressvd::layer_candidate> kept;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (achieved[i] >= reached - ratio_tolerance) kept.push_back(candidates[i]);
  }
  return kept;
}

} // namespace

std::vector<ressvd::layer_candidate> last_layer_choices(const compress_options& options,
                                                        const model_config& config, double ratio) {
  const auto counts = layer_parameters(config);
  switch (options.allocation) {
    case allocation::uniform:
      return {{config.layers, ratio}};
    case allocation::last_layers:
      if (!options.last_layers) {
        return closest_to_ratio(
            ressvd::last_layer_candidates(counts, ratio, {.step = options.step}), ratio, config,
            options);
      }
      return {{*options.last_layers, ressvd::layer_ratio(counts, ratio, *options.last_layers)}};
    case allocation::importance:
    case allocation::sensitivity:
    case allocation::fisher:
      break;
  }
  return {};
}

model_ranks ranks_of(const std::vector<double>& layer_ratios, const model_config& config,
                     const compress_options& options) {
  model_ranks ranks(config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const double ratio = layer_ratios[static_cast<std::size_t>(layer)];
    for (const linear_module& module : linear_modules(config, layer))
      ranks[layer].push_back(rank_at(module, ratio, options));
  }
  return ranks;
}

model_ranks ranks_of(const ressvd::layer_candidate& candidate, const model_config& config,
                     const compress_options& options) {
  std::vector<double> ratios(static_cast<std::size_t>(config.layers), 0.0);
  std::fill(ratios.end() - candidate.layers, ratios.end(), candidate.ratio);
  return ranks_of(ratios, config, options);
}

candidate_ranks ranks_of_all(const std::vector<ressvd::layer_candidate>& candidates,
                             const model_config& config, const compress_options& options) {
  candidate_ranks all(config.layers);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    for (const linear_module& module : linear_modules(config, layer)) {
      std::set<std::int64_t, std::greater<>> ranks;
      if (candidates.empty()) {
        const auto largest = ressvd::largest_saving_rank(module.out, module.in, options.form);
        if (largest > 0) ranks.insert(largest);
      }
      for (const auto& candidate : candidates) {
        if (layer < config.layers - candidate.layers) continue;
        const ressvd::rank_choice choice = rank_at(module, candidate.ratio, options);
        if (!choice.dense) ranks.insert(choice.rank);
      }
      all[layer].emplace_back(ranks.begin(), ranks.end());
    }
  }
  return all;
}

double achieved_ratio(const model_ranks& ranks, const model_config& config,
                      ressvd::factored_form form) {
  std::int64_t kept = 0;
  std::int64_t all = 0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const auto modules = linear_modules(config, layer);
    for (std::size_t i = 0; i < modules.size(); ++i) {
      all += matrix_parameters(modules[i]);
      kept += ressvd::kept_parameters(modules[i].out, modules[i].in, ranks[layer][i], form);
    }
  }
  return 1 - static_cast<double>(kept) / static_cast<double>(all);
}

} // namespace ressvd_llm
