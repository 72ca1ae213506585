// SPDX-License-Identifier: Apache-2.0
#include "compress/curvature.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "model/parallel.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// ⌈√L⌉.
std::int64_t layers_between(std::int64_t layers) {
  std::int64_t stride = 1;
  while (stride * stride < layers)
    ++stride;
  return stride;
}

// sums_i += Σ_t g_ti²·‖x_t‖².
void add_row_importance(const linear_observation& seen, std::vector<double>& sums) {
  sums.resize(static_cast<std::size_t>(seen.out));
  std::vector<double> squares(static_cast<std::size_t>(seen.tokens));
  parallel_for(seen.tokens, elementwise_grain / seen.in + 1,
               [&](std::int64_t first, std::int64_t last) {
                 for (std::int64_t t = first; t < last; ++t) {
                   double sum = 0;
                   for (std::int64_t j = 0; j < seen.in; ++j) {
                     const double x = seen.x[t * seen.in + j];
                     sum += x * x;
                   }
                   squares[static_cast<std::size_t>(t)] = sum;
                 }
               });
  parallel_for(seen.out, elementwise_grain / seen.tokens + 1,
               [&](std::int64_t first, std::int64_t last) {
                 for (std::int64_t t = 0; t < seen.tokens; ++t) {
                   const double square = squares[static_cast<std::size_t>(t)];
                   for (std::int64_t i = first; i < last; ++i) {
                     const double g = seen.g[t * seen.out + i];
                     sums[static_cast<std::size_t>(i)] += g * g * square;
                   }
                 }
               });
}

} // namespace

std::int64_t curvature_copies(std::int64_t layers) {
  const std::int64_t stride = layers_between(layers);
  // One before each stretch of layers, those within a stretch, the gradient.
  return (layers + stride - 1) / stride + stride;
}

loss_result pass_gradients(
    model_passes& all_passes, const sample_set& samples, const gradient_pass_options& options,
    const std::function<void(std::int64_t layer, const layer_back& back)>& visit) {
  model_passes& passes = all_passes.on_host(); // where the backward pass is
  const std::int64_t layers = passes.config().layers;
  const std::int64_t stride = layers_between(layers);
  const language_model& model = passes.model();
  const auto weights = [&](std::int64_t layer) {
    return options.layer ? options.layer(layer) : model.layer(layer);
  };
  std::vector<hidden_states> kept; // before layers 0, stride, 2·stride, …
  hidden_states gradient = passes.embed(samples);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    if (layer % stride == 0) kept.push_back(gradient);
    passes.run(weights(layer), gradient, samples.length);
  }
  cpu_backward backward(passes.config());
  loss_result result =
      backward.loss(model.outer(), samples.ids, samples.length, options.labels, gradient.data());
  std::vector<hidden_states> inputs; // of the layers of a stretch
  for (std::int64_t end = layers; end > options.first_layer;) {
    const std::int64_t begin = (end - 1) / stride * stride;
    inputs.clear();
    inputs.push_back(std::move(kept.back()));
    kept.pop_back();
    for (std::int64_t layer = begin; layer + 1 < end; ++layer) {
      inputs.push_back(inputs.back());
      passes.run(weights(layer), inputs.back(), samples.length);
    }
    for (std::int64_t layer = end - 1; layer >= std::max(begin, options.first_layer); --layer) {
      bool done = false;
      const layer_back back = [&](const gradient_observer* observer) {
        backward.layer(weights(layer), inputs.back().data(), samples.tokens(), samples.length,
                       gradient.data(), {.observer = observer});
        done = true;
      };
      visit(layer, back);
      if (!done) back(nullptr);
      inputs.pop_back();
    }
    end = begin;
  }
  return result;
}

void gather_curvature(model_passes& passes, factoring_engine& engine, const sample_set& samples,
                      const label_options& labels, const curvature_store& store) {
  const std::int64_t layers = passes.config().layers;
  std::int64_t first = 0;
  while (first < layers && store.contains(first))
    ++first;
  if (first == layers) return;
  progress bar("gradients", layers - first);
  pass_gradients(passes, samples, {.labels = labels, .first_layer = first},
                 [&](std::int64_t layer, const layer_back& back) {
                   bar.advance();
                   if (store.contains(layer)) return;
                   const auto sums = engine.begin_curvature(layer);
                   const auto modules = linear_modules(passes.config(), layer);
                   std::map<std::size_t, std::vector<double>> importance;
                   const gradient_observer observer = [&](const linear_observation& seen) {
                     sums->observe(seen.place, seen.g, seen.tokens, seen.out);
                     add_row_importance(seen, importance[seen.place.index()]);
                   };
                   back(&observer);
                   std::vector<matrix_curvature> matrices;
                   for (const linear_module& module : modules) {
                     const auto n = static_cast<std::size_t>(module.out);
                     auto& rows = importance[module.place.index()];
                     rows.resize(n);
                     for (double& row : rows)
                       row /= static_cast<double>(samples.tokens());
                     ressvd::gram_state outputs = sums->take(module.place);
                     // Where an expert had no part in a token its gradient is zero.
                     outputs.features = module.out;
                     outputs.tokens = samples.tokens();
                     outputs.gram.resize(n * n);
                     matrices.push_back({module, std::move(outputs), std::move(rows)});
                   }
                   store.save(layer, matrices);
                 });
}

} // namespace ressvd_llm
