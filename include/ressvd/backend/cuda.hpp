// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend: cuBLAS does products and triangular solves, cuSOLVER decompositions, and small
// kernels compiled at run time (backend/cuda/kernels.hpp) everything element by element. It is
// plain C++ without nvcc, for CUDA 12 and 13.
//
// Members that return numbers to the host, upload and download wait for the stream; thin_qr and
// triangularize may, inside cuSOLVER; all others only queue work. The first call of a kernel also
// loads it, and compiles it where it is not in the cache yet.
//
// Scratch, each piece rounded up to workspace::alignment:
//   add_gram, add_product   sums in double: 4 bytes × rows × min(cols, 2048) of the sum; sums in
//                           float of factors in double: both factors' tokens of one product in
//                           float
//   max_abs, dot            at most 8 KiB
//   row_squared_norms, diagonal   8 bytes a row
//   decompositions          potrf_bytes(n), thin_qr_bytes(m, n), … ask cuSOLVER
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "ressvd/backend/cuda/decompositions.hpp"
#include "ressvd/backend/cuda/low_rank.hpp"
#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {

/// Views of device memory; ld defaults to the packed one.
template <class T>
matrix_view<T, cuda_space> cuda_row_major(T* data, index_t rows, index_t cols, index_t ld) {
  return {data, rows, cols, ld, layout::row_major};
}
template <class T>
matrix_view<T, cuda_space> cuda_row_major(T* data, index_t rows, index_t cols) {
  return cuda_row_major(data, rows, cols, cols);
}
template <class T>
matrix_view<T, cuda_space> cuda_col_major(T* data, index_t rows, index_t cols, index_t ld) {
  return {data, rows, cols, ld, layout::col_major};
}
template <class T>
matrix_view<T, cuda_space> cuda_col_major(T* data, index_t rows, index_t cols) {
  return cuda_col_major(data, rows, cols, rows);
}

template <compute_scalar T>
class cuda_backend {
 public:
  using scalar = T;
  using space = cuda_space;
  template <compute_scalar U>
  using rebind = cuda_backend<U>;

  /// Owns a context on the current device.
  cuda_backend() : context_(cuda_context::owning()) {}
  /// Computes on a given context.
  explicit cuda_backend(std::shared_ptr<cuda_context> context) : context_(std::move(context)) {
    detail::require(context_ != nullptr, "a backend was given a null context");
  }
  /// The same context in another precision.
  template <compute_scalar U>
  cuda_backend(const cuda_backend<U>& other) : context_(other.context()) {}

  const std::shared_ptr<cuda_context>& context() const { return context_; }

  auto frame() { return workspace_frame(context_->scratch); }
  block<T, space> scratch(index_t rows, index_t cols) {
    return {context_->template take<T>(detail::element_count<T>(rows, cols)), rows, cols,
            (std::max)(rows, index_t{1})};
  }
  matrix<T, space> allocate(index_t rows, index_t cols) {
    return {context_->template allocate<T>(detail::element_count<T>(rows, cols)), rows, cols};
  }

  template <readable_matrix<cuda_space> M>
  void copy(const M& in, block<T, space> out) {
    detail::cuda::convert(*context_, const_view(in), out.view());
  }
  template <storage_scalar U>
  void copy(block<const T, space> in, matrix_view<U, space> out) {
    detail::cuda::convert(*context_, in.view(), out);
  }
  template <storage_scalar U>
  void scatter_rows(matrix_view<const T, space> in, const index_list<space>& rows,
                    matrix_view<U, space> out) {
    detail::cuda::scatter_rows(*context_, in, rows.data.get(), out);
  }
  index_list<space> indices(std::span<const index_t> values) {
    const auto count = static_cast<index_t>(values.size());
    auto copy = context_->template allocate<index_t>(count);
    detail::cuda::check(cudaMemcpyAsync(copy.get(), values.data(), values.size_bytes(),
                                        cudaMemcpyHostToDevice, context_->stream()));
    synchronize();
    return {copy, count};
  }
  void upload(block<const T> in, block<T, space> out) { transfer(in, out, cudaMemcpyHostToDevice); }
  void download(block<const T, space> in, block<T> out) {
    transfer(in, out, cudaMemcpyDeviceToHost);
  }

  template <readable_matrix<cuda_space> M>
  double max_abs(const M& a) {
    return detail::cuda::max_abs(*context_, const_view(a));
  }

  template <readable_matrix<cuda_space> M>
  void add_gram(const M& factor, block<T, space> sum) {
    const auto x = const_view(factor);
    for (index_t j = 0; j < x.rows; j += panel) {
      const index_t height = x.rows - j;
      const index_t width = (std::min)(panel, height);
      accumulate(x.part(j, 0, height, x.cols), x.part(j, 0, width, x.cols),
                 sum.part(j, j, height, width));
    }
  }
  template <readable_matrix<cuda_space> X, readable_matrix<cuda_space> Y>
  void add_product(const X& left, const Y& right, block<T, space> sum) {
    const auto x = const_view(left);
    const auto y = const_view(right);
    for (index_t j = 0; j < y.rows; j += panel) {
      const index_t width = (std::min)(panel, y.rows - j);
      accumulate(x, y.part(j, 0, width, y.cols), sum.col_range(j, width));
    }
  }
  template <readable_matrix<cuda_space> M>
  void add_row_abs(const M& x, block<T, space> sum) {
    detail::cuda::add_row_sums(*context_, detail::cuda::row_sum::magnitudes, const_view(x),
                               sum.data);
  }

  void fill(block<T, space> c, T alpha) { detail::cuda::fill(*context_, c, alpha); }
  void scale(T alpha, block<T, space> c) { detail::cuda::scale(*context_, alpha, c); }
  void add(T alpha, block<const T, space> a, block<T, space> c) {
    detail::cuda::add(*context_, alpha, a, c);
  }
  void scale_rows(block<const T, space> d, block<T, space> c) {
    detail::cuda::scale_rows(*context_, d.data, c);
  }
  void scale_cols(block<T, space> c, block<const T, space> d) {
    detail::cuda::scale_cols(*context_, c, d.data);
  }
  void shift_diagonal(block<T, space> c, T alpha) {
    detail::cuda::shift_diagonal(*context_, c, alpha);
  }
  void mirror_lower(block<T, space> c) { detail::cuda::mirror_lower(*context_, c); }
  /// The numbers of the CPU backends, up to the rounding of a logarithm and a cosine.
  void random_normal(block<T, space> c, std::uint64_t seed) {
    detail::cuda::random_normal(*context_, c, seed);
  }

  void adam(const adam_step& step, block<const T, space> g, block<T, space> m, block<T, space> v,
            block<const T, space> centre, block<T, space> c) {
    detail::cuda::adam(*context_, step, g, m, v, centre, c);
  }

  double dot(block<const T, space> a, block<const T, space> b) {
    return detail::cuda::dot(*context_, a, b);
  }
  void row_squared_norms(block<const T, space> a, std::span<double> values) {
    if (a.rows == 0) return;
    auto f = frame();
    auto* sums = context_->template take<double>(a.rows);
    context_->clear(sums, a.rows);
    detail::cuda::add_row_sums(*context_, detail::cuda::row_sum::squares, a.view(), sums);
    context_->read(sums, values.data(), a.rows);
  }
  void diagonal(block<const T, space> a, std::span<double> values) {
    if (a.empty()) return;
    auto f = frame();
    context_->read(detail::cuda::gather_diagonal(*context_, a), values.data(),
                   (std::min)(a.rows, a.cols));
  }

  void gemm(op oa, op ob, T alpha, block<const T, space> a, block<const T, space> b, T beta,
            block<T, space> c) {
    if (c.empty()) return;
    if (!a.empty()) {
      detail::cuda::gemm<T, T>(*context_, oa, ob, alpha, a, b, beta, c);
    } else if (beta == T{0}) {
      fill(c, T{0});
    } else {
      scale(beta, c);
    }
  }
  void reduced_gemm(op oa, op ob, T alpha, block<const T, space> a, block<const T, space> b, T beta,
                    block<T, space> c) requires std::is_same_v<T, float> {
    detail::cuda::gemm<T, T>(*context_, oa, ob, alpha, a, b, beta, c, true);
  }
  void trmm(side s, op o, block<const T, space> l, block<const T, space> in, block<T, space> out) {
    if (!out.empty()) detail::cuda::trmm<T>(*context_, s, o, l, in, out);
  }
  void trsm(side s, op o, block<const T, space> l, block<T, space> c) {
    if (!c.empty()) detail::cuda::trsm<T>(*context_, s, o, l, c);
  }
  index_t potrf(block<T, space> c) { return detail::cuda::cholesky(*context_, c); }
  void thin_qr(block<T, space> c, block<T, space> r) { detail::cuda::thin_qr(*context_, c, r); }
  void triangularize(block<T, space> c, block<T, space> r) {
    detail::cuda::triangularize(*context_, c, r);
  }
  void lu(block<T, space> c, block<T, space> r, std::span<index_t> order) {
    detail::cuda::lu(*context_, c, r, order);
  }
  void eigh(block<T, space> c, std::span<double> values) {
    detail::cuda::eigh(*context_, c, values);
  }
  void svd(block<T, space> c, std::span<double> values, block<T, space> u) {
    detail::cuda::svd(*context_, c, values, u);
  }

  /// y ← u(v·x) + bias, or with the order of a pivoted pair P·[v·x; u(v·x)] + bias, by
  /// backend/cuda/low_rank.hpp; false, and nothing done, where types, layouts or the number of
  /// vectors are others.
  template <class F, class X, class Y>
  bool low_rank_product(
      matrix_view<const F, space> u, matrix_view<const F, space> v, matrix_view<const X, space> x,
      matrix_view<Y, space> y, matrix_view<const T, space> bias,
      const index_list<space>* order = nullptr) requires std::is_same_v<T, float> {
    if constexpr (std::is_same_v<F, double> || std::is_same_v<X, double> ||
                  std::is_same_v<Y, double>) {
      return false;
    } else {
      const bool by_rows = u.order == layout::row_major && v.order == layout::row_major;
      const bool by_columns =
          x.cols == 1 ? x.order == layout::col_major || x.ld == 1 : x.order == layout::col_major;
      const bool out =
          y.cols == 1 ? y.order == layout::col_major || y.ld == 1 : y.order == layout::col_major;
      if (!by_rows || !by_columns || !out || x.cols > detail::cuda::most_low_rank_vectors)
        return false;
      auto f = frame();
      const index_t padded = (v.rows + 3) / 4 * 4; // columns of t begin at multiples of 16 bytes
      const auto t = scratch(padded, x.cols).top_rows(v.rows);
      detail::cuda::low_rank_product<F, X, Y>(
          *context_, u, v, order == nullptr ? nullptr : order->data.get(), x, bias.data,
          bias.order == layout::col_major ? index_t{1} : bias.ld, y, t);
      return true;
    }
  }

  void synchronize() { context_->synchronize(); }

  /// The rate of arithmetic in double, of that in float: 1/2 on cards for data centres, 1/32 or
  /// 1/64 on most others. The choice among algorithms asks for it.
  double double_speed() const { return context_->double_speed(); }
  /// Whether reduced_gemm is much faster than gemm here.
  bool reduced_is_fast() const { return context_->has_tf32(); }

  /// Scratch of the decompositions, enough for whichever routine runs in the end.
  std::size_t potrf_bytes(index_t n) { return detail::cuda::cholesky_bytes<T>(*context_, n); }
  std::size_t thin_qr_bytes(index_t m, index_t n) {
    return detail::cuda::thin_qr_bytes<T>(*context_, m, n);
  }
  std::size_t triangularize_bytes(index_t m, index_t n) {
    return detail::cuda::triangularize_bytes<T>(*context_, m, n);
  }
  std::size_t lu_bytes(index_t m, index_t n) { return detail::cuda::lu_bytes<T>(*context_, m, n); }
  std::size_t eigh_bytes(index_t n) { return detail::cuda::eigh_bytes<T>(*context_, n); }
  std::size_t svd_bytes(index_t m, index_t n) {
    return detail::cuda::svd_bytes<T>(*context_, m, n);
  }

 private:
  static constexpr index_t panel = 2048; // columns of a sum that one product updates

  /// sum += x·yᵀ.
  template <storage_scalar U>
  void accumulate(matrix_view<const U, space> x, matrix_view<const U, space> y,
                  block<T, space> sum) {
    if (sum.empty() || x.cols == 0) return;
    if constexpr (std::is_same_v<U, T> || (std::is_same_v<T, float> && sizeof(U) == 2)) {
      multiply(x, y, T{1}, sum);
    } else {
      const index_t asked = context_->options().tokens_per_product;
      const index_t chunk = asked > 0 ? asked : sizeof(U) == 2 ? 8192 : 2048;
      for (index_t t = 0; t < x.cols; t += chunk) {
        const index_t count = (std::min)(chunk, x.cols - t);
        add_in_float(x.part(0, t, x.rows, count), y.part(0, t, y.rows, count), sum);
      }
    }
  }

  /// sum += x·yᵀ where either the sum or the factors are in double, by a product in float.
  template <storage_scalar U>
  void add_in_float(matrix_view<const U, space> x, matrix_view<const U, space> y,
                    block<T, space> sum) {
    auto f = frame();
    if constexpr (std::is_same_v<T, double>) {
      const auto product = cuda_backend<float>(*this).scratch(sum.rows, sum.cols);
      multiply(x, y, 0.0f, product);
      detail::cuda::add(*context_, 1.0, detail::cuda::as_input(product), sum);
    } else {
      const auto xs = scratch(x.rows, x.cols);
      const auto ys = scratch(y.rows, y.cols);
      copy(x, xs);
      copy(y, ys);
      multiply(detail::cuda::as_input(xs).view(), detail::cuda::as_input(ys).view(), T{1}, sum);
    }
  }

  /// out ← x·yᵀ + beta·out.
  template <storage_scalar U, compute_scalar P>
  void multiply(matrix_view<const U, space> x, matrix_view<const U, space> y, P beta,
                block<P, space> out) {
    const auto a = as_operand(x);
    const auto b = as_operand(y);
    detail::cuda::gemm<U, P>(*context_, a.o, transposed(b.o), P{1}, a.a, b.a, beta, out);
  }

  template <class In, class Out>
  void transfer(In in, Out out, cudaMemcpyKind kind) {
    if (in.empty()) return;
    context_->check_device();
    const auto column = static_cast<std::size_t>(in.rows) * sizeof(T);
    const auto columns = static_cast<std::size_t>(in.cols);
    if (in.ld == in.rows && out.ld == out.rows) {
      detail::cuda::check(
          cudaMemcpyAsync(out.data, in.data, column * columns, kind, context_->stream()));
    } else {
      detail::cuda::check(cudaMemcpy2DAsync(out.data, static_cast<std::size_t>(out.ld) * sizeof(T),
                                            in.data, static_cast<std::size_t>(in.ld) * sizeof(T),
                                            column, columns, kind, context_->stream()));
    }
    synchronize();
  }

  std::shared_ptr<cuda_context> context_;
};

static_assert(backend<cuda_backend<float>> && backend<cuda_backend<double>>);

} // namespace v0
} // namespace ressvd
