// SPDX-License-Identifier: Apache-2.0
//
// The library's own factorisations of a matrix A (m × n, float, singular values known), on any
// backend:
//   subspace        to an excess loss of 1e-3 and of 1e-5
//   deflated_gram   a symmetric eigendecomposition in float, to an excess loss of 1e-3
//   gram            the same in double
//   exact           a dense SVD in float
// Counters: gemms, the time as a multiple of one product of 2mn·min(m, n) flops on the same backend
// in the same process; excess, the loss beyond the optimum, relative to it. A benchmark fails when
// its loss is wrong.
#pragma once

#include <functional>
#include <string>

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

/// ‖A − QQᵀA‖² / optimum − 1, from the residual itself. A: known, in the backend's memory.
template <class B>
double excess_loss(B& be, const known_matrix& known, const_block_of<B> a, const_block_of<B> q) {
  auto frame = be.frame();
  const auto coordinates = be.scratch(q.cols, a.cols);
  const auto residual = be.scratch(a.rows, a.cols);
  be.copy(a.view(), residual);
  be.gemm(op::transpose, op::none, 1.0f, q, residual, 0.0f, coordinates);
  be.gemm(op::none, op::none, -1.0f, q, coordinates, 1.0f, residual);
  return be.dot(residual, residual) / known.optimum(q.cols) - 1;
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

template <class B>
void factor(benchmark::State& state, B be, spectrum kind, shape s, index_t rank,
            const svd_options& options) {
  const known_matrix& known = known_matrix_of(kind, s.m, s.n);
  const auto a = placed(be, known);
  svd_basis<B> basis;
  double seconds = 0;
  for (auto _ : state) {
    const double time =
        seconds_on(be, [&] { basis = truncated_svd(be, a.view(), {}, {}, options); });
    state.SetIterationTime(time);
    seconds += time;
  }
  if (basis.report.algorithm != options.algorithm) {
    return state.SkipWithError("another algorithm ran");
  }
  const double tolerance = options.algorithm == svd_algorithm::exact  ? dense_tolerance
                           : options.algorithm == svd_algorithm::gram ? 1e-5
                                                                      : options.tolerance;
  state.counters["applications"] = basis.report.applications;
  state.counters["sweeps"] = static_cast<double>(basis.report.sweeps);
  report(state, be, s, seconds, excess_loss(be, known, a.ref(), basis.q.ref().left_cols(rank)),
         tolerance);
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

/// Registers the factorisations of one matrix.
template <class B>
void add_factorings(const B& be, spectrum kind, shape s) {
  const std::string where = std::string("/") + name_of(be) + "/" + name_of(kind) + "/" + name_of(s);
  for (const int percent : {20, 40, 60}) {
    const index_t rank = rank_at(s, percent);
    const std::string ratio = "/" + std::to_string(percent);
    const auto add_options = [&](const char* name, const svd_options& options) {
      add(name + where + ratio,
          [=](benchmark::State& state) { factor(state, be, kind, s, rank, options); });
    };
    add_options("subspace", {.rank = rank, .algorithm = svd_algorithm::subspace});
    add_options("subspace_1e-5",
                {.rank = rank, .algorithm = svd_algorithm::subspace, .tolerance = 1e-5});
    add_options("deflated_gram", {.rank = rank, .algorithm = svd_algorithm::deflated_gram});
    // The time of those below hardly depends on the spectrum.
    if (kind == spectrum::flat) continue;
    add_options("gram", {.rank = rank, .algorithm = svd_algorithm::gram});
    // A dense SVD is of all vectors.
    if (percent == 40) {
      add("exact" + where, [=](benchmark::State& state) {
        factor(state, be, kind, s, rank, {.rank = rank, .algorithm = svd_algorithm::exact});
      });
    }
  }
}

} // namespace bench
