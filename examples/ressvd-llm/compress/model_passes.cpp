// SPDX-License-Identifier: Apache-2.0
#include "compress/model_passes.hpp"

#include <cstddef>

#include "model/evaluation.hpp"

namespace ressvd_llm {

double relative_error(const hidden_states& a, const hidden_states& b) {
  relative_error_sum sum;
  sum.add(a, b);
  return sum.value();
}

hidden_states model_passes::embed(const sample_set& samples) {
  hidden_states hidden(static_cast<std::size_t>(samples.tokens() * config().hidden_size));
  engine_.embed(model_.outer(), samples.ids, samples.length, hidden.data());
  return hidden;
}

void model_passes::run(const layer_weights& weights, hidden_states& hidden, std::int64_t length,
                       const input_observer* observer) {
  const auto tokens = static_cast<std::int64_t>(hidden.size()) / config().hidden_size;
  engine_.layer(weights, hidden.data(), tokens, length, observer);
}

void model_passes::run_original(std::int64_t layer, hidden_states& hidden, std::int64_t length,
                                const input_observer* observer) {
  run(model_.layer(layer), hidden, length, observer);
}

hidden_states model_passes::final_original(const sample_set& samples) {
  hidden_states hidden = embed(samples);
  for (std::int64_t layer = 0; layer < config().layers; ++layer)
    run_original(layer, hidden, samples.length);
  return hidden;
}

double model_passes::mean_divergence(const hidden_states& original, const hidden_states& other) {
  const std::int64_t width = config().hidden_size;
  const std::int64_t vocab = config().vocab;
  const auto tokens = static_cast<std::int64_t>(original.size()) / width;
  std::vector<float> changed;
  double sum = 0;
  for_each_logits(model_, engine_, original.data(), tokens,
                  [&](const float* reference, std::int64_t first, std::int64_t rows) {
                    changed.resize(static_cast<std::size_t>(rows * vocab));
                    engine_.logits(model_.outer(), other.data() + first * width, rows,
                                   changed.data());
                    for (const double kl : kl_divergences(reference, changed.data(), rows, vocab))
                      sum += kl;
                  });
  return sum / static_cast<double>(tokens);
}

} // namespace ressvd_llm
