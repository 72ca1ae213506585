// SPDX-License-Identifier: Apache-2.0
//
// One factorisation of a whitened matrix on the CPU: by the library's algorithms
// (truncated_svd.hpp; exact is LAPACK's gesdd and our QR iteration over Eigen's products), and by
//   bdcsvd     Eigen's BDCSVD, the left vectors alone
//   published  LAPACK: Cholesky of the Gram, explicit inverse, gesdd, two products
//   swift      LAPACK: the Gram of the shorter side in double, all of its eigenvectors by syevd,
//              the route of Swift-SVD
//
//   --benchmark_filter=subspace/eigen/layer/2048x2048
#include <Eigen/SVD>
#include <string>

#include "truncated_svd.hpp"

namespace {

using namespace bench;

void bdcsvd(benchmark::State& state, shape s, index_t rank) {
  eigen_backend<float> be;
  const known_matrix& known = known_matrix_of(spectrum::layer, s.m, s.n);
  const auto a = known.a.ref();
  Eigen::MatrixXf u;
  double seconds = 0;
  for (auto _ : state) {
    const double time = seconds_of([&] {
      const Eigen::BDCSVD<Eigen::MatrixXf> solver(
          Eigen::Map<const Eigen::MatrixXf>(a.data, a.rows, a.cols), Eigen::ComputeThinU);
      u = solver.matrixU();
    });
    state.SetIterationTime(time);
    seconds += time;
  }
  const block<const float> q{u.data(), s.m, rank, s.m};
  report(state, be, s, seconds, excess_loss(be, known, a, q), dense_tolerance);
}

#ifdef RESSVD_BENCH_LAPACK
/// W·S is the given A for S = the Cholesky factor of a well-conditioned Gram; the time of the route
/// does not depend on W.
void published(benchmark::State& state, spectrum kind, shape s, index_t rank) {
  using detail::lapack::size;
  lapack_backend<float> be;
  const known_matrix& known = known_matrix_of(kind, s.m, s.n);
  const index_t k = (std::min)(s.m, s.n);
  auto gram = be.allocate(s.n, s.n);
  {
    auto frame = be.frame();
    const auto x = be.scratch(s.n, s.n);
    be.random_normal(x, 3);
    be.fill(gram.ref(), 0.0f);
    be.add_gram(block<const float>(x).view(), gram.ref());
    be.shift_diagonal(gram.ref(), static_cast<float>(s.n));
  }
  auto w = be.allocate(s.m, s.n);
  {
    auto frame = be.frame();
    const auto l = be.scratch(s.n, s.n);
    be.copy(std::as_const(gram).view(), l);
    be.potrf(l);
    be.copy(known.a.view(), w.ref());
    be.trsm(side::right, op::none, l, w.ref());
  }
  auto u = be.allocate(s.m, k);
  auto vt = be.allocate(k, s.n);
  auto right = be.allocate(rank, s.n);
  std::vector<float> sigma(static_cast<std::size_t>(k));
  double seconds = 0;
  for (auto _ : state) {
    auto frame = be.frame();
    const double time = seconds_of([&] {
      const auto l = be.scratch(s.n, s.n);
      const auto inverse = be.scratch(s.n, s.n);
      const auto ws = be.scratch(s.m, s.n);
      be.copy(std::as_const(gram).view(), l);
      be.potrf(l);
      be.copy(block<const float>(l).view(), inverse);
      LAPACKE_strtri(LAPACK_COL_MAJOR, 'L', 'N', size(s.n), inverse.data, size(s.n));
      be.trmm(side::right, op::none, l, w.ref(), ws);
      LAPACKE_sgesdd(LAPACK_COL_MAJOR, 'S', size(s.m), size(s.n), ws.data, size(s.m), sigma.data(),
                     u.ref().data, size(s.m), vt.ref().data, size(k));
      be.trmm(side::right, op::none, inverse, vt.ref().top_rows(rank), right.ref());
    });
    state.SetIterationTime(time);
    seconds += time;
  }
  const const_block_of<lapack_backend<float>> q = u.ref().left_cols(rank);
  report(state, be, s, seconds, excess_loss(be, known, known.a.ref(), q), dense_tolerance);
}

void swift(benchmark::State& state, shape s, index_t rank) {
  using detail::lapack::size;
  lapack_backend<float> be;
  lapack_backend<double> be64(be);
  const known_matrix& known = known_matrix_of(spectrum::layer, s.m, s.n);
  const bool wide = s.m <= s.n;
  const index_t k = (std::min)(s.m, s.n);
  auto q = be.allocate(s.m, rank);
  std::vector<double> lambda(static_cast<std::size_t>(k));
  double seconds = 0;
  for (auto _ : state) {
    auto frame = be64.frame();
    const double time = seconds_of([&] {
      const auto a = be64.scratch(s.m, s.n);
      const auto h = be64.scratch(k, k);
      be64.copy(known.a.view(), a);
      be64.fill(h, 0.0);
      const auto rows = block<const double>(a).view();
      be64.add_gram(wide ? rows : rows.transposed(), h);
      LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'L', size(k), h.data, size(k), lambda.data());
      const auto vectors = be.scratch(k, rank);
      be.copy(block<const double>(h.col_range(k - rank, rank)).view(), wide ? q.ref() : vectors);
      if (!wide) {
        be.gemm(op::none, op::none, 1.0f, known.a.ref(), vectors, 0.0f, q.ref());
        detail::orthonormalize(be, q.ref());
      }
    });
    state.SetIterationTime(time);
    seconds += time;
  }
  report(state, be, s, seconds, excess_loss(be, known, known.a.ref(), std::as_const(q).ref()),
         1e-5);
}
#endif

void add_all() {
  for_each_matrix([](spectrum kind, shape s) {
    for_each_backend([&](const auto& be) { add_factorings(be, kind, s); });
    if (kind == spectrum::flat) return;
    const index_t rank = rank_at(s, 40);
    add("bdcsvd/eigen/layer/" + name_of(s),
        [=](benchmark::State& state) { bdcsvd(state, s, rank); });
#ifdef RESSVD_BENCH_LAPACK
    add("published/lapack/layer/" + name_of(s),
        [=](benchmark::State& state) { published(state, kind, s, rank); });
    add("swift/lapack/layer/" + name_of(s),
        [=](benchmark::State& state) { swift(state, s, rank); });
#endif
  });
}

} // namespace

int main(int argc, char** argv) {
  add_all();
  return bench::run(argc, argv);
}
