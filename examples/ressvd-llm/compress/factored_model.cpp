// SPDX-License-Identifier: Apache-2.0
#include "compress/factored_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <utility>

#include "compress/gram_file.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// Σ over tokens of cos(x_t, y_t).
double cosine_sum(const hidden_states& before, const hidden_states& after) {
  const std::vector<float> x = before.values();
  const std::vector<float> y = after.values();
  const auto n = static_cast<std::size_t>(before.cols());
  double sum = 0;
  for (std::size_t first = 0; first < x.size(); first += n) {
    double xy = 0;
    double xx = 0;
    double yy = 0;
    for (std::size_t i = first; i < first + n; ++i) {
      xy += static_cast<double>(x[i]) * static_cast<double>(y[i]);
      xx += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      yy += static_cast<double>(y[i]) * static_cast<double>(y[i]);
    }
    if (xx > 0 && yy > 0) sum += xy / std::sqrt(xx * yy);
  }
  return sum;
}

} // namespace

factored_layer factored_model::of_method(factored_layer layer) const {
  for (factored_module& m : layer.matrices)
    m.state.residual = method_.residual();
  return layer;
}

factored_layer factored_model::factored(std::int64_t layer) const {
  return of_method(store_.load(passes_.config(), layer));
}

factored_layer factored_model::summary(std::int64_t layer) const {
  return of_method(store_.load_summary(passes_.config(), layer));
}

void factored_model::replace(layer_weights& weights, const factored_module& matrix,
                             const ressvd::rank_choice& choice) const {
  linear& target = weights[matrix.module.place];
  target = engine_.slice(matrix, target, choice);
}

layer_weights factored_model::layer(std::int64_t layer, const layer_ranks& ranks) const {
  layer_weights weights = passes_.model().layer(layer);
  if (std::ranges::all_of(ranks, &ressvd::rank_choice::dense)) return weights;
  const std::vector<factored_module> matrices = factored(layer).matrices;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (!ranks[i].dense) replace(weights, matrices[i], ranks[i]);
  }
  return weights;
}

hidden_states factored_model::run(hidden_states hidden, std::int64_t first, std::int64_t length,
                                  const model_ranks& ranks) const {
  for (std::int64_t index = first; index < passes_.config().layers; ++index)
    passes_.run(layer(index, ranks[index]), hidden, length);
  return hidden;
}

hidden_states factored_model::run(const sample_set& samples, const model_ranks& ranks) const {
  return run(passes_.embed(samples), 0, samples.length, ranks);
}

factored_model factor_model(model_passes& passes, factoring_engine& engine,
                            const compress_options& options, const sample_set& samples,
                            const candidate_ranks& wanted, const std::filesystem::path& directory,
                            const curvature_store* curvature) {
  const model_config& config = passes.config();
  const ressvd::any_method method = method_of(options);
  const layer_store store(directory);
  std::optional<gram_file> grams;
  if (!options.grams.empty()) grams.emplace(options.grams);
  const bool similarity = options.allocation == allocation::importance;
  const auto missing = [&](std::int64_t layer) {
    return !std::ranges::all_of(wanted[layer], &rank_list::empty) && !store.contains(layer);
  };
  std::int64_t end = config.layers; // no layer from here on is to be factored
  while (end > 0 && !missing(end - 1))
    --end;
  const bool pass = end > 0 && (!grams || similarity);
  hidden_states hidden = pass ? passes.embed(samples) : hidden_states{};
  progress bar("factoring", end);
  for (std::int64_t layer = 0; layer < end; ++layer) {
    const auto& ranks = wanted[layer];
    if (!missing(layer)) {
      if (pass) passes.run_original(layer, hidden, samples.length);
    } else {
      const auto factoring = engine.begin_layer(config, layer, method);
      const input_observer observer = [&](const input_observation& seen) {
        factoring->observe(seen.input, seen.x);
      };
      const hidden_states before = similarity ? hidden : hidden_states{};
      if (grams) {
        for (const layer_input& input : wanted_inputs(config, layer, ranks))
          factoring->take(input, grams->read(config, layer, input));
      }
      if (curvature != nullptr) factoring->take(curvature->load(config, layer));
      if (pass) passes.run_original(layer, hidden, samples.length, grams ? nullptr : &observer);
      factored_layer factored{.index = layer, .similarity = 0, .matrices = {}};
      factored.matrices = factoring->factor(passes.model().layer(layer), ranks);
      if (similarity) {
        factored.similarity = cosine_sum(before, hidden) / static_cast<double>(samples.tokens());
      }
      store.save(factored);
    }
    bar.advance();
  }
  return {passes, engine, store, method, curvature};
}

} // namespace ressvd_llm
