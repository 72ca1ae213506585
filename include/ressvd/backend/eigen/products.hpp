// SPDX-License-Identifier: Apache-2.0
//
// Products by Eigen's kernels, divided into parts that run on the threads of a context.
//
// Eigen's product of two matrices divides itself among OpenMP's threads where the translation unit
// is compiled with OpenMP. The kernel below that product (general_matrix_matrix_product, with the
// same signature in Eigen 3.4 and 5) does not, so it is called here: a part runs on one thread
// whatever the flags and Eigen's number of threads are. Products with vectors are never divided by
// Eigen.
//
// Equal bits on any number of threads: sums are divided by the sizes of the factors alone. Parts of
// a result begin at multiples of 48 rows and 16 columns, whole register tiles of Eigen's kernel,
// which then adds up each element in the same order whatever part it is in.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <type_traits>
#include <vector>

#include "ressvd/backend/cpu/host_context.hpp"
#include "ressvd/core/matrix_view.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {

template <class T>
using eigen_matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;

template <class T>
auto as_eigen(block<T> a) {
  using matrix_type =
      std::conditional_t<std::is_const_v<T>, const eigen_matrix<std::remove_const_t<T>>,
                         eigen_matrix<T>>;
  return Eigen::Map<matrix_type, 0, Eigen::OuterStride<>>(a.data, a.rows, a.cols,
                                                          Eigen::OuterStride<>(a.ld));
}

/// c ← beta·c, zero whatever c held for beta = 0.
template <class T>
void scale_block(T beta, block<T> c) {
  if (beta == T{1}) return;
  if (beta == T{0}) {
    as_eigen(c).setZero();
  } else {
    as_eigen(c) *= beta;
  }
}

/// c += alpha·op(a)·op(b) on this thread; order: how op(a) and op(b) lie in memory.
template <int OrderA, int OrderB, class T>
void add_part(T alpha, block<const T> a, block<const T> b, Eigen::Index depth, block<T> c) {
  using Eigen::ColMajor;
  using Eigen::Dynamic;
  using Eigen::Index;
  Eigen::internal::gemm_blocking_space<ColMajor, T, T, Dynamic, Dynamic, Dynamic> blocking(
      c.rows, c.cols, depth, 1, true);
  Eigen::internal::general_matrix_matrix_product<Index, T, OrderA, false, T, OrderB, false,
                                                 ColMajor, 1>::run(c.rows, c.cols, depth, a.data,
                                                                   a.ld, b.data, b.ld, c.data, 1,
                                                                   c.ld, alpha, blocking);
}

template <class T>
void add_part(op oa, op ob, T alpha, block<const T> a, block<const T> b, block<T> c) {
  constexpr int plain = Eigen::ColMajor;
  constexpr int turned = Eigen::RowMajor;
  const index_t depth = oa == op::none ? a.cols : a.rows;
  if (oa == op::none && ob == op::none) return add_part<plain, plain>(alpha, a, b, depth, c);
  if (oa == op::none) return add_part<plain, turned>(alpha, a, b, depth, c);
  if (ob == op::none) return add_part<turned, plain>(alpha, a, b, depth, c);
  add_part<turned, turned>(alpha, a, b, depth, c);
}

/// y += alpha·op(a)·x on this thread.
template <class T>
void add_part(op o, T alpha, block<const T> a, const T* x, T* y) {
  using vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
  const bool plain = o == op::none;
  const Eigen::Map<const vector> in(x, plain ? a.cols : a.rows);
  Eigen::Map<vector> out(y, plain ? a.rows : a.cols);
  if (plain) {
    out.noalias() += alpha * as_eigen(a) * in;
  } else {
    out.noalias() += alpha * as_eigen(a).transpose() * in;
  }
}

/// Where part i of [0, size) begins.
inline index_t part_begin(index_t size, index_t i, index_t parts) {
  return size * i / parts;
}

/// y ← alpha·op(a)·x + beta·y at the speed of memory. Parts of the result, or of its sum where the
/// pieces of a's columns would be short.
template <class T>
void vector_product(host_context& context, op o, T alpha, block<const T> a, const T* x, T beta,
                    block<T> y) {
  scale_block(beta, y);
  if (a.empty()) return;
  constexpr index_t elements = 1 << 17;
  const index_t parts = std::clamp<index_t>(a.size() / elements, 1, 16);
  const double flops = 16.0 * static_cast<double>(a.size());
  if (o == op::none && parts > 1 && a.rows / parts < 512) {
    eigen_matrix<T> sums = eigen_matrix<T>::Zero(a.rows, parts);
    context.parallel_for(parts, flops, [&](index_t i) {
      const index_t begin = part_begin(a.cols, i, parts);
      const index_t count = part_begin(a.cols, i + 1, parts) - begin;
      add_part(o, alpha, a.col_range(begin, count), x + begin, sums.data() + i * a.rows);
    });
    for (index_t i = 0; i < parts; ++i)
      as_eigen(y).col(0) += sums.col(i);
    return;
  }
  context.parallel_for(parts, flops, [&](index_t i) {
    const index_t begin = part_begin(y.rows, i, parts);
    const index_t count = part_begin(y.rows, i + 1, parts) - begin;
    add_part(o, alpha, o == op::none ? a.part(begin, 0, count, a.cols) : a.col_range(begin, count),
             x, y.data + begin);
  });
}

/// A vector of `count` elements, `stride` apart in memory, as a whole.
template <class T>
std::vector<T> gathered(const T* first, index_t count, index_t stride) {
  std::vector<T> whole(static_cast<std::size_t>(count));
  for (index_t i = 0; i < count; ++i)
    whole[static_cast<std::size_t>(i)] = first[i * stride];
  return whole;
}

/// c ← alpha·op(a)·op(b) + beta·c for a single column c.
template <class T>
void column_product(host_context& context, op oa, op ob, T alpha, block<const T> a,
                    block<const T> b, T beta, block<T> c) {
  if (ob == op::none) return vector_product(context, oa, alpha, a, b.data, beta, c);
  const std::vector<T> x = gathered(b.data, b.cols, b.ld);
  vector_product(context, oa, alpha, a, x.data(), beta, c);
}

/// How an m × n product is divided among threads: two parts or more for each of them, so that one
/// that is held up delays less, in strips of columns first, which cost the kernel least.
struct product_parts {
  index_t rows, cols;   ///< of a part
  index_t down, across; ///< how many there are

  product_parts(const host_context& context, index_t m, index_t n, double flops)
      : rows(m), cols(n), down(1), across(1) {
    const index_t threads = context.threads();
    if (threads == 1 || flops < context.worth_sharing()) return;
    const index_t wanted = 2 * threads;
    divide(m, n, wanted, 256);
    if (down * across < threads) divide(m, n, wanted, 96);
  }

 private:
  void divide(index_t m, index_t n, index_t wanted, index_t least) {
    const auto size = [&](index_t whole, index_t parts, index_t tile) {
      const index_t most = std::clamp(whole / least, index_t{1}, parts);
      return ((whole - 1) / most / tile + 1) * tile;
    };
    cols = size(n, wanted, 16);
    across = (n - 1) / cols + 1;
    rows = size(m, (wanted - 1) / across + 1, 48);
    down = (m - 1) / rows + 1;
  }
};

/// c ← alpha·op(a)·op(b) + beta·c for c, op(a) and op(b) without an empty dimension.
template <class T>
void matrix_product(host_context& context, op oa, op ob, T alpha, block<const T> a,
                    block<const T> b, T beta, block<T> c) {
  const index_t depth = oa == op::none ? a.cols : a.rows;
  const double flops = 2.0 * static_cast<double>(c.size()) * static_cast<double>(depth + 8);
  const product_parts parts(context, c.rows, c.cols, flops);
  context.parallel_for(parts.down * parts.across, flops, [&](index_t i) {
    const index_t row = i % parts.down * parts.rows;
    const index_t col = i / parts.down * parts.cols;
    const index_t rows = (std::min)(parts.rows, c.rows - row);
    const index_t cols = (std::min)(parts.cols, c.cols - col);
    const auto out = c.part(row, col, rows, cols);
    scale_block(beta, out);
    add_part(oa, ob, alpha, oa == op::none ? a.part(row, 0, rows, depth) : a.col_range(row, rows),
             ob == op::none ? b.col_range(col, cols) : b.part(col, 0, cols, depth), out);
  });
}

} // namespace detail
} // namespace v0
} // namespace ressvd
