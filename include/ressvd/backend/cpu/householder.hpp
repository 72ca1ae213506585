// SPDX-License-Identifier: Apache-2.0
//
// Householder reductions in blocks of 32 reflectors: to a triangle, to a tridiagonal and to a
// bidiagonal matrix. All products are those of the backend, so they run at its speed and on its
// threads, and no other product is compiled. Its gemm is called from several threads at once.
//   cost        A: m × n to R, 2mn² − ⅔n³ flops; A: n × n to a tridiagonal or a bidiagonal, 4/3·n³
//               and 8/3·n³, half of them in matrix-vector products; Q: m × k, at most 4mk²
//   workspace   allocated: the reflectors, of the size of A, and 128 vectors of its length
//   source      Schreiber and Van Loan, "A storage-efficient WY representation for products of
//               Householder transformations", SIAM J. Sci. Stat. Comput. 10 (1989), for the form
//               I − V·T·Vᵀ; Dongarra, Sorensen, Hammarling, "Block reduction of matrices to
//               condensed forms", J. Comput. Appl. Math. 27 (1989)
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ressvd/backend/cpu/host_values.hpp"
#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

constexpr index_t reflector_block = 32;

/// H = I − τ·v·vᵀ with v_0 = 1 and H·x = (β, 0, …, 0); x: n × 1 is overwritten by v. Elements of x
/// of at most about 1; what is below the square root of the smallest number counts as zero.
template <class T>
struct reflection {
  T tau = 0;
  T beta = 0;
};
template <class T>
reflection<T> reflect(block<T> x) {
  const auto first = static_cast<double>(x.data[0]);
  const double tail = sum_over(x.rows - 1, [&](index_t i) {
    const auto value = static_cast<double>(x.data[1 + i]);
    return value * value;
  });
  reflection<T> h{0, x.data[0]};
  double divisor = 0;
  if (tail > static_cast<double>((std::numeric_limits<T>::min)())) {
    const double beta = -std::copysign(std::sqrt(first * first + tail), first);
    divisor = 1 / (first - beta);
    h = {static_cast<T>((beta - first) / beta), static_cast<T>(beta)};
  }
  x.data[0] = T{1};
  for (index_t i = 1; i < x.rows; ++i)
    x.data[i] = static_cast<T>(static_cast<double>(x.data[i]) * divisor);
  return h;
}

/// H_0·H_1⋯, reflector k in column k of v with zeros above it; t: 32 columns wide, holds the
/// triangles T of the blocks side by side.
template <class B>
struct reflectors {
  matrix_of<B> v;
  matrix_of<B> t;

  reflectors(B& be, index_t rows, index_t count)
      : v(be.allocate(rows, count)), t(be.allocate(reflector_block, count)) {
    be.fill(v, 0);
    be.fill(t, 0);
  }
};

/// T of the block of v that ends in its last column, from T without it.
template <class B>
void append(B& be, const_block_of<B> v, typename B::scalar tau, block_of<B> t) {
  using T = typename B::scalar;
  const index_t k = v.cols - 1;
  t.data[k + k * t.ld] = tau;
  if (k == 0) return;
  std::vector<T> inner(static_cast<std::size_t>(k));
  const block<T> products{inner.data(), k, 1, k};
  be.gemm(op::transpose, op::none, -tau, v.left_cols(k), v.col_range(k, 1), T{0}, products);
  be.gemm(op::none, op::none, T{1}, t.part(0, 0, k, k), products, T{0}, t.part(0, k, k, 1));
}

/// c ← (I − V·op(T)·Vᵀ)·c.
template <class B>
void apply_block(B& be, const_block_of<B> v, op o, const_block_of<B> t, block_of<B> c) {
  using T = typename B::scalar;
  if (c.empty()) return;
  auto inner = be.allocate(2 * v.cols, c.cols);
  const auto first = inner.ref().top_rows(v.cols);
  const auto second = inner.ref().part(v.cols, 0, v.cols, c.cols);
  be.gemm(op::transpose, op::none, T{1}, v, c, T{0}, first);
  be.gemm(o, op::none, T{1}, t, first, T{0}, second);
  be.gemm(op::none, op::none, T{-1}, v, second, T{1}, c);
}

/// c ← (the block of reflectors from j on)·c, c: the rows from j on.
template <class B>
void apply_reflectors(B& be, const reflectors<B>& h, index_t j, block_of<B> c) {
  const index_t width = (std::min)(reflector_block, h.v.cols() - j);
  apply_block<B>(be, h.v.ref().part(j, j, c.rows, width), op::none,
                 h.t.ref().part(0, j, width, width), c);
}

/// The first reflector of the last block of `count`.
inline index_t last_block(index_t count) {
  return (count - 1) / reflector_block * reflector_block;
}

/// The leading columns of H_0·H_1⋯ into q: m × n, n at least the number of reflectors.
template <class B>
void form_q(B& be, const reflectors<B>& h, block_of<B> q) {
  be.fill(q, 0);
  be.shift_diagonal(q, 1);
  for (index_t j = last_block(h.v.cols()); j >= 0; j -= reflector_block)
    apply_reflectors<B>(be, h, j, q.part(j, j, q.rows - j, q.cols - j));
}

/// q ← H_0·H_1⋯q for q: m × n.
template <class B>
void apply_q(B& be, const reflectors<B>& h, block_of<B> q) {
  for (index_t j = last_block(h.v.cols()); j >= 0; j -= reflector_block)
    apply_reflectors<B>(be, h, j, q.part(j, 0, q.rows - j, q.cols));
}

/// A = Q·R: R in the upper triangle of a, what is below it is unspecified.
template <class B>
reflectors<B> reduce_to_triangle(B& be, block_of<B> a) {
  using T = typename B::scalar;
  const index_t count = (std::min)(a.rows, a.cols);
  reflectors<B> h(be, a.rows, count);
  for (index_t j = 0; j < count; j += reflector_block) {
    const index_t width = (std::min)(reflector_block, count - j);
    const index_t rows = a.rows - j;
    const auto v = h.v.ref().part(j, j, rows, width);
    const auto t = h.t.ref().part(0, j, width, width);
    for (index_t k = 0; k < width; ++k) {
      const auto column = a.part(j, j + k, rows, 1);
      if (k > 0) apply_block<B>(be, v.left_cols(k), op::transpose, t.part(0, 0, k, k), column);
      const auto x = v.part(k, k, rows - k, 1);
      std::copy_n(column.data + k, rows - k, x.data);
      const auto [tau, beta] = reflect<T>(x);
      column.data[k] = beta;
      append<B>(be, v.left_cols(k + 1), tau, t.part(0, 0, k + 1, k + 1));
    }
    apply_block<B>(be, v, op::transpose, t, a.part(j, j + width, rows, a.cols - j - width));
  }
  return h;
}

/// The end of the tile of 256 rows or columns that i is in.
inline index_t tile_end(index_t i, index_t n) {
  return (std::min)((i / 256 + 1) * 256, n);
}

/// y ← y + alpha·A·x on rows and columns from `first` on, for symmetric A with the tiles on its
/// diagonal and below, of which this takes every `step`th column of tiles from the `begin`th on:
/// each tile is read from memory once and used for both of its places.
template <class B>
void add_symmetric_product(B& be, typename B::scalar alpha, const_block_of<B> a, index_t first,
                           const_block_of<B> x, block_of<B> y, index_t begin, index_t step) {
  using T = typename B::scalar;
  const index_t n = a.rows;
  const auto add = [&](op o, const_block_of<B> tile, index_t from, index_t to) {
    be.gemm(o, op::none, alpha, tile,
            x.part(from - first, 0, o == op::none ? tile.cols : tile.rows, 1), T{1},
            y.part(to - first, 0, o == op::none ? tile.rows : tile.cols, 1));
  };
  index_t column = 0;
  for (index_t j = first; j < n; j = tile_end(j, n), ++column) {
    if (column % step != begin) continue;
    const index_t width = tile_end(j, n) - j;
    add(op::none, a.part(j, j, width, width), j, j);
    for (index_t i = j + width; i < n; i = tile_end(i, n)) {
      const auto tile = a.part(i, j, tile_end(i, n) - i, width);
      add(op::none, tile, j, i);
      add(op::transpose, tile, i, j);
    }
  }
}

/// The number of parts into which symmetric_product divides a matrix of order n.
inline index_t symmetric_parts(index_t n) {
  return std::clamp<index_t>(n / 256, 1, 8);
}

/// y ← alpha·A·x, as above, in parts with sums of their own in `sums`: n × symmetric_parts(n).
template <class B>
void symmetric_product(B& be, typename B::scalar alpha, const_block_of<B> a, index_t first,
                       const_block_of<B> x, block_of<B> y, block_of<B> sums) {
  const index_t parts = symmetric_parts(x.rows);
  const auto sum = [&](index_t i) { return i == 0 ? y : sums.part(0, i, y.rows, 1); };
  const double flops = 8.0 * static_cast<double>(x.rows) * static_cast<double>(x.rows);
  be.context()->parallel_for(parts, flops, [&](index_t i) {
    be.fill(sum(i), 0);
    add_symmetric_product<B>(be, alpha, a, first, x, sum(i), i, parts);
  });
  for (index_t i = 1; i < parts; ++i)
    be.add(1, sum(i), y);
}

/// A = Q·T·Qᵀ for symmetric A, both triangles given, which is destroyed: T's diagonal and what is
/// beside it, and the reflectors of Q's trailing (n − 1) × (n − 1), all else of Q being 1 on the
/// diagonal.
///
/// Reflector v takes A to A − v·wᵀ − w·vᵀ. Within a block this is left undone, as A − L·Rᵀ with
/// L = (v w v w …) and R = (w v w v …), so that A itself changes once in 32 steps.
template <class B>
reflectors<B> reduce_to_tridiagonal(B& be, block_of<B> a, std::vector<typename B::scalar>& d,
                                    std::vector<typename B::scalar>& beside) {
  using T = typename B::scalar;
  const index_t n = a.rows;
  reflectors<B> h(be, n - 1, n - 1);
  auto left = be.allocate(n, 2 * reflector_block);
  auto right = be.allocate(n, 2 * reflector_block);
  auto sums = be.allocate(n, symmetric_parts(n));
  std::vector<T> inner(static_cast<std::size_t>(2 * reflector_block));
  for (index_t j = 0; j < n; j += reflector_block) {
    const index_t width = (std::min)(reflector_block, n - j);
    be.fill(left, 0);
    be.fill(right, 0);
    for (index_t k = 0; k < width; ++k) {
      const index_t i = j + k;
      const auto l = left.ref().part(i, 0, n - i, 2 * k);
      const auto r = right.ref().part(i, 0, n - i, 2 * k);
      const auto column = a.part(i, i, n - i, 1);
      be.gemm(op::none, op::transpose, T{-1}, l, r.top_rows(1), T{1}, column);
      d[static_cast<std::size_t>(i)] = column.data[0];
      if (i + 1 == n) break;
      const index_t rest = n - i - 1;
      const auto v = h.v.ref().part(i, i, rest, 1);
      std::copy_n(column.data + 1, rest, v.data);
      const auto [tau, beta] = reflect<T>(v);
      beside[static_cast<std::size_t>(i)] = beta;
      append<B>(be, h.v.ref().part(j, j, n - 1 - j, k + 1), tau,
                h.t.ref().part(0, j, k + 1, k + 1));

      // w = τ·(A − L·Rᵀ)·v, less its part along v.
      const auto w = left.ref().part(i + 1, 2 * k + 1, rest, 1);
      const block<T> products{inner.data(), 2 * k, 1, 2 * k};
      symmetric_product<B>(be, tau, a, i + 1, v, w, sums.ref());
      be.gemm(op::transpose, op::none, -tau, r.part(1, 0, rest, 2 * k), v, T{0}, products);
      be.gemm(op::none, op::none, T{1}, l.part(1, 0, rest, 2 * k), products, T{1}, w);
      be.add(static_cast<T>(-0.5 * static_cast<double>(tau) * be.dot(w, v)), v, w);
      std::copy_n(v.data, rest, left.data() + i + 1 + 2 * k * n);
      std::copy_n(v.data, rest, right.data() + i + 1 + (2 * k + 1) * n);
      std::copy_n(w.data, rest, right.data() + i + 1 + 2 * k * n);
    }
    for (index_t c = j + width; c < n; c = tile_end(c, n)) {
      const index_t cols = tile_end(c, n) - c;
      be.gemm(op::none, op::transpose, T{-1}, left.ref().part(c, 0, n - c, 2 * width),
              right.ref().part(c, 0, cols, 2 * width), T{1}, a.part(c, c, n - c, cols));
    }
  }
  return h;
}

/// A = Q·B·Pᵀ for square A, which is destroyed: B's diagonal, what is above it, and Q's reflectors.
///
/// Reflectors v from the left and u from the right take A to A − v·yᵀ − x·uᵀ; within a block as
/// above, with L = (v x v x …) and R = (y u y u …).
template <class B>
reflectors<B> reduce_to_bidiagonal(B& be, block_of<B> a, std::vector<typename B::scalar>& d,
                                   std::vector<typename B::scalar>& above) {
  using T = typename B::scalar;
  const index_t n = a.rows;
  reflectors<B> h(be, n, n);
  auto left = be.allocate(n, 2 * reflector_block);
  auto right = be.allocate(n, 2 * reflector_block);
  std::vector<T> inner(static_cast<std::size_t>(2 * reflector_block));
  for (index_t j = 0; j < n; j += reflector_block) {
    const index_t width = (std::min)(reflector_block, n - j);
    be.fill(left, 0);
    be.fill(right, 0);
    for (index_t k = 0; k < width; ++k) {
      const index_t i = j + k;
      const index_t rest = n - i - 1;
      const auto undone = [&](index_t count) { return block<T>{inner.data(), count, 1, count}; };

      const auto column = a.part(i, i, n - i, 1);
      const auto l = left.ref().part(i, 0, n - i, 2 * k + 1);
      const auto r = right.ref().part(i + 1, 0, rest, 2 * k + 1);
      be.gemm(op::none, op::transpose, T{-1}, l.left_cols(2 * k), right.ref().part(i, 0, 1, 2 * k),
              T{1}, column);
      const auto v = h.v.ref().part(i, i, n - i, 1);
      std::copy_n(column.data, n - i, v.data);
      const auto [tau, beta] = reflect<T>(v);
      d[static_cast<std::size_t>(i)] = beta;
      append<B>(be, h.v.ref().part(j, j, n - j, k + 1), tau, h.t.ref().part(0, j, k + 1, k + 1));
      if (rest == 0) break;
      std::copy_n(v.data, n - i, l.data + 2 * k * l.ld);

      // y = τ·(A − L·Rᵀ)ᵀ·v on the columns that are left.
      const auto y = r.col_range(2 * k, 1);
      be.gemm(op::transpose, op::none, tau, a.part(i, i + 1, n - i, rest), v, T{0}, y);
      be.gemm(op::transpose, op::none, -tau, l.left_cols(2 * k), v, T{0}, undone(2 * k));
      be.gemm(op::none, op::none, T{1}, r.left_cols(2 * k), undone(2 * k), T{1}, y);

      const auto u = right.ref().part(i + 1, 2 * k + 1, rest, 1);
      for (index_t c = 0; c < rest; ++c)
        u.data[c] = a.data[i + (i + 1 + c) * a.ld];
      be.gemm(op::none, op::transpose, T{-1}, r, l.top_rows(1), T{1}, u);
      const auto across = reflect<T>(u);
      above[static_cast<std::size_t>(i)] = across.beta;

      // x = τ·(A − L·Rᵀ)·u on the rows that are left.
      const auto x = left.ref().part(i + 1, 2 * k + 1, rest, 1);
      be.gemm(op::none, op::none, across.tau, a.part(i + 1, i + 1, rest, rest), u, T{0}, x);
      be.gemm(op::transpose, op::none, -across.tau, r, u, T{0}, undone(2 * k + 1));
      be.gemm(op::none, op::none, T{1}, l.part(1, 0, rest, 2 * k + 1), undone(2 * k + 1), T{1}, x);
    }
    const index_t next = j + width;
    const index_t rest = n - next;
    be.gemm(op::none, op::transpose, T{-1}, left.ref().part(next, 0, rest, 2 * width),
            right.ref().part(next, 0, rest, 2 * width), T{1}, a.part(next, next, rest, rest));
  }
  return h;
}

} // namespace detail
} // namespace v0
} // namespace ressvd
