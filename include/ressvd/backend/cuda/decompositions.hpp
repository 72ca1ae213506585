// SPDX-License-Identifier: Apache-2.0
//
// Decompositions: which cuSOLVER routine runs, how its report is checked, what is done when it
// fails, and the scratch that all of this takes.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <span>
#include <vector>

#include "ressvd/backend/cuda/elementwise.hpp"
#include "ressvd/backend/cuda/solver.hpp"

namespace ressvd::inline v0::detail::cuda {

template <compute_scalar T>
device_block<T> scratch_block(cuda_context& context, index_t rows, index_t cols) {
  return {context.take<T>(rows * cols), rows, cols, (std::max)(rows, index_t{1})};
}

template <class T>
device_block<const T> as_input(device_block<T> c) {
  return c;
}

/// Reads the values that a routine left; false when it did not converge. Waits.
template <compute_scalar T>
bool read_values(cuda_context& context, const int* info, const char* routine, device_block<T> w,
                 std::span<double> values) {
  int state = 0;
  std::vector<T> host(static_cast<std::size_t>(w.rows));
  context.copy_to_host(info, &state, 1);
  context.read(w.data, host.data(), w.rows);
  check_parameters(state, routine);
  std::copy(host.begin(), host.end(), values.begin());
  return state == 0 && std::all_of(host.begin(), host.end(), [](T v) { return std::isfinite(v); });
}

template <class T>
[[noreturn]] void fail_to_converge(const char* routines, device_block<T> c) {
  fail<backend_error>("cuSOLVER's ", routines, " did not converge on a ", c.rows, " x ", c.cols,
                      " matrix");
}

/// The order of the first minor that is not positive, or 0.
template <compute_scalar T>
index_t cholesky(cuda_context& context, device_block<T> c) {
  if (c.empty()) return 0;
  const workspace_frame frame(context.scratch);
  int* info = take_info(context);
  potrf(context, c, info);
  const double* diagonal = gather_diagonal(context, as_input(c));
  int minor = 0;
  std::vector<double> pivots(static_cast<std::size_t>(c.rows));
  context.copy_to_host(info, &minor, 1);
  context.read(diagonal, pivots.data(), c.rows);
  check_parameters(minor, "potrf");
  if (minor > 0) return minor;
  // cuSOLVER does not promise to notice what is not a number.
  const auto bad = std::find_if(pivots.begin(), pivots.end(),
                                [](double p) { return !(p > 0) || !std::isfinite(p); });
  return bad == pivots.end() ? 0 : bad - pivots.begin() + 1;
}

template <compute_scalar T>
void thin_qr(cuda_context& context, device_block<T> c, device_block<T> r) {
  if (c.empty()) return;
  const workspace_frame frame(context.scratch);
  const auto tau = scratch_block<T>(context, c.cols, 1);
  geqrf(context, c, tau);
  copy_upper(context, as_input(c), r);
  orgqr(context, c, tau);
}

template <compute_scalar T>
void triangularize(cuda_context& context, device_block<T> c, device_block<T> r) {
  if (c.empty()) return fill(context, r, T{0});
  const workspace_frame frame(context.scratch);
  geqrf(context, c, scratch_block<T>(context, (std::min)(c.rows, c.cols), 1));
  copy_upper(context, as_input(c), r);
}

/// Divide and conquer; where that does not converge, Jacobi's method on a copy kept for it.
template <compute_scalar T>
void eigh(cuda_context& context, device_block<T> c, std::span<double> values) {
  if (c.empty()) return;
  const workspace_frame frame(context.scratch);
  const auto kept = scratch_block<T>(context, c.rows, c.cols);
  const auto w = scratch_block<T>(context, c.rows, 1);
  int* info = take_info(context);
  convert(context, as_input(c).view(), kept.view());
  syevd(context, c, w, info);
  if (read_values(context, info, "syevd", w, values)) {
    ++context.report.syevd;
    return;
  }
  convert(context, as_input(kept).view(), c.view());
  syevj(context, c, w, info);
  if (!read_values(context, info, "syevj", w, values)) fail_to_converge("syevd and syevj", c);
  ++context.report.syevj;
}

/// SVD of a copy of c by polar decomposition. False when its result is not as good as rounding
/// allows.
template <compute_scalar T>
bool polar_svd(cuda_context& context, device_block<T> c, device_block<T> s, int* info,
               std::span<double> values, device_block<T> u) {
  const workspace_frame frame(context.scratch);
  const auto a = scratch_block<T>(context, c.rows, c.cols);
  const auto v = scratch_block<T>(context, c.cols, s.rows);
  convert(context, as_input(c).view(), a.view());
  const double perturbation = gesvdp(context, a, s, u, v, info);
  if (!read_values(context, info, "gesvdp", s, values)) return false;
  const double rounding = static_cast<double>((std::max)(c.rows, c.cols)) *
                          std::numeric_limits<T>::epsilon() * values[0];
  if (!(perturbation <= rounding)) return false;
  cuda_report& report = context.report;
  ++report.gesvdp;
  if (values[0] > 0)
    report.perturbation = (std::max)(report.perturbation, perturbation / values[0]);
  return true;
}

/// SVD by QR iteration; destroys c. gesvd wants m ≥ n: a wide matrix C is replaced by the square Rᵀ
/// of Cᵀ = QR, which has the same left singular vectors.
template <compute_scalar T>
void qr_svd(cuda_context& context, device_block<T> c, device_block<T> s, int* info,
            device_block<T> u) {
  if (c.rows >= c.cols) return gesvd(context, c, s, u, info);
  const workspace_frame frame(context.scratch);
  const auto ct = scratch_block<T>(context, c.cols, c.rows);
  const auto r = scratch_block<T>(context, c.rows, c.rows);
  convert(context, as_input(c).view().transposed(), ct.view());
  triangularize(context, ct, r);
  const auto rt = c.left_cols(c.rows);
  convert(context, as_input(r).view().transposed(), rt.view());
  gesvd(context, rt, s, u, info);
}

template <compute_scalar T>
void svd(cuda_context& context, device_block<T> c, std::span<double> values, device_block<T> u) {
  if (c.empty()) return;
  constexpr index_t small = 64;
  const workspace_frame frame(context.scratch);
  const auto s = scratch_block<T>(context, (std::min)(c.rows, c.cols), 1);
  int* info = take_info(context);
  if (s.rows > small && context.options().svd == cuda_svd::automatic) {
    if (polar_svd(context, c, s, info, values, u)) return;
    ++context.report.svd_fallbacks;
  }
  qr_svd(context, c, s, info, u);
  if (!read_values(context, info, "gesvd", s, values)) fail_to_converge("gesvd", c);
  ++context.report.gesvd;
}

// The scratch of these functions, whichever way they take.

/// A block of no memory, to ask for sizes.
template <compute_scalar T>
device_block<T> shape(index_t rows, index_t cols) {
  return {nullptr, rows, cols, (std::max)(rows, index_t{1})};
}

template <compute_scalar T>
std::size_t bytes_of(index_t rows, index_t cols) {
  return static_cast<std::size_t>(rows * cols) * sizeof(T);
}

inline std::size_t total_bytes(std::initializer_list<std::size_t> pieces) {
  constexpr std::size_t unit = workspace<cuda_memory>::alignment;
  std::size_t total = 0;
  for (const std::size_t p : pieces)
    total += (p + unit - 1) / unit * unit;
  return total;
}

template <compute_scalar T>
std::size_t cholesky_bytes(cuda_context& context, index_t n) {
  return total_bytes(
      {sizeof(int), potrf_size(context, shape<T>(n, n)).device, bytes_of<double>(n, 1)});
}

template <compute_scalar T>
std::size_t triangularize_bytes(cuda_context& context, index_t m, index_t n) {
  const auto tau = shape<T>((std::min)(m, n), 1);
  return total_bytes(
      {bytes_of<T>(tau.rows, 1), geqrf_size(context, shape<T>(m, n), tau).device, sizeof(int)});
}

template <compute_scalar T>
std::size_t thin_qr_bytes(cuda_context& context, index_t m, index_t n) {
  const auto orgqr = orgqr_size(context, shape<T>(m, n), shape<T>(n, 1)).device;
  return triangularize_bytes<T>(context, m, n) + total_bytes({orgqr, sizeof(int)});
}

template <compute_scalar T>
std::size_t eigh_bytes(cuda_context& context, index_t n) {
  const auto c = shape<T>(n, n);
  const auto w = shape<T>(n, 1);
  return total_bytes({bytes_of<T>(n, n), bytes_of<T>(n, 1), sizeof(int),
                      syevd_size(context, c, w).device,
                      syevj_size(context, c, w, syevj_params()).device});
}

template <compute_scalar T>
std::size_t svd_bytes(cuda_context& context, index_t m, index_t n) {
  const index_t k = (std::min)(m, n);
  const auto s = shape<T>(k, 1);
  const auto u = shape<T>(m, k);
  const auto tall = shape<T>(m, k); // what gesvd gets
  const std::size_t polar =
      total_bytes({bytes_of<T>(m, n), bytes_of<T>(n, k),
                   gesvdp_size(context, shape<T>(m, n), s, u, shape<T>(n, k)).device});
  const std::size_t reduction = m >= n ? 0 : total_bytes({bytes_of<T>(n, m), bytes_of<T>(m, m)});
  const std::size_t qr =
      reduction + (std::max)(total_bytes({gesvd_size(context, tall, s, u).device}),
                             m >= n ? 0 : triangularize_bytes<T>(context, n, m));
  return total_bytes({bytes_of<T>(k, 1), sizeof(int)}) + (std::max)(polar, qr);
}

} // namespace ressvd::inline v0::detail::cuda
