// SPDX-License-Identifier: Apache-2.0
//
// What is kept of a layer between factoring and writing: for every matrix an orthonormal basis that
// serves all ranks, and the energies that give both losses at any rank. Kept on disk, since a large
// model's bases do not fit in memory beside its weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <ressvd/compiled.hpp>

#include "io/checkpoint.hpp"
#include "model/layer.hpp"

namespace ressvd_llm {

// The second stage of residual compensation for one rank.
struct residual_stage {
  std::int64_t rank = 0; // of both stages together
  std::int64_t intermediate_rank = 0;
  std::vector<float> q;         // rows of the basis × (rank − intermediate_rank), column-major
  double weight_energy = 0;     // ‖qᵀW‖²
  double activation_energy = 0; // ‖qᵀWX‖²
};

struct factored_matrix {
  linear_module module;
  // On which side of W the basis acts: left Ŵ = QQᵀW, right Ŵ = WQQᵀ.
  ressvd::projection acts = ressvd::projection::left;
  std::int64_t rank = 0; // the largest that can be sliced
  std::vector<float> q;  // (out or in) × rank, column-major
  std::vector<double> singular_values;
  std::vector<double> weight_energies;     // what each basis vector takes off ‖W‖²
  std::vector<double> activation_energies; // and off ‖WX‖²
  double weight_total = 0;                 // ‖W‖²
  double activation_total = 0;             // ‖WX‖²
  std::vector<residual_stage> residual_stages;
  ressvd::whitening_report whitening;
  ressvd::svd_report svd;
  double seconds = 0;

  std::int64_t basis_rows() const {
    return acts == ressvd::projection::left ? module.out : module.in;
  }
  const residual_stage* stage_for(std::int64_t wanted) const;
};

struct factored_layer {
  std::int64_t index = 0;
  double similarity = 0; // mean cosine of the layer's input and output over tokens
  std::vector<factored_matrix> matrices;
};

// Where the layers of a run lie. A layer counts as done when its file is complete.
class layer_store {
 public:
  explicit layer_store(std::filesystem::path directory) : directory_(std::move(directory)) {}

  bool contains(std::int64_t layer) const;
  void save(const factored_layer& layer) const;
  factored_layer load(const model_config& config, std::int64_t layer) const;
  // Without the bases: enough for ranks, spectra and reports.
  factored_layer load_summary(const model_config& config, std::int64_t layer) const;

 private:
  std::filesystem::path tensors(std::int64_t layer) const;
  std::filesystem::path summary(std::int64_t layer) const;

  std::filesystem::path directory_;
};

} // namespace ressvd_llm
