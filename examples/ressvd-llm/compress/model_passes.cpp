// SPDX-License-Identifier: Apache-2.0
#include "compress/model_passes.hpp"

#include <utility>

#include "model/evaluation.hpp"

namespace ressvd_llm {

double relative_error(const hidden_states& a, const hidden_states& b) {
  relative_error_sum sum;
  sum.add(a, b);
  return sum.value();
}

model_passes::model_passes(const language_model& model)
    : model_(model), engine_(std::make_unique<cpu_forward>(model.config())) {}

model_passes::model_passes(const language_model& model, std::unique_ptr<forward_engine> engine)
    : model_(model), engine_(std::move(engine)), is_host_(false) {}

model_passes& model_passes::on_host() {
  if (is_host_) return *this;
  if (!host_) host_ = std::make_unique<model_passes>(model_);
  return *host_;
}

hidden_states model_passes::embed(const sample_set& samples) {
  return engine_->embed(model_.outer(), samples.ids, samples.length);
}

void model_passes::run(const layer_weights& weights, hidden_states& hidden, std::int64_t length,
                       const input_observer* observer) {
  engine_->layer(weights, hidden, length, observer);
}

void model_passes::run_original(std::int64_t layer, hidden_states& hidden, std::int64_t length,
                                const input_observer* observer) {
  // On a card the next layer's weights can be on their way meanwhile.
  if (!is_host_ && layer + 1 < config().layers) engine_->announce(model_.layer(layer + 1));
  run(model_.layer(layer), hidden, length, observer);
}

hidden_states model_passes::final_original(const sample_set& samples) {
  hidden_states hidden = embed(samples);
  for (std::int64_t layer = 0; layer < config().layers; ++layer)
    run_original(layer, hidden, samples.length);
  return hidden;
}

double model_passes::mean_divergence(const hidden_states& original, const hidden_states& other) {
  engine_matrix changed;
  double sum = 0;
  for_each_logits(model_, *engine_, original,
                  [&](const engine_matrix& reference, std::int64_t first) {
                    engine_->logits(model_.outer(), other, first, reference.rows(), changed);
                    for (const double kl : kl_divergences(reference, changed))
                      sum += kl;
                  });
  return sum / static_cast<double>(original.rows());
}

} // namespace ressvd_llm
