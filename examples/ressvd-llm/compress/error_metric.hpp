// SPDX-License-Identifier: Apache-2.0
//
// How much the model's loss minds an error of a block's output: to second order dᵀHd for an error d
// at a position, H the mean of ggᵀ over positions, g the loss's gradient at the block's output.
#pragma once

#include <cstdint>
#include <vector>

#include "compress/model_passes.hpp"
#include "compress/samples.hpp"
#include "model/linear.hpp"

namespace ressvd_llm {

// M = (1 − share)·I + share·H/mean(diag H) for the output of every layer, hidden_size² numbers
// each; I where no gradient comes through. One backward pass over the samples.
std::vector<weight_matrix> error_metrics(model_passes& passes, const sample_set& samples,
                                         std::uint64_t seed, double share);

} // namespace ressvd_llm
