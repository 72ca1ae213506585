// SPDX-License-Identifier: Apache-2.0
#pragma once

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

  std::uint64_t total() const { return hidden_states + weights + grams + factoring + forward; }
};

memory_estimate estimate_memory(const compress_options& options, const model_config& config,
                                std::int64_t window_length, bool weights_in_memory,
                                std::uint64_t model_parameters);

// The most memory this process has had resident so far, in bytes.
std::uint64_t peak_memory();

} // namespace ressvd_llm
