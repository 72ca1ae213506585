// SPDX-License-Identifier: Apache-2.0
//
// The part of a compression that runs on a backend of the library: sums of the inputs' statistics,
// factoring, slicing, refitting. Host arrays go in and come out, so the passes over the model do
// not know which backend it is.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "compress/compression_report.hpp"
#include "compress/curvature_store.hpp"
#include "compress/factored_layer.hpp"
#include "compress/model_ranks.hpp"
#include "compress/options.hpp"
#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/engine_matrix.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// One layer being factored: first the statistics of its inputs, then all its matrices.
class layer_factoring {
 public:
  virtual ~layer_factoring() = default;

  // Adds activations that enter the matrices of an input: on the host, or in the memory of the
  // engine's backend.
  virtual void observe(const layer_input& input, const activation_view& x) = 0;

  // The statistics of such an input from elsewhere, in place of all observations.
  virtual void take(const layer_input& input, const ressvd::gram_state& state) = 0;

  // What gradients say of the layer's matrices, in the order of linear_modules.
  virtual void take(std::vector<matrix_curvature> curvature) = 0;

  // The matrices for which some rank is wanted, factored; the others empty. The statistics of each
  // input are released as soon as its matrices are factored. Where no token reached an expert, its
  // inputs count as white: the metric is plain, and so says the report.
  virtual std::vector<factored_module> factor(const layer_weights& weights,
                                              const std::vector<rank_list>& wanted) = 0;
};

// An input that the compressed prefix produces, and the matrices that read it fitted to it.
class shifted_refit {
 public:
  virtual ~shifted_refit() = default;

  // `original`: the same tokens in the original model; null where the target is the shifted
  // inputs' own outputs.
  virtual void observe(const float* x, const float* original, std::int64_t tokens) = 0;

  // After all observations, the two factors in place of the original matrix: those of m updated in
  // closed form, or the matrix truncated anew (`curvature` null where no method asks for it).
  virtual linear update(const factored_module& m, const linear& original,
                        const ressvd::rank_choice& choice) = 0;
  virtual linear truncate(const linear& original, const matrix_curvature* curvature,
                          const ressvd::rank_choice& choice) = 0;
};

// H = Σ g·gᵀ of the loss's gradients g at the outputs of a layer's matrices.
class output_curvature {
 public:
  virtual ~output_curvature() = default;

  // Adds gradients at a matrix's output, tokens × out.
  virtual void observe(const matrix_place& place, const float* g, std::int64_t tokens,
                       std::int64_t out) = 0;

  // The sums of the matrix, which are released; none without an observation.
  virtual ressvd::gram_state take(const matrix_place& place) = 0;
};

class factoring_engine {
 public:
  virtual ~factoring_engine() = default;

  virtual std::unique_ptr<layer_factoring> begin_layer(const model_config& config,
                                                       std::int64_t layer,
                                                       const ressvd::any_method& method) = 0;

  virtual std::unique_ptr<output_curvature> begin_curvature(std::int64_t layer) = 0;

  // The two factors of a matrix at a rank, in place of `original`.
  virtual linear slice(const factored_module& m, const linear& original,
                       const ressvd::rank_choice& choice) = 0;

  virtual std::unique_ptr<shifted_refit> begin_refit(std::int64_t features,
                                                     const ressvd::any_method& method,
                                                     const ressvd::shifted_options& options) = 0;

  virtual fallback_report fallbacks() const = 0;
};

// KFAC-SVD with the options of a run.
ressvd::methods::kfac_svd curvature_metric(const compress_options& options);

// The library's method with the options of a run; without a power, tempered whitening gets 1.
// Throws std::invalid_argument for a name that no method has.
ressvd::any_method method_of(const compress_options& options);

// An engine on the CPU, or on the card that is given. Throws file_error for the Fisher file.
std::unique_ptr<factoring_engine> make_factoring_engine(const compress_options& options,
                                                        const std::shared_ptr<device>& card = {});

// The same on a card; only where the CUDA backend is built in.
std::unique_ptr<factoring_engine> make_cuda_factoring_engine(const compress_options& options,
                                                             const device& card);

} // namespace ressvd_llm
