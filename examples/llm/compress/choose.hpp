// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "compress/calibration.hpp"
#include "compress/plan.hpp"
#include "compress/workbench.hpp"

namespace ressvd_llm {

// The probe of one matrix.
struct probed_matrix {
  std::string prefix;
  std::int64_t rank = 0;
  double divergence = 0; // mean KL of the logits with this matrix alone at that rank
  double sensitivity = 0;
};

struct chosen_ranks {
  model_ranks ranks;
  std::optional<std::int64_t> last_layers;
  // The final-layer error ‖h−ĥ‖/‖h‖ on the search samples of every k that was tried.
  std::vector<ressvd::scored_layer_candidate> search;
  std::vector<double> layer_ratios; // by importances
  std::vector<probed_matrix> probes;
  double predicted_loss = 0; // of the sensitivities' additive model
  double loss_bound = 0;
};

// The ranks of all matrices, by the allocation that the options name. `ratio` is that of the
// matrices; `candidates` those that bases were made for.
chosen_ranks choose_ranks(workbench& bench, const compress_options& options, double ratio,
                          const std::vector<ressvd::layer_candidate>& candidates,
                          const sample_set& calibration);

} // namespace ressvd_llm
