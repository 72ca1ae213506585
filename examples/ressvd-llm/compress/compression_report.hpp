// SPDX-License-Identifier: Apache-2.0
//
// What a run of compress found and measured, and its JSON form: the file that --json writes and
// that `table` and examples/plot.py read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace ressvd_llm {

// One number of last layers and what became of the model.
struct last_layers_trial {
  std::int64_t last_layers = 0;
  double layer_ratio = 0;
  double final_layer_error = 0; // ‖h−ĥ‖/‖h‖ on the search samples
};

// One probe of one matrix.
struct probe_report {
  std::string name;
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

// Ranks by the curvature at the compressed model, which changes a matrix's sensitivity by the ratio
// of its gradients' energies to this power.
struct curvature_round {
  std::int64_t round = 0;
  double trust = 0;
  double divergence = 0; // on the search samples
  bool accepted = false;
};

// How all probes together predict the loss of the ranks chosen.
struct loss_prediction {
  double predicted = 0; // by the additive model of sensitivities or of the curvature
  double bound = 0;     // below which no ranks within the budget can bring it
  double measured = 0;  // mean KL of the logits on the probe or search samples at these ranks
};

// How the ranks were chosen; each allocation fills its own part.
struct allocation_report {
  std::optional<std::int64_t> last_layers;
  std::vector<last_layers_trial> search;
  std::vector<double> layer_ratios; // by importances
  std::vector<probe_report> probes;
  std::optional<loss_prediction> loss; // by sensitivity and fisher
  std::vector<probing_round> rounds;
  std::vector<curvature_round> curvature_rounds;
};

struct loss_report {
  double absolute = 0;
  double relative = 0;
};

struct whitening_summary {
  std::string path; // "cholesky", "damped cholesky", …
  double damping = 0;
  double relative_damping = 0;
  double condition = 0; // infinite for a singular Gram
};

// What became of one matrix of rank `rank`.
struct factors_report {
  std::int64_t rank = 0;
  std::int64_t intermediate_rank = 0;
  // Known where the factors are the basis' projection: not after a refit, and the activation loss
  // only where the Gram was still there.
  std::optional<loss_report> weight_loss;
  std::optional<loss_report> activation_loss;
  std::optional<double> curvature_loss; // nats a token, to second order: kfac-svd
  std::optional<whitening_summary> whitening;
  std::int64_t numerical_rank = 0;
  double seconds = 0; // of its factorisation
};

struct matrix_report {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::optional<factors_report> factors; // nothing for a matrix that stays as it is
};

// Relative squared errors Σ(o − t)²/Σt² of a block's output.
struct block_error {
  double training = 0;
  double heldout = 0;
};

// What refinement made of one block.
struct refined_block {
  std::int64_t layer = 0;
  block_error before; // of the closed form
  block_error after;
  std::int64_t epochs = 0;         // before the state that was kept; 0: it is the closed form
  std::int64_t trained_epochs = 0; // that were run to their end
  std::int64_t halvings = 0;       // of the rate, each after steps that were undone
  double rate = 0;                 // the highest in the end
  double seconds = 0;
};

struct refinement_report {
  std::int64_t training_windows = 0;
  std::int64_t heldout_windows = 0;
  std::vector<refined_block> blocks; // those with compressed matrices
};

// What was lost on text that the calibration has not seen.
struct heldout_report {
  std::int64_t windows = 0;
  std::int64_t tokens = 0;
  double original_perplexity = 0;
  double compressed_perplexity = 0;
  double divergence = 0;
};

struct power_trial {
  double power = 0;
  double heldout_divergence = 0;
};

struct stage_time {
  std::string stage;
  double seconds = 0;
};

// Decompositions on which the backend's first routine failed.
struct fallback_report {
  std::int64_t count = 0;
  std::string last; // which matrix, the routine that served, how the other one failed
};

struct compression_report {
  std::string program; // with its version
  std::string model;
  std::string output;
  std::string method;
  std::string allocation;
  std::string options; // all that the output's bytes depend on: fingerprint()
  struct {
    std::int64_t count = 0;
    std::int64_t length = 0;
    std::string source;
    std::int64_t self = 0; // of them written by the model, beside those of a file
  } samples;
  double requested_ratio = 0;
  double achieved_ratio = 0;       // of the layers' matrix parameters
  std::optional<double> shortfall; // what is missing to the ratio, where that is missed
  allocation_report choice;
  std::optional<double> power;          // of tempered whitening
  std::vector<power_trial> power_curve; // where it was searched
  std::vector<matrix_report> matrices;
  std::optional<refinement_report> refinement;
  std::optional<heldout_report> heldout;
  bool without_tokenizer = false;              // a GGUF file that gives ids no text
  std::optional<std::string> evaluation_error; // the output is complete, its evaluation failed
  std::vector<stage_time> seconds;
  struct {
    std::uint64_t program = 0; // before the run
    std::uint64_t estimate = 0;
    std::uint64_t peak = 0;
    std::uint64_t card_estimate = 0; // 0 without a card
    std::uint64_t card_peak = 0;
  } memory;                        // bytes
  std::uint64_t disk_estimate = 0; // bytes, in the partial output
  fallback_report fallbacks;
  std::int64_t parameters = 0; // of the output
  std::uint64_t bytes = 0;     // of its tensors' files

  double total_seconds() const;
  // "retruncate", "update" or nothing: how the factors were fitted to the compressed layers'
  // inputs.
  std::string refit() const;
};

// "refined 9 of 12 blocks in 60 s: …": how the mean errors fell.
std::string summary_of(const refinement_report& report);

nlohmann::ordered_json to_json(const compression_report& report);
nlohmann::ordered_json to_json(const refinement_report& report);
nlohmann::ordered_json to_json(const refined_block& block);

refined_block refined_block_from_json(const nlohmann::json& json);

// Reads what this version or an earlier one wrote; keys that were not always there may be missing.
// Throws nlohmann::json::exception for anything else.
compression_report compression_report_from_json(const nlohmann::json& json);

} // namespace ressvd_llm
