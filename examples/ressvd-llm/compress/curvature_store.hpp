// SPDX-License-Identifier: Apache-2.0
//
// What a backward pass found at the outputs of a layer's matrices, on disk:
// curvature-LAYER.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <utility>
#include <vector>

#include <ressvd/compiled.hpp>

#include "io/checkpoint.hpp"
#include "io/config.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// g is the loss's gradient at the output of the matrix for one token, x the input there.
struct matrix_curvature {
  linear_module module;
  ressvd::gram_state outputs; // H = Σ g·gᵀ over the tokens; the diagonal is Σ g_i²
  // FWSVD's: the mean of g_i²·‖x‖² over tokens, out values. A token's gradient of W is g·xᵀ, so
  // that this is exactly Σ_j of the mean squares of the tokens' gradients.
  std::vector<double> row_importance;
};

// What a file of gradients' sums says of a layer's matrices, in the order of linear_modules:
// --gradients FILE, as docs/checkpoint_format.md describes it. Throws file_error.
std::vector<matrix_curvature> read_gradients(const checkpoint& source, const model_config& config,
                                             std::int64_t layer);

// A layer counts as done when its file exists: it appears when it is complete.
class curvature_store {
 public:
  explicit curvature_store(std::filesystem::path directory) : directory_(std::move(directory)) {}

  bool contains(std::int64_t layer) const;
  void save(std::int64_t layer, const std::vector<matrix_curvature>& matrices) const;
  // In the order of linear_modules. Throws file_error.
  std::vector<matrix_curvature> load(const model_config& config, std::int64_t layer) const;

 private:
  std::filesystem::path file(std::int64_t layer) const;

  std::filesystem::path directory_;
};

} // namespace ressvd_llm
