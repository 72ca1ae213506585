// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <ressvd/layer_ratio/rank_choice.hpp>

#include "io/dtype.hpp"
#include "model/device.hpp"

namespace ressvd_llm {

// How the compression ratio is spread over the matrices.
enum class allocation {
  uniform,     // every matrix alike
  last_layers, // the last k layers alike, the others intact
  importance,  // a ratio per layer from the similarity of its input and output (AdaSVD)
  sensitivity, // a rank per matrix from probes of the model
  fisher       // a rank per matrix from the curvature of the loss
};

enum class output_format {
  factored,
  dense,
  gguf,
  gguf_adapter // a quantised GGUF file and an adapter beside it, see compress/correct.hpp
};

enum class window_choice { random, first };

// Gradient steps on the factors of one block after the other, see compress/block_refinement.hpp.
struct refine_options {
  std::int64_t epochs = 0;                  // 0: none
  std::optional<std::int64_t> samples = {}; // absent: all of calibration, 256 at most
  std::int64_t batch = 8;                   // windows of a step
  double rate = 1e-3;                       // the highest
  double decay = 0;                         // towards the closed form
  double anchor = 0;                        // share of the original block on the compressed prefix
  std::int64_t patience = 0;                // epochs without a better state; 0: all are run
  bool dense = false;                       // matrices that stayed dense too
  bool norms = false;                       // scales of norms too
};

struct compress_options {
  std::filesystem::path model;
  std::filesystem::path output;
  double ratio = 0.2;
  bool count_all = false;        // the ratio is one of all parameters, embeddings and head included
  std::string method = "ressvd"; // a name that ressvd::method_named knows
  ressvd_llm::allocation allocation = ressvd_llm::allocation::last_layers;
  std::optional<std::int64_t> last_layers; // k; absent: search
  std::int64_t step = 1;                   // of the search over k
  std::optional<double> beta;              // absent: ressvd 0.05, kfac-svd 0
  double asvd_alpha = 0.5;
  std::optional<double> power;     // tempered; absent: chosen on held-out samples
  double input_power = 1;          // kfac-svd: of the inputs' Gram
  double output_power = 1;         // kfac-svd: of the curvature
  double curvature_ridge = 0.01;   // of the curvature, over the mean of its diagonal
  std::filesystem::path fisher;    // fwsvd
  std::filesystem::path grams;     // of the matrices' inputs, in place of those of the samples
  std::filesystem::path gradients; // the curvature, in place of that of the samples
  bool text_labels = false;        // curvature: the samples' own next tokens in place of drawn ones
  std::optional<std::int64_t> curvature_samples; // absent: a quarter of them
  bool update = false;     // closed-form update from the inputs the compressed prefix makes
  bool retruncate = false; // each matrix truncated anew, fitted to those inputs
  // 0: outputs for those inputs, 1: the original outputs; between: a mix. Absent: 0 for the update,
  // 1 for the new truncation.
  std::optional<double> update_target;
  double ridge = 0.01; // of the new truncation, towards the original matrix
  refine_options refine;
  int adasvd_iterations = 3;
  std::optional<double> minimum_retention; // adasvd's mrr; absent: 0.8 of the mean

  std::filesystem::path calibration; // empty: the model's own samples
  window_choice windows = window_choice::random;
  std::int64_t samples = 256;
  std::int64_t self_samples = 0; // that the model writes, mixed in among those of a file
  std::int64_t seqlen = 2048;    // at most the model's context
  std::int64_t search_samples = 16;
  std::int64_t heldout_samples = 16;
  std::int64_t probe_samples = 8;
  int probe_ranks = 2; // at which every matrix is probed: 2 fit a curvature
  // Of probes or of the curvature, the later ones at the solution of those before. Absent: 1,
  // fisher 2.
  std::optional<int> rounds;

  backend_choice backend = backend_choice::cpu; // of the model's passes and of the factoring
  device_options device;                        // what that is, on a card
  bool profile = false;                         // seconds by stage
  std::int64_t rank_multiple = 1;
  ressvd::factored_form form = ressvd::factored_form::pivoted;
  output_format format = output_format::factored;
  std::optional<dtype> type; // absent: the model's
  std::uint64_t seed = 0;
  bool resume = false;
  std::string resume_command; // that goes on from where this run is interrupted; for messages
};

inline int rounds_of(const compress_options& o) {
  return o.rounds.value_or(o.allocation == allocation::fisher ? 2 : 1);
}

const char* name_of(allocation a);
const char* name_of(output_format format);
const char* name_of(ressvd::factored_form form);

// The factors are fitted to what the compressed layers before them produce.
inline bool refits(const compress_options& o) {
  return o.update || o.retruncate || o.method == "adasvd";
}

// The factors are trained after that.
inline bool refines(const compress_options& o) {
  return o.refine.epochs > 0;
}

// The loss's gradients at the matrices' outputs are asked for.
inline bool needs_curvature(const compress_options& o) {
  return o.method == "kfac-svd" || o.allocation == allocation::fisher ||
         (o.method == "fwsvd" && o.fisher.empty());
}

inline double target_mix(const compress_options& o) {
  return o.update_target.value_or(o.retruncate ? 1.0 : 0.0);
}

// Those of a file and those that the model writes.
inline std::int64_t all_samples(const compress_options& o) {
  return o.samples + o.self_samples;
}

// How many calibration samples pass through the model. If Grams come from a file, these are the
// samples that the choice of ranks and the fits ask for.
std::int64_t samples_needed(const compress_options& options);
// How many of them the refinement has, those that it holds out among them.
std::int64_t samples_of_refinement(const compress_options& options);
// How many of them pass backwards for the curvature.
std::int64_t samples_of_curvature(const compress_options& options);

// All options that the output's bytes depend on, as one line of JSON; those not given are absent.
std::string fingerprint(const compress_options& options);

} // namespace ressvd_llm
