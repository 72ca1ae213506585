// SPDX-License-Identifier: Apache-2.0
//
// Least-squares fits to the inputs X' that the compressed prefix really produces, from Grams alone:
// of one factor of Ŵ = U·V with the other one fixed, and of W itself before it is truncated.
//
//   left    U = W·C·Vᵀ·(V·G'·Vᵀ)⁺ minimises ‖W·X° − U·V·X'‖_F, with G' = X'X'ᵀ the Gram of the
//           inputs that the compressed prefix really produces and C = X°X'ᵀ the cross-Gram with the
//           original inputs. Without C the target is W·X', that is C = G'.
//   right   V = U⁺·W minimises ‖(W − U·V)X‖_F for every X.
//   weights W' = (W·C + λW)(G' + λI)⁻¹, λ = ridge·tr(G')/n, minimises
//           ‖W·X° − W'·X'‖_F² + λ‖W − W'‖_F². Its whitened truncation in the metric G' is the best
//           rank-r map from X' to the original outputs, where truncating W is the best for X°.
//
//   cost        left: 2rn² + 2mnr + 2nr² + 2mr² + r³/3 flops, with C 2rn² more;
//               right: 2mnr + 2mr² + 2nr² + r³/3; weights: 4mn² + n³/3. In double.
//   workspace   left: mn + 2rn + mr + 2r² doubles, with C rn more; right: mn + mr + rn + 2r²;
//               weights: 2mn + 2n²
//   blocks      yes
//   errors      std::invalid_argument for shapes that do not fit, nonfinite_error for NaN or
//               infinity in W or in a Gram; the pair is unchanged then
//   source      SVD-LLM, arXiv 2403.07378, section 3.2 (left); AdaSVD, arXiv 2502.01403, eqs. 8–11;
//               weights with λ = 0, then truncated: AA-SVD, arXiv 2604.02119
#pragma once

#include <cmath>
#include <numeric>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/detail/psd_solve.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/weight.hpp"

namespace ressvd {
inline namespace v0 {

namespace detail {

/// Shapes of W: m × n°, G': n × n and C: n° × n (or empty, for C = G'), and finiteness of the
/// Grams.
template <backend B>
void check_shifted(B& be, const weight<B>& w, index_t n,
                   block<const double, typename B::space> gram,
                   block<const double, typename B::space> cross) {
  const auto& target = cross.empty() ? gram : cross;
  const char* target_name = cross.empty() ? "the shifted Gram" : "the cross-Gram";
  check_nonempty(gram.view(), "the shifted Gram");
  check_nonempty(target.view(), target_name);
  check_shape(gram, n, n, "the shifted Gram");
  check_shape(target, w.cols(), n, target_name);
  wide_backend<B> be64(be);
  require_finite(be64, gram, "the shifted Gram");
  if (!cross.empty()) require_finite(be64, cross, "the cross-Gram");
}

/// W itself in double, in be64's scratch.
template <backend B>
block_of<wide_backend<B>> wide_values(wide_backend<B>& be64, const weight<B>& w) {
  const auto values = be64.scratch(w.rows(), w.cols());
  be64.copy(w.values, values);
  be64.scale(w.unit, values);
  return values;
}

} // namespace detail

/// Replaces pair.u. Returns the rank of V·G'·Vᵀ that was used, r when it is regular.
/// `cross`: n° × n with n° = columns of W (rows of the original inputs), or empty.
template <backend B>
index_t update_left(B& be, const weight<B>& weights,
                    low_rank<typename B::scalar, typename B::space>& pair,
                    block<const double, typename B::space> gram,
                    block<const double, typename B::space> cross = {}) {
  using wide = wide_backend<B>;
  const index_t n = pair.cols();
  const index_t r = pair.rank();
  detail::check_shifted(be, weights, n, gram, cross);
  detail::check_shape(weights.values.ref(), pair.rows(), weights.cols(), "W");
  wide be64(be);
  auto frame = be64.frame();
  const auto w = detail::wide_values(be64, weights);
  const auto v = be64.scratch(r, n);
  be64.copy(pair.v, v);

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
  be.copy(ut.transposed(), pair.u.ref());
  return used;
}

/// Replaces pair.v. Returns the rank of UᵀU that was used.
template <backend B>
index_t update_right(B& be, const weight<B>& weights,
                     low_rank<typename B::scalar, typename B::space>& pair) {
  using wide = wide_backend<B>;
  const index_t r = pair.rank();
  detail::check_shape(weights.values.ref(), pair.rows(), pair.cols(), "W");
  wide be64(be);
  auto frame = be64.frame();
  const auto w = detail::wide_values(be64, weights);
  const auto u = be64.scratch(weights.rows(), r);
  be64.copy(pair.u, u);

  const auto uu = be64.scratch(r, r);
  const auto v = be64.scratch(r, pair.cols());
  be64.gemm(op::transpose, op::none, 1.0, u, u, 0.0, uu);
  be64.gemm(op::transpose, op::none, 1.0, u, w, 0.0, v);
  const index_t used = detail::solve_semidefinite<wide>(be64, uu, v);
  be.copy(v, pair.v.ref());
  return used;
}

/// W' as a matrix of its own, m × n. `cross`: n° × n, or empty, which gives W' = W; so do inputs
/// that are all zero, where every W' is as good. A pseudo-inverse stands in where G' + λI is
/// singular to rounding. Throws std::invalid_argument also for a negative or non-finite ridge, and
/// for a ridge > 0 when n° differs from n.
template <backend B>
matrix_of<B> shifted_weights(B& be, const weight<B>& weights,
                             block<const double, typename B::space> gram,
                             block<const double, typename B::space> cross, double ridge = 0.01) {
  using wide = wide_backend<B>;
  const index_t n = gram.rows;
  detail::check_shifted(be, weights, n, gram, cross);
  detail::require(std::isfinite(ridge) && ridge >= 0, "ridge ", ridge, " is outside [0, inf)");
  detail::require(ridge == 0 || weights.cols() == n, "a ridge towards W needs original inputs of ",
                  n, " features, not ", weights.cols());
  wide be64(be);
  auto frame = be64.frame();
  const auto w = detail::wide_values(be64, weights);
  const auto g = be64.scratch(n, n);
  const auto fitted = be64.scratch(n, w.rows); // W'ᵀ
  be64.copy(gram, g);
  std::vector<double> diagonal(static_cast<std::size_t>(n));
  be64.diagonal(g, diagonal);
  const double trace = std::accumulate(diagonal.begin(), diagonal.end(), 0.0);
  if (trace == 0 && w.cols == n) {
    auto result = be.allocate(w.rows, n);
    be.copy(w, result.ref());
    return result;
  }
  const double lambda = ridge * trace / static_cast<double>(n);
  be64.gemm(op::transpose, op::transpose, 1.0, cross.empty() ? gram : cross, w, 0.0, fitted);
  if (lambda > 0) {
    const auto pull = be64.scratch(n, w.rows);
    be64.copy(w.transposed(), pull);
    be64.add(lambda, pull, fitted);
    be64.shift_diagonal(g, lambda);
  }
  detail::solve_semidefinite<wide>(be64, g, fitted);
  auto result = be.allocate(w.rows, n);
  be.copy(fitted.transposed(), result.ref());
  return result;
}

/// The same for a W that is not prepared yet.
template <backend B, readable_matrix<typename B::space> M>
index_t update_left(B& be, const M& weights, low_rank<typename B::scalar, typename B::space>& pair,
                    block<const double, typename B::space> gram,
                    block<const double, typename B::space> cross = {}) {
  return update_left(be, weight<B>(be, weights), pair, gram, cross);
}
template <backend B, readable_matrix<typename B::space> M>
index_t update_right(B& be, const M& weights,
                     low_rank<typename B::scalar, typename B::space>& pair) {
  return update_right(be, weight<B>(be, weights), pair);
}
template <backend B, readable_matrix<typename B::space> M>
matrix_of<B> shifted_weights(B& be, const M& weights, block<const double, typename B::space> gram,
                             block<const double, typename B::space> cross, double ridge = 0.01) {
  return shifted_weights(be, weight<B>(be, weights), gram, cross, ridge);
}

} // namespace v0
} // namespace ressvd
