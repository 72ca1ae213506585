// SPDX-License-Identifier: Apache-2.0
#include "compress/sequential_refit.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ressvd_llm {
namespace {

// An input of some tokens.
struct captured_input {
  std::int64_t features = 0;
  std::vector<float> x;
  std::vector<std::int64_t> positions; // an expert's
};

// Collects some inputs of a layer, by layer_input::index.
struct capture {
  capture(model_passes& from, const std::vector<layer_input>& inputs) : passes(from) {
    for (const layer_input& input : inputs)
      by_index[input.index()] = {};
  }

  input_observer observer() {
    return [this](const input_observation& seen) {
      const auto found = by_index.find(seen.input.index());
      if (found == by_index.end()) return;
      captured_input& to = found->second;
      to.features = seen.x.cols;
      const std::vector<float> values = passes.download(seen.x);
      to.x.insert(to.x.end(), values.begin(), values.end());
      to.positions.insert(to.positions.end(), seen.positions.begin(), seen.positions.end());
    };
  }

  model_passes& passes;
  std::map<std::size_t, captured_input> by_index;
};

// Leaves an expert's tokens that are among the other's, too.
void keep_common(captured_input& input, const captured_input& other) {
  std::size_t kept = 0;
  const auto width = static_cast<std::size_t>(input.features);
  for (std::size_t i = 0; i < input.positions.size(); ++i) {
    if (!std::ranges::binary_search(other.positions, input.positions[i])) continue;
    input.positions[kept] = input.positions[i];
    std::copy_n(input.x.begin() + static_cast<std::ptrdiff_t>(i * width), width,
                input.x.begin() + static_cast<std::ptrdiff_t>(kept * width));
    ++kept;
  }
  input.positions.resize(kept);
  input.x.resize(kept * width);
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

sequential_refit::observed_inputs sequential_refit::observe(
    const layer_weights& weights, const std::vector<layer_input>& inputs) {
  const std::int64_t tokens = compressed_.rows();
  observed_inputs result;
  // Some windows at a time through both models, so that their inputs meet in memory.
  const std::int64_t step = length_ * (std::max)(std::int64_t{1}, 2048 / length_);
  for (std::int64_t t = 0; t < tokens; t += step) {
    const std::int64_t count = (std::min)(step, tokens - t);
    capture compressed(passes_, inputs);
    const input_observer on_compressed = compressed.observer();
    hidden_states moved = compressed_.part(t, count);
    passes_.run(weights, moved, length_, &on_compressed);
    capture original(passes_, inputs);
    if (!original_.empty()) {
      const input_observer on_original = original.observer();
      hidden_states kept = original_.part(t, count);
      passes_.run_original(layer_, kept, length_, &on_original);
    }
    for (const layer_input& input : inputs) {
      captured_input& x = compressed.by_index[input.index()];
      captured_input& y = original.by_index[input.index()];
      if (!original_.empty() && input.expert != no_expert) {
        keep_common(x, y);
        keep_common(y, x);
      }
      if (x.x.empty()) continue;
      auto& refit = result[input.index()];
      if (!refit) {
        refit = factored_.engine().begin_refit(
            x.features, factored_.method(),
            {.name = "layer " + std::to_string(layer_) + ", compressed input of " + name_of(input),
             .original_share = target_mix(options_),
             .ridge = options_.ridge});
      }
      refit->observe(x.x.data(), original_.empty() ? nullptr : y.x.data(),
                     static_cast<std::int64_t>(x.x.size()) / x.features);
    }
  }
  return result;
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
  for (const input_group group : {input_group::attention, input_group::attention_output,
                                  input_group::mlp, input_group::mlp_output}) {
    std::vector<layer_input> inputs;
    std::vector<std::size_t> readers;
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      const layer_input& input = matrices[i].module.input;
      if (input.group != group || ranks[i].dense) continue;
      readers.push_back(i);
      if (inputs.empty() || inputs.back() != input) inputs.push_back(input);
    }
    if (readers.empty()) continue;
    observed_inputs observed = observe(weights, inputs);
    for (const std::size_t i : readers) {
      const linear_module& module = matrices[i].module;
      const auto found = observed.find(module.input.index());
      if (found == observed.end()) {
        factored_.replace(weights, matrices[i], ranks[i]);
        continue;
      }
      linear& l = weights[module.place];
      const matrix_curvature* known = curvature.empty() ? nullptr : &curvature[i];
      l = options_.retruncate ? found->second->truncate(l, known, ranks[i])
                              : found->second->update(matrices[i], l, ranks[i]);
    }
  }
  return weights;
}

void sequential_refit::pass(const layer_weights& compressed) {
  passes_.run(compressed, compressed_, length_);
  if (!original_.empty()) passes_.run_original(layer_, original_, length_);
  ++layer_;
}

} // namespace ressvd_llm
