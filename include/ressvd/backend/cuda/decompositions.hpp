// SPDX-License-Identifier: Apache-2.0
//
// Decompositions: which cuSOLVER routine runs, how its report is checked, which one takes over when
// it fails, and the scratch that all of this takes.
//
// Eigenvalue routines and SVDs run on packed scratch: Xgesvdp has been seen to write between the
// columns of a result whose leading dimension exceeds its rows. Cholesky and QR keep to their
// blocks (the tests of padded blocks passed on a device) and run in place.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ressvd/backend/cpu/lu.hpp"
#include "ressvd/backend/cuda/elementwise.hpp"
#include "ressvd/backend/cuda/solver.hpp"

namespace ressvd {
inline namespace v0 {
namespace detail {
namespace cuda {

template <compute_scalar T>
device_block<T> scratch_block(cuda_context& context, index_t rows, index_t cols) {
  return {context.take<T>(rows * cols), rows, cols, (std::max)(rows, index_t{1})};
}

template <class T>
device_block<const T> as_input(device_block<T> c) {
  return c;
}

/// max(m, n)·eps: the error that a decomposition may make, relative to its largest value.
template <compute_scalar T>
double rounding_of(device_block<T> c) {
  return static_cast<double>((std::max)(c.rows, c.cols)) * std::numeric_limits<T>::epsilon();
}

/// A routine of cuSOLVER that may serve.
struct routine {
  const char* name;
  index_t* count;            ///< in the context's report
  std::function<void()> run; ///< throws solver_error when it fails
};

/// Runs the first routine, and the other one if it fails; the report says so. Each finds a copy of
/// c in `work`, and c stays as it is. A lost device and missing memory are not such failures: they
/// throw.
template <compute_scalar T>
void run_either(cuda_context& context, device_block<const T> c, device_block<T> work,
                const routine& first, const routine& other) {
  std::string failures;
  for (const routine* r : {&first, &other}) {
    try {
      const workspace_frame frame(context.scratch);
      r->run();
    } catch (const solver_error& error) {
      const std::string_view what = error.what();
      failures +=
          text(failures.empty() ? "" : "; ", r->name, ": ", what.substr(what.find(' ') + 1));
      cudaGetLastError();    // reported here, as check does
      context.synchronize(); // throws when the device is lost
      convert(context, c.view(), work.view());
      continue;
    }
    ++*r->count;
    if (!failures.empty()) {
      ++context.report.fallbacks;
      context.report.last_fallback =
          text(c.rows, " x ", c.cols, " by ", r->name, ", after ", failures);
    }
    return;
  }
  fail<backend_error>("cuSOLVER could not decompose a ", c.rows, " x ", c.cols, " matrix. ",
                      failures);
}

/// Reads the values that a routine left for c (of this Frobenius norm). Waits. Throws solver_error
/// when the routine did not converge, or when their squares do not add up to ‖c‖_F²: near the
/// limits of their index types, routines have been seen to return nonsense in silence.
template <compute_scalar T>
void read_values(cuda_context& context, const int* info, const char* name, device_block<T> w,
                 device_block<T> c, double norm, std::span<double> values) {
  int state = 0;
  std::vector<T> host(static_cast<std::size_t>(w.rows));
  context.copy_to_host(info, &state, 1);
  context.read(w.data, host.data(), w.rows);
  check_parameters(state, name);
  require<solver_error>(state == 0, "it did not converge (info ", state, ")");
  std::copy(host.begin(), host.end(), values.begin());
  double energy = 0;
  for (const T v : host) {
    require<solver_error>(std::isfinite(v), "it returned ", v);
    energy += static_cast<double>(v) * static_cast<double>(v);
  }
  // Each value may be off by max(m, n)·eps of the largest.
  const double rounding = std::sqrt(static_cast<double>(w.rows)) * rounding_of<T>(c) * norm;
  require<solver_error>(!(std::abs(std::sqrt(energy) - norm) > rounding),
                        "it returned values of norm ", std::sqrt(energy), " for a matrix of norm ",
                        norm);
}

/// What an attempt at a Cholesky factorisation says.
struct cholesky_outcome {
  index_t minor = 0; ///< one that is not positive, perhaps not the first; 0: the factor is there
  index_t suspected = 0; ///< where the matrix looks as if that was the first
};

/// Waits.
template <compute_scalar T>
cholesky_outcome try_cholesky(cuda_context& context, device_block<T> c, int* info) {
  const workspace_frame frame(context.scratch);
  potrf(context, c, info);
  const double* diagonal = gather_diagonal(context, as_input(c));
  int minor = 0;
  std::vector<double> pivots(static_cast<std::size_t>(c.rows));
  context.copy_to_host(info, &minor, 1);
  context.read(diagonal, pivots.data(), c.rows);
  check_parameters(minor, "potrf");
  // cuSOLVER does not promise to notice what is not a number.
  const auto bad = std::find_if(pivots.begin(), pivots.end(),
                                [](double p) { return !(p > 0) || !std::isfinite(p); });
  const index_t seen = bad == pivots.end() ? c.rows : bad - pivots.begin() + 1;
  if (minor > 0) return {minor, (std::min)(index_t{minor}, seen)};
  if (bad != pivots.end()) return {c.rows, seen};
  return {};
}

/// The order of the first minor that is not positive, or 0. Xpotrf may report a later one, and what
/// it leaves of the block in which it failed is not documented. The first one is found by factoring
/// leading minors of a copy: around the suspected one, then by bisection. Waits.
template <compute_scalar T>
index_t cholesky(cuda_context& context, device_block<T> c) {
  if (c.empty()) return 0;
  const workspace_frame frame(context.scratch);
  const auto kept = scratch_block<T>(context, c.rows, c.cols);
  int* info = take_info(context);
  convert(context, as_input(c).view(), kept.view());
  const cholesky_outcome whole = try_cholesky(context, c, info);
  index_t good = 0; // the order of a positive minor
  index_t bad = whole.minor;
  while (bad - good > 1) {
    const auto between = [&](index_t order) { return good < order && order < bad; };
    const index_t order = between(whole.suspected - 1) ? whole.suspected - 1
                          : between(whole.suspected)   ? whole.suspected
                                                       : good + (bad - good) / 2;
    const auto leading = c.part(0, 0, order, order);
    convert(context, as_input(kept).part(0, 0, order, order).view(), leading.view());
    const cholesky_outcome outcome = try_cholesky(context, leading, info);
    (outcome.minor == 0 ? good : bad) = outcome.minor == 0 ? order : outcome.minor;
  }
  return bad;
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

/// On the host: what a column without a pivot becomes is not documented for getrf.
template <compute_scalar T>
void lu_on_host(cuda_context& context, device_block<T> work, std::span<index_t> order) {
  std::vector<T> host(static_cast<std::size_t>(work.size()));
  context.read(work.data, host.data(), work.size());
  cpu::lu_panel(block<T>{host.data(), work.rows, work.cols, work.rows}, 0, work.cols, order);
  check(cudaMemcpyAsync(work.data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice,
                        context.stream()));
  context.synchronize();
}

template <compute_scalar T>
void lu(cuda_context& context, device_block<T> c, device_block<T> r, std::span<index_t> order) {
  std::iota(order.begin(), order.end(), index_t{0});
  if (c.empty()) return;
  const workspace_frame frame(context.scratch);
  const auto work = scratch_block<T>(context, c.rows, c.cols);
  auto* pivots = context.take<std::int64_t>(c.cols);
  int* info = take_info(context);
  convert(context, as_input(c).view(), work.view());
  getrf(context, work, pivots, info);
  int state = 0;
  std::vector<std::int64_t> swaps(static_cast<std::size_t>(c.cols));
  context.copy_to_host(info, &state, 1);
  context.read(pivots, swaps.data(), c.cols);
  check_parameters(state, "getrf");
  if (state > 0) {
    convert(context, as_input(c).view(), work.view());
    lu_on_host(context, work, order);
  } else {
    for (std::size_t i = 0; i < swaps.size(); ++i) {
      require<backend_error>(swaps[i] > 0 && swaps[i] <= c.rows, "cuSOLVER's getrf returned pivot ",
                             swaps[i], " for a matrix of ", c.rows, " rows");
      std::swap(order[i], order[static_cast<std::size_t>(swaps[i] - 1)]);
    }
  }
  copy_upper(context, as_input(work), r);
  unit_lower(context, as_input(work), c);
}

/// Divide and conquer; where that fails, Jacobi's method.
template <compute_scalar T>
void eigh(cuda_context& context, device_block<T> c, std::span<double> values) {
  if (c.empty()) return;
  const workspace_frame frame(context.scratch);
  const auto work = scratch_block<T>(context, c.rows, c.cols);
  const auto w = scratch_block<T>(context, c.rows, 1);
  int* info = take_info(context);
  convert(context, as_input(c).view(), work.view());
  mirror_lower(context, work);
  const double norm = std::sqrt(dot(context, as_input(work), as_input(work)));
  run_either(context, as_input(c), work,
             {"syevd", &context.report.syevd,
              [&] {
                syevd(context, work, w, info);
                read_values(context, info, "syevd", w, work, norm, values);
              }},
             {"syevj", &context.report.syevj, [&] {
                syevj(context, work, w, info);
                read_values(context, info, "syevj", w, work, norm, values);
              }});
  convert(context, as_input(work).view(), c.view());
}

/// SVD by polar decomposition; destroys c.
template <compute_scalar T>
void polar_svd(cuda_context& context, device_block<T> c, device_block<T> s, int* info, double norm,
               std::span<double> values, device_block<T> u) {
  const auto v = scratch_block<T>(context, c.cols, s.rows);
  const double perturbation = gesvdp(context, c, s, u, v, info);
  read_values(context, info, "gesvdp", s, c, norm, values);
  const double rounding = rounding_of<T>(c) * values[0];
  require<solver_error>(perturbation <= rounding, "it perturbed the singular values by ",
                        perturbation, ", more than rounding does, ", rounding);
  double& largest = context.report.perturbation;
  if (values[0] > 0) largest = (std::max)(largest, perturbation / values[0]);
}

/// SVD by QR iteration; destroys c. gesvd wants m ≥ n: a wide matrix C is replaced by the square Rᵀ
/// of Cᵀ = QR, which has the same left singular vectors.
template <compute_scalar T>
void qr_svd(cuda_context& context, device_block<T> c, device_block<T> s, int* info, double norm,
            std::span<double> values, device_block<T> u) {
  if (c.rows >= c.cols) {
    gesvd(context, c, s, u, info);
  } else {
    const auto ct = scratch_block<T>(context, c.cols, c.rows);
    const auto r = scratch_block<T>(context, c.rows, c.rows);
    convert(context, as_input(c).view().transposed(), ct.view());
    triangularize(context, ct, r);
    const auto rt = c.left_cols(c.rows);
    convert(context, as_input(r).view().transposed(), rt.view());
    gesvd(context, rt, s, u, info);
  }
  read_values(context, info, "gesvd", s, c, norm, values);
}

template <compute_scalar T>
void svd(cuda_context& context, device_block<T> c, std::span<double> values, device_block<T> u) {
  if (c.empty()) return;
  constexpr index_t small = 64;
  const workspace_frame frame(context.scratch);
  const auto work = scratch_block<T>(context, c.rows, c.cols);
  const auto s = scratch_block<T>(context, (std::min)(c.rows, c.cols), 1);
  const auto left = scratch_block<T>(context, c.rows, s.rows);
  int* info = take_info(context);
  convert(context, as_input(c).view(), work.view());
  const double norm = std::sqrt(dot(context, as_input(work), as_input(work)));
  const routine polar{"gesvdp", &context.report.gesvdp,
                      [&] { polar_svd(context, work, s, info, norm, values, left); }};
  const routine qr{"gesvd", &context.report.gesvd,
                   [&] { qr_svd(context, work, s, info, norm, values, left); }};
  const bool polar_first = s.rows > small && context.options().svd == cuda_svd::automatic;
  run_either(context, as_input(c), work, polar_first ? polar : qr, polar_first ? qr : polar);
  convert(context, as_input(left).view(), u.view());
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
  return total_bytes({bytes_of<T>(n, n), sizeof(int), potrf_size(context, shape<T>(n, n)).device,
                      bytes_of<double>(n, 1)});
}

template <compute_scalar T>
std::size_t lu_bytes(cuda_context& context, index_t m, index_t n) {
  return total_bytes({bytes_of<T>(m, n), static_cast<std::size_t>(n) * sizeof(std::int64_t),
                      sizeof(int), getrf_size(context, shape<T>(m, n)).device});
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

/// Scratch of dot over a packed block.
inline std::size_t dot_bytes(index_t rows, index_t cols) {
  return bytes_of<double>(over_for_sum(rows * cols, 1).grid.x, 1);
}

/// 0 for a routine that refuses such a matrix, since it will not run either.
template <class Query>
std::size_t bytes_unless_refused(Query query) {
  try {
    return query();
  } catch (const solver_error&) {
    return 0;
  }
}

template <compute_scalar T>
std::size_t eigh_bytes(cuda_context& context, index_t n) {
  const auto c = shape<T>(n, n);
  const auto w = shape<T>(n, 1);
  const auto direct = bytes_unless_refused([&] { return syevd_size(context, c, w).device; });
  const auto jacobi =
      bytes_unless_refused([&] { return syevj_size(context, c, w, syevj_params()).device; });
  return total_bytes({bytes_of<T>(n, n), bytes_of<T>(n, 1), sizeof(int),
                      (std::max)({direct, jacobi, dot_bytes(n, n)})});
}

template <compute_scalar T>
std::size_t svd_bytes(cuda_context& context, index_t m, index_t n) {
  const index_t k = (std::min)(m, n);
  const auto s = shape<T>(k, 1);
  const auto u = shape<T>(m, k);
  const auto polar = bytes_unless_refused([&] {
    const auto size = gesvdp_size(context, shape<T>(m, n), s, u, shape<T>(n, k));
    return total_bytes({bytes_of<T>(n, k), size.device});
  });
  const auto qr = bytes_unless_refused([&] {
    const auto size = gesvd_size(context, shape<T>(m, k), s, u).device;
    if (m >= n) return total_bytes({size});
    return total_bytes({bytes_of<T>(n, m), bytes_of<T>(m, m)}) +
           (std::max)(total_bytes({size}), triangularize_bytes<T>(context, n, m));
  });
  return total_bytes({bytes_of<T>(m, n), bytes_of<T>(k, 1), bytes_of<T>(m, k), sizeof(int)}) +
         (std::max)({polar, qr, total_bytes({dot_bytes(m, n)})});
}

} // namespace cuda
} // namespace detail
} // namespace v0
} // namespace ressvd
