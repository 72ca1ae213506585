// SPDX-License-Identifier: Apache-2.0
#include "compress/model_passes.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "io/error.hpp"
#include "model/evaluation.hpp"
#include "ui/progress.hpp"

namespace ressvd_llm {
namespace {

// Σ over tokens of cos(x_t, y_t).
double cosine_sum(const hidden_states& x, const hidden_states& y, std::int64_t width) {
  const auto n = static_cast<std::size_t>(width);
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

double relative_error(const hidden_states& a, const hidden_states& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = a[i];
    const double d = x - static_cast<double>(b[i]);
    difference += d * d;
    norm += x * x;
  }
  return std::sqrt(difference / norm);
}

workbench::workbench(const compress_options& options, const language_model& model)
    : options_(options), model_(model), engine_(model.config()) {
  if (!options.grams.empty()) grams_.emplace(options.grams);
  std::optional<checkpoint> fisher;
  if (!options.fisher.empty()) fisher = checkpoint::open_file(options.fisher);
  compressor_ = make_compressor(options, std::move(fisher));
}

void workbench::use(layer_store store, double power) {
  store_ = std::move(store);
  compressor_->temper(power);
}

void workbench::factor(const sample_set& samples,
                       const std::vector<std::vector<std::vector<std::int64_t>>>& wanted) {
  const bool similarity = options_.allocation == allocation::importance;
  const bool pass = !grams_ || similarity;
  hidden_states hidden = pass ? embed(samples) : hidden_states{};
  progress bar("factoring", config().layers);
  for (std::int64_t layer = 0; layer < config().layers; ++layer) {
    const auto& ranks = wanted[static_cast<std::size_t>(layer)];
    const bool compressed =
        std::any_of(ranks.begin(), ranks.end(), [](const auto& r) { return !r.empty(); });
    if (!compressed || store_->contains(layer)) {
      if (pass) run_original(layer, hidden, samples.length);
    } else {
      const input_observer observer = [&](input_group group, const float* x, std::int64_t tokens,
                                          std::int64_t features) {
        compressor_->observe(layer, group, x, tokens, features);
      };
      const hidden_states before = similarity ? hidden : hidden_states{};
      if (grams_) read_grams(layer, ranks);
      if (pass) run_original(layer, hidden, samples.length, grams_ ? nullptr : &observer);
      factored_layer bases = compressor_->factor(layer, config(), model_.layer(layer), ranks);
      if (similarity) {
        bases.similarity = cosine_sum(before, hidden, config().hidden_size) /
                           static_cast<double>(samples.tokens());
      }
      store_->save(bases);
    }
    bar.advance();
  }
}

void workbench::read_grams(std::int64_t layer,
                           const std::vector<std::vector<std::int64_t>>& wanted) {
  for (const input_group group : wanted_inputs(config(), layer, wanted)) {
    compressor_->take(layer, group, grams_->read(config(), layer, group));
  }
}

hidden_states workbench::embed(const sample_set& samples) {
  hidden_states hidden(static_cast<std::size_t>(samples.tokens() * config().hidden_size));
  engine_.embed(model_.outer(), samples.ids, samples.length, hidden.data());
  return hidden;
}

void workbench::run(const layer_weights& weights, hidden_states& hidden, std::int64_t length,
                    const input_observer* observer) {
  const auto tokens = static_cast<std::int64_t>(hidden.size()) / config().hidden_size;
  engine_.layer(weights, hidden.data(), tokens, length, observer);
}

void workbench::run_original(std::int64_t layer, hidden_states& hidden, std::int64_t length,
                             const input_observer* observer) {
  run(model_.layer(layer), hidden, length, observer);
}

hidden_states workbench::final_original(const sample_set& samples) {
  hidden_states hidden = embed(samples);
  for (std::int64_t layer = 0; layer < config().layers; ++layer) {
    run_original(layer, hidden, samples.length);
  }
  return hidden;
}

void workbench::replace(layer_weights& weights, const factored_matrix& matrix, std::int64_t rank) {
  linear& target = weights[matrix.module.kind];
  target = compressor_->slice(matrix, target, rank);
}

layer_weights workbench::compressed_layer(const factored_layer& bases,
                                          const std::vector<ressvd::rank_choice>& ranks) {
  layer_weights weights = model_.layer(bases.index);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (!ranks[i].dense) replace(weights, bases.matrices[i], ranks[i].rank);
  }
  return weights;
}

layer_weights workbench::compressed_layer(std::int64_t layer,
                                          const std::vector<ressvd::rank_choice>& ranks) {
  const bool intact =
      std::all_of(ranks.begin(), ranks.end(), [](const ressvd::rank_choice& r) { return r.dense; });
  if (intact) return model_.layer(layer);
  return compressed_layer(store_->load(config(), layer), ranks);
}

hidden_states workbench::final_compressed(hidden_states hidden, std::int64_t first,
                                          std::int64_t length, const model_ranks& ranks) {
  for (std::int64_t layer = first; layer < config().layers; ++layer) {
    run(compressed_layer(layer, ranks[static_cast<std::size_t>(layer)]), hidden, length);
  }
  return hidden;
}

double workbench::mean_divergence(const hidden_states& original, const hidden_states& other) {
  const std::int64_t width = config().hidden_size;
  const std::int64_t vocab = config().vocab;
  const auto tokens = static_cast<std::int64_t>(original.size()) / width;
  constexpr std::int64_t rows_at_once = 512;
  std::vector<float> reference(static_cast<std::size_t>(rows_at_once * vocab));
  std::vector<float> changed(reference.size());
  double sum = 0;
  for (std::int64_t t = 0; t < tokens; t += rows_at_once) {
    const std::int64_t rows = (std::min)(rows_at_once, tokens - t);
    engine_.logits(model_.outer(), original.data() + t * width, rows, reference.data());
    engine_.logits(model_.outer(), other.data() + t * width, rows, changed.data());
    for (const double kl : kl_divergences(reference.data(), changed.data(), rows, vocab))
      sum += kl;
  }
  return sum / static_cast<double>(tokens);
}

} // namespace ressvd_llm
