// SPDX-License-Identifier: Apache-2.0
//
// What a low-rank Ŵ = U·V loses of W: m × n, in any metric G = F·Fᵀ, at one rank or at all of them.
// ‖(W−Ŵ)F‖_F² is the weight loss for the plain metric, and the activation loss ‖(W−Ŵ)X‖_F² for a
// whitening factor.
//
//   one rank    the loss is formed from the residual itself, so that a small loss has no
//               cancellation: 2mnr + 4mn² flops, 2mnr + 2mn² for a triangular F
//   all ranks   of nested factors, whose leading columns and rows u_i, v_i are the factors of every
//               smaller rank. Vector i takes off
//                 e_i = 2·D_ii − M_ii·H_ii − 2·Σ_{j<i} M_ij·H_ij,
//                 D = UᵀWGVᵀ,  M = UᵀU,  H = VGVᵀ
//               and where U is orthonormal and V = UᵀW simply e_i = ‖v_iF‖². The loss at rank r is
//               that at the largest rank, formed from the residual, plus Σ_{i>r} e_i: a sum of
//               positive numbers for a projection, so that every loss keeps its digits
//   blocks      yes
//   errors      std::invalid_argument for shapes that do not fit; nonfinite_error for NaN or
//               infinity in W or in a Gram
//   source      Pythagoras in the Frobenius norm, docs/theory.md
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/detail/scaling.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"
#include "ressvd/truncated_svd/pivoted_pair.hpp"
#include "ressvd/truncated_svd/weight.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {

/// A squared Frobenius loss, and its share of the same norm of W.
struct loss {
  double absolute = 0;
  double relative = 0; ///< absolute / ‖W·F‖_F²; 0 when both are 0
};

/// ‖W·F‖_F² for any metric factor F. Workspace mn scalars.
template <backend B>
double weighted_energy(B& be, const weight<B>& w, const metric<typename B::space>& m = {}) {
  detail::check_metric(m, w.cols(), "the metric's factor");
  auto frame = be.frame();
  const auto weighed = be.scratch(w.rows(), m.width(w.cols()));
  detail::weigh<B>(be, w.values, m, weighed);
  return be.dot(weighed, weighed) * w.unit * w.unit;
}

/// ‖(W−U·V)F‖_F² and its share of ‖W·F‖_F²; F from the metric (identity: the weight loss, a
/// whitening factor: the activation loss). The residual is in the backend's scalar, norms are
/// summed in double: the relative error of the loss is about
/// eps·(‖W·F‖ + ‖residual·F‖)/‖residual·F‖. Workspace mn + m·width scalars.
template <backend B>
loss weighted_loss(B& be, const weight<B>& w, const_block_of<B> u, const_block_of<B> v,
                   const metric<typename B::space>& m = {}) {
  using T = typename B::scalar;
  detail::check_shape(w.values.ref(), u.rows, v.cols, "W");
  detail::check_metric(m, w.cols(), "the metric's factor");
  auto frame = be.frame();
  const auto residual = be.scratch(w.rows(), w.cols());
  const auto weighed = be.scratch(w.rows(), m.width(w.cols()));
  detail::weigh<B>(be, w.values, m, weighed);
  const double total = be.dot(weighed, weighed);
  be.copy(w.values, residual);
  be.gemm(op::none, op::none, static_cast<T>(-1 / w.unit), u, v, T{1}, residual);
  detail::weigh<B>(be, residual, m, weighed);
  const double lost = be.dot(weighed, weighed);
  return {lost * w.unit * w.unit, total == 0 ? 0 : lost / total};
}
template <backend B>
loss weighted_loss(B& be, const weight<B>& w,
                   const low_rank<typename B::scalar, typename B::space>& pair,
                   const metric<typename B::space>& m = {}) {
  return weighted_loss(be, w, pair.u.ref(), pair.v.ref(), m);
}

/// ‖W−U·V‖_F².
template <backend B>
loss weight_loss(B& be, const weight<B>& w,
                 const low_rank<typename B::scalar, typename B::space>& pair) {
  return weighted_loss(be, w, pair);
}

/// tr((W−U·V) G (W−U·V)ᵀ) = ‖(W−U·V)X‖_F² from a Gram alone, in double: no factor of G is needed,
/// so no damping enters. Rounding may leave up to about −n·eps·‖W‖²‖G‖. Workspace 3mn + n² doubles.
template <backend B, readable_matrix<typename B::space> G>
loss activation_loss(B& be, const weight<B>& w,
                     const low_rank<typename B::scalar, typename B::space>& pair,
                     const G& gram_matrix) {
  const auto gram = const_view(gram_matrix);
  detail::check_shape(w.values.ref(), pair.rows(), pair.cols(), "W");
  detail::check_nonempty(gram, "the Gram");
  detail::check_shape(gram, w.cols(), w.cols(), "the Gram");
  detail::require_finite(be, gram, "the Gram");
  wide_backend<B> be64(be);
  auto frame = be64.frame();
  const auto g = be64.scratch(gram.rows, gram.cols);
  const auto residual = be64.scratch(w.rows(), w.cols());
  const auto weighed = be64.scratch(w.rows(), w.cols());
  const auto u = be64.scratch(pair.rows(), pair.rank());
  const auto v = be64.scratch(pair.rank(), pair.cols());
  be64.copy(gram, g);
  be64.copy(w.values, residual);
  be64.copy(pair.u, u);
  be64.copy(pair.v, v);
  const auto quadratic = [&] {
    be64.gemm(op::none, op::none, 1.0, residual, g, 0.0, weighed);
    return be64.dot(weighed, residual);
  };
  const double total = quadratic();
  be64.gemm(op::none, op::none, -1 / w.unit, u, v, 1.0, residual);
  const double lost = quadratic();
  return {lost * w.unit * w.unit, total == 0 ? 0 : lost / total};
}

/// The same of a pivoted pair, C: (m−r) × r and Z: r × n of any storage type, as exported: against
/// the loss of the pair it came from, this says what the rounding to that type costs. Workspace
/// r(m+n) scalars more, and mr.
template <backend B, readable_matrix<typename B::space> C, readable_matrix<typename B::space> Z>
loss weighted_loss(B& be, const weight<B>& w, const C& c, const Z& z,
                   const index_list<typename B::space>& order,
                   const metric<typename B::space>& m = {}) {
  const auto lower = const_view(c);
  const auto own_rows = const_view(z);
  detail::check_shape(w.values.ref(), order.size, own_rows.cols, "W");
  detail::check_shape(lower, order.size - own_rows.rows, own_rows.rows, "C");
  auto frame = be.frame();
  const auto u = be.scratch(order.size, own_rows.rows);
  const auto v = be.scratch(own_rows.rows, own_rows.cols);
  detail::left_factor_of(be, lower, order, u);
  be.copy(own_rows, v);
  return weighted_loss(be, w, const_block_of<B>(u), const_block_of<B>(v), m);
}
template <backend B>
loss weighted_loss(B& be, const weight<B>& w,
                   const pivoted_pair<typename B::scalar, typename B::space>& pair,
                   const metric<typename B::space>& m = {}) {
  return weighted_loss(be, w, pair.c, pair.z, pair.indices, m);
}

/// The same for a W that is not prepared yet.
template <backend B, readable_matrix<typename B::space> M>
double weighted_energy(B& be, const M& w, const metric<typename B::space>& m = {}) {
  return weighted_energy(be, weight<B>(be, w), m);
}
template <backend B, readable_matrix<typename B::space> M>
loss weighted_loss(B& be, const M& w, const low_rank<typename B::scalar, typename B::space>& pair,
                   const metric<typename B::space>& m = {}) {
  return weighted_loss(be, weight<B>(be, w), pair, m);
}
template <backend B, readable_matrix<typename B::space> M>
loss weight_loss(B& be, const M& w, const low_rank<typename B::scalar, typename B::space>& pair) {
  return weighted_loss(be, w, pair);
}
template <backend B, readable_matrix<typename B::space> M, readable_matrix<typename B::space> G>
loss activation_loss(B& be, const M& w, const low_rank<typename B::scalar, typename B::space>& pair,
                     const G& gram) {
  return activation_loss(be, weight<B>(be, w), pair, gram);
}

/// How the factors of nested pairs are related.
enum class nesting : std::uint8_t {
  projection, ///< U orthonormal, V = UᵀW
  general     ///< any
};

namespace detail {

/// Σ_j v_ij² in the metric for each row of v, times unit².
template <backend B>
std::vector<double> row_energies(B& be, const_block_of<B> v, double unit,
                                 const metric<typename B::space>& m) {
  auto frame = be.frame();
  const auto scaled = be.scratch(v.rows, v.cols);
  const auto weighed = be.scratch(v.rows, m.width(v.cols));
  be.copy(v, scaled);
  be.scale(static_cast<typename B::scalar>(1 / unit), scaled);
  weigh<B>(be, scaled, m, weighed);
  std::vector<double> energies(static_cast<std::size_t>(v.rows));
  be.row_squared_norms(weighed, energies);
  for (double& e : energies)
    e *= unit * unit;
  return energies;
}

/// The general formula, in double, since D, M and H are squares.
template <backend B>
std::vector<double> general_energies(B& be, const weight<B>& w, const_block_of<B> u,
                                     const_block_of<B> v, const metric<typename B::space>& m) {
  using wide = wide_backend<B>;
  wide be64(be);
  const index_t r = u.cols;
  auto frame = be64.frame();
  const auto left = be64.scratch(u.rows, r);
  const auto right = be64.scratch(r, v.cols);
  be64.copy(u, left);
  be64.copy(v, right);
  be64.scale(1 / w.unit, right);
  const auto basis = be64.scratch(r, m.width(v.cols)); // V·F / unit
  const auto image = be64.scratch(r, m.width(v.cols)); // UᵀW·F / unit
  {
    auto inner = be64.frame();
    const auto values = be64.scratch(w.rows(), w.cols());
    const auto projected = be64.scratch(r, w.cols());
    be64.copy(w.values, values);
    be64.gemm(op::transpose, op::none, 1.0, left, values, 0.0, projected);
    weigh<wide>(be64, projected, m, image);
    weigh<wide>(be64, right, m, basis);
  }
  const auto square = be64.scratch(r, r);
  const auto product_of = [&](op a, op b, block_of<wide> x, block_of<wide> y) {
    std::vector<double> host(static_cast<std::size_t>(r * r));
    be64.gemm(a, b, 1.0, x, y, 0.0, square);
    be64.download(square, {host.data(), r, r, r});
    return host;
  };
  const auto d = product_of(op::none, op::transpose, image, basis);
  const auto left_gram = product_of(op::transpose, op::none, left, left);
  const auto right_gram = product_of(op::none, op::transpose, basis, basis);
  std::vector<double> energies(static_cast<std::size_t>(r));
  for (index_t i = 0; i < r; ++i) {
    const auto at = [&](index_t j) { return static_cast<std::size_t>(i * r + j); };
    double energy = 2 * d[at(i)] - left_gram[at(i)] * right_gram[at(i)];
    for (index_t j = 0; j < i; ++j)
      energy -= 2 * left_gram[at(j)] * right_gram[at(j)];
    energies[static_cast<std::size_t>(i)] = energy * w.unit * w.unit;
  }
  return energies;
}

} // namespace detail

/// e_i of nested factors u: m × r and v: r × n, in any metric, whichever one they were made for.
/// Cost for a projection 2n²r flops (n²r for a triangular F), workspace 2nr scalars; in general
/// 2mnr + 4n²r + 6r²(m + n) flops in double, workspace mn + mr + 4nr + r² doubles, and an e_i may
/// be negative.
template <backend B>
std::vector<double> captured_energies(B& be, const weight<B>& w, const_block_of<B> u,
                                      const_block_of<B> v, nesting kind,
                                      const metric<typename B::space>& m = {}) {
  detail::check_shape(w.values.ref(), u.rows, v.cols, "W");
  detail::check_metric(m, w.cols(), "the metric's factor");
  return kind == nesting::projection ? detail::row_energies<B>(be, v, w.unit, m)
                                     : detail::general_energies<B>(be, w, u, v, m);
}

/// ‖(W − U_rV_r)F‖_F² for r = 0 … rank of nested factors. Each value is good to about the backend's
/// eps of itself for a projection and of the first value in general. Cost: weighted_loss and
/// captured_energies.
template <backend B>
std::vector<double> truncation_losses(B& be, const weight<B>& w, const_block_of<B> u,
                                      const_block_of<B> v, nesting kind,
                                      const metric<typename B::space>& m = {}) {
  const auto energies = captured_energies(be, w, u, v, kind, m);
  std::vector<double> curve(energies.size() + 1);
  curve.back() = weighted_loss(be, w, u, v, m).absolute;
  for (std::size_t r = energies.size(); r-- > 0;)
    curve[r] = (std::max)(curve[r + 1] + energies[r], 0.0);
  return curve;
}

} // namespace v0
} // namespace ressvd
