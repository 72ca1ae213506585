// SPDX-License-Identifier: Apache-2.0
#include "compress/sequential_refit.hpp"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace ressvd_llm {
namespace {

// Collects what enters one group's matrices.
input_observer capture(model_passes& passes, input_group group, std::vector<float>& into) {
  return [&passes, group, &into](input_group seen, const activation_view& x) {
    if (seen != group) return;
    const std::vector<float> values = passes.download(x);
    into.insert(into.end(), values.begin(), values.end());
  };
}

} // namespace

sequential_refit::sequential_refit(model_passes& passes, const factored_model& factored,
                                   const compress_options& options, const sample_set& samples)
    : passes_(passes),
      factored_(factored),
      options_(options),
      length_(samples.length),
      compressed_(passes.embed(samples)) {
  if (target_mix(options) > 0) original_ = compressed_;
}

void sequential_refit::observe(shifted_refit& refit, const layer_weights& weights,
                               input_group group) {
  const std::int64_t tokens = compressed_.rows();
  // Some windows at a time through both models, so that their inputs meet in memory.
  const std::int64_t step = length_ * (std::max)(std::int64_t{1}, 2048 / length_);
  for (std::int64_t t = 0; t < tokens; t += step) {
    const std::int64_t count = (std::min)(step, tokens - t);
    std::vector<float> x;
    const input_observer on_compressed = capture(passes_, group, x);
    hidden_states moved = compressed_.part(t, count);
    passes_.run(weights, moved, length_, &on_compressed);
    std::vector<float> y;
    if (!original_.empty()) {
      const input_observer on_original = capture(passes_, group, y);
      hidden_states kept = original_.part(t, count);
      passes_.run_original(layer_, kept, length_, &on_original);
    }
    refit.observe(x.data(), y.empty() ? nullptr : y.data(), count);
  }
}

layer_weights sequential_refit::fit(const layer_ranks& ranks) {
  layer_weights weights = passes_.model().layer(layer_);
  std::vector<factored_module> matrices;
  if (!std::ranges::all_of(ranks, &ressvd::rank_choice::dense)) {
    matrices = factored_.factored(layer_).matrices;
  }
  std::vector<matrix_curvature> curvature;
  if (options_.retruncate && factored_.curvature() != nullptr && !matrices.empty())
    curvature = factored_.curvature()->load(passes_.config(), layer_);
  std::unique_ptr<shifted_refit> refit;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const linear_module& module = matrices[i].module;
    if (i > 0 && module.group != matrices[i - 1].module.group) refit.reset();
    if (ranks[i].dense) continue;
    if (!refit) {
      refit = factored_.engine().begin_refit(
          module.in, factored_.method(),
          {.name = "layer " + std::to_string(layer_) + ", compressed input of " +
                   std::string(name_of(module.group)),
           .original_share = target_mix(options_),
           .ridge = options_.ridge});
      observe(*refit, weights, module.group);
    }
    linear& l = weights[module.kind];
    const matrix_curvature* known = curvature.empty() ? nullptr : &curvature[i];
    l = options_.retruncate ? refit->truncate(l, known, ranks[i])
                            : refit->update(matrices[i], l, ranks[i]);
  }
  return weights;
}

void sequential_refit::pass(const layer_weights& compressed) {
  passes_.run(compressed, compressed_, length_);
  if (!original_.empty()) passes_.run_original(layer_, original_, length_);
  ++layer_;
}

} // namespace ressvd_llm
