// SPDX-License-Identifier: Apache-2.0
//
// The part of a compression that runs on a backend of the library: sums of the inputs' statistics,
// factoring, slicing, fitting. Host arrays go in and come out, so the passes over the model do not
// know which backend it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compress/factored_layer.hpp"
#include "compress/options.hpp"
#include "compress/model_ranks.hpp"
#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/forward.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// Decompositions on which the backend's first routine failed.
struct fallback_report {
  std::int64_t count = 0;
  std::string last; // which matrix, the routine that served, how the other one failed
};

class compressor {
 public:
  virtual ~compressor() = default;

  // The power of tempered whitening from now on.
  virtual void temper(double power) = 0;

  // Adds tokens × features activations that enter the matrices of a group of layer `layer`.
  virtual void observe(std::int64_t layer, input_group group, const float* x, std::int64_t tokens,
                       std::int64_t features) = 0;

  // The statistics of such a group from elsewhere, in place of all observations.
  virtual void take(std::int64_t layer, input_group group, const ressvd::gram_state& state) = 0;

  // Bases of all matrices that some candidate compresses, from what was observed of the layer. The
  // statistics of each input are released as soon as its matrices are factored.
  virtual factored_layer factor(std::int64_t layer, const model_config& config,
                                const layer_weights& weights,
                                const std::vector<std::vector<std::int64_t>>& wanted) = 0;

  // The two factors of a matrix at a rank, in place of `original`.
  virtual linear slice(const factored_matrix& m, const linear& original, std::int64_t rank) = 0;

  // Starts the statistics of an input that the compressed prefix produces, with those of the
  // original model where `cross`. `name` is for messages.
  virtual void begin_shifted(const std::string& name, std::int64_t features, bool cross) = 0;
  // `original`: the same tokens in the original model, null without cross.
  virtual void observe_shifted(const float* x, const float* original, std::int64_t tokens,
                               std::int64_t features) = 0;
  // Replaces matrices first to last, which read that input, by factors fitted to it.
  virtual void fit(layer_weights& weights, const factored_layer& bases,
                   const std::vector<ressvd::rank_choice>& ranks, std::size_t first,
                   std::size_t last) = 0;

  virtual fallback_report fallbacks() const = 0;
};

// On the backend that the options name. The options must outlive the object. Throws usage_error
// where the backend is not built in.
std::unique_ptr<compressor> make_compressor(const compress_options& options,
                                            std::optional<checkpoint> fisher);

// The same on the GPU; only where the CUDA backend is built in.
std::unique_ptr<compressor> make_cuda_compressor(const compress_options& options,
                                                 std::optional<checkpoint> fisher);

} // namespace ressvd_llm
