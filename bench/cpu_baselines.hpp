// SPDX-License-Identifier: Apache-2.0
//
// The baselines of the library's algorithms on the CPU:
//   bdcsvd     Eigen's BDCSVD, the left vectors alone
//   published  LAPACK: Cholesky of the Gram, explicit inverse, gesdd, two products
//   swift      LAPACK: the Gram of the shorter side in double, all of its eigenvectors by syevd,
//              the route of Swift-SVD
#pragma once

#include <Eigen/SVD>
#include <string>
#include <utility>
#include <vector>

#include "truncated_svd.hpp"

namespace bench {

inline void bdcsvd(benchmark::State& state, const matrix_set& set, index_t rank) {
  eigen_backend<float> be;
  measure(state, be, set, dense_tolerance, [&](const known_matrix& known, auto timed) {
    const auto a = known.a.ref();
    auto q = be.allocate(a.rows, rank);
    timed([&] {
      const Eigen::BDCSVD<Eigen::MatrixXf> solver(
          Eigen::Map<const Eigen::MatrixXf>(a.data, a.rows, a.cols), Eigen::ComputeThinU);
      be.copy(col_major(solver.matrixU().data(), a.rows, rank), q);
    });
    return q;
  });
}

#ifdef RESSVD_BENCH_LAPACK
/// W·S is the given A for S = the Cholesky factor of a well-conditioned Gram; the time of the route
/// does not depend on W.
inline void published(benchmark::State& state, const matrix_set& set, index_t rank) {
  const shape s = set.size;
  const index_t k = (std::min)(s.m, s.n);
  const auto m = static_cast<lapack_int>(s.m);
  const auto n = static_cast<lapack_int>(s.n);
  lapack_backend<float> be;
  auto gram = be.allocate(s.n, s.n);
  auto w = be.allocate(s.m, s.n);
  auto u = be.allocate(s.m, k);
  auto vt = be.allocate(k, s.n);
  auto right = be.allocate(rank, s.n);
  std::vector<float> sigma(static_cast<std::size_t>(k));
  {
    auto frame = be.frame();
    const auto x = be.scratch(s.n, s.n);
    be.random_normal(x, 3);
    be.fill(gram, 0.0f);
    be.add_gram(x, gram);
    be.shift_diagonal(gram, static_cast<float>(s.n));
  }
  measure(state, be, set, dense_tolerance, [&](const known_matrix& known, auto timed) {
    auto frame = be.frame();
    const auto l = be.scratch(s.n, s.n);
    const auto inverse = be.scratch(s.n, s.n);
    const auto ws = be.scratch(s.m, s.n);
    be.copy(gram, l);
    be.potrf(l);
    be.copy(known.a, w);
    be.trsm(side::right, op::none, l, w);
    timed([&] {
      be.copy(gram, l);
      be.potrf(l);
      be.copy(l, inverse);
      LAPACKE_strtri(LAPACK_COL_MAJOR, 'L', 'N', n, inverse.data, n);
      be.trmm(side::right, op::none, l, w, ws);
      LAPACKE_sgesdd(LAPACK_COL_MAJOR, 'S', m, n, ws.data, m, sigma.data(), u.data(), m, vt.data(),
                     (std::min)(m, n));
      be.trmm(side::right, op::none, inverse, vt.ref().top_rows(rank), right);
    });
    auto q = be.allocate(s.m, rank);
    be.copy(u.ref().left_cols(rank), q);
    return q;
  });
}

inline void swift(benchmark::State& state, const matrix_set& set, index_t rank) {
  const shape s = set.size;
  const bool wide = s.m <= s.n;
  const index_t k = (std::min)(s.m, s.n);
  lapack_backend<float> be;
  lapack_backend<double> be64(be);
  std::vector<double> lambda(static_cast<std::size_t>(k));
  measure(state, be, set, 1e-5, [&](const known_matrix& known, auto timed) {
    auto q = be.allocate(s.m, rank);
    auto frame = be64.frame();
    timed([&] {
      const auto a = be64.scratch(s.m, s.n);
      const auto h = be64.scratch(k, k);
      be64.copy(known.a, a);
      be64.fill(h, 0.0);
      be64.add_gram(wide ? a.view() : a.transposed(), h);
      const auto order = static_cast<lapack_int>(k);
      LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', order, h.data, order, lambda.data());
      const auto vectors = be.scratch(k, rank);
      be.copy(h.col_range(k - rank, rank), wide ? q.ref() : vectors);
      if (!wide) be.gemm(op::none, op::none, 1.0f, known.a, vectors, 0.0f, q);
    });
    // The route ends with A·V; the check wants an orthonormal basis of it.
    if (!wide) be.thin_qr(q, be.scratch(rank, rank));
    return q;
  });
}
#endif

/// Registers all of them, at 40 %: their time hardly depends on the rank.
inline void add_baselines(const matrix_set& set) {
  const index_t rank = rank_at(set.size, 40);
  add(benchmark_name("bdcsvd", "eigen", set),
      [=](benchmark::State& state) { bdcsvd(state, set, rank); });
#ifdef RESSVD_BENCH_LAPACK
  add(benchmark_name("published", "lapack", set),
      [=](benchmark::State& state) { published(state, set, rank); });
  add(benchmark_name("swift", "lapack", set),
      [=](benchmark::State& state) { swift(state, set, rank); });
#endif
}

} // namespace bench
