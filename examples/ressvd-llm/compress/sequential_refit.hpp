// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "compress/model_passes.hpp"

namespace ressvd_llm {

// The sequential fit: layer by layer, and within a layer input by input, the factors are updated in
// closed form for the inputs that everything compressed before them really produces, or the
// matrices truncated anew for those inputs. Holds the
// calibration samples' hidden states of the compressed model, and those of the original where the
// target needs them. Each layer costs one pass over the samples for every input that feeds a
// compressed matrix, and one more to move on.
class sequential_update {
 public:
  sequential_update(workbench& bench, const compress_options& options, const sample_set& samples);

  // The updated layer. Layers are taken in order, each once.
  layer_weights update(std::int64_t layer, const std::vector<ressvd::rank_choice>& ranks);

  // Passes over a layer that was updated in an earlier run.
  void skip(std::int64_t layer, const layer_weights& updated);

 private:
  void observe_shifted(std::int64_t layer, const layer_weights& weights, input_group group,
                       std::int64_t features);
  void advance(std::int64_t layer, const layer_weights& updated);

  workbench& bench_;
  std::int64_t length_;
  hidden_states compressed_;
  hidden_states original_; // empty where the target is the shifted inputs' own
};

} // namespace ressvd_llm
