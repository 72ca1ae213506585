// SPDX-License-Identifier: Apache-2.0
//
// What is kept of a layer between factoring and writing: for every matrix an orthonormal basis that
// serves all ranks, and the energies that give both losses at any rank.
#pragma once

#include <cstdint>
#include <vector>

#include <ressvd/compiled.hpp>

#include "compress/compression_report.hpp"
#include "compress/options.hpp"
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

// What becomes of the matrix at a rank.
matrix_report report_of(const factored_matrix& m, const ressvd::rank_choice& choice,
                        const compress_options& options);

} // namespace ressvd_llm
