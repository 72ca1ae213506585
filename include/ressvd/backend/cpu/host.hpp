// SPDX-License-Identifier: Apache-2.0
//
// The base of all CPU backends: the context, the element-wise members of the backend concept, and
// the blocked triangular members, which split until a small triangle is left so that nearly all
// their flops run in the derived backend's gemm.
//
// Derived supplies: gemm, thin_qr, triangularize, eigh, svd, and for trsm either solve_leaf, the
// same for a triangle of order at most 64, or all of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numbers>
#include <span>
#include <type_traits>

#include "ressvd/backend/cpu/adam.hpp"
#include "ressvd/backend/cpu/host_context.hpp"
#include "ressvd/backend/cpu/host_values.hpp"
#include "ressvd/backend/cpu/lu.hpp"
#include "ressvd/core/backend.hpp"
#include "ressvd/core/workspace.hpp"

namespace ressvd {
inline namespace v0 {

template <class Derived, class T>
class host_backend {
 public:
  using scalar = T;
  using space = host_space;

  host_backend() : context_(std::make_shared<host_context>()) {}
  explicit host_backend(std::shared_ptr<host_context> context) : context_(std::move(context)) {
    detail::require(context_ != nullptr, "a backend was given a null context");
  }

  const std::shared_ptr<host_context>& context() const { return context_; }

  auto frame() { return workspace_frame(context_->scratch); }

  block<T> scratch(index_t rows, index_t cols) {
    const auto bytes = static_cast<std::size_t>(detail::element_count<T>(rows, cols)) * sizeof(T);
    return {static_cast<T*>(context_->scratch.take(bytes)), rows, cols,
            (std::max)(rows, index_t{1})};
  }

  matrix<T> allocate(index_t rows, index_t cols) {
    const auto bytes = (std::max)(
        static_cast<std::size_t>(detail::element_count<T>(rows, cols)) * sizeof(T), std::size_t{1});
    auto* memory = static_cast<T*>(host_memory::allocate(bytes));
    return {std::shared_ptr<T[]>(memory, [bytes](T* p) { host_memory::deallocate(p, bytes); }),
            rows, cols};
  }

  template <readable_matrix M>
  void copy(const M& source, block<T> out) {
    const auto in = const_view(source);
    detail::copy_strided(in.data, detail::row_stride(in), detail::col_stride(in), out.data, 1,
                         out.ld, out.rows, out.cols, [](auto x) { return load<T>(x); });
  }
  template <storage_scalar U>
  void copy(block<const T> in, matrix_view<U> out) {
    detail::copy_strided(in.data, 1, in.ld, out.data, detail::row_stride(out),
                         detail::col_stride(out), in.rows, in.cols,
                         [](T x) { return store<U>(x); });
  }
  template <storage_scalar U>
  void scatter_rows(matrix_view<const T> in, const index_list<>& rows, matrix_view<U> out) {
    const index_t from_row = detail::row_stride(in);
    const index_t from_col = detail::col_stride(in);
    const index_t to_row = detail::row_stride(out);
    const index_t to_col = detail::col_stride(out);
    for (index_t j = 0; j < in.cols; ++j) {
      const T* const from = in.data + j * from_col;
      U* const to = out.data + j * to_col;
      for (index_t i = 0; i < in.rows; ++i)
        to[rows.data[i] * to_row] = store<U>(from[i * from_row]);
    }
  }
  index_list<> indices(std::span<const index_t> values) {
    const std::shared_ptr<index_t[]> copy(new index_t[values.size()]);
    std::ranges::copy(values, copy.get());
    return {copy, static_cast<index_t>(values.size())};
  }
  void upload(block<const T> in, block<T> out) { copy(in, out); }
  void download(block<const T> in, block<T> out) { copy(in, out); }

  template <readable_matrix M>
  double max_abs(const M& a) {
    using U = element_of<M>;
    // The largest value has the largest bit pattern of its magnitude, infinity and NaN the largest
    // of all; integers compare in vector registers.
    decltype(detail::magnitude_bits(U{})) largest = 0;
    const auto v = as_operand(const_view(a)).a;
    for (index_t j = 0; j < v.cols; ++j) {
      const U* column = v.data + j * v.ld;
      for (index_t i = 0; i < v.rows; ++i) {
        largest = (std::max)(largest, detail::magnitude_bits(column[i]));
      }
    }
    return detail::from_magnitude_bits<U>(largest);
  }

  template <readable_matrix M>
  void add_gram(const M& factor, block<T> sum) {
    const auto x = const_view(factor);
    constexpr index_t panel = 512;
    for_token_chunks(x, x, [&](auto& products, auto xs, auto) {
      for (index_t j = 0; j < xs.rows; j += panel) {
        const index_t width = (std::min)(panel, xs.rows - j);
        const index_t height = xs.rows - j;
        add_to(products, xs.part(j, 0, height, xs.cols), xs.part(j, 0, width, xs.cols),
               sum.part(j, j, height, width));
      }
    });
  }

  template <readable_matrix X, readable_matrix Y>
  void add_product(const X& x, const Y& y, block<T> sum) {
    for_token_chunks(const_view(x), const_view(y),
                     [&](auto& products, auto xs, auto ys) { add_to(products, xs, ys, sum); });
  }

  template <readable_matrix M>
  void add_row_abs(const M& values, block<T> sum) {
    const auto x = const_view(values);
    const index_t row = detail::row_stride(x);
    const index_t col = detail::col_stride(x);
    if (row == 1) {
      for (index_t t = 0; t < x.cols; ++t) {
        for (index_t i = 0; i < x.rows; ++i) {
          sum.data[i] += std::abs(load<T>(x.data[i + t * col]));
        }
      }
    } else {
      for (index_t i = 0; i < x.rows; ++i) {
        sum.data[i] += static_cast<T>(detail::sum_over(
            x.cols, [&](index_t t) { return std::abs(load<double>(x.data[i * row + t * col])); }));
      }
    }
  }

  void lu(block<T> c, block<T> r, std::span<index_t> order) {
    detail::cpu::lu(derived(), c, r, order);
  }

  void fill(block<T> c, T alpha) {
    each_column(c, [&](T* column) { std::fill_n(column, c.rows, alpha); });
  }
  void scale(T alpha, block<T> c) {
    each_column(c, [&](T* column) {
      for (index_t i = 0; i < c.rows; ++i)
        column[i] *= alpha;
    });
  }
  void add(T alpha, block<const T> a, block<T> c) {
    for (index_t j = 0; j < c.cols; ++j) {
      const T* in = a.data + j * a.ld;
      T* out = c.data + j * c.ld;
      for (index_t i = 0; i < c.rows; ++i)
        out[i] += alpha * in[i];
    }
  }
  void scale_rows(block<const T> d, block<T> c) {
    each_column(c, [&](T* column) {
      for (index_t i = 0; i < c.rows; ++i)
        column[i] *= d.data[i];
    });
  }
  void scale_cols(block<T> c, block<const T> d) {
    for (index_t j = 0; j < c.cols; ++j)
      scale(d.data[j], c.col_range(j, 1));
  }
  void shift_diagonal(block<T> c, T alpha) {
    for (index_t i = 0; i < (std::min)(c.rows, c.cols); ++i)
      c.data[i + i * c.ld] += alpha;
  }
  void mirror_lower(block<T> c) {
    constexpr index_t tile = 64;
    for (index_t j0 = 0; j0 < c.cols; j0 += tile) {
      for (index_t i0 = j0; i0 < c.rows; i0 += tile) {
        for (index_t j = j0; j < (std::min)(j0 + tile, c.cols); ++j) {
          for (index_t i = (std::max)(i0, j + 1); i < (std::min)(i0 + tile, c.rows); ++i) {
            c.data[j + i * c.ld] = c.data[i + j * c.ld];
          }
        }
      }
    }
  }

  void random_normal(block<T> c, std::uint64_t seed) {
    // Box–Muller: one pair of uniforms gives the two values at 2k and 2k + 1.
    const index_t count = c.size();
    const auto put = [&](index_t k, double value) {
      if (k < count) c.data[k % c.rows + k / c.rows * c.ld] = static_cast<T>(value);
    };
    for (index_t k = 0; k < count; k += 2) {
      const auto counter = static_cast<std::uint64_t>(k);
      const double radius = std::sqrt(-2.0 * std::log(detail::random_uniform(seed, counter)));
      const double angle = 2.0 * std::numbers::pi * detail::random_uniform(seed, counter + 1);
      put(k, radius * std::cos(angle));
      put(k + 1, radius * std::sin(angle));
    }
  }

  void adam(const adam_step& step, block<const T> g, block<T> m, block<T> v, block<const T> centre,
            block<T> c) {
    detail::cpu::adam(*context_, step, g, m, v, centre, c);
  }

  double dot(block<const T> a, block<const T> b) {
    double total = 0;
    for (index_t j = 0; j < a.cols; ++j) {
      const T* x = a.data + j * a.ld;
      const T* y = b.data + j * b.ld;
      total += detail::sum_over(
          a.rows, [&](index_t i) { return static_cast<double>(x[i]) * static_cast<double>(y[i]); });
    }
    return total;
  }
  void row_squared_norms(block<const T> a, std::span<double> values) {
    std::fill_n(values.begin(), a.rows, 0.0);
    for (index_t j = 0; j < a.cols; ++j) {
      const T* x = a.data + j * a.ld;
      for (index_t i = 0; i < a.rows; ++i) {
        values[static_cast<std::size_t>(i)] +=
            static_cast<double>(x[i]) * static_cast<double>(x[i]);
      }
    }
  }
  void diagonal(block<const T> a, std::span<double> values) {
    for (index_t i = 0; i < (std::min)(a.rows, a.cols); ++i) {
      values[static_cast<std::size_t>(i)] = static_cast<double>(a.data[i + i * a.ld]);
    }
  }

  /// out ← op(L)·in or in·op(L), halving L until a leaf is left for the plain loop of gemm on a
  /// copy of the triangle with zeros above it.
  void trmm(side s, op o, block<const T> l, block<const T> in, block<T> out) {
    const index_t n = l.rows;
    if (n <= leaf) {
      auto f = frame();
      block<T> full = scratch(n, n);
      fill(full, T{0});
      for (index_t j = 0; j < n; ++j) {
        std::copy_n(l.data + j + j * l.ld, n - j, full.data + j + j * full.ld);
      }
      if (s == side::left) {
        derived().gemm(o, op::none, T{1}, full, in, T{0}, out);
      } else {
        derived().gemm(op::none, o, T{1}, in, full, T{0}, out);
      }
      return;
    }
    const index_t h = n / 2;
    const auto l11 = l.part(0, 0, h, h);
    const auto l21 = l.part(h, 0, n - h, h);
    const auto l22 = l.part(h, h, n - h, n - h);
    if (s == side::left) {
      const auto in1 = in.top_rows(h);
      const auto in2 = in.part(h, 0, n - h, in.cols);
      const auto out1 = out.top_rows(h);
      const auto out2 = out.part(h, 0, n - h, out.cols);
      trmm(s, o, l11, in1, out1);
      trmm(s, o, l22, in2, out2);
      if (o == op::none) {
        derived().gemm(o, op::none, T{1}, l21, in1, T{1}, out2);
      } else {
        derived().gemm(o, op::none, T{1}, l21, in2, T{1}, out1);
      }
    } else {
      const auto in1 = in.left_cols(h);
      const auto in2 = in.col_range(h, n - h);
      const auto out1 = out.left_cols(h);
      const auto out2 = out.col_range(h, n - h);
      trmm(s, o, l11, in1, out1);
      trmm(s, o, l22, in2, out2);
      if (o == op::none) {
        derived().gemm(op::none, o, T{1}, in2, l21, T{1}, out1);
      } else {
        derived().gemm(op::none, o, T{1}, in1, l21, T{1}, out2);
      }
    }
  }

  /// c ← op(L)⁻¹·c or c·op(L)⁻¹: substitution on the leaves, gemm between them.
  void trsm(side s, op o, block<const T> l, block<T> c) {
    const index_t n = l.rows;
    if (n <= leaf) return derived().solve_leaf(s, o, l, c);
    const index_t h = n / 2;
    const auto l11 = l.part(0, 0, h, h);
    const auto l21 = l.part(h, 0, n - h, h);
    const auto l22 = l.part(h, h, n - h, n - h);
    const bool left = s == side::left;
    const auto c1 = left ? c.top_rows(h) : c.left_cols(h);
    const auto c2 = left ? c.part(h, 0, n - h, c.cols) : c.col_range(h, n - h);
    const auto eliminate = [&](block<T> solved, block<T> rest) {
      if (left) {
        derived().gemm(o, op::none, T{-1}, l21, solved, T{1}, rest);
      } else {
        derived().gemm(op::none, o, T{-1}, solved, l21, T{1}, rest);
      }
    };
    // L·x and x·Lᵀ are solved from the first unknown on, Lᵀ·x and x·L from the last.
    if (left == (o == op::none)) {
      trsm(s, o, l11, c1);
      eliminate(c1, c2);
      trsm(s, o, l22, c2);
    } else {
      trsm(s, o, l22, c2);
      eliminate(c2, c1);
      trsm(s, o, l11, c1);
    }
  }

  index_t potrf(block<T> c) {
    const index_t n = c.rows;
    if (n <= leaf) return potrf_leaf(c);
    const index_t h = n / 2;
    const auto c11 = c.part(0, 0, h, h);
    const auto c21 = c.part(h, 0, n - h, h);
    const auto c22 = c.part(h, h, n - h, n - h);
    if (const index_t minor = potrf(c11)) return minor;
    trsm(side::right, op::transpose, c11, c21);
    subtract_gram(c21, c22);
    const index_t minor = potrf(c22);
    return minor == 0 ? 0 : h + minor;
  }

  void synchronize() {}

 protected:
  static constexpr index_t leaf = 64;

 private:
  Derived& derived() { return static_cast<Derived&>(*this); }

  template <class F>
  static void each_column(block<T> c, F f) {
    for (index_t j = 0; j < c.cols; ++j)
      f(c.data + j * c.ld);
  }

  /// The type in which products of U are formed on their way into a sum of T.
  template <class U>
  using product_type = std::conditional_t<std::is_same_v<U, double>, T, float>;

  /// Calls f(backend of the product type, x, y) for at most 2048 tokens at a time: float sums of
  /// more terms would lose digits that the sum in double has.
  template <storage_scalar U, class F>
  void for_token_chunks(matrix_view<const U> x, matrix_view<const U> y, F f) {
    using P = product_type<U>;
    constexpr index_t chunk = 2048;
    const bool same = x.data == y.data && x.rows == y.rows && x.ld == y.ld && x.order == y.order;
    typename Derived::template rebind<P> products(derived());
    for (index_t t = 0; t < x.cols; t += chunk) {
      const index_t count = (std::min)(chunk, x.cols - t);
      auto frame = products.frame();
      const auto as_products = [&](matrix_view<const U> v) -> matrix_view<const P> {
        if constexpr (std::is_same_v<U, P>) {
          return v;
        } else {
          // The order of the source lets reading and writing both run along memory.
          const bool by_tokens = v.order == layout::row_major;
          const auto held =
              by_tokens ? products.scratch(v.cols, v.rows) : products.scratch(v.rows, v.cols);
          products.copy(by_tokens ? v.transposed() : v, held);
          return by_tokens ? held.view().transposed() : held.view();
        }
      };
      const auto xs = as_products(x.part(0, t, x.rows, count));
      const auto ys = same ? xs : as_products(y.part(0, t, y.rows, count));
      f(products, xs, ys);
    }
  }

  /// sum += x·yᵀ with the product formed in P.
  template <class Products, class P>
  void add_to(Products& products, matrix_view<const P> x, matrix_view<const P> y, block<T> sum) {
    const auto a = as_operand(x);
    const auto b = as_operand(y);
    if constexpr (std::is_same_v<P, T>) {
      products.gemm(a.o, transposed(b.o), T{1}, a.a, b.a, T{1}, sum);
    } else {
      auto f = products.frame();
      const block<P> product = products.scratch(sum.rows, sum.cols);
      products.gemm(a.o, transposed(b.o), P{1}, a.a, b.a, P{0}, product);
      constexpr index_t chunk = 64;
      const index_t chunks = (sum.cols - 1) / chunk + 1;
      context_->parallel_for(chunks, 16.0 * static_cast<double>(sum.size()), [&](index_t k) {
        for (index_t j = k * chunk; j < (std::min)((k + 1) * chunk, sum.cols); ++j) {
          for (index_t i = 0; i < sum.rows; ++i) {
            sum.data[i + j * sum.ld] += static_cast<T>(product.data[i + j * product.ld]);
          }
        }
      });
    }
  }

  /// Lower triangle of c ← c − a·aᵀ.
  void subtract_gram(block<const T> a, block<T> c) {
    constexpr index_t panel = 256;
    auto f = frame();
    for (index_t j = 0; j < c.cols; j += panel) {
      const index_t width = (std::min)(panel, c.cols - j);
      const index_t below = c.rows - j - width;
      const auto rows = a.part(j, 0, width, a.cols);
      // The diagonal block goes through scratch: potrf promises the strict upper triangle to the
      // caller.
      const block<T> square = scratch(width, width);
      derived().gemm(op::none, op::transpose, T{1}, rows, rows, T{0}, square);
      for (index_t k = 0; k < width; ++k) {
        for (index_t i = k; i < width; ++i) {
          c.data[j + i + (j + k) * c.ld] -= square.data[i + k * square.ld];
        }
      }
      if (below > 0) {
        derived().gemm(op::none, op::transpose, T{-1}, a.part(j + width, 0, below, a.cols), rows,
                       T{1}, c.part(j + width, j, below, width));
      }
    }
  }

  static index_t potrf_leaf(block<T> c) {
    for (index_t k = 0; k < c.rows; ++k) {
      T* column = c.data + k * c.ld;
      const T pivot = column[k];
      if (!(pivot > T{0}) || !std::isfinite(pivot)) return k + 1;
      const T root = std::sqrt(pivot);
      column[k] = root;
      for (index_t i = k + 1; i < c.rows; ++i)
        column[i] /= root;
      for (index_t j = k + 1; j < c.cols; ++j) {
        T* other = c.data + j * c.ld;
        for (index_t i = j; i < c.rows; ++i)
          other[i] -= column[i] * column[j];
      }
    }
    return 0;
  }

  std::shared_ptr<host_context> context_;
};

} // namespace v0
} // namespace ressvd
