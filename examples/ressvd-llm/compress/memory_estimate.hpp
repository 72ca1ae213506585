// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "compress/options.hpp"
#include "io/config.hpp"

namespace ressvd_llm {

// Bytes that a compression will hold at its peak, by what they are for.
struct memory_estimate {
  std::uint64_t hidden_states = 0; // of the calibration and search samples
  std::uint64_t weights = 0;       // the whole model as float32, or one layer of a large one
  std::uint64_t grams = 0;         // of one layer's inputs, with one whitening
  std::uint64_t factoring = 0;     // of the largest matrix: copies, eigenvectors, basis
  std::uint64_t forward = 0;       // scratch of the forward pass
  std::uint64_t sampling = 0;      // keys and values while the model writes its samples
  std::uint64_t curvature = 0;     // all that gathering it takes, weights included
  std::uint64_t refit = 0;         // inputs side by side in both models, and a layer's curvature
  std::uint64_t refinement = 0;    // of one block, with the states before and after it
  std::uint64_t evaluation = 0;    // all that comparing the output takes, weights of both included

  // What the program itself grows by as it runs, as measured: code that is read in, stacks, buffers
  // of products.
  static constexpr std::uint64_t running = 12 << 20;

  // Sampling and gradients are over when the rest begins, and that before the evaluation.
  std::uint64_t total() const {
    return running +
           (std::max)(
               {curvature, evaluation,
                weights + forward +
                    (std::max)({sampling, hidden_states + grams + factoring + refit, refinement})});
  }
};

memory_estimate estimate_memory(const compress_options& options, const model_config& config,
                                bool weights_in_memory, std::uint64_t model_parameters,
                                std::uint64_t output_parameters);

// Bytes that the refinement of a block on so many windows holds beside the original's weights.
std::uint64_t estimate_refinement_memory(const refine_options& options, const model_config& config,
                                         std::int64_t windows, std::int64_t window_length);

// Bytes that gathering the curvature of a model from so many windows holds at its peak (see
// compress/curvature.hpp): weights, hidden states, the sums of one layer while they are stored, and
// buffers of the passes.
std::uint64_t estimate_curvature_memory(const model_config& config, std::int64_t windows,
                                        std::int64_t window_length, bool weights_in_memory,
                                        std::uint64_t model_parameters);

// Gives back to the system what the C library keeps of freed memory, so that a stage does not hold
// what the one before it needed.
void return_freed_memory();

// The most memory this process has had resident so far, in bytes.
std::uint64_t peak_memory();

} // namespace ressvd_llm
