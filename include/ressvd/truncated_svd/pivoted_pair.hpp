// SPDX-License-Identifier: Apache-2.0
//
// A matrix of rank r in r(m+n−r) numbers, which is as many degrees of freedom as it has. r rows of
// Ŵ = U·V that span the others are kept as they are, the others as combinations of them:
//   Ŵ = P·[Z; C·Z],   Z = r rows of Ŵ, r × n,   C: (m−r) × r,   P a permutation of the rows
// The product is that of the pair up to rounding; r² numbers are saved, and as many multiplications
// of y = P·[Zx; C(Zx)].
//
// LU with row pivoting of U finds the rows, P·U = [L₁; L₂]·R:
//   C = L₂·L₁⁻¹   by substitution,      Z = L₁·(R·V)
// Neither needs R to be regular: a U of lower rank is served. |C| is small in practice (1 to 2),
// but only bounded by 2^(r−1); where an element exceeds `largest`, its row and its column change
// places until none does, which grows the volume of the r rows each time. Rows carry the identity:
// columns would as well at the same size, but rows make the outputs that are exact copies of Z's,
// and need no permutation of the inputs, which several matrices share.
//
//   cost        r²(m − r/3) flops for LU, r²(m−r) for C, 2r²n for Z; a swap 2r(m−r) on the host
//   workspace   mr + 2rn + 2r² doubles, the backend's for lu, and (m−r)r on the host for swaps
//   blocks      yes
//   errors      std::invalid_argument for a rank above m and a bound on |C| that is not above 1;
//               nonfinite_error for NaN and infinity in U or V
//   source      PIFA, arXiv 2501.19090; the swaps: Goreinov et al., "How to find a good submatrix",
//               in "Matrix Methods: Theory, Algorithms and Applications" (2010)
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/truncated_svd/low_rank.hpp"

namespace ressvd {
inline namespace v0 {

template <class T, class Space = host_space>
struct pivoted_pair {
  matrix<T, Space> c;         ///< C, (m−r) × r
  matrix<T, Space> z;         ///< Z, r × n
  std::vector<index_t> order; ///< m: row i of [Z; C·Z] is row order[i] of Ŵ
  index_list<Space> indices;  ///< the same in the space's memory

  index_t rows() const { return static_cast<index_t>(order.size()); }
  index_t cols() const { return z.cols(); }
  index_t rank() const { return z.rows(); }
  /// r(m+n−r); the order is not counted.
  index_t parameters() const { return c.size() + z.size(); }
};

struct pivoting_options {
  double largest = 4; ///< bound on |C|, above 1
};

struct pivoting_report {
  double largest = 0;   ///< max |c_ij|
  double condition = 1; ///< of the r rows of U, estimated from R's diagonal; infinity when singular
  index_t swaps = 0;    ///< beyond those of LU
};

template <backend B>
struct pivoted_result {
  pivoted_pair<typename B::scalar, typename B::space> pair;
  pivoting_report report;
};

namespace detail {

/// Swaps rows of C = A₂·A₁⁻¹ (rest × r, packed) with pivots until no element exceeds `largest`.
/// swapped(j, c_i): pivot j becomes the combination c_i of the pivots so far.
template <class Swapped>
index_t swap_until_bounded(std::vector<double>& c, index_t rest, index_t r, double largest,
                           std::span<index_t> order, Swapped swapped) {
  index_t swaps = 0;
  for (;; ++swaps) {
    const auto found =
        std::ranges::max_element(c, [](double a, double b) { return std::abs(a) < std::abs(b); });
    if (found == c.end() || std::abs(*found) <= largest) return swaps;
    const index_t place = found - c.begin();
    const index_t i = place % rest;
    const index_t j = place / rest;
    const double pivot = *found;
    std::vector<double> row(static_cast<std::size_t>(r));
    for (index_t k = 0; k < r; ++k)
      row[static_cast<std::size_t>(k)] = c[static_cast<std::size_t>(i + k * rest)];
    swapped(j, row);
    // C ← C − c_j(c_i − e_j)ᵀ/c_ij, but for row i, which is the old pivot's from now on.
    std::vector<double> column(c.begin() + j * rest, c.begin() + (j + 1) * rest);
    for (index_t k = 0; k < r; ++k) {
      const double step = (row[static_cast<std::size_t>(k)] - (k == j ? 1 : 0)) / pivot;
      double* const target = c.data() + k * rest;
      for (index_t l = 0; l < rest; ++l)
        target[l] -= column[static_cast<std::size_t>(l)] * step;
      target[i] = (k == j ? 1 : 0) - step;
    }
    std::swap(order[static_cast<std::size_t>(j)], order[static_cast<std::size_t>(r + i)]);
  }
}

} // namespace detail

/// The pivoted form of U·V, U: m × r, V: r × n, r ≤ m. The product changes by rounding only; the
/// pair stays as it is. Cost, workspace and errors as above; blocks.
template <backend B>
pivoted_result<B> pivot(B& be, const low_rank<typename B::scalar, typename B::space>& pair,
                        const pivoting_options& options = {}) {
  using wide = wide_backend<B>;
  detail::check_pair(pair.u.view(), pair.v.view());
  detail::require(options.largest > 1, "the bound ", options.largest, " on |C| is not above 1");
  detail::require_finite(be, pair.u.view(), "U");
  detail::require_finite(be, pair.v.view(), "V");
  const index_t m = pair.rows();
  const index_t n = pair.cols();
  const index_t r = pair.rank();
  detail::require(r <= m, "a pair of rank ", r, " has ", m, " rows");
  wide be64(be);
  auto frame = be64.frame();

  pivoted_result<B> result;
  auto& [c, z, order, indices] = result.pair;
  order.resize(static_cast<std::size_t>(m));
  const auto l = be64.scratch(m, r);
  const auto upper = be64.scratch(r, r);
  be64.copy(pair.u, l);
  be64.lu(l, upper, order);

  std::vector<double> diagonal(static_cast<std::size_t>(r));
  be64.diagonal(upper, diagonal);
  const auto [least, most] =
      std::ranges::minmax(diagonal, [](double a, double b) { return std::abs(a) < std::abs(b); });
  result.report.condition =
      least == 0 ? std::numeric_limits<double>::infinity() : std::abs(most / least);

  const auto top = l.top_rows(r);
  const auto v = be64.scratch(r, n);
  const auto rv = be64.scratch(r, n);
  const auto lower = be64.scratch(r, r);
  be64.copy(pair.v, v);
  be64.copy(upper.transposed(), lower);
  be64.trmm(side::left, op::transpose, lower, v, rv);
  be64.trmm(side::left, op::none, top, rv, v); // Z

  const index_t rest = m - r;
  c = be.allocate(rest, r);
  if (rest > 0) {
    const auto below = l.part(r, 0, rest, r);
    be64.trsm(side::right, op::none, top, below);
    result.report.largest = be64.max_abs(below.view());
    if (result.report.largest > options.largest) {
      std::vector<double> host(static_cast<std::size_t>(rest * r));
      const block<double> packed{host.data(), rest, r, rest};
      be64.download(below, packed);
      const auto combination = be64.scratch(1, r);
      const auto combined = be64.scratch(1, n);
      result.report.swaps = detail::swap_until_bounded(
          host, rest, r, options.largest, order, [&](index_t j, std::vector<double>& row) {
            be64.upload({row.data(), 1, r, 1}, combination);
            be64.gemm(op::none, op::none, 1.0, combination, v, 0.0, combined);
            be64.copy(combined, v.part(j, 0, 1, n));
          });
      be64.upload(packed, below);
      result.report.largest = be64.max_abs(below.view());
    }
    be64.copy(below, c.view());
  }
  z = be.allocate(r, n);
  be64.copy(v, z.view());
  indices = be.indices(order);
  return result;
}

/// y = P·[Z·x; C·(Z·x)] + bias for borrowed C and Z of either layout, as they lie in a checkpoint.
///   c: (m−r) × r, z: r × n, order: m, row i of [Z; C·Z] is row order[i] of Ŵ; C is empty at r = m
/// Other arguments, layouts, types, aliasing and errors as in apply of a pair; the order is not
/// checked to be a permutation. 2r(m+n−r)·b flops; workspace m·b scalars, as many again with a
/// bias, and the conversions; does not block.
template <backend B, readable_matrix<typename B::space> C, readable_matrix<typename B::space> Z,
          readable_matrix<typename B::space> X, class Y,
          readable_matrix<typename B::space> Bias =
              matrix_view<const typename B::scalar, typename B::space>>
void apply(B& be, const C& c, const Z& z, const index_list<typename B::space>& order, const X& x,
           matrix_view<Y, typename B::space> y, const Bias& bias = {}) {
  using T = typename B::scalar;
  const auto lower = const_view(c);
  const auto own_rows = const_view(z);
  const auto inputs = const_view(x);
  const auto addend = const_view(bias);
  const index_t r = own_rows.rows;
  const index_t m = order.size;
  detail::check_nonempty(own_rows, "Z");
  detail::check_view(lower, "C");
  detail::require(lower.rows == m - r && (lower.cols == r || m == r), "C is ", lower.rows, " x ",
                  lower.cols, ", expected ", m - r, " x ", r);
  const bool biased = detail::check_apply(m, own_rows.cols, inputs, y, addend);
  if (inputs.cols == 0) return;
  auto frame = be.frame();
  const auto shift = detail::in_scalar(be, addend);
  if constexpr (requires { be.low_rank_product(lower, own_rows, inputs, y, shift, &order); }) {
    if (be.low_rank_product(lower, own_rows, inputs, y, shift, &order)) return;
  }
  // In the layout of x, so that the products read along memory.
  const bool by_rows = inputs.order == layout::row_major;
  const auto outputs_of_all = [&] {
    return by_rows ? be.scratch(inputs.cols, m) : be.scratch(m, inputs.cols);
  };
  const auto held = outputs_of_all();
  const auto outputs = by_rows ? held.view().transposed() : held.view();
  const auto own = outputs.part(0, 0, r, inputs.cols);
  detail::product(be, detail::in_scalar(be, own_rows), detail::in_scalar(be, inputs), T{0}, own);
  if (m > r) {
    detail::product(be, detail::in_scalar(be, lower), matrix_view<const T, typename B::space>(own),
                    T{0}, outputs.part(r, 0, m - r, inputs.cols));
  }
  if (!biased) return be.scatter_rows(outputs, order, y);
  const auto sum = outputs_of_all();
  const auto sums = by_rows ? sum.view().transposed() : sum.view();
  const auto ones = be.scratch(1, inputs.cols);
  be.fill(ones, T{1});
  be.scatter_rows(outputs, order, sums);
  detail::product(be, shift, const_view(ones), T{1}, sums);
  be.copy(sum, by_rows ? y.transposed() : y);
}

/// The same for an owned one.
template <backend B, readable_matrix<typename B::space> X, class Y,
          readable_matrix<typename B::space> Bias =
              matrix_view<const typename B::scalar, typename B::space>>
void apply(B& be, const pivoted_pair<typename B::scalar, typename B::space>& pair, const X& x,
           matrix_view<Y, typename B::space> y, const Bias& bias = {}) {
  apply(be, pair.c, pair.z, pair.indices, x, y, bias);
}

namespace detail {

/// out ← P·[I; C]; C: (m−r) × r of any storage type, out: m × r. Workspace mr scalars.
template <backend B, class C>
void left_factor_of(B& be, const C& c, const index_list<typename B::space>& order,
                    block_of<B> out) {
  using T = typename B::scalar;
  const index_t r = out.cols;
  auto frame = be.frame();
  const auto stacked = be.scratch(out.rows, r);
  be.fill(stacked, T{0});
  be.shift_diagonal(stacked.top_rows(r), T{1});
  if (out.rows > r) be.copy(c, stacked.part(r, 0, out.rows - r, r));
  be.scatter_rows(stacked.view(), order, out.view());
}

} // namespace detail

/// Back to a pair: U = P·[I; C], m × r, and V = Z. Workspace mr scalars; does not block.
template <backend B>
low_rank<typename B::scalar, typename B::space> unpivot(
    B& be, const pivoted_pair<typename B::scalar, typename B::space>& pair) {
  low_rank<typename B::scalar, typename B::space> result{be.allocate(pair.rows(), pair.rank()),
                                                         be.allocate(pair.rank(), pair.cols())};
  detail::left_factor_of(be, pair.c, pair.indices, result.u.ref());
  be.copy(pair.z, result.v.ref());
  return result;
}

/// out ← Ŵ in the caller's buffer, any layout and storage type. 2(m−r)rn flops, workspace mn
/// scalars.
template <backend B, class U>
void materialise(B& be, const pivoted_pair<typename B::scalar, typename B::space>& pair,
                 matrix_view<U, typename B::space> out) {
  using T = typename B::scalar;
  detail::check_view(out, "out");
  detail::check_shape(out, pair.rows(), pair.cols(), "out");
  auto frame = be.frame();
  const auto w = be.scratch(pair.rows(), pair.cols());
  const index_t r = pair.rank();
  be.copy(pair.z, w.top_rows(r));
  if (pair.rows() > r) {
    be.gemm(op::none, op::none, T{1}, pair.c, pair.z, T{0}, w.part(r, 0, pair.rows() - r, w.cols));
  }
  be.scatter_rows(w.view(), pair.indices, out);
}

} // namespace v0
} // namespace ressvd
