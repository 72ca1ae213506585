// SPDX-License-Identifier: Apache-2.0
//
// The library's own factorisations of a matrix A (m × n, float, singular values known), on any
// backend:
//   subspace        to an excess loss of 1e-3 and of 1e-5
//   deflated_gram   a symmetric eigendecomposition in float, to an excess loss of 1e-3
//   projector       to an excess loss of 1e-3, on backends with products in reduced precision
//   gram            the same in double
//   exact           a dense SVD in float
// Counters: gemms, the time as a multiple of one product of 2mn·min(m, n) flops on the same backend
// in the same process; excess, the loss beyond the optimum, relative to it. A benchmark fails when
// its loss is wrong.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "support.hpp"

namespace bench {

struct shape {
  index_t m, n;
};

inline index_t rank_at(shape s, int percent) {
  return static_cast<index_t>(static_cast<double>(100 - percent) / 100 *
                              static_cast<double>(s.m * s.n) / static_cast<double>(s.m + s.n));
}

inline std::string name_of(shape s) {
  return std::to_string(s.m) + "x" + std::to_string(s.n);
}

/// ‖A − QQᵀA‖² / optimum − 1, from the residual itself, in double: in float, sums of r terms beside
/// an outlier leave more than 1e-6 of the loss. A: known, in the backend's memory.
template <class B>
double excess_loss(B& be, const known_matrix& known, const_block_of<B> a, const_block_of<B> q) {
  wide_backend<B> be64(be);
  auto frame = be64.frame();
  const auto basis = be64.scratch(q.rows, q.cols);
  const auto coordinates = be64.scratch(q.cols, a.cols);
  const auto residual = be64.scratch(a.rows, a.cols);
  be64.copy(q, basis);
  be64.copy(a, residual);
  be64.gemm(op::transpose, op::none, 1.0, basis, residual, 0.0, coordinates);
  be64.gemm(op::none, op::none, -1.0, basis, coordinates, 1.0, residual);
  return be64.dot(residual, residual) / known.optimum(q.cols) - 1;
}

/// A dense SVD in float errs by eps of the largest singular value, everywhere.
inline constexpr double dense_tolerance = 1e-2;

template <class B>
void report(benchmark::State& state, B& be, shape s, double seconds, double excess,
            double tolerance) {
  const double gemm = gemm_seconds(be, s.m, (std::min)(s.m, s.n), s.n);
  state.counters["gemms"] = seconds / static_cast<double>(state.iterations()) / gemm;
  state.counters["excess"] = excess;
  // Rounding of A itself, whose optimum is not quite that of its nominal singular values.
  if (!(excess <= tolerance + 1e-5)) state.SkipWithError("the loss is wrong");
}

/// Matrices of one shape that a benchmark factors one after the other.
struct matrix_set {
  std::string name; ///< stands before the shape in the benchmark's name
  shape size;
  std::function<std::span<const known_matrix>()> get; ///< called when the benchmark runs
};

inline matrix_set synthetic(spectrum kind, shape s) {
  return {name_of(kind), s, [=] { return std::span(&known_matrix_of(kind, s.m, s.n), 1); }};
}

/// Factors the whole set in each iteration. factor(known, timed) prepares one matrix, factors it
/// within timed(f), and returns the basis, m × rank; the first of each matrix is verified.
template <class B, class F>
void measure(benchmark::State& state, B& be, const matrix_set& set, double tolerance, F factor) {
  const auto matrices = set.get();
  double seconds = 0;
  std::vector<double> excess;
  for (auto _ : state) {
    double time = 0;
    for (const known_matrix& known : matrices) {
      const matrix_of<B> q = factor(known, [&](auto run) { time += seconds_on(be, run); });
      if (excess.size() < matrices.size()) {
        const auto a = placed(be, known);
        excess.push_back(excess_loss(be, known, a, q));
      }
    }
    state.SetIterationTime(time);
    seconds += time;
  }
  const auto undefined = std::ranges::find_if(excess, [](double e) { return std::isnan(e); });
  report(state, be, set.size, seconds / static_cast<double>(matrices.size()),
         undefined != excess.end() ? *undefined : std::ranges::max(excess), tolerance);
}

template <class B>
void factor(benchmark::State& state, B be, const matrix_set& set, index_t rank,
            const svd_options& options) {
  const double tolerance = options.algorithm == svd_algorithm::exact  ? dense_tolerance
                           : options.algorithm == svd_algorithm::gram ? 1e-5
                                                                      : options.tolerance;
  svd_report ran;
  bool as_asked = true;
  measure(state, be, set, tolerance, [&](const known_matrix& known, auto timed) {
    const auto a = placed(be, known);
    svd_basis<B> basis;
    timed([&] { basis = truncated_svd(be, a, {}, {}, rank, options); });
    ran = basis.report;
    as_asked = as_asked && (options.algorithm == svd_algorithm::automatic ||
                            ran.algorithm == options.algorithm);
    return std::move(basis.q);
  });
  state.counters["applications"] = ran.applications;
  state.counters["sweeps"] = static_cast<double>(ran.sweeps);
  if (!as_asked) state.SkipWithError("another algorithm ran");
}

inline void add(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMillisecond);
}

/// Calls f(spectrum, shape) for every matrix.
template <class F>
void for_each_matrix(F f) {
  constexpr shape shapes[] = {{1024, 1024}, {2048, 2048},  {4096, 4096},
                              {4096, 1024}, {4096, 11008}, {11008, 4096}};
  for (const auto s : shapes) {
    for (const spectrum kind : {spectrum::layer, spectrum::flat})
      f(kind, s);
  }
}

inline std::string benchmark_name(const char* algorithm, const char* backend,
                                  const matrix_set& set) {
  return std::string(algorithm) + "/" + backend + "/" + set.name + "/" + name_of(set.size);
}

/// Registers the factorisations of one set by the algorithms whose time depends on the spectrum,
/// and by the others on request.
template <class B>
void add_factorings(const B& be, const matrix_set& set, bool others) {
  for (const int percent : {20, 40, 60}) {
    const index_t rank = rank_at(set.size, percent);
    const auto add_options = [&](const char* name, const svd_options& options) {
      add(benchmark_name(name, name_of(be), set) + "/" + std::to_string(percent),
          [=](benchmark::State& state) { factor(state, be, set, rank, options); });
    };
    add_options("subspace", {.algorithm = svd_algorithm::subspace});
    add_options("subspace_1e-5", {.algorithm = svd_algorithm::subspace, .tolerance = 1e-5});
    add_options("deflated_gram", {.algorithm = svd_algorithm::deflated_gram});
    if constexpr (requires(B b, block_of<B> c) {
                    b.reduced_gemm(op::none, op::none, 1, c, c, 0, c);
                  }) {
      add_options("projector", {.algorithm = svd_algorithm::projector});
    }
    if (!others) continue;
    add_options("gram", {.algorithm = svd_algorithm::gram});
    // A dense SVD computes all vectors.
    if (percent == 40) {
      add(benchmark_name("exact", name_of(be), set), [=](benchmark::State& state) {
        factor(state, be, set, rank, {.algorithm = svd_algorithm::exact});
      });
    }
  }
}

} // namespace bench
