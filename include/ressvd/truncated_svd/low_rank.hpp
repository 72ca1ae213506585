// SPDX-License-Identifier: Apache-2.0
//
// The low-rank pair Ŵ = U·V, U: m × r, V: r × n: what every method returns and what an engine runs.
//
//   apply         y = U(Vx) + b      2r(m+n) flops a vector instead of 2mn
//   materialise   Ŵ = U·V            2mnr flops
//   split         U·D, D⁻¹·V with a diagonal D that moves the rows' norms of V to either side
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "ressvd/core/backend.hpp"
#include "ressvd/detail/finite.hpp"
#include "ressvd/detail/scaling.hpp"
#include "ressvd/whitening/metric.hpp"

namespace ressvd {
inline namespace v0 {

/// The two factors, column-major, in memory of their own.
template <class T, class Space = host_space>
struct low_rank {
  matrix<T, Space> u; ///< m × r
  matrix<T, Space> v; ///< r × n

  index_t rows() const { return u.rows(); }
  index_t cols() const { return v.cols(); }
  index_t rank() const { return u.cols(); }
  index_t parameters() const { return u.size() + v.size(); }
};

namespace detail {

template <class V>
void check_pair(const V& u, const V& v) {
  check_nonempty(u, "U");
  check_nonempty(v, "V");
  require(u.cols == v.rows, "U is ", u.rows, " x ", u.cols, " but V is ", v.rows, " x ", v.cols);
}

/// Whether apply has a bias, after refusing what does not fit an m × n matrix.
template <class X, class Y, class Bias>
bool check_apply(index_t m, index_t n, const X& x, const Y& y, const Bias& bias) {
  check_view(x, "x");
  check_view(y, "y");
  check_shape(x, n, x.cols, "x");
  check_shape(y, m, x.cols, "y");
  const bool biased = bias.data != nullptr || !bias.empty();
  if (biased) {
    check_view(bias, "bias");
    check_shape(bias, m, 1, "bias");
  }
  return biased;
}

/// c ← op(a)·op(b) + beta·c for views of any layouts.
template <backend B>
void product(B& be, matrix_view<const typename B::scalar, typename B::space> a,
             matrix_view<const typename B::scalar, typename B::space> b, typename B::scalar beta,
             matrix_view<typename B::scalar, typename B::space> c) {
  if (c.order == layout::row_major) {
    return product(be, b.transposed(), a.transposed(), beta, c.transposed());
  }
  const auto x = as_operand(a);
  const auto y = as_operand(b);
  be.gemm(x.o, y.o, typename B::scalar{1}, x.a, y.a, beta, as_operand(c).a);
}

/// y ← U(V·x) + bias, all in the backend's scalar.
template <backend B>
void apply(B& be, matrix_view<const typename B::scalar, typename B::space> u,
           matrix_view<const typename B::scalar, typename B::space> v,
           matrix_view<const typename B::scalar, typename B::space> x,
           matrix_view<typename B::scalar, typename B::space> y,
           matrix_view<const typename B::scalar, typename B::space> bias, bool biased) {
  using T = typename B::scalar;
  T keep{0};
  if (biased) {
    const auto ones = be.scratch(1, x.cols);
    be.fill(ones, T{1});
    product(be, bias, const_view(ones), T{0}, y);
    keep = T{1};
  }
  // The inner product in the layout of x, so that both gemms read along memory.
  const bool by_rows = x.order == layout::row_major;
  const auto held = by_rows ? be.scratch(x.cols, v.rows) : be.scratch(v.rows, x.cols);
  const auto t = by_rows ? held.view().transposed() : held.view();
  product(be, v, x, T{0}, t);
  product(be, u, matrix_view<const T, typename B::space>(t), keep, y);
}

} // namespace detail

/// y = U(V·x) + bias for borrowed factors of either layout, as they lie in a checkpoint.
///   u: m × r, v: r × n, x: n × b, y: m × b (one column a vector, b = 1 for a single one),
///   bias: m × 1 or a default-constructed view. Tokens × features buffers in row-major order are
///   features × tokens in column-major order: pass row_major(x, b, n).transposed().
/// Every matrix may be of any storage type: what is not of the backend's scalar is converted in
/// scratch. y must not overlap the inputs. Workspace r·b scalars and the conversions; does not
/// block. Throws std::invalid_argument for shapes that do not fit.
template <backend B, readable_matrix<typename B::space> U, readable_matrix<typename B::space> V,
          readable_matrix<typename B::space> X, class Y,
          readable_matrix<typename B::space> Bias =
              matrix_view<const typename B::scalar, typename B::space>>
void apply(B& be, const U& u, const V& v, const X& x, matrix_view<Y, typename B::space> y,
           const Bias& bias = {}) {
  using T = typename B::scalar;
  const auto left = const_view(u);
  const auto right = const_view(v);
  const auto inputs = const_view(x);
  const auto addend = const_view(bias);
  detail::check_pair(left, right);
  const bool biased = detail::check_apply(left.rows, right.cols, inputs, y, addend);
  if (inputs.cols == 0) return;
  auto frame = be.frame();
  const auto shift = detail::in_scalar(be, addend);
  if constexpr (requires { be.low_rank_product(left, right, inputs, y, shift); }) {
    if (be.low_rank_product(left, right, inputs, y, shift)) return;
  }
  if constexpr (std::is_same_v<Y, T>) {
    detail::apply<B>(be, detail::in_scalar(be, left), detail::in_scalar(be, right),
                     detail::in_scalar(be, inputs), y, shift, biased);
  } else {
    const auto outputs = be.scratch(y.rows, y.cols);
    detail::apply<B>(be, detail::in_scalar(be, left), detail::in_scalar(be, right),
                     detail::in_scalar(be, inputs), outputs.view(), shift, biased);
    be.copy(outputs, y);
  }
}

/// The same for an owned pair.
template <backend B, readable_matrix<typename B::space> X, class Y,
          readable_matrix<typename B::space> Bias =
              matrix_view<const typename B::scalar, typename B::space>>
void apply(B& be, const low_rank<typename B::scalar, typename B::space>& pair, const X& x,
           matrix_view<Y, typename B::space> y, const Bias& bias = {}) {
  apply(be, pair.u, pair.v, x, y, bias);
}

/// Writes a factor into the caller's memory, in any layout and storage type. `name` stands in the
/// message. Throws std::invalid_argument for a view that cannot describe memory or has another
/// shape.
template <backend B, readable_matrix<typename B::space> M, class U>
void export_to(B& be, const M& factor, matrix_view<U, typename B::space> out,
               const char* name = "out") {
  const auto source = const_view(factor);
  detail::check_view(out, name);
  detail::check_shape(out, source.rows, source.cols, name);
  be.copy(as_operand(source).a, as_operand(source).o == op::none ? out : out.transposed());
}

/// Writes both factors: u: m × r, v: r × n.
template <backend B, class U, class V>
void export_to(B& be, const low_rank<typename B::scalar, typename B::space>& pair,
               matrix_view<U, typename B::space> u, matrix_view<V, typename B::space> v) {
  detail::check_view(v, "v");
  detail::check_shape(v, pair.rank(), pair.cols(), "v"); // before anything is written
  export_to(be, pair.u, u, "u");
  export_to(be, pair.v, v, "v");
}

/// out ← U·V in the caller's buffer, any layout and storage type. Workspace mn scalars.
template <backend B, class U>
void materialise(B& be, const low_rank<typename B::scalar, typename B::space>& pair,
                 matrix_view<U, typename B::space> out) {
  using T = typename B::scalar;
  detail::check_view(out, "out");
  detail::check_shape(out, pair.rows(), pair.cols(), "out");
  auto frame = be.frame();
  const auto w = be.scratch(pair.rows(), pair.cols());
  be.gemm(op::none, op::none, T{1}, pair.u, pair.v, T{0}, w);
  be.copy(w, out);
}

/// The factor that carries the scale of the pair.
enum class scale_split : std::uint8_t {
  right,   ///< as made: U orthonormal (projector methods), V carries the scale
  left,    ///< rows of V of norm 1, U carries the scale
  balanced ///< column i of U and row i of V of equal norm: the best use of 16-bit storage
};

/// Moves the scale between the factors; the product U·V keeps its value up to rounding. Zero
/// columns and rows stay. Changes the pair in place; cost O((m+n)r); blocks.
template <backend B>
void split(B& be, low_rank<typename B::scalar, typename B::space>& pair, scale_split where) {
  using T = typename B::scalar;
  const auto rank = static_cast<std::size_t>(pair.rank());
  auto frame = be.frame();
  const auto ut = be.scratch(pair.rank(), pair.rows());
  be.copy(pair.u.transposed(), ut);
  std::vector<double> left(rank);
  std::vector<double> right(rank);
  be.row_squared_norms(ut, left);
  be.row_squared_norms(pair.v.ref(), right);

  std::vector<T> to_u(rank, T{1});
  std::vector<T> to_v(rank, T{1});
  for (std::size_t i = 0; i < rank; ++i) {
    if (left[i] == 0 || right[i] == 0) continue;
    const double u = std::sqrt(left[i]);
    const double v = std::sqrt(right[i]);
    const double wanted = where == scale_split::right  ? u * v
                          : where == scale_split::left ? 1
                                                       : std::sqrt(u * v);
    to_v[i] = static_cast<T>(wanted / v);
    to_u[i] = static_cast<T>(v / wanted);
  }
  const auto d = be.scratch(pair.rank(), 1);
  be.upload({to_u.data(), pair.rank(), 1, pair.rank()}, d);
  be.scale_cols(pair.u, d);
  be.upload({to_v.data(), pair.rank(), 1, pair.rank()}, d);
  be.scale_rows(d, pair.v);
}

} // namespace v0
} // namespace ressvd
