// SPDX-License-Identifier: Apache-2.0
//
// The kernels over views and blocks. All of them only queue work, except those that return numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "ressvd/backend/cuda/blas.hpp"
#include "ressvd/core/backend.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

template <class T>
using device_view = matrix_view<T, cuda_space>;

/// Launches kernel<Types...>.
template <storage_scalar... Types, class... Args>
void launch(cuda_context& context, launch_shape shape, const char* kernel, Args... args) {
  context.launch(shape, kernel_name(kernel, {kernel_type<Types>()...}), args...);
}

/// A packed block as one column: it keeps all threads busy whatever its shape.
template <class T>
device_block<T> flattened(device_block<T> a) {
  if (a.ld != a.rows) return a;
  return {a.data, a.size(), 1, a.size()};
}

/// out ← in, from any element type and layout to any other: one pass, through tiles where the
/// layouts differ.
template <storage_scalar From, storage_scalar To>
void convert(cuda_context& context, device_view<const From> in, device_view<To> out) {
  if (in.empty()) return;
  const auto a = as_operand(in).a;
  const bool same = in.order == out.order;
  launch<From, To>(context, same ? over(a.rows, a.cols) : over_tiles(a.rows, a.cols),
                   same ? "copy" : "transpose", a.data, a.ld, out.data, out.ld, a.rows, a.cols);
}

/// Waits.
template <storage_scalar U>
double max_abs(cuda_context& context, device_view<const U> in) {
  if (in.empty()) return 0;
  const auto a = flattened(as_operand(in).a);
  const workspace_frame frame(context.scratch);
  auto* largest = context.take<std::uint64_t>(1);
  context.clear(largest, 1);
  launch<U>(context, over_for_sum(a.rows, a.cols), "max_abs", a.data, a.ld, a.rows, a.cols,
            largest);
  std::uint64_t bits = 0;
  context.read(largest, &bits, 1);
  return std::bit_cast<double>(bits);
}

/// Σ a_ij·b_ij in double: the shares of the blocks of threads are added on the host. Waits.
template <compute_scalar T>
double dot(cuda_context& context, device_block<const T> a, device_block<const T> b) {
  if (a.empty()) return 0;
  if (a.ld == a.rows && b.ld == b.rows) {
    a = flattened(a);
    b = flattened(b);
  }
  const launch_shape threads = over_for_sum(a.rows, a.cols);
  std::vector<double> shares(std::size_t{threads.grid.x} * threads.grid.y);
  const auto count = static_cast<index_t>(shares.size());
  const workspace_frame frame(context.scratch);
  auto* on_device = context.take<double>(count);
  launch<T>(context, threads, "dot", a.data, a.ld, b.data, b.ld, a.rows, a.cols, on_device);
  context.read(on_device, shares.data(), count);
  double total = 0;
  for (const double s : shares)
    total += s;
  return total;
}

enum class row_sum : std::uint8_t { magnitudes, squares };

/// sums_i += Σ_t |x_it| or Σ_t x_it².
template <storage_scalar U, compute_scalar T>
void add_row_sums(cuda_context& context, row_sum what, device_view<const U> x, T* sums) {
  if (x.empty()) return;
  const bool adjacent_rows = x.order == layout::col_major;
  const char* squared = what == row_sum::squares ? "true" : "false";
  context.launch(over_rows(x.rows),
                 kernel_name("add_row_sums", {kernel_type<U>(), kernel_type<T>(), squared}), x.data,
                 adjacent_rows ? index_t{1} : x.ld, adjacent_rows ? x.ld : index_t{1}, x.rows,
                 x.cols, sums);
}

/// c ← alpha everywhere.
template <compute_scalar T>
void fill(cuda_context& context, device_block<T> c, T alpha) {
  if (c.empty()) return;
  c = flattened(c);
  launch<T>(context, over(c.rows, c.cols), "fill", c.data, c.ld, c.rows, c.cols, alpha);
}

template <compute_scalar T>
void scale(cuda_context& context, T alpha, device_block<T> c) {
  if (c.empty()) return;
  c = flattened(c);
  launch<T>(context, over(c.rows, c.cols), "scale", c.data, c.ld, c.rows, c.cols, alpha);
}

/// c ← c + alpha·a, with a in a type of its own.
template <compute_scalar From, compute_scalar T>
void add(cuda_context& context, T alpha, device_block<const From> a, device_block<T> c) {
  if (c.empty()) return;
  launch<From, T>(context, over(c.rows, c.cols), "add", a.data, a.ld, c.data, c.ld, c.rows, c.cols,
                  alpha);
}

template <compute_scalar T>
void scale_rows(cuda_context& context, const T* d, device_block<T> c) {
  if (c.empty()) return;
  launch<T>(context, over(c.rows, c.cols), "scale_rows", d, c.data, c.ld, c.rows, c.cols);
}

template <compute_scalar T>
void scale_cols(cuda_context& context, device_block<T> c, const T* d) {
  if (c.empty()) return;
  launch<T>(context, over(c.rows, c.cols), "scale_cols", d, c.data, c.ld, c.rows, c.cols);
}

template <compute_scalar T>
void shift_diagonal(cuda_context& context, device_block<T> c, T alpha) {
  const index_t count = (std::min)(c.rows, c.cols);
  if (count > 0) launch<T>(context, over(count, 1), "shift_diagonal", c.data, c.ld, count, alpha);
}

/// The diagonal in double, in scratch of the open frame.
template <compute_scalar T>
double* gather_diagonal(cuda_context& context, device_block<const T> a) {
  const index_t count = (std::min)(a.rows, a.cols);
  auto* values = context.take<double>(count);
  launch<T>(context, over(count, 1), "diagonal", a.data, a.ld, count, values);
  return values;
}

template <compute_scalar T>
void mirror_lower(cuda_context& context, device_block<T> c) {
  if (c.empty()) return;
  launch<T>(context, over_tiles(c.rows, c.rows), "mirror_lower", c.data, c.ld, c.rows);
}

/// out: n × n ← in's upper triangle, zeros below it and beyond in's rows; in has n columns.
template <compute_scalar T>
void copy_upper(cuda_context& context, device_block<const T> in, device_block<T> out) {
  if (out.empty()) return;
  launch<T>(context, over(out.rows, out.cols), "copy_upper", in.data, in.ld, in.rows, out.data,
            out.ld, out.cols);
}

/// out ← in's strict lower triangle, ones on the diagonal and zeros above it.
template <compute_scalar T>
void unit_lower(cuda_context& context, device_block<const T> in, device_block<T> out) {
  if (out.empty()) return;
  launch<T>(context, over(out.rows, out.cols), "unit_lower", in.data, in.ld, out.data, out.ld,
            out.rows, out.cols);
}

/// Row rows_i of out ← row i of in, from any layout to any other.
template <compute_scalar From, storage_scalar To>
void scatter_rows(cuda_context& context, device_view<const From> in, const index_t* rows,
                  device_view<To> out) {
  if (in.empty()) return;
  const auto strides = [](const auto& v) {
    return v.order == layout::col_major ? std::pair{index_t{1}, v.ld} : std::pair{v.ld, index_t{1}};
  };
  const auto [in_row, in_col] = strides(in);
  const auto [out_row, out_col] = strides(out);
  launch<From, To>(context, over(in.rows, in.cols), "scatter_rows", in.data, in_row, in_col, rows,
                   out.data, out_row, out_col, in.rows, in.cols);
}

/// The backend concept's adam.
template <compute_scalar T>
void adam(cuda_context& context, const adam_step& step, device_block<const T> g, device_block<T> m,
          device_block<T> v, device_block<const T> centre, device_block<T> c) {
  if (c.empty()) return;
  const auto in_type = [](double x) { return static_cast<T>(x); };
  launch<T>(context, over(c.rows, c.cols), "adam", g.data, g.ld, m.data, m.ld, v.data, v.ld,
            centre.empty() ? nullptr : centre.data, centre.ld, c.data, c.ld, c.rows, c.cols,
            in_type(step.gradient), in_type(step.fresh1), in_type(step.fresh2), in_type(step.rate),
            in_type(step.root), in_type(step.epsilon), in_type(step.pull));
}

template <compute_scalar T>
void random_normal(cuda_context& context, device_block<T> c, std::uint64_t seed) {
  if (c.empty()) return;
  launch<T>(context, over((c.size() + 1) / 2, 1), "random_normal", c.data, c.ld, c.rows, c.cols,
            seed);
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
