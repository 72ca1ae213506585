// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "compress/samples.hpp"
#include "compress/model_ranks.hpp"
#include "compress/model_passes.hpp"

namespace ressvd_llm {

// The probe of one matrix.
struct probed_matrix {
  std::string prefix;
  std::int64_t rank = 0;
  double divergence = 0; // mean KL of the logits with this matrix alone at that rank
  double sensitivity = 0;
  double exponent = 1; // of divergence against truncated energy, from two probes
};

// A solution that a further round of probes led to.
struct probing_round {
  std::int64_t round = 0;
  double trust = 0;
  double heldout_divergence = 0;
  bool accepted = false;
};

struct chosen_ranks {
  model_ranks ranks;
  std::optional<std::int64_t> last_layers;
  // The final-layer error ‖h−ĥ‖/‖h‖ on the search samples of every k that was tried.
  std::vector<ressvd::scored_layer_candidate> search;
  std::vector<double> layer_ratios; // by importances
  std::vector<probed_matrix> probes;
  std::vector<probing_round> rounds;
  double predicted_loss = 0; // of the sensitivities' additive model
  double loss_bound = 0;     // below which no ranks within the budget can bring it
  double measured_loss = 0;  // mean KL of the logits on the probe samples at these ranks
};

// The ranks of all matrices, by the allocation that the options name. `ratio` is that of the
// matrices; `candidates` those that bases were made for.
chosen_ranks choose_ranks(workbench& bench, const compress_options& options, double ratio,
                          const std::vector<ressvd::layer_candidate>& candidates,
                          const calibration_samples& samples);

} // namespace ressvd_llm
