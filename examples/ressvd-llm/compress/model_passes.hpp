// SPDX-License-Identifier: Apache-2.0
//
// The original model, the bases of its matrices, and the passes that compression makes over it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compress/samples.hpp"
#include "compress/factoring.hpp"
#include "compress/factored_layer.hpp"
#include "compress/gram_file.hpp"
#include "compress/options.hpp"
#include "compress/model_ranks.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

// Hidden states of some windows, tokens × hidden_size.
using hidden_states = std::vector<float>;

// ‖a − b‖_F / ‖a‖_F, in double.
double relative_error(const hidden_states& a, const hidden_states& b);

class workbench {
 public:
  workbench(const compress_options& options, const language_model& model);

  const model_config& config() const { return model_.config(); }
  const language_model& model() const { return model_; }
  forward_engine& engine() { return engine_; }
  ressvd_llm::compressor& compressor() { return *compressor_; }
  const layer_store& store() const { return *store_; }

  // Where bases go from now on, and the power of tempered whitening for them.
  void use(layer_store store, double power);

  // Passes the calibration samples through the original layers (or reads their Grams) and factors
  // what `wanted` names, except layers that the store has already.
  void factor(const sample_set& samples,
              const std::vector<std::vector<std::vector<std::int64_t>>>& wanted);

  hidden_states embed(const sample_set& samples);
  void run_original(std::int64_t layer, hidden_states& hidden, std::int64_t length,
                    const input_observer* observer = nullptr);
  void run(const layer_weights& weights, hidden_states& hidden, std::int64_t length,
           const input_observer* observer = nullptr);
  hidden_states final_original(const sample_set& samples);

  // The layer with its matrices at these ranks.
  layer_weights compressed_layer(const factored_layer& bases,
                                 const std::vector<ressvd::rank_choice>& ranks);
  layer_weights compressed_layer(std::int64_t layer, const std::vector<ressvd::rank_choice>& ranks);
  // One matrix of a layer replaced.
  void replace(layer_weights& weights, const factored_matrix& matrix, std::int64_t rank);

  // The final hidden states of the model with these ranks in layers from `first` on, from the
  // states before that layer.
  hidden_states final_compressed(hidden_states before, std::int64_t first, std::int64_t length,
                                 const model_ranks& ranks);

  // Mean KL divergence of the next-token distributions, from final hidden states.
  double mean_divergence(const hidden_states& original, const hidden_states& other);

 private:
  void read_grams(std::int64_t layer, const std::vector<std::vector<std::int64_t>>& wanted);

  const compress_options& options_;
  const language_model& model_;
  cpu_forward engine_;
  std::optional<gram_file> grams_;
  std::optional<layer_store> store_;
  std::unique_ptr<ressvd_llm::compressor> compressor_;
};

} // namespace ressvd_llm
