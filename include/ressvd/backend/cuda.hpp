// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend: products and triangular solves by cuBLAS, decompositions by cuSOLVER,
// everything element by element by small kernels compiled at run time (backend/cuda/kernels.hpp).
// Plain C++: no nvcc. CUDA 12 and 13.
//
// Members that return numbers to the host, upload and download wait for the stream; thin_qr and
// triangularize may, inside cuSOLVER; all others only queue work. The first call of a kernel also
// compiles and loads it.
//
// Scratch beyond what the caller passes (k = min(m, n), T the scalar; each piece rounded up to
// workspace::alignment):
//   add_gram, add_product   double sums: 4 bytes × rows of sum × min(cols of sum, 2048);
//                           float sums of double input: the input in float, 4096 tokens at a time
//   dot, max_abs, …         at most 8 bytes × (1024 or rows)
//   potrf                   potrf_bytes(n)
//   thin_qr, triangularize  thin_qr_bytes(m, n)
//   eigh                    eigh_bytes(n), a copy of the matrix among it
//   svd                     svd_bytes(m, n), a copy of the matrix and V among it
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "ressvd/backend/cuda/context.hpp"
#include "ressvd/backend/cuda/solver.hpp"
#include "ressvd/core/backend.hpp"

namespace ressvd::inline v0 {

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
  explicit cuda_backend(std::shared_ptr<cuda_context> context) : context_(std::move(context)) {}
  /// The same context in another precision.
  template <compute_scalar U>
  cuda_backend(const cuda_backend<U>& other) : context_(other.context()) {}

  const std::shared_ptr<cuda_context>& context() const { return context_; }

  auto frame() { return workspace_frame(context_->scratch); }
  block<T, space> scratch(index_t rows, index_t cols) {
    return {context_->template take<T>(rows * cols), rows, cols, (std::max)(rows, index_t{1})};
  }
  matrix<T, space> allocate(index_t rows, index_t cols) {
    return {context_->template allocate<T>(rows * cols), rows, cols};
  }

  template <storage_scalar U>
  void copy(matrix_view<const U, space> in, block<T, space> out) {
    convert(in, out.view());
  }
  template <storage_scalar U>
  void copy(block<const T, space> in, matrix_view<U, space> out) {
    convert(in.view(), out);
  }
  void upload(block<const T> in, block<T, space> out) { transfer(in, out, cudaMemcpyHostToDevice); }
  void download(block<const T, space> in, block<T> out) {
    transfer(in, out, cudaMemcpyDeviceToHost);
  }

  template <storage_scalar U>
  double max_abs(matrix_view<const U, space> a) {
    const auto v = as_operand(a).a;
    if (v.empty()) return 0;
    auto f = frame();
    auto* largest = context_->template take<std::uint64_t>(1);
    detail::check(cudaMemsetAsync(largest, 0, sizeof(*largest), context_->stream()));
    launch<U>(detail::over_for_sum(v.rows, v.cols), "max_abs", v.data, v.ld, v.rows, v.cols,
              largest);
    std::uint64_t bits = 0;
    read(largest, &bits, 1);
    return std::bit_cast<double>(bits);
  }

  template <storage_scalar U>
  void add_gram(matrix_view<const U, space> x, block<T, space> sum) {
    for (index_t j = 0; j < x.rows; j += panel) {
      const index_t height = x.rows - j;
      const index_t width = (std::min)(panel, height);
      accumulate(x.part(j, 0, height, x.cols), x.part(j, 0, width, x.cols),
                 sum.part(j, j, height, width));
    }
  }
  template <storage_scalar U>
  void add_product(matrix_view<const U, space> x, matrix_view<const U, space> y,
                   block<T, space> sum) {
    for (index_t j = 0; j < y.rows; j += panel) {
      const index_t width = (std::min)(panel, y.rows - j);
      accumulate(x, y.part(j, 0, width, y.cols), sum.col_range(j, width));
    }
  }
  template <storage_scalar U>
  void add_row_abs(matrix_view<const U, space> x, block<T, space> sum) {
    add_row_sums<U>(x, "false", sum.data);
  }

  void fill(block<T, space> c, T alpha) {
    if (!c.empty()) launch<T>(over(c), "fill", c.data, c.ld, c.rows, c.cols, alpha);
  }
  void scale(T alpha, block<T, space> c) {
    if (!c.empty()) launch<T>(over(c), "scale", c.data, c.ld, c.rows, c.cols, alpha);
  }
  void add(T alpha, block<const T, space> a, block<T, space> c) { add_from(alpha, a, c); }
  void scale_rows(block<const T, space> d, block<T, space> c) {
    if (!c.empty()) launch<T>(over(c), "scale_rows", d.data, c.data, c.ld, c.rows, c.cols);
  }
  void scale_cols(block<T, space> c, block<const T, space> d) {
    if (!c.empty()) launch<T>(over(c), "scale_cols", d.data, c.data, c.ld, c.rows, c.cols);
  }
  void shift_diagonal(block<T, space> c, T alpha) {
    const index_t count = (std::min)(c.rows, c.cols);
    if (count > 0) launch<T>(detail::over(count, 1), "shift_diagonal", c.data, c.ld, count, alpha);
  }
  void mirror_lower(block<T, space> c) {
    if (!c.empty())
      launch<T>(detail::over_tiles(c.rows, c.rows), "mirror_lower", c.data, c.ld, c.rows);
  }
  void random_normal(block<T, space> c, std::uint64_t seed) {
    const index_t pairs = (c.size() + 1) / 2;
    if (pairs > 0) {
      launch<T>(detail::over(pairs, 1), "random_normal", c.data, c.ld, c.rows, c.cols, seed);
    }
  }

  double dot(block<const T, space> a, block<const T, space> b) {
    if (a.empty()) return 0;
    auto f = frame();
    const auto threads = detail::over_for_sum(a.rows, a.cols);
    std::vector<double> shares(std::size_t{threads.grid.x} * threads.grid.y);
    auto* partial = context_->template take<double>(static_cast<index_t>(shares.size()));
    launch<T>(threads, "dot", a.data, a.ld, b.data, b.ld, a.rows, a.cols, partial);
    read(partial, shares.data(), static_cast<index_t>(shares.size()));
    double total = 0;
    for (const double s : shares)
      total += s;
    return total;
  }
  void row_squared_norms(block<const T, space> a, std::span<double> values) {
    if (a.rows == 0) return;
    auto f = frame();
    auto* sums = context_->template take<double>(a.rows);
    detail::check(cudaMemsetAsync(sums, 0, static_cast<std::size_t>(a.rows) * sizeof(double),
                                  context_->stream()));
    add_row_sums<T>(a.view(), "true", sums);
    read(sums, values.data(), a.rows);
  }
  void diagonal(block<const T, space> a, std::span<double> values) {
    const index_t count = (std::min)(a.rows, a.cols);
    if (count == 0) return;
    auto f = frame();
    read(gather_diagonal(a), values.data(), count);
  }

  void gemm(op oa, op ob, T alpha, block<const T, space> a, block<const T, space> b, T beta,
            block<T, space> c) {
    if (c.empty()) return;
    if (!a.empty()) {
      detail::gemm<T, T>(*context_, oa, ob, alpha, a, b, beta, c);
    } else if (beta == T{0}) {
      fill(c, T{0});
    } else {
      scale(beta, c);
    }
  }
  void trmm(side s, op o, block<const T, space> l, block<const T, space> in, block<T, space> out) {
    if (!out.empty()) detail::trmm<T>(*context_, s, o, l, in, out);
  }
  void trsm(side s, op o, block<const T, space> l, block<T, space> c) {
    if (!c.empty()) detail::trsm<T>(*context_, s, o, l, c);
  }

  index_t potrf(block<T, space> c) {
    if (c.empty()) return 0;
    auto f = frame();
    int* info = detail::take_info(*context_);
    detail::potrf<T>(*context_, c, info);
    const double* on_device = gather_diagonal(c);
    int minor = 0;
    std::vector<double> pivots(static_cast<std::size_t>(c.rows));
    context_->copy_to_host(info, &minor, 1);
    read(on_device, pivots.data(), c.rows);
    detail::check_parameters(minor, "potrf");
    if (minor > 0) return minor;
    // cuSOLVER does not promise to notice what is not a number.
    const auto bad = std::find_if(pivots.begin(), pivots.end(),
                                  [](double p) { return !(p > 0) || !std::isfinite(p); });
    return bad == pivots.end() ? 0 : bad - pivots.begin() + 1;
  }

  void thin_qr(block<T, space> c, block<T, space> r) {
    if (c.empty()) return;
    auto f = frame();
    const auto tau = scratch(c.cols, 1);
    detail::geqrf<T>(*context_, c, tau);
    copy_upper(c, r);
    detail::orgqr<T>(*context_, c, tau);
  }
  void triangularize(block<T, space> c, block<T, space> r) {
    if (c.empty()) return fill(r, T{0});
    auto f = frame();
    detail::geqrf<T>(*context_, c, scratch((std::min)(c.rows, c.cols), 1));
    copy_upper(c, r);
  }

  void eigh(block<T, space> c, std::span<double> values) {
    if (c.empty()) return;
    auto f = frame();
    const auto kept = scratch(c.rows, c.cols);
    const auto w = scratch(c.rows, 1);
    int* info = detail::take_info(*context_);
    copy(as_input(c).view(), kept);
    detail::syevd<T>(*context_, c, w, info);
    if (converged(info, "syevd", w, values)) {
      ++context_->report.syevd;
      return;
    }
    copy(as_input(kept).view(), c);
    detail::syevj<T>(*context_, c, w, info);
    if (!converged(info, "syevj", w, values)) fail_to_converge("syevd and syevj", c);
    ++context_->report.syevj;
  }

  void svd(block<T, space> c, std::span<double> values, block<T, space> u) {
    if (c.empty()) return;
    auto f = frame();
    const auto s = scratch((std::min)(c.rows, c.cols), 1);
    int* info = detail::take_info(*context_);
    constexpr index_t small = 64;
    if (s.rows > small && context_->options().svd == cuda_svd::automatic) {
      if (polar_svd(c, s, info, values, u)) return;
      ++context_->report.svd_fallbacks;
    }
    qr_svd(c, s, info, u);
    if (!converged(info, "gesvd", s, values)) fail_to_converge("gesvd", c);
    ++context_->report.gesvd;
  }

  void synchronize() { context_->synchronize(); }

  /// Scratch that the decompositions take, whatever routine turns out to be needed.
  std::size_t potrf_bytes(index_t n) {
    return rounded({sizeof(int), detail::potrf_size(*context_, shape(n, n)).device,
                    static_cast<std::size_t>(n) * sizeof(double)});
  }
  std::size_t thin_qr_bytes(index_t m, index_t n) {
    const auto c = shape(m, n);
    const auto tau = shape((std::min)(m, n), 1);
    const std::size_t orgqr = m < n ? 0 : detail::orgqr_size(*context_, c, tau).device;
    return rounded({bytes(tau), detail::geqrf_size(*context_, c, tau).device, sizeof(int), orgqr,
                    sizeof(int)});
  }
  std::size_t eigh_bytes(index_t n) {
    const auto c = shape(n, n);
    const auto w = shape(n, 1);
    return rounded({bytes(c), bytes(w), sizeof(int), detail::syevd_size(*context_, c, w).device,
                    detail::syevj_size(*context_, c, w, detail::syevj_params()).device});
  }
  std::size_t svd_bytes(index_t m, index_t n) {
    const index_t k = (std::min)(m, n);
    const auto s = shape(k, 1);
    const auto polar =
        rounded({bytes(shape(m, n)), bytes(shape(n, k)),
                 detail::gesvdp_size(*context_, shape(m, n), s, shape(m, k), shape(n, k)).device});
    const auto tall = m >= n ? shape(m, n) : shape(m, m);
    auto qr = rounded({detail::gesvd_size(*context_, tall, s, shape(m, k)).device});
    if (m < n) qr += rounded({bytes(shape(n, m)), bytes(tall)}) + thin_qr_bytes(n, m);
    return rounded({bytes(s), sizeof(int)}) + (std::max)(polar, qr);
  }

 private:
  static constexpr index_t panel = 2048; // columns of a sum that one product updates

  static block<const T, space> as_input(block<T, space> c) { return c; }
  static detail::launch_shape over(block<T, space> c) { return detail::over(c.rows, c.cols); }

  /// A block of no memory, to ask for sizes.
  static block<T, space> shape(index_t rows, index_t cols) { return {nullptr, rows, cols, rows}; }
  static std::size_t bytes(block<T, space> c) {
    return static_cast<std::size_t>(c.size()) * sizeof(T);
  }
  static std::size_t rounded(std::initializer_list<std::size_t> pieces) {
    constexpr std::size_t unit = workspace<detail::cuda_memory>::alignment;
    std::size_t total = 0;
    for (const std::size_t p : pieces)
      total += (p + unit - 1) / unit * unit;
    return total;
  }

  template <storage_scalar U>
  void add_row_sums(matrix_view<const U, space> x, const char* squared, auto* sums) {
    if (x.empty()) return;
    using sum_type = std::remove_pointer_t<decltype(sums)>;
    const bool rows_adjacent = x.order == layout::col_major;
    context_->launch(
        detail::over_rows(x.rows),
        detail::kernel_name("add_row_sums",
                            {detail::kernel_type<U>(), detail::kernel_type<sum_type>(), squared}),
        x.data, rows_adjacent ? index_t{1} : x.ld, rows_adjacent ? x.ld : index_t{1}, x.rows,
        x.cols, sums);
  }

  /// sum += x·yᵀ.
  template <storage_scalar U>
  void accumulate(matrix_view<const U, space> x, matrix_view<const U, space> y,
                  block<T, space> sum) {
    if (sum.empty() || x.cols == 0) return;
    if constexpr (std::is_same_v<U, T> || (std::is_same_v<T, float> && sizeof(U) == 2)) {
      multiply(x, y, T{1}, sum);
    } else {
      const index_t chunk = context_->options().tokens_per_product;
      for (index_t t = 0; t < x.cols; t += chunk) {
        const index_t count = (std::min)(chunk, x.cols - t);
        add_in_float(x.part(0, t, x.rows, count), y.part(0, t, y.rows, count), sum);
      }
    }
  }

  /// sum += x·yᵀ where one of the sum and the factors is in double: the product is formed in float.
  template <storage_scalar U>
  void add_in_float(matrix_view<const U, space> x, matrix_view<const U, space> y,
                    block<T, space> sum) {
    auto f = frame();
    if constexpr (std::is_same_v<T, double>) {
      const auto product = cuda_backend<float>(*this).scratch(sum.rows, sum.cols);
      multiply(x, y, 0.0f, product);
      add_from(1.0, block<const float, space>(product), sum);
    } else {
      const auto xs = scratch(x.rows, x.cols);
      const auto ys = scratch(y.rows, y.cols);
      copy(x, xs);
      copy(y, ys);
      multiply(as_input(xs).view(), as_input(ys).view(), T{1}, sum);
    }
  }

  /// out ← x·yᵀ + beta·out.
  template <storage_scalar U, compute_scalar P>
  void multiply(matrix_view<const U, space> x, matrix_view<const U, space> y, P beta,
                block<P, space> out) {
    const auto a = as_operand(x);
    const auto b = as_operand(y);
    detail::gemm<U, P>(*context_, a.o, transposed(b.o), P{1}, a.a, b.a, beta, out);
  }

  template <compute_scalar From>
  void add_from(T alpha, block<const From, space> a, block<T, space> c) {
    if (!c.empty()) {
      launch<From, T>(detail::over(c.rows, c.cols), "add", a.data, a.ld, c.data, c.ld, c.rows,
                      c.cols, alpha);
    }
  }

  /// c(i, j) ← in(i, j) on and above the diagonal, 0 below it and beyond in's rows.
  void copy_upper(block<T, space> in, block<T, space> out) {
    launch<T>(detail::over(out.rows, out.cols), "copy_upper", in.data, in.ld,
              (std::min)(in.rows, in.cols), out.data, out.ld, out.cols);
  }

  const double* gather_diagonal(block<const T, space> a) {
    const index_t count = (std::min)(a.rows, a.cols);
    auto* values = context_->template take<double>(count);
    launch<T>(detail::over(count, 1), "diagonal", a.data, a.ld, count, values);
    return values;
  }

  /// Any view into any other: one pass, through tiles where the layouts differ.
  template <storage_scalar From, storage_scalar To>
  void convert(matrix_view<const From, space> in, matrix_view<To, space> out) {
    if (in.empty()) return;
    const auto a = as_operand(in).a;
    if (in.order == out.order) {
      launch<From, To>(detail::over(a.rows, a.cols), "copy", a.data, a.ld, out.data, out.ld, a.rows,
                       a.cols);
    } else {
      launch<From, To>(detail::over_tiles(a.rows, a.cols), "transpose", a.data, a.ld, out.data,
                       out.ld, a.rows, a.cols);
    }
  }

  template <class In, class Out>
  void transfer(In in, Out out, cudaMemcpyKind kind) {
    if (in.empty()) return;
    context_->check_device();
    const auto column = static_cast<std::size_t>(in.rows) * sizeof(T);
    const auto columns = static_cast<std::size_t>(in.cols);
    if (in.ld == in.rows && out.ld == out.rows) {
      detail::check(cudaMemcpyAsync(out.data, in.data, column * columns, kind, context_->stream()));
    } else {
      detail::check(cudaMemcpy2DAsync(out.data, static_cast<std::size_t>(out.ld) * sizeof(T),
                                      in.data, static_cast<std::size_t>(in.ld) * sizeof(T), column,
                                      columns, kind, context_->stream()));
    }
    context_->synchronize();
  }

  /// Reads numbers from the device, all work before included: waits.
  template <class E>
  void read(const E* from, E* to, index_t count) {
    context_->copy_to_host(from, to, count);
    context_->synchronize();
  }

  /// Reads the values that a routine left; false when it did not converge.
  bool converged(const int* info, const char* routine, block<T, space> w,
                 std::span<double> values) {
    int state = 0;
    std::vector<T> host(static_cast<std::size_t>(w.rows));
    context_->copy_to_host(info, &state, 1);
    read(w.data, host.data(), w.rows);
    detail::check_parameters(state, routine);
    std::copy(host.begin(), host.end(), values.begin());
    return state == 0 &&
           std::all_of(host.begin(), host.end(), [](T v) { return std::isfinite(v); });
  }

  [[noreturn]] static void fail_to_converge(const char* routines, block<T, space> c) {
    detail::fail<backend_error>("cuSOLVER's ", routines, " did not converge on a ", c.rows, " x ",
                                c.cols, " matrix");
  }

  /// Works on a copy of c. False when the result is not as good as rounding allows.
  bool polar_svd(block<T, space> c, block<T, space> s, int* info, std::span<double> values,
                 block<T, space> u) {
    auto f = frame();
    const auto a = scratch(c.rows, c.cols);
    const auto v = scratch(c.cols, s.rows);
    copy(as_input(c).view(), a);
    const double perturbation = detail::gesvdp(*context_, a, s, u, v, info);
    if (!converged(info, "gesvdp", s, values)) return false;
    const double rounding = static_cast<double>((std::max)(c.rows, c.cols)) *
                            std::numeric_limits<T>::epsilon() * values[0];
    if (!(perturbation <= rounding)) return false;
    cuda_report& report = context_->report;
    ++report.gesvdp;
    if (values[0] > 0) {
      report.perturbation = (std::max)(report.perturbation, perturbation / values[0]);
    }
    return true;
  }

  /// Destroys c. gesvd wants m ≥ n: a wide matrix C is replaced by the square Rᵀ of Cᵀ = QR, which
  /// has the same left singular vectors.
  void qr_svd(block<T, space> c, block<T, space> s, int* info, block<T, space> u) {
    if (c.rows >= c.cols) return detail::gesvd(*context_, c, s, u, info);
    auto f = frame();
    const auto ct = scratch(c.cols, c.rows);
    const auto r = scratch(c.rows, c.rows);
    copy(as_input(c).view().transposed(), ct);
    triangularize(ct, r);
    const auto rt = c.left_cols(c.rows);
    copy(as_input(r).view().transposed(), rt);
    detail::gesvd(*context_, rt, s, u, info);
  }

  template <storage_scalar... Types, class... Args>
  void launch(detail::launch_shape shape, const char* kernel, Args... args) {
    context_->launch(shape, detail::kernel_name(kernel, {detail::kernel_type<Types>()...}),
                     args...);
  }

  std::shared_ptr<cuda_context> context_;
};

static_assert(backend<cuda_backend<float>> && backend<cuda_backend<double>>);

} // namespace ressvd::inline v0
