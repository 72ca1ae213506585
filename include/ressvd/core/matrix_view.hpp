// SPDX-License-Identifier: Apache-2.0
//
// Non-owning matrices.
//
// matrix_view is what callers hand in: any of the four storage types, either layout, any leading
// dimension. block is what kernels and backends compute with: always column-major. A view becomes
// blocks once, at the entry of a kernel (backend copy); nothing below the entry knows of layouts.
//
// The memory space is part of both types, so device memory cannot reach a host routine.
#pragma once

#include <cstddef>
#include <limits>
#include <type_traits>

#include "ressvd/core/error.hpp"
#include "ressvd/core/scalar.hpp"
#include "ressvd/core/types.hpp"

namespace ressvd {
inline namespace v0 {

/// A rows × cols matrix in the caller's memory. T is const for inputs.
template <class T, class Space = host_space>
struct matrix_view {
  using value_type = std::remove_const_t<T>;
  using space = Space;
  static_assert(storage_scalar<value_type>, "elements are float, double, half or bfloat16");

  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t ld = 0; ///< elements between rows (row_major) or between columns (col_major)
  layout order = layout::row_major;

  index_t size() const { return rows * cols; }
  bool empty() const { return rows == 0 || cols == 0; }

  /// Throws std::invalid_argument for a part that is not within.
  matrix_view part(index_t row, index_t col, index_t row_count, index_t col_count) const {
    detail::require(row >= 0 && col >= 0 && row_count >= 0 && col_count >= 0 &&
                        row <= rows - row_count && col <= cols - col_count,
                    "a part of ", row_count, " x ", col_count, " at (", row, ", ", col,
                    ") is not within a matrix of ", rows, " x ", cols);
    const index_t offset = order == layout::row_major ? row * ld + col : row + col * ld;
    return {data + offset, row_count, col_count, ld, order};
  }

  /// The same memory read as the transposed matrix; nothing moves.
  matrix_view transposed() const {
    return {data, cols, rows, ld,
            order == layout::row_major ? layout::col_major : layout::row_major};
  }

  operator matrix_view<const T, Space>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, ld, order};
  }
};

/// Views of host memory; ld defaults to the packed one.
template <class T>
matrix_view<T> row_major(T* data, index_t rows, index_t cols) {
  return {data, rows, cols, cols, layout::row_major};
}
template <class T>
matrix_view<T> row_major(T* data, index_t rows, index_t cols, index_t ld) {
  return {data, rows, cols, ld, layout::row_major};
}
template <class T>
matrix_view<T> col_major(T* data, index_t rows, index_t cols) {
  return {data, rows, cols, rows, layout::col_major};
}
template <class T>
matrix_view<T> col_major(T* data, index_t rows, index_t cols, index_t ld) {
  return {data, rows, cols, ld, layout::col_major};
}

/// A column-major rows × cols block: element (i, j) at data[i + j * ld]. Cheap to copy and to cut.
template <class T, class Space = host_space>
struct block {
  using value_type = std::remove_const_t<T>;
  using space = Space;

  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t ld = 0;

  index_t size() const { return rows * cols; }
  bool empty() const { return rows == 0 || cols == 0; }

  block part(index_t row, index_t col, index_t row_count, index_t col_count) const {
    return {data + row + col * ld, row_count, col_count, ld};
  }
  block left_cols(index_t count) const { return part(0, 0, rows, count); }
  block top_rows(index_t count) const { return part(0, 0, count, cols); }
  block col_range(index_t first, index_t count) const { return part(0, first, rows, count); }

  matrix_view<T, Space> view() const { return {data, rows, cols, ld, layout::col_major}; }
  matrix_view<T, Space> transposed() const { return view().transposed(); }

  operator block<const T, Space>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, ld};
  }
};

/// A matrix as a product takes it: op(a).
template <class T, class Space = host_space>
struct operand {
  block<T, Space> a;
  op o = op::none;
};

/// Reads a view of either layout as the operand of a product, without moving anything.
template <class T, class Space>
operand<T, Space> as_operand(const matrix_view<T, Space>& v) {
  if (v.order == layout::col_major) return {{v.data, v.rows, v.cols, v.ld}, op::none};
  return {{v.data, v.cols, v.rows, v.ld}, op::transpose};
}

namespace detail {

/// The most elements that fit into the address space.
template <class T>
inline constexpr index_t most_elements = (std::numeric_limits<std::ptrdiff_t>::max)() /
                                         static_cast<std::ptrdiff_t>(sizeof(T));

/// rows · cols of a block to be allocated. Throws workspace_error for more than can exist.
template <class T>
index_t element_count(index_t rows, index_t cols) {
  require<workspace_error>(rows == 0 || cols <= most_elements<T> / rows, "a block of ", rows, " x ",
                           cols, " elements of ", sizeof(T), " bytes exceeds the address space");
  return rows * cols;
}

/// Refuses a view that cannot describe memory. `name` is the caller's word for it in the message.
template <class T, class Space>
void check_view(const matrix_view<T, Space>& a, const char* name) {
  require(a.rows >= 0 && a.cols >= 0, name, " has negative dimensions (", a.rows, " x ", a.cols,
          ")");
  const index_t packed = a.order == layout::row_major ? a.cols : a.rows;
  require(a.empty() || a.data != nullptr, name, " (", a.rows, " x ", a.cols,
          ") has a null data pointer");
  require(a.ld >= packed, name, " (", a.rows, " x ", a.cols, ", ",
          a.order == layout::row_major ? "row" : "column", "-major) has leading dimension ", a.ld,
          ", less than ", packed);
  // Offsets of elements are products of these numbers and must not overflow.
  const index_t lines = a.order == layout::row_major ? a.rows : a.cols;
  constexpr index_t most = most_elements<T>;
  require(a.empty() || (packed <= most && (lines == 1 || a.ld <= (most - packed) / (lines - 1))),
          name, " (", a.rows, " x ", a.cols, ") with leading dimension ", a.ld,
          " exceeds the address space");
}

template <class T, class Space>
void check_nonempty(const matrix_view<T, Space>& a, const char* name) {
  check_view(a, name);
  require(!a.empty(), name, " is empty (", a.rows, " x ", a.cols, ")");
}

template <class A>
void check_shape(const A& a, index_t rows, index_t cols, const char* name) {
  require(a.rows == rows && a.cols == cols, name, " is ", a.rows, " x ", a.cols, ", expected ",
          rows, " x ", cols);
}

} // namespace detail
} // namespace v0
} // namespace ressvd
