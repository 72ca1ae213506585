// SPDX-License-Identifier: Apache-2.0
//
// Least-squares updates of one factor of Ŵ = U·V with the other one fixed, from Grams alone.
//
//   left    U = W·C·Vᵀ·(V·G'·Vᵀ)⁺ minimises ‖W·X° − U·V·X'‖_F, with G' = X'X'ᵀ the Gram of the
//           inputs that the compressed prefix really produces and C = X°X'ᵀ the cross-Gram with the
//           original inputs. Without C the target is W·X', that is C = G'.
//   right   V = U⁺·W minimises ‖(W − U·V)X‖_F for every X.
//
//   cost        left: 2rn² + 2mnr + 2nr² + 2mr² + r³/3 flops, with C 2rn² more;
//               right: 2mnr + 2mr² + 2nr² + r³/3. In double.
//   workspace   left: mn + 2rn + mr + 2r² doubles, with C rn more; right: mn + mr + rn + 2r²
//   blocks      yes
//   errors      std::invalid_argument for shapes that do not fit, nonfinite_error for NaN or
//               infinity in W or in a Gram; the pair is unchanged then
//   source      SVD-LLM, arXiv 2403.07378, section 3.2 (left); AdaSVD, arXiv 2502.01403, eqs. 8–11
#pragma once

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/detail/psd_solve.hpp"
#include "ressvd/low_rank.hpp"

namespace ressvd::inline v0 {

/// Replaces pair.u. Returns the rank of V·G'·Vᵀ that was used, r when it is regular.
/// `cross`: n° × n with n° = columns of W (rows of the original inputs), or empty.
template <backend B, class U>
index_t update_left(B& be, matrix_view<U, typename B::space> weights,
                    low_rank<typename B::scalar, typename B::space>& pair,
                    block<const double, typename B::space> gram,
                    block<const double, typename B::space> cross = {}) {
  using wide = wide_backend<B>;
  const index_t n = pair.cols();
  const index_t r = pair.rank();
  const auto& target = cross.empty() ? gram : cross;
  const char* target_name = cross.empty() ? "the shifted Gram" : "the cross-Gram";
  detail::check_nonempty(weights, "W");
  detail::check_nonempty(gram.view(), "the shifted Gram");
  detail::check_nonempty(target.view(), target_name);
  detail::check_shape(gram, n, n, "the shifted Gram");
  detail::check_shape(target, weights.cols, n, target_name);
  detail::check_shape(weights, pair.rows(), weights.cols, "W");
  wide be64(be);
  detail::require_finite(be, detail::as_const_view(weights), "W");
  detail::require_finite(be64, gram.view(), "the shifted Gram");
  if (!cross.empty()) detail::require_finite(be64, cross.view(), "the cross-Gram");
  auto frame = be64.frame();
  const auto w = be64.scratch(weights.rows, weights.cols);
  const auto v = be64.scratch(r, n);
  be64.copy(detail::as_const_view(weights), w);
  be64.copy(std::as_const(pair.v).view(), v);

  const auto vg = be64.scratch(r, n);
  const auto vgv = be64.scratch(r, r);
  be64.gemm(op::none, op::none, 1.0, v, gram, 0.0, vg);
  be64.gemm(op::none, op::transpose, 1.0, vg, v, 0.0, vgv);
  // Uᵀ before the solution: V·Cᵀ·Wᵀ, where C = G' is symmetric.
  const auto vc = cross.empty() ? vg : be64.scratch(r, w.cols);
  const auto ut = be64.scratch(r, w.rows);
  if (!cross.empty()) be64.gemm(op::none, op::transpose, 1.0, v, cross, 0.0, vc);
  be64.gemm(op::none, op::transpose, 1.0, vc, w, 0.0, ut);
  const index_t used = detail::solve_semidefinite<wide>(be64, vgv, ut);
  be.copy(const_block_of<wide>(ut).view().transposed(), pair.u.ref());
  return used;
}

/// Replaces pair.v. Returns the rank of UᵀU that was used.
template <backend B, class U>
index_t update_right(B& be, matrix_view<U, typename B::space> weights,
                     low_rank<typename B::scalar, typename B::space>& pair) {
  using wide = wide_backend<B>;
  const index_t r = pair.rank();
  detail::check_nonempty(weights, "W");
  detail::check_shape(weights, pair.rows(), pair.cols(), "W");
  detail::require_finite(be, detail::as_const_view(weights), "W");
  wide be64(be);
  auto frame = be64.frame();
  const auto w = be64.scratch(weights.rows, weights.cols);
  const auto u = be64.scratch(pair.rows(), r);
  be64.copy(detail::as_const_view(weights), w);
  be64.copy(std::as_const(pair.u).view(), u);

  const auto uu = be64.scratch(r, r);
  const auto v = be64.scratch(r, pair.cols());
  be64.gemm(op::transpose, op::none, 1.0, u, u, 0.0, uu);
  be64.gemm(op::transpose, op::none, 1.0, u, w, 0.0, v);
  const index_t used = detail::solve_semidefinite<wide>(be64, uu, v);
  be.copy(const_block_of<wide>(v).view(), pair.v.ref());
  return used;
}

} // namespace ressvd::inline v0
