// SPDX-License-Identifier: Apache-2.0
//
// The sequential fit: layer by layer, and within a layer group by group, the factors are updated in
// closed form for the inputs that everything compressed before them really produces, or the
// matrices truncated anew for those inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "compress/factored_model.hpp"
#include "compress/model_passes.hpp"
#include "compress/model_ranks.hpp"
#include "compress/options.hpp"
#include "compress/samples.hpp"

namespace ressvd_llm {

// Holds the calibration samples' hidden states of the compressed model, and those of the original
// where the target needs them. Each layer costs one pass over the samples for every group of inputs
// that feeds a compressed matrix, and one more to move on. Of an expert's tokens those count that
// both models send to it, and where there are none its factors stay as they are. The constructor's
// arguments must outlive the object.
class sequential_refit {
 public:
  sequential_refit(model_passes& passes, const factored_model& factored,
                   const compress_options& options, const sample_set& samples);

  // The next layer, the first one to begin with, refitted.
  layer_weights fit(const layer_ranks& ranks);

  // Passes on through what has become of that layer.
  void pass(const layer_weights& compressed);

 private:
  // The inputs of a group that have tokens, by layer_input::index.
  using observed_inputs = std::map<std::size_t, std::unique_ptr<shifted_refit>>;
  observed_inputs observe(const layer_weights& weights, const std::vector<layer_input>& inputs);

  model_passes& passes_;
  const factored_model& factored_;
  const compress_options& options_;
  std::int64_t length_;
  std::int64_t layer_ = 0;
  hidden_states compressed_;
  hidden_states original_; // empty where the target is the shifted inputs' own
};

} // namespace ressvd_llm
