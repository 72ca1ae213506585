// SPDX-License-Identifier: Apache-2.0
//
// The original model, and windows of text on their way through its layers or through others in
// their place.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compress/samples.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

// Hidden states of some windows, tokens × hidden_size.
using hidden_states = engine_matrix;

// ‖a − b‖_F / ‖a‖_F, in double.
double relative_error(const hidden_states& a, const hidden_states& b);

// The model must outlive the object.
class model_passes {
 public:
  // On the CPU, or where the engine, made for the model's config, has it.
  explicit model_passes(const language_model& model);
  model_passes(const language_model& model, std::unique_ptr<forward_engine> engine);

  const model_config& config() const { return model_.config(); }
  const language_model& model() const { return model_; }

  hidden_states embed(const sample_set& samples);
  // One layer, in place, over windows of this length: the original, or another one.
  void run_original(std::int64_t layer, hidden_states& hidden, std::int64_t length,
                    const input_observer* observer = nullptr);
  void run(const layer_weights& weights, hidden_states& hidden, std::int64_t length,
           const input_observer* observer = nullptr);
  hidden_states final_original(const sample_set& samples);

  // Mean KL divergence of the next-token distributions, from final hidden states.
  double mean_divergence(const hidden_states& original, const hidden_states& other);

  // What an observer was shown, on the host.
  std::vector<float> download(const activation_view& x) { return engine_->download(x); }

  // Passes over the same model on the CPU, for what computes with states there.
  model_passes& on_host();

 private:
  const language_model& model_;
  std::unique_ptr<forward_engine> engine_;
  std::unique_ptr<model_passes> host_; // where the engine is not the CPU's
  bool is_host_ = true;
};

} // namespace ressvd_llm
