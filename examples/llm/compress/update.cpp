// SPDX-License-Identifier: Apache-2.0
#include "compress/update.hpp"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>

namespace ressvd_llm {

sequential_update::sequential_update(workbench& bench, const compress_options& options,
                                     double power, const sample_set& samples)
    : bench_(bench),
      options_(options),
      power_(power),
      length_(samples.length),
      compressed_(bench.embed(samples)) {
  if (target_mix(options) > 0) original_ = compressed_;
}

sequential_update::accumulator sequential_update::shifted_statistics(std::int64_t layer,
                                                                     const layer_weights& weights,
                                                                     input_group group,
                                                                     std::int64_t features) {
  const bool cross = !original_.empty();
  const std::string name =
      "layer " + std::to_string(layer) + ", compressed input of " + std::string(name_of(group));
  accumulator statistics(wide(bench_.factorizer().backend()), features,
                         {.name = name, .cross_features = cross ? features : 0});
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
    const auto shifted = ressvd::row_major(std::as_const(x).data(), count, features);
    if (!cross) {
      statistics.add(shifted);
      continue;
    }
    y.clear();
    hidden_states kept = part(original_);
    const auto on_original = capture(y);
    bench_.run_original(layer, kept, length_, &on_original);
    statistics.add(shifted, ressvd::row_major(std::as_const(y).data(), count, features));
  }
  return statistics;
}

void sequential_update::fit(layer_weights& weights, const factored_layer& bases,
                            const std::vector<matrix_rank>& ranks, std::size_t first,
                            std::size_t last, accumulator& statistics) {
  backend& be = bench_.factorizer().backend();
  wide be64(be);
  auto frame = be64.frame();
  const auto gram = statistics.gram();
  const auto target = be64.scratch(gram.rows, gram.cols);
  be64.copy(gram.view(), target);
  if (const double mix = target_mix(options_); mix > 0) {
    be64.scale(1 - mix, target);
    be64.add(mix, statistics.cross(), target);
  }
  std::optional<ressvd::whitening<backend>> metric;
  if (options_.retruncate) {
    metric = options_.method == method::tempered
                 ? ressvd::whiten_power(be, gram, power_)
                 : ressvd::whiten(be, gram, {.ridge = options_.ridge});
  }
  for (std::size_t i = first; i < last; ++i) {
    if (ranks[i].dense) continue;
    const factored_matrix& m = bases.matrices[i];
    linear& original = weights[m.module.kind];
    const auto values = original.dense.values();
    const auto w = ressvd::row_major(values.data(), m.module.out, m.module.in);
    if (metric) {
      const auto fitted = ressvd::shifted_weights(be, w, gram, target, options_.ridge);
      const auto basis =
          ressvd::truncated_svd(be, fitted.view(), {}, metric->metric(), {.rank = ranks[i].rank});
      original = linear_of(be, ressvd::slice(be, fitted.view(), basis, ranks[i].rank), original);
      continue;
    }
    auto pair = bench_.factorizer().slice(m, original, ranks[i].rank);
    const int rounds = options_.method == method::adasvd ? options_.adasvd_iterations : 1;
    for (int round = 0; round < rounds; ++round) {
      ressvd::update_left(be, w, pair, gram, target);
      if (options_.method == method::adasvd) ressvd::update_right(be, w, pair);
    }
    original = linear_of(be, pair, original);
  }
}

layer_weights sequential_update::update(std::int64_t layer, const std::vector<matrix_rank>& ranks) {
  layer_weights weights = bench_.model().layer(layer);
  const auto compressed = [](const matrix_rank& r) { return !r.dense; };
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
        auto statistics = shifted_statistics(layer, weights, module.group, module.in);
        fit(weights, bases, ranks, first, last, statistics);
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
