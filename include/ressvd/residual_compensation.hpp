// SPDX-License-Identifier: Apache-2.0
//
// Residual compensation: of a rank budget r, the intermediate rank r_i = r − r_r goes to the
// whitened truncation, and the residual rank r_r to what that truncation leaves of W:
//   W_i = U_i·U_iᵀ·W                 stage 1, U_i the top r_i vectors of a whitened factorisation
//   R   = W − W_i = (I − U_iU_iᵀ)W   so its left singular vectors are orthogonal to U_i
//   R_r = U_R·U_Rᵀ·R                 stage 2, by default the plain (un-whitened) SVD of R
//   Ŵ   = W_i + R_r = Q·Qᵀ·W,        Q = [U_i, U_R] orthonormal
//
// With the same metric in both stages Ŵ is the direct rank-r truncation. With the plain metric in
// stage 2, at equal rank the activation loss on the calibration data is never lower than the direct
// truncation's and the weight loss never higher.
//
//   cost        4mn·r_i flops for R, one truncated SVD of rank r_r, 10m·r_i·r_r + 12m·r_r² to
//               make U_R orthonormal beside U_i
//   workspace   mn + n·r_i scalars and the truncated SVD's
//   blocks      yes
//   source      ResSVD, arXiv 2505.20112, Algorithm 1; the final version (ERC-SVD), Algorithm 2
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/orthonormalize.hpp"
#include "ressvd/layer_ratio.hpp"
#include "ressvd/truncated_svd.hpp"

namespace ressvd::inline v0 {

/// How a rank is divided: give at most one of residual_rank and intermediate_rank; without either
/// r_r = βα, rounded, with α = mn/(m+n) of the matrix, but at most r − 1.
struct residual_options {
  index_t rank = 0;   ///< r, the rank of the result
  double beta = 0.05; ///< share of α that compensates the residual, in [0, 1)
  std::optional<index_t> residual_rank = std::nullopt;     ///< r_r in [0, r − 1]
  std::optional<index_t> intermediate_rank = std::nullopt; ///< r_i in [1, r]
  svd_algorithm algorithm = svd_algorithm::automatic;      ///< of the second stage
};

/// r_i of an m × n matrix (rows, cols) for the options; r_r is what remains of the rank.
/// Throws std::invalid_argument for β outside [0, 1), for r_i or r_r out of its range, for both
/// given.
inline index_t intermediate_rank(index_t rows, index_t cols, const residual_options& options) {
  const index_t r = options.rank;
  detail::require(r >= 1, "residual compensation of rank ", r);
  detail::require(options.beta >= 0 && options.beta < 1, "residual share beta ", options.beta,
                  " is outside [0, 1)");
  detail::require(!(options.residual_rank && options.intermediate_rank),
                  "residual rank and intermediate rank are both given; one follows from the other");
  const index_t residual = options.residual_rank.value_or(0);
  detail::require(residual >= 0 && residual < r, "residual rank ", residual, " is outside [0, ",
                  r - 1, "]");
  const auto share = static_cast<index_t>(std::lround(options.beta * break_even_rank(rows, cols)));
  const index_t ri = options.intermediate_rank
                         ? *options.intermediate_rank
                         : r - options.residual_rank.value_or((std::min)(share, r - 1));
  detail::require(ri >= 1 && ri <= r, "intermediate rank ", ri, " is outside [1, ", r, "]");
  return ri;
}

/// Ŵ's basis Q and how it is divided.
template <backend B>
struct compensated_basis {
  matrix_of<B> q; ///< m × r, orthonormal: [U_i, U_R]
  index_t intermediate_rank = 0;
  double residual_energy = 0; ///< ‖R‖_F², what stage 1 left
};

/// Both stages' basis for a W that `stage1` was factored from (with left metric identity).
/// `second` is the metric of stage 2, identity for the published method.
/// Throws std::invalid_argument when stage1 holds fewer than r_i vectors or acts on the right.
template <backend B, class U>
compensated_basis<B> residual_compensation(B& be, matrix_view<U, typename B::space> weights,
                                           const svd_basis<B>& stage1,
                                           const residual_options& options,
                                           const metric<typename B::space>& second = {}) {
  using T = typename B::scalar;
  const auto w = detail::as_const_view(weights);
  detail::check_nonempty(w, "W");
  detail::require(stage1.acts == projection::left && stage1.q.rows() == w.rows,
                  "residual compensation needs a first stage with the identity as left metric, "
                  "made for ",
                  w.rows, " rows");
  const index_t r = options.rank;
  const index_t ri = intermediate_rank(w.rows, w.cols, options);
  detail::require(r <= (std::min)(w.rows, w.cols), "rank ", r, " of a ", w.rows, " x ", w.cols,
                  " matrix is outside [1, ", (std::min)(w.rows, w.cols), "]");
  detail::require(ri <= stage1.rank(), "intermediate rank ", ri, " exceeds the first stage's rank ",
                  stage1.rank());

  compensated_basis<B> result{.q = be.allocate(w.rows, r), .intermediate_rank = ri};
  const auto ui = stage1.q.ref().left_cols(ri);
  be.copy(ui.view(), result.q.ref().left_cols(ri));

  auto frame = be.frame();
  const auto residual = be.scratch(w.rows, w.cols);
  const auto coordinates = be.scratch(ri, w.cols);
  be.copy(w, residual);
  be.gemm(op::transpose, op::none, T{1}, ui, residual, T{0}, coordinates);
  be.gemm(op::none, op::none, T{-1}, ui, coordinates, T{1}, residual);
  const auto r_view = const_block_of<B>(residual).view();
  result.residual_energy = be.dot(residual, residual);
  if (r == ri) return result;
  const auto stage2 = truncated_svd(be, r_view, metric<typename B::space>::identity(), second,
                                    {.rank = r - ri, .algorithm = options.algorithm});
  const auto ur = result.q.ref().col_range(ri, r - ri);
  be.copy(stage2.q.view(), ur);
  // Orthogonal by theory; a residual near zero leaves directions that are not.
  detail::orthonormalize_against<B>(be, ui, ur);
  return result;
}

/// The pair (Q, QᵀW).
template <backend B, class U>
low_rank<typename B::scalar, typename B::space> project(B& be,
                                                        matrix_view<U, typename B::space> weights,
                                                        matrix_of<B> q) {
  using T = typename B::scalar;
  const auto w = detail::as_const_view(weights);
  detail::require(q.rows() == w.rows, "the basis has ", q.rows(), " rows, W has ", w.rows);
  auto frame = be.frame();
  low_rank<T, typename B::space> pair{std::move(q), {}};
  pair.v = be.allocate(pair.u.cols(), w.cols);
  detail::product(be, std::as_const(pair.u).view().transposed(), detail::in_scalar(be, w), T{0},
                  pair.v.view());
  return pair;
}

} // namespace ressvd::inline v0
