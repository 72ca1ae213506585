// SPDX-License-Identifier: Apache-2.0
//
// A layer between factoring and writing: the state from which the library gives the factors of
// every matrix at any rank, and both losses at all of them.
#pragma once

#include <cstdint>
#include <vector>

#include <ressvd/compiled.hpp>

#include "compress/compression_report.hpp"
#include "compress/options.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

struct factored_module {
  linear_module module;
  ressvd::factored_state<float> state; // of rank 0 where no rank was wanted
  // What is lost at rank r is Σ_{i>r} of their squares, in nats a token to second order; where the
  // curvature is known.
  std::vector<double> curvature_spectrum = {};
};

struct factored_layer {
  std::int64_t index = 0;
  double similarity = 0; // mean cosine of the layer's input and output over tokens
  std::vector<factored_module> matrices;
};

// What becomes of the matrix at a rank.
matrix_report report_of(const factored_module& m, const ressvd::rank_choice& choice,
                        const compress_options& options);

} // namespace ressvd_llm
