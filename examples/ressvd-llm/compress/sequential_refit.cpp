// SPDX-License-Identifier: Apache-2.0
#include "compress/sequential_refit.hpp"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>

namespace ressvd_llm {

sequential_update::sequential_update(workbench& bench, const compress_options& options,
                                     const sample_set& samples)
    : bench_(bench), length_(samples.length), compressed_(bench.embed(samples)) {
  if (target_mix(options) > 0) original_ = compressed_;
}

void sequential_update::observe_shifted(std::int64_t layer, const layer_weights& weights,
                                        input_group group, std::int64_t features) {
  const bool cross = !original_.empty();
  const std::string name =
      "layer " + std::to_string(layer) + ", compressed input of " + std::string(name_of(group));
  bench_.compressor().begin_shifted(name, features, cross);
  const std::int64_t width = bench_.config().hidden_size;
  const auto tokens = static_cast<std::int64_t>(compressed_.size()) / width;
  // Some windows at a time through both models, so that their inputs meet in memory.
  const std::int64_t step = length_ * (std::max)(std::int64_t{1}, 2048 / length_);
  std::vector<float> x;
  std::vector<float> y;
  const auto capture = [&](std::vector<float>& out) {
    return input_observer(
        [&out, group](input_group g, const float* data, std::int64_t rows, std::int64_t cols) {
          if (g == group) out.insert(out.end(), data, data + rows * cols);
        });
  };
  for (std::int64_t t = 0; t < tokens; t += step) {
    const std::int64_t count = (std::min)(step, tokens - t);
    const auto part = [&](const hidden_states& all) {
      return hidden_states(all.begin() + t * width, all.begin() + (t + count) * width);
    };
    x.clear();
    hidden_states moved = part(compressed_);
    const auto on_compressed = capture(x);
    bench_.run(weights, moved, length_, &on_compressed);
    if (!cross) {
      bench_.compressor().observe_shifted(x.data(), nullptr, count, features);
      continue;
    }
    y.clear();
    hidden_states kept = part(original_);
    const auto on_original = capture(y);
    bench_.run_original(layer, kept, length_, &on_original);
    bench_.compressor().observe_shifted(x.data(), y.data(), count, features);
  }
}

layer_weights sequential_update::update(std::int64_t layer,
                                        const std::vector<ressvd::rank_choice>& ranks) {
  layer_weights weights = bench_.model().layer(layer);
  const auto compressed = [](const ressvd::rank_choice& r) { return !r.dense; };
  if (std::any_of(ranks.begin(), ranks.end(), compressed)) {
    const factored_layer bases = bench_.store().load(bench_.config(), layer);
    for (std::size_t first = 0; first < ranks.size();) {
      const linear_module& module = bases.matrices[first].module;
      std::size_t last = first;
      while (last < ranks.size() && bases.matrices[last].module.group == module.group)
        ++last;
      const auto begin = ranks.begin();
      if (std::any_of(begin + static_cast<std::ptrdiff_t>(first),
                      begin + static_cast<std::ptrdiff_t>(last), compressed)) {
        observe_shifted(layer, weights, module.group, module.in);
        bench_.compressor().fit(weights, bases, ranks, first, last);
      }
      first = last;
    }
  }
  advance(layer, weights);
  return weights;
}

void sequential_update::skip(std::int64_t layer, const layer_weights& updated) {
  advance(layer, updated);
}

void sequential_update::advance(std::int64_t layer, const layer_weights& updated) {
  bench_.run(updated, compressed_, length_);
  if (!original_.empty()) bench_.run_original(layer, original_, length_);
}

} // namespace ressvd_llm
